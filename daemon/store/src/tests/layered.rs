//! A driver for tests whose layers are differences in directories of their own, which can be put on a parent late. It
//! needs no mount and no power.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use skiff_archive::{ApplyTarget, WhiteoutFormat};
use skiff_graphdrivers::{
    Access, ActiveId, Capabilities, CleanupReport, DiffSource, Error, ErrorKind, GraphDriver, LayerId, Mount,
    OverlayMount, PrepareOptions, Result, SnapshotInfo, SnapshotKey, SnapshotRef, Usage,
};

/// `<root>/{active,layer}/<name>/{diff/,parent}`.
#[derive(Debug)]
pub(super) struct Layered(PathBuf);

impl Layered {
    pub(super) fn open(root: &Path) -> Self {
        for kind in ["active", "layer"] {
            fs::create_dir_all(root.join(kind)).unwrap();
        }
        Self(root.to_owned())
    }

    fn directory(&self, snapshot: SnapshotRef<'_>) -> PathBuf {
        match snapshot {
            SnapshotRef::Active(id) => self.0.join("active").join(id.as_str()),
            SnapshotRef::Layer(id) => self.0.join("layer").join(id.hex()),
        }
    }

    fn existing(&self, snapshot: SnapshotRef<'_>) -> Result<PathBuf> {
        let directory = self.directory(snapshot);
        let missing = || Error::new(ErrorKind::NotFound, format!("{snapshot:?} does not exist"));
        directory.exists().then_some(directory).ok_or_else(missing)
    }

    pub(super) fn diff(&self, layer: &LayerId) -> PathBuf {
        self.directory(SnapshotRef::Layer(layer)).join("diff")
    }

    fn parent(directory: &Path) -> Option<LayerId> {
        let text = fs::read_to_string(directory.join("parent")).ok()?;
        Some(LayerId::new(text).unwrap())
    }
}

impl GraphDriver for Layered {
    fn name(&self) -> &'static str {
        "layered"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            native_diff: true,
            max_depth: Some(20),
            direct_path: false,
            parallel_apply: true,
        }
    }

    fn status(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn prepare(&self, key: &ActiveId, parent: Option<&LayerId>, _options: &PrepareOptions) -> Result<()> {
        let directory = self.directory(SnapshotRef::Active(key));
        if directory.exists() {
            return Err(Error::new(ErrorKind::AlreadyExists, "taken"));
        }
        fs::create_dir_all(directory.join("diff")).unwrap();
        match parent {
            Some(parent) => self.stack(key, parent, false),
            None => Ok(()),
        }
    }

    fn stack(&self, key: &ActiveId, parent: &LayerId, _root_in_layer: bool) -> Result<()> {
        let directory = self.existing(SnapshotRef::Active(key))?;
        self.existing(SnapshotRef::Layer(parent))?;
        assert_eq!(Self::parent(&directory), None, "stacked twice");
        fs::write(directory.join(".parent"), parent.as_str()).unwrap();
        fs::rename(directory.join(".parent"), directory.join("parent")).unwrap();
        Ok(())
    }

    fn commit(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        let from = self.existing(SnapshotRef::Active(key))?;
        let to = self.directory(SnapshotRef::Layer(layer));
        if to.exists() {
            return Err(Error::new(ErrorKind::AlreadyExists, "taken"));
        }
        fs::rename(from, to).unwrap();
        Ok(())
    }

    fn replace(&self, key: &ActiveId, layer: &LayerId) -> Result<()> {
        let from = self.existing(SnapshotRef::Active(key))?;
        let to = self.directory(SnapshotRef::Layer(layer));
        fs::remove_dir_all(self.existing(SnapshotRef::Layer(layer))?).unwrap();
        fs::rename(from, to).unwrap();
        Ok(())
    }

    fn remove(&self, snapshot: SnapshotRef<'_>) -> Result<()> {
        let directory = self.existing(snapshot)?;
        if let SnapshotRef::Layer(id) = snapshot
            && self.list()?.iter().any(|other| other.parent.as_ref() == Some(id))
        {
            return Err(Error::new(ErrorKind::InUse, "has children"));
        }
        fs::remove_dir_all(directory).unwrap();
        Ok(())
    }

    fn stat(&self, snapshot: SnapshotRef<'_>) -> Result<SnapshotInfo> {
        let directory = self.existing(snapshot)?;
        Ok(SnapshotInfo {
            key: snapshot.to_key(),
            parent: Self::parent(&directory),
        })
    }

    fn list(&self) -> Result<Vec<SnapshotInfo>> {
        let mut found = Vec::new();
        for kind in ["active", "layer"] {
            for entry in fs::read_dir(self.0.join(kind)).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                let key = match kind {
                    "active" => SnapshotKey::Active(ActiveId::new(name)?),
                    _ => SnapshotKey::Layer(LayerId::new(format!("sha256:{name}"))?),
                };
                found.push(SnapshotInfo {
                    key,
                    parent: Self::parent(&entry.path()),
                });
            }
        }
        Ok(found)
    }

    fn usage(&self, snapshot: SnapshotRef<'_>) -> Result<Usage> {
        self.existing(snapshot).map(|_| Usage::default())
    }

    fn mounts(&self, snapshot: SnapshotRef<'_>, _access: Access) -> Result<Vec<Mount>> {
        let directory = self.existing(snapshot)?;
        let mut lower = Vec::new();
        let mut next = Self::parent(&directory);
        while let Some(layer) = next {
            lower.push(self.diff(&layer));
            next = Self::parent(&self.directory(SnapshotRef::Layer(&layer)));
        }
        Ok(vec![Mount::Overlay(OverlayMount {
            lower,
            upper: Some((directory.join("diff"), directory.join("work"))),
            userxattr: true,
            options: Vec::new(),
        })])
    }

    fn apply_target(&self, key: &ActiveId) -> Result<ApplyTarget> {
        Ok(ApplyTarget {
            directory: self.existing(SnapshotRef::Active(key))?.join("diff"),
            whiteouts: WhiteoutFormat::OverlayUser,
        })
    }

    fn diff_source(&self, snapshot: SnapshotRef<'_>) -> Result<DiffSource> {
        Ok(DiffSource::Native {
            directory: self.existing(snapshot)?.join("diff"),
            whiteouts: WhiteoutFormat::OverlayUser,
        })
    }

    fn cleanup(&self, _live: &HashSet<SnapshotKey>) -> Result<CleanupReport> {
        Ok(CleanupReport::default())
    }
}
