//! Owners, modes, times, extended attributes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::OFlags;
use rustix::io::Errno;
use skiff_fuse_overlay::overlay::{Caller, IdMap, SetAttr, SetTime, Time, XattrPermissions};

use crate::fs::{Fs, NOBODY_SPECIAL, fill};

pub(crate) fn overlay_attributes_are_out_of_reach() {
    let fs = Fs::new(2, |lower| {
        fill(&lower[0], &["d/x=0", "f=0"]);
        fill(&lower[1], &["d/y=1"]);
        xattr::set(lower[0].join("d"), "user.overlay.origin", b"secret").unwrap();
        xattr::set(lower[0].join("f"), "user.overlay.metacopy", b"").unwrap();
        xattr::set(lower[0].join("f"), "user.fuseoverlayfs.thing", b"x").unwrap();
        xattr::set(lower[0].join("f"), "user.plain", b"seen").unwrap();
    });
    assert_eq!(fs.xattrs("d").unwrap(), Vec::<String>::new());
    assert_eq!(fs.xattrs("f").unwrap(), ["user.plain"]);
    assert_eq!(fs.xattr("d", "user.overlay.origin").unwrap_err(), Errno::NODATA);
    assert_eq!(
        fs.xattr("f", "user.fuseoverlayfs.thing").unwrap_err(),
        Errno::OPNOTSUPP
    );
    // What a user calls so is kept under another name, as the kernel does it.
    fs.set_xattr("d", "user.overlay.opaque", b"y").unwrap();
    assert_eq!(fs.names("d"), ["x", "y"]);
    assert_eq!(fs.xattr("d", "user.overlay.opaque").unwrap(), b"y");
    assert_eq!(fs.xattrs("d").unwrap(), ["user.overlay.opaque"]);
    let stored = xattr::get(fs.upper("d"), "user.overlay.overlay.opaque").unwrap();
    assert_eq!(stored.as_deref(), Some(&b"y"[..]));
    assert_eq!(xattr::get(fs.upper("d"), "user.overlay.opaque").unwrap(), None);
    fs.set_xattr("f", "user.overlay.whiteout", b"").unwrap();
    assert_eq!(
        fs.set_xattr("f", "user.fuseoverlayfs.opaque", b"y").unwrap_err(),
        Errno::OPNOTSUPP
    );
    let fs = fs.again();
    assert_eq!(fs.names("d"), ["x", "y"]);
    assert_eq!(fs.xattrs("f").unwrap(), ["user.overlay.whiteout", "user.plain"]);
    let node = fs.find("d").unwrap();
    fs.overlay
        .removexattr(node.node, OsStr::new("user.overlay.opaque"))
        .unwrap();
    assert_eq!(fs.xattrs("d").unwrap(), Vec::<String>::new());
}

pub(crate) fn attributes_are_set_listed_and_removed() {
    let fs = Fs::new(1, |lower| {
        fill(&lower[0], &["f=0", "l->f"]);
        xattr::set(lower[0].join("f"), "user.low", b"1").unwrap();
    });
    let node = fs.find("f").unwrap();
    let missing = fs.overlay.removexattr(node.node, OsStr::new("user.none"));
    assert_eq!(missing.unwrap_err(), Errno::NODATA);
    assert!(!fs.upper("f").exists(), "copied up for nothing");
    let large = vec![7; 3000];
    fs.set_xattr("f", "user.large", &large).unwrap();
    assert_eq!(fs.xattr("f", "user.large").unwrap(), large);
    assert_eq!(fs.xattrs("f").unwrap(), ["user.large", "user.low"]);
    let create = fs.overlay.setxattr(node.node, OsStr::new("user.low"), b"2", 1);
    assert_eq!(create.unwrap_err(), Errno::EXIST);
    let replace = fs.overlay.setxattr(node.node, OsStr::new("user.new"), b"2", 2);
    assert_eq!(replace.unwrap_err(), Errno::NODATA);
    fs.overlay.removexattr(node.node, OsStr::new("user.low")).unwrap();
    assert_eq!(fs.xattrs("f").unwrap(), ["user.large"]);
    assert_eq!(fs.set_xattr("l", "user.x", b"y").unwrap_err(), Errno::PERM);
    assert_eq!(fs.xattrs("l").unwrap(), Vec::<String>::new());

    let plain = Fs::with(1, |lower| fill(&lower[0], &["f=0"]), |config| config.noacl = true);
    assert_eq!(
        plain.xattr("f", "system.posix_acl_access").unwrap_err(),
        Errno::OPNOTSUPP
    );
    assert_eq!(
        plain.set_xattr("f", "system.posix_acl_access", b"").unwrap_err(),
        Errno::OPNOTSUPP
    );
}

