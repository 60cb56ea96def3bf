#!/usr/bin/env bash
# One rotation as it is done without byokd, with the aws CLI, OpenSSL and pkcs11-tool:
#
#	MODULE=… TOKEN=… PIN=… ENDPOINT=… rotate-by-hand.sh ALIAS
#
# It makes an AES-256 key on the token, creates a KMS key, imports the token's key into
# it and moves the alias. pkcs11-tool 0.23 gives C_WrapKey no parameters for OAEP, so it
# cannot wrap the key inside the token as AWS wants it: the key is made readable, read,
# and wrapped by OpenSSL, and is in the clear in a file in memory meanwhile. What fails
# half-way is left to the person who reads the error.
set -euo pipefail
umask 077

alias=$1
dir=$(mktemp -d -p /dev/shm)
trap 'rm -rf "$dir"' EXIT

token() { pkcs11-tool --module "$MODULE" --token-label "$TOKEN" --login --pin env:PIN "$@" >"$dir/log" 2>&1 || { cat "$dir/log" >&2; return 1; }; }
kms() { aws --endpoint-url "$ENDPOINT" kms "$@"; }

id=$(openssl rand -hex 16)
token --keygen --key-type AES:32 --extractable --private --label "$alias" --id "$id"

key=$(kms create-key --origin EXTERNAL --description "$alias" --query KeyMetadata.KeyId --output text)
read -r public import_token < <(kms get-parameters-for-import --key-id "$key" \
  --wrapping-algorithm RSAES_OAEP_SHA_256 --wrapping-key-spec RSA_4096 --query '[PublicKey,ImportToken]' --output text)
base64 -d <<<"$public" >"$dir/public.der"
base64 -d <<<"$import_token" >"$dir/import-token"

token --read-object --type secrkey --id "$id" --output-file "$dir/material"
openssl pkeyutl -encrypt -pubin -keyform DER -inkey "$dir/public.der" -in "$dir/material" -out "$dir/wrapped" \
  -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256
rm "$dir/material"
kms import-key-material --key-id "$key" --encrypted-key-material "fileb://$dir/wrapped" \
  --import-token "fileb://$dir/import-token" --expiration-model KEY_MATERIAL_DOES_NOT_EXPIRE >/dev/null

kms update-alias --alias-name "$alias" --target-key-id "$key"
echo "$key"
