#!/usr/bin/env bash
# `make posix`: our FUSE overlay under public test suites, beside the bare file system below it.
#
#   pjdfstest   POSIX semantics, once as an ordinary user in a user namespace and (as root) once with root's powers;
#               what differs from the bare file system must be in graphdrivers/fuse-overlay/tests/pjdfstest.expected;
#               as root the tests of character devices once more with another device number (see null_suite)
#   life        the program in the background: told to end, replaced while in use
#   fsx         random I/O, with and without memory maps, on new files and on lower files that are copied up
#
#   make posix                            both
#   PEERS='kernel /usr/bin/fuse-overlayfs' make posix     the same for others, to compare figures with; they cannot fail
#   RESULTS=DIR make posix                keeps what pjdfstest said
#   STRESS=1 make posix                   stress-ng's file system stressors on top (Debian: stress-ng)
#   PROFILE=release                       tests the release build; SKIFFD=PATH one that is already built
#
# The tools are crates, built into <target>/tools. fsx is under the APSL-2.0: it is run, and never linked with anything.
#
#   here ──(root: own mount namespace, ext4 in a file)──┬─ leg root
#                                                       └─ leg user: setpriv + unshare --user --map-auto
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
PJDFSTEST=0.2.2
NULL_SUITE=pjdfstest-null-$PJDFSTEST
FSX=0.3.2
SEEDS=${SEEDS:-'1 2 3'}
OPERATIONS=${OPERATIONS:-2500}
FEATURES='posix_fallocate utime_now utimensat rename_ctime'

# ── inside a leg: powers of some root, an own mount namespace ────────────────

# mount_as WHAT DIR: mounts over DIR's layers, at a place with a short name: it has to fit into a socket's address.
mount_as() {
  local layers="lowerdir=$2/lower,upperdir=$2/upper,workdir=$2/work"
  case $1 in
    bare) mount --bind "$([ "$leg" = root ] && echo "${work}2" || echo "$2/upper")" "$work/mnt" ;;
    kernel) mount -t overlay overlay -o "$layers,userxattr" "$work/mnt" ;;
    # In the background, as Podman starts it: mounted when it returns, and no pipe of the caller's kept open.
    ours) [ -z "$("$work/bin/skiffd" fuse-overlayfs -o "$layers" "$work/mnt" 2>&1)" ] && mountpoint -q "$work/mnt" ;;
    *) "$1" -o "$layers" "$work/mnt" ;;
  esac
}

# layers DIR: a new set of directories that every user may enter.
layers() { mkdir -p "$1"/{lower,upper,work}; chmod 755 "$1" "$1"/*; }

pjdfstest() {
  local what=$1 dir=$work/$leg/pjdfstest/${1##*/} test
  layers "$dir"
  mount_as "$what" "$dir" || die pjdfstest "$what cannot be mounted"
  suite false
  # Those that remount the file system read-only need it for themselves, also from the suite's own open files. An
  # ordinary user cannot remount the bare file system, so there would be nothing to compare with.
  if [ "$leg" = root ]; then
    for test in $(grep -o '^[a-z_:]*erofs[a-z_]*' "$dir/result"); do suite true --exact "pjdfstest::tests::$test"; done
    mv "$dir/result" "$dir/whole"
    program=$NULL_SUITE suite false ::char
    mv "$dir/result" "$dir/null"
    mv "$dir/whole" "$dir/result"
  fi
  umount "$work/mnt"
}

# suite REMOUNT [TEST…]: its status only says that something failed; what, is compared by posix.py.
suite() {
  local status=0
  {
    echo '[features]'
    for feature in $FEATURES; do echo "$feature = {}"; done
    printf '[settings]\nnaptime = 0.01\nallow_remount = %s\n' "$1"
    printf '[dummy_auth]\nentries = [["nobody", "nogroup"], ["daemon", "daemon"]]\n'
  } >"$dir/config.toml"
  shift
  NO_COLOR=1 RUST_BACKTRACE=0 PATH=$work/bin:$PATH timeout 120 \
    "$work/bin/${program:-pjdfstest}" -c "$dir/config.toml" -p "$work/mnt" -s "$work/second" "$@" >>"$dir/result" 2>&1 || status=$?
  [ $status -lt 2 ] || { tail -n 5 "$dir/result" | indent; die pjdfstest "$leg $what ended with status $status"; }
}