pub(crate) fn privileges_go_when_others_write() {
    let fs = Fs::new(1, |_| {});
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let privileged = |path: &str, mode| {
        fs.write(path, "contents").unwrap();
        fs.chmod(path, mode).unwrap();
        fs.set_xattr(path, "security.capability", &capability).unwrap();
    };
    let mode = |path: &str| fs.stat(path).unwrap().mode & 0o7777;
    let capable = |path: &str| match fs.xattr(path, "security.capability") {
        Ok(_) => true,
        Err(Errno::NODATA) => false,
        Err(errno) => panic!("{errno}"),
    };

    privileged("by-root", 0o6755);
    let handle = fs.open("by-root", OFlags::RDWR).unwrap().handle;
    fs.overlay.write(handle, 0, b"x", false).unwrap();
    // The kernel lets only the initial namespace's root keep them, on any file system.
    let kept = if crate::userns::inside() { 0o755 } else { 0o6755 };
    assert_eq!(mode("by-root"), kept);
    fs.overlay.write(handle, 0, b"x", true).unwrap();
    assert_eq!((mode("by-root"), capable("by-root")), (0o755, false));
    // Known to be gone, until somebody sets it again.
    fs.overlay.kill_privileges(handle).unwrap();
    fs.set_xattr("by-root", "security.capability", &capability)
        .unwrap();
    assert!(capable("by-root"));
    fs.overlay.kill_privileges(handle).unwrap();
    assert!(!capable("by-root"));
    fs.overlay.release(handle);

    // Other changes of contents: the kernel says of nobody that he may keep them.
    for path in ["reserved", "copied"] {
        privileged(path, 0o6755);
        let handle = fs.open(path, OFlags::RDWR).unwrap().handle;
        if path == "reserved" {
            fs.overlay.fallocate(handle, 0, 1, 0).unwrap();
        } else {
            let source = fs.open("by-root", OFlags::RDONLY).unwrap().handle;
            let copied = fs.overlay.copy_file_range(source, 0, handle, 0, 1);
            assert_eq!(copied, Ok(1));
            fs.overlay.release(source);
        }
        fs.overlay.release(handle);
        assert_eq!((mode(path), capable(path)), (0o755, false), "{path}");
    }

    // A group that may not execute: the bit means mandatory locking, and stays.
    privileged("locking", 0o2745);
    let truncate = SetAttr {
        size: Some(1),
        kill_privileges: true,
        ..SetAttr::default()
    };
    fs.setattr("locking", truncate).unwrap();
    assert_eq!((mode("locking"), capable("locking")), (0o2745, false));

    privileged("given", 0o6755);
    let give = SetAttr {
        uid: Some(5),
        ..SetAttr::default()
    };
    fs.setattr("given", give).unwrap();
    assert_eq!((mode("given"), capable("given")), (0o755, false));
}

