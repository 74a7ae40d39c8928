//! What a layer says, as values that can be compared: to find out whether the files on a disk are still those that were
//! unpacked. The tar stream of the files is never the image's own byte by byte (order, padding, header forms differ), so
//! it is the meaning that is compared: names, kinds, permissions, owners, sizes and contents.
//!
//! ```text
//!   blob ──────────────▶ inventory ─▶ expected ─┐
//!                                               ├─▶ differences
//!   directory ─▶ diff ─▶ inventory ─▶ found ────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::thread;

use ring::digest::{Context, SHA256};

use crate::decode::{self, Format};
use crate::entry::{Entry, Kind, Xattrs};
use crate::error::{Result, show};
use crate::name::{self, Meaning};
use crate::pipeline;
use crate::reader::{Reader, Stream};
use crate::source::Source;
use crate::{join, spawn, xattrs};

/// What is known of the files of a layer, or of a whole tree.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// By cleaned path.
    items: BTreeMap<Vec<u8>, Item>,
    /// What is deleted of the layers below.
    deleted: BTreeSet<Vec<u8>>,
    /// Directories of which nothing from below is seen.
    opaque: BTreeSet<Vec<u8>>,
    /// Paths of which the archive says two things; what holds depends on the order in which they are taken.
    ambiguous: BTreeSet<Vec<u8>>,
}

#[derive(Debug, Clone)]
struct Item {
    kind: Kind,
    mode: u32,
    owner: (u64, u64),
    size: u64,
    link: Vec<u8>,
    device: (u32, u32),
    /// SHA-256 of a regular file; `None` for a link to a file of a layer below, which this layer does not describe.
    content: Option<[u8; 32]>,
    xattrs: Xattrs,
    /// False for a directory that is only used.
    described: bool,
}

/// What may differ without being damage.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tolerance {
    /// Device nodes may be missing: a user namespace cannot have them.
    pub no_devices: bool,
    /// Owners beyond this were folded when the layer was unpacked.
    pub max_id: Option<u32>,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The path, relative to the root.
    pub path: Vec<u8>,
    /// It is there and should not be.
    pub surplus: bool,
    /// What is wrong with it, in a few words.
    pub what: String,
}

/// Reads a layer: plain, gzip or zstd. Memory grows with the number of its members.
///
/// # Errors
/// As [`crate::apply`], as far as the stream is to blame.
pub fn inventory(source: impl Read + Send) -> Result<Inventory> {
    let mut source = Source::new(source, false);
    let format = Format::detect(source.head()?);
    thread::scope(|scope| {
        let (sender, mut plain) = pipeline::queue();
        let decoding = spawn(scope, "layer-decode", move || {
            decode::decode(format, &mut source, sender);
        })?;
        let mut found = Inventory::default();
        let mut reader = Reader::new(&mut plain);
        while let Some(entry) = reader.next()? {
            let content = match entry.kind {
                Kind::Regular => Some(hash(&mut reader, &entry)?),
                _ => None,
            };
            found.take(&entry, content)?;
        }
        plain.finish()?;
        join(decoding)?;
        Ok(found)
    })
}

/// Digest of a file as it is once unpacked, holes as zeroes.
fn hash<S: Stream>(reader: &mut Reader<'_, S>, entry: &Entry) -> Result<[u8; 32]> {
    let mut digest = Context::new(&SHA256);
    let mut at = 0;
    for extent in entry.sparse.iter().flatten() {
        zeroes(&mut digest, extent.offset.saturating_sub(at));
        let mut left = extent.length;
        while left > 0 {
            let piece = reader.data()?;
            let count = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if count == 0 {
                break;
            }
            digest.update(&piece[..count]);
            reader.consume(count);
            left -= count as u64;
        }
        at = extent.offset + extent.length;
    }
    if entry.sparse.is_some() {
        zeroes(&mut digest, entry.size.saturating_sub(at));
    } else {
        loop {
            let piece = reader.data()?;
            let count = piece.len();
            if count == 0 {
                break;
            }
            digest.update(piece);
            reader.consume(count);
        }
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.finish().as_ref());
    Ok(bytes)
}

fn zeroes(digest: &mut Context, mut count: u64) {
    const NOTHING: [u8; 4096] = [0; 4096];
    while count > 0 {
        let piece = usize::try_from(count).unwrap_or(usize::MAX).min(NOTHING.len());
        digest.update(&NOTHING[..piece]);
        count -= piece as u64;
    }
}

