#!/bin/sh
# Brings byokd.toml and groups.d of a directory, a checkout perhaps, to this machine:
#
#     deploy.sh DIRECTORY
#
# Each file is checked before it is put in place; at the first that is bad it stops,
# and says what is wrong. What is the same already is left alone. Changed group files
# count by themselves; the reload at the end is so that what was written is in force
# when it returns. A changed byokd.toml has byokd restarted instead, since not all of
# its keys follow a reload; jobs that run go on after it.
set -eu
from=$1
etc=${BYOKD_ETC:-/etc/byokd}

put() {
	cmp -s "$1" "$2" || { install -m 644 "$1" "$2"; echo "$2"; }
}

byokctl --config "$etc/byokd.toml" check --as byokd "$from/byokd.toml" >/dev/null
then=${BYOKD_RELOAD:-systemctl reload byokd}
cmp -s "$from/byokd.toml" "$etc/byokd.toml" || then=${BYOKD_RESTART:-systemctl restart byokd}
put "$from/byokd.toml" "$etc/byokd.toml"
for policy in "$from"/groups.d/*.json; do
	[ ! -e "$policy" ] || put "$policy" "$etc/groups.d/${policy##*/}"
done
for group in "$from"/groups.d/*.toml; do
	[ -e "$group" ] || continue
	name=$(basename "$group" .toml)
	byokctl --config "$etc/byokd.toml" check --as "$name" "$group" >/dev/null
	put "$group" "$etc/groups.d/$name.toml"
done
byokctl --config "$etc/byokd.toml" check >/dev/null # policies too
$then
