//! The book-keeping that all drivers share: which snapshots there are, on which parent, and how they come and go.
//!
//! ```text
//!  <root>/format                 "skiff NAME 1": ours, and in which version
//!  <root>/<64 hex digits>/       a committed layer, named by its chain id
//!  <root>/active-<key>/          an active snapshot
//!         └ parent               symbolic link to ../<64 hex digits>; absent without parent
//!  <root>/staging/<n>/           being made; whatever is here when a daemon starts is rubbish
//!  <root>/trash/<n>/             removed; freed by `cleanup` or `purge`
//! ```
//!
//! Every step is one rename: staging → active → layer, and anything → trash. A kill at any instant leaves the state
//! before or after it. The parent is a link and not a file with text, because a link's target is journalled together
//! with its name: after a power failure the rename is never there without it, and no fsync is needed for that.
//!
//! One process at a time has a root open (the daemon's lock file); the index in memory is the truth while it runs.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::error::{Error, ErrorKind, Result};
use crate::{ActiveId, CleanupReport, LayerId, SnapshotInfo, SnapshotKey, SnapshotRef};

const STAGING: &str = "staging";
const TRASH: &str = "trash";
const FORMAT: &str = "format";
const PARENT: &str = "parent";
const ACTIVE_PREFIX: &str = "active-";

/// The snapshots of one driver.
#[derive(Debug)]
pub(crate) struct Snapshots {
    driver: &'static str,
    root: PathBuf,
    index: Mutex<Index>,
    /// Held while the trash is emptied: two of them would trip over each other.
    purging: Mutex<()>,
    /// Removes what lies in the trash; gives the bytes, as far as known.
    discard: Discard,
}

/// Removes a directory and everything in it.
pub(crate) type Discard = fn(&Path) -> Result<u64>;

type Index = HashMap<SnapshotKey, Node>;

#[derive(Debug, Clone)]
struct Node {
    parent: Option<LayerId>,
    /// Layers in the chain, this one included if it is a layer.
    depth: usize,
    children: usize,
    /// False while the snapshot is being made.
    ready: bool,
}

/// A snapshot that is being made. Dropping it takes everything back.
#[derive(Debug)]
pub(crate) struct Reservation<'a> {
    snapshots: &'a Snapshots,
    key: SnapshotKey,
    stage: PathBuf,
    published: bool,
}

impl Snapshots {
    /// Opens the directory of a driver, or makes it.
    pub(crate) fn open(driver: &'static str, root: &Path) -> Result<Self> {
        Self::open_with(driver, root, |path| {
            skiff_archive::remove_tree(path).map_err(archive_error)
        })
    }

    /// The same for a driver whose snapshots hold something that must be removed in another way.
    pub(crate) fn open_with(driver: &'static str, root: &Path, discard: Discard) -> Result<Self> {
        make_directory(root, 0o710)?;
        check_format(driver, root)?;
        for name in [STAGING, TRASH] {
            make_directory(&root.join(name), 0o700)?;
        }
        let this = Self {
            driver,
            root: root.to_owned(),
            index: Mutex::new(Index::new()),
            purging: Mutex::new(()),
            discard,
        };
        this.clear_staging()?;
        *this.index() = this.load()?;
        Ok(this)
    }

