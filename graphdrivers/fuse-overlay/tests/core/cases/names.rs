//! Names come, go and move.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use skiff_fuse_overlay::overlay::{Caller, ROOT, SetAttr};

use crate::fs::{Fs, Memory, NOBODY_SPECIAL, fill, has_acls, is_whiteout, whiteout};

const USER: Caller = Caller {
    uid: 1000,
    gid: 2000,
    pid: 1,
    umask: 0,
};
const EXCHANGE: u32 = 2;
const NOREPLACE: u32 = 1;

pub(crate) fn new_files_belong_to_the_caller() {
    let fs = Fs::new(1, |lower| {
        fill(
            &lower[0],
            &["d/hidden=1", "d/hidden2/x=1", "d/hidden3=1", "d/hidden4=1"],
        );
    });
    for name in ["hidden", "hidden3", "hidden4"] {
        fs.unlink(&format!("d/{name}")).unwrap();
    }
    fs.unlink("d/hidden2/x").unwrap();
    fs.rmdir("d/hidden2").unwrap();
    fs.mkdir_as(&USER, "new", 0o755).unwrap();
    // In a fresh directory, and in the places of whiteouts.
    for (file, directory, pipe, link) in [
        ("new/f", "new/d", "new/p", "new/l"),
        ("d/hidden", "d/hidden2", "d/hidden3", "d/hidden4"),
    ] {
        let attr = fs.create_as(&USER, file, 0o4755).unwrap();
        assert_eq!(
            (attr.uid, attr.gid, attr.mode & 0o7777),
            (1000, 2000, 0o4755),
            "{file}"
        );
        let masked = Caller { umask: 0o027, ..USER };
        let attr = fs.mkdir_as(&masked, directory, 0o1777).unwrap();
        assert_eq!(
            (attr.uid, attr.gid, attr.mode & 0o7777),
            (1000, 2000, 0o1750),
            "{directory}"
        );
        let (parent, name) = fs.parent(pipe).unwrap();
        let mode = FileType::Fifo.as_raw_mode() | 0o666;
        let entry = fs.overlay.mknod(&masked, parent.node, name, mode, 0).unwrap();
        assert_eq!(
            (entry.attr.uid, entry.attr.mode),
            (1000, FileType::Fifo.as_raw_mode() | 0o640)
        );
        let (parent, name) = fs.parent(link).unwrap();
        let entry = fs
            .overlay
            .symlink(&USER, parent.node, name, OsStr::new("t"))
            .unwrap();
        assert_eq!((entry.attr.uid, entry.attr.gid), (1000, 2000));
        let upper = fs::symlink_metadata(fs.upper(file)).unwrap();
        assert_eq!((upper.uid(), upper.gid(), upper.mode()), (1000, 2000, 0o104_755));
        assert!(
            fs::symlink_metadata(fs.upper(pipe))
                .unwrap()
                .file_type()
                .is_fifo()
        );
        assert_eq!(fs.create_as(&USER, file, 0o644).unwrap_err(), Errno::EXIST);
        assert_eq!(fs.mkdir(directory).unwrap_err(), Errno::EXIST);
    }
    fs.assert_work_is_empty();
}

