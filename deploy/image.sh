#!/usr/bin/env bash
# image.sh [ARCH...]: builds the image of authsvc without Docker and without anybody's registry, for amd64 unless told otherwise, into
# dist/authsvc-ARCH.tar, which "docker load -i" takes as authsvc:VERSION; AUTHSVC_VERSION names the release. Then it looks at what
# it made, and runs the program in it where the machine can. The tools are built from tools/image/go.mod, in some minutes the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
version=${AUTHSVC_VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo devel)}
mkdir -p bin dist
go build -modfile=tools/image/go.mod -o bin/ github.com/google/ko github.com/google/go-containerregistry/cmd/crane
work=$(mktemp -d)
registry='' server=''
end() {
  [[ -z $server ]] || kill "$server" 2>/dev/null || true
  [[ -z $registry ]] || kill "$registry" 2>/dev/null || true
  wait
  rm -rf "$work"
}
trap end EXIT
fail() { echo "image.sh: $*" >&2; exit 1; }
# attempt COMMAND...: tries for ten seconds.
attempt() { for _ in $(seq 200); do "$@" && return; sleep 0.05; done; return 1; }

# What is in the image beside the program: whom to trust, a user, what time it is elsewhere, and a folder for temporary files.
root=$work/root
mkdir -p "$root"/etc/ssl/certs "$root"/etc/authsvc "$root"/usr/share
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp "$(go env GOROOT)/lib/time/zoneinfo.zip" "$root/usr/share/zoneinfo.zip"
echo 'authsvc:x:65532:65532:authsvc:/:/sbin/nologin' >"$root/etc/passwd"
echo 'authsvc:x:65532:' >"$root/etc/group"
install -d -m 1777 "$root/tmp"
tar -C "$root" --owner=0 --group=0 --numeric-owner --sort=name --mtime=@0 -cf "$work/base.tar" .

# A registry in this machine's memory for as long as this takes, since ko wants to fetch its base from one.
bin/crane registry serve --address 127.0.0.1:0 >"$work/registry" 2>&1 &
registry=$!
attempt grep -q 'serving on port' "$work/registry" || fail "the registry did not start: $(cat "$work/registry")"
at=localhost:$(sed -n 's/.*serving on port \([0-9]*\).*/\1/p' "$work/registry" | head -1)
crane() { bin/crane --insecure "$@" 2>"$work/said" || fail "crane $1: $(cat "$work/said")"; }

# build ARCH: the image at $at/authsvc:ARCH.
build() {
  local arch=$1
  crane append --oci-empty-base -f "$work/base.tar" -t "$at/base:$arch" >/dev/null
  crane mutate --set-platform "linux/$arch" --user 65532:65532 --env ZONEINFO=/usr/share/zoneinfo.zip -t "$at/base:$arch" "$at/base:$arch" >/dev/null
  VERSION=$version KO_DOCKER_REPO=$at/authsvc KO_DEFAULTBASEIMAGE=$at/base:$arch KO_CONFIG_PATH=deploy/docker \
    bin/ko build --insecure-registry --bare --sbom=none --platform="linux/$arch" --tags "$arch" ./cmd/authsvc >/dev/null 2>"$work/said" || fail "ko: $(cat "$work/said")"
  crane mutate --cmd serve,-config,/etc/authsvc/authsvc.yaml --exposed-ports 8080/tcp,9090/tcp \
    --label org.opencontainers.image.title=authsvc --label org.opencontainers.image.version="$version" --label org.opencontainers.image.licenses=Apache-2.0 \
    --label "org.opencontainers.image.description=Signs people and services in" -t "$at/authsvc:$arch" "$at/authsvc:$arch" >/dev/null
}

# save ARCH FILE: the image as a file that Docker loads, under a name without our registry.
save() {
  crane pull --platform "linux/$1" "$at/authsvc:$1" "$work/pulled.tar" >/dev/null
  rm -rf "$work/saved" && mkdir "$work/saved"
  tar -C "$work/saved" -xf "$work/pulled.tar"
  sed -i "s#\"$at/authsvc:$1\"#\"authsvc:$version\"#" "$work/saved/manifest.json"
  tar -C "$work/saved" --owner=0 --group=0 --numeric-owner --sort=name --mtime=@0 -cf "$2" $(ls "$work/saved")
}

# check ARCH FILE: the file has what it should, and the program in it runs without anything around it.
check() {
  local arch=$1 config files=$work/files pid
  crane push "$2" "$at/check:$arch" >/dev/null
  config=$(crane config "$at/check:$arch")
  for want in '"User":"65532:65532"' '"Entrypoint":["/ko-app/authsvc"]' '"Cmd":["serve","-config","/etc/authsvc/authsvc.yaml"]' "\"architecture\":\"$arch\"" '"os":"linux"' \
    '"8080/tcp":{}' '"9090/tcp":{}' "\"org.opencontainers.image.version\":\"$version\"" 'ZONEINFO=/usr/share/zoneinfo.zip' 'PATH='; do
    [[ $config == *"$want"* ]] || fail "the image's configuration lacks $want: $config"
  done
  (($(stat -c %s "$2") < 40 << 20)) || fail "$2 is larger than 40 MiB"
  rm -rf "$files" && mkdir "$files"
  crane export "$at/check:$arch" "$work/files.tar"
  tar -C "$files" -xf "$work/files.tar" 2>/dev/null
  [[ -z $(find "$files" -perm /6000) ]] || fail "there are files with the rights of others: $(find "$files" -perm /6000)"
  [[ $(find "$files" -name '*sh' -o -name '*.so*') == "" ]] || fail "there is a shell or a library: $(find "$files" -name '*sh' -o -name '*.so*')"
  [[ $(go env GOHOSTARCH) == "$arch" ]] || { echo "$2: looked at, not run"; return; }
  # In a root of its own, as the image's user, there is nothing but what is in the image.
  chmod 755 "$work" "$files"
  local PATH=$PATH:/usr/sbin
  local in=("$(command -v unshare)" --user --map-root-user "$(command -v chroot)" "$files")
  ((EUID)) || in=("$(command -v chroot)" --userspec=65532:65532 "$files")
  [[ $(env -i "${in[@]}" /ko-app/authsvc version) == "authsvc $version" ]] || fail "the program says it is $(env -i "${in[@]}" /ko-app/authsvc version)"
  env -i "${in[@]}" /ko-app/authsvc serve -dev -dir /tmp/dev -http 127.0.0.1:0 -grpc 127.0.0.1:0 -ops 127.0.0.1:0 >"$work/served" 2>&1 &
  server=$!
  attempt test -s "$files/tmp/dev/dev.json" || fail "serve -dev did not start in the image: $(cat "$work/served")"
  attempt env -i "${in[@]}" /ko-app/authsvc health -dir /tmp/dev >/dev/null 2>&1 || fail "it is not ready: $(cat "$work/served")"
  kill "$server"
  wait "$server" || fail "it did not stop as it should: $(cat "$work/served")"
  server=
  echo "$2: authsvc $version, $(($(stat -c %s "$2") >> 20)) MiB; it served in a root of its own as nobody in particular"
}

for arch in "${@:-amd64}"; do
  build "$arch"
  save "$arch" "dist/authsvc-$arch.tar"
  check "$arch" "dist/authsvc-$arch.tar"
done