# exercise KIND MAPS SEED: one run of fsx; KIND is new, lower or inside (a lower file whose size stays).
exercise() {
  local kind=$1 maps=$2 seed=$3 dir=$work/user/fsx name; name=$1-$2-$3
  local weight=10 size=1 log=$dir/$name.log
  [ "$maps" = maps ] || weight=0
  [ "$kind" != inside ] || size=0
  cat >"$dir/$name.toml" <<TOML
flen = 262144
blockmode = $([ "$kind" = inside ] && echo true || echo false)
[weights]
read = 10
write = 10
mapread = $weight
mapwrite = $weight
invalidate = $((weight / 10))
truncate = $((size * 5))
close_open = $size
posix_fallocate = $size
punch_hole = 2
fsync = 0.2
fdatasync = 0.2
sendfile = 2
posix_fadvise = 1
copy_file_range = 2
TOML
  timeout 120 "$work/bin/fsx" -f "$dir/$name.toml" -N "$OPERATIONS" -S "$seed" -P "$dir" "$work/mnt/$name" >"$log" 2>&1 ||
    { tail -n 15 "$log" | indent; die fsx "$name: see above (fsx -S $seed)"; }
  # What the writer saw through the mount is what the layer must have after the unmount.
  sha256sum <"$work/mnt/$name" >"$dir/$name.sum"
}

fsx() {
  local what=$1 dir=$work/user/fsx name seed kind maps runs=0
  layers "$dir"
  for seed in $SEEDS; do for kind in lower inside; do for maps in maps no-maps; do
    head -c 700000 /dev/urandom >"$dir/lower/$kind-$maps-$seed"
  done; done; done
  mount_as "$what" "$dir" || die fsx "$what cannot be mounted"
  for seed in $SEEDS; do for kind in new lower inside; do for maps in maps no-maps; do
    exercise "$kind" "$maps" "$seed"
    runs=$((runs + 1))
  done; done; done
  umount "$work/mnt"
  for name in $(cd "$dir/upper" && ls); do
    sha256sum <"$dir/upper/$name" | cmp -s - "$dir/$name.sum" || die fsx "$name: the layer has other bytes than the mount had"
    case $name in inside-*)
      cmp -s <(tail -c +262145 "$dir/lower/$name") <(tail -c +262145 "$dir/upper/$name") ||
        die fsx "$name: copied up with other bytes than the lower file has" ;;
    esac
  done
  [ "$(cd "$dir/upper" && ls | wc -l)" = $runs ] || die fsx "not every file reached the layer"
  ok fsx "$runs runs of $OPERATIONS operations ($what)"
}

# server DIR: the pid of the process that serves DIR's layers.
server() {
  local file
  for file in /proc/[0-9]*/cmdline; do
    if tr '\0' ' ' 2>/dev/null <"$file" | grep -qF "upperdir=$1/upper,"; then file=${file%/cmdline}; echo "${file#/proc/}"; return; fi
  done
  return 1
}
ended() { timeout 30 tail --pid="$1" -s 0.05 -f /dev/null; }

life() {
  local a=$work/user/life-a b=$work/user/life-b old new
  layers "$a"; layers "$b"
  echo lower >"$a/lower/f"; echo other >"$b/lower/f"

  mount_as ours "$a" || die life "no mount"
  old=$(server "$a") || die life "no serving process"
  echo new >"$work/mnt/g"; echo changed >>"$work/mnt/f"
  kill -TERM "$old"
  ended "$old" || die life "the server does not end when told to"
  ! mountpoint -q "$work/mnt" || die life "told to end, the server leaves its mount"
  [ "$(cat "$a/upper/g" "$a/upper/f")" = $'new\nlower\nchanged' ] || die life "told to end, the server loses what was written"

  mount_as ours "$a" || die life "no second mount"
  old=$(server "$a")
  exec 9<"$work/mnt/f"
  umount -l "$work/mnt"
  mount_as ours "$b" || die life "no mount in the place of one that is in use"
  new=$(server "$b")
  [ "$(cat <&9)" = $'lower\nchanged' ] || die life "a detached mount is not served"
  kill -TERM "$old"
  ended "$old" || die life "the server of a detached mount does not end"
  exec 9<&-
  [ "$(cat "$work/mnt/f")" = other ] || die life "an old server took the new mount away"
  kill -KILL "$new"
  ended "$new"
  ! ls "$work/mnt" >/dev/null 2>&1 || die life "a killed server answers"
  umount "$work/mnt"
  ok life "ends when told to, spares newer mounts"
}

