//! What a container does to its root file system, done to a trial mount: reading, deleting, replacing a directory. What
//! a mount cannot do although it could be made is a reason to refuse the driver.
//!
//! Called by the probes of `overlay2` and `fuse-overlayfs`.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::backing::{self, kernel};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshots::make_directory;
use crate::trial::MOUNT_POINT;

/// An overlay to try out: two lower directories with something in them, upper and work directory, a mount point.
#[derive(Debug)]
pub(crate) struct Exercise<'a> {
    driver: &'static str,
    place: &'a Path,
}

impl<'a> Exercise<'a> {
    /// Makes the directories in `place`, which is empty.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn lay_out(driver: &'static str, place: &'a Path) -> Result<Self> {
        for name in ["lower/hidden", "lower2", "upper", "work", MOUNT_POINT] {
            make_directory(&place.join(name), 0o755)?;
        }
        for name in ["lower/deleted", "lower2/below", "lower/hidden/file"] {
            let path = place.join(name);
            fs::write(&path, b"x").map_err(|error| Error::io(format!("write {}", path.display()), error))?;
        }
        Ok(Self { driver, place })
    }

    pub(crate) fn lower(&self) -> Vec<PathBuf> {
        vec![self.place.join("lower"), self.place.join("lower2")]
    }

    pub(crate) fn upper(&self) -> (PathBuf, PathBuf) {
        (self.place.join("upper"), self.place.join("work"))
    }

    pub(crate) fn mount_point(&self) -> PathBuf {
        self.place.join(MOUNT_POINT)
    }

    /// Reads and changes the mount.
    ///
    /// # Errors
    /// `Unsupported`, with what cannot be done; `NoSpace`: a full disk says nothing about the driver.
    pub(crate) fn run(&self) -> Result<()> {
        let merged = self.mount_point();
        fs::read(merged.join("below")).map_err(|e| self.cannot("read", e))?;
        fs::remove_file(merged.join("deleted")).map_err(|e| self.cannot("delete", e))?;
        fs::remove_file(merged.join("hidden/file")).map_err(|e| self.cannot("delete", e))?;
        fs::remove_dir(merged.join("hidden")).map_err(|e| self.cannot("rmdir", e))?;
        fs::create_dir(merged.join("hidden")).map_err(|e| self.cannot("mkdir", e))?;
        // Without file types in directory entries (XFS made with ftype=0) overlayfs shows whiteouts as files.
        let names: Vec<_> = fs::read_dir(&merged)
            .map_err(|e| self.cannot("readdir", e))?
            .filter_map(|e| Some(e.ok()?.file_name()))
            .collect();
        if names.iter().any(|name| name == "deleted") {
            let text = format!(
                "{}: the backing filesystem has no d_type support: deleted files stay visible. Reformat it with \
                 ftype=1 to enable it",
                self.driver
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(())
    }

    /// Looks at what [`Exercise::run`] left in the upper directory; after the mount is gone. An opaque directory has the
    /// attribute, or else the file.
    ///
    /// # Errors
    /// `Unsupported`.
    pub(crate) fn check_upper(&self, opaque_attribute: &str, opaque_file: Option<&str>) -> Result<()> {
        let upper = self.place.join("upper");
        let whiteout = fs::symlink_metadata(upper.join("deleted"))
            .is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0);
        self.check(whiteout, "a deletion leaves no whiteout")?;
        let hidden = upper.join("hidden");
        let opaque = xattr::get(&hidden, opaque_attribute).ok().flatten();
        self.check(
            opaque.as_deref() == Some(b"y") || opaque_file.is_some_and(|name| hidden.join(name).exists()),
            "a replaced directory is not marked opaque",
        )
    }

    fn check(&self, holds: bool, what: &str) -> Result<()> {
        if holds {
            return Ok(());
        }
        let text = format!(
            "{}: {what} on {}, kernel {}",
            self.driver,
            backing::name(self.place),
            kernel()
        );
        Err(Error::new(ErrorKind::Unsupported, text))
    }

    /// What a mount cannot do although it could be made (no attributes on ramfs, for one) is a reason to refuse it; a
    /// full disk is not.
    fn cannot(&self, what: &str, error: io::Error) -> Error {
        match Error::io(format!("{}: trial mount", self.driver), error) {
            error if error.kind() == ErrorKind::NoSpace => error,
            error => {
                let text = format!(
                    "{}: cannot {what} in a mount on {}, kernel {}",
                    self.driver,
                    backing::name(self.place),
                    kernel()
                );
                Error::new(ErrorKind::Unsupported, text).caused_by(error)
            }
        }
    }
}
