//! Properties: a random tree survives diff → apply, in every format and compression, and diff is canonical.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests talk, and stop at any error"
)]

#[expect(dead_code, reason = "each test binary uses a part of it")]
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};
use skiff_archive::{ApplyOptions, ApplyTarget, DiffTree, WhiteoutFormat, apply, copy_tree, diff};
use support::{tree, userns};

#[derive(Debug, Clone)]
struct File {
    path: String,
    what: Kind,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    attribute: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    Regular(Vec<u8>),
    /// Bytes at the start, a hole, bytes at the end.
    Sparse(u64),
    Symlink(String),
    /// Second name of the n-th file made before.
    HardLink(usize),
    Fifo,
}

fn files() -> impl Strategy<Value = Vec<File>> {
    let name = prop_oneof![
        "[a-c]",
        "[a-c]",
        Just("äöü – \u{1f980}".to_owned()),
        Just("x".repeat(200)),
        Just(" ".to_owned()),
        Just("new\nline".to_owned()),
        Just("..dots".to_owned()),
    ];
    let path = prop::collection::vec(name, 1..5).prop_map(|parts| parts.join("/"));
    let what = prop_oneof![
        3 => Just(Kind::Directory),
        4 => prop::collection::vec(any::<u8>(), 0..2000).prop_map(Kind::Regular),
        1 => (5_000u64..2_000_000).prop_map(Kind::Sparse),
        2 => "[a-z/.]{1,150}".prop_map(Kind::Symlink),
        2 => (0usize..20).prop_map(Kind::HardLink),
        1 => Just(Kind::Fifo),
    ];
    let attribute = prop::option::of(prop::collection::vec(any::<u8>(), 0..60));
    let file = (
        path,
        what,
        0u32..0o10000,
        (0u32..60_000, 0u32..60_000),
        (0i64..4_000_000_000, 0i64..1_000_000_000),
        attribute,
    )
        .prop_map(|(path, what, mode, owner, mtime, attribute)| File {
            path,
            what,
            mode,
            owner,
            mtime,
            attribute,
        });
    prop::collection::vec(file, 0..25)
}

/// Makes the files, leaving out what does not fit together.
fn make(root: &Path, files: &[File]) {
    let mut made: Vec<std::path::PathBuf> = Vec::new();
    let mut directories = Vec::new();
    for file in files {
        let path = root.join(&file.path);
        if fs::symlink_metadata(&path).is_ok() || !make_parents(root, &path) {
            continue;
        }
        match &file.what {
            Kind::Directory => fs::create_dir(&path).unwrap(),
            Kind::Regular(data) => fs::write(&path, data).unwrap(),
            Kind::Sparse(size) => {
                fs::write(&path, "begin").unwrap();
                fs::File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_len(*size)
                    .unwrap();
            }
            Kind::Symlink(target) => symlink(target, &path).unwrap(),
            Kind::HardLink(n) => match made.get(*n) {
                Some(first) => {
                    fs::hard_link(first, &path).unwrap();
                    continue;
                }
                None => continue,
            },
            Kind::Fifo => mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(),
        }
        std::os::unix::fs::lchown(&path, Some(file.owner.0), Some(file.owner.1)).unwrap();
        let link = matches!(file.what, Kind::Symlink(_));
        if !link {
            fs::set_permissions(&path, fs::Permissions::from_mode(file.mode)).unwrap();
        }
        if let (Some(value), Kind::Directory | Kind::Regular(_)) = (&file.attribute, &file.what) {
            xattr::set(&path, "user.test", value).unwrap();
        }
        if matches!(file.what, Kind::Directory) {
            directories.push((path, file.mtime));
        } else {
            touch(&path, file.mtime);
            made.push(path);
        }
    }
    for (path, mtime) in directories.iter().rev() {
        touch(path, *mtime);
    }
    chown(root, Some(0), Some(0)).unwrap();
}

/// Makes the directories above `path`, unless one of them is something else. A link among them is not followed: it may
/// lead out of `root`, up to the machine's own `/`.
fn make_parents(root: &Path, path: &Path) -> bool {
    let parent = path.parent().unwrap();
    let mut above: Vec<&Path> = parent.ancestors().take_while(|above| *above != root).collect();
    above.reverse();
    above.iter().all(|above| match fs::symlink_metadata(above) {
        Ok(there) => there.is_dir(),
        Err(_) => fs::create_dir(above).is_ok(),
    })
}

