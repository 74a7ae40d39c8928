# Shared by the scripts in this directory: how they talk, install packages, and remember processes. Sourced, never run.
#
# A process is remembered as "PID START" (START: field 22 of /proc/PID/stat), so that a pid the kernel has given to
# somebody else in the meantime is never taken for ours.

set -euo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$REPO/target}
if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' green='' red='' dim='' plain=''; fi

ok()   { printf '  %s✓%s %-9s %s\n' "$green" "$plain" "$1" "$2"; }
note() { printf '    %-9s %s%s%s\n' '' "$dim" "$*" "$plain"; }
die()  { printf '  %s✗%s %-9s %s\n' "$red" "$plain" "$1" "$2" >&2; exit 1; }
# What is under way, on a terminal only; the next ok or die takes its place.
busy() { [ -t 1 ] && printf '\r\e[K  … %-9s %s\r' "$1" "$2" || true; }
indent() { sed 's/^/              /'; }

has() { command -v "$1" >/dev/null 2>&1; }

# as_root CMD...: as root, or through sudo when there is one that will answer.
can_root() { [ "$(id -u)" = 0 ] || { has sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; }; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# apt_install PACKAGE...: installs without starting any service the packages bring (a registry or an engine of the
# machine's own is not what was asked for). Without root it prints the lines to paste and ends.
apt_install() {
  [ $# -gt 0 ] || return 0
  if ! has apt-get; then
    die tools "missing: $* (names of Debian packages; this machine has no apt-get, so please install them your way)"
  elif ! can_root; then
    printf '  %s✗%s tools     missing, and installing needs root. Please paste:\n\n      sudo apt-get update\n      sudo apt-get install -y --no-install-recommends %s\n\n' "$red" "$plain" "$*" >&2
    exit 1
  fi
  busy tools "installing $*"
  local log policy=/usr/sbin/policy-rc.d made=''
  log=$(mktemp)
  if [ ! -e $policy ]; then
    made=1
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null && as_root chmod 755 $policy
  fi
  local status=0
  { as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" ||
    { as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"; }
  } >"$log" 2>&1 || status=$?
  [ -z "$made" ] || as_root rm -f $policy
  [ $status = 0 ] || { tail -n 20 "$log" >&2; rm -f "$log"; die tools "apt-get could not install: $*"; }
  rm -f "$log"
}

# need COMMAND PACKAGE: adds PACKAGE to `missing` unless COMMAND is there.
missing=()
need() { has "$1" || missing+=("$2"); }

need_build_tools() {
  has cargo || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
  has cargo || die rust "cargo is missing. Please install Rust and come back:  curl --proto '=https' -sSf https://sh.rustup.rs | sh"
  need cc gcc
  [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
  need pkg-config pkg-config
  has pkg-config && pkg-config --exists libseccomp || missing+=(libseccomp-dev)
  need python3 python3
}

# What a rootless engine needs of the machine: the id-map helpers and a way out for the bridge.
need_runtime_tools() {
  need newuidmap uidmap
  has slirp4netns || has pasta || missing+=(slirp4netns)
  need setpriv util-linux
  [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
}

# What an image without internet is made of: a registry, and a busybox that needs no libraries.
need_local_images() {
  need docker-registry docker-registry
  has busybox && ! grep -aqm1 /ld-linux "$(command -v busybox)" || missing+=(busybox-static)
}

# The docker command-line client, and only the client: Debian's docker.io would bring a daemon along, so where there is
# no docker-cli package the client is taken out of docker.io's archive.
install_docker_cli() {
  if has docker; then return; fi
  if apt-cache policy docker-cli 2>/dev/null | grep -q 'Candidate: [0-9]'; then apt_install docker-cli; return; fi
  if ! has apt-get || ! can_root; then
    die tools "the docker command-line client is missing (Debian: docker-cli or docker.io); its daemon is not needed"
  fi
  busy tools "fetching the docker client"
  local dir; dir=$(mktemp -d)
  if ! (cd "$dir" && chmod 755 . && { apt-get download -q docker.io || { as_root apt-get update -q && apt-get download -q docker.io; }; } &&
        dpkg-deb -x docker.io_*.deb x && as_root install -m 755 x/usr/bin/docker /usr/local/bin/docker) >"$dir/log" 2>&1; then
    tail -n 10 "$dir/log" >&2; rm -rf "$dir"; die tools "could not fetch the docker client from the package docker.io"
  fi
  rm -rf "$dir"
  installed_cli=' docker client (to /usr/local/bin, without its daemon)'
}

# FUSE and TUN devices of a fresh container-like machine belong to root alone; a rootless engine needs them.
open_devices() {
  local device
  for device in /dev/fuse /dev/net/tun; do
    if [ -c $device ] && [ "$(stat -c %a $device)" = 600 ]; then
      if [ "$(id -u)" = 0 ]; then chmod 666 $device; note "chmod 666 $device (it was 600; an unprivileged engine opens it)"
      else note "$device is 600: 'sudo chmod 666 $device' gives containers their way out"; fi
    fi
  done
}

# ensure_user NAME: an ordinary account with 65536 subordinate uids and gids.
ensure_user() {
  id "$1" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$1"
  local file next
  for file in uid gid; do
    grep -q "^$1:" /etc/sub$file 2>/dev/null && continue
    next=$(awk -F: 'BEGIN { n = 100000 } $2 + $3 > n { n = $2 + $3 } END { print n }' /etc/sub$file 2>/dev/null || echo 100000)
    usermod --add-sub${file}s "$next-$((next + 65535))" "$1"
  done
}

start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
remember() { printf '%s %s\n' "$2" "$(start_time "$2")" >"$1"; }    # remember FILE PID
# alive FILE: prints the pid of the remembered process when it still runs.
alive() {
  local pid start
  read -r pid start 2>/dev/null <"$1" || return 1
  [ -n "${start:-}" ] && [ "$(start_time "$pid")" = "$start" ] && printf '%s\n' "$pid"
}
# end FILE SECONDS: SIGTERM, wait for the process to go, SIGKILL when it does not.
end() {
  local pid
  pid=$(alive "$1") || { rm -f "$1"; return 1; }
  kill "$pid"
  timeout "$2" tail --pid="$pid" -s 0.05 -f /dev/null || { kill -9 "$pid" 2>/dev/null || true; }
  rm -f "$1"
}