# Stressors of stress-ng's class `filesystem` that need neither a device nor minutes; each runs a second with --verify.
stress() {
  local what=$1 dir=$work/user/stress one passed=0 failed=''
  layers "$dir"
  mount_as "$what" "$dir" || die stress "$what cannot be mounted"
  for one in access chdir chmod chown copy-file dentry dir dirdeep dirmany dup eventfd fallocate fault fcntl fiemap \
             file-ioctl filename flock fpunt fsize fstat full getdent handle hdd iomix lease link locka lockf lockofd \
             mknod mmap msync open rename renameat seal seek sendfile symlink sync-file touch utime verity xattr; do
    stress-ng --help 2>/dev/null | grep -q -- "--$one N" || continue
    if (cd "$work/mnt" && timeout 60 stress-ng --quiet --temp-path "$work/mnt" "--$one" 2 --timeout 1 --verify) >"$dir/$one.log" 2>&1
    then passed=$((passed + 1)); else failed+=" $one"; fi
  done
  umount "$work/mnt"
  ok stress-ng "$passed passed${failed:+, failed:$failed} ($what)"
}

if [ "${1:-}" = leg ]; then
  leg=$2 work=$3
  case $leg in
    # The mounts of this process vanish with it.
    user | root)
      mount -t tmpfs second "$work/second"
      for what in bare ours $PEERS; do pjdfstest "$what"; done ;;
    life) life ;;
    fsx) for what in ours $PEERS; do rm -rf "$work/user/fsx"; fsx "$what"; done ;;
    stress) for what in ours $PEERS; do rm -rf "$work/user/stress"; stress "$what"; done ;;
  esac
  exit 0
fi

# ── outside ──────────────────────────────────────────────────────────────────

export PEERS=${PEERS:-} SEEDS OPERATIONS
if [ "$(id -u)" = 0 ] && [ -z "${SKIFF_POSIX_OWN_MOUNTS:-}" ]; then
  SKIFF_POSIX_OWN_MOUNTS=1 exec unshare --mount --propagation private "$REPO/scripts/posix.sh" "$@"
