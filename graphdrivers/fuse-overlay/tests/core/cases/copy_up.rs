//! Copy-up: what a file of a lower layer was, its copy is.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use rustix::fs::{CWD, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use skiff_fuse_overlay::overlay::SetAttr;

use crate::fs::{Fs, Memory, fill, has_acls};

const LONG_AGO: i64 = 1_000_000_000;

const ACL: &str = "system.posix_acl_access";
/// No id, in an access list.
const ANY: u32 = u32::MAX;
/// cap_net_bind_service=ep; inside a user namespace the kernel adds whose it is.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Tag, permissions, id.
fn access_list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = vec![2, 0, 0, 0];
    for (tag, permissions, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

fn age(path: &std::path::Path) {
    let moment = Timespec {
        tv_sec: LONG_AGO,
        tv_nsec: 123_456_789,
    };
    let times = Timestamps {
        last_access: moment,
        last_modification: moment,
    };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub(crate) fn it_keeps_all_that_a_file_has() {
    let fs = Fs::new(1, |lower| {
        let file = lower[0].join("d/f");
        fill(&lower[0], &["d/f=contents"]);
        std::os::unix::fs::chown(&file, Some(12), Some(34)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o6751)).unwrap();
        xattr::set(&file, "user.note", b"kept").unwrap();
        xattr::set(&file, "user.overlay.origin", b"not kept").unwrap();
        xattr::set(&file, "security.capability", &CAPABILITY).unwrap();
        if has_acls(&lower[0]) {
            let list = access_list(&[(1, 7, ANY), (2, 4, 77), (4, 5, ANY), (16, 5, ANY), (32, 1, ANY)]);
            xattr::set(&file, ACL, &list).unwrap();
        }
        age(&file);
    });
    let lower = fs.upper("../lower0/d/f");
    let names = fs.xattrs("d/f").unwrap();
    let values: Vec<_> = names.iter().map(|name| fs.xattr("d/f", name).unwrap()).collect();
    assert!(names.contains(&"user.note".to_owned()) && names.contains(&"security.capability".to_owned()));
    let before = fs.stat("d/f").unwrap();
    // Changes nothing but the access time.
    let handle = fs.open("d/f", OFlags::RDWR).unwrap().handle;
    fs.overlay.release(handle);
    let after = fs.stat("d/f").unwrap();
    let upper = fs::metadata(fs.upper("d/f")).unwrap();
    assert_eq!((upper.uid(), upper.gid(), upper.mode()), (12, 34, 0o106_751));
    assert_eq!((upper.mtime(), upper.mtime_nsec()), (LONG_AGO, 123_456_789));
    assert_eq!(
        (after.ino, after.mode, after.nlink, after.size),
        (before.ino, before.mode, 1, 8)
    );
    assert_eq!((after.mtime, after.atime), (before.mtime, before.atime));
    assert_eq!(fs.text("d/f"), "contents");
    assert_eq!(fs.xattrs("d/f").unwrap(), names);
    for (name, value) in names.iter().zip(values) {
        assert_eq!(fs.xattr("d/f", name).unwrap(), value, "{name}");
    }
    let stored: Vec<_> = xattr::list(fs.upper("d/f")).unwrap().collect();
    assert!(
        !stored.iter().any(|name| name == "user.overlay.origin"),
        "{stored:?}"
    );
    assert_eq!(fs::read_to_string(lower).unwrap(), "contents");
}

/// A copy without them would be another file to its users.
pub(crate) fn access_lists_and_capabilities_are_kept_or_it_fails() {
    // Keeps no attributes.
    let disk = Memory::new("ramfs", c"mode=755");
    let mut refused = vec!["capable"];
    let fs = Fs::with(
        1,
        |lower| {
            fill(&lower[0], &["capable=1", "listed=1", "noted=1"]);
            xattr::set(lower[0].join("capable"), "security.capability", &CAPABILITY).unwrap();
            xattr::set(lower[0].join("noted"), "user.note", b"less important").unwrap();
            if has_acls(&lower[0]) {
                let list = access_list(&[(1, 6, ANY), (2, 4, 77), (4, 4, ANY), (16, 4, ANY), (32, 0, ANY)]);
                xattr::set(lower[0].join("listed"), ACL, &list).unwrap();
                refused.push("listed");
            }
        },
        |config| config.upper = Some((disk.upper(""), disk.work())),
    );
    for path in refused {
        let error = fs.chmod(path, 0o600).unwrap_err();
        assert!(matches!(error, Errno::OPNOTSUPP | Errno::PERM), "{path}: {error}");
        assert!(!disk.upper(path).exists(), "{path}");
        assert_eq!(fs.text(path), "1", "{path}");
    }
    fs.chmod("noted", 0o600).unwrap();
    assert_eq!(fs.xattrs("noted").unwrap(), Vec::<String>::new());
    fs.assert_work_is_empty();
}

/// The bits of the group are those of the list's mask, which says what others on the list may have at most.
pub(crate) fn without_access_lists_the_group_gains_nothing() {
    let list = |group| {
        access_list(&[
            (1, 7, ANY),
            (2, 7, 77),
            (4, group, ANY),
            (16, 6, ANY),
            (32, 0, ANY),
        ])
    };
    let fs = Fs::with(
        1,
        |lower| {
            fill(&lower[0], &["f=1", "d/g=1"]);
            if has_acls(&lower[0]) {
                xattr::set(lower[0].join("f"), ACL, &list(5)).unwrap();
                xattr::set(lower[0].join("d"), ACL, &list(0)).unwrap();
                let masked = fs::metadata(lower[0].join("f")).unwrap().mode();
                assert_eq!(masked & 0o777, 0o760);
            }
        },
        |config| config.noacl = true,
    );
    if !has_acls(&fs.upper("")) {
        println!("no access lists on this file system");
        return;
    }
    for path in ["f", "d/g"] {
        fs.set_mtime(path, LONG_AGO).unwrap();
    }
    let kept = |path: &str| fs::metadata(fs.upper(path)).unwrap().mode() & 0o7777;
    assert_eq!((kept("f"), kept("d")), (0o740, 0o700));
    assert_eq!(xattr::get(fs.upper("f"), ACL).unwrap(), None);
}

/// In a user namespace they look like nobody's, and their copies would be.
pub(crate) fn files_of_unknown_owners_are_not_copied_up() {
    let fs = Fs::with(
        1,
        |lower| {
            fill(&lower[0], &["nobodys=1"]);
            std::os::unix::fs::chown(lower[0].join("nobodys"), Some(65534), Some(65534)).unwrap();
        },
        // Real root's, who has no number in the user namespace of the second run.
        |config| config.lower.push("/etc".into()),
    );
    let changed = [
        fs.overwrite("passwd", "x"),
        fs.chmod("passwd", 0o600).map(drop),
        fs.rename("passwd", "moved"),
    ];
    if crate::userns::inside() {
        assert_eq!(fs.stat("passwd").unwrap().uid, 65534);
        assert_eq!(changed, [Err(Errno::OVERFLOW); 3]);
        assert_eq!(fs::read_dir(fs.upper("")).unwrap().count(), 0);
    } else {
        assert_eq!(changed, [Ok(()); 3]);
        let copy = fs::metadata(fs.upper("moved")).unwrap();
        assert_eq!((copy.uid(), copy.mode() & 0o7777), (0, 0o600));
    }
    fs.chmod("nobodys", 0o600).unwrap();
    let copy = fs::metadata(fs.upper("nobodys")).unwrap();
    assert_eq!((copy.uid(), copy.gid()), (65534, 65534));
    fs.assert_work_is_empty();
}

pub(crate) fn it_keeps_holes() {
    let fs = Fs::new(1, |lower| {
        let file = fs::File::create(lower[0].join("sparse")).unwrap();
        file.write_all_at(b"middle", 8 << 20).unwrap();
        file.set_len(32 << 20).unwrap();
    });
    fs.chmod("sparse", 0o600).unwrap();
    let copy = fs::metadata(fs.upper("sparse")).unwrap();
    assert_eq!(copy.len(), 32 << 20);
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
    let handle = fs.open("sparse", OFlags::RDONLY).unwrap().handle;
    let mut middle = [0; 6];
    fs.overlay.read(handle, 8 << 20, &mut middle).unwrap();
    assert_eq!(&middle, b"middle");
    assert_eq!(fs.overlay.lseek(handle, 0, 3).unwrap(), 8 << 20);
    assert_eq!(fs.overlay.lseek(handle, 16 << 20, 3).unwrap_err(), Errno::NXIO);
    fs.overlay.release(handle);
}

pub(crate) fn symbolic_links_and_pipes_are_copied_up() {
    let fs = Fs::new(1, |lower| {
        symlink("some/where", lower[0].join("l")).unwrap();
        std::os::unix::fs::lchown(lower[0].join("l"), Some(5), Some(6)).unwrap();
        age(&lower[0].join("l"));
        rustix::fs::mknodat(
            CWD,
            lower[0].join("p"),
            FileType::Fifo,
            Mode::from_raw_mode(0o640),
            0,
        )
        .unwrap();
    });
    let before = fs.stat("l").unwrap();
    fs.link("l", "l2").unwrap();
    let after = fs.stat("l").unwrap();
    assert_eq!((after.uid, after.gid, after.mtime), (5, 6, before.mtime));
    assert_eq!((after.nlink, fs.stat("l2").unwrap().ino), (2, after.ino));
    assert_eq!(fs.readlink("l2").unwrap(), "some/where");
    assert_eq!(fs.chmod("l", 0o600).unwrap_err(), Errno::OPNOTSUPP);
    fs.chmod("p", 0o600).unwrap();
    assert_eq!(fs.stat("p").unwrap().mode, FileType::Fifo.as_raw_mode() | 0o600);
    assert!(fs.upper("p").exists());
}

pub(crate) fn directories_come_with_their_metadata() {
    let fs = Fs::new(2, |lower| {
        fill(&lower[0], &["a/b"]);
        fill(&lower[1], &["a/b/c/f=1"]);
        for (path, mode) in [("a", 0o1777), ("a/b", 0o2750)] {
            std::os::unix::fs::chown(lower[0].join(path), Some(7), Some(8)).unwrap();
            fs::set_permissions(lower[0].join(path), fs::Permissions::from_mode(mode)).unwrap();
            xattr::set(lower[0].join(path), "user.note", path.as_bytes()).unwrap();
        }
        for path in ["a/b", "a"] {
            age(&lower[0].join(path));
        }
    });
    let before = [fs.stat("a").unwrap(), fs.stat("a/b").unwrap()];
    fs.chmod("a/b/c/f", 0o600).unwrap();
    for (path, before) in ["a", "a/b"].into_iter().zip(before) {
        let after = fs.stat(path).unwrap();
        assert_eq!(
            (after.mode, after.uid, after.gid, after.mtime),
            (before.mode, 7, 8, before.mtime),
            "{path}"
        );
        let upper = fs::metadata(fs.upper(path)).unwrap();
        assert_eq!(upper.mode(), before.mode, "{path}");
        assert_eq!(
            xattr::get(fs.upper(path), "user.note").unwrap().unwrap(),
            path.as_bytes()
        );
    }
    assert_eq!(fs.names("a/b/c"), ["f"]);
}

pub(crate) fn the_parent_looks_untouched() {
    let fs = Fs::new(1, |lower| {
        fill(&lower[0], &["d/f=1", "d/g=1"]);
        age(&lower[0].join("d"));
    });
    let before = fs.stat("d").unwrap().mtime;
    fs.overwrite("d/f", "2").unwrap();
    assert_eq!(fs.stat("d").unwrap().mtime, before);
    fs.overwrite("d/g", "2").unwrap();
    assert_eq!(fs.stat("d").unwrap().mtime, before);
    fs.unlink("d/g").unwrap();
    assert_ne!(fs.stat("d").unwrap().mtime, before);
}

pub(crate) fn truncation_copies_no_contents() {
    let fs = Fs::new(1, |lower| {
        fill(&lower[0], &["a=contents", "b=contents", "c=contents"]);
    });
    let handle = fs.open("a", OFlags::WRONLY | OFlags::TRUNC).unwrap().handle;
    fs.overlay.release(handle);
    assert_eq!(fs.stat("a").unwrap().size, 0);
    let size = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    assert_eq!(fs.setattr("b", size(3)).unwrap().size, 3);
    assert_eq!(fs.setattr("c", size(10)).unwrap().size, 10);
    assert_eq!(
        [fs.text("a"), fs.text("b"), fs.text("c")],
        ["", "con", "contents\0\0"]
    );
    assert_eq!(fs.setattr("", size(0)).unwrap_err(), Errno::ISDIR);
}

pub(crate) fn handles_opened_before_see_the_new_contents() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["f=old contents"]));
    let reader = fs.open("f", OFlags::RDONLY).unwrap().handle;
    let second = fs.open("f", OFlags::RDONLY).unwrap().handle;
    assert_eq!(fs.read_handle(reader).unwrap(), b"old contents");
    fs.overwrite("f", "new").unwrap();
    assert_eq!(fs.read_handle(reader).unwrap(), b"new contents");
    fs.overlay.release(second);
    assert_eq!(fs.read_handle(reader).unwrap(), b"new contents");
    assert_eq!(fs.overlay.write(reader, 0, b"x", false).unwrap_err(), Errno::BADF);
    fs.overlay.release(reader);
    assert_eq!(fs.read_handle(reader).unwrap_err(), Errno::BADF);
}

