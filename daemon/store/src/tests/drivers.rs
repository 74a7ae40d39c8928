//! Two storage drivers, for what happens between them.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use skiff_graphdrivers::{
    Access, ActiveId, ApplyTarget, Capabilities, CleanupReport, DiffSource, GraphDriver, LayerId, Mount,
    PrepareOptions, SnapshotInfo, SnapshotKey, SnapshotRef, Usage, Vfs,
};

/// vfs.
pub(crate) const OLD: &str = "vfs";
/// The same as another driver.
pub(crate) const NEW: &str = "other";

/// vfs under another name: what matters here is that there are two drivers. Conversion between formats is the black-box
/// tests' subject.
#[derive(Debug)]
struct Other(Vfs);

impl GraphDriver for Other {
    fn name(&self) -> &'static str {
        NEW
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_depth: Some(3),
            ..self.0.capabilities()
        }
    }
    fn status(&self) -> Vec<(String, String)> {
        self.0.status()
    }
    fn prepare(
        &self,
        key: &ActiveId,
        parent: Option<&LayerId>,
        options: &PrepareOptions,
    ) -> skiff_graphdrivers::Result<()> {
        self.0.prepare(key, parent, options)
    }
    fn commit(&self, key: &ActiveId, layer: &LayerId) -> skiff_graphdrivers::Result<()> {
        self.0.commit(key, layer)
    }
    fn replace(&self, key: &ActiveId, layer: &LayerId) -> skiff_graphdrivers::Result<()> {
        self.0.replace(key, layer)
    }
    fn remove(&self, snapshot: SnapshotRef<'_>) -> skiff_graphdrivers::Result<()> {
        self.0.remove(snapshot)
    }
    fn stat(&self, snapshot: SnapshotRef<'_>) -> skiff_graphdrivers::Result<SnapshotInfo> {
        self.0.stat(snapshot)
    }
    fn list(&self) -> skiff_graphdrivers::Result<Vec<SnapshotInfo>> {
        self.0.list()
    }
    fn usage(&self, snapshot: SnapshotRef<'_>) -> skiff_graphdrivers::Result<Usage> {
        self.0.usage(snapshot)
    }
    fn mounts(&self, snapshot: SnapshotRef<'_>, access: Access) -> skiff_graphdrivers::Result<Vec<Mount>> {
        self.0.mounts(snapshot, access)
    }
    fn apply_target(&self, key: &ActiveId) -> skiff_graphdrivers::Result<ApplyTarget> {
        self.0.apply_target(key)
    }
    fn diff_source(&self, snapshot: SnapshotRef<'_>) -> skiff_graphdrivers::Result<DiffSource> {
        self.0.diff_source(snapshot)
    }
    fn cleanup(&self, live: &HashSet<SnapshotKey>) -> skiff_graphdrivers::Result<CleanupReport> {
        self.0.cleanup(live)
    }
    fn purge(&self) -> skiff_graphdrivers::Result<u64> {
        self.0.purge()
    }
}

/// Opens a driver with its files below `data_root`.
pub(crate) fn open_driver(data_root: &Path, name: &str) -> Result<Arc<dyn GraphDriver>, String> {
    let vfs = Vfs::open(&data_root.join(name), &[]).map_err(|error| error.to_string())?;
    match name {
        OLD => Ok(Arc::new(vfs)),
        NEW => Ok(Arc::new(Other(vfs))),
        _ => Err(format!("no driver {name}")),
    }
}
