#!/usr/bin/env bash
# `make deps-test`: everything the tests use, so that none of them has a reason to be skipped.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_build_tools
need_runtime_tools
need_local_images
need slirp4netns slirp4netns     # both ways out are tested
need pasta passt
need crun crun                   # an external OCI runtime
need nsenter util-linux          # the recipe that enters the daemon's namespaces
need htpasswd apache2-utils      # a registry with passwords
need skopeo skopeo               # archives of images, in both directions
need podman podman               # the same
need fuse-overlayfs fuse-overlayfs   # as the mount program of the driver of that name
need xz xz-utils                 # compressed archives
need bzip2 bzip2
need mkfs.ext4 e2fsprogs         # a disk small enough to fill
need mkfs.btrfs btrfs-progs      # a file system for the btrfs driver, in a file
[ -e /usr/include/sys/acl.h ] || missing+=(libacl1-dev)    # pjdfstest, see posix.sh
[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
installed_cli=''
install_docker_cli
open_devices
ok tools "${missing[*]:-all there}$installed_cli"
