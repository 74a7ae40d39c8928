//! The catalogue: which images exist and what they are called. One file, replaced by rename, is the truth; memory
//! holds an immutable snapshot that readers share.
//!
//! ```json
//! { "version": 1,
//!   "images":     { "sha256:<configuration>": { "manifests": ["sha256:…"], "registered": "2026-…Z" } },
//!   "references": { "docker.io/library/busybox:latest":    { "image": "sha256:…", "target": "sha256:…", "tagged": "…" },
//!                   "docker.io/library/busybox@sha256:…":  { … } } }
//! ```
//!
//! Repository names are canonical here (with registry and `library/`); the familiar form is the caller's business.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use skiff_graphdrivers::LayerId;

use crate::digest::Digest;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{self, Image};
use crate::{FORMAT_VERSION, Store};

const FILE: &str = "repositories.json";

/// A name of an image: repository and tag, or repository and digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReferenceKey {
    /// Canonical repository: `docker.io/library/busybox`, `localhost:5000/a/b`.
    pub repository: String,
    /// Tag or digest.
    pub selector: Selector,
}

/// What follows the repository in a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Selector {
    /// `:TAG`
    Tag(String),
    /// `@sha256:…`, the digest of a manifest or index.
    Digest(Digest),
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// The image.
    pub image: Digest,
    /// The manifest or index that the name stood for at the registry, kept as a blob.
    pub target: Option<Digest>,
    /// When the name was given.
    pub tagged: Timestamp,
}

/// A state of the catalogue.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// All images.
    pub images: BTreeMap<Digest, Arc<Image>>,
    /// All names.
    pub references: BTreeMap<ReferenceKey, Reference>,
    registered: BTreeMap<Digest, Timestamp>,
    damaged: Damaged,
}

/// Images whose configuration cannot be read, and their names: nobody sees them, but they stay in the file until a pull
/// or a load brings the configuration back, or somebody removes the name.
#[derive(Debug, Clone, Default)]
struct Damaged {
    images: BTreeMap<Digest, DamagedImage>,
    references: BTreeMap<ReferenceKey, Reference>,
}

#[derive(Debug, Clone)]
struct DamagedImage {
    entry: ImageEntry,
    /// What is still there of it, for whoever repairs it.
    blobs: Vec<Digest>,
    /// A manifest cannot be read either, so there may be more.
    more: bool,
}

/// An image to be made known after a pull.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Digest of the configuration.
    pub image: Digest,
    /// The platform's manifest.
    pub manifest: Digest,
    /// What the name stood for: the manifest or the index that led to it.
    pub target: Digest,
    /// Names to give.
    pub names: Vec<ReferenceKey>,
}

/// What to take out of the catalogue, in one step.
#[derive(Debug, Clone, Default)]
pub struct RemovalPlan {
    /// Names to remove.
    pub names: Vec<ReferenceKey>,
    /// An image to remove with all names it still has.
    pub image: Option<Digest>,
    /// What this was decided on; `None` removes whatever is there.
    pub seen: Option<SeenNames>,
}

/// All names that an image had when somebody decided what to remove. A pull may give it another one meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenNames {
    /// The image.
    pub image: Digest,
    /// Its names, in the order of the alphabet.
    pub names: Vec<ReferenceKey>,
}

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Layers that went with the image, topmost first.
    pub layers: Vec<LayerId>,
    /// Bytes of blobs that went.
    pub blob_bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    images: BTreeMap<Digest, ImageEntry>,
    references: BTreeMap<ReferenceKey, Reference>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ImageEntry {
    manifests: Vec<Digest>,
    registered: Timestamp,
}

impl Store {
    /// The present state; later changes do not show in it.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.inner.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes an image known, with its names, in one step. Blobs and layers must be there; hold a lease on them.
    /// Returns the image and whether any of the names is new or stood for something else before.
    ///
    /// # Errors
    /// `NotFound` for a missing blob or layer; `Corrupt` when manifest and configuration do not fit; `NoSpace`; `Io`.
    pub fn register(&self, registration: &Registration) -> Result<(Arc<Image>, bool)> {
        let mut image = Image::parse(registration.image, &self.read_blob(&registration.image)?)?;
        let manifest = self.read_blob(&registration.manifest)?;
        image.add_manifest(registration.manifest, &manifest)?;
        self.require_complete(&image, &registration.target)?;
        self.inner.steps.after("before registration");
        let (image, changed) = self.change(|catalog| {
            let now = Timestamp::now();
            if let Some(known) = catalog.images.get(&image.id) {
                image = Image::clone(known);
                image.add_manifest(registration.manifest, &manifest)?;
                image.reread(&self.inner.root);
            }
            catalog.restore(&mut image, &self.inner.root);
            let image = Arc::new(image);
            catalog.images.insert(image.id, Arc::clone(&image));
            catalog.registered.entry(image.id).or_insert(now);
            let mut changed = false;
            for name in &registration.names {
                changed |= catalog
                    .references
                    .get(name)
                    .is_none_or(|old| old.image != image.id);
                let reference = Reference {
                    image: image.id,
                    target: Some(registration.target),
                    tagged: now,
                };
                catalog.name(name.clone(), reference);
            }
            Ok((image, changed))
        })?;
        self.inner.steps.after("registered");
        Ok((image, changed))
    }

