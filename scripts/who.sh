# Who runs the daemon of `make run`, and where its things are: needed by run.sh and stop.sh. Sourced after lib.sh.
#
#   run_user      you, or as root $SKIFF_USER (default skiff)
#   run_home      that user's home directory
#   runtime_dir   $XDG_RUNTIME_DIR as the daemon sees it; $HOME/.docker/run where nobody made one
#   socket        $runtime_dir/docker.sock
#   state         logs and pids of `make run`, and the loopback registry

run_user=$(id -un)
[ "$(id -u)" != 0 ] || run_user=${SKIFF_USER:-skiff}

who_paths() {
  run_home=$(getent passwd "$run_user" | cut -d: -f6)
  local uid; uid=$(id -u "$run_user")
  if [ "$(id -u)" = 0 ]; then runtime_dir=/run/user/$uid
  else runtime_dir=${XDG_RUNTIME_DIR:-$HOME/.docker/run}; fi
  socket=$runtime_dir/docker.sock
  state=$run_home/.local/state/skiff
}

# as_run_user RUNTIME_DIR CMD...: replaces nothing, adds no process in between: the pid of the job is the pid of CMD.
as_run_user() {
  local dir=$1; shift
  if [ "$(id -u)" = 0 ]; then
    cd "$run_home"
    exec setpriv --reuid "$run_user" --regid "$(id -g "$run_user")" --init-groups --inh-caps=-all \
      env -i HOME="$run_home" USER="$run_user" LOGNAME="$run_user" XDG_RUNTIME_DIR="$dir" \
      PATH="$run_home/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
      ${HTTP_PROXY:+HTTP_PROXY="$HTTP_PROXY"} ${HTTPS_PROXY:+HTTPS_PROXY="$HTTPS_PROXY"} ${NO_PROXY:+NO_PROXY="$NO_PROXY"} "$@"
  else
    exec env XDG_RUNTIME_DIR="$dir" "$@"
  fi
}