pub(crate) fn ids_are_mapped() {
    let fs = Fs::with(
        1,
        |lower| {
            fill(&lower[0], &["mine=0", "other=0"]);
            std::os::unix::fs::chown(lower[0].join("mine"), Some(105), Some(207)).unwrap();
            std::os::unix::fs::chown(lower[0].join("other"), Some(50), Some(50)).unwrap();
        },
        |config| {
            config.uid_map = IdMap::new(vec![[0, 100, 10], [1000, 300, 5]]);
            config.gid_map = IdMap::new(vec![[0, 200, 10]]);
        },
    );
    let shown = |path: &str| {
        let attr = fs.stat(path).unwrap();
        (attr.uid, attr.gid)
    };
    assert_eq!(shown("mine"), (5, 7));
    assert_eq!(shown("other"), (65534, 65534));
    let attr = fs
        .create_as(
            &Caller {
                uid: 1002,
                gid: 3,
                ..NOBODY_SPECIAL
            },
            "new",
            0o644,
        )
        .unwrap();
    assert_eq!((attr.uid, attr.gid), (1002, 3));
    let upper = fs::metadata(fs.upper("new")).unwrap();
    assert_eq!((upper.uid(), upper.gid()), (302, 203));
    let give = |uid| SetAttr {
        uid: Some(uid),
        ..SetAttr::default()
    };
    fs.setattr("mine", give(9)).unwrap();
    assert_eq!(shown("mine"), (9, 7));
    assert_eq!(fs.setattr("mine", give(10)).unwrap_err(), Errno::OVERFLOW);
    assert_eq!(
        fs.create_as(
            &Caller {
                uid: 77,
                ..NOBODY_SPECIAL
            },
            "bad",
            0o644
        )
        .unwrap_err(),
        Errno::OVERFLOW
    );
}

pub(crate) fn squashed_owners() {
    let fs = Fs::with(
        1,
        |lower| {
            fill(&lower[0], &["f=0"]);
            std::os::unix::fs::chown(lower[0].join("f"), Some(5), Some(6)).unwrap();
        },
        |config| {
            config.squash_to_uid = Some(0);
            config.squash_to_gid = Some(0);
        },
    );
    let caller = Caller {
        uid: 1000,
        gid: 1000,
        ..NOBODY_SPECIAL
    };
    fs.create_as(&caller, "new", 0o644).unwrap();
    let change = SetAttr {
        uid: Some(12),
        gid: Some(13),
        ..SetAttr::default()
    };
    for path in ["f", "new"] {
        let attr = fs.setattr(path, change).unwrap();
        assert_eq!((attr.uid, attr.gid), (0, 0), "{path}");
        let upper = fs::metadata(fs.upper(path)).unwrap();
        assert_eq!((upper.uid(), upper.gid()), (0, 0), "{path}");
    }
}

