#!/usr/bin/env bash
# A real registry (Debian's docker-registry) on loopback, for machines without a public one in reach and for the tests.
#
#   registry.sh start [HTPASSWD]   starts it and prints its HOST:PORT; a second start only prints
#   registry.sh push [IMAGE...]    fills it (busybox by default)
#   registry.sh status | stop
#
# STATE  directory for its data, log and pid (default ~/.local/state/skiff/registry)
# PORT   first port to try (default 5000); the first free one from there on is taken
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
STATE=${STATE:-$HOME/.local/state/skiff/registry}

answers() { python3 "$REPO/scripts/wait-ready.py" --once "http://$1/v2/" 2>/dev/null; }

start() {
  local port=${PORT:-5000} auth=''
  if alive "$STATE/pid" >/dev/null && answers "$(cat "$STATE/address")"; then cat "$STATE/address"; return; fi
  has docker-registry || apt_install docker-registry >&2
  has docker-registry || die registry "docker-registry is missing (Debian package docker-registry)"
  mkdir -p "$STATE/data"
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  [ -z "${1:-}" ] || auth="auth: {htpasswd: {realm: skiff, path: $1}}"
  cat >"$STATE/config.yml" <<YAML
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $STATE/data}, delete: {enabled: true}, cache: {blobdescriptor: inmemory}}
http: {addr: "127.0.0.1:$port"}
$auth
YAML
  setsid docker-registry serve "$STATE/config.yml" >"$STATE/log" 2>&1 </dev/null &
  remember "$STATE/pid" $!
  echo "localhost:$port" >"$STATE/address"
  if ! python3 "$REPO/scripts/wait-ready.py" --pid $! "http://127.0.0.1:$port/v2/"; then
    tail -n 20 "$STATE/log" >&2
    die registry "docker-registry did not start; its log: $STATE/log"
  fi
  cat "$STATE/address"
}

case ${1:-} in
  start) start "${2:-}" ;;
  push) shift; python3 "$REPO/scripts/images.py" push "$(start)" "$@" ;;
  status) alive "$STATE/pid" >/dev/null && cat "$STATE/address" || { echo stopped; exit 1; } ;;
  stop) end "$STATE/pid" 10 || true ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
