//! Which layer a name comes from.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use skiff_fuse_overlay::overlay::{Config, Overlay};

use crate::fs::{Fs, fill, is_whiteout, whiteout};

pub(crate) fn the_topmost_layer_that_has_a_name_counts() {
    let fs = Fs::new(3, |lower| {
        fill(&lower[0], &["a=zero", "b/x=zero"]);
        fill(&lower[1], &["a=one", "c=one"]);
        fill(&lower[2], &["a/dir", "c=two", "d=two", "l->a"]);
    });
    assert_eq!(
        [fs.text("a"), fs.text("b/x"), fs.text("c"), fs.text("d")],
        ["zero", "zero", "one", "two"]
    );
    assert_eq!(fs.names(""), ["a", "b", "c", "d", "l"]);
    assert_eq!(fs.readlink("l").unwrap(), "a");
    assert!(!fs.exists("a/dir") && !fs.exists("e"));
    fs.write("a", "upper").unwrap();
    assert_eq!(fs.text("a"), "upper");
    assert_eq!(fs.open("l", OFlags::RDONLY).unwrap_err(), Errno::LOOP);
    assert_eq!(fs.open("b", OFlags::RDONLY).unwrap_err(), Errno::ISDIR);
}

pub(crate) fn directories_merge() {
    let fs = Fs::new(3, |lower| {
        fill(&lower[0], &["d/s/a=0", "d/x=0"]);
        fill(&lower[1], &["d/s/b=1", "d/x=1"]);
        fill(&lower[2], &["d/s/c=2", "d/s/a=2", "d/t/deep/f=2"]);
    });
    assert_eq!(fs.names("d"), ["s", "t", "x"]);
    assert_eq!(fs.names("d/s"), ["a", "b", "c"]);
    assert_eq!(
        [fs.text("d/s/a"), fs.text("d/s/b"), fs.text("d/s/c")],
        ["0", "1", "2"]
    );
    fs.write("d/t/deep/new", "u").unwrap();
    assert_eq!(fs.names("d/t/deep"), ["f", "new"]);
    assert_eq!(fs.text("d/t/deep/f"), "2");
}

pub(crate) fn a_file_between_directories_ends_the_merge() {
    let fs = Fs::new(3, |lower| {
        fill(&lower[0], &["d/top=0"]);
        fill(&lower[1], &["d=file"]);
        fill(&lower[2], &["d/bottom=2"]);
    });
    assert_eq!(fs.names("d"), ["top"]);
    assert!(!fs.exists("d/bottom"));
}

pub(crate) fn whiteouts_hide_what_is_below() {
    let fs = Fs::new(3, |lower| {
        whiteout(&lower[0], "d/gone");
        whiteout(&lower[0], "whole");
        fill(&lower[1], &["d/gone=1", "d/stays=1", "whole/x=1"]);
        whiteout(&lower[1], "d/below");
        // Nothing is below, and nobody may see the mark itself.
        whiteout(&lower[1], "only/here");
        fill(&lower[2], &["d/below=2", "d/gone=2"]);
    });
    assert_eq!(fs.names(""), ["d", "only"]);
    assert_eq!(fs.names("d"), ["stays"]);
    assert!(!fs.exists("d/gone") && !fs.exists("d/below") && !fs.exists("whole") && !fs.exists("only/here"));
    assert!(fs.names("only").is_empty());
    fs.write("d/gone", "new").unwrap();
    assert_eq!(fs.text("d/gone"), "new");
    fs.rmdir("only").unwrap();
    assert!(is_whiteout(&fs.upper("only")));
}

pub(crate) fn opaque_directories_hide_what_is_below() {
    let fs = Fs::new(3, |lower| {
        fill(&lower[0], &["a/top=0", "b/top=0", "c/top=0"]);
        for (name, attribute) in [("a", "user.overlay.opaque"), ("b", "user.fuseoverlayfs.opaque")] {
            xattr::set(lower[0].join(name), attribute, b"y").unwrap();
        }
        // Any other value means nothing.
        xattr::set(lower[0].join("c"), "user.overlay.opaque", b"n").unwrap();
        fill(&lower[1], &["a/mid=1", "b/mid=1", "c/mid=1", "e/mid=1"]);
        xattr::set(lower[1].join("e"), "user.overlay.opaque", b"y").unwrap();
        fill(&lower[2], &["a/low=2", "b/low=2", "c/low=2", "e/low=2"]);
    });
    assert_eq!(fs.names("a"), ["top"]);
    assert_eq!(fs.names("b"), ["top"]);
    assert_eq!(fs.names("c"), ["low", "mid", "top"]);
    assert_eq!(fs.names("e"), ["mid"]);
    assert!(!fs.exists("a/low") && !fs.exists("e/low"));
}