pub(crate) fn owners_kept_in_attributes() {
    const NAME: &str = "user.containers.override_stat";
    let fs = Fs::with(
        1,
        |lower| {
            fill(&lower[0], &["marked=0", "plain=0"]);
            // This layer was written in that way.
            xattr::set(&lower[0], NAME, b"0:0:0755").unwrap();
            xattr::set(lower[0].join("marked"), NAME, b"7:8:4711:file").unwrap();
        },
        |config| config.xattr_permissions = XattrPermissions::Containers,
    );
    let seen = |path: &str| {
        let attr = fs.stat(path).unwrap();
        (attr.uid, attr.gid, attr.mode & 0o7777)
    };
    assert_eq!(seen("marked"), (7, 8, 0o4711));
    let caller = Caller {
        uid: 1000,
        gid: 1001,
        umask: 0o022,
        ..NOBODY_SPECIAL
    };
    fs.create_as(&caller, "new", 0o4777).unwrap();
    fs.mkdir_as(&caller, "dir", 0o1777).unwrap();
    assert_eq!(seen("new"), (1000, 1001, 0o4755));
    assert_eq!(seen("dir"), (1000, 1001, 0o1755));
    let upper = fs::metadata(fs.upper("new")).unwrap();
    assert_eq!((upper.uid(), upper.permissions().mode() & 0o7000), (0, 0));
    fs.chmod("marked", 0o600).unwrap();
    assert_eq!(seen("marked"), (7, 8, 0o600));
    fs.chmod("plain", 0o640).unwrap();
    assert_eq!(seen("plain"), (0, 0, 0o640));
    // A new owner does not get the old one's privileges.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    fs.create_as(&caller, "program", 0o6755).unwrap();
    fs.create_as(&caller, "locking", 0o2745).unwrap();
    fs.set_xattr("program", "security.capability", &capability)
        .unwrap();
    let give = SetAttr {
        uid: Some(5),
        ..SetAttr::default()
    };
    for path in ["program", "locking", "dir"] {
        fs.setattr(path, give).unwrap();
    }
    assert_eq!(seen("program"), (5, 1001, 0o755));
    let gone = fs.xattr("program", "security.capability");
    assert_eq!(gone.unwrap_err(), Errno::NODATA);
    assert_eq!(seen("locking"), (5, 1001, 0o2745));
    assert_eq!(seen("dir"), (5, 1001, 0o1755));
    let both = SetAttr {
        mode: Some(0o4711),
        ..give
    };
    fs.setattr("program", both).unwrap();
    assert_eq!(seen("program"), (5, 1001, 0o4711));
    // The group that such a directory passes on is kept in the attribute, too.
    let shared = SetAttr {
        gid: Some(42),
        mode: Some(0o2775),
        ..SetAttr::default()
    };
    fs.setattr("dir", shared).unwrap();
    fs.create_as(&caller, "dir/f", 0o644).unwrap();
    fs.mkdir_as(&caller, "dir/d", 0o755).unwrap();
    assert_eq!(seen("dir/f"), (1000, 42, 0o644));
    assert_eq!(seen("dir/d"), (1000, 42, 0o2755));
    // Not for users to see or to write.
    assert_eq!(fs.xattrs("new").unwrap(), Vec::<String>::new());
    assert_eq!(fs.set_xattr("new", NAME, b"0:0:0").unwrap_err(), Errno::OPNOTSUPP);
}

pub(crate) fn times_and_modes_are_set() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["d/f=0", "l->f"]));
    let at = |seconds, nanoseconds| Time { seconds, nanoseconds };
    let change = SetAttr {
        mode: Some(0o1755),
        atime: Some(SetTime::At(at(-5, 999_999_999))),
        mtime: Some(SetTime::At(at(1 << 33, 1))),
        ..SetAttr::default()
    };
    for path in ["d", "d/f"] {
        let attr = fs.setattr(path, change).unwrap();
        assert_eq!(
            (attr.atime, attr.mtime),
            (at(-5, 999_999_999), at(1 << 33, 1)),
            "{path}"
        );
        assert_eq!(attr.mode & 0o7777, 0o1755);
        assert_eq!(fs.stat(path).unwrap(), attr);
    }
    let now = SetAttr {
        mtime: Some(SetTime::Now),
        ..SetAttr::default()
    };
    let attr = fs.setattr("d", now).unwrap();
    assert_eq!(attr.atime, at(-5, 999_999_999));
    assert!(attr.mtime.seconds > 1_600_000_000 && attr.mtime.seconds < 1 << 33);
    let attr = fs.set_mtime("l", 77).unwrap();
    assert_eq!(attr.mtime, at(77, 5));
    // Nothing to change is nothing to copy up.
    let fs = fs.again();
    fs.write("x", "").unwrap();
    fs.setattr("x", SetAttr::default()).unwrap();
    let access = |uid, mask| {
        fs.overlay.access(
            &Caller {
                uid,
                gid: uid,
                ..NOBODY_SPECIAL
            },
            fs.find("d/f").unwrap().node,
            mask,
        )
    };
    assert_eq!(access(5, 4), Ok(()));
    assert_eq!(access(5, 2), Err(Errno::ACCESS));
    assert_eq!(access(0, 6), Ok(()));
}
