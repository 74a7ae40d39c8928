//! `overlay2`: layers as directories, put together by the kernel's overlayfs.
//!
//! ```text
//!  overlay2/<snapshot>/diff      what this layer changed; the upper directory of an active snapshot
//!  overlay2/<snapshot>/work      overlayfs's own, active snapshots only
//!  overlay2/<snapshot>/merged    mount point, active snapshots only
//!  overlay2/l/<26 characters>    → ../<layer>/diff, so that 128 of them fit into one page of mount options
//!  overlay2/empty                bottom of every mount: overlayfs wants two layers, a first one has only itself
//! ```
//!
//! The short names are computed from the chain id, so they need no record and a missing one is made again. In a user
//! namespace overlayfs keeps its state in `user.overlay.*` (`userxattr`, Linux 5.11), as root in `trusted.overlay.*`.
//! `redirect_dir` and `metacopy` stay off: with them an upper directory would not be a whole difference.

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
    Access, ActiveId, Capabilities, CleanupReport, DiffSource, GraphDriver, LayerId, Mount, OverlayMount,
    PrepareOptions, SnapshotInfo, SnapshotKey, SnapshotRef, Usage,
};

mod options;
mod probe;

use options::Options;

/// Name of the driver.
pub(crate) const NAME: &str = "overlay2";

/// Most layers in a chain: Docker's limit, and what fits into a page of mount options on old kernels.
pub(crate) const MAX_DEPTH: usize = 128;

const DIFF: &str = "diff";
const WORK: &str = "work";
const MERGED: &str = "merged";
const SHORT: &str = "l";
const EMPTY: &str = "empty";

/// The driver.
#[derive(Debug)]
pub struct Overlay2 {
    snapshots: Snapshots,
    /// Whether overlayfs keeps its state in `user.overlay.*`.
    userxattr: bool,
    /// Options of every mount.
    fixed: Vec<String>,
    /// Options of writable mounts, from `overlay2.mountopt`.
    extra: Vec<String>,
    /// Whether the kernel has `volatile` (Linux 5.10).
    volatile: bool,
    backing: String,
}

impl Overlay2 {
    /// Tries a real mount below `root`, then opens or makes the driver's directory.
    ///
    /// # Errors
    /// `InvalidArgument` for an option; `Unsupported` with the evidence when overlayfs does not work here, or when
    /// `root` is another engine's; `Io`.
    pub fn open(root: &Path, options: &[(&str, &str)]) -> Result<Self> {
        let options = Options::parse(options)?;
        let works = probe::probe(root)?;
        let snapshots = Snapshots::open(NAME, root)?;
        make_directory(&root.join(SHORT), 0o700)?;
        make_directory(&root.join(EMPTY), 0o755)?;
        let this = Self {
            snapshots,
            userxattr: works.userxattr,
            fixed: works.options,
            extra: options.mount_options,
            volatile: works.volatile,
            backing: works.backing,
        };
        this.sweep_short_names()?;
        Ok(this)
    }

    fn whiteouts(&self) -> WhiteoutFormat {
        if self.userxattr {
            WhiteoutFormat::OverlayUser
        } else {
            WhiteoutFormat::OverlayTrusted
        }
    }

    fn diff(&self, snapshot: SnapshotRef<'_>) -> Result<PathBuf> {
        Ok(self.snapshots.path(snapshot)?.join(DIFF))
    }

