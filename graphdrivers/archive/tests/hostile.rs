//! Layers made to do harm, and layers that are merely odd. Each has a stated outcome, and none may touch anything
//! outside the root: every test runs in a directory beside files that are compared before and after.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests talk, and stop at any error"
)]

#[expect(dead_code, reason = "each test binary uses a part of it")]
mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use skiff_archive::{Applied, ApplyOptions, ApplyTarget, Error, ErrorKind, WhiteoutFormat, apply};
use support::{tree, userns};

/// One member of a layer, written without the checks that honest programs make.
#[derive(Clone)]
struct Member {
    flag: u8,
    name: Vec<u8>,
    link: Vec<u8>,
    data: Vec<u8>,
    mode: u32,
    ids: (u64, u64),
    xattrs: Vec<(String, Vec<u8>)>,
}

fn member(flag: u8, name: impl AsRef<[u8]>, link: &str, data: &[u8]) -> Member {
    Member {
        flag,
        name: name.as_ref().to_vec(),
        link: link.as_bytes().to_vec(),
        data: data.to_vec(),
        mode: if flag == b'5' { 0o755 } else { 0o644 },
        ids: (0, 0),
        xattrs: Vec::new(),
    }
}

fn file(name: impl AsRef<[u8]>, data: &str) -> Member {
    member(b'0', name, "", data.as_bytes())
}
fn dir(name: &str) -> Member {
    member(b'5', name, "", b"")
}
fn link(name: &str, target: &str) -> Member {
    member(b'2', name, target, b"")
}
fn hard(name: &str, target: &str) -> Member {
    member(b'1', name, target, b"")
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    data
}

fn push(out: &mut Vec<u8>, flag: u8, name: &[u8], data: &[u8], fill: impl FnOnce(&mut tar::Header)) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::new(flag));
    let n = name.len().min(100);
    header.as_old_mut().name[..n].copy_from_slice(&name[..n]);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    fill(&mut header);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn archive(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::new();
    for m in members {
        let mut records: Vec<(String, Vec<u8>)> = m
            .xattrs
            .iter()
            .map(|(k, v)| (format!("SCHILY.xattr.{k}"), v.clone()))
            .collect();
        if m.name.len() > 100 {
            records.push(("path".to_owned(), m.name.clone()));
        }
        if m.link.len() > 100 {
            records.push(("linkpath".to_owned(), m.link.clone()));
        }
        if m.ids.0 > 0o7777777 {
            records.push(("uid".to_owned(), m.ids.0.to_string().into_bytes()));
        }
        if !records.is_empty() {
            let borrowed: Vec<(&str, &[u8])> = records.iter().map(|(k, v)| (&k[..], &v[..])).collect();
            push(&mut out, b'x', b"pax", &pax(&borrowed), |_| ());
        }
        push(&mut out, m.flag, &m.name, &m.data, |header| {
            header.set_mode(m.mode);
            header.set_uid(if m.ids.0 > 0o7777777 { 0 } else { m.ids.0 });
            header.set_gid(m.ids.1);
            let n = m.link.len().min(100);
            header.as_old_mut().linkname[..n].copy_from_slice(&m.link[..n]);
            if matches!(m.flag, b'3' | b'4') {
                header.set_device_major(1).unwrap();
                header.set_device_minor(3).unwrap();
            }
        });
    }
    out.extend_from_slice(&[0; 1024]);
    out
}

/// A root to unpack into, with things around it that must not change.
struct Scene {
    scratch: tempfile::TempDir,
    format: WhiteoutFormat,
    around: tree::Tree,
}

impl Scene {
    fn new(format: WhiteoutFormat) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let outside = scratch.path().join("outside");
        fs::create_dir_all(outside.join("dir")).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        fs::create_dir(scratch.path().join("root")).unwrap();
        let around = tree::read(&outside);
        Self {
            scratch,
            format,
            around,
        }
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    fn apply_bytes(&self, bytes: &[u8]) -> Result<Applied, Error> {
        let target = ApplyTarget {
            directory: self.root(),
            whiteouts: self.format,
        };
        let outcome = apply(bytes, &target, &ApplyOptions::default());
        assert_eq!(
            tree::read(&self.scratch.path().join("outside")),
            self.around,
            "something outside the root changed"
        );
        let names: Vec<_> = fs::read_dir(self.scratch.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "something new beside the root: {names:?}");
        outcome
    }