pub(crate) fn set_group_id_directories_pass_their_group_on() {
    let fs = Fs::new(1, |lower| {
        fill(&lower[0], &["lower/gone=1", "lower/gone2/x=1"]);
        std::os::unix::fs::chown(lower[0].join("lower"), Some(0), Some(42)).unwrap();
        fs::set_permissions(lower[0].join("lower"), fs::Permissions::from_mode(0o2775)).unwrap();
    });
    fs.mkdir("upper").unwrap();
    let change = SetAttr {
        gid: Some(42),
        mode: Some(0o2775),
        ..SetAttr::default()
    };
    fs.setattr("upper", change).unwrap();
    fs.unlink("lower/gone").unwrap();
    fs.unlink("lower/gone2/x").unwrap();
    fs.rmdir("lower/gone2").unwrap();
    for path in ["upper/f", "lower/f", "lower/gone"] {
        let attr = fs.create_as(&USER, path, 0o640).unwrap();
        assert_eq!(
            (attr.uid, attr.gid, attr.mode & 0o7777),
            (1000, 42, 0o640),
            "{path}"
        );
    }
    for path in ["upper/d", "lower/d", "lower/gone2"] {
        let attr = fs.mkdir_as(&USER, path, 0o750).unwrap();
        assert_eq!(
            (attr.uid, attr.gid, attr.mode & 0o7777),
            (1000, 42, 0o2750),
            "{path}"
        );
        let attr = fs.create_as(&USER, &format!("{path}/f"), 0o600).unwrap();
        assert_eq!(attr.gid, 42, "{path}");
    }
}

pub(crate) fn default_access_control_lists_replace_the_umask() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["d/gone=1", "d/gone2/x=1"]));
    if !has_acls(&fs.upper("")) {
        // Said by the file system, and so nothing that could be wrong here.
        assert_eq!(
            fs.set_xattr("d", "system.posix_acl_default", b"").unwrap_err(),
            Errno::OPNOTSUPP
        );
        return;
    }
    let mut list = vec![2, 0, 0, 0];
    for (tag, permissions) in [(1u16, 7u16), (4, 7), (32, 5)] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(u32::MAX.to_le_bytes());
    }
    let masked = Caller {
        umask: 0o077,
        ..NOBODY_SPECIAL
    };
    assert_eq!(
        fs.create_as(&masked, "d/before", 0o666).unwrap().mode & 0o777,
        0o600
    );
    fs.unlink("d/gone").unwrap();
    fs.unlink("d/gone2/x").unwrap();
    fs.rmdir("d/gone2").unwrap();
    fs.set_xattr("d", "system.posix_acl_default", &list).unwrap();
    for path in ["d/after", "d/gone"] {
        assert_eq!(
            fs.create_as(&masked, path, 0o666).unwrap().mode & 0o777,
            0o664,
            "{path}"
        );
    }
    for path in ["d/sub", "d/gone2"] {
        assert_eq!(
            fs.mkdir_as(&masked, path, 0o777).unwrap().mode & 0o777,
            0o775,
            "{path}"
        );
        assert_eq!(fs.xattr(path, "system.posix_acl_default").unwrap(), list);
    }
    let (overlay, node) = (&fs.overlay, fs.find("d").unwrap());
    overlay
        .removexattr(node.node, OsStr::new("system.posix_acl_default"))
        .unwrap();
    assert_eq!(
        fs.create_as(&masked, "d/without", 0o666).unwrap().mode & 0o777,
        0o600
    );
}

pub(crate) fn names_come_back_after_whiteouts() {
    let fs = Fs::new(2, |lower| {
        fill(&lower[0], &["d/f=0", "d/sub/x=0"]);
        fill(&lower[1], &["d/f=1", "d/sub/y=1", "g=1"]);
    });
    for round in 0..3 {
        fs.unlink("d/f").unwrap();
        assert!(!fs.exists("d/f") && is_whiteout(&fs.upper("d/f")));
        assert_eq!(fs.unlink("d/f").unwrap_err(), Errno::NOENT);
        fs.write("d/f", format!("new {round}")).unwrap();
        assert_eq!(fs.text("d/f"), format!("new {round}"));
    }
    fs.unlink("d/sub/x").unwrap();
    assert_eq!(fs.rmdir("d/sub").unwrap_err(), Errno::NOTEMPTY);
    fs.unlink("d/sub/y").unwrap();
    fs.rmdir("d/sub").unwrap();
    assert!(!fs.exists("d/sub") && is_whiteout(&fs.upper("d/sub")));
    fs.mkdir("d/sub").unwrap();
    assert!(fs.names("d/sub").is_empty(), "what was removed came back");
    fs.unlink("d/f").unwrap();
    fs.mkdir("d/f").unwrap();
    fs.rmdir("d/f").unwrap();
    fs.symlink("x", "d/f").unwrap();
    fs.unlink("d/f").unwrap();
    fs.link("g", "d/f").unwrap();
    let fs = fs.again();
    assert_eq!(fs.text("d/f"), "1");
    assert_eq!(fs.names("d"), ["f", "sub"]);
    assert!(fs.names("d/sub").is_empty());
    fs.assert_work_is_empty();
}