    /// The driver's directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clear_staging(&self) -> Result<()> {
        for entry in read_dir(&self.root.join(STAGING))? {
            self.to_trash(&entry)?;
        }
        Ok(())
    }

    /// Reads what is on disk.
    fn load(&self) -> Result<Index> {
        let mut index = Index::new();
        for path in read_dir(&self.root)? {
            let Some(key) = path.file_name().and_then(|name| name.to_str()).and_then(key_of) else {
                continue;
            };
            let parent = read_parent(&path)?;
            index.insert(
                key,
                Node {
                    parent,
                    depth: 0,
                    children: 0,
                    ready: true,
                },
            );
        }
        let keys: Vec<SnapshotKey> = index.keys().cloned().collect();
        for key in keys {
            let depth = chain_length(&index, &key);
            if let Some(node) = index.get_mut(&key) {
                node.depth = depth;
            }
            let parent = index[&key].parent.clone();
            if let Some(parent) = parent {
                match index.get_mut(&SnapshotKey::Layer(parent.clone())) {
                    Some(node) => node.children += 1,
                    None => {
                        tracing::warn!(driver = self.driver, snapshot = ?key, %parent, "parent layer is missing");
                    }
                }
            }
        }
        Ok(index)
    }

    /// Takes a key and makes an empty staging directory for it.
    pub(crate) fn reserve(
        &self,
        key: &ActiveId,
        parent: Option<&LayerId>,
        max_depth: Option<usize>,
    ) -> Result<Reservation<'_>> {
        let snapshot = SnapshotKey::Active(key.clone());
        {
            let mut index = self.index();
            if index.contains_key(&snapshot) {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    format!("snapshot {key} exists"),
                ));
            }
            let depth = self.check_parent(&index, parent, max_depth)?;
            adopt(&mut index, parent, 1);
            let node = Node {
                parent: parent.cloned(),
                depth,
                children: 0,
                ready: false,
            };
            index.insert(snapshot.clone(), node);
        }
        // From here on the guard takes the key back when something fails.
        let mut reservation = Reservation {
            snapshots: self,
            key: snapshot,
            stage: PathBuf::new(),
            published: false,
        };
        reservation.stage = self.fresh_directory(STAGING)?;
        if let Some(parent) = parent {
            link_parent(&reservation.stage, parent)?;
        }
        Ok(reservation)
    }

    /// Depth of an active snapshot on `parent`: the length of the chain below it.
    fn check_parent(
        &self,
        index: &Index,
        parent: Option<&LayerId>,
        max_depth: Option<usize>,
    ) -> Result<usize> {
        let Some(parent) = parent else { return Ok(0) };
        let depth = match index.get(&SnapshotKey::Layer(parent.clone())) {
            Some(node) => node.depth,
            None => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("layer {parent} is not committed"),
                ));
            }
        };
        match max_depth {
            Some(max) if depth > max => {
                let text = format!(
                    "max depth exceeded: {} mounts at most {max} layers, this would be {depth}",
                    self.driver
                );
                Err(Error::new(ErrorKind::TooDeep, text))
            }
            _ => Ok(depth),
        }
    }

    /// Gives an active snapshot without parent the parent `parent`. `before` runs on the directories of both, right
    /// before the one step that counts: the making of the link.
    pub(crate) fn stack(
        &self,
        key: &ActiveId,
        parent: &LayerId,
        max_depth: Option<usize>,
        before: impl FnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<()> {
        let mut index = self.index();
        let snapshot = SnapshotKey::Active(key.clone());
        if let Some(found) = &ready(&index, SnapshotRef::Active(key))?.parent {
            return Err(Error::invalid(format!("snapshot {key} lies on layer {found}")));
        }
        let depth = self.check_parent(&index, Some(parent), max_depth)?;
        let path = self.path_of(&snapshot);
        before(&path, &self.path_of(&SnapshotKey::Layer(parent.clone())))?;
        link_parent(&path, parent)?;
        adopt(&mut index, Some(parent), 1);
        if let Some(node) = index.get_mut(&snapshot) {
            node.parent = Some(parent.clone());
            node.depth = depth;
        }
        Ok(())
    }

    /// Makes an active snapshot a layer. `before` runs on its directory right before the rename.
    pub(crate) fn commit(
        &self,
        key: &ActiveId,
        layer: &LayerId,
        before: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let mut index = self.index();
        let from = SnapshotKey::Active(key.clone());
        let to = SnapshotKey::Layer(layer.clone());
        let mut node = ready(&index, SnapshotRef::Active(key))?.clone();
        if index.contains_key(&to) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("layer {layer} exists"),
            ));
        }
        let (old, new) = (self.path_of(&from), self.path_of(&to));
        before(&old)?;
        rename(&old, &new)?;
        node.depth += 1;
        index.remove(&from);
        index.insert(to, node);
        Ok(new)
    }

    /// Makes an active snapshot a layer in the place of another with the same parent, which goes to the trash. `before` runs
    /// on the snapshot's directory right before the exchange.
    pub(crate) fn replace(
        &self,
        key: &ActiveId,
        layer: &LayerId,
        before: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let mut index = self.index();
        let from = SnapshotKey::Active(key.clone());
        let to = SnapshotKey::Layer(layer.clone());
        let node = ready(&index, SnapshotRef::Active(key))?.clone();
        if node.parent != ready(&index, SnapshotRef::Layer(layer))?.parent {
            return Err(Error::invalid(format!(
                "snapshot {key} and layer {layer} lie on different layers"
            )));
        }
        let (old, new) = (self.path_of(&from), self.path_of(&to));
        before(&old)?;
        renameat_with(CWD, &old, CWD, &new, RenameFlags::EXCHANGE).map_err(|errno| {
            Error::io(
                format!("exchange {} with {}", old.display(), new.display()),
                errno,
            )
        })?;
        // A kill from here on leaves an active snapshot that nobody owns.
        match self.to_trash(&old) {
            Ok(()) => {
                index.remove(&from);
                disown(&mut index, node.parent.as_ref());
            }
            Err(error) => tracing::warn!(%layer, %error, "cannot remove what a layer was replaced for"),
        }
        Ok(new)
    }

    /// The active snapshots that stand on a layer, directly or on others above it.
    pub(crate) fn actives_above(&self, layer: &LayerId) -> Vec<PathBuf> {
        let index = self.index();
        let stands_on = |key: &SnapshotKey| {
            let mut next = index.get(key).and_then(|node| node.parent.clone());
            while let Some(below) = next {
                if below == *layer {
                    return true;
                }
                next = index
                    .get(&SnapshotKey::Layer(below))
                    .and_then(|node| node.parent.clone());
            }
            false
        };
        let actives = index.keys().filter(|key| matches!(key, SnapshotKey::Active(_)));
        actives
            .filter(|key| stands_on(key))
            .map(|key| self.path_of(key))
            .collect()
    }

    /// Moves a snapshot to the trash.
    pub(crate) fn remove(&self, snapshot: SnapshotRef<'_>) -> Result<()> {
        let mut index = self.index();
        let node = ready(&index, snapshot)?.clone();
        if node.children > 0 {
            let text = format!("{} has {} children", describe(snapshot), node.children);
            return Err(Error::new(ErrorKind::InUse, text));
        }
        let key = snapshot.to_key();
        self.to_trash(&self.path_of(&key))?;
        index.remove(&key);
        disown(&mut index, node.parent.as_ref());
        Ok(())
    }

    /// The directory of a snapshot.
    pub(crate) fn path(&self, snapshot: SnapshotRef<'_>) -> Result<PathBuf> {
        ready(&self.index(), snapshot)?;
        Ok(self.path_of(&snapshot.to_key()))
    }

    /// The layers below a snapshot, nearest first.
    pub(crate) fn chain(&self, snapshot: SnapshotRef<'_>) -> Result<Vec<LayerId>> {
        let index = self.index();
        let mut node = ready(&index, snapshot)?;
        let mut chain = Vec::new();
        while let Some(parent) = &node.parent {
            node = ready(&index, SnapshotRef::Layer(parent))?;
            chain.push(parent.clone());
        }
        Ok(chain)
    }

    pub(crate) fn stat(&self, snapshot: SnapshotRef<'_>) -> Result<SnapshotInfo> {
        let parent = ready(&self.index(), snapshot)?.parent.clone();
        Ok(SnapshotInfo {
            key: snapshot.to_key(),
            parent,
        })
    }

    pub(crate) fn list(&self) -> Vec<SnapshotInfo> {
        let index = self.index();
        let ready = index.iter().filter(|(_, node)| node.ready);
        ready
            .map(|(key, node)| SnapshotInfo {
                key: key.clone(),
                parent: node.parent.clone(),
            })
            .collect()
    }

    /// Removes what is not needed and empties the trash.
    pub(crate) fn cleanup(&self, live: &HashSet<SnapshotKey>) -> Result<CleanupReport> {
        let mut removed = Vec::new();
        for key in self.unneeded(live) {
            match self.remove(borrow(&key)) {
                Ok(()) => removed.push(key),
                // Someone else removed it, or built on it, meanwhile.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InUse) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(CleanupReport {
            removed,
            freed: self.purge()?,
        })
    }

    /// Snapshots that are neither live nor below a live one, children before parents.
    fn unneeded(&self, live: &HashSet<SnapshotKey>) -> Vec<SnapshotKey> {
        let index = self.index();
        let mut needed: HashSet<&SnapshotKey> = HashSet::new();
        let parents: HashMap<&LayerId, &SnapshotKey> = index
            .keys()
            .filter_map(|key| match key {
                SnapshotKey::Layer(id) => Some((id, key)),
                SnapshotKey::Active(_) => None,
            })
            .collect();
        for (key, node) in &*index {
            // What is being made is nobody's orphan.
            let mut next = (live.contains(key) || !node.ready).then_some(key);
            while let Some(key) = next.filter(|key| needed.insert(key)) {
                next = index[key]
                    .parent
                    .as_ref()
                    .and_then(|parent| parents.get(parent).copied());
            }
        }
        let mut rest: Vec<(usize, SnapshotKey)> = index
            .iter()
            .filter(|(key, _)| !needed.contains(key))
            .map(|(key, node)| {
                (
                    node.depth + usize::from(matches!(key, SnapshotKey::Active(_))),
                    key.clone(),
                )
            })
            .collect();
        rest.sort_unstable_by(|a, b| b.cmp(a));
        rest.into_iter().map(|(_, key)| key).collect()
    }

    /// Frees the trash; gives the bytes. What cannot be freed is logged and tried again the next time.
    pub(crate) fn purge(&self) -> Result<u64> {
        let _one = self.purging.lock().unwrap_or_else(PoisonError::into_inner);
        let mut freed = 0;
        for path in read_dir(&self.root.join(TRASH))? {
            match (self.discard)(&path) {
                Ok(bytes) => freed += bytes,
                // A mount inside that nobody took down must not keep the rest from being freed.
                Err(error) => tracing::warn!(path = %path.display(), %error, "cannot empty the trash"),
            }
        }
        Ok(freed)
    }

    /// Moves a file or directory to the trash.
    pub(crate) fn to_trash(&self, path: &Path) -> Result<()> {
        loop {
            match rename(path, &self.root.join(TRASH).join(unique_name())) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                other => return other,
            }
        }
    }

    /// Makes a new empty directory below `place`.
    fn fresh_directory(&self, place: &str) -> Result<PathBuf> {
        loop {
            let path = self.root.join(place).join(unique_name());
            match fs::DirBuilder::new().mode(0o710).create(&path) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(format!("mkdir {}", path.display()), error)),
            }
        }
    }

    fn path_of(&self, key: &SnapshotKey) -> PathBuf {
        match key {
            SnapshotKey::Layer(id) => self.root.join(id.hex()),
            SnapshotKey::Active(id) => self.root.join(format!("{ACTIVE_PREFIX}{id}")),
        }
    }
}

