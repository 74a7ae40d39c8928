//! An archive of images that is being loaded: its members, staged, and what its documents say about them.
//!
//! ```text
//!   members, in any order ─▶ stage: small ones in memory, others on the disk as blobs ─▶ images: manifest.json or index.json
//!
//!   docker-archive   manifest.json; Config and Layers are paths: <hex>.json, <id>/layer.tar (perhaps a link to another
//!                    layer's), blobs/sha256/<hex>
//!   OCI layout       index.json; blobs/sha256/<hex>, names in annotations
//! ```
//!
//! A member's name is a key in a table and nothing else: whatever stands in it, no file is opened by it. A name that claims
//! a digest is held to it. Later members replace earlier ones of the same name, as in any tar.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead, Read};

use serde::de::DeserializeOwned;
use skiff_archive::{Member, MemberKind};
use skiff_graphdrivers::LayerId;
use skiff_registry_client::{Platform, Reference};
use skiff_store::{Descriptor, Digest, Lease, OCI_LAYER, StopToken, Store};

use super::layout::{self, DockerImage, Document, Index, IndexEntry};
use crate::error::{Error, Result};

/// Members up to this size stay in memory, as long as there is room for them.
const SMALL: u64 = 64 << 10;
/// Room in memory for all of an archive: names, links, small members. Docker's archives have some ten members a layer.
const ROOM: usize = 16 << 20;
/// Longest name that anything could refer to.
const NAME_MAX: usize = 4096;
/// Largest document. Docker's own limit for a manifest is half of it.
const DOCUMENT_MAX: u64 = 8 << 20;
/// Links followed for one name, as by the kernel.
const LINKS_MAX: usize = 40;
/// Indexes in indexes.
const NESTING_MAX: usize = 4;
/// Manifests looked at for one archive.
const MANIFESTS_MAX: usize = 4096;
/// Layers of all images together, whose descriptors are kept: some ten MiB. Images have ten to a hundred.
const LAYERS_MAX: usize = 64 << 10;
/// Longest media type: 127 bytes on each side of the slash (RFC 6838).
const MEDIA_TYPE_MAX: usize = 255;

/// Where a member's bytes are.
#[derive(Debug, Clone)]
enum Content {
    /// Here.
    Small(Vec<u8>),
    /// In the store.
    Blob { digest: Digest, size: u64 },
    /// Under another name; an empty one leads nowhere, as do links out of the archive.
    Link(String),
}

/// The members that were read so far.
pub(super) struct Staged {
    store: Store,
    lease: Lease,
    members: HashMap<String, Content>,
    room: usize,
    /// Blobs that came with this archive, needed or not.
    pub(super) brought: BTreeSet<Digest>,
    /// Layers of each image that were not there when the load came to it, bottom first.
    pub(super) unpacked: Vec<Vec<LayerId>>,
}

/// An image in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArchivedImage {
    /// Its configuration, a blob by now.
    pub(super) config: Digest,
    /// The manifests under which it is to be known, each with its names; the first has none when it is nameless.
    pub(super) manifests: Vec<(Digest, Vec<Reference>)>,
    /// The layers of the first manifest.
    pub(super) layers: Vec<Descriptor>,
}

impl Staged {
    pub(super) fn new(store: Store) -> Self {
        let lease = store.lease();
        Self {
            store,
            lease,
            members: HashMap::new(),
            room: ROOM,
            brought: BTreeSet::new(),
            unpacked: Vec::new(),
        }
    }

    /// The lease that holds everything staged.
    pub(super) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Takes a member in.
    ///
    /// # Errors
    /// `System` for a name that lies about its digest, too many members, a full disk; the archive's own.
    pub(super) fn take(&mut self, member: &Member, data: &mut dyn BufRead) -> Result<()> {
        let Some(name) = normal(&member.name) else {
            // Nothing can refer to it.
            return Ok(());
        };
        let content = match &member.kind {
            MemberKind::File if is_of_no_use(&name) => return Ok(()),
            MemberKind::File => self.file(&name, member.size, data)?,
            MemberKind::Symlink(target) => {
                let base = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                Content::Link(target_of(base, target).unwrap_or_default())
            }
            MemberKind::HardLink(target) => Content::Link(normal(target).unwrap_or_default()),
            MemberKind::Directory | MemberKind::Other => return Ok(()),
        };
        let own = match &content {
            Content::Link(target) => target.len(),
            Content::Small(_) | Content::Blob { .. } => 0,
        };
        // The fixed part is what a table's entry costs.
        self.reserve(name.len() + own + 128)?;
        self.members.insert(name, content);
        Ok(())
    }

