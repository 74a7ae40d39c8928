//! Does overlayfs work here? Tried with a real mount in the data root, because no version number says it: the answer
//! depends on the kernel, its patches, the file system below, and the security modules.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::OverlayMount;
use crate::backing;
use crate::error::{Error, ErrorKind, Result};
use crate::mounter::{self, MountFailure};
use crate::snapshots::make_directory;

/// How it works.
#[derive(Debug)]
pub(super) struct Works {
    pub(super) userxattr: bool,
    pub(super) options: Vec<String>,
    pub(super) volatile: bool,
    pub(super) backing: String,
}

/// Name of the directory that is tried in, beside the layers; left-overs of a kill are removed by the next try.
const DIRECTORY: &str = ".probe-overlay2";

pub(super) fn probe(root: &Path) -> Result<Works> {
    // Beside and not inside: an unusable driver must not leave a directory that looks like a prior one.
    let parent = root.parent().unwrap_or(Path::new("/"));
    make_directory(parent, 0o710)?;
    let place = parent.join(DIRECTORY);
    discard(&place)?;
    let outcome = attempt(parent, &place);
    discard(&place)?;
    outcome
}

/// Removes the trial directory, also when it is still mounted.
fn discard(place: &Path) -> Result<()> {
    if place.exists() {
        mounter::detach(&place.join("merged"))?;
        skiff_archive::remove_tree(place).map_err(crate::snapshots::archive_error)?;
    }
    Ok(())
}

fn attempt(data_root: &Path, place: &Path) -> Result<Works> {
    let userxattr = skiff_sys::fsio::in_user_namespace();
    let options = fixed_options(userxattr);
    for name in ["lower/hidden", "lower2", "upper", "work", "merged"] {
        make_directory(&place.join(name), 0o755)?;
    }
    write(&place.join("lower/deleted"))?;
    write(&place.join("lower2/below"))?;
    write(&place.join("lower/hidden/file"))?;
    let mut overlay = OverlayMount {
        lower: vec![place.join("lower"), place.join("lower2")],
        upper: Some((place.join("upper"), place.join("work"))),
        userxattr,
        options: [&options[..], &["volatile".to_owned()]].concat(),
    };
    let backing = backing::name(data_root);
    let merged = place.join("merged");
    // Not only to know whether it works: unmounting without it would sync the whole file system below.
    let volatile = mounter::mount_overlay(&overlay, &merged).is_ok();
    if !volatile {
        overlay.options.clone_from(&options);
        mounter::mount_overlay(&overlay, &merged)
            .map_err(|failure| refusal(&failure, userxattr, &backing))?;
    }
    exercise(place, &merged)?;
    mounter::detach(&merged)?;
    let attribute = if userxattr {
        "user.overlay.opaque"
    } else {
        "trusted.overlay.opaque"
    };
    check(
        is_whiteout(&place.join("upper/deleted")),
        &backing,
        "a deletion leaves no whiteout",
    )?;
    let opaque = xattr::get(place.join("upper/hidden"), attribute).ok().flatten();
    check(
        opaque.as_deref() == Some(b"y"),
        &backing,
        "a replaced directory is not marked opaque",
    )?;
    Ok(Works {
        userxattr,
        options,
        volatile,
        backing,
    })
}