    /// Gives an image another name, taking it from whatever had it.
    ///
    /// # Errors
    /// `NotFound` for the image; `InvalidArgument` for a digest as name; `NoSpace`; `Io`.
    pub fn tag(&self, image: &Digest, name: ReferenceKey) -> Result<()> {
        if matches!(name.selector, Selector::Digest(_)) {
            return Err(Error::invalid("refusing to create a tag with a digest reference"));
        }
        self.change(|catalog| {
            let known = catalog.images.get(image);
            let known = known.ok_or_else(|| Error::not_found(format!("image {image} does not exist")))?;
            let target = known.manifest_digests().next();
            let reference = Reference {
                image: *image,
                target,
                tagged: Timestamp::now(),
            };
            catalog.name(name, reference);
            Ok(())
        })
    }

    /// Removes the name of an image whose configuration cannot be read; [`Store::gc`] takes the rest. False when there is
    /// no such name.
    ///
    /// # Errors
    /// `NoSpace`; `Io`.
    pub fn forget_damaged(&self, name: &ReferenceKey) -> Result<bool> {
        if !self.catalog().damaged.references.contains_key(name) {
            return Ok(false);
        }
        self.change(|catalog| {
            catalog.damaged.forget(name);
            Ok(true)
        })
    }

    /// Removes an image whose configuration cannot be read, by the beginning of its id; its names go with it when there is
    /// but one, or when it is forced. Returns the image and its names; `None` when there is no such image, or no single one.
    ///
    /// # Errors
    /// `Conflict` when it has more names; `NoSpace`; `Io`.
    pub fn forget_damaged_image(
        &self,
        prefix: &str,
        force: bool,
    ) -> Result<Option<(Digest, Vec<ReferenceKey>)>> {
        let catalog = self.catalog();
        let mut found = catalog.damaged.images.keys().filter(|id| id.begins_with(prefix));
        let (Some(&id), None) = (found.next(), found.next()) else {
            return Ok(None);
        };
        self.change(|catalog| {
            let of_image = |_: &ReferenceKey, reference: &mut Reference| reference.image == id;
            let names: Vec<_> = catalog.damaged.references.extract_if(.., of_image).collect();
            if names.len() > 1 && !force {
                // Docker's text.
                let text = format!(
                    "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
                    id.short()
                );
                return Err(Error::new(ErrorKind::Conflict, text));
            }
            catalog.damaged.images.remove(&id);
            Ok(Some((id, names.into_iter().map(|(name, _)| name).collect())))
        })
    }

    /// Removes names, and an image with all its remaining names; then its layers and blobs as far as no other image,
    /// container or lease needs them. Removals are renames; [`Store::purge`] frees the space.
    ///
    /// # Errors
    /// `Conflict` when the image has other names than the plan was made for: nothing was removed, decide again. `NotFound`
    /// for a name or the image; `NoSpace`; `Io`. When the clean-up after the first step fails, the image
    /// is gone all the same and [`Store::gc`] takes the rest.
    pub fn remove(&self, plan: &RemovalPlan) -> Result<Removed> {
        let (image, targets) = self.change(|catalog| {
            if let Some(seen) = &plan.seen
                && !catalog
                    .names_of(&seen.image)
                    .map(|(name, _)| name)
                    .eq(&seen.names)
            {
                let text = format!("the names of image {} have changed meanwhile", seen.image.short());
                return Err(Error::new(ErrorKind::Conflict, text));
            }
            let mut targets = Vec::new();
            for name in &plan.names {
                let gone = catalog.references.remove(name);
                targets.extend(
                    gone.ok_or_else(|| Error::not_found(format!("no such reference: {name}")))?
                        .target,
                );
            }
            let Some(id) = plan.image else {
                return Ok((None, targets));
            };
            let image = catalog.images.remove(&id);
            let image = image.ok_or_else(|| Error::not_found(format!("image {id} does not exist")))?;
            catalog.registered.remove(&id);
            targets.extend(
                catalog
                    .names_of(&id)
                    .filter_map(|(_, reference)| reference.target),
            );
            catalog.references.retain(|_, reference| reference.image != id);
            Ok((Some(image), targets))
        })?;
        self.inner.steps.after("image forgotten");
        let mut removed = Removed::default();
        let mut blobs: HashSet<Digest> = image
            .iter()
            .flat_map(|image| image.blobs())
            .chain(targets)
            .collect();
        if let Some(image) = image {
            let records = image.chain.iter().filter_map(|layer| self.layer(layer));
            blobs.extend(records.filter_map(|record| Some(record.blob.as_ref()?.digest)));
            removed.layers = self.drop_chain(&image.chain)?;
        }
        removed.blob_bytes = self.drop_blobs(&blobs)?.1;
        Ok(removed)
    }