pub(crate) fn whiteouts_as_attributes_are_understood() {
    let fs = Fs::new(2, |lower| {
        fill(&lower[0], &["d/gone=", "d/empty=", "plain/gone="]);
        fill(&lower[1], &["d/gone=1", "d/empty=1", "d/stays=1", "plain/gone=1"]);
        for directory in ["", "d"] {
            xattr::set(lower[0].join(directory), "user.overlay.opaque", b"x").unwrap();
        }
        for file in ["d/gone", "plain/gone"] {
            xattr::set(lower[0].join(file), "user.overlay.whiteout", b"").unwrap();
        }
    });
    assert_eq!(fs.names("d"), ["empty", "stays"]);
    assert!(!fs.exists("d/gone"));
    assert_eq!(fs.text("d/empty"), "");
    // The directory does not say that it has such: an empty file.
    assert_eq!(fs.names("plain"), ["gone"]);
    assert_eq!(fs.xattrs("plain/gone").unwrap(), Vec::<String>::new());
}

/// Of fuse-overlayfs, and of Podman, which unpacks a layer's whiteouts as the archive has them when a program mounts.
pub(crate) fn whiteouts_that_are_files_are_understood() {
    let mark = |path: std::path::PathBuf, mode: u32| {
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let mut fs = Fs::new(2, |lower| {
        fill(&lower[0], &["d/own=0", "opaque/own=0", "d/.wh.written=no mark"]);
        mark(lower[0].join("d/.wh.gone"), 0o700);
        mark(lower[0].join("d/.wh.unpacked"), 0);
        mark(lower[0].join("d/.wh.others"), 0o644);
        mark(lower[0].join("opaque/.wh..wh..opq"), 0);
        let below = [
            "d/gone=1",
            "d/unpacked=1",
            "d/others=1",
            "d/stays=1",
            "d/written=1",
            "opaque/hidden=1",
        ];
        fill(&lower[1], &below);
    });
    assert_eq!(fs.names("d"), [".wh.written", "own", "stays", "written"]);
    for name in ["gone", "unpacked", "others"] {
        assert!(!fs.exists(&format!("d/{name}")), "{name}");
    }
    assert_eq!(fs.names("opaque"), ["own"]);
    assert!(!fs.exists("opaque/hidden"));
    fs.write("d/gone", "back").unwrap();
    assert_eq!(fs.text("d/gone"), "back");
    fs.unlink("d/gone").unwrap();
    assert!(!fs.exists("d/gone"));
    // Users may use such names.
    fs.write("d/.wh.mine", "mine").unwrap();
    fs.write("d/.wh.stays", "").unwrap();
    assert_eq!(fs.text("d/.wh.mine"), "mine");
    for again in [false, true] {
        if again {
            fs = fs.again();
        }
        assert_eq!(
            fs.names("d"),
            [".wh.mine", ".wh.stays", ".wh.written", "own", "stays", "written"]
        );
        assert_eq!(fs.text("d/stays"), "1");
    }
}

/// An image could point at any file.
pub(crate) fn redirections_are_refused() {
    let fs = Fs::new(2, |lower| {
        fill(&lower[0], &["d/x=0", "f="]);
        xattr::set(lower[0].join("d"), "user.overlay.redirect", b"/secret").unwrap();
        xattr::set(lower[0].join("f"), "user.overlay.metacopy", b"").unwrap();
        xattr::set(lower[0].join("f"), "user.overlay.redirect", b"/secret/f").unwrap();
        fs::File::options()
            .write(true)
            .open(lower[0].join("f"))
            .unwrap()
            .set_len(6)
            .unwrap();
        fill(&lower[0], &["sparse=", "opaque/x=0"]);
        fs::File::options()
            .write(true)
            .open(lower[0].join("sparse"))
            .unwrap()
            .set_len(6)
            .unwrap();
        xattr::set(lower[0].join("opaque"), "user.overlay.redirect", b"/secret").unwrap();
        xattr::set(lower[0].join("opaque"), "user.overlay.opaque", b"y").unwrap();
        fill(&lower[1], &["secret/f=secret", "d/y=1", "opaque/y=1"]);
    });
    for name in ["d", "d/x", "d/y", "f"] {
        assert_eq!(fs.stat(name).unwrap_err(), Errno::PERM, "{name}");
    }
    assert_eq!(fs.overlay.inodes(), 1, "what is refused is not known");
    // The rest of the directory can be used, and where nothing merges nothing is redirected.
    assert_eq!(fs.text("sparse"), "\0".repeat(6));
    assert_eq!(fs.names("opaque"), ["x"]);
    assert_eq!(fs.names("secret"), ["f"]);
}

pub(crate) fn inode_numbers_are_distinct_and_stable() {
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    fill(other.path(), &["far/a=1", "far/b=1", "near/c=1"]);
    let fs = Fs::with(
        2,
        |lower| {
            fill(&lower[0], &["near/a=0", "near/b=0", "x=0"]);
            fill(&lower[1], &["near/d=1", "x=1"]);
        },
        |config| config.lower.push(other.path().to_owned()),
    );
    let paths = [
        "", "near", "near/a", "near/b", "near/c", "near/d", "x", "far", "far/a", "far/b",
    ];
    let inos = |fs: &Fs| paths.map(|path| fs.stat(path).unwrap().ino);
    let before = inos(&fs);
    assert_eq!(
        before.iter().collect::<HashSet<_>>().len(),
        paths.len(),
        "{before:?}"
    );
    for path in &paths[1..] {
        fs.chmod(path, 0o700).unwrap();
    }
    assert_eq!(inos(&fs), before, "copy-up changed numbers");
    fs.write("near/new", "").unwrap();
    assert!(!before.contains(&fs.stat("near/new").unwrap().ino));
    let fs = fs.into_directory();
    drop(fs);
}

pub(crate) fn directories_count_their_subdirectories() {
    let fs = Fs::new(2, |lower| {
        fill(&lower[0], &["d/a", "d/b", "alone/x", "alone/y"]);
        fill(&lower[1], &["d/b", "d/c", "d/file=1"]);
    });
    // A file system such as btrfs does not count.
    let counts = fs::metadata(fs.upper("")).unwrap().nlink() > 1;
    let expect = |path: &str, n: u32| {
        assert_eq!(fs.stat(path).unwrap().nlink, if counts { n } else { 1 }, "{path}");
    };
    expect("d", 5);
    expect("alone", 4);
    fs.mkdir("d/new").unwrap();
    expect("d", 6);
    fs.rmdir("d/a").unwrap();
    expect("d", 5);
    fs.rename("d/new", "alone/new").unwrap();
    expect("d", 4);
    expect("alone", 5);
    fs.rename("d/file", "alone/file").unwrap();
    expect("alone", 5);
    fs.rmdir("alone/new").unwrap();
    expect("alone", 4);
    fs.mkdir("fresh").unwrap();
    fs.mkdir("fresh/one").unwrap();
    expect("fresh", 3);
    assert_eq!(fs.stat("d/file").unwrap_err(), Errno::NOENT);
}

pub(crate) fn names_may_be_as_long_as_below() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["d/x=1"]));
    assert_eq!(fs.overlay.statfs().unwrap().namelen, 255);
    let long = format!("d/{}", "n".repeat(255));
    fs.write(&long, "long").unwrap();
    assert_eq!(fs.text(&long), "long");
    fs.unlink(&long).unwrap();
    assert_eq!(fs.stat(&format!("{long}n")).unwrap_err(), Errno::NAMETOOLONG);
}