pub(crate) fn removing_leaves_one_whiteout() {
    let fs = Fs::new(1, |lower| {
        for i in 0..50 {
            fill(&lower[0], &[&format!("d/f{i}=1")]);
        }
    });
    for i in 0..50 {
        fs.unlink(&format!("d/f{i}")).unwrap();
    }
    let stat = fs::symlink_metadata(fs.upper("d/f7")).unwrap();
    // Further links of one inode: they cost no room.
    assert_eq!(stat.nlink(), 51);
    assert!(fs.names("d").is_empty());
    fs.rmdir("d").unwrap();
    assert!(is_whiteout(&fs.upper("d")));
    fs.write("e", "1").unwrap();
    fs.unlink("e").unwrap();
    assert!(
        !fs.upper("e").exists() && !is_whiteout(&fs.upper("e")),
        "a whiteout of nothing"
    );
}

pub(crate) fn a_directory_with_whiteouts_can_be_removed() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["d/a=1", "d/b/c=1", "e/x=1"]));
    fs.unlink("d/a").unwrap();
    fs.unlink("d/b/c").unwrap();
    fs.rmdir("d/b").unwrap();
    fs.rmdir("d").unwrap();
    fs.mkdir("d").unwrap();
    // Opaque, and with a whiteout of an earlier life: as another program may leave it.
    whiteout(&fs.upper(""), "d/old");
    assert!(fs.names("d").is_empty());
    fs.rmdir("d").unwrap();
    assert!(!fs.exists("d") && is_whiteout(&fs.upper("d")));
    fs.mkdir("fresh").unwrap();
    whiteout(&fs.upper(""), "fresh/old");
    fs.rmdir("fresh").unwrap();
    assert!(!fs.upper("fresh").exists() && !is_whiteout(&fs.upper("fresh")));
    assert_eq!(fs.unlink("e").unwrap_err(), Errno::ISDIR);
    assert_eq!(fs.rmdir("e/x").unwrap_err(), Errno::NOTDIR);
    fs.assert_work_is_empty();
}

/// A container may call files of its own so.
pub(crate) fn files_called_like_whiteouts_are_files() {
    let fs = Fs::new(1, |lower| {
        fill(&lower[0], &["d/X=1", "d/Y=1", "d/Z=1", "d/f=", "d/foreign=1"]);
    });
    fs.mkdir("own").unwrap();
    fs.create_as(&NOBODY_SPECIAL, "own/.wh.X", 0o700).unwrap();
    assert_eq!(fs.names("own"), [".wh.X"]);
    assert_eq!(fs.rmdir("own").unwrap_err(), Errno::NOTEMPTY);
    fs.create_as(&NOBODY_SPECIAL, "d/.wh.X", 0o700).unwrap();
    fs.create_as(&NOBODY_SPECIAL, "own/plain", 0).unwrap();
    fs.rename("own/plain", "d/.wh.Y").unwrap();
    assert_eq!(fs.names("d"), [".wh.X", ".wh.Y", "X", "Y", "Z", "f", "foreign"]);
    assert_eq!(fs.text("d/X"), "1");
    assert_eq!(fs.mkdir("d/X").unwrap_err(), Errno::EXIST);
    fs.link("own/.wh.X", "d/.wh.Z").unwrap();
    fs.overwrite("d/f", "").unwrap();
    fs.rename("d/f", "d/.wh.f").unwrap();
    fs.chmod("d/.wh.f", 0o700).unwrap();
    // The next mount knows them, and they are like other files.
    let fs = fs.again();
    assert_eq!(
        fs.names("d"),
        [".wh.X", ".wh.Y", ".wh.Z", ".wh.f", "X", "Y", "Z", "foreign"]
    );
    assert_eq!(fs.text("d/X"), "1");
    assert_eq!(fs.xattrs("d/.wh.X").unwrap(), Vec::<String>::new());
    assert_eq!(fs.rmdir("own").unwrap_err(), Errno::NOTEMPTY);
    fs.create_as(&NOBODY_SPECIAL, "own/.wh.new", 0o700).unwrap();
    assert_eq!(fs.names("own"), [".wh.X", ".wh.new"]);
    // Another program's whiteout is one.
    fs::write(fs.upper("d/.wh.foreign"), "").unwrap();
    fs::set_permissions(fs.upper("d/.wh.foreign"), fs::Permissions::from_mode(0o000)).unwrap();
    let fs = fs.again();
    assert!(!fs.exists("d/foreign") && !fs.names("d").contains(&".wh.foreign".to_owned()));
}

