//! Each option of the well-known program, by what it changes for those who use the mount.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::Barrier;

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::io::Errno;

use crate::mounts::{Layers, Mounted, Scratch, program};

/// Opcodes of FUSE requests, as `-d` prints them.
const WRITE: u32 = 16;
const FSYNC: u32 = 20;

/// Layers with the lower file `f` that belongs to 5:6.
fn layers(scratch: &Scratch) -> Layers {
    let layers = scratch.layers("o");
    fs::write(layers.bottom.join("f"), "lower").unwrap();
    chown(layers.bottom.join("f"), Some(5), Some(6)).unwrap();
    layers
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.uid(), metadata.gid())
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// `uidmapping`, `gidmapping`: DISK:SHOWN:COUNT. What has no place in the map is nobody's, and cannot be given.
pub(crate) fn ids_are_mapped() {
    let scratch = Scratch::new();
    let layers = layers(&scratch);
    fs::write(layers.bottom.join("other"), "").unwrap();
    chown(layers.bottom.join("other"), Some(50), Some(50)).unwrap();
    let mount = layers.ours_with(",uidmapping=0:0:1:5:105:10,gidmapping=0:0:1:6:206:10");
    assert_eq!(owner(mount.join("f")), (105, 206));
    assert_eq!(owner(mount.join("other")), (65534, 65534));
    fs::write(mount.join("new"), "").unwrap();
    chown(mount.join("new"), Some(107), Some(207)).unwrap();
    assert_eq!(owner(mount.join("new")), (107, 207));
    let beyond = chown(mount.join("new"), Some(50), None);
    assert_eq!(errno(beyond), Some(Errno::OVERFLOW.raw_os_error()));
    // Copied up with the owner it has on disk.
    fs::write(mount.join("f"), "changed").unwrap();
    assert_eq!(owner(mount.join("f")), (105, 206));
    mount.unmount();
    assert_eq!(owner(layers.upper.join("new")), (7, 7));
    assert_eq!(owner(layers.upper.join("f")), (5, 6));
}

/// `squash_to_uid`, `squash_to_gid`, `squash_to_root`: everything is shown as theirs, and a change of owner is taken
/// and without effect.
pub(crate) fn owners_are_squashed() {
    let ours = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    for (option, shown) in [
        ("squash_to_uid=7,squash_to_gid=8", (7, 8)),
        ("squash_to_root", (0, 0)),
    ] {
        let scratch = Scratch::new();
        let layers = layers(&scratch);
        let mount = layers.ours_with(&format!(",{option}"));
        fs::write(mount.join("new"), "").unwrap();
        for name in ["f", "new"] {
            assert_eq!(owner(mount.join(name)), shown, "{option}: {name}");
            chown(mount.join(name), Some(1), Some(2)).unwrap();
            assert_eq!(owner(mount.join(name)), shown, "{option}: {name} given away");
        }
        mount.unmount();
        assert_eq!(owner(layers.upper.join("new")), ours, "{option}: on disk");
    }
}

/// `xattr_permissions=2`: owners and modes lie in an attribute; the files themselves are the server's.
pub(crate) fn owners_are_kept_in_attributes() {
    let scratch = Scratch::new();
    let layers = layers(&scratch);
    let mount = layers.ours_with(",xattr_permissions=2");
    fs::write(mount.join("new"), "").unwrap();
    chown(mount.join("new"), Some(9), Some(10)).unwrap();
    fs::set_permissions(mount.join("new"), PermissionsExt::from_mode(0o4751)).unwrap();
    assert_eq!(owner(mount.join("new")), (9, 10));
    assert_eq!(fs::metadata(mount.join("new")).unwrap().mode() & 0o7777, 0o4751);
    assert_eq!(xattr::list(mount.join("new")).unwrap().count(), 0);
    mount.unmount();
    let below = layers.upper.join("new");
    assert_eq!(
        owner(&below).0,
        rustix::process::geteuid().as_raw(),
        "on disk it is ours"
    );
    assert_eq!(fs::metadata(&below).unwrap().mode() & 0o7000, 0);
    let stored = xattr::get(&below, "user.containers.override_stat")
        .unwrap()
        .unwrap();
    assert!(
        stored.starts_with(b"9:10:4751"),
        "{:?}",
        String::from_utf8_lossy(&stored)
    );
    // Once more the same, read back.
    let mount = layers.ours_with(",xattr_permissions=2");
    assert_eq!(owner(mount.join("new")), (9, 10));
    mount.unmount();
}

/// `static_nlink`: directories have one link, whatever is in them.
pub(crate) fn links_of_directories_need_not_be_counted() {
    let scratch = Scratch::new();
    let layers = layers(&scratch);
    for name in ["d/a", "d/b", "d/c"] {
        fs::create_dir_all(layers.bottom.join(name)).unwrap();
    }
    fs::create_dir(layers.top.join("d")).unwrap();
    for (option, links) in [("", 5), (",static_nlink", 1)] {
        let mount = layers.ours_with(option);
        assert_eq!(fs::metadata(mount.join("d")).unwrap().nlink(), links, "{option}");
        mount.unmount();
    }
}

/// `noacl`: lists can be neither set nor seen.
pub(crate) fn access_lists_can_be_switched_off() {
    const NAME: &str = "system.posix_acl_access";
    // Version 2; user::rw-, user:1:r--, group::r--, mask::r--, other::r--.
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, 1),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 4, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(bits.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    let scratch = Scratch::new();
    let layers = layers(&scratch);
    let mount = layers.ours_with("");
    xattr::set(mount.join("f"), NAME, &list).unwrap();
    assert_eq!(xattr::get(mount.join("f"), NAME).unwrap(), Some(list.clone()));
    mount.unmount();
    let mount = layers.ours_with(",noacl");
    let refused = xattr::set(mount.join("f"), NAME, &list);
    assert_eq!(errno(refused), Some(Errno::OPNOTSUPP.raw_os_error()));
    assert_eq!(
        xattr::get(mount.join("f"), NAME).ok().flatten(),
        None,
        "still seen"
    );
    mount.unmount();
}