    /// Applies a change to a copy of the catalogue, writes that, and only then shows it.
    fn change<T>(&self, edit: impl FnOnce(&mut Catalog) -> Result<T>) -> Result<T> {
        let _writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut catalog = Catalog::clone(&self.catalog());
        let value = edit(&mut catalog)?;
        durable::write_json(&self.inner.root, FILE, &catalog.document(), &self.inner.steps)?;
        *self.inner.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
        Ok(value)
    }

    fn require_complete(&self, image: &Image, target: &Digest) -> Result<()> {
        if self.blob_size(target)?.is_none() {
            return Err(Error::not_found(format!("blob {target} is not in the store")));
        }
        let holdings = self.holdings();
        match image.chain.iter().find(|id| !holdings.layers.contains_key(*id)) {
            Some(layer) => Err(Error::not_found(format!("layer {layer} is not unpacked"))),
            None => Ok(()),
        }
    }
}

impl Catalog {
    /// The names of an image, in the order of the alphabet.
    pub fn names_of(&self, image: &Digest) -> impl Iterator<Item = (&ReferenceKey, &Reference)> {
        let image = *image;
        self.references
            .iter()
            .filter(move |(_, reference)| reference.image == image)
    }

    /// The images whose id begins with these hexadecimal digits (`sha256:` in front is allowed).
    pub fn by_prefix(&self, prefix: &str) -> Vec<&Arc<Image>> {
        self.images
            .values()
            .filter(|image| image.id.begins_with(prefix))
            .collect()
    }

    /// Gives a name to an image, whatever had it before.
    fn name(&mut self, name: ReferenceKey, reference: Reference) {
        self.damaged.forget(&name);
        self.references.insert(name, reference);
    }

    /// The image can be read again: so can its names that nothing else got meanwhile, and perhaps its other manifests.
    fn restore(&mut self, image: &mut Image, root: &Path) {
        let Some(DamagedImage { entry, .. }) = self.damaged.images.remove(&image.id) else {
            return;
        };
        for manifest in &entry.manifests {
            image.read_manifest(root, manifest);
        }
        self.registered.insert(image.id, entry.registered);
        let of_image = |_: &ReferenceKey, reference: &mut Reference| reference.image == image.id;
        let names: Vec<_> = self.damaged.references.extract_if(.., of_image).collect();
        for (name, reference) in names {
            self.references.entry(name).or_insert(reference);
        }
    }

    /// Every layer some image needs.
    pub(crate) fn needed_layers(&self) -> HashSet<&LayerId> {
        self.images.values().flat_map(|image| &image.chain).collect()
    }

    /// An image with a manifest that cannot be read. While there is one, nobody can say that a blob is not needed.
    pub(crate) fn unread(&self) -> Option<&Digest> {
        let images = self.images.values().filter(|image| !image.unread.is_empty());
        let damaged = self.damaged.images.iter().filter(|(_, image)| image.more);
        images
            .map(|image| &image.id)
            .chain(damaged.map(|(id, _)| id))
            .next()
    }

    /// Every blob some image or name needs, as far as manifests can be read ([`Catalog::unread`]).
    pub(crate) fn needed_blobs(&self) -> HashSet<Digest> {
        let of_images = self.images.values().flat_map(|image| image.blobs());
        of_images
            .chain(self.references.values().filter_map(|reference| reference.target))
            .chain(self.damaged.blobs())
            .collect()
    }

    fn document(&self) -> Document {
        let entry = |image: &Arc<Image>| ImageEntry {
            manifests: image.manifest_digests().collect(),
            registered: self.registered.get(&image.id).copied().unwrap_or_default(),
        };
        let Damaged { images, references } = &self.damaged;
        let damaged = images.iter().map(|(id, image)| (*id, image.entry.clone()));
        let images = self.images.iter().map(|(id, image)| (*id, entry(image)));
        Document {
            version: FORMAT_VERSION,
            images: damaged.chain(images).collect(),
            references: references
                .clone()
                .into_iter()
                .chain(self.references.clone())
                .collect(),
        }
    }
}