    fn apply(&self, members: &[Member]) -> Result<Applied, Error> {
        self.apply_bytes(&archive(members))
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn missing(&self, path: &str) -> bool {
        fs::symlink_metadata(self.root().join(path)).is_err()
    }
}

/// The overlay format that this process may write.
fn overlay() -> WhiteoutFormat {
    if userns::inside() {
        WhiteoutFormat::OverlayUser
    } else {
        WhiteoutFormat::OverlayTrusted
    }
}

fn formats() -> [WhiteoutFormat; 2] {
    [WhiteoutFormat::Delete, overlay()]
}

/// Runs `check` with a fresh scene in each whiteout format.
fn each(check: impl Fn(&Scene)) {
    if !userns::powers() {
        return;
    }
    for format in formats() {
        println!("{format:?}");
        check(&Scene::new(format));
    }
}

fn refused(outcome: Result<Applied, Error>, kind: ErrorKind, text: &str) {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(text), "{error:?}");
}

#[test]
fn in_a_user_namespace() {
    userns::rerun("in_a_user_namespace");
}

#[test]
fn names_that_leave_the_root_are_refused() {
    each(|scene| {
        for name in [
            "../outside/secret",
            "a/../../outside/secret",
            "./../x",
            "../../../../../../etc/skiff-escape",
        ] {
            refused(
                scene.apply(&[file(name, "x")]),
                ErrorKind::Escape,
                "is outside of",
            );
            refused(scene.apply(&[dir(name)]), ErrorKind::Escape, "is outside of");
        }
        // Nor by a whiteout.
        refused(
            scene.apply(&[file("../outside/.wh.secret", "")]),
            ErrorKind::Escape,
            "is outside of",
        );
        refused(
            scene.apply(&[file("../outside/.wh..wh..opq", "")]),
            ErrorKind::Escape,
            "is outside of",
        );
        assert!(!Path::new("/etc/skiff-escape").exists());
    });
}

#[test]
fn absolute_and_untidy_names_are_cleaned() {
    each(|scene| {
        scene
            .apply(&[
                file("/etc//./x", "1"),
                file("/../../etc/y", "2"),
                file("a/b/../c", "3"),
                dir("./"),
            ])
            .unwrap();
        assert_eq!(
            (scene.text("etc/x"), scene.text("etc/y"), scene.text("a/c")),
            ("1".into(), "2".into(), "3".into())
        );
    });
}

#[test]
fn parents_that_are_links_are_followed_inside_the_root() {
    each(|scene| {
        let outside = scene.scratch.path().join("outside");
        scene
            .apply(&[
                dir("usr"),
                dir("usr/lib"),
                link("lib", "usr/lib"),
                file("lib/so", "so"),
                link("absolute", "/usr"),
                file("absolute/lib/so2", "so2"),
                link("out", outside.to_str().unwrap()),
                file("out/secret", "owned"),
                link("up", "../../../../../../outside"),
                file("up/secret", "owned"),
            ])
            .unwrap();
        assert_eq!(
            (scene.text("usr/lib/so"), scene.text("usr/lib/so2")),
            ("so".into(), "so2".into())
        );
        // Links are kept as they were written; what went through them stayed inside.
        assert_eq!(fs::read_link(scene.root().join("out")).unwrap(), outside);
        assert_eq!(scene.text("outside/secret"), "owned");
    });
}

#[test]
fn a_link_cannot_be_swapped_in_under_a_cached_directory() {
    each(|scene| {
        let outside = scene.scratch.path().join("outside");
        scene
            .apply(&[
                dir("a"),
                dir("a/b"),
                file("a/b/x", "1"),
                // The directory whose descriptor is cached becomes a link, then something is written "into" it.
                link("a/b", outside.to_str().unwrap()),
                file("a/b/secret", "owned"),
                link("a", "/"),
                file("a/deep", "2"),
            ])
            .unwrap();
        assert_eq!(scene.text("deep"), "2");
        assert!(scene.missing("a/b/x"));
    });
}