impl Inventory {
    fn take(&mut self, entry: &Entry, content: Option<[u8; 32]>) -> Result<()> {
        let path = name::clean(&entry.path)?.into_owned();
        match name::meaning(&path)? {
            Meaning::Root | Meaning::Metadata => {}
            Meaning::Opaque { parent } => {
                self.opaque.insert(parent.to_vec());
            }
            Meaning::Whiteout { parent, name } => {
                let target = if parent.is_empty() {
                    name.to_vec()
                } else {
                    [parent, b"/", name].concat()
                };
                if self.items.contains_key(&target) {
                    self.ambiguous.insert(target.clone());
                }
                self.deleted.insert(target);
            }
            Meaning::Member { .. } => {
                if self.deleted.contains(&path) {
                    self.ambiguous.insert(path.clone());
                }
                let item = self.item(entry, content)?;
                self.insert(path, item);
            }
        }
        Ok(())
    }

    fn item(&self, entry: &Entry, content: Option<[u8; 32]>) -> Result<Item> {
        let item = Item {
            kind: entry.kind,
            mode: entry.mode,
            owner: (entry.uid, entry.gid),
            size: entry.size,
            link: entry.link.clone(),
            device: entry.device,
            content,
            xattrs: entry.xattrs.clone(),
            described: true,
        };
        if entry.kind != Kind::HardLink {
            return Ok(item);
        }
        let target = name::clean(&entry.link)?.into_owned();
        Ok(match self.items.get(&target) {
            Some(target) => target.clone(),
            // Of a layer below, or of nothing.
            None => Item { link: target, ..item },
        })
    }

    /// Puts an item in its place: what is not a directory has nothing below it.
    fn insert(&mut self, path: Vec<u8>, item: Item) {
        if let Some(old) = self.items.get(&path)
            && (old.kind != Kind::Directory || item.kind != Kind::Directory)
        {
            if old.kind != item.kind {
                self.ambiguous.insert(path.clone());
            }
            self.remove_below(&path);
        }
        let mut above = name::split(&path).0;
        while !above.is_empty() && !self.items.contains_key(above) {
            self.items.insert(above.to_vec(), used_directory());
            above = name::split(above).0;
        }
        self.items.insert(path, item);
    }

    fn remove_below(&mut self, path: &[u8]) {
        for gone in below(&self.items, path) {
            self.items.remove(&gone);
        }
    }

    /// Puts a layer on top: afterwards this is the whole tree.
    pub fn stack(&mut self, layer: &Self) {
        for path in &layer.opaque {
            self.remove_below(path);
        }
        for path in &layer.deleted {
            self.remove_below(path);
            self.items.remove(path);
        }
        for (path, item) in &layer.items {
            if !item.described
                && self
                    .items
                    .get(path)
                    .is_some_and(|old| old.kind == Kind::Directory)
            {
                continue;
            }
            let item = match (item.kind, self.items.get(&item.link)) {
                (Kind::HardLink, Some(target)) => target.clone(),
                _ => item.clone(),
            };
            self.insert(path.clone(), item);
        }
        self.ambiguous.clone_from(&layer.ambiguous);
        self.deleted.clear();
        self.opaque.clear();
    }

    /// How many files and directories are described.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.deleted.is_empty() && self.opaque.is_empty()
    }

    /// What of `found`, which was read from a disk, is not as it is here. Times are not compared, and extended attributes
    /// only where both have one: not every file system and not every user can keep them.
    pub fn differences(&self, found: &Self, tolerance: &Tolerance) -> Vec<Difference> {
        let mut all = Vec::new();
        let mut differ = |path: &[u8], surplus: bool, what: String| {
            if !self.is_ambiguous(path) {
                all.push(Difference {
                    path: path.to_vec(),
                    surplus,
                    what,
                });
            }
        };
        for (path, expected) in self.items.iter().filter(|(_, item)| item.described) {
            match found.items.get(path) {
                None if expected.is_device() && tolerance.no_devices => {}
                None => differ(path, false, "is missing".to_owned()),
                Some(found) => {
                    if let Some(what) = expected.difference(found, tolerance) {
                        differ(path, false, what);
                    }
                }
            }
        }
        for path in found.items.keys().filter(|path| !self.items.contains_key(*path)) {
            // A directory in which something is deleted is there without being described.
            let used = |marker: &Vec<u8>| marker.starts_with(path) && marker.get(path.len()) == Some(&b'/');
            if !self.deleted.range(path.clone()..).next().is_some_and(used) && !self.opaque.contains(path) {
                differ(path, true, "does not belong here".to_owned());
            }
        }
        for path in self.deleted.iter().filter(|path| !found.hides(path)) {
            differ(
                path,
                false,
                "is deleted in this layer, and the mark of that is missing".to_owned(),
            );
        }
        for path in found.deleted.iter().filter(|path| !self.hides(path)) {
            differ(
                path,
                true,
                "is marked as deleted, and is not deleted in this layer".to_owned(),
            );
        }
        for path in self.opaque.iter().filter(|path| !found.opaque.contains(*path)) {
            // The root of everything has nothing below it to hide.
            if !path.is_empty() {
                differ(
                    path,
                    false,
                    "hides what is below it, and the mark of that is missing".to_owned(),
                );
            }
        }
        all
    }

    fn hides(&self, path: &[u8]) -> bool {
        if self.deleted.contains(path) || self.items.contains_key(path) {
            return true;
        }
        let mut above = name::split(path).0;
        loop {
            if self.opaque.contains(above) || self.deleted.contains(above) {
                return true;
            }
            if above.is_empty() {
                return false;
            }
            above = name::split(above).0;
        }
    }

    fn is_ambiguous(&self, path: &[u8]) -> bool {
        let mut at = path;
        while !at.is_empty() {
            if self.ambiguous.contains(at) {
                return true;
            }
            at = name::split(at).0;
        }
        false
    }
}

