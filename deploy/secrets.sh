#!/usr/bin/env bash
# secrets.sh DIR [NAME...]: makes the secrets of an installation in DIR, each a file of its own, mode 0600. NAMEs are those under
# which its users reach it, for the certificate of the balancer; localhost and 127.0.0.1 are always in it. What is there is kept, so that a
# second run changes nothing: signing keys and refresh tokens in a database are worth as much as the files they were made with.
set -euo pipefail
(($# >= 1)) || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
mkdir -p -- "$(dirname -- "$1")" # that others may enter: a configuration beside DIR is not ours alone
umask 077
mkdir -p -- "$1"
cd -- "$1"
shift

# whole FILE COMMAND...: the command's output becomes the file, whole or not at all; a file that is there is kept.
whole() {
  local file=$1
  shift
  [[ -e $file ]] && return
  "$@" >"$file.new"
  mv "$file.new" "$file"
}
key() { openssl rand -base64 32 | tr '+/' '-_' | tr -d '=\n'; }
keys() { echo "{\"keys\": [{\"id\": $1, \"key\": \"$(key)\"}]}"; }

# An openssl configuration that adds nothing of its own to a certificate.
plain=$(mktemp)
trap 'rm -f "$plain"' EXIT
printf '[req]\ndistinguished_name = dn\n[dn]\n' >"$plain"
certify() { openssl req -config "$plain" -x509 -new -sha256 -days 3650 "$@" 2>/dev/null; }
ecKey() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256; }
# pair NAME SUBJECTALTNAME: a key and a certificate of our own authority.
pair() {
  whole "$1.key" ecKey
  whole "$1.crt" certify -CA ca.crt -CAkey ca.key -key "$1.key" -subj "/CN=$1" -addext "subjectAltName=$2" \
    -addext basicConstraints=critical,CA:FALSE -addext keyUsage=critical,digitalSignature -addext extendedKeyUsage=serverAuth
}

whole kek.json keys '"1"'
whole refresh.json keys 1
for name in database postgres replication redis; do whole "$name-password" openssl rand -hex 24; done

# Redis keeps a hash of the password, and lets nobody else in; docs/redis.md says what each right is for.
users() {
  echo 'user default off'
  echo "user authsvc on #$(tr -d '\n' <redis-password | openssl dgst -sha256 -r | cut -d' ' -f1) ~authsvc:* &authsvc:* -@all +eval +evalsha +get +set +del +time +publish +subscribe +ping"
}
whole redis-users.acl users

whole ca.key ecKey
whole ca.crt certify -key ca.key -subj "/CN=authsvc's own authority" -addext basicConstraints=critical,CA:TRUE,pathlen:0 \
  -addext keyUsage=critical,keyCertSign -addext subjectKeyIdentifier=hash
here=DNS:localhost,IP:127.0.0.1
public=$here
for name in "$@"; do public+=",DNS:$name"; done
pair authsvc "DNS:authsvc,$here"
pair postgres "DNS:postgres,$here"
pair redis "DNS:redis,$here"
pair nginx "$public"