fi
cd "$REPO"
need_build_tools
[ -e /usr/include/sys/acl.h ] || missing+=(libacl1-dev)
need unshare util-linux
need newuidmap uidmap
[ -z "${STRESS:-}" ] || need stress-ng stress-ng
[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
open_devices

busy build "skiffd, pjdfstest, fsx"
PROFILE=${PROFILE:-dev}
profile_dir=$PROFILE; [ "$PROFILE" != dev ] || profile_dir=debug
# The same selection as in unit.sh, so that nothing is built twice.
if [ -n "${SKIFFD:-}" ]; then true
elif [ "$PROFILE" = dev ]; then cargo build --locked --workspace --bins
else cargo build --locked -p skiffd --profile "$PROFILE"; fi
# A target directory of their own: their dependencies are not the workspace's.
install_tool() {
  CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --root "$TARGET/tools" --target-dir "$TARGET/tools-build" "$@" 2>&1 |
    { grep -v 'already installed\|to your PATH' || true; }
}
for tool in "pjdfstest@$PJDFSTEST" "fsx@$FSX"; do install_tool "$tool"; done

# The suite's character device is 0:0, which no overlay lets anybody make, so that 41 of its tests fail before they begin.
# The same suite with the number of /dev/null says what they would have said.
null_suite() {
  local source
  find_source() { find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -maxdepth 2 -name "pjdfstest-$PJDFSTEST" -print -quit 2>/dev/null; }
  # Built by an earlier run, and cargo's cache was emptied since: installing it anew fetches it.
  source=$(find_source); [ -n "$source" ] || { install_tool "pjdfstest@$PJDFSTEST" --force; source=$(find_source); }
  rm -rf "$TARGET/tools-null"
  cp -r "$source" "$TARGET/tools-null"
  printf '\n[workspace]\n' >>"$TARGET/tools-null/Cargo.toml" # The target directory may lie in ours.
  sed -i '/FileType::Char => mknod/s/mode, 0)/mode, nix::libc::makedev(1, 3))/' "$TARGET/tools-null/src/context.rs"
  grep -q 'S_IFCHR, mode, nix::libc::makedev(1, 3))' "$TARGET/tools-null/src/context.rs" || die pjdfstest "its source is another than expected"
  CARGO_PROFILE_DEV_DEBUG=0 cargo build --quiet --locked --manifest-path "$TARGET/tools-null/Cargo.toml" --target-dir "$TARGET/tools-build" --bin pjdfstest
  install -m 755 "$TARGET/tools-build/debug/pjdfstest" "$TARGET/tools/bin/$NULL_SUITE"
}
if [ "$(id -u)" = 0 ] && [ ! -x "$TARGET/tools/bin/$NULL_SUITE" ]; then null_suite; fi

work=$(mktemp -d "${TMPDIR:-/tmp}/skiff-posix.XXXXXX")
chmod 755 "$work"
# The ext4 is unmounted with this process's mount namespace; its file can go before.
outer=$work
trap 'umount -R "$outer"/disk* 2>/dev/null; umount "$outer" 2>/dev/null; rm -rf "$outer"' EXIT
if [ "$(id -u)" = 0 ]; then
  # The same file system below everywhere, whatever this machine has; and once more by itself, to be remounted. In
  # memory: the suites sync all the time, and a machine's disk is not what they test.
  mount -t tmpfs -o mode=755 tmpfs "$work"
  for disk in disk disk2; do
    truncate -s 2G "$work/image-$disk"
    mkfs.ext4 -q -m0 -O ^has_journal -E lazy_itable_init=1 "$work/image-$disk"
    mkdir "$work/$disk"
    mount -o loop "$work/image-$disk" "$work/$disk"
  done
  work=$work/disk
fi
mkdir -p "$work"/{bin,user,root,mnt,second}
install -m 755 "${SKIFFD:-$TARGET/$profile_dir/skiffd}" "$work/bin/skiffd"
install -m 755 "$TARGET"/tools/bin/{pjdfstest,fsx} "$work/bin"
[ "$(id -u)" != 0 ] || install -m 755 "$TARGET/tools/bin/$NULL_SUITE" "$work/bin"
# pjdfstest remounts by mount(8), which would look for a program that knows FUSE file systems; the kernel can do it.
printf '#!/bin/sh\nexec %s -i "$@"\n' "$(command -v mount)" >"$work/bin/mount"
chmod 755 "$work"/* "$work"/bin/*

in_namespace=(unshare --user --map-auto --map-root-user --mount --propagation private --)
if [ "$(id -u)" = 0 ]; then
  ensure_user skiff-posix
  chown skiff-posix: "$work/user"
  in_namespace=(setpriv --reuid skiff-posix --regid skiff-posix --clear-groups -- "${in_namespace[@]}")
fi

"${in_namespace[@]}" "$REPO/scripts/posix.sh" leg user "$work" &
user_leg=$!
if [ "$(id -u)" = 0 ]; then "$REPO/scripts/posix.sh" leg root "$work"
else note "not root: pjdfstest runs inside a user namespace only"; fi
wait $user_leg || exit 1
[ -z "${RESULTS:-}" ] || (cd "$work" && cp --parents {user,root}/pjdfstest/*/result "$RESULTS")
"$REPO/scripts/posix.py" "$work" graphdrivers/fuse-overlay/tests/pjdfstest.expected
"${in_namespace[@]}" "$REPO/scripts/posix.sh" leg life "$work"
"${in_namespace[@]}" "$REPO/scripts/posix.sh" leg fsx "$work"
[ -z "${STRESS:-}" ] || "${in_namespace[@]}" "$REPO/scripts/posix.sh" leg stress "$work"