impl DamagedImage {
    fn new(root: &Path, entry: ImageEntry) -> Self {
        let mut blobs = entry.manifests.clone();
        let mut more = false;
        for manifest in &entry.manifests {
            match image::layers_of(root, manifest) {
                Ok(layers) => blobs.extend(layers),
                Err(error) => {
                    tracing::error!(%manifest, %error, "a manifest of a damaged image cannot be read");
                    more = true;
                }
            }
        }
        Self { entry, blobs, more }
    }
}

impl Damaged {
    fn blobs(&self) -> impl Iterator<Item = Digest> {
        let of_images = self.images.values().flat_map(|image| image.blobs.iter().copied());
        of_images.chain(self.references.values().filter_map(|reference| reference.target))
    }

    /// A name goes, and with its last name the image.
    fn forget(&mut self, name: &ReferenceKey) {
        if let Some(gone) = self.references.remove(name)
            && !self.references.values().any(|other| other.image == gone.image)
        {
            self.images.remove(&gone.image);
        }
    }
}

/// An image as the catalogue on the disk names it, whether or not it can be read.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    /// Digest of its configuration.
    pub(crate) image: Digest,
    /// Its manifests.
    pub(crate) manifests: Vec<Digest>,
    /// What its names stand for at registries.
    pub(crate) targets: Vec<Digest>,
    /// Its names.
    pub(crate) names: Vec<String>,
}

impl Named {
    /// What people call it.
    pub(crate) fn label(&self) -> String {
        self.names.first().cloned().unwrap_or_else(|| self.image.short())
    }
}

/// The images that the catalogue on the disk names.
///
/// # Errors
/// `Corrupt` when the catalogue cannot be read; `Unsupported` when a newer engine wrote it; `Io`.
pub(crate) fn named(root: &Path) -> Result<Vec<Named>> {
    let Some(document) = read(root)? else {
        return Ok(Vec::new());
    };
    let named = |(id, entry): (Digest, ImageEntry)| {
        let references = document
            .references
            .iter()
            .filter(|(_, reference)| reference.image == id);
        Named {
            image: id,
            manifests: entry.manifests,
            targets: references
                .clone()
                .filter_map(|(_, reference)| reference.target)
                .collect(),
            names: references.map(|(name, _)| name.to_string()).collect(),
        }
    };
    Ok(document.images.into_iter().map(named).collect())
}

fn read(root: &Path) -> Result<Option<Document>> {
    let path = root.join(FILE);
    let document = durable::read_json::<Document>(&path)?;
    match document {
        Some(document) if document.version != FORMAT_VERSION => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} has format {}, this engine reads {FORMAT_VERSION}",
                path.display(),
                document.version
            ),
        )),
        other => Ok(other),
    }
}

/// Reads the catalogue; a store without one is empty. An image whose configuration is damaged is kept out of sight, with
/// an error in the log: one bad disk block must not keep the daemon from starting. What cannot be read is not forgotten:
/// it stays in the catalogue, and no blob is swept as long as a manifest is missing.
pub(crate) fn load(root: &Path) -> Result<Catalog> {
    let Some(document) = read(root)? else {
        return Ok(Catalog::default());
    };
    let mut catalog = Catalog::default();
    for (id, entry) in document.images {
        match Image::load(root, id, &entry.manifests) {
            Ok(image) => {
                catalog.registered.insert(id, entry.registered);
                catalog.images.insert(id, Arc::new(image));
            }
            Err(error) => {
                let names = document.references.iter().filter(|(_, r)| r.image == id);
                let names: Vec<String> = names.map(|(name, _)| name.to_string()).collect();
                tracing::error!(image = %id, ?names, %error, "image is damaged and cannot be used; pull it again");
                catalog.damaged.images.insert(id, DamagedImage::new(root, entry));
            }
        }
    }
    for (name, reference) in document.references {
        if catalog.images.contains_key(&reference.image) {
            catalog.references.insert(name, reference);
        } else if catalog.damaged.images.contains_key(&reference.image) {
            catalog.damaged.references.insert(name, reference);
        }
    }
    Ok(catalog)
}

impl fmt::Display for ReferenceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            Selector::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

impl FromStr for ReferenceKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (repository, selector) = match text.split_once('@') {
            Some((repository, digest)) => (repository, Selector::Digest(digest.parse()?)),
            // The last colon: a registry's port comes before a slash, and a tag holds neither.
            None => match text.rsplit_once(':') {
                Some((repository, tag)) if !tag.contains('/') => (repository, Selector::Tag(tag.to_owned())),
                _ => {
                    return Err(Error::invalid(format!(
                        "reference {text:?} has neither tag nor digest"
                    )));
                }
            },
        };
        if repository.is_empty() {
            return Err(Error::invalid(format!("reference {text:?} has no repository")));
        }
        Ok(Self {
            repository: repository.to_owned(),
            selector,
        })
    }
}

impl Serialize for ReferenceKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ReferenceKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
