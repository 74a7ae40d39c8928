#!/usr/bin/env bash
# `make integration`: the black-box tests. Builds the daemon, makes accounts to run it (as root), starts a registry with a
# busybox image, runs the scenarios, ends the registry.
#
#   make integration                       all
#   make integration T=crash               those whose name contains crash
#   SKIFF_TEST_ALLOW_SKIP=1                a test that lacks something is a skip, not a failure
#   SKIFF_TEST_SOCKET=/run/docker.sock     another engine instead of our own: a throw-away one: its containers and images are removed
#   SKIFF_TEST_REGISTRY=HOST:PORT          a registry that has `busybox`, instead of starting one
#   SKIFF_TEST_RUN=b SKIFF_TEST_PORT=5011  a second run beside another: accounts and a registry of its own
#   SKIFF_TEST_RUNS=1000 SKIFF_TEST_ROUNDS=50 SKIFF_TEST_SEED=N   longer loops, a certain seed
#   PROFILE=release                        tests the release build
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"
PROFILE=${PROFILE:-dev}
profile_dir=$PROFILE; [ "$PROFILE" != dev ] || profile_dir=debug

work=$(mktemp -d "${TMPDIR:-/tmp}/skiff-integration.XXXXXX")
chmod 755 "$work"
cleanup() {
  [ ! -d "$work/registry" ] || STATE=$work/registry scripts/registry.sh stop
  rm -rf "$work"
}
trap cleanup EXIT

if [ -z "${SKIFF_TEST_SOCKET:-}" ]; then
  # The same selection as in unit.sh, so that nothing is built twice.
  if [ "$PROFILE" = dev ]; then cargo build --locked --workspace --bins --tests
  else cargo build --locked -p skiffd --profile "$PROFILE"; fi
  # Under the name of Docker's start script, and where the accounts below can execute it.
  install -D -m 755 "$TARGET/$profile_dir/skiffd" "$work/bin/dockerd-rootless.sh"
  chmod 755 "$work/bin"
  export SKIFF_TEST_DAEMON=$work/bin/dockerd-rootless.sh
fi
if [ -z "${SKIFF_TEST_REGISTRY:-}" ]; then
  SKIFF_TEST_REGISTRY=$(STATE=$work/registry PORT=${SKIFF_TEST_PORT:-5001} scripts/registry.sh start)
  export SKIFF_TEST_REGISTRY
  STATE=$work/registry scripts/registry.sh push >/dev/null
fi
jobs=${SKIFF_TEST_JOBS:-$(($(nproc) + 1))}
if [ "$(id -u)" = 0 ] && [ -z "${SKIFF_TEST_SOCKET:-}" ]; then
  SKIFF_TEST_USERS=''
  for n in $(seq "$((jobs + 2))"); do
    user=skiff-test${SKIFF_TEST_RUN:-}$n
    ensure_user "$user"; SKIFF_TEST_USERS+="$user "
  done
  export SKIFF_TEST_USERS
fi
[ -z "${SKIFF_TEST_SOCKET:-}" ] || jobs=1
export SKIFF_TEST_SKIPS=$work/skips
: >"$SKIFF_TEST_SKIPS"

status=0
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --locked --workspace -E 'package(skiff-integration)' --no-fail-fast --test-threads "$jobs" --status-level slow --final-status-level slow "$@" || status=$?
else
  cargo test --locked -p skiff-integration --test it -- --test-threads "$jobs" "$@" || status=$?
fi
skips=$(wc -l <"$SKIFF_TEST_SKIPS")
[ "$skips" = 0 ] || { printf '%s tests were skipped:\n' "$skips"; sort "$SKIFF_TEST_SKIPS" | indent; }
exit "$status"
