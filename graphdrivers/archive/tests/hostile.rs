//! Layers made to do harm, and layers that are merely odd. Each has a stated outcome, and none may touch anything
//! outside the root: every test runs in a directory beside files that are compared before and after.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests talk, and stop at any error"
)]

#[path = "support/scene.rs"]
mod scene;
#[expect(dead_code, reason = "each test binary uses a part of it")]
mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use scene::{Scene, archive, dir, each, file, hard, link, member, overlay, refused};
use skiff_archive::{
    ApplyOptions, ApplyTarget, ErrorKind, OversizedIds, WhiteoutFormat, apply, apply_recording,
};
use support::{tree, userns};

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
fn hard_links_through_links_and_to_earlier_layers() {
    each(|scene| {
        scene
            .apply(&[
                dir("usr"),
                dir("usr/lib"),
                file("usr/lib/x", "1"),
                link("lib", "/usr/lib"),
                // Parents of both names are links.
                hard("lib/y", "lib/x"),
            ])
            .unwrap();
        let inode = |path: &str| fs::metadata(scene.root().join(path)).unwrap().ino();
        assert_eq!(inode("usr/lib/x"), inode("usr/lib/y"));
        // A directory has no second name.
        refused(
            scene.apply(&[hard("d", "usr")]),
            ErrorKind::Io,
            "operation not permitted",
        );
        // Forwards, as no packer writes it.
        refused(
            scene.apply(&[hard("early", "late"), file("late", "")]),
            ErrorKind::Corrupt,
            "no such file or directory in this layer",
        );
    });
    if !userns::powers() {
        return;
    }
    // An earlier layer's file: there in one tree; for an overlay's upper directory it is another file system's, and
    // Docker and containerd refuse it as well.
    let one_tree = Scene::new(WhiteoutFormat::Delete);
    one_tree.apply(&[file("lower", "1")]).unwrap();
    one_tree.apply(&[hard("again", "lower")]).unwrap();
    assert_eq!(fs::metadata(one_tree.root().join("lower")).unwrap().nlink(), 2);
    // A later layer that replaces one of the names leaves the other alone.
    one_tree.apply(&[file("again", "2")]).unwrap();
    assert_eq!(
        (one_tree.text("lower"), one_tree.text("again")),
        ("1".into(), "2".into())
    );
    refused(
        Scene::new(overlay()).apply(&[hard("again", "lower")]),
        ErrorKind::Corrupt,
        "no such file or directory in this layer",
    );
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
fn whiteouts_of_markers_and_of_parents() {
    each(|scene| {
        scene
            .apply(&[
                dir("d"),
                file("d/x", "1"),
                // The marker cannot be deleted: this is book-keeping of AUFS by its name, and left out.
                file("d/.wh..wh..wh..opq", ""),
                // A marker that is a directory is one all the same; what lies in it would be its contents.
                dir("e"),
                dir("e/.wh..wh..opq"),
                // A whiteout's data, mode and owner mean nothing.
                member(b'0', "e/.wh.gone", "", b"some bytes"),
                link("e/.wh.link", "/etc"),
            ])
            .unwrap();
        assert!(
            scene.missing("d/.wh..wh..wh..opq")
                && scene.missing("d/.wh..wh..opq")
                && scene.missing("e/.wh..wh..opq")
        );
        assert_eq!(scene.text("d/x"), "1");
        assert!(scene.missing("e/.wh.gone") && scene.missing("e/.wh.link"));
        // The parent of what the layer has just written is deleted, then written to again.
        scene
            .apply(&[file("p/one", "1"), file("p/.wh.one", ""), file("p/two", "2")])
            .unwrap();
        assert_eq!(scene.text("p/two"), "2");
        // The root has no parent, and cannot be deleted.
        refused(
            scene.apply(&[file("../.wh.root", "")]),
            ErrorKind::Escape,
            "is outside of",
        );
        refused(
            scene.apply(&[file("/.wh.", "")]),
            ErrorKind::Corrupt,
            "invalid whiteout name",
        );
        // Below a file.
        refused(
            scene.apply(&[file("d/x/.wh.y", "")]),
            ErrorKind::Io,
            "not a directory",
        );
    });
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
fn attributes_that_cannot_be_set() {
    each(|scene| {
        // Of a kind this namespace or this kind of file does not have: left out, as by Docker.
        let mut symlink = link("s", "x");
        symlink.xattrs.push(("user.on-a-link".into(), b"1".to_vec()));
        let mut labelled = file("labelled", "x");
        labelled.xattrs.push(("trusted.mine".into(), b"1".to_vec()));
        let applied = scene.apply(&[symlink, labelled]).unwrap();
        assert_eq!(applied.skipped_xattrs, if userns::inside() { 2 } else { 1 });
        // A value that no kernel takes is the layer's fault, and an error.
        let mut broken = file("broken", "x");
        broken
            .xattrs
            .push(("security.capability".into(), b"nonsense".to_vec()));
        refused(scene.apply(&[broken]), ErrorKind::Io, "security.capability");
        // The root's are left alone.
        let mut root = dir("./");
        root.xattrs.push(("user.root".into(), b"1".to_vec()));
        scene.apply(&[root]).unwrap();
        assert_eq!(xattr::get(scene.root(), "user.root").unwrap(), None);
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
fn ids_that_the_namespace_lacks_can_be_folded() {
    each(|scene| {
        let mut sink = Vec::new();
        let mut huge = file("huge", "x");
        huge.ids = (718_322_462, 7);
        let mut both = dir("both");
        both.ids = (1_999_999, 1_888_888);
        let mut fine = file("fine", "x");
        fine.ids = (3, 4);
        let target = ApplyTarget {
            directory: scene.root(),
            whiteouts: scene.format,
        };
        let options = ApplyOptions {
            max_id: Some(60_000),
            oversized_ids: OversizedIds::Squash,
            ..ApplyOptions::default()
        };
        let bytes = archive(&[huge, both, fine, hard("again", "fine")]);
        let applied = apply_recording(&bytes[..], &target, &options, &mut |owner| {
            sink.push((owner.path.to_vec(), owner.uid, owner.gid));
            Ok(())
        })
        .unwrap();
        assert_eq!((applied.squashed, applied.folded), (2, (60_000, 60_000)));
        let expected = [
            (b"huge".to_vec(), 718_322_462, 7),
            (b"both".to_vec(), 1_999_999, 1_888_888),
        ];
        assert_eq!(sink, expected);
        let owner = |path: &str| {
            let metadata = fs::symlink_metadata(scene.root().join(path)).unwrap();
            (metadata.uid(), metadata.gid())
        };
        assert_eq!((owner("huge"), owner("both")), ((60_000, 7), (60_000, 60_000)));
        // The header of a hard link says 0:0 here, and the last word is its.
        assert_eq!(owner("fine"), (0, 0));
        // A record that cannot be kept is an error: the owner would be lost.
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let outcome = apply_recording(&bytes[..], &target, &options, &mut |_| Err(full()));
        refused(outcome, ErrorKind::NoSpace, "keep the owner of a file");
    });
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
