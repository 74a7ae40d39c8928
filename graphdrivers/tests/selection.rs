//! Which driver is chosen, and what is said when none can be.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests talk, and stop at any error"
)]

#[expect(dead_code, reason = "each test binary uses a part of it")]
#[path = "../archive/tests/support/mod.rs"]
mod support;

use std::fs;

use skiff_graphdrivers::{ErrorKind, select};
use support::userns;

#[test]
fn in_a_user_namespace() {
    userns::rerun("in_a_user_namespace");
}

fn data_root() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("skiff-select-")
        .tempdir()
        .unwrap()
}

#[test]
fn the_first_that_works_is_chosen_and_then_kept() {
    if !userns::powers() {
        return;
    }
    let root = data_root();
    let first = select(root.path(), None, &[]).unwrap();
    assert_eq!(first.driver.name(), "overlay2");
    let status = first.driver.status();
    let row = |name: &str| {
        status
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.clone())
            .unwrap()
    };
    assert_eq!(row("userxattr"), userns::inside().to_string());
    assert_eq!(
        (row("Native Overlay Diff"), row("Supports d_type")),
        ("true".into(), "true".into())
    );
    assert!(!row("Backing Filesystem").is_empty());
    drop(first);
    // vfs does not count as prior, whatever it holds.
    select(root.path(), Some("vfs"), &[]).unwrap();
    let again = select(root.path(), None, &[]).unwrap();
    assert_eq!(again.reason, "[graphdriver] using prior storage driver: overlay2");
    // Nothing of the trial is left.
    let mut names: Vec<_> = fs::read_dir(root.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["overlay2", "vfs"]);
}

#[test]
fn two_priors_and_unknown_names_are_refused_in_dockers_words() {
    let root = data_root();
    for name in ["overlay2", "btrfs"] {
        fs::create_dir_all(root.path().join(name).join("something")).unwrap();
    }
    let error = select(root.path(), None, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let expected = format!(
        "{} contains several valid graphdrivers: overlay2, btrfs; cleanup or explicitly choose storage driver (-s <DRIVER>); \
         `skiffd storage migrate --to DRIVER` moves everything to one",
        root.path().display()
    );
    assert_eq!(error.to_string(), expected);
    for name in ["aufs", "devicemapper", "overlay"] {
        let error = select(root.path(), Some(name), &[]).unwrap_err().to_string();
        let expected =
            format!("[graphdriver] ERROR: the {name} storage-driver has been deprecated and removed; ");
        assert!(error.starts_with(&expected), "{error}");
    }
    let error = select(root.path(), Some("zfs"), &[]).unwrap_err().to_string();
    assert!(
        error.contains("the zfs storage driver is not part of this engine")
            && error.contains("overlay2, btrfs"),
        "{error}"
    );
    // A prior driver that is not there is an error too: its images would silently be gone.
    fs::remove_dir_all(root.path().join("overlay2")).unwrap();
    let error = select(root.path(), None, &[]).unwrap_err().to_string();
    assert!(error.contains("prior storage driver btrfs failed"), "{error}");
}

#[test]
fn options_are_checked_by_the_driver_they_are_given_to() {
    if !userns::powers() {
        return;
    }
    let root = data_root();
    for (driver, option, text) in [
        ("overlay2", "overlay2.size", "quotas"),
        (
            "overlay2",
            "btrfs.min_space",
            "overlay2: unknown option btrfs.min_space",
        ),
        ("vfs", "vfs.what", "unknown option vfs.what for vfs"),
        ("overlay2", "overlay.mountopt", "did you mean overlay2.mountopt?"),
        ("overlay2", "overley2.mountopt", "did you mean overlay2.mountopt?"),
    ] {
        let error = select(root.path(), Some(driver), &[(option, "1")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(text), "{error}");
    }
    assert!(
        select(
            root.path(),
            Some("overlay2"),
            &[("overlay2.override_kernel_check", "true")]
        )
        .is_ok()
    );
}

#[test]
fn a_failed_trial_falls_back_to_vfs_and_says_why() {
    if !userns::powers() {
        return;
    }
    // ramfs keeps no attributes: overlayfs mounts on it, but cannot mark a directory opaque.
    let root = data_root();
    let tmp = root.path().join("ramfs");
    fs::create_dir(&tmp).unwrap();
    rustix::mount::mount("none", &tmp, "ramfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let outcome = select(&tmp, None, &[]);
    let direct = select(&tmp, Some("overlay2"), &[]);
    let left: Vec<_> = fs::read_dir(&tmp)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    rustix::mount::unmount(&tmp, rustix::mount::UnmountFlags::DETACH).unwrap();
    let chosen = outcome.unwrap();
    assert_eq!(chosen.driver.name(), "vfs");
    assert!(
        chosen.reason.contains("overlay2:") && chosen.reason.contains("kernel"),
        "{}",
        chosen.reason
    );
    assert_eq!(direct.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(left, ["vfs"]);
}

/// A daemon without its driver could not remove what fills the disk.
#[test]
fn a_full_disk_does_not_take_a_prior_driver_away() {
    use skiff_graphdrivers::{Access, ActiveId, LayerId, PrepareOptions, SnapshotRef};
    if !userns::powers() {
        return;
    }
    for name in ["overlay2", "fuse-overlayfs", "vfs"] {
        let root = data_root();
        let disk = root.path().join("disk");
        fs::create_dir(&disk).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        let options = c"nr_inodes=128,size=8m,mode=755";
        rustix::mount::mount("none", &disk, "tmpfs", flags, Some(options)).unwrap();
        // The kernel's answer and not a test's: a tmpfs has users' attributes since Linux 6.6.
        let capable = xattr::set(&disk, "user.test", b"").is_ok() || name == "vfs";
        let fill = || {
            let paths = (0..128).map(|i| disk.join(format!("filler{i}")));
            paths
                .take_while(|path| fs::write(path, "").is_ok())
                .collect::<Vec<_>>()
        };
        if capable {
            let key = ActiveId::new("container").unwrap();
            let layer = LayerId::new(format!("sha256:{:0<64}", "5")).unwrap();
            let driver = select(&disk, Some(name), &[]).unwrap().driver;
            driver.prepare(&key, None, &PrepareOptions::default()).unwrap();
            drop(driver);
            let fillers = fill();
            assert!(fillers.len() < 128, "the disk is not full");

            // What was configured, and what was there.
            for asked in [Some(name), None] {
                let chosen = select(&disk, asked, &[]).unwrap();
                assert_eq!(chosen.driver.name(), name, "{asked:?}");
            }
            // Another driver has nothing here to be kept for.
            let other = if name == "overlay2" { "vfs" } else { "overlay2" };
            assert_eq!(
                select(&disk, Some(other), &[]).unwrap_err().kind(),
                ErrorKind::NoSpace
            );

            let driver = select(&disk, Some(name), &[]).unwrap().driver;
            driver.commit(&key, &layer).unwrap();
            for path in fillers {
                fs::remove_file(path).unwrap();
            }
            let layer = SnapshotRef::Layer(&layer);
            assert_eq!(driver.mounts(layer, Access::ReadOnly).unwrap().len(), 1);
            let _again = fill();
            driver.remove(layer).unwrap();
            driver.purge().unwrap();
            assert_eq!(driver.list().unwrap(), []);
        } else {
            println!("left to newer kernels: {name} on tmpfs");
        }
        rustix::mount::unmount(&disk, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
