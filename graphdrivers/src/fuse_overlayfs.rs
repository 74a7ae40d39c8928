//! `fuse-overlayfs`: layers as directories (`layered.rs` draws them), put together by a file system in user space. For
//! kernels and places where the kernel's overlayfs cannot be mounted without root (Linux 5.8 to 5.10, and some
//! security modules; from 4.18 on it mounts, but whiteouts can be made in a user namespace since 5.8 only).
//!
//! The program that serves a mount is the one in this binary, or another one with the same options
//! (`--storage-opt fuse-overlayfs.mount_program=PATH`). Whichever it is, the layers are in the kernel's format with
//! `user.overlay.*`, so that they mount under overlay2 in a user namespace as well.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use skiff_archive::{ApplyTarget, WhiteoutFormat};

use crate::error::Result;
use crate::layered::Layered;
use crate::mounter;
use crate::select::Evidence;
use crate::trial::unless_full;
use crate::{
    Access, ActiveId, Capabilities, CleanupReport, DiffSource, FuseMount, GraphDriver, LayerId, Mount,
    PrepareOptions, SnapshotInfo, SnapshotKey, SnapshotRef, Usage,
};

mod options;
mod probe;

use options::Options;

/// Name of the driver.
pub(crate) const NAME: &str = "fuse-overlayfs";

/// Most layers in a chain: Docker's limit.
const MAX_DEPTH: usize = 128;

/// The driver.
#[derive(Debug)]
pub struct FuseOverlayfs {
    layered: Layered,
    /// The program that serves mounts; `None` is our own.
    program: Option<PathBuf>,
    /// Options of every mount, from `fuse-overlayfs.mountopt`.
    extra: Vec<String>,
    /// Whether the program has `volatile`.
    volatile: bool,
    backing: String,
}

/// Says how overlays in user space work below `data_root`; leaves nothing behind.
pub(crate) fn probe(data_root: &Path) -> Result<Evidence> {
    Ok(probe::probe(data_root, &Options::default())?.evidence())
}

impl FuseOverlayfs {
    /// Tries a real mount below `root`, then opens or makes the driver's directory.
    ///
    /// # Errors
    /// `InvalidArgument` for an option; `Unsupported` with the evidence when FUSE does not work here, or when `root` is
    /// another engine's; `Io`.
    pub fn open(root: &Path, options: &[(&str, &str)]) -> Result<Self> {
        let options = Options::parse(options)?;
        let data_root = root.parent().unwrap_or(Path::new("/"));
        let works = unless_full(probe::probe(data_root, &options), NAME, root, || {
            probe::untried(data_root, &options)
        })?;
        Ok(Self {
            layered: Layered::open(NAME, root, WhiteoutFormat::FuseOverlayfs, MAX_DEPTH)?,
            program: options.program,
            extra: options.mount_options,
            volatile: works.volatile,
            backing: works.backing,
        })
    }

    /// What programs have written but the kernel still keeps for the server must be in the upper directory before
    /// that is read.
    fn flush(&self, snapshot: SnapshotRef<'_>) -> Result<()> {
        let SnapshotRef::Active(key) = snapshot else {
            return Ok(());
        };
        let merged = self.layered.mount_point(key)?;
        if mounter::mounted(&merged)?.is_some() {
            // A server that died has nothing to write.
            if let Err(error) = crate::sync_file_system(&merged) {
                tracing::debug!(%error, "a mount does not write what it holds");
            }
        }
        Ok(())
    }
}

impl GraphDriver for FuseOverlayfs {
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
        let program = match &self.program {
            Some(path) => path.display().to_string(),
            None => "built in".to_owned(),
        };
        // Docker's driver has no rows; these two are what one asks first when something is slow.
        vec![
            ("Backing Filesystem".to_owned(), self.backing.clone()),
            ("Mount Program".to_owned(), program),
        ]
    }

    fn prepare(&self, key: &ActiveId, parent: Option<&LayerId>, options: &PrepareOptions) -> Result<()> {
        self.layered.prepare(key, parent, options)
    }

    fn stack(&self, key: &ActiveId, parent: &LayerId, root_in_layer: bool) -> Result<()> {
        self.layered.stack(key, parent, root_in_layer)
    }

    fn commit(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        self.flush(SnapshotRef::Active(key))?;
        self.layered.commit(key, layer)
    }

    fn replace(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        self.flush(SnapshotRef::Active(key))?;
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
        self.flush(snapshot)?;
        self.layered.usage(snapshot)
    }

    fn mounts(&self, snapshot: SnapshotRef<'_>, access: Access) -> Result<Vec<Mount>> {
        let directories = self.layered.directories(snapshot, access)?;
        let mut options = self.extra.clone();
        if access == Access::Volatile && self.volatile && !options.iter().any(|o| o == "volatile") {
            options.push("volatile".to_owned());
        }
        Ok(vec![Mount::Fuse(FuseMount {
            lower: directories.lower,
            upper: directories.upper,
            program: self.program.clone(),
            options,
        })])
    }

    fn apply_target(&self, key: &ActiveId) -> Result<ApplyTarget> {
        self.layered.apply_target(key)
    }

    fn diff_source(&self, snapshot: SnapshotRef<'_>) -> Result<DiffSource> {
        self.flush(snapshot)?;
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
