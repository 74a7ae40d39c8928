//! `overlay2`: layers as directories (`layered.rs` draws them), put together by the kernel's overlayfs.
//!
//! In a user namespace overlayfs keeps its state in `user.overlay.*` (`userxattr`, Linux 5.11), as root in
//! `trusted.overlay.*`. `redirect_dir` and `metacopy` stay off: with them an upper directory would not be a whole
//! difference.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use skiff_archive::{ApplyTarget, WhiteoutFormat};

use crate::error::Result;
use crate::layered::Layered;
use crate::select::Evidence;
use crate::trial::unless_full;
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

/// The driver.
#[derive(Debug)]
pub struct Overlay2 {
    layered: Layered,
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

/// Says how overlayfs works below `data_root`; leaves nothing behind.
pub(crate) fn probe(data_root: &Path) -> Result<Evidence> {
    Ok(probe::probe(data_root, &[])?.evidence())
}

impl Overlay2 {
    /// Tries a real mount below `root`, then opens or makes the driver's directory.
    ///
    /// # Errors
    /// `InvalidArgument` for an option; `Unsupported` with the evidence when overlayfs does not work here, or when
    /// `root` is another engine's; `Io`.
    pub fn open(root: &Path, options: &[(&str, &str)]) -> Result<Self> {
        let options = Options::parse(options)?;
        let data_root = root.parent().unwrap_or(Path::new("/"));
        let works = unless_full(
            probe::probe(data_root, &options.mount_options),
            NAME,
            root,
            || probe::untried(data_root),
        )?;
        let whiteouts = if works.userxattr {
            WhiteoutFormat::OverlayUser
        } else {
            WhiteoutFormat::OverlayTrusted
        };
        Ok(Self {
            layered: Layered::open(NAME, root, whiteouts, MAX_DEPTH)?,
            userxattr: works.userxattr,
            fixed: works.options,
            extra: options.mount_options,
            volatile: works.volatile,
            backing: works.backing,
        })
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
            parallel_apply: true,
        }
    }

    fn status(&self) -> Vec<(String, String)> {
        let row = |name: &str, value: String| (name.to_owned(), value);
        // redirect_dir, which would spoil the native diff, is off in every mount, whatever the kernel's default is.
        vec![
            row("Backing Filesystem", self.backing.clone()),
            row("Supports d_type", true.to_string()),
            row("Using metacopy", false.to_string()),
            row("Native Overlay Diff", true.to_string()),
            row("userxattr", self.userxattr.to_string()),
        ]
    }

    fn prepare(&self, key: &ActiveId, parent: Option<&LayerId>, options: &PrepareOptions) -> Result<()> {
        self.layered.prepare(key, parent, options)
    }

    fn stack(&self, key: &ActiveId, parent: &LayerId, root_in_layer: bool) -> Result<()> {
        self.layered.stack(key, parent, root_in_layer)
    }

    fn commit(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        self.layered.commit(key, layer)
    }

    fn replace(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        self.layered.replace(key, layer)
    }

    fn remove(&self, snapshot: SnapshotRef<'_>) -> Result<()> {
        self.layered.remove(snapshot)
    }

    fn stat(&self, snapshot: SnapshotRef<'_>) -> Result<SnapshotInfo> {
        self.layered.stat(snapshot)
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>> {
        Ok(self.layered.list())
    }

    fn usage(&self, snapshot: SnapshotRef<'_>) -> Result<Usage> {
        self.layered.usage(snapshot)
    }

    fn mounts(&self, snapshot: SnapshotRef<'_>, access: Access) -> Result<Vec<Mount>> {
        let directories = self.layered.directories(snapshot, access)?;
        let mut options = self.fixed.clone();
        if directories.upper.is_some() {
            options.extend_from_slice(&self.extra);
            if access == Access::Volatile && self.volatile && !options.iter().any(|o| o == "volatile") {
                options.push("volatile".to_owned());
            }
        }
        Ok(vec![Mount::Overlay(OverlayMount {
            lower: directories.lower,
            upper: directories.upper,
            userxattr: self.userxattr,
            options,
        })])
    }

    fn apply_target(&self, key: &ActiveId) -> Result<ApplyTarget> {
        self.layered.apply_target(key)
    }

    fn diff_source(&self, snapshot: SnapshotRef<'_>) -> Result<DiffSource> {
        self.layered.diff_source(snapshot)
    }

    fn cleanup(&self, live: &HashSet<SnapshotKey>) -> Result<CleanupReport> {
        self.layered.cleanup(live)
    }

    fn purge(&self) -> Result<u64> {
        self.layered.purge()
    }

    fn sync(&self) -> Result<()> {
        self.layered.sync()
    }

    fn inspect(&self, snapshot: SnapshotRef<'_>) -> Result<Vec<(String, String)>> {
        self.layered.inspect(snapshot)
    }

    fn mount_point(&self, key: &ActiveId) -> Result<Option<PathBuf>> {
        self.layered.mount_point(key).map(Some)
    }
}