/// As in the kernel without its index.
pub(crate) fn one_name_of_several_is_copied_up() {
    let fs = Fs::new(1, |lower| {
        fill(&lower[0], &["a=shared"]);
        fs::hard_link(lower[0].join("a"), lower[0].join("b")).unwrap();
    });
    let (a, b) = (fs.stat("a").unwrap(), fs.stat("b").unwrap());
    assert_eq!((a.ino, a.nlink), (b.ino, 2));
    let node = fs.find("a").unwrap();
    let opened = fs.overlay.open(node.node, OFlags::WRONLY.bits()).unwrap();
    assert!(opened.attributes_changed);
    fs.overlay.write(opened.handle, 0, b"A", false).unwrap();
    fs.overlay.release(opened.handle);
    let after = fs.overlay.getattr(node.node, None).unwrap();
    assert_eq!([fs.text("a"), fs.text("b")], ["Ahared", "shared"]);
    // Different files now: no program may take them for one.
    assert_eq!(after.nlink, 1);
    assert_ne!(after.ino, fs.stat("b").unwrap().ino);
    assert_eq!(fs.stat("a").unwrap().ino, after.ino);
}

pub(crate) fn a_file_without_a_name_is_copied_up_too() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["d/f=lower"]));
    let node = fs.find("d/f").unwrap();
    let reader = fs.overlay.open(node.node, 0).unwrap().handle;
    fs.unlink("d/f").unwrap();
    assert_eq!(fs.overlay.getattr(node.node, None).unwrap().nlink, 0);
    let writer = fs.overlay.open(node.node, OFlags::RDWR.bits()).unwrap().handle;
    fs.overlay.write(writer, 0, b"L", false).unwrap();
    assert_eq!(fs.read_handle(reader).unwrap(), b"Lower");
    let change = SetAttr {
        mode: Some(0o600),
        size: Some(2),
        ..SetAttr::default()
    };
    let attr = fs.overlay.setattr(node.node, None, &change).unwrap();
    assert_eq!((attr.mode & 0o777, attr.size, attr.nlink), (0o600, 2, 0));
    assert!(!fs.exists("d/f"));
    // The whole directory goes; the file does not care.
    fs.rmdir("d").unwrap();
    fs.overlay.write(writer, 0, b"still", false).unwrap();
    assert_eq!(fs.overlay.getattr(node.node, Some(writer)).unwrap().size, 5);
    fs.overlay.release(writer);
    fs.overlay.release(reader);
    fs.assert_work_is_empty();
}

pub(crate) fn nothing_is_left_in_the_work_directory() {
    let fs = Fs::new(1, |lower| {
        fill(&lower[0], &["d/f=1", "d/g=1", "e/x=1", "l->x"]);
    });
    fs.overwrite("d/f", "2").unwrap();
    fs.unlink("d/f").unwrap();
    fs.unlink("d/g").unwrap();
    fs.write("d/g", "new").unwrap();
    fs.unlink("d/g").unwrap();
    fs.rmdir("d").unwrap();
    fs.mkdir("d").unwrap();
    fs.rename("e/x", "d/x").unwrap();
    fs.rename("l", "e/l").unwrap();
    fs.rmdir("e").unwrap_err();
    fs.assert_work_is_empty();
    assert_eq!(fs.names(""), ["d", "e"]);
    assert_eq!(fs.names("d"), ["x"]);
}