impl Reservation<'_> {
    /// Where to build the snapshot.
    pub(crate) fn stage(&self) -> &Path {
        &self.stage
    }

    /// Makes the snapshot visible.
    pub(crate) fn publish(mut self) -> Result<()> {
        let mut index = self.snapshots.index();
        rename(&self.stage, &self.snapshots.path_of(&self.key))?;
        if let Some(node) = index.get_mut(&self.key) {
            node.ready = true;
        }
        self.published = true;
        Ok(())
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        let mut index = self.snapshots.index();
        if let Some(node) = index.remove(&self.key) {
            disown(&mut index, node.parent.as_ref());
        }
        drop(index);
        if !self.stage.as_os_str().is_empty()
            && let Err(error) = self.snapshots.to_trash(&self.stage)
        {
            // The next start finds it in the staging directory.
            tracing::warn!(%error, "cannot take back a half-made snapshot");
        }
    }
}

/// The library's errors of the archive engine in the drivers' kinds.
pub(crate) fn archive_error(error: skiff_archive::Error) -> Error {
    let kind = match error.kind() {
        skiff_archive::ErrorKind::NoSpace => ErrorKind::NoSpace,
        skiff_archive::ErrorKind::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Error::new(kind, "storage").caused_by(error)
}

fn ready<'i>(index: &'i Index, snapshot: SnapshotRef<'_>) -> Result<&'i Node> {
    index
        .get(&snapshot.to_key())
        .filter(|node| node.ready)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{} does not exist", describe(snapshot)),
            )
        })
}