fn used_directory() -> Item {
    Item {
        kind: Kind::Directory,
        mode: 0,
        owner: (0, 0),
        size: 0,
        link: Vec::new(),
        device: (0, 0),
        content: None,
        xattrs: Xattrs::new(),
        described: false,
    }
}

/// Paths below a directory, without itself.
fn below(items: &BTreeMap<Vec<u8>, Item>, path: &[u8]) -> Vec<Vec<u8>> {
    let prefix = if path.is_empty() {
        Vec::new()
    } else {
        [path, b"/"].concat()
    };
    items
        .range(prefix.clone()..)
        .map(|(path, _)| path)
        .take_while(|path| path.starts_with(&prefix))
        .cloned()
        .collect()
}

impl Item {
    fn is_device(&self) -> bool {
        matches!(self.kind, Kind::CharDevice | Kind::BlockDevice)
    }

    /// A link whose target is not known stands for some regular file.
    fn seen_as(&self) -> Kind {
        if self.kind == Kind::HardLink {
            Kind::Regular
        } else {
            self.kind
        }
    }

    fn difference(&self, found: &Self, tolerance: &Tolerance) -> Option<String> {
        if self.kind == Kind::HardLink && self.content.is_none() {
            return None;
        }
        if self.seen_as() != found.seen_as() {
            return Some(format!(
                "should be {}, is {}",
                noun(self.seen_as()),
                noun(found.seen_as())
            ));
        }
        if self.kind != Kind::Symlink && self.mode != found.mode {
            return Some(format!(
                "should have mode {:04o}, has {:04o}",
                self.mode, found.mode
            ));
        }
        let folded = |id: u64| tolerance.max_id.is_some_and(|max| id > u64::from(max));
        for (name, expected, found) in [
            ("owner", self.owner.0, found.owner.0),
            ("group", self.owner.1, found.owner.1),
        ] {
            if expected != found && !folded(expected) {
                return Some(format!("should have {name} {expected}, has {found}"));
            }
        }
        match self.kind {
            Kind::Regular if self.size != found.size => {
                return Some(format!("should have {} bytes, has {}", self.size, found.size));
            }
            Kind::Regular if self.content != found.content => return Some("has other contents".to_owned()),
            Kind::Symlink if self.link != found.link => {
                return Some(format!(
                    "should point to {:?}, points to {:?}",
                    show(&self.link),
                    show(&found.link)
                ));
            }
            Kind::CharDevice | Kind::BlockDevice if self.device != found.device => {
                return Some("is another device".to_owned());
            }
            _ => {}
        }
        let other = self.xattrs.iter().find(|(name, value)| {
            let there = xattrs::get(&found.xattrs, name);
            there.is_some_and(|there| there != &value[..])
        });
        other.map(|(name, _)| format!("has another value of the attribute {}", show(name)))
    }
}

fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Regular | Kind::HardLink => "a file",
        Kind::Symlink => "a symbolic link",
        Kind::CharDevice => "a character device",
        Kind::BlockDevice => "a block device",
        Kind::Directory => "a directory",
        Kind::Fifo => "a FIFO",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tar(tar::Builder<Vec<u8>>);

    impl Tar {
        fn new() -> Self {
            Self(tar::Builder::new(Vec::new()))
        }

        fn add(mut self, kind: tar::EntryType, path: &str, mode: u32, link: &str, data: &[u8]) -> Self {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(data.len() as u64);
            header.set_uid(5);
            header.set_gid(6);
            if link.is_empty() {
                self.0.append_data(&mut header, path, data).unwrap();
            } else {
                self.0.append_link(&mut header, path, link).unwrap();
            }
            self
        }

        fn file(self, path: &str, data: &str) -> Self {
            self.add(tar::EntryType::Regular, path, 0o644, "", data.as_bytes())
        }

        fn dir(self, path: &str) -> Self {
            self.add(tar::EntryType::Directory, path, 0o755, "", b"")
        }

        fn link(self, path: &str, target: &str) -> Self {
            self.add(tar::EntryType::Link, path, 0o644, target, b"")
        }

        fn read(self) -> Inventory {
            inventory(&self.0.into_inner().unwrap()[..]).unwrap()
        }
    }

    fn texts(expected: &Inventory, found: &Inventory) -> Vec<String> {
        let all = expected.differences(found, &Tolerance::default());
        all.iter()
            .map(|d| format!("{} {}", show(&d.path), d.what))
            .collect()
    }

    #[test]
    fn order_implied_directories_and_forms_of_links_do_not_matter() {
        let one = Tar::new()
            .file("./a/b/file", "x")
            .link("second", "a/b/file")
            .file("a/.wh.gone", "")
            .read();
        let two = Tar::new()
            .dir("a")
            .file("a/.wh.gone", "")
            .dir("a/b")
            .file("a/b/file", "x")
            .file("second", "x")
            .read();
        assert_eq!(texts(&one, &two), Vec::<String>::new());
        // The other way round the directories are described, and their metadata unknown here.
        assert_eq!(texts(&two, &one).len(), 2);
    }

    #[test]
    fn every_kind_of_damage_is_seen() {
        let whole = || {
            Tar::new()
                .dir("d")
                .file("d/f", "content")
                .file("d/g", "x")
                .file(".wh.gone", "")
        };
        let good = whole().read();
        for (found, expected) in [
            (
                Tar::new().dir("d").file("d/g", "x").file(".wh.gone", ""),
                "d/f is missing",
            ),
            (whole().file("d/f", "CONTENT"), "d/f has other contents"),
            (
                whole().file("d/f", "longer content"),
                "d/f should have 7 bytes, has 14",
            ),
            (
                whole().add(tar::EntryType::Regular, "d/g", 0o600, "", b"x"),
                "d/g should have mode 0644, has 0600",
            ),
            (
                whole().add(tar::EntryType::Symlink, "d/g", 0o777, "f", b""),
                "d/g should be a file, is a symbolic link",
            ),
            (whole().file("extra", ""), "extra does not belong here"),
            (
                whole().file("d/.wh.other", ""),
                "d/other is marked as deleted, and is not deleted in this layer",
            ),
            (
                Tar::new().dir("d").file("d/f", "content").file("d/g", "x"),
                "gone is deleted in this layer, and the mark of that is missing",
            ),
        ] {
            assert_eq!(texts(&good, &found.read()), [expected]);
        }
    }

    #[test]
    fn layers_stack_to_the_tree_that_is_seen() {
        let mut tree = Tar::new()
            .dir("kept")
            .file("kept/a", "1")
            .dir("hidden")
            .file("hidden/below", "2")
            .dir("becomes")
            .file("becomes/inside", "3")
            .file("gone", "4")
            .read();
        let layer = Tar::new()
            .file(".wh.gone", "")
            .file("hidden/.wh..wh..opq", "")
            .file("hidden/above", "5")
            .file("becomes", "a file")
            .link("again", "kept/a")
            .read();
        tree.stack(&layer);
        let expected = Tar::new()
            .file("again", "1")
            .file("becomes", "a file")
            .dir("hidden")
            .file("hidden/above", "5")
            .dir("kept")
            .file("kept/a", "1")
            .read();
        assert_eq!(texts(&expected, &tree), Vec::<String>::new());
        assert_eq!(texts(&tree, &expected), Vec::<String>::new());
    }

    #[test]
    fn folded_owners_and_devices_that_cannot_be_made_are_tolerated() {
        let expected = Tar::new()
            .add(tar::EntryType::Char, "null", 0o666, "", b"")
            .file("f", "x")
            .read();
        let mut found = Tar::new().file("f", "x").read();
        found.items.get_mut(&b"f"[..]).unwrap().owner = (3, 3);
        let strict = expected.differences(&found, &Tolerance::default());
        assert_eq!(strict.len(), 2, "{strict:?}");
        let tolerance = Tolerance {
            no_devices: true,
            max_id: Some(4),
        };
        assert_eq!(expected.differences(&found, &tolerance), []);
    }
}
