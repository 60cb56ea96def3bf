#!/usr/bin/env bash
# byokd's main job, on embedded parts and on loopback only: a SoftHSM token, and
# awssim in the place of AWS. Everything lies in a temporary folder and is gone
# at the end. Run it with `make demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/bin
region=eu-central-1
alias=alias/payments

dir=$(mktemp -d)
pids=()
finish() {
  status=$?
  trap - EXIT
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
  if ((status != 0)); then
    echo
    echo "The demo FAILED. The end of byokd's log:"
    tail -n 20 "$dir/byokd.log" 2>/dev/null || true
  fi
  rm -rf "$dir"
  exit "$status"
}
trap finish EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*" | { [[ -t 1 ]] && cat || sed 's/\x1b\[[0-9;]*m//g'; }; }
die() { echo "NOT SO: $*" >&2; exit 1; }
byokctl() { "$bin/byokctl" --config "$dir/byokd.toml" "$@"; }

# aws SERVICE TARGET JSON: one signed request, as any AWS client would send it.
aws() {
  curl --silent --show-error --fail-with-body --aws-sigv4 "aws:amz:$region:$1" --user AKIADEMO:demo-secret \
    -H 'Content-Type: application/x-amz-json-1.1' -H "X-Amz-Target: $2" -d "$3" "$endpoint/"
}
until_true() { # until_true SECONDS WHAT COMMAND…: waits for a condition
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || die "$what"
    read -rt 0.1 <> <(:) || true
  done
}

say "1. An HSM. (A SoftHSM token; on your premises, your own.)"
mkdir -p "$dir"/{tokens,groups.d,state,run} && chmod 700 "$dir"
printf 'directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n' "$dir/tokens" >"$dir/softhsm2.conf"
export SOFTHSM2_CONF=$dir/softhsm2.conf
softhsm2-util --init-token --free --label byokd --so-pin 12345678 --pin 1234 >/dev/null
module=$(ls /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so 2>/dev/null | head -n 1)
(umask 077 && printf 1234 >"$dir/hsm.pin" && printf 'Access key ID,Secret access key\r\nAKIADEMO,demo-secret\r\n' >"$dir/prod.csv")
echo "token 'byokd' in $module"

say "2. AWS. (awssim, a simulator of KMS and EventBridge; loopback only.)"
"$bin/awssim" --listen 127.0.0.1:0 --wrapping-pairs 2 --account AKIADEMO:demo-secret:111122223333 >"$dir/awssim.log" 2>&1 &
pids+=($!)
until_true 30 "awssim started" grep -q 'listening on' "$dir/awssim.log"
endpoint=$(grep -o 'http://[0-9.:]*' "$dir/awssim.log" | head -n 1)
echo "KMS and EventBridge at $endpoint"

say "3. byokd, told where both are."
cat >"$dir/byokd.toml" <<TOML
state_dir   = "state"
runtime_dir = "run"
settle      = "200ms"

[hsm.main]
module      = "$module"
token_label = "byokd"
pin_file    = "hsm.pin"

[credentials.prod]
access_key_csv = "prod.csv"

[aws]
kms_endpoint         = "$endpoint"
eventbridge_endpoint = "$endpoint"
sts_endpoint         = "$endpoint"
tagging_endpoint     = "$endpoint"
TOML
byokctl init
"$bin/byokd" --config "$dir/byokd.toml" 2>"$dir/byokd.log" &
pids+=($!)
until_true 20 "byokd answers on its socket" byokctl status
echo "byokd runs; it has no group yet"

say "4. Configuration management drops a file…"
cat >"$dir/payments.toml" <<TOML
[rotation]
every = "90d"

[aws]
region      = "$region"
alias       = "$alias"
description = "card payments"
TOML
cat "$dir/payments.toml"
install -m 600 "$dir/payments.toml" "$dir/groups.d/payments.toml"

say "   …and a key made in the HSM appears behind $alias in KMS."
generation() { [[ $(byokctl status --json | jq -r '.[] | select(.group == "payments") | .active.generation') == "$1" ]]; }
until_true 40 "the first generation became active" generation 1
byokctl keys payments

say "5. Somebody encrypts a card number through the alias."
plain=$(printf '4111 1111 1111 1111' | base64)
old=$(aws kms TrentService.Encrypt "{\"KeyId\":\"$alias\",\"Plaintext\":\"$plain\"}")
old_key=$(jq -r .KeyId <<<"$old")
echo "encrypted under ${old_key##*/}"

say "6. An auditor wants a fresh key, now."
byokctl rotate payments --wait
new_key=$(aws kms TrentService.DescribeKey "{\"KeyId\":\"$alias\"}" | jq -r .KeyMetadata.Arn)
[[ $new_key != "$old_key" ]] || die "the alias moved"
[[ $(aws kms TrentService.DescribeKey "{\"KeyId\":\"$new_key\"}" | jq -r '.KeyMetadata | .Origin + " " + .KeyState') == "EXTERNAL Enabled" ]] || die "the new key is EXTERNAL and enabled"
echo "$alias: ${old_key##*/} → ${new_key##*/}"

say "7. What was encrypted before still decrypts."
back=$(aws kms TrentService.Decrypt "{\"CiphertextBlob\":$(jq .CiphertextBlob <<<"$old")}" | jq -r .Plaintext | base64 -d)
[[ $back == '4111 1111 1111 1111' ]] || die "the old ciphertext decrypts"
echo "$back"

say "8. The job, for whoever asks later."
job=$(byokctl jobs --group payments --limit 1 --json | jq -r '.[0].id')
byokctl job "$job"
[[ $(byokctl job "$job" --json | jq -r .state) == completed ]] || die "the job completed"

say "9. And the event, as EventBridge received it."
moves() { "$bin/awssim" events --endpoint "$endpoint" --json | jq '[.[].event | select(."detail-type" == "KMS Alias Moved")]'; }
two_moves() { moves | jq -e 'length == 2'; }
until_true 20 "both alias moves arrived as events" two_moves
event=$(moves | jq '.[1]')
jq . <<<"$event"
[[ $(jq -r .detail.new_key_arn <<<"$event") == "$new_key" && $(jq -r .detail.previous_key_arn <<<"$event") == "$old_key" ]] || die "the event names both keys"

say "That is all: drop a file, and the key stays fresh. (Everything is stopped and removed now.)"