    fn reserve(&mut self, bytes: usize) -> Result<()> {
        self.room = self.room.checked_sub(bytes).ok_or_else(|| {
            Error::system(format!(
                "the archive has too many members: their names need more than {ROOM} bytes"
            ))
        })?;
        Ok(())
    }

    fn file(&mut self, name: &str, size: u64, data: &mut dyn BufRead) -> Result<Content> {
        let claimed = claimed_digest(name);
        if matches!(name, layout::MANIFEST | layout::INDEX) {
            if size > DOCUMENT_MAX {
                return Err(Error::system(format!(
                    "{name} is too large: {size} bytes, {DOCUMENT_MAX} are read"
                )));
            }
            // Only one of each is kept, so this is no room that adds up.
            return Ok(Content::Small(read_all(data, size)?));
        }
        if let Some(digest) = claimed
            && self.lease.blob(&digest)? == Some(size)
            && self.store.has_good_blob(&digest, size)?
        {
            // It is here, verified; what the archive has under the name does not matter.
            return Ok(Content::Blob { digest, size });
        }
        let fits = usize::try_from(size).is_ok_and(|size| size <= self.room / 2);
        if size <= SMALL && fits {
            let bytes = read_all(data, size)?;
            self.reserve(bytes.len())?;
            require_digest(name, claimed, Digest::of(&bytes))?;
            return Ok(Content::Small(bytes));
        }
        let mut staging = self.store.stage()?;
        loop {
            let piece = data.fill_buf().map_err(data_error)?;
            if piece.is_empty() {
                break;
            }
            staging.push(piece)?;
            let count = piece.len();
            data.consume(count);
        }
        let (digest, size) = staging.finish(&self.lease)?;
        self.brought.insert(digest);
        require_digest(name, claimed, digest)?;
        Ok(Content::Blob { digest, size })
    }

    /// The images that the archive describes, each once. Their configurations, layers and manifests are blobs after this.
    ///
    /// # Errors
    /// `System` for documents that are missing, malformed, name members that are not there, or have too many layers, and
    /// once `stop` was told to.
    pub(super) fn images(
        &mut self,
        platform: Option<&Platform>,
        stop: &StopToken,
    ) -> Result<Vec<ArchivedImage>> {
        if self.members.contains_key(layout::MANIFEST) {
            let images: Option<Vec<DockerImage>> = self.document(layout::MANIFEST)?;
            let Some(images) = images else {
                return Err(Error::system(
                    "invalid manifest, manifest cannot be null (but can be [])",
                ));
            };
            let known = self.known_manifests(stop)?;
            let mut found = Vec::new();
            let mut layers = 0;
            for image in &images {
                go_on(stop)?;
                count_layers(&mut layers, image.layers.len())?;
                found.extend(self.docker_image(image, &known, platform)?);
            }
            return Ok(found);
        }
        if self.members.contains_key(layout::INDEX) {
            let index: Index = self.document(layout::INDEX)?;
            return self.oci_images(&index, platform, stop);
        }
        if self.members.contains_key(layout::REPOSITORIES) {
            return Err(Error::system(
                "the archive has no manifest.json: archives of Docker before 1.10 are not supported",
            ));
        }
        Err(Error::system(format!(
            "open {}: no such file or directory",
            layout::MANIFEST
        )))
    }

