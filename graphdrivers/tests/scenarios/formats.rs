//! One format on disk: what the kernel's overlay wrote, our FUSE overlay shows and changes, and the other way round. In a
//! user namespace, where both keep their state in `user.overlay.*`.

use std::fs;
use std::path::Path;

use skiff_graphdrivers::{Access, FuseMount, Mount, Mounter, OverlayMount, SnapshotRef, select};

use super::{Fixture, commit, key, layer, names, prepare};
use crate::support::tree;

/// Who puts the directories together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Kernel,
    Ours,
}

impl By {
    fn other(self) -> Self {
        match self {
            Self::Kernel => Self::Ours,
            Self::Ours => Self::Kernel,
        }
    }

    /// The same directories, put together by this one.
    fn mount(self, mounts: &[Mount]) -> Vec<Mount> {
        let (lower, upper) = match &mounts[0] {
            Mount::Overlay(overlay) => (overlay.lower.clone(), overlay.upper.clone()),
            Mount::Fuse(fuse) => (fuse.lower.clone(), fuse.upper.clone()),
            other => panic!("{other:?}"),
        };
        vec![match self {
            Self::Kernel => Mount::Overlay(OverlayMount {
                lower,
                upper,
                userxattr: true,
                options: Vec::new(),
            }),
            Self::Ours => Mount::Fuse(FuseMount {
                lower,
                upper,
                program: None,
                options: Vec::new(),
            }),
        }]
    }
}

pub(crate) fn layers_mount_under_either(f: &Fixture) {
    for (driver, first) in [("overlay2", By::Kernel), ("fuse-overlayfs", By::Ours)] {
        let root = f.scratch.path().join(driver);
        let driver = select(&root, Some(driver), &[]).unwrap().driver;
        commit(
            &*driver,
            &layer(1),
            None,
            &[
                ("d/", ""),
                ("d/a", "1"),
                ("d/b", "1"),
                ("o/", ""),
                ("o/old", "1"),
                ("r/", ""),
                ("r/old", "1"),
                ("f", "1"),
                ("gone", "1"),
            ],
        );
        commit(
            &*driver,
            &layer(2),
            Some(&layer(1)),
            &[
                ("d/.wh.a", ""),
                ("o/", ""),
                ("o/.wh..wh..opq", ""),
                ("o/new", "2"),
                (".wh.gone", ""),
            ],
        );
        prepare(&*driver, "rw", Some(&layer(2)));
        let active = key("rw");
        let mounts = driver
            .mounts(SnapshotRef::Active(&active), Access::ReadWrite)
            .unwrap();
        let mounter = Mounter::new();
        let target = f.target("either");
        let look = |by: By, change: &dyn Fn(&Path)| {
            mounter.mount(&by.mount(&mounts), &target).unwrap();
            change(&target);
            let seen = tree::read_without_directory_times(&target);
            mounter.unmount(&target).unwrap();
            seen
        };
        // Each in turn changes what the other has written, and both see the same after it.
        for (round, by) in [first, first.other(), first, first.other()]
            .into_iter()
            .enumerate()
        {
            look(by, &|p| change(p, round));
            // Mounted anew: what was written last may have had another time in the writer's cache.
            let (written, seen) = (look(by, &|_| {}), look(by.other(), &|_| {}));
            tree::assert_same(&tree::without_links(&written), &tree::without_links(&seen));
        }
        assert!(!names(&driver.apply_target(&active).unwrap().directory).is_empty());
    }
}

/// What leaves marks in an upper directory: deletions, replaced directories, copies of what lies below.
fn change(p: &Path, round: usize) {
    match round {
        0 => {
            fs::remove_file(p.join("d/b")).unwrap();
            fs::remove_dir_all(p.join("r")).unwrap();
            fs::create_dir(p.join("r")).unwrap();
            fs::write(p.join("r/new"), "0").unwrap();
            fs::write(p.join("f"), "changed").unwrap();
        }
        1 => {
            assert_eq!(names(&p.join("r")), ["new"]);
            assert!(names(&p.join("d")).is_empty());
            fs::write(p.join("d/b"), "again").unwrap();
            fs::remove_dir_all(p.join("o")).unwrap();
            fs::remove_file(p.join("f")).unwrap();
            fs::create_dir(p.join("f")).unwrap();
            fs::create_dir(p.join("made")).unwrap();
            fs::rename(p.join("made"), p.join("moved")).unwrap();
        }
        2 => {
            assert!(!p.join("o").exists() && p.join("f").is_dir());
            fs::create_dir(p.join("o")).unwrap();
            fs::remove_dir(p.join("f")).unwrap();
            fs::hard_link(p.join("d/b"), p.join("link")).unwrap();
            xattr::set(p.join("r/new"), "user.colour", b"red").unwrap();
        }
        _ => {
            assert!(names(&p.join("o")).is_empty() && !p.join("f").exists());
            fs::remove_dir_all(p.join("moved")).unwrap();
            fs::remove_dir_all(p.join("r")).unwrap();
            fs::write(p.join("link"), "through").unwrap();
        }
    }
}