pub(crate) fn unlinked_files_stay_usable() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["low=lower"]));
    fs.write("f", "contents").unwrap();
    for path in ["f", "low"] {
        let node = fs.find(path).unwrap();
        let handle = fs.overlay.open(node.node, OFlags::RDWR.bits()).unwrap().handle;
        fs.unlink(path).unwrap();
        // By handle and without, which is how the kernel asks for an O_PATH descriptor.
        for by in [Some(handle), None] {
            let attr = fs.overlay.getattr(node.node, by).unwrap();
            assert_eq!(attr.nlink, 0, "{path} {by:?}");
            let change = SetAttr {
                size: Some(3),
                mode: Some(0o640),
                ..SetAttr::default()
            };
            let attr = fs.overlay.setattr(node.node, by, &change).unwrap();
            assert_eq!((attr.size, attr.mode & 0o777), (3, 0o640), "{path}");
        }
        fs.overlay.write(handle, 1, b"xyz", false).unwrap();
        assert_eq!(fs.read_handle(handle).unwrap().len(), 4);
        assert_eq!(fs.overlay.lseek(handle, 0, 4).unwrap(), 4);
        fs.overlay
            .setxattr(node.node, OsStr::new("user.a"), b"b", 0)
            .unwrap();
        assert_eq!(
            fs.overlay.getxattr(node.node, OsStr::new("user.a")).unwrap(),
            b"b"
        );
        // Opened anew, as through /proc/PID/fd.
        let again = fs.overlay.open(node.node, 0).unwrap().handle;
        assert_eq!(fs.read_handle(again).unwrap().len(), 4);
        fs.overlay.release(again);
        // A new file under the old name is another.
        fs.write(path, "another").unwrap();
        assert_eq!(fs.overlay.getattr(node.node, Some(handle)).unwrap().size, 4);
        assert_ne!(fs.find(path).unwrap().node, node.node);
        fs.overlay.release(handle);
        assert_eq!(fs.overlay.getattr(node.node, None).unwrap().size, 4);
        assert_eq!(
            fs.overlay.link(node.node, ROOT, OsStr::new("back")).unwrap_err(),
            Errno::NOENT
        );
    }
    // Known, but not open.
    fs.write("p", "path").unwrap();
    let node = fs.find("p").unwrap();
    fs.unlink("p").unwrap();
    assert_eq!(fs.overlay.getattr(node.node, None).unwrap().size, 4);
    let handle = fs.overlay.open(node.node, 0).unwrap().handle;
    assert_eq!(fs.read_handle(handle).unwrap(), b"path");
    fs.overlay.release(handle);
    fs.symlink("target", "s").unwrap();
    let node = fs.find("s").unwrap();
    fs.unlink("s").unwrap();
    assert_eq!(fs.overlay.readlink(node.node).unwrap(), b"target");
}

