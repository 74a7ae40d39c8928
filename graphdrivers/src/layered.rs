//! Layers that are only a difference, each in a directory of its own: what `overlay2` and `fuse-overlayfs` share. The two
//! differ in who puts the directories together and in how that is configured; the layout is one, so a layer written
//! under one mounts under the other.
//!
//! ```text
//!  <root>/<snapshot>/diff      what this layer changed; the upper directory of an active snapshot
//!  <root>/<snapshot>/work      the overlay's own, active snapshots only
//!  <root>/<snapshot>/merged    mount point, active snapshots only
//!  <root>/l/<26 characters>    → ../<layer>/diff, so that 128 of them fit into one page of mount options
//!  <root>/empty                bottom of mounts with one layer: overlayfs wants two
//! ```
//!
//! The short names are computed from the chain id, so they need no record and a missing one is made again.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use skiff_archive::{ApplyTarget, WhiteoutFormat};

use crate::error::{Error, ErrorKind, Result};
use crate::mounter;
use crate::snapshots::{Snapshots, archive_error, make_directory};
use crate::vfs::make_root;
use crate::{
    Access, ActiveId, CleanupReport, DiffSource, LayerId, PrepareOptions, SnapshotInfo, SnapshotKey,
    SnapshotRef, Usage,
};

const DIFF: &str = "diff";
const WORK: &str = "work";
const MERGED: &str = "merged";
const SHORT: &str = "l";
const EMPTY: &str = "empty";

/// The directories of one driver.
#[derive(Debug)]
pub(crate) struct Layered {
    snapshots: Snapshots,
    whiteouts: WhiteoutFormat,
    max_depth: usize,
}

/// What an overlay is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directories {
    /// Topmost first; at least one, at least two without an upper directory.
    pub(crate) lower: Vec<PathBuf>,
    /// Upper and work directory; `None` for a read-only mount.
    pub(crate) upper: Option<(PathBuf, PathBuf)>,
}

impl Layered {
    /// Opens the directory of a driver, or makes it.
    ///
    /// # Errors
    /// `Unsupported` when `root` is another engine's or another version's; `Io`.
    pub(crate) fn open(
        driver: &'static str,
        root: &Path,
        whiteouts: WhiteoutFormat,
        max_depth: usize,
    ) -> Result<Self> {
        let snapshots = Snapshots::open(driver, root)?;
        make_directory(&root.join(SHORT), 0o700)?;
        make_directory(&root.join(EMPTY), 0o755)?;
        let this = Self {
            snapshots,
            whiteouts,
            max_depth,
        };
        this.sweep_short_names()?;
        Ok(this)
    }

    fn diff(&self, snapshot: SnapshotRef<'_>) -> Result<PathBuf> {
        Ok(self.snapshots.path(snapshot)?.join(DIFF))
    }

    pub(crate) fn prepare(
        &self,
        key: &ActiveId,
        parent: Option<&LayerId>,
        options: &PrepareOptions,
    ) -> Result<()> {
        let reservation = self.snapshots.reserve(key, parent, Some(self.max_depth))?;
        let diff = reservation.stage().join(DIFF);
        make_root(&diff, options.root_owner)?;
        if let Some(parent) = parent {
            copy_root_metadata(&self.diff(SnapshotRef::Layer(parent))?, &diff)?;
        }
        for name in [WORK, MERGED] {
            let path = reservation.stage().join(name);
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .map_err(|error| Error::io(format!("mkdir {}", path.display()), error))?;
        }
        reservation.publish()
    }

    /// A layer is a difference whatever lies below it, so only the link to the parent is missing.
    pub(crate) fn stack(&self, key: &ActiveId, parent: &LayerId, root_in_layer: bool) -> Result<()> {
        self.snapshots
            .stack(key, parent, Some(self.max_depth), |snapshot, parent| {
                if root_in_layer {
                    return Ok(());
                }
                copy_root_metadata(&parent.join(DIFF), &snapshot.join(DIFF))
            })
    }

    pub(crate) fn commit(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        let path = self.snapshots.commit(key, layer, |_| Ok(()))?;
        self.settle_layer(layer, &path);
        Ok(())
    }

    /// The layer must not be part of a mount: the kernel does not expect a lower directory to change.
    pub(crate) fn replace(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        for active in self.snapshots.actives_above(layer) {
            refuse_mounted(&active)?;
        }
        let path = self.snapshots.replace(key, layer, |_| Ok(()))?;
        self.settle_layer(layer, &path);
        Ok(())
    }

