#!/usr/bin/env bash
# `make stop`: ends the daemon and the registry that `make run` started, by their remembered pids. Images and containers stay on disk.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$REPO/scripts/who.sh"
id "$run_user" >/dev/null 2>&1 || { ok stop "nothing was started here"; exit 0; }
who_paths
if pid=$(alive "$state/daemon.pid"); then
  busy daemon "stopping containers, then the daemon"
  end "$state/daemon.pid" 60 && ok daemon "stopped (pid $pid)"
else
  ok daemon "was not running"
fi
if [ -e "$state/registry/pid" ]; then
  end "$state/registry/pid" 10 && ok registry stopped || ok registry "was not running"
fi