pub(crate) fn removed_directories_stay_usable() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["low/sub"]));
    fs.mkdir("up").unwrap();
    for path in ["up", "low/sub"] {
        let node = fs.find(path).unwrap();
        let handle = fs.overlay.opendir(node.node).unwrap();
        fs.rmdir(path).unwrap();
        assert_eq!(fs.overlay.getattr(node.node, None).unwrap().nlink, 0);
        let mut names = Vec::new();
        fs.overlay
            .readdir(handle, 0, &mut |entry| {
                names.push(entry.name.to_owned());
                true
            })
            .unwrap();
        assert_eq!(names, [".", ".."]);
        assert_eq!(
            fs.overlay
                .mkdir(&NOBODY_SPECIAL, node.node, OsStr::new("x"), 0o755)
                .unwrap_err(),
            Errno::NOENT
        );
        fs.overlay.releasedir(handle);
    }
}

pub(crate) fn hard_links_are_one_file() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["low=lower"]));
    fs.mkdir("d").unwrap();
    fs.write("a", "one").unwrap();
    assert_eq!(fs.link("a", "d/b").unwrap().nlink, 2);
    assert_eq!(fs.link("d/b", "c").unwrap().nlink, 3);
    let (a, b) = (fs.find("a").unwrap(), fs.find("d/b").unwrap());
    assert_eq!(a.node, b.node);
    fs.overwrite("c", "ONE").unwrap();
    assert_eq!(fs.text("a"), "ONE");
    // The name by which it was first known goes: it is found by the others.
    fs.unlink("a").unwrap();
    assert_eq!(fs.overlay.getattr(a.node, None).unwrap().nlink, 2);
    fs.rename("d/b", "d/e").unwrap();
    fs.unlink("c").unwrap();
    let attr = fs.overlay.getattr(a.node, None).unwrap();
    assert_eq!((attr.nlink, attr.size), (1, 3));
    assert_eq!(fs.find("d/e").unwrap().node, a.node);
    assert_eq!(fs.link("low", "low").unwrap_err(), Errno::EXIST);
    fs.link("low", "low2").unwrap();
    assert_eq!(fs.stat("low").unwrap().ino, fs.stat("low2").unwrap().ino);
    assert_eq!(fs.link("d", "d2").unwrap_err(), Errno::PERM);
    // Known by one name only, which goes; the other is still to be found.
    fs.write("x", "x").unwrap();
    fs.link("x", "y").unwrap();
    drop((a, b));
    let x = fs.find("x").unwrap();
    fs.unlink("x").unwrap();
    assert_eq!(fs.overlay.getattr(x.node, None).unwrap().nlink, 1);
    assert_eq!(fs.find("y").unwrap().node, x.node);
    fs.unlink("y").unwrap();
    assert_eq!(fs.overlay.getattr(x.node, None).unwrap().nlink, 0);
}

pub(crate) fn files_without_names_can_get_one() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["d/x=1"]));
    let d = fs.find("d").unwrap();
    let flags = OFlags::RDWR.bits();
    let (entry, opened) = fs.overlay.tmpfile(&USER, d.node, 0o640, flags).unwrap();
    assert_eq!(
        (entry.attr.nlink, entry.attr.uid, entry.attr.mode & 0o777),
        (0, 1000, 0o640)
    );
    fs.overlay.write(opened.handle, 0, b"tmp", false).unwrap();
    let linked = fs.overlay.link(entry.node, d.node, OsStr::new("named")).unwrap();
    assert_eq!((linked.node, linked.attr.nlink), (entry.node, 1));
    assert_eq!(fs.text("d/named"), "tmp");
    fs.overlay.release(opened.handle);
    assert_eq!(fs.find("d/named").unwrap().node, entry.node);
    fs.unlink("d/named").unwrap();
    assert_eq!(fs.overlay.getattr(entry.node, None).unwrap().nlink, 0);
    fs.overlay.forget(entry.node, 2);
}