    fn docker_image(
        &mut self,
        image: &DockerImage,
        known: &[KnownManifest],
        platform: Option<&Platform>,
    ) -> Result<Option<ArchivedImage>> {
        let config = self.bytes(&image.config)?;
        let parsed = Config::parse(&config)?;
        parsed.runs_here()?;
        if !platform.is_none_or(|wanted| parsed.platform() == *wanted) {
            return Ok(None);
        }
        if image.layers.len() != parsed.diff_ids.len() {
            return Err(Error::system(format!(
                "invalid manifest, layers length mismatch: expected {}, got {}",
                image.layers.len(),
                parsed.diff_ids.len()
            )));
        }
        let names = image.repo_tags.iter().flatten().map(|tag| tag_reference(tag));
        let names = names.collect::<Result<Vec<Reference>>>()?;
        let (id, id_size) = self.adopt(&image.config)?;
        let mut layers = Vec::with_capacity(image.layers.len());
        for path in &image.layers {
            layers.push(self.layer(path)?);
        }
        let same = |manifest: &&KnownManifest| {
            manifest.config.digest == id
                && manifest
                    .layers
                    .iter()
                    .map(|l| l.digest)
                    .eq(layers.iter().map(|l| l.digest))
        };
        let first = match known.iter().find(same) {
            Some(manifest) => {
                // Its media types are the ones it was made with.
                layers.clone_from(&manifest.layers);
                self.adopt_manifest(manifest)?
            }
            None => {
                let bytes = layout::manifest(&layout::config_descriptor(id, id_size), &layers, None)?;
                self.keep(&bytes)?
            }
        };
        let mut manifests: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
        for name in names {
            let own = known.iter().find(|manifest| {
                manifest.config.digest == id
                    && manifest.names.contains(&name.canonical())
                    && self.has_blobs(&manifest.layers)
            });
            let manifest = match own {
                Some(manifest) => self.adopt_manifest(manifest)?,
                None => first,
            };
            manifests.entry(manifest).or_default().push(name);
        }
        let of_first = manifests.remove(&first).unwrap_or_default();
        Ok(Some(ArchivedImage {
            config: id,
            manifests: std::iter::once((first, of_first)).chain(manifests).collect(),
            layers,
        }))
    }

    /// The images of an OCI layout. An entry for each name is usual, so a manifest that was read is not read again.
    fn oci_images(
        &mut self,
        index: &Index,
        platform: Option<&Platform>,
        stop: &StopToken,
    ) -> Result<Vec<ArchivedImage>> {
        let host = Platform::host();
        let mut found: Vec<ArchivedImage> = Vec::new();
        // Where in `found` the image of a manifest or an index is; `None` for one that has none for the platform.
        let mut places: HashMap<Digest, Option<usize>> = HashMap::new();
        let mut layers = 0;
        for entry in &index.manifests {
            go_on(stop)?;
            let place = if let Some(place) = places.get(&entry.digest) {
                *place
            } else {
                let chosen = self.choose(&entry.digest, platform.unwrap_or(&host), 0)?;
                let place = match chosen {
                    None => None,
                    Some(manifest) if places.contains_key(&manifest) => places[&manifest],
                    Some(manifest) => {
                        let image = self.oci_image(&manifest, platform)?;
                        let place = image.is_some().then_some(found.len());
                        if let Some(image) = image {
                            count_layers(&mut layers, image.layers.len())?;
                            found.push(image);
                        }
                        places.insert(manifest, place);
                        place
                    }
                };
                places.insert(entry.digest, place);
                place
            };
            if let Some((_, names)) = place.and_then(|place| found[place].manifests.first_mut()) {
                names.extend(entry_name(entry));
            }
        }
        Ok(found)
    }

    /// The image of a manifest, without names; `None` when it is for another platform.
    fn oci_image(&mut self, digest: &Digest, platform: Option<&Platform>) -> Result<Option<ArchivedImage>> {
        let manifest = self.known_manifest(digest)?;
        let config = self.bytes(&layout::blob_path(&manifest.config.digest))?;
        let parsed = Config::parse(&config)?;
        parsed.runs_here()?;
        if !platform.is_none_or(|wanted| parsed.platform() == *wanted) {
            return Ok(None);
        }
        if manifest.layers.len() != parsed.diff_ids.len() {
            return Err(Error::system(format!(
                "invalid manifest, layers length mismatch: expected {}, got {}",
                manifest.layers.len(),
                parsed.diff_ids.len()
            )));
        }
        let digest = self.adopt_manifest(&manifest)?;
        Ok(Some(ArchivedImage {
            config: manifest.config.digest,
            manifests: vec![(digest, Vec::new())],
            layers: manifest.layers,
        }))
    }

