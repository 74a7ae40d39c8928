#!/usr/bin/env bash
# `make run`: from a checkout to a container, on a machine that has nothing yet but Rust. Runs again without harm.
#
# As an ordinary user the engine runs as you. As root it runs as the user $SKIFF_USER (default `skiff`, made if need be),
# because an engine without root is the point. The daemon stays; `make stop` ends it.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$REPO/scripts/who.sh"

printf '\n%sskiff%s — a Docker engine without root\n\n' "$bold" "$plain"

# ── what it takes ────────────────────────────────────────────────────────────────────────────────────────────────────
public_registry() {
  python3 - <<'PY' 2>/dev/null
import urllib.error, urllib.request
try:
    urllib.request.urlopen("https://registry-1.docker.io/v2/", timeout=3)
except urllib.error.HTTPError as error:
    raise SystemExit(error.code != 401)
PY
}
need_build_tools
need_runtime_tools
wanted=("${missing[@]}")
[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
public=yes
if [ -n "${SKIFF_LOCAL_REGISTRY:-}" ] || ! public_registry; then
  public=no missing=()
  need_local_images
  [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
  wanted+=("${missing[@]}")
fi
installed_cli=''
install_docker_cli
if [ ${#wanted[@]} = 0 ] && [ -z "$installed_cli" ]; then ok tools "all there"; else ok tools "installed: ${wanted[*]}$installed_cli"; fi
open_devices

# ── build ────────────────────────────────────────────────────────────────────────────────────────────────────────────
began=$SECONDS
log=$(mktemp)
busy build "cargo build --release (some minutes the first time)"
if ! (cd "$REPO" && cargo build --release --locked 2>&1 | tee "$log" |
      { n=0; while read -r word crate _; do [ "$word" != Compiling ] || { n=$((n + 1)); busy build "$n crates compiled, now $crate"; }; done; }); then
  tail -n 30 "$log" >&2; rm -f "$log"; die build "cargo build --release failed, see above"
fi
rm -f "$log"
for name in dockerd dockerd-rootless.sh dockerd-rootless-setuptool.sh; do ln -sfn skiffd "$TARGET/release/$name"; done
ok build "$(realpath --relative-to="$PWD" "$TARGET/release/skiffd"), $(($(stat -Lc %s "$TARGET/release/skiffd") / 1000000)) MB, also as dockerd and dockerd-rootless.sh ($((SECONDS - began)) s)"

# ── who runs it ──────────────────────────────────────────────────────────────────────────────────────────────────────
if [ "$(id -u)" = 0 ]; then
  ensure_user "$run_user"
  who_paths
  # The checkout may lie where that user cannot look (/root), so the program goes where the user can.
  install -d -o "$run_user" -g "$run_user" "$run_home/bin" "$state"
  chown "$run_user:" "$run_home/.local" "$run_home/.local/state" 2>/dev/null || true
  if [ ! -d "$runtime_dir" ]; then
    if [ -d /run/systemd/system ] && has loginctl; then loginctl enable-linger "$run_user"; fi
    [ -d "$runtime_dir" ] || install -d -m 700 -o "$run_user" -g "$run_user" "$runtime_dir"
  fi
  program=$run_home/bin/skiffd
  cmp -s "$TARGET/release/skiffd" "$program" || install -m 755 "$TARGET/release/skiffd" -T "$program.new"
  [ ! -e "$program.new" ] || mv -f "$program.new" "$program"
  for name in dockerd dockerd-rootless.sh dockerd-rootless-setuptool.sh; do ln -sfn skiffd "$run_home/bin/$name"; done
else
  who_paths
  mkdir -p "$state"
  [ -d "$runtime_dir" ] || install -d -m 700 "$runtime_dir"
  program=$TARGET/release/skiffd
fi
ids=$(awk -F: -v n="$run_user" -v u="$(id -u "$run_user")" '$1 == n || $1 == u { s += $3 } END { print s + 0 }' /etc/subuid 2>/dev/null || echo 0)
if [ "$ids" -ge 65536 ]; then
  ok user "$run_user (uid $(id -u "$run_user"), $ids subordinate ids)"
else
  ok user "$run_user (uid $(id -u "$run_user")) has $ids subordinate ids: containers will know a single user"
  note "for all of them: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $run_user"
fi

# ── the daemon ───────────────────────────────────────────────────────────────────────────────────────────────────────
if pid=$(alive "$state/daemon.pid") && ! cmp -s "/proc/$pid/exe" "$program"; then
  note "the running daemon is an older build: restarting it"
  end "$state/daemon.pid" 30 || true
fi
if pid=$(alive "$state/daemon.pid") && python3 "$REPO/scripts/wait-ready.py" --once "unix://$socket"; then
  ok daemon "already running, pid $pid"
else
  rm -f "$state/daemon.pid"
  if python3 "$REPO/scripts/wait-ready.py" --once "unix://$socket"; then
    die daemon "another engine already answers on $socket; please stop it first"
  fi
  busy daemon starting
  began=$(date +%s%N)
  # `docker.pid` names the process that holds the namespaces; the one to end is the parent, which we start here.
  as_run_user "$runtime_dir" setsid "$(dirname "$program")/dockerd-rootless.sh" >"$state/daemon.log" 2>&1 </dev/null &
  remember "$state/daemon.pid" $!
  if ! python3 "$REPO/scripts/wait-ready.py" --pid $! --timeout 60 "unix://$socket"; then
    tail -n 25 "$state/daemon.log" >&2
    die daemon "did not come up; its log: $state/daemon.log"
  fi
  ok daemon "pid $!, ready in $((($(date +%s%N) - began) / 1000000)) ms"
fi
export DOCKER_HOST=unix://$socket
export DOCKER_CONFIG=$state/docker-config    # the newcomer's own ~/.docker stays untouched
mkdir -p "$DOCKER_CONFIG"
note "$(docker info --format 'skiff {{.ServerVersion}} · storage driver {{.Driver}} · data in {{.DockerRootDir}}' 2>/dev/null)"

# ── an image, a container ────────────────────────────────────────────────────────────────────────────────────────────
image=busybox
if [ $public = no ]; then
  busy registry starting
  image=$(STATE=$state/registry "$REPO/scripts/registry.sh" push busybox) || die registry "could not be started or filled"
  image=${image%%:latest*}
  ok registry "no public one in reach: Debian's docker-registry on ${image%%/*}, with a busybox image made here"
fi
shown() {
  local word line='docker'
  for word in "$@"; do case $word in *[[:blank:]]*) line+=" '$word'" ;; *) line+=" $word" ;; esac; done
  printf '    %-9s %s$ %s%s\n' '' "$bold" "$line" "$plain"
  docker "$@" 2>&1 | indent
  return "${PIPESTATUS[0]}"
}
shown pull "$image" || die pull "failed; the daemon's log: $state/daemon.log"
ok pull "$image"
shown run --rm "$image" sh -c 'read inside outside count </proc/self/uid_map; echo "Hello from $(hostname): I am $(whoami) in here and user $outside out there."' ||
  die run "failed; the daemon's log: $state/daemon.log"
ok run "a container started, spoke and is gone again"

cat <<TXT

  The daemon keeps running. From any shell of $([ "$(id -u)" = 0 ] && echo "root or " || true)$run_user:

      export DOCKER_HOST=unix://$socket
      docker run --rm -it $image sh

  Log   $state/daemon.log
  Stop  make stop

TXT