/// Reads and changes the mount in the ways containers do.
fn exercise(place: &Path, merged: &Path) -> Result<()> {
    // What a mount cannot do although it could be made (no attributes on ramfs, for one) is a reason to refuse it; a
    // full disk is not.
    let step = |what: &str, error: std::io::Error| match Error::io("overlay2: trial mount", error) {
        error if error.kind() == ErrorKind::NoSpace => error,
        error => {
            let text = format!(
                "overlay2: cannot {what} in a mount on {}, kernel {}",
                backing::name(place),
                kernel()
            );
            Error::new(ErrorKind::Unsupported, text).caused_by(error)
        }
    };
    fs::read(merged.join("below")).map_err(|e| step("read", e))?;
    fs::remove_file(merged.join("deleted")).map_err(|e| step("delete", e))?;
    fs::remove_file(merged.join("hidden/file")).map_err(|e| step("delete", e))?;
    fs::remove_dir(merged.join("hidden")).map_err(|e| step("rmdir", e))?;
    fs::create_dir(merged.join("hidden")).map_err(|e| step("mkdir", e))?;
    // Without file types in directory entries (XFS made with ftype=0) overlayfs shows whiteouts as files.
    let names: Vec<_> = fs::read_dir(merged)
        .map_err(|e| step("readdir", e))?
        .filter_map(|e| Some(e.ok()?.file_name()))
        .collect();
    if names.iter().any(|name| name == "deleted") {
        let text = "overlay2: the backing filesystem has no d_type support: deleted files stay visible. \
                    Reformat it with ftype=1 to enable it";
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok(())
}

/// Options that keep an upper directory a whole difference, as far as this kernel knows them.
fn fixed_options(userxattr: bool) -> Vec<String> {
    let mut options = Vec::new();
    let known = |name: &str| Path::new("/sys/module/overlay/parameters").join(name).exists();
    if known("index") {
        options.push("index=off".to_owned());
    }
    // With userxattr the kernel allows nothing else.
    if !userxattr {
        for name in ["redirect_dir", "metacopy"] {
            if known(name) {
                options.push(format!("{name}=off"));
            }
        }
    }
    options
}

fn write(path: &Path) -> Result<()> {
    fs::write(path, b"x").map_err(|error| Error::io(format!("write {}", path.display()), error))
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn check(holds: bool, backing: &str, what: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("overlay2: {what} on {backing}, kernel {}", kernel()),
    ))
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The sentence that says why not, with the evidence and the remedy.
fn refusal(failure: &MountFailure, userxattr: bool, backing: &str) -> Error {
    use rustix::io::Errno;
    let kernel = kernel();
    let place = if userxattr { " in a user namespace" } else { "" };
    let remedy = match failure.errno {
        Errno::PERM | Errno::ACCESS if userxattr && Path::new("/sys/fs/selinux/enforce").exists() => {
            "overlay is not supported for Rootless with SELinux before Linux 5.13".to_owned()
        }
        Errno::PERM | Errno::ACCESS if userxattr => "needs 5.11".to_owned(),
        Errno::PERM | Errno::ACCESS => "needs CAP_SYS_ADMIN".to_owned(),
        Errno::NODEV => "the kernel has no overlay file system (try `modprobe overlay` as root)".to_owned(),
        Errno::INVAL
            if matches!(
                backing,
                "overlayfs" | "nfs" | "fuse" | "ecryptfs" | "zfs" | "aufs"
            ) =>
        {
            format!("overlayfs cannot write to {backing}; choose a data root on ext4, XFS, btrfs or tmpfs")
        }
        Errno::INVAL if userxattr => "userxattr needs 5.11".to_owned(),
        _ => format!("backing file system {backing}"),
    };
    let log = if failure.log.is_empty() {
        String::new()
    } else {
        format!(" ({})", failure.log)
    };
    let text = format!(
        "overlay2: {} {}{log}{place}, kernel {kernel}; {remedy}",
        failure.call,
        failure.symbol()
    );
    Error::new(ErrorKind::Unsupported, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn refusals_carry_evidence_and_remedy() {
        let failure = MountFailure {
            call: "mount(2)",
            errno: Errno::PERM,
            log: String::new(),
        };
        let text = refusal(&failure, true, "extfs").to_string();
        assert!(
            text.starts_with("overlay2: mount(2) EPERM in a user namespace, kernel "),
            "{text}"
        );
        assert!(text.ends_with("5.11") || text.contains("SELinux"), "{text}");
        let failure = MountFailure {
            call: "mount(2)",
            errno: Errno::INVAL,
            log: "upper fs".to_owned(),
        };
        let text = refusal(&failure, false, "nfs").to_string();
        assert!(
            text.contains("EINVAL (upper fs), kernel") && text.contains("cannot write to nfs"),
            "{text}"
        );
    }
}