pub(crate) fn a_read_only_overlay_changes_nothing() {
    let fs = Fs::with(
        2,
        |lower| {
            fill(&lower[0], &["d/a=0"]);
            fill(&lower[1], &["d/b=1"]);
        },
        |config| config.upper = None,
    );
    assert_eq!(fs.names("d"), ["a", "b"]);
    assert_eq!(fs.text("d/b"), "1");
    let refused = [
        fs.write("d/new", "x"),
        fs.overwrite("d/a", "x"),
        fs.unlink("d/a"),
        fs.mkdir("e").map(drop),
        fs.chmod("d", 0o700).map(drop),
        fs.rename("d/a", "d/c"),
        fs.link("d/a", "d/c").map(drop),
        fs.set_xattr("d/a", "user.x", b"y"),
    ];
    assert_eq!(refused, [Err(Errno::ROFS); 8]);
}

pub(crate) fn two_mounts_of_one_upper_directory_are_refused() {
    let fs = Fs::new(1, |_| {});
    let root = fs.upper("").parent().unwrap().to_owned();
    fs::create_dir(root.join("work2")).unwrap();
    let config = || Config {
        lower: vec![root.join("lower0")],
        upper: Some((root.join("upper"), root.join("work"))),
        ..Config::default()
    };
    // The same work directory, and another one.
    for (work, refused) in [("work", "work directory"), ("work2", "the upper directory")] {
        let config = Config {
            upper: Some((root.join("upper"), root.join(work))),
            ..config()
        };
        let error = Overlay::new(config).unwrap_err().to_string();
        assert!(
            error.contains(&format!("another mount uses {refused}")),
            "{work}: {error}"
        );
    }
    let missing = Config {
        lower: vec![root.join("nowhere")],
        ..config()
    };
    assert!(Overlay::new(missing).unwrap_err().to_string().contains("nowhere"));
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let apart = Config {
        upper: Some((root.join("upper"), elsewhere.path().to_owned())),
        ..config()
    };
    assert_eq!(Overlay::new(apart).unwrap_err().errno, Errno::XDEV);
}

