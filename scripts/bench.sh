#!/usr/bin/env bash
# `make bench` and its parts. Everything is built with optimisation first.
#
#   bench.sh engine [ARGS]        start, memory, `docker run`, pulls, …: integration/bench/bench.py
#   bench.sh drivers [ARGS]       the storage drivers under criterion, in a user namespace: graphdrivers/bench/benches
#   bench.sh archive [ARGS]       the archive engine beside its floor, then under criterion: graphdrivers/archive/benches
#   bench.sh filesystems [ARGS]   our FUSE overlay beside the kernel's and others: integration/bench/filesystems.py
#   bench.sh [ARGS]               drivers, archive, then engine with ARGS
#
#   SKIFF_BENCH_DIRECTORY   where data are written (TMPDIR otherwise): put it on the file system you care about
# As root, what an ordinary user would do is done as the account skiff-bench.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"

user=()
if [ "$(id -u)" = 0 ]; then user=(skiff-bench); fi

# A directory that the benchmark's user may write to, removed at the end.
work=''
make_work() {
  [ -z "$work" ] || return 0
  work=$(mktemp -d "${SKIFF_BENCH_DIRECTORY:-${TMPDIR:-/tmp}}/skiff-bench.XXXXXX")
  chmod 755 "$work"
  [ ${#user[@]} = 0 ] || { ensure_user "${user[0]}"; chown "${user[0]}" "$work"; }
}
cleanup() {
  [ -z "$work" ] || [ ! -d "$work/registry" ] || STATE=$work/registry scripts/registry.sh stop
  [ -z "$work" ] || if [ "$(id -u)" = 0 ]; then rm -rf "$work"; else unshare --map-auto --map-root-user rm -rf "$work"; fi
}
trap cleanup EXIT

# The benchmark's program of a crate, built; prints its path.
built() { # PACKAGE BENCH
  cargo bench --locked -p "$1" --bench "$2" --no-run --message-format=json-render-diagnostics |
    python3 -c 'import json, sys
for line in sys.stdin:
    found = json.loads(line)
    if found.get("executable") and found["target"]["name"] == sys.argv[1]: print(found["executable"])' "$2"
}

# in_namespace CMD...: as root of a user namespace of the benchmark's user.
in_namespace() {
  local enter=(unshare --user --map-auto --map-root-user --mount --propagation private --)
  [ ${#user[@]} = 0 ] || enter=(setpriv --reuid "${user[0]}" --regid "${user[0]}" --clear-groups -- "${enter[@]}")
  (cd "$work" && env HOME="$work" TMPDIR="$work" SKIFF_BENCH_DIRECTORY="$work" CRITERION_HOME="$work/criterion" "${enter[@]}" "$@")
}

bench_drivers() {
  local program kept=$TARGET/criterion-drivers
  program=$(built skiff-storage-bench drivers)
  make_work
  install -m 755 "$program" "$work/drivers"
  # The last run's figures, to compare with.
  if [ -d "$kept" ]; then cp -r "$kept" "$work/criterion"; [ ${#user[@]} = 0 ] || chown -R "${user[0]}" "$work/criterion"; fi
  in_namespace "$work/drivers" --bench "$@"
  if [ -d "$work/criterion" ]; then rm -rf "$kept"; cp -r "$work/criterion" "$kept"; fi
}

# ARGS are criterion's.
bench_archive() {
  cargo bench --locked -p skiff-archive --bench apply
  cargo bench --locked -p skiff-archive --bench engine -- "$@"
}

bench_filesystems() {
  need_build_tools
  need_runtime_tools
  need fuse-overlayfs fuse-overlayfs
  need git git
  [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
  open_devices
  cargo build --release --locked
  make_work
  install -D -m 755 "$TARGET/release/skiffd" "$work/bin/skiffd"
  install -m 755 integration/bench/filesystems.py "$work/filesystems.py"
  chmod 755 "$work/bin"
  cd "$work"
  python3 "$work/filesystems.py" ${user[0]:+--user "${user[0]}"} --place "$work/place" --fuse skiff "$work/bin/skiffd fuse-overlayfs" \
    --fuse "fuse-overlayfs $(fuse-overlayfs --version | sed -n 's/.*version //p' | head -n1)" "$(command -v fuse-overlayfs)" "$@"
}

bench_engine() {
  need_build_tools
  need_runtime_tools
  need_local_images
  [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
  install_docker_cli
  open_devices
  cargo build --release --locked
  make_work
  install -D -m 755 "$TARGET/release/skiffd" "$work/bin/skiffd"
  chmod 755 "$work/bin"
  busy images "making an image of 98,304 files"
  local registry
  registry=$(STATE=$work/registry PORT=5101 scripts/registry.sh start)
  STATE=$work/registry scripts/registry.sh push busybox manyfiles >/dev/null
  ok images "busybox and manyfiles on $registry"
  python3 integration/bench/bench.py --daemon "$work/bin/skiffd" ${user[0]:+--user "${user[0]}"} --place "$work" --registry "$registry" "$@"
}

case ${1:-} in
  engine|drivers|archive|filesystems) part=$1; shift; "bench_$part" "$@" ;;
  *) bench_drivers; bench_archive; bench_engine "$@" ;;
esac
