#!/usr/bin/env bash
# `make fuzz [T=TARGET] [SECONDS=N]`: one of the targets in fuzz/ (archive_apply, tar_reader, reference), starting from the committed seeds.
# What it finds lies in fuzz/artifacts/TARGET; a fixed finding becomes a seed.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO/fuzz"
target=${1:-archive_apply} seconds=${2:-300}
seeds=seeds/$target
[[ $target == tar_reader ]] && seeds=seeds/archive_apply
if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
  echo "make fuzz: needs a nightly toolchain (rustup toolchain install nightly) and cargo-fuzz (cargo install cargo-fuzz)" >&2
  exit 1
fi
mkdir -p "corpus/$target"
features=()
[[ $target == reference ]] && features=(--features registry)
# Not for leaks: after an error a scoped thread may still be on its way out when they are counted, and its thread-local
# destructors' list is taken for one. The sanitizer counts once more when the time is up, and has to be told itself.
# Anything a layer may do, it does inside of a temporary directory; in memory it does it faster.
exec env TMPDIR=/dev/shm ASAN_OPTIONS="detect_leaks=0${ASAN_OPTIONS:+:$ASAN_OPTIONS}" cargo +nightly fuzz run "${features[@]}" "$target" "corpus/$target" "$seeds" -- -max_total_time="$seconds" -max_len=65536 -detect_leaks=0
