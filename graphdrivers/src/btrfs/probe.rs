//! Does btrfs work here? Subvolumes are made, snapshot and removed in the data root, because what an unprivileged process
//! may do depends on the kernel and on a mount option that mountinfo shows and nothing else tells.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use skiff_sys::btrfs as ioctl;

use super::{NAME, is_subvolume, not_permitted, refused};
use crate::backing;
use crate::error::{Error, Result};
use crate::select::Evidence;
use crate::trial::{Trial, existing};

/// How subvolumes can be removed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    /// By one ioctl, whatever their size.
    AtOnce,
    /// As directories: everything in them first.
    FileByFile,
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtOnce => "at once",
            Self::FileByFile => "file by file (at once with the mount option user_subvol_rm_allowed)",
        })
    }
}

/// How it works.
#[derive(Debug)]
pub(super) struct Works {
    pub(super) removal: Removal,
    mount_point: String,
}

impl Works {
    pub(super) fn evidence(&self) -> Evidence {
        let notes = match self.removal {
            Removal::AtOnce => Vec::new(),
            Removal::FileByFile => vec![format!(
                "removing layers takes as long as they are big; {}",
                remedy(&self.mount_point)
            )],
        };
        Evidence {
            driver: NAME,
            finding: format!(
                "subvolumes can be made, snapshot and removed on the btrfs on {}, kernel {}",
                self.mount_point,
                backing::kernel()
            ),
            notes,
        }
    }
}

fn remedy(mount_point: &str) -> String {
    format!("the host's root can change that: mount -o remount,user_subvol_rm_allowed {mount_point}")
}

pub(super) fn probe(data_root: &Path) -> Result<Works> {
    let kind = backing::name(existing(data_root));
    if kind != NAME {
        let text = format!(
            "the data root {} is on {kind}, and needs to be on btrfs",
            data_root.display()
        );
        return Err(refused(text));
    }
    let mount_point = backing::mount_point(existing(data_root)).display().to_string();
    let trial = Trial::begin(data_root, NAME)?;
    let removal = attempt(trial.path(), &mount_point)?;
    Ok(Works { removal, mount_point })
}

/// What to go on with where a full disk leaves no room for a trial.
pub(super) fn untried(data_root: &Path) -> Works {
    Works {
        removal: Removal::FileByFile,
        mount_point: backing::mount_point(existing(data_root)).display().to_string(),
    }
}

fn attempt(place: &Path, mount_point: &str) -> Result<Removal> {
    let place_of = if skiff_sys::fsio::in_user_namespace() {
        " in a user namespace"
    } else {
        ""
    };
    let failed = |what: &str, error: std::io::Error| match Error::io(format!("btrfs: trial: {what}"), error) {
        error if error.kind() == crate::ErrorKind::NoSpace => error,
        error => refused(format!(
            "{what} fails{place_of} on {mount_point}, kernel {}",
            backing::kernel()
        ))
        .caused_by(error),
    };
    let directory = File::open(place).map_err(|e| failed("open(2)", e))?;
    let (original, copy) = (OsStr::new("original"), OsStr::new("copy"));
    ioctl::create_subvolume(directory.as_fd(), original).map_err(|e| failed("BTRFS_IOC_SUBVOL_CREATE", e))?;
    fs::write(place.join("original/file"), "x").map_err(|e| failed("write(2)", e))?;
    let source = File::open(place.join("original")).map_err(|e| failed("open(2)", e))?;
    ioctl::snapshot(source.as_fd(), directory.as_fd(), copy, true)
        .map_err(|e| failed("BTRFS_IOC_SNAP_CREATE", e))?;
    let made = File::open(place.join("copy")).map_err(|e| failed("open(2)", e))?;
    ioctl::set_read_only(made.as_fd(), false).map_err(|e| failed("BTRFS_IOC_SUBVOL_SETFLAGS", e))?;
    drop(made);
    match ioctl::destroy_subvolume(directory.as_fd(), copy) {
        Ok(()) => return Ok(Removal::AtOnce),
        Err(error) if not_permitted(&error) => {}
        Err(error) => return Err(failed("BTRFS_IOC_SNAP_DESTROY", error)),
    }
    let by_hand = fs::remove_file(place.join("copy/file")).and_then(|()| fs::remove_dir(place.join("copy")));
    match by_hand {
        Ok(()) if !is_subvolume(&place.join("copy"))? => Ok(Removal::FileByFile),
        Ok(()) => Err(refused(String::from("rmdir(2) of a subvolume does nothing"))),
        Err(error) => Err(refused(format!(
            "BTRFS_IOC_SNAP_DESTROY and rmdir(2) of a subvolume fail{place_of}, kernel {}; needs 4.18, or the mount \
             option user_subvol_rm_allowed: {}",
            backing::kernel(),
            remedy(mount_point)
        ))
        .caused_by(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_names_the_command() {
        let works = |removal| Works {
            removal,
            mount_point: "/data".to_owned(),
        };
        assert!(works(Removal::AtOnce).evidence().notes.is_empty());
        let evidence = works(Removal::FileByFile).evidence();
        assert!(
            evidence.notes[0].ends_with("mount -o remount,user_subvol_rm_allowed /data"),
            "{evidence:?}"
        );
    }
}
