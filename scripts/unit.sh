#!/usr/bin/env bash
# `make unit`: the tests inside the crates, storage drivers' conformance suite included.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"
# A mount namespace for each test program: a namespace that one test makes copies all mounts it can see, and keeps those
# of another test alive after that one has unmounted them and waits for their server to end.
if [ "$(id -u)" = 0 ]; then
  triple=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
  export "CARGO_TARGET_${triple}_RUNNER=unshare --mount --propagation private"
fi
if cargo nextest --version >/dev/null 2>&1; then
  # The whole workspace is selected, here and in integration.sh: with another selection Cargo unites other features and
  # builds half of the dependencies once more.
  exec cargo nextest run --workspace -E 'not package(skiff-integration)' --locked --no-fail-fast --status-level fail "$@"
fi
exec cargo test --workspace --exclude skiff-integration --locked --no-fail-fast -q "$@"