fn touch(path: &Path, (tv_sec, tv_nsec): (i64, i64)) {
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn pack(tree: &DiffTree<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let diffed = diff(tree, &mut out).unwrap();
    assert_eq!(diffed.stream_size, out.len() as u64);
    out
}

fn unpack(bytes: &[u8], directory: &Path, whiteouts: WhiteoutFormat) {
    let target = ApplyTarget {
        directory: directory.to_owned(),
        whiteouts,
    };
    apply(bytes, &target, &ApplyOptions::default()).unwrap();
}

fn whole(directory: &Path) -> DiffTree<'_> {
    DiffTree::Compare {
        directory,
        parent: None,
    }
}

/// Compares two trees and shows only what differs.
fn same(a: &tree::Tree, b: &tree::Tree) -> Result<(), TestCaseError> {
    for path in a.keys().chain(b.keys()) {
        prop_assert_eq!(a.get(path), b.get(path), "{:?}", path);
    }
    Ok(())
}

/// Few by default: each makes and reads some hundred files.
fn cases() -> u32 {
    let wanted = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    wanted.unwrap_or(25)
}

#[test]
fn in_a_user_namespace() {
    userns::rerun("in_a_user_namespace");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_survives_packing_and_copying(files in files()) {
        if !userns::powers() {
            return Ok(());
        }
        let scratch = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| scratch.path().join(name));
        for path in [&a, &b, &c] {
            fs::create_dir(path).unwrap();
        }
        make(&a, &files);
        let packed = pack(&whole(&a));
        let format = if userns::inside() { WhiteoutFormat::OverlayUser } else { WhiteoutFormat::OverlayTrusted };
        unpack(&zstd::encode_all(&packed[..], 1).unwrap(), &b, format);
        same(&tree::read(&a), &tree::read(&b))?;
        // The same tree gives the same bytes, whichever way it is read.
        prop_assert!(packed == pack(&whole(&b)));
        let native = pack(&DiffTree::Native { directory: &b, whiteouts: format });
        prop_assert!(packed == native);
        copy_tree(&a, &c).unwrap();
        same(&tree::read(&a), &tree::read(&c))?;
        // A copy does not differ from its original.
        prop_assert_eq!(pack(&DiffTree::Compare { directory: &c, parent: Some(&a) }).len(), 1024);
    }

    #[test]
    fn a_difference_leads_from_one_tree_to_the_other(before in files(), after in files()) {
        if !userns::powers() {
            return Ok(());
        }
        let scratch = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| scratch.path().join(name));
        for path in [&a, &b, &c] {
            fs::create_dir(path).unwrap();
        }
        make(&a, &before);
        make(&b, &after);
        copy_tree(&a, &c).unwrap();
        let packed = pack(&DiffTree::Compare { directory: &b, parent: Some(&a) });
        unpack(&packed, &c, WhiteoutFormat::Delete);
        // That names became separate files while others stayed one cannot be told in a layer; contents and metadata can.
        let plain = |path: &Path| tree::without_links(&tree::read_without_directory_times(path));
        same(&plain(&b), &plain(&c))?;
        // As an overlay's upper directory it is the same difference to the byte, whiteouts included, and once more.
        let mut again = packed.clone();
        for name in ["upper", "once-more"] {
            let upper = scratch.path().join(name);
            fs::create_dir(&upper).unwrap();
            let format = if userns::inside() { WhiteoutFormat::OverlayUser } else { WhiteoutFormat::OverlayTrusted };
            unpack(&again, &upper, format);
            again = pack(&DiffTree::Native { directory: &upper, whiteouts: format });
            prop_assert!(packed == again, "{}", name);
        }
    }
}

