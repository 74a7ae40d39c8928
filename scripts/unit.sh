#!/usr/bin/env bash
# `make unit`: the tests inside the crates, storage drivers' conformance suite included.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"
if cargo nextest --version >/dev/null 2>&1; then
  exec cargo nextest run --workspace --exclude skiff-integration --locked --no-fail-fast --status-level fail "$@"
fi
exec cargo test --workspace --exclude skiff-integration --locked --no-fail-fast -q "$@"