pub(crate) fn renames_of_every_kind() {
    let fs = Fs::new(2, |lower| {
        fill(&lower[0], &["d/a=a", "d/b=b", "d/c=c", "e/x=x"]);
        fill(&lower[1], &["d/a=below", "e/y=y", "e/sub/z=z"]);
    });
    // A lower file onto nothing, onto a lower file, onto a whiteout, onto an upper file.
    fs.rename("d/a", "d/new").unwrap();
    assert!(!fs.exists("d/a") && is_whiteout(&fs.upper("d/a")));
    fs.rename("d/b", "d/c").unwrap();
    assert_eq!(fs.text("d/c"), "b");
    fs.rename("d/c", "d/a").unwrap();
    assert_eq!(fs.text("d/a"), "b");
    fs.rename("e/x", "d/new").unwrap();
    assert_eq!(fs.text("d/new"), "x");
    assert_eq!(fs.names("d"), ["a", "new"]);
    // An upper file leaves no whiteout where nothing is below.
    fs.rename("d/new", "top").unwrap();
    assert!(!is_whiteout(&fs.upper("d/new")) && !fs.upper("d/new").exists());
    // Open, and renamed over.
    let node = fs.find("d/a").unwrap();
    let handle = fs.overlay.open(node.node, 0).unwrap().handle;
    fs.rename("top", "d/a").unwrap();
    assert_eq!(fs.read_handle(handle).unwrap(), b"b");
    assert_eq!(fs.overlay.getattr(node.node, Some(handle)).unwrap().nlink, 0);
    fs.overlay.release(handle);
    // Symbolic links, and names that are too long.
    fs.symlink("t", "s").unwrap();
    fs.rename("s", "e/s").unwrap();
    assert_eq!(fs.readlink("e/s").unwrap(), "t");
    assert_eq!(
        fs.rename("e/s", &"n".repeat(256)).unwrap_err(),
        Errno::NAMETOOLONG
    );
    assert_eq!(fs.names("e"), ["s", "sub", "y"]);
    drop(node);
    let fs = fs.again();
    assert_eq!(fs.names("d"), ["a"]);
    assert_eq!(fs.text("d/a"), "x");
    assert_eq!(fs.names("e"), ["s", "sub", "y"]);
    fs.assert_work_is_empty();
}

pub(crate) fn renamed_directories_do_not_merge() {
    let fs = Fs::new(1, |lower| {
        fill(&lower[0], &["low/x=1", "low/sub/y=1", "other/z=1", "gone/w=1"]);
    });
    fs.mkdir("new").unwrap();
    fs.mkdir("new/deep").unwrap();
    fs.write("new/deep/f", "f").unwrap();
    let deep = fs.find("new/deep/f").unwrap();
    // Onto a whiteout: what the whiteout hid stays hidden.
    fs.unlink("gone/w").unwrap();
    fs.rmdir("gone").unwrap();
    fs.rename("new", "gone").unwrap();
    assert_eq!(fs.names("gone"), ["deep"]);
    assert_eq!(fs.names(""), ["gone", "low", "other"]);
    assert_eq!(fs.overlay.getattr(deep.node, None).unwrap().size, 1);
    assert_eq!(fs.find("gone/deep/f").unwrap().node, deep.node);
    // And away again: a whiteout takes its place.
    fs.rename("gone", "low/moved").unwrap();
    assert!(!fs.exists("gone") && is_whiteout(&fs.upper("gone")));
    assert_eq!(fs.text("low/moved/deep/f"), "f");
    // Onto a directory that is empty for users, but not on disk.
    fs.unlink("other/z").unwrap();
    let victim = fs.find("other").unwrap();
    fs.rename("low/moved", "other").unwrap();
    assert_eq!(fs.names("other"), ["deep"]);
    assert_eq!(fs.overlay.getattr(victim.node, None).unwrap().nlink, 0);
    assert!(!fs.upper("low/moved").exists());
    // Onto an empty lower directory.
    fs.unlink("low/sub/y").unwrap();
    fs.mkdir("again").unwrap();
    fs.write("again/f", "f").unwrap();
    fs.rename("again", "low/sub").unwrap();
    assert_eq!(fs.names("low/sub"), ["f"]);
    assert_eq!(fs.overlay.getattr(deep.node, None).unwrap().size, 1);
    let fs_deep = fs.text("other/deep/f");
    assert_eq!(fs_deep, "f");
    drop((deep, victim));
    let fs = fs.again();
    assert_eq!(fs.names(""), ["low", "other"]);
    assert_eq!(fs.names("other"), ["deep"]);
    assert_eq!(fs.names("low"), ["sub", "x"]);
    assert_eq!(fs.names("low/sub"), ["f"]);
    fs.assert_work_is_empty();
}