fn describe(snapshot: SnapshotRef<'_>) -> String {
    match snapshot {
        SnapshotRef::Active(key) => format!("snapshot {key}"),
        SnapshotRef::Layer(id) => format!("layer {id}"),
    }
}

fn borrow(key: &SnapshotKey) -> SnapshotRef<'_> {
    match key {
        SnapshotKey::Active(id) => SnapshotRef::Active(id),
        SnapshotKey::Layer(id) => SnapshotRef::Layer(id),
    }
}

fn adopt(index: &mut Index, parent: Option<&LayerId>, by: usize) {
    if let Some(node) = parent.and_then(|parent| index.get_mut(&SnapshotKey::Layer(parent.clone()))) {
        node.children += by;
    }
}

fn disown(index: &mut Index, parent: Option<&LayerId>) {
    if let Some(node) = parent.and_then(|parent| index.get_mut(&SnapshotKey::Layer(parent.clone()))) {
        node.children = node.children.saturating_sub(1);
    }
}

/// Layers in the chain of `key`. Damage (a cycle) ends the count.
fn chain_length(index: &Index, key: &SnapshotKey) -> usize {
    let mut length = usize::from(matches!(key, SnapshotKey::Layer(_)));
    let mut next = index.get(key).and_then(|node| node.parent.clone());
    while let Some(parent) = next {
        length += 1;
        if length > index.len() + 1 {
            break;
        }
        next = index
            .get(&SnapshotKey::Layer(parent))
            .and_then(|node| node.parent.clone());
    }
    length
}

