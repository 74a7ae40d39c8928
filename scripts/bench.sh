#!/usr/bin/env bash
# `make bench`: builds the release binary, starts a registry with the images, measures (integration/bench/bench.py --help).
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_build_tools
need_runtime_tools
need_local_images
[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
install_docker_cli
open_devices
cd "$REPO"
cargo build --release --locked
work=$(mktemp -d "${TMPDIR:-/tmp}/skiff-bench.XXXXXX")
chmod 755 "$work"
cleanup() { STATE=$work/registry scripts/registry.sh stop; rm -rf "$work"; }
trap cleanup EXIT
install -D -m 755 "$TARGET/release/skiffd" "$work/bin/skiffd"
chmod 755 "$work/bin"
busy images "making an image of 98,304 files"
registry=$(STATE=$work/registry PORT=5101 scripts/registry.sh start)
STATE=$work/registry scripts/registry.sh push busybox manyfiles >/dev/null
ok images "busybox and manyfiles on $registry"
user=()
if [ "$(id -u)" = 0 ]; then ensure_user skiff-bench; user=(--user skiff-bench); fi
python3 integration/bench/bench.py --daemon "$work/bin/skiffd" "${user[@]}" --registry "$registry" "$@"