    /// The manifest that a digest stands for: itself, or the best one for the platform of the index that it names.
    fn choose(&self, digest: &Digest, platform: &Platform, depth: usize) -> Result<Option<Digest>> {
        let document: Document = self.blob_document(digest)?;
        let Some(inner) = document.manifests else {
            return Ok(Some(*digest));
        };
        if depth == NESTING_MAX {
            return Err(Error::system("the archive's indexes are nested too deeply"));
        }
        let rank = |entry: &IndexEntry| {
            let own = entry.platform.as_ref()?;
            let own = Platform::new(&own.os, &own.architecture, &own.variant);
            platform.fitness(&own)
        };
        let ranked = inner.iter().filter_map(|entry| Some((rank(entry)?, entry)));
        // Attestations are `unknown/unknown` and never fit.
        let best = ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry);
        let only = || {
            inner
                .first()
                .filter(|entry| inner.len() == 1 && entry.platform.is_none())
        };
        let Some(chosen) = best.or_else(only).map(|entry| entry.digest) else {
            return Ok(None);
        };
        drop(inner);
        self.choose(&chosen, platform, depth + 1)
    }

    /// The manifests below `index.json`, each once, to recognise the images of `manifest.json` in them: only with its
    /// manifest does an image keep its digest. What is broken here is not needed.
    fn known_manifests(&self, stop: &StopToken) -> Result<Vec<KnownManifest>> {
        let mut found: Vec<KnownManifest> = Vec::new();
        let Ok(index) = self.document::<Index>(layout::INDEX) else {
            return Ok(found);
        };
        let mut open: Vec<(IndexEntry, usize)> =
            index.manifests.into_iter().map(|entry| (entry, 0)).collect();
        open.reverse();
        // Where in `found` a digest is; `None` for what is no manifest.
        let mut places: HashMap<Digest, Option<usize>> = HashMap::new();
        let (mut looked_at, mut layers) = (0, 0);
        while let Some((entry, depth)) = open.pop() {
            go_on(stop)?;
            looked_at += 1;
            if looked_at > MANIFESTS_MAX {
                break;
            }
            let name = entry_name(&entry).map(|name| name.canonical());
            match places.get(&entry.digest) {
                Some(Some(place)) => found[*place].names.extend(name),
                Some(None) => {}
                None => {
                    let manifest = self.known_manifest(&entry.digest).ok();
                    places.insert(entry.digest, manifest.is_some().then_some(found.len()));
                    if let Some(mut manifest) = manifest {
                        count_layers(&mut layers, manifest.layers.len())?;
                        manifest.names.extend(name);
                        found.push(manifest);
                    } else if depth < NESTING_MAX
                        && let Ok(Document {
                            manifests: Some(inner),
                            ..
                        }) = self.blob_document(&entry.digest)
                    {
                        open.extend(inner.into_iter().rev().map(|inner| (inner, depth + 1)));
                    }
                }
            }
        }
        Ok(found)
    }

    fn known_manifest(&self, digest: &Digest) -> Result<KnownManifest> {
        let path = layout::blob_path(digest);
        let document: Document = self.blob_document(digest)?;
        let (Some(config), Some(layers)) = (document.config, document.layers) else {
            return Err(Error::system(format!("{path} is no image manifest")));
        };
        let too_long = |descriptor: &Descriptor| descriptor.media_type.len() > MEDIA_TYPE_MAX;
        if std::iter::once(&config).chain(&layers).any(too_long) {
            return Err(Error::system(format!(
                "{path} has a media type of more than {MEDIA_TYPE_MAX} bytes"
            )));
        }
        Ok(KnownManifest {
            digest: *digest,
            config,
            layers,
            names: BTreeSet::new(),
        })
    }

    fn has_blobs(&self, layers: &[Descriptor]) -> bool {
        layers.iter().all(|layer| {
            let here = self.find(&layout::blob_path(&layer.digest)).is_some();
            here || self
                .lease
                .blob(&layer.digest)
                .is_ok_and(|size| size == Some(layer.size))
        })
    }

    /// Makes a manifest and what it describes blobs.
    fn adopt_manifest(&mut self, manifest: &KnownManifest) -> Result<Digest> {
        for described in std::iter::once(&manifest.config).chain(&manifest.layers) {
            self.adopt_described(described)?;
        }
        self.adopt(&layout::blob_path(&manifest.digest))
            .map(|(digest, _)| digest)
    }

    /// Makes what a manifest describes a blob, if it is not, and holds the manifest to its size: registries, and whoever
    /// looks for damage later, go by it.
    fn adopt_described(&mut self, described: &Descriptor) -> Result<()> {
        let path = layout::blob_path(&described.digest);
        let size = if self.find(&path).is_some() {
            self.adopt(&path)?.1
        } else {
            // In a Docker archive it may have another path, and is a blob by now.
            self.lease
                .blob(&described.digest)?
                .ok_or_else(|| missing(&path))?
        };
        if size != described.size {
            return Err(Error::system(format!(
                "{path} has {size} bytes, its manifest says {}",
                described.size
            )));
        }
        Ok(())
    }

    /// A layer's blob, described by its own first bytes.
    fn layer(&mut self, path: &str) -> Result<Descriptor> {
        let (digest, size) = self.adopt(path)?;
        let mut head = [0; 16];
        let mut blob = self.store.open_blob(&digest)?;
        let mut filled = 0;
        while filled < head.len() {
            match blob.read(&mut head[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) => return Err(Error::system(format!("read blob {digest}")).caused_by(error)),
            }
        }
        // There is no media type for the others; they are unpacked all the same, and saved as they came.
        let suffix = skiff_archive::media_type_suffix(&head[..filled]).unwrap_or_default();
        Ok(Descriptor {
            media_type: format!("{OCI_LAYER}{suffix}"),
            digest,
            size,
        })
    }

    /// Makes a member a blob, if it is not; gives its digest and size.
    fn adopt(&mut self, path: &str) -> Result<(Digest, u64)> {
        match self.find(path).cloned() {
            Some(Content::Blob { digest, size }) => Ok((digest, size)),
            Some(Content::Small(bytes)) => Ok((self.keep(&bytes)?, bytes.len() as u64)),
            _ => Err(missing(path)),
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.lease.blob(&digest)?.is_none() {
            self.brought.insert(digest);
        }
        self.store.put_blob(&digest, bytes)?;
        Ok(digest)
    }

    fn document<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        serde_json::from_slice(&self.bytes(path)?)
            .map_err(|e| Error::system(format!("{path} cannot be read")).caused_by(e))
    }

    fn blob_document<T: DeserializeOwned>(&self, digest: &Digest) -> Result<T> {
        self.document(&layout::blob_path(digest))
    }

    /// A small member's bytes.
    fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        match self.find(path) {
            Some(Content::Small(bytes)) => Ok(bytes.clone()),
            Some(Content::Blob { digest, .. }) => Ok(self.store.read_blob(digest)?),
            _ => Err(missing(path)),
        }
    }

    /// What a path means, links followed.
    fn find(&self, path: &str) -> Option<&Content> {
        let mut name = normal(path.as_bytes())?;
        for _ in 0..LINKS_MAX {
            match self.members.get(&name)? {
                Content::Link(target) => name.clone_from(target),
                content => return Some(content),
            }
        }
        None
    }
}