/// The work directory is emptied: nothing else may be lost with it.
pub(crate) fn directories_in_one_another_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let files = ["lower/f=1", "x/work/kept=1", "u/work/kept=1", "w/work/low/kept=1"];
    fill(root, &files);
    fill(root, &["up", "link->x/work"]);
    let new = |lower: &str, upper: &str, work: &str| {
        Overlay::new(Config {
            lower: vec![root.join("lower"), root.join(lower)],
            upper: Some((root.join(upper), root.join(work))),
            ..Config::default()
        })
    };
    for (lower, upper, work, text) in [
        (
            ".",
            "x/work",
            "x",
            "workdir and upperdir must be separate subtrees",
        ),
        (".", "link", "x", "workdir and upperdir must be separate subtrees"),
        (".", "u", "u", "workdir and upperdir must be separate subtrees"),
        (
            ".",
            "u",
            "u/work",
            "workdir and upperdir must be separate subtrees",
        ),
        ("w/work/low", "up", "w", "a lowerdir lies in workdir"),
        ("w", "up", "w", "a lowerdir lies in workdir"),
    ] {
        let error = new(lower, upper, work).unwrap_err();
        assert_eq!(error.errno, Errno::INVAL, "{upper} {work}: {error}");
        assert!(error.to_string().contains(text), "{upper} {work}: {error}");
    }
    for file in files {
        let path = root.join(file.trim_end_matches("=1"));
        assert_eq!(fs::read_to_string(path).unwrap(), "1", "{file}");
    }
    assert!(!root.join("u/work/work").exists(), "something was made");
    // Above both may be a layer.
    drop(new(".", "up", "x").unwrap());
}

/// What an earlier process left when it was killed.
pub(crate) fn the_work_directory_is_emptied() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["d/x=1"]));
    fill(
        &fs.work(),
        &["#1/deep/er/file=1", "#2=2", "#d1/x=1", "#1/deep/more/file=2"],
    );
    whiteout(&fs.work(), "#w9");
    let fs = fs.again();
    fs.assert_work_is_empty();
    assert!(!is_whiteout(&fs.work().join("#w9")));
    assert_eq!(fs.list("d").unwrap().get("x"), Some(&FileType::RegularFile));
}
