//! Removing subvolumes, and those nested in them, with and without the privilege to do it at once.
//!
//! What is removed lies in the trash: no name in it is used by anybody, but what it holds was made by a container, so
//! nothing is followed and no depth is trusted. A nested subvolume is moved up beside the one it was nested in (a rename,
//! whatever its size), so that no recursion is needed, and a kill in between leaves work for the next time only.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RenameFlags, ResolveFlags, mkdirat, openat, openat2, renameat_with};
use rustix::io::Errno;
use skiff_sys::btrfs as ioctl;

use super::{is_subvolume, not_permitted};
use crate::error::{Error, Result};
use crate::snapshots::{archive_error, read_dir, unique_name};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

const PRIVATE: Mode = Mode::RWXU;

/// Removes `place` and everything in it, subvolumes directly in it first. Gives the bytes of what was deleted file by file.
///
/// # Errors
/// `Io`; what is left is removed by the next call.
pub(crate) fn remove_tree(place: &Path) -> Result<u64> {
    let mut bytes = 0;
    if place.is_dir() {
        loop {
            // Each round may have brought nested ones up.
            let mut found = false;
            for path in read_dir(place)? {
                if let (true, Some(name)) = (is_subvolume(&path)?, path.file_name()) {
                    found = true;
                    bytes += remove(place, name)?;
                }
            }
            if !found {
                break;
            }
        }
    }
    Ok(bytes + skiff_archive::remove_tree(place).map_err(archive_error)?)
}

/// As [`remove_tree`], for a directory with such places up to `depth` levels below it.
///
/// # Errors
/// As [`remove_tree`].
pub(crate) fn remove_places(directory: &Path, depth: u32) -> Result<u64> {
    let is_directory = |path: &Path| path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    if !is_directory(directory) {
        return skiff_archive::remove_tree(directory).map_err(archive_error);
    }
    let mut bytes = 0;
    if depth > 0 {
        for path in read_dir(directory)? {
            if is_directory(&path) && !is_subvolume(&path)? {
                bytes += remove_places(&path, depth - 1)?;
            }
        }
    }
    Ok(bytes + remove_tree(directory)?)
}

/// Removes one subvolume; those nested in it are then beside it.
fn remove(place: &Path, name: &OsStr) -> Result<u64> {
    let path = place.join(name);
    let failed = |operation: &str, error: io::Error| {
        Error::io(format!("{operation} subvolume {}", path.display()), error)
    };
    let directory = File::open(place).map_err(|error| failed("open the directory of", error))?;
    let subvolume = open_child(&directory, name).map_err(|error| failed("open", error))?;
    // Nothing can be renamed or removed in a read-only one; it may only be deleted as a whole, and that by root.
    ioctl::set_read_only(subvolume.as_fd(), false).map_err(|error| failed("make writable", error))?;
    // When they cannot be told (too deep, an old kernel), deleting file by file finds them, too.
    if let Err(error) = bring_up(&subvolume, &directory) {
        tracing::debug!(path = %path.display(), %error, "cannot move nested subvolumes");
    }
    drop(subvolume);
    match ioctl::destroy_subvolume(directory.as_fd(), name) {
        Ok(()) => Ok(0),
        Err(error) => {
            if !not_permitted(&error) {
                tracing::debug!(path = %path.display(), %error, "deleting a subvolume file by file");
            }
            skiff_archive::remove_tree(&path).map_err(archive_error)
        }
    }
}

/// Moves the subvolumes nested directly in one to `place`, under new names.
fn bring_up(subvolume: &OwnedFd, place: &File) -> io::Result<()> {
    loop {
        let children = ioctl::children(subvolume.as_fd())?;
        if children.is_empty() {
            return Ok(());
        }
        for child in children {
            let parent = open_inside(subvolume, &child.directory)?;
            let nested = open_child(&parent, &child.name)?;
            // Its entry for the directory above changes.
            ioctl::set_read_only(nested.as_fd(), false)?;
            renameat_with(
                &parent,
                child.name.as_os_str(),
                place,
                unique_name().as_str(),
                RenameFlags::NOREPLACE,
            )?;
        }
    }
}

/// Turns the subvolumes nested in `name`, a subvolume in `snapshot`, into ordinary directories. Nobody else writes to it.
///
/// Killed in between: an active snapshot that nobody knows any more.
///
/// # Errors
/// `Io`, `NoSpace`.
pub(super) fn flatten(snapshot: &Path, name: &OsStr) -> Result<()> {
    let failed = |error: io::Error| {
        let path = snapshot.join(name);
        Error::io(
            format!(
                "turn the subvolumes nested in {} into directories",
                path.display()
            ),
            error,
        )
    };
    let outside = File::open(snapshot).map_err(failed)?;
    let subvolume = open_child(&outside, name).map_err(failed)?;
    let aside = unique_name();
    loop {
        let children = match ioctl::children(subvolume.as_fd()) {
            // Before 4.18 they cannot be found without walking over everything.
            Err(error) if error.raw_os_error() == Some(Errno::NOTTY.raw_os_error()) => return Ok(()),
            other => other.map_err(failed)?,
        };
        if children.is_empty() {
            return Ok(());
        }
        mkdirat(&outside, aside.as_str(), PRIVATE).map_err(|e| failed(e.into()))?;
        let bin = open_child(&outside, OsStr::new(&aside)).map_err(failed)?;
        for child in children {
            replace_by_copy(&subvolume, &child, &bin).map_err(failed)?;
        }
        drop(bin);
        remove_tree(&snapshot.join(&aside))?;
    }
}

/// Puts a copy, with shared blocks, in a nested subvolume's place, and the subvolume itself into `bin`.
fn replace_by_copy(subvolume: &OwnedFd, child: &ioctl::Child, bin: &OwnedFd) -> io::Result<()> {
    let parent = open_inside(subvolume, &child.directory)?;
    let nested = open_child(&parent, &child.name)?;
    let name = unique_name();
    let temporary = format!(".{name}");
    mkdirat(&parent, temporary.as_str(), PRIVATE)?;
    let copy = open_child(&parent, OsStr::new(&temporary))?;
    // By descriptor: the names on the way were chosen by a container.
    let path = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    // Subvolumes nested in this one look like directories here, and become such.
    skiff_archive::copy_tree(&path(&nested), &path(&copy)).map_err(io::Error::other)?;
    ioctl::set_read_only(nested.as_fd(), false)?;
    let flags = RenameFlags::NOREPLACE;
    renameat_with(&parent, child.name.as_os_str(), bin, name.as_str(), flags)?;
    renameat_with(
        &parent,
        temporary.as_str(),
        &parent,
        child.name.as_os_str(),
        flags,
    )?;
    Ok(())
}

fn open_child(directory: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(directory, name, DIRECTORY, Mode::empty())?)
}

/// Opens a directory inside a subvolume; nothing on the way is followed. An empty path is the subvolume's root.
fn open_inside(subvolume: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(openat2(subvolume, path, DIRECTORY, Mode::empty(), resolve)?)
}