pub(crate) fn renames_that_are_refused() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["low/x=1", "f=1", "merged/y=1"]));
    fs.mkdir("new").unwrap();
    fs.mkdir("new/sub").unwrap();
    fs.write("merged/z", "1").unwrap();
    let refused = [
        (fs.rename("low", "low2"), Errno::XDEV),
        (fs.rename("merged", "m2"), Errno::XDEV),
        (fs.rename("nothing", "x"), Errno::NOENT),
        (fs.rename("new", "f"), Errno::NOTDIR),
        (fs.rename("f", "new"), Errno::ISDIR),
        (fs.rename("new", "low"), Errno::NOTEMPTY),
        (fs.rename("new/sub", "new"), Errno::NOTEMPTY),
        (fs.rename("new", "new/sub/x"), Errno::INVAL),
        (fs.rename_with("f", "merged/z", NOREPLACE), Errno::EXIST),
        (fs.rename_with("f", "low/x", NOREPLACE), Errno::EXIST),
        (fs.rename_with("f", "nothing", EXCHANGE), Errno::NOENT),
        (fs.rename_with("f", "g", 4), Errno::INVAL),
        (
            fs.rename_with("f", "merged/z", NOREPLACE | EXCHANGE),
            Errno::INVAL,
        ),
        (fs.rename_with("new", "merged", EXCHANGE), Errno::XDEV),
        (fs.rename_with("new", "new/sub", EXCHANGE), Errno::INVAL),
    ];
    for (outcome, errno) in refused {
        assert_eq!(outcome.unwrap_err(), errno);
    }
    fs.rename_with("f", "g", NOREPLACE).unwrap();
    fs.rename_with("g", "f", NOREPLACE).unwrap();
    // Two names of one file: nothing happens.
    fs.link("f", "g").unwrap();
    fs.rename("f", "g").unwrap();
    assert!(fs.exists("f") && fs.exists("g"));
    fs.rename("f", "f").unwrap();
    assert_eq!(fs.names(""), ["f", "g", "low", "merged", "new"]);
    fs.assert_work_is_empty();
}

pub(crate) fn exchanges() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["a=lower", "d/b=b", "covered/x=1"]));
    fs.write("u", "upper").unwrap();
    fs.rename_with("a", "u", EXCHANGE).unwrap();
    assert_eq!([fs.text("a"), fs.text("u")], ["upper", "lower"]);
    fs.rename_with("d/b", "a", EXCHANGE).unwrap();
    assert_eq!([fs.text("a"), fs.text("d/b")], ["b", "upper"]);
    fs.mkdir("new").unwrap();
    fs.write("new/n", "n").unwrap();
    let inside = fs.find("new/n").unwrap();
    fs.rename_with("new", "a", EXCHANGE).unwrap();
    assert_eq!(fs.text("a/n"), "n");
    assert_eq!(fs.text("new"), "b");
    assert_eq!(fs.find("a/n").unwrap().node, inside.node);
    fs.unlink("covered/x").unwrap();
    fs.rmdir("covered").unwrap();
    fs.mkdir("covered").unwrap();
    fs.rename_with("covered", "u", EXCHANGE).unwrap();
    fs.rename_with("u", "covered", EXCHANGE).unwrap();
    assert!(fs.names("covered").is_empty());
    drop(inside);
    let fs = fs.again();
    assert_eq!(fs.names("covered"), Vec::<String>::new());
    assert_eq!(fs.text("a/n"), "n");
}