/// A manifest in the archive.
#[derive(Debug, Clone)]
struct KnownManifest {
    digest: Digest,
    config: Descriptor,
    layers: Vec<Descriptor>,
    /// Canonical names that `index.json` gives it.
    names: BTreeSet<String>,
}

/// Bounds what is kept of an archive whose documents are small, compressed.
fn count_layers(layers: &mut usize, more: usize) -> Result<()> {
    *layers += more;
    if *layers > LAYERS_MAX {
        return Err(Error::system(format!(
            "the archive's images have more than {LAYERS_MAX} layers together"
        )));
    }
    Ok(())
}

/// Fails once the client has left.
fn go_on(stop: &StopToken) -> Result<()> {
    stop.check()
        .map_err(|error| Error::system("load").caused_by(error))
}

/// What decides about an image.
struct Config {
    os: String,
    architecture: String,
    variant: String,
    diff_ids: Vec<Digest>,
}

impl Config {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let image = skiff_store::Image::parse(Digest::of(bytes), bytes)?;
        let text = |field: &str| image.config[field].as_str().unwrap_or_default().to_owned();
        Ok(Self {
            os: text("os"),
            architecture: text("architecture"),
            variant: text("variant"),
            diff_ids: image.diff_ids,
        })
    }

    fn platform(&self) -> Platform {
        let or = |text: &str, default: &str| {
            if text.is_empty() {
                default.to_owned()
            } else {
                text.to_owned()
            }
        };
        let host = Platform::host();
        Platform::new(
            &or(&self.os, "linux"),
            &or(&self.architecture, &host.architecture),
            &self.variant,
        )
    }

    fn runs_here(&self) -> Result<()> {
        match self.os.as_str() {
            "" | "linux" => Ok(()),
            os => Err(Error::system(format!("cannot load {os} image on linux"))),
        }
    }
}

