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
need mkfs.ext4 e2fsprogs         # a disk small enough to fill
[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
installed_cli=''
install_docker_cli
open_devices
ok tools "${missing[*]:-all there}$installed_cli"