/// What a server that runs with `-d` says it was asked.
struct Asked(String);

impl Asked {
    /// Mounts with `option`, does `work`, unmounts.
    fn during(option: &str, work: impl FnOnce(&Mounted)) -> Self {
        let scratch = Scratch::new();
        let layers = layers(&scratch);
        let said = scratch.path().join("said");
        let options = format!("{},debug{option}", layers.options());
        let mount = Mounted::by_program_saying(&options, &layers.merged, File::create(&said).unwrap().into());
        work(&mount);
        mount.unmount();
        Self(fs::read_to_string(said).unwrap())
    }

    /// The answers to the requests of one kind.
    fn answers(&self, opcode: u32) -> Vec<&str> {
        let kind = format!(" opcode {opcode} ");
        let lines = self.0.lines().filter(|line| line.contains(&kind));
        lines
            .map(|line| line.rsplit(": ").next().unwrap_or_default())
            .collect()
    }
}

/// `volatile` and `fsync=0`: requests to write to the disk do nothing, and programs are told that all is well.
pub(crate) fn syncs_can_be_switched_off() {
    let sync_twice = |mount: &Mounted| {
        let file = File::create(mount.join("new")).unwrap();
        file.sync_all().unwrap();
        file.sync_data().unwrap();
    };
    let asked = Asked::during("", sync_twice);
    assert_eq!(asked.answers(FSYNC), ["0 bytes", "0 bytes"], "{}", asked.0);
    for option in [",volatile", ",fsync=0"] {
        let asked = Asked::during(option, sync_twice);
        // The kernel does not ask again.
        assert_eq!(
            asked.answers(FSYNC),
            ["Function not implemented (os error 38)"],
            "{option}"
        );
    }
}

/// `writeback=1`: the kernel collects small writes.
pub(crate) fn writes_can_be_collected() {
    let write_often = |mount: &Mounted| {
        let mut file = OpenOptions::new().append(true).open(mount.join("f")).unwrap();
        for _ in 0..64 {
            file.write_all(b"a few bytes").unwrap();
        }
    };
    let (alone, collected) = (
        Asked::during("", write_often).answers(WRITE).len(),
        Asked::during(",writeback=1", write_often).answers(WRITE).len(),
    );
    assert_eq!(alone, 64);
    assert!((1..8).contains(&collected), "{collected} writes");
}

/// `threaded=0`: one thread serves, however many ask.
pub(crate) fn one_thread_can_be_enough() {
    let serving = |option: &str| {
        let scratch = Scratch::new();
        let layers = layers(&scratch);
        let mount = layers.ours_with(option);
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (mount, start) = (&mount, &start);
                scope.spawn(move || {
                    start.wait();
                    for n in 0..200 {
                        fs::write(mount.join(format!("{thread}-{n}")), "text").unwrap();
                    }
                });
            }
        });
        let tasks = fs::read_dir(format!("/proc/{}/task", mount.server().id())).unwrap();
        let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
        let count = names.filter(|name| name.trim_end() == "fuse").count();
        mount.unmount();
        count
    };
    assert_eq!(serving(",threaded=0"), 0, "besides the first one");
    assert!(serving(",threaded=1") > 0);
    assert!(serving("") > 0);
}

/// `timeout`: how long the kernel goes without asking. For ever, if nobody says otherwise: one mount is the only writer.
pub(crate) fn caching_can_be_bounded() {
    for (option, seen) in [("", false), (",timeout=0", true)] {
        let scratch = Scratch::new();
        let layers = layers(&scratch);
        let mount = layers.ours_with(option);
        assert!(!mount.join("late").exists());
        fs::write(layers.upper.join("late"), "behind the mount's back").unwrap();
        assert_eq!(mount.join("late").exists(), seen, "{option}");
        mount.unmount();
    }
}

/// `ro`, `nosuid`, `nodev`, `noexec`, `noatime`.
pub(crate) fn flags_of_mounts_are_set() {
    let scratch = Scratch::new();
    let layers = layers(&scratch);
    let mount = layers.ours_with(",ro,nosuid,nodev,noexec,noatime");
    let flags = statvfs(mount.path()).unwrap().f_flag;
    for flag in [
        StatVfsMountFlags::RDONLY,
        StatVfsMountFlags::NOSUID,
        StatVfsMountFlags::NODEV,
        StatVfsMountFlags::NOEXEC,
        StatVfsMountFlags::NOATIME,
    ] {
        assert!(flags.contains(flag), "{flag:?} is not in {flags:?}");
    }
    let written = fs::write(mount.join("new"), "");
    assert_eq!(errno(written), Some(Errno::ROFS.raw_os_error()));
    mount.unmount();
}

/// What is unknown or cannot be honoured is refused by name, before anything is mounted.
pub(crate) fn unknown_options_are_named() {
    let scratch = Scratch::new();
    let layers = layers(&scratch);
    for (option, text) in [
        ("nonsense", "fuse-overlayfs: unknown option nonsense"),
        ("nonsense=1", "fuse-overlayfs: unknown option nonsense"),
        ("redirect_dir=on", "redirect_dir can only be off"),
        ("squash_to_uid=me", "squash_to_uid is a number"),
    ] {
        let options = format!("{},{option}", layers.options());
        let output = program(&["-o".as_ref(), options.as_ref(), layers.merged.as_os_str()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(text),
            "{option}: {said}"
        );
    }
}