#[test]
fn hard_links_stay_inside() {
    each(|scene| {
        let outside = scene.scratch.path().join("outside");
        refused(
            scene.apply(&[hard("l", "../outside/secret")]),
            ErrorKind::Escape,
            "is outside of",
        );
        let through = [link("out", outside.to_str().unwrap()), hard("l", "out/secret")];
        refused(
            scene.apply(&through),
            ErrorKind::Corrupt,
            "no such file or directory in this layer",
        );
        refused(
            scene.apply(&[hard("l", "/etc/passwd")]),
            ErrorKind::Corrupt,
            "no such file",
        );
        refused(scene.apply(&[hard("l", "")]), ErrorKind::Corrupt, "no such file");
        // A hard link to a symbolic link is a second name of the link, not of its target; writing through the pair
        // afterwards replaces the name.
        let pair = [
            link("s", outside.join("secret").to_str().unwrap()),
            hard("t", "s"),
            file("t", "owned"),
            file("s", "too"),
        ];
        scene.apply(&pair).unwrap();
        assert_eq!((scene.text("s"), scene.text("t")), ("too".into(), "owned".into()));
    });
}

#[test]
fn hard_links_share_the_inode_and_keep_capabilities() {
    each(|scene| {
        let mut tool = file("tool", "x");
        // cap_net_bind_service,cap_net_raw+ep, version 2; its bytes contain what a line-wise PAX parser trips over.
        let caps = b"\x01\0\0\x02\0\x24\0\0\n\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        tool.xattrs.push(("security.capability".into(), caps));
        tool.mode = 0o4755;
        tool.ids = (5, 6);
        let mut again = hard("again", "tool");
        (again.mode, again.ids) = (0o4755, (5, 6));
        scene.apply(&[tool, again.clone(), again]).unwrap();
        let (a, b) = (scene.root().join("tool"), scene.root().join("again"));
        let meta = fs::metadata(&a).unwrap();
        assert_eq!((meta.ino(), meta.nlink()), (fs::metadata(&b).unwrap().ino(), 2));
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o4755, 5, 6));
        assert!(xattr::get(&a, "security.capability").unwrap().is_some());
        // A link to itself keeps the file.
        scene.apply(&[file("self", "me"), hard("self", "self")]).unwrap();
        assert_eq!(scene.text("self"), "me");
    });
}

#[test]
fn whiteouts_with_bad_names_are_refused() {
    each(|scene| {
        for name in [".wh.", "a/.wh.", ".wh..", ".wh...", "a/.wh..."] {
            let outcome = scene.apply(&[file(name, "")]);
            refused(outcome, ErrorKind::Corrupt, "invalid whiteout name");
        }
    });
}

#[test]
fn whiteouts_delete_what_lower_layers_have() {
    if !userns::powers() {
        return;
    }
    let scene = Scene::new(WhiteoutFormat::Delete);
    scene
        .apply(&[
            file("a", "1"),
            dir("d"),
            file("d/x", "1"),
            file("d/y", "1"),
            dir("d/sub"),
            file("d/sub/z", "1"),
        ])
        .unwrap();
    // Deleting a parent takes its contents; deleting what is not there is no error; what the layer itself wrote stays.
    scene
        .apply(&[
            file(".wh.a", ""),
            file(".wh.nothing", ""),
            file("d/sub/.wh.z", ""),
            file("d/new", "2"),
        ])
        .unwrap();
    assert!(scene.missing("a") && scene.missing("d/sub/z") && !scene.missing("d/sub"));
    scene
        .apply(&[
            file("d/keep", "3"),
            file("d/.wh.keep", ""),
            file("d/.wh..wh..opq", ""),
            dir("d/sub"),
        ])
        .unwrap();
    assert_eq!(scene.text("d/keep"), "3");
    assert!(scene.missing("d/x") && scene.missing("d/new") && scene.missing("d/.wh..wh..opq"));
    scene.apply(&[file(".wh.d", "")]).unwrap();
    assert!(scene.missing("d"));
    // The deleted parent was in the cache of directories; a member that follows makes it anew.
    scene.apply(&[dir("p"), file("p/1", "")]).unwrap();
    scene
        .apply(&[dir("q"), file("p/.wh.1", ""), file(".wh.p", ""), file("p/2", "2")])
        .unwrap();
    assert_eq!(scene.text("p/2"), "2");
}

#[test]
fn an_opaque_marker_reaches_into_directories_the_layer_merely_touched() {
    if !userns::powers() {
        return;
    }
    let scene = Scene::new(WhiteoutFormat::Delete);
    scene
        .apply(&[dir("d"), dir("d/sub"), file("d/sub/old", "1")])
        .unwrap();
    scene
        .apply(&[
            dir("d"),
            dir("d/sub"),
            file("d/sub/new", "2"),
            file("d/.wh..wh..opq", ""),
        ])
        .unwrap();
    assert!(scene.missing("d/sub/old"));
    assert_eq!(scene.text("d/sub/new"), "2");
}