    /// The short path of a layer's directory; made again if it is missing.
    fn short_path(&self, layer: &LayerId) -> Result<PathBuf> {
        let link = self.snapshots.root().join(SHORT).join(short_name(layer));
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

impl GraphDriver for Overlay2 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            native_diff: true,
            max_depth: Some(MAX_DEPTH),
            direct_path: false,
            parallel_apply: false,
        }
    }

    fn status(&self) -> Vec<(String, String)> {
        let row = |name: &str, value: String| (name.to_owned(), value);
        vec![
            row("Backing Filesystem", self.backing.clone()),
            row("Supports d_type", true.to_string()),
            row("Using metacopy", false.to_string()),
            row("Native Overlay Diff", true.to_string()),
            row("userxattr", self.userxattr.to_string()),
        ]
    }

    fn prepare(&self, key: &ActiveId, parent: Option<&LayerId>, options: &PrepareOptions) -> Result<()> {
        let reservation = self.snapshots.reserve(key, parent, Some(MAX_DEPTH))?;
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

    fn commit(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        let path = self.snapshots.commit(key, layer, |_| Ok(()))?;
        self.short_path(layer)?;
        // A layer is never mounted as upper directory again.
        for name in [WORK, MERGED] {
            if let Err(error) = skiff_archive::remove_tree(&path.join(name)) {
                tracing::warn!(%layer, %error, "cannot remove a layer's {name} directory");
            }
        }
        Ok(())
    }

    fn remove(&self, snapshot: SnapshotRef<'_>) -> Result<()> {
        if let SnapshotRef::Active(key) = snapshot {
            let merged = self.snapshots.path(snapshot)?.join(MERGED);
            // Moved away, the mount could not be found again.
            if mounter::mounted(&merged)?.is_some() {
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!("snapshot {key} is mounted on {}", merged.display()),
                ));
            }
        }
        self.snapshots.remove(snapshot)?;
        match snapshot {
            SnapshotRef::Layer(layer) => {
                remove_file(&self.snapshots.root().join(SHORT).join(short_name(layer)))
            }
            SnapshotRef::Active(_) => Ok(()),
        }
    }

    fn stat(&self, snapshot: SnapshotRef<'_>) -> Result<SnapshotInfo> {
        self.snapshots.stat(snapshot)
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>> {
        Ok(self.snapshots.list())
    }

    fn usage(&self, snapshot: SnapshotRef<'_>) -> Result<Usage> {
        Ok(skiff_archive::usage(&self.diff(snapshot)?)
            .map_err(archive_error)?
            .into())
    }

    fn mounts(&self, snapshot: SnapshotRef<'_>, access: Access) -> Result<Vec<Mount>> {
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
        let mut options = self.fixed.clone();
        if upper.is_some() {
            options.extend_from_slice(&self.extra);
            if access == Access::Volatile && self.volatile && !options.iter().any(|o| o == "volatile") {
                options.push("volatile".to_owned());
            }
        }
        Ok(vec![Mount::Overlay(OverlayMount {
            lower,
            upper,
            userxattr: self.userxattr,
            options,
        })])
    }

    fn apply_target(&self, key: &ActiveId) -> Result<ApplyTarget> {
        Ok(ApplyTarget {
            directory: self.diff(SnapshotRef::Active(key))?,
            whiteouts: self.whiteouts(),
        })
    }

    fn diff_source(&self, snapshot: SnapshotRef<'_>) -> Result<DiffSource> {
        Ok(DiffSource::Native {
            directory: self.diff(snapshot)?,
            whiteouts: self.whiteouts(),
        })
    }

    fn cleanup(&self, live: &HashSet<SnapshotKey>) -> Result<CleanupReport> {
        let report = self.snapshots.cleanup(live)?;
        self.sweep_short_names()?;
        Ok(report)
    }

    fn purge(&self) -> Result<u64> {
        self.snapshots.purge()
    }

    fn sync(&self) -> Result<()> {
        crate::sync_file_system(self.snapshots.root())
    }

    fn inspect(&self, key: &ActiveId) -> Result<Vec<(String, String)>> {
        let directory = self.snapshots.path(SnapshotRef::Active(key))?;
        let chain = self.snapshots.chain(SnapshotRef::Active(key))?;
        let lower: Vec<String> = chain
            .iter()
            .map(|l| {
                self.snapshots
                    .root()
                    .join(l.hex())
                    .join(DIFF)
                    .display()
                    .to_string()
            })
            .collect();
        let row = |name: &str, value: String| (name.to_owned(), value);
        Ok(vec![
            row("LowerDir", lower.join(":")),
            row("MergedDir", directory.join(MERGED).display().to_string()),
            row("UpperDir", directory.join(DIFF).display().to_string()),
            row("WorkDir", directory.join(WORK).display().to_string()),
        ])
    }

    fn mount_point(&self, key: &ActiveId) -> Result<Option<PathBuf>> {
        Ok(Some(self.snapshots.path(SnapshotRef::Active(key))?.join(MERGED)))
    }
}

/// The root of a mount shows the upper directory's metadata, so it must begin as the parent's.
fn copy_root_metadata(from: &Path, to: &Path) -> Result<()> {
    let failed = |error| {
        Error::io(
            format!("copy metadata of {} to {}", from.display(), to.display()),
            error,
        )
    };
    let metadata = fs::symlink_metadata(from).map_err(failed)?;
    chown(to, Some(metadata.uid()), Some(metadata.gid())).map_err(failed)?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777)).map_err(failed)
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