fn key_of(name: &str) -> Option<SnapshotKey> {
    match name.strip_prefix(ACTIVE_PREFIX) {
        Some(key) => ActiveId::new(key).ok().map(SnapshotKey::Active),
        None => LayerId::new(format!("sha256:{name}"))
            .ok()
            .map(SnapshotKey::Layer),
    }
}

fn link_parent(snapshot: &Path, parent: &LayerId) -> Result<()> {
    let link = snapshot.join(PARENT);
    symlink(Path::new("..").join(parent.hex()), &link)
        .map_err(|error| Error::io(format!("symlink {}", link.display()), error))
}

fn read_parent(snapshot: &Path) -> Result<Option<LayerId>> {
    let link = snapshot.join(PARENT);
    let damaged = |target: &Path| {
        let text = format!(
            "{} points to {}, which is no layer",
            link.display(),
            target.display()
        );
        Error::new(ErrorKind::Io, text)
    };
    match fs::read_link(&link) {
        Ok(target) => match target
            .strip_prefix("..")
            .ok()
            .and_then(Path::to_str)
            .and_then(key_of)
        {
            Some(SnapshotKey::Layer(id)) => Ok(Some(id)),
            _ => Err(damaged(&target)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("readlink {}", link.display()), error)),
    }
}

/// What the file `format` says in a directory of ours.
fn format_of(driver: &str) -> String {
    format!("skiff {driver} 1\n")
}

/// Whether this driver has worked in this directory before.
pub(crate) fn is_ours(driver: &str, root: &Path) -> bool {
    fs::read_to_string(root.join(FORMAT)).is_ok_and(|text| text == format_of(driver))
}

/// Refuses directories that another program keeps its layers in: a clean-up would destroy them.
fn check_format(driver: &str, root: &Path) -> Result<()> {
    let path = root.join(FORMAT);
    let ours = format_of(driver);
    match fs::read_to_string(&path) {
        Ok(text) if text == ours => Ok(()),
        Ok(text) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} says {:?}: made by another version",
                path.display(),
                text.trim_end()
            ),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let temporary = root.join(".format.new");
            let foreign = read_dir(root)?.into_iter().any(|entry| entry != temporary);
            if foreign {
                let text = format!(
                    "{} belongs to another container engine (there is no {FORMAT} file of ours in it); \
                     choose another data root with --data-root, or move it away",
                    root.display()
                );
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            write_durably(&temporary, ours.as_bytes())
                .and_then(|()| fs::rename(&temporary, &path))
                .map_err(|error| Error::io(format!("write {}", path.display()), error))
        }
        Err(error) => Err(Error::io(format!("read {}", path.display()), error)),
    }
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a directory and its parents if they are missing.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| Error::io(format!("mkdir {}", path.display()), error))
}

pub(crate) fn read_dir(path: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io(format!("read directory {}", path.display()), error);
    fs::read_dir(path)
        .map_err(failed)?
        .map(|entry| entry.map(|e| e.path()).map_err(failed))
        .collect()
}

/// Renames without ever replacing anything.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    let outcome = match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system knows the flag (NFS, some FUSE). Nobody else writes here.
        Err(rustix::io::Errno::INVAL) if fs::symlink_metadata(to).is_err() => fs::rename(from, to),
        other => other.map_err(io::Error::from),
    };
    outcome.map_err(|error| Error::io(format!("rename {} to {}", from.display(), to.display()), error))
}

/// A name that nobody else has.
pub(crate) fn unique_name() -> String {
    // Each RandomState is seeded anew from the system's random numbers.
    format!("{:016x}", RandomState::new().build_hasher().finish())
}