#[test]
fn overlay_whiteouts_are_devices_and_attributes() {
    if !userns::powers() {
        return;
    }
    let scene = Scene::new(overlay());
    let attribute = if userns::inside() {
        "user.overlay.opaque"
    } else {
        "trusted.overlay.opaque"
    };
    let opaque = |path: &str| xattr::get(scene.root().join(path), attribute).unwrap();
    scene
        .apply(&[
            file("d/.wh.gone", ""),
            dir("o"),
            file("o/.wh..wh..opq", ""),
            file("o/kept", "1"),
            // A whiteout beside a directory of this layer: the directory stays and must not merge.
            dir("both"),
            file("both/x", "1"),
            file(".wh.both", ""),
            // The name was a file, or deleted, before it became a directory: nothing below may shine through.
            file("was-file", "1"),
            dir("was-file"),
            file(".wh.was-gone", ""),
            dir("was-gone"),
            // A whiteout that becomes a file.
            file(".wh.back", ""),
            file("back", "2"),
        ])
        .unwrap();
    let gone = fs::symlink_metadata(scene.root().join("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for path in ["o", "both", "was-file", "was-gone"] {
        assert_eq!(opaque(path).as_deref(), Some(&b"y"[..]), "{path}");
    }
    assert_eq!(opaque("d"), None);
    assert_eq!(
        (scene.text("o/kept"), scene.text("both/x"), scene.text("back")),
        ("1".into(), "1".into(), "2".into())
    );
    // A hard link to something deleted is a link to nothing.
    refused(
        scene.apply(&[hard("l", "d/gone")]),
        ErrorKind::Corrupt,
        "no such file",
    );
}

#[test]
fn aufs_metadata_is_left_out() {
    each(|scene| {
        scene
            .apply(&[
                dir(".wh..wh.plnk"),
                file(".wh..wh.plnk/1.2", "x"),
                file(".wh..wh.aufs", ""),
                dir(".wh..wh.orph"),
            ])
            .unwrap();
        assert_eq!(fs::read_dir(scene.root()).unwrap().count(), 0);
    });
}

#[test]
fn attributes_of_overlayfs_never_reach_the_disk() {
    each(|scene| {
        let mut evil = file("evil", "x");
        for name in [
            "user.overlay.redirect",
            "trusted.overlay.redirect",
            "user.overlay.metacopy",
            "user.overlay.opaque",
        ] {
            evil.xattrs.push((name.into(), b"/../../secret".to_vec()));
        }
        evil.xattrs.push(("user.fine".into(), b"yes\n\0no".to_vec()));
        let mut evil_dir = dir("evil-dir");
        evil_dir
            .xattrs
            .push(("user.overlay.opaque".into(), b"y".to_vec()));
        let applied = scene.apply(&[evil, evil_dir]).unwrap();
        assert_eq!(applied.skipped_xattrs, 5);
        let tree = tree::read(&scene.root());
        assert_eq!(tree[Path::new("evil")].xattrs.len(), 1);
        assert_eq!(tree[Path::new("evil")].xattrs["user.fine"], b"yes\n\0no");
        assert!(tree[Path::new("evil-dir")].xattrs.is_empty());
    });
}

#[test]
fn device_nodes_are_made_by_root_and_left_out_in_a_user_namespace() {
    each(|scene| {
        let members = [
            member(b'3', "null", "", b""),
            member(b'4', "disk", "", b""),
            member(b'6', "fifo", "", b""),
        ];
        let applied = scene.apply(&members).unwrap();
        assert!(
            fs::symlink_metadata(scene.root().join("fifo"))
                .unwrap()
                .file_type()
                .is_fifo()
        );
        if userns::inside() {
            assert_eq!(applied.skipped_devices, 2);
            assert!(scene.missing("null") && scene.missing("disk"));
        } else {
            assert_eq!(applied.skipped_devices, 0);
            let null = fs::symlink_metadata(scene.root().join("null")).unwrap();
            assert!(null.file_type().is_char_device());
            assert_eq!((null.rdev(), null.mode() & 0o7777), (0x103, 0o644));
        }
    });
}

#[test]
fn ids_that_the_namespace_lacks_give_dockers_text() {
    if !userns::powers() {
        return;
    }
    let scene = Scene::new(WhiteoutFormat::Delete);
    let mut huge = file("etc/huge", "x");
    huge.ids = (4_294_967_295, 0);
    let text = "failed to Lchown \"/etc/huge\" for UID 4294967295, GID 0 (try increasing the number of subordinate IDs \
                in /etc/subuid and /etc/subgid): lchown /etc/huge: invalid argument";
    refused(scene.apply(&[huge.clone()]), ErrorKind::IdRange, text);
    let target = ApplyTarget {
        directory: scene.root(),
        whiteouts: WhiteoutFormat::Delete,
    };
    huge.ids = (70_000, 0);
    let limited = ApplyOptions {
        max_id: Some(65_536),
        ..ApplyOptions::default()
    };
    let bytes = archive(&[huge.clone()]);
    refused(
        apply(&bytes[..], &target, &limited),
        ErrorKind::IdRange,
        "for UID 70000, GID 0",
    );
    if userns::inside() {
        // The kernel says the same when nobody checks before it.
        huge.ids = (718_322_462, 0);
        let outcome = scene.apply(&[huge]);
        refused(
            outcome,
            ErrorKind::IdRange,
            "for UID 718322462, GID 0 (try increasing",
        );
    }
}

#[test]
fn names_that_no_file_system_holds_are_errors() {
    each(|scene| {
        let long_part = format!("a/{}", "x".repeat(256));
        refused(scene.apply(&[file(&long_part, "x")]), ErrorKind::Corrupt, "");
        let long_path = "d/".repeat(2100) + "x";
        refused(scene.apply(&[file(&long_path, "x")]), ErrorKind::Corrupt, "");
        refused(scene.apply(&[link("l", "")]), ErrorKind::Corrupt, "no target");
        if scene.format != WhiteoutFormat::Delete {
            return;
        }
        // The longest that works.
        let fits = "d/".repeat(2040) + "x";
        scene.apply(&[file(&fits, "deep")]).unwrap();
        skiff_archive::remove_tree(&scene.root().join("d")).unwrap();
    });
}

#[test]
fn directories_and_files_replace_each_other() {
    each(|scene| {
        scene
            .apply(&[
                dir("a"),
                file("a/x", "1"),
                file("a", "file now"),
                file("b", "1"),
                dir("b"),
                file("b/x", "dir now"),
                link("c", "b"),
                dir("c"),
                file("c/y", "own"),
                file("twice", "1"),
                file("twice", "2"),
                // Parents that are nowhere described.
                file("implied/dir/x", "1"),
            ])
            .unwrap();
        assert_eq!(
            (scene.text("a"), scene.text("b/x"), scene.text("c/y")),
            ("file now".into(), "dir now".into(), "own".into())
        );
        assert!(scene.missing("b/y"));
        assert_eq!(scene.text("twice"), "2");
        let implied = fs::metadata(scene.root().join("implied")).unwrap();
        assert_eq!(implied.mode() & 0o7777, 0o755);
        // A file as a parent.
        refused(
            scene.apply(&[file("a/below", "x")]),
            ErrorKind::Io,
            "not a directory",
        );
        // The root can be neither replaced nor changed.
        fs::set_permissions(scene.root(), fs::Permissions::from_mode(0o751)).unwrap();
        scene
            .apply(
                &[
                    file("/", "x"),
                    link(".", "/etc"),
                    dir("./"),
                    hard("..//x/..", "a"),
                ][..3],
            )
            .unwrap();
        assert_eq!(fs::metadata(scene.root()).unwrap().mode() & 0o7777, 0o751);
    });
}

#[test]
fn modes_owners_and_times_do_not_depend_on_the_surroundings() {
    each(|scene| {
        // A set-group-id root would hand its group down.
        fs::set_permissions(scene.root(), fs::Permissions::from_mode(0o2755)).unwrap();
        std::os::unix::fs::chown(scene.root(), None, Some(7)).unwrap();
        let mut group = dir("group");
        (group.mode, group.ids) = (0o2775, (1, 9));
        let mut sticky = dir("tmp");
        sticky.mode = 0o1777;
        let mut closed = dir("closed");
        closed.mode = 0;
        let mut suid = file("suid", "x");
        (suid.mode, suid.ids) = (0o6711, (3, 4));
        scene
            .apply(&[
                file("plain", "x"),
                dir("sub"),
                group,
                file("group/in", "x"),
                dir("group/dir"),
                sticky,
                closed,
                file("closed/x", "x"),
                suid,
            ])
            .unwrap();
        let tree = tree::read(&scene.root());
        let seen = |path: &str| (tree[Path::new(path)].mode & 0o7777, tree[Path::new(path)].owner);
        assert_eq!(seen("plain"), (0o644, (0, 0)));
        assert_eq!(seen("sub"), (0o755, (0, 0)));
        assert_eq!(seen("group"), (0o2775, (1, 9)));
        assert_eq!(seen("group/in"), (0o644, (0, 0)));
        assert_eq!(seen("group/dir"), (0o755, (0, 0)));
        assert_eq!(seen("tmp"), (0o1777, (0, 0)));
        assert_eq!(seen("closed"), (0, (0, 0)));
        assert_eq!(seen("suid"), (0o6711, (3, 4)));
        for path in tree.keys() {
            assert_eq!(tree[path].mtime, Some((1_000_000_000, 0)), "{path:?}");
        }
    });
}

#[test]
fn damaged_streams_are_errors() {
    use std::io::Write;
    each(|scene| {
        let plain = archive(&[file("a", &"x".repeat(100_000)), file("b", "y")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&plain[..], 3).unwrap();
        for whole in [&plain, &gzip, &zstd] {
            assert!(scene.apply_bytes(whole).is_ok());
        }
        for (whole, cut) in [
            (&plain, 40_000),
            (&gzip, gzip.len() - 1),
            (&gzip, gzip.len() / 2),
            (&zstd, zstd.len() - 1),
        ] {
            refused(scene.apply_bytes(&whole[..cut]), ErrorKind::Corrupt, "");
        }
        for whole in [&gzip, &zstd] {
            let mut flipped = whole.clone();
            let middle = flipped.len() / 2;
            flipped[middle] ^= 0xff;
            refused(scene.apply_bytes(&flipped), ErrorKind::Corrupt, "");
            // Garbage after the end.
            refused(
                scene.apply_bytes(&[&whole[..], b"garbage"].concat()),
                ErrorKind::Corrupt,
                "",
            );
        }
        // Garbage after the archive inside the stream belongs to it: it is hashed, and ignored as Docker does.
        let tail = [&plain[..], b"garbage"].concat();
        let applied = scene.apply_bytes(&tail).unwrap();
        assert_eq!(applied.blob_size, tail.len() as u64);
        refused(scene.apply_bytes(b"BZh91AY&SY"), ErrorKind::Corrupt, "bzip2");
        refused(scene.apply_bytes(b"\xfd7zXZ\0\0"), ErrorKind::Corrupt, "xz");
        refused(
            scene.apply_bytes(&[b'#'; 2000]),
            ErrorKind::Corrupt,
            "invalid header",
        );
        // Docker takes an empty stream for an empty layer.
        assert_eq!(scene.apply_bytes(b"").unwrap().entries, 0);
    });
}

#[test]
fn several_members_and_skippable_frames_are_one_stream() {
    use std::io::Write;
    each(|scene| {
        let plain = archive(&[file("a", &"x".repeat(9_000)), file("b", "y")]);
        let (head, tail) = plain.split_at(5_000);
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let skippable = b"\x53\x2a\x4d\x18\x04\0\0\0skip".to_vec();
        let digest = format!(
            "sha256:{}",
            hex::encode(ring::digest::digest(&ring::digest::SHA256, &plain))
        );
        for stream in [
            [gzip(head), gzip(tail)].concat(),
            [frame(head), skippable.clone(), frame(tail)].concat(),
            [skippable.clone(), frame(&plain), skippable].concat(),
        ] {
            let applied = scene.apply_bytes(&stream).unwrap();
            assert_eq!(
                (&applied.diff_id, applied.entries, applied.size),
                (&digest, 2, 9_001)
            );
            assert_eq!(scene.text("b"), "y");
        }
    });
}

#[test]
fn an_error_of_the_source_is_told_as_such() {
    struct Breaks(usize);
    impl std::io::Read for Breaks {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::Error::other("connection reset by peer"));
            }
            let n = into.len().min(self.0);
            into[..n].fill(0);
            self.0 -= n;
            Ok(n)
        }
    }
    if !userns::powers() {
        return;
    }
    let scene = Scene::new(WhiteoutFormat::Delete);
    let target = ApplyTarget {
        directory: scene.root(),
        whiteouts: WhiteoutFormat::Delete,
    };
    for length in [0, 1024, 3_000_000] {
        // Also after the end of the archive: the digest would be wrong.
        let error = apply(Breaks(length), &target, &ApplyOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.to_string().contains("connection reset by peer"), "{error}");
    }
}