    /// What a new layer needs and what it needs no more. It is a layer already, so nothing of this is an error: a missing
    /// short name is made again when it is needed.
    fn settle_layer(&self, layer: &LayerId, path: &Path) {
        if let Err(error) = self.short_path(layer) {
            tracing::warn!(%layer, %error, "cannot make a layer's short name");
        }
        // A layer is never mounted as upper directory again.
        for name in [WORK, MERGED] {
            if let Err(error) = skiff_archive::remove_tree(&path.join(name)) {
                tracing::warn!(%layer, %error, "cannot remove a layer's {name} directory");
            }
        }
    }

    pub(crate) fn remove(&self, snapshot: SnapshotRef<'_>) -> Result<()> {
        if let SnapshotRef::Active(_) = snapshot {
            // Moved away, the mount could not be found again.
            refuse_mounted(&self.snapshots.path(snapshot)?)?;
        }
        self.snapshots.remove(snapshot)?;
        match snapshot {
            SnapshotRef::Layer(layer) => remove_file(&self.short_link(layer)),
            SnapshotRef::Active(_) => Ok(()),
        }
    }

    pub(crate) fn stat(&self, snapshot: SnapshotRef<'_>) -> Result<SnapshotInfo> {
        self.snapshots.stat(snapshot)
    }

    pub(crate) fn list(&self) -> Vec<SnapshotInfo> {
        self.snapshots.list()
    }

    pub(crate) fn usage(&self, snapshot: SnapshotRef<'_>) -> Result<Usage> {
        Ok(skiff_archive::usage(&self.diff(snapshot)?)
            .map_err(archive_error)?
            .into())
    }

    /// What to put together to see the snapshot as a whole.
    ///
    /// # Errors
    /// `InvalidArgument` for a writable view of a layer; `NotFound`; `Io`.
    pub(crate) fn directories(&self, snapshot: SnapshotRef<'_>, access: Access) -> Result<Directories> {
        let directory = self.snapshots.path(snapshot)?;
        let mut lower = Vec::new();
        let upper = match (snapshot, access) {
            (SnapshotRef::Layer(id), Access::ReadWrite | Access::Volatile) => {
                return Err(Error::invalid(format!("layer {id} is immutable")));
            }
            (SnapshotRef::Layer(id), Access::ReadOnly) => {
                lower.push(self.short_path(id)?);
                None
            }
            (SnapshotRef::Active(_), Access::ReadOnly) => {
                lower.push(directory.join(DIFF));
                None
            }
            (SnapshotRef::Active(_), Access::ReadWrite | Access::Volatile) => {
                Some((directory.join(DIFF), directory.join(WORK)))
            }
        };
        for layer in self.snapshots.chain(snapshot)? {
            lower.push(self.short_path(&layer)?);
        }
        if lower.len() < 2 && (upper.is_none() || lower.is_empty()) {
            lower.push(self.snapshots.root().join(EMPTY));
        }
        Ok(Directories { lower, upper })
    }

    pub(crate) fn apply_target(&self, key: &ActiveId) -> Result<ApplyTarget> {
        Ok(ApplyTarget {
            directory: self.diff(SnapshotRef::Active(key))?,
            whiteouts: self.whiteouts,
        })
    }

    pub(crate) fn diff_source(&self, snapshot: SnapshotRef<'_>) -> Result<DiffSource> {
        Ok(DiffSource::Native {
            directory: self.diff(snapshot)?,
            whiteouts: self.whiteouts,
        })
    }

    pub(crate) fn cleanup(&self, live: &HashSet<SnapshotKey>) -> Result<CleanupReport> {
        let report = self.snapshots.cleanup(live)?;
        self.sweep_short_names()?;
        Ok(report)
    }

    pub(crate) fn purge(&self) -> Result<u64> {
        self.snapshots.purge()
    }

    pub(crate) fn sync(&self) -> Result<()> {
        crate::sync_file_system(self.snapshots.root())
    }

    /// Docker's rows of `GraphDriver.Data`. A layer has neither `WorkDir` nor a mount point of its own, but Docker names
    /// both for images, too, and scripts read them.
    pub(crate) fn inspect(&self, snapshot: SnapshotRef<'_>) -> Result<Vec<(String, String)>> {
        let directory = self.snapshots.path(snapshot)?;
        let chain = self.snapshots.chain(snapshot)?;
        let path = |path: PathBuf| path.display().to_string();
        let lower: Vec<String> = chain
            .iter()
            .map(|layer| path(self.snapshots.root().join(layer.hex()).join(DIFF)))
            .collect();
        let row = |name: &str, value: String| (name.to_owned(), value);
        let mut rows = Vec::new();
        if !lower.is_empty() {
            rows.push(row("LowerDir", lower.join(":")));
        }
        rows.push(row("MergedDir", path(directory.join(MERGED))));
        rows.push(row("UpperDir", path(directory.join(DIFF))));
        rows.push(row("WorkDir", path(directory.join(WORK))));
        Ok(rows)
    }

