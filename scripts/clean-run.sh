#!/usr/bin/env bash
# `make clean-run`: deletes what the daemon of `make run` keeps on disk. Files of containers belong to subordinate ids, which
# only root or a user namespace with the same map may delete.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$REPO/scripts/who.sh"
id "$run_user" >/dev/null 2>&1 || exit 0
who_paths
data=$run_home/.local/share/docker
if [ -d "$data" ]; then
  if [ "$(id -u)" = 0 ]; then rm -rf --one-file-system "$data"
  elif has unshare && unshare --map-auto --map-root-user true 2>/dev/null; then unshare --map-auto --map-root-user rm -rf --one-file-system "$data"
  else as_root rm -rf --one-file-system "$data"; fi
  ok data "$data deleted"
fi
rm -rf "$state"