/// A name in the archive without `.`, empty parts and leading slashes; `None` when it leaves the archive, is no text, or is
/// longer than anything that could refer to it.
fn normal(name: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(name)
        .ok()
        .filter(|text| text.len() <= NAME_MAX)?;
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// What a symbolic link in the directory `base` points to; an absolute one from the archive's root.
fn target_of(base: &str, target: &[u8]) -> Option<String> {
    if target.starts_with(b"/") {
        return normal(target);
    }
    normal(&[base.as_bytes(), b"/", target].concat())
}

/// Documents of old layouts that nobody reads.
fn is_of_no_use(name: &str) -> bool {
    name == layout::LAYOUT || name.ends_with("/VERSION")
}

/// The digest that a blob's name claims.
fn claimed_digest(name: &str) -> Option<Digest> {
    let hex = name.strip_prefix(layout::BLOBS)?.strip_prefix('/')?;
    format!("sha256:{hex}").parse().ok()
}

fn require_digest(name: &str, claimed: Option<Digest>, actual: Digest) -> Result<()> {
    match claimed {
        Some(claimed) if claimed != actual => Err(Error::system(format!("{name} has the digest {actual}"))),
        _ => Ok(()),
    }
}

fn read_all(data: &mut dyn BufRead, size: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(size.min(DOCUMENT_MAX)).unwrap_or_default());
    data.take(size).read_to_end(&mut bytes).map_err(data_error)?;
    Ok(bytes)
}

fn data_error(error: std::io::Error) -> Error {
    skiff_archive::Error::of_data(error).into()
}

fn missing(path: &str) -> Error {
    Error::system(format!("open {path}: no such file or directory"))
}

/// A name of `manifest.json`, which must have a tag.
fn tag_reference(text: &str) -> Result<Reference> {
    let reference = Reference::parse(text)?;
    let tagged = text.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if reference.digest().is_some() || !tagged {
        return Err(Error::system(format!("invalid tag {text:?}")));
    }
    Ok(reference)
}

/// The name in an entry's annotations. The short one counts when it is more than a tag: `skopeo` writes what it is told.
fn entry_name(entry: &IndexEntry) -> Option<Reference> {
    let full = entry.annotations.get(layout::FULL_NAME);
    let short = || {
        entry
            .annotations
            .get(layout::SHORT_NAME)
            .filter(|name| name.contains([':', '/']))
    };
    let name = full.or_else(short)?;
    Reference::parse(name).ok().filter(|name| name.digest().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_keys_that_stay_in_the_archive() {
        for (name, expected) in [
            ("a/b", Some("a/b")),
            ("./a//b/./c", Some("a/b/c")),
            ("/a", Some("a")),
            ("a/../b", Some("b")),
            ("../a", None),
            ("a/../../b", None),
            (".", None),
            ("", None),
        ] {
            assert_eq!(normal(name.as_bytes()).as_deref(), expected, "{name}");
        }
        assert_eq!(normal(b"\xff"), None);
        assert_eq!(normal("x".repeat(NAME_MAX + 1).as_bytes()), None);
        assert_eq!(target_of("a", b"../b/layer.tar").as_deref(), Some("b/layer.tar"));
        assert_eq!(target_of("a", b"/b").as_deref(), Some("b"));
        assert_eq!(target_of("a", b"../../b"), None);
    }

    #[test]
    fn blobs_claim_their_digest() {
        let digest = Digest::of(b"x");
        assert_eq!(claimed_digest(&layout::blob_path(&digest)), Some(digest));
        for name in ["blobs/sha256/abc", "blobs/sha512/00", "layer.tar", "blobs/sha256"] {
            assert_eq!(claimed_digest(name), None, "{name}");
        }
    }

    #[test]
    fn tags_must_be_tags() {
        assert_eq!(tag_reference("busybox:1").unwrap().familiar(), "busybox:1");
        assert_eq!(
            tag_reference("localhost:5000/a:1").unwrap().familiar(),
            "localhost:5000/a:1"
        );
        for bad in ["busybox", "localhost:5000/a", "UPPER:1", ""] {
            assert!(tag_reference(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_entry_s_name_is_the_full_one_or_a_short_one_that_is_more_than_a_tag() {
        let entry = |annotations: &[(&str, &str)]| IndexEntry {
            media_type: String::new(),
            digest: Digest::of(b""),
            size: 0,
            platform: None,
            annotations: annotations
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        };
        let name = |annotations: &[(&str, &str)]| entry_name(&entry(annotations)).map(|name| name.familiar());
        assert_eq!(
            name(&[
                (layout::FULL_NAME, "docker.io/library/a:1"),
                (layout::SHORT_NAME, "1")
            ]),
            Some("a:1".into())
        );
        assert_eq!(
            name(&[(layout::SHORT_NAME, "localhost/b:2")]),
            Some("localhost/b:2".into())
        );
        assert_eq!(name(&[(layout::SHORT_NAME, "latest")]), None);
        assert_eq!(name(&[]), None);
    }
}