    pub(crate) fn mount_point(&self, key: &ActiveId) -> Result<PathBuf> {
        Ok(self.snapshots.path(SnapshotRef::Active(key))?.join(MERGED))
    }

    fn short_link(&self, layer: &LayerId) -> PathBuf {
        self.snapshots.root().join(SHORT).join(short_name(layer))
    }

    /// The short path of a layer's directory; made again if it is missing.
    fn short_path(&self, layer: &LayerId) -> Result<PathBuf> {
        let link = self.short_link(layer);
        let target = Path::new("..").join(layer.hex()).join(DIFF);
        match symlink(&target, &link) {
            Ok(()) => Ok(link),
            // A wrong link would mount another image's files: look, even if only a broken disk makes one.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::read_link(&link) {
                Ok(found) if found == target => Ok(link),
                Ok(found) => Err(Error::new(
                    ErrorKind::Io,
                    format!(
                        "{} points to {}, not to {}",
                        link.display(),
                        found.display(),
                        target.display()
                    ),
                )),
                Err(error) => Err(Error::io(format!("readlink {}", link.display()), error)),
            },
            Err(error) => Err(Error::io(format!("symlink {}", link.display()), error)),
        }
    }

    /// Removes short names of layers that are gone (killed between the two steps of a removal).
    fn sweep_short_names(&self) -> Result<()> {
        let directory = self.snapshots.root().join(SHORT);
        let failed = |error| Error::io(format!("read directory {}", directory.display()), error);
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if !path.exists() {
                remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// `InUse` when the active snapshot in this directory is mounted.
fn refuse_mounted(active: &Path) -> Result<()> {
    let merged = active.join(MERGED);
    match mounter::mounted(&merged)? {
        Some(_) => Err(Error::new(
            ErrorKind::InUse,
            format!("a snapshot is mounted on {}", merged.display()),
        )),
        None => Ok(()),
    }
}

/// The root of a mount shows the upper directory's metadata, so it must be as the parent's: owner, mode, and attributes
/// such as access lists. The overlay's own attributes say something about one directory only.
fn copy_root_metadata(from: &Path, to: &Path) -> Result<()> {
    let failed = |error| {
        Error::io(
            format!("copy metadata of {} to {}", from.display(), to.display()),
            error,
        )
    };
    let metadata = fs::symlink_metadata(from).map_err(failed)?;
    chown(to, Some(metadata.uid()), Some(metadata.gid())).map_err(failed)?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777)).map_err(failed)?;
    let names = match xattr::list(from) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
        other => other.map_err(failed)?,
    };
    for name in names {
        let text = name.to_string_lossy();
        // A security label is the kernel's to give.
        let own = ["user.overlay.", "trusted.overlay.", "security."];
        if own.iter().any(|prefix| text.starts_with(prefix)) {
            continue;
        }
        if let Some(value) = xattr::get(from, &name).map_err(failed)? {
            xattr::set(to, &name, &value).map_err(failed)?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// 26 characters of base 32: the first 130 bits of the chain id, beyond any chance of two layers sharing one.
fn short_name(layer: &LayerId) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bits: Vec<u8> = layer
        .hex()
        .bytes()
        .take(33)
        .map(|digit| {
            if digit.is_ascii_digit() {
                digit - b'0'
            } else {
                digit - b'a' + 10
            }
        })
        .flat_map(|nibble| (0..4).rev().map(move |bit| nibble >> bit & 1))
        .collect();
    bits.chunks_exact(5)
        .take(26)
        .map(|five| char::from(ALPHABET[five.iter().fold(0usize, |n, bit| n * 2 + usize::from(*bit))]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_short_and_depend_on_the_first_130_bits() {
        let layer = |hex: &str| LayerId::new(format!("sha256:{hex:0<64}")).unwrap();
        assert_eq!(short_name(&layer("0")), "A".repeat(26));
        assert_eq!(short_name(&layer(&"f".repeat(64))), "7".repeat(26));
        assert_eq!(short_name(&layer("1")), format!("C{}", "A".repeat(25)));
        let a = short_name(&layer(&format!("{}4", "0".repeat(32))));
        assert_eq!(a, format!("{}B", "A".repeat(25)));
    }
}