#[test]
fn random_files_are_not_made_through_links() {
    let scratch = tempfile::tempdir().unwrap();
    let [inside, outside] = ["inside", "outside"].map(|name| scratch.path().join(name));
    for path in [&inside, &outside] {
        fs::create_dir(path).unwrap();
    }
    symlink(&outside, inside.join("link")).unwrap();
    assert!(!make_parents(&inside, &inside.join("link/file")));
    assert!(!make_parents(&inside, &inside.join("link/directory/file")));
    assert!(make_parents(&inside, &inside.join("a/b/file")));
    assert!(inside.join("a/b").is_dir());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_new_name_of_an_old_file_is_the_same_file_after_packing() {
    use std::os::unix::fs::MetadataExt;
    if !userns::powers() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let [before, after, copy] = ["before", "after", "copy"].map(|name| scratch.path().join(name));
    fs::create_dir(&before).unwrap();
    for name in ["kept", "pair", "other"] {
        fs::write(before.join(name), name).unwrap();
    }
    fs::hard_link(before.join("pair"), before.join("twin")).unwrap();
    for tree in [&after, &copy] {
        fs::create_dir(tree).unwrap();
        copy_tree(&before, tree).unwrap();
    }
    fs::hard_link(after.join("kept"), after.join("new")).unwrap();
    fs::remove_file(after.join("twin")).unwrap();
    let tree = DiffTree::Compare {
        directory: &after,
        parent: Some(&before),
    };
    let packed = pack(&tree);
    let mut archive = tar::Archive::new(&packed[..]);
    let names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    // What lost a name did not change: nobody has to read it again.
    assert_eq!(names, [".wh.twin", "kept", "new"]);
    unpack(&packed, &copy, WhiteoutFormat::Delete);
    let inode = |name: &str| fs::metadata(copy.join(name)).unwrap().ino();
    assert_eq!(inode("kept"), inode("new"));
    assert!(!copy.join("twin").exists());
}

#[test]
fn holes_stay_holes() {
    use std::os::unix::fs::MetadataExt;
    if !userns::powers() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| scratch.path().join(name));
    for path in [&a, &b] {
        fs::create_dir(path).unwrap();
    }
    fs::write(a.join("sparse"), "begin").unwrap();
    fs::File::options()
        .write(true)
        .open(a.join("sparse"))
        .unwrap()
        .set_len(1 << 26)
        .unwrap();
    copy_tree(&a, &b).unwrap();
    let copy = fs::metadata(b.join("sparse")).unwrap();
    assert_eq!(copy.len(), 1 << 26);
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
}

#[test]
fn holes_survive_a_layer_that_has_no_form_for_them() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    if !userns::powers() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| scratch.path().join(name));
    for path in [&a, &b] {
        fs::create_dir(path).unwrap();
    }
    // Data at places that fit no block, a hole at the end, only a hole, and zeros that were written.
    let size = 10 << 20;
    for (name, pieces) in [
        ("some", &[3u64, 5_000_000, 9_999_999][..]),
        ("none", &[]),
        ("last", &[size - 1]),
    ] {
        let file = fs::File::create(a.join(name)).unwrap();
        file.set_len(size).unwrap();
        for at in pieces {
            file.write_all_at(b"x", *at).unwrap();
        }
    }
    fs::write(a.join("zeros"), vec![0; 1 << 20]).unwrap();
    fs::write(a.join("small"), vec![0; 60_000]).unwrap();
    let packed = pack(&whole(&a));
    unpack(&packed, &b, WhiteoutFormat::Delete);
    for name in ["some", "none", "last", "zeros", "small"] {
        assert!(
            fs::read(a.join(name)).unwrap() == fs::read(b.join(name)).unwrap(),
            "{name}"
        );
        if name != "small" {
            let blocks = fs::metadata(b.join(name)).unwrap().blocks();
            assert!(blocks * 512 <= 512 << 10, "{name}: {blocks} blocks");
        }
    }
    assert!(packed == pack(&whole(&b)));
}

#[test]
fn trees_of_absurd_depth_are_an_error_and_not_a_crash() {
    if !userns::powers() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir(scratch.path().join("t")).unwrap();
    let deep = scratch.path().join("t").join("d/".repeat(1500));
    fs::create_dir_all(&deep).unwrap();
    let root = scratch.path().join("t");
    // The stack of a tokio blocking thread.
    std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(move || {
            for error in [
                skiff_archive::usage(&root).map(drop).unwrap_err(),
                diff(&whole(&root), std::io::sink()).map(drop).unwrap_err(),
            ] {
                assert_eq!(error.kind(), skiff_archive::ErrorKind::Unsupported, "{error}");
            }
            skiff_archive::remove_tree(&root).unwrap();
        })
        .unwrap()
        .join()
        .unwrap();
}
