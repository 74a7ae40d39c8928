#!/usr/bin/env bash
# `make unit`: the tests inside the crates, storage drivers' conformance suite included.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"
if cargo nextest --version >/dev/null 2>&1; then
  # The whole workspace is selected, here and in integration.sh: with another selection Cargo unites other features and
  # builds half of the dependencies once more.
  exec cargo nextest run --workspace -E 'not package(skiff-integration)' --locked --no-fail-fast --status-level fail "$@"
fi
exec cargo test --workspace --exclude skiff-integration --locked --no-fail-fast -q "$@"