/// Whoever is told that the disk is full may believe that nothing was done: neither by the disk nor by the overlay.
pub(crate) fn a_full_disk_leaves_a_rename_undone() {
    let disk = Memory::new("tmpfs", c"nr_inodes=64,size=4m,mode=755");
    if xattr::set(disk.upper(""), "user.test", b"").is_err() {
        println!(
            "left to newer kernels: before Linux 6.6 no tmpfs can be an upper directory with directories like these"
        );
        return;
    }
    let fs = Fs::with(
        1,
        |lower| fill(&lower[0], &["old/x=1", "new/y=1"]),
        |config| config.upper = Some((disk.upper(""), disk.work())),
    );
    fs.unlink("old/x").unwrap();
    fs.rmdir("old").unwrap();
    fs.mkdir("old").unwrap();
    fs.write("old/in", "contents").unwrap();
    // Leaves a whiteout in a directory that looks empty.
    fs.unlink("new/y").unwrap();
    let fillers: Vec<_> = (0..64)
        .map(|i| disk.upper(&format!("filler{i}")))
        .take_while(|path| fs::write(path, "").is_ok())
        .collect();
    assert!(fillers.len() < 64, "the disk is not full");
    assert_eq!(fs.rename("old", "new").unwrap_err(), Errno::NOSPC);
    assert!(disk.upper("old/in").exists() && is_whiteout(&disk.upper("new/y")));
    assert_eq!(
        (fs.text("old/in").as_str(), fs.names("new")),
        ("contents", vec![])
    );
    fs::remove_file(&fillers[0]).unwrap();
    fs::remove_file(&fillers[1]).unwrap();
    fs.rename("old", "new").unwrap();
    assert_eq!(
        (fs.text("new/in").as_str(), fs.exists("old")),
        ("contents", false)
    );
    assert!(is_whiteout(&disk.upper("old")));
    fs.assert_work_is_empty();
}

/// A file system without `RENAME_WHITEOUT` (and without attributes).
pub(crate) fn renames_work_without_the_flag_for_whiteouts() {
    let disk = Memory::new("ramfs", c"mode=755");
    let fs = Fs::with(
        1,
        |lower| fill(&lower[0], &["a=a", "b=b", "c=c"]),
        |config| config.upper = Some((disk.upper(""), disk.work())),
    );
    fs.rename("a", "fresh").unwrap();
    fs.rename("b", "fresh").unwrap();
    assert_eq!(fs.text("fresh"), "b");
    fs.rename("fresh", "c").unwrap();
    assert_eq!((fs.text("c").as_str(), fs.names("")), ("b", vec!["c".to_owned()]));
    for name in ["a", "b"] {
        assert!(is_whiteout(&disk.upper(name)), "{name}");
    }
    fs.assert_work_is_empty();
}

pub(crate) fn whiteouts_cannot_be_made_by_users() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["f=1"]));
    assert_eq!(fs.mknod("w", FileType::CharacterDevice).unwrap_err(), Errno::PERM);
    assert_eq!(fs.mknod("w", FileType::RegularFile).unwrap().mode, 0o100_644);
    assert_eq!(fs.mknod("d", FileType::Directory).unwrap_err(), Errno::INVAL);
}
