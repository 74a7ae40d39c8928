//! `GET /images/get`: images as one tar stream, an OCI layout with Docker's `manifest.json` beside it (ADR 13).
//!
//! ```text
//!   names ─▶ plan (pure: which images under which names) ─▶ lease, manifests, sizes ─▶ stream: blobs by digest, documents
//! ```
//!
//! Blobs are copied as they are kept, one after the other through a small buffer. The same images and names give the same
//! bytes, whatever was pulled or loaded in between: order and headers depend on nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use skiff_archive::BundleWriter;
use skiff_registry_client::{Platform, Reference};
use skiff_store::{Catalog, Digest, Image, Lease, Manifest, ReferenceKey, Selector, Store};

use super::layout::{self, DockerImage, Document, Index, IndexEntry, Repositories};
use super::pull::blocking;
use super::{Shared, convert, find};
use crate::error::{Error, Result};
use crate::pipe::{ByteSink, ByteStream, byte_stream};

/// How much of a blob is copied at a time.
const PIECE: usize = 256 * 1024;

/// Images by id, each with the names it is saved under.
type Plan = BTreeMap<Digest, BTreeSet<ReferenceKey>>;

/// Saves images. Everything that can be wrong with the request is found before the stream begins.
pub(super) async fn save(
    shared: &Arc<Shared>,
    names: Vec<String>,
    platform: Option<Platform>,
) -> Result<ByteStream> {
    let store = shared.store.clone();
    let saving = blocking(move || {
        let lease = store.lease();
        let catalog = store.catalog();
        let plan = plan(&catalog, &names)?;
        if let Some(platform) = &platform {
            require_platform(&catalog, &plan, platform)?;
        }
        Saving::new(store, &catalog, &plan, lease)
    })
    .await?;
    let (sink, stream) = byte_stream();
    let shared = Arc::clone(shared);
    tokio::task::spawn_blocking(move || saving.run(&shared, sink));
    Ok(stream)
}

/// Which images are meant, and under which names. A repository without a tag means all its tags.
fn plan(catalog: &Catalog, typed: &[String]) -> Result<Plan> {
    let mut plan = Plan::new();
    for name in typed {
        if find::whole_id(name).is_some() || name.starts_with("sha256:") {
            plan.entry(find::find(catalog, name)?.image.id).or_default();
            continue;
        }
        let reference = Reference::parse(name)?;
        if reference.digest().is_some() {
            plan.entry(find::find(catalog, name)?.image.id).or_default();
        } else if has_tag(name) {
            let key = convert::key(&reference)?;
            let known = catalog.references.get(&key);
            let known = known.ok_or_else(|| Error::not_found("reference does not exist"))?;
            plan.entry(known.image).or_default().insert(key);
        } else {
            let repository = reference.name();
            let tags = catalog
                .references
                .iter()
                .filter(|(key, _)| key.repository == repository && matches!(key.selector, Selector::Tag(_)));
            let mut any = false;
            for (key, known) in tags {
                any = true;
                plan.entry(known.image).or_default().insert(key.clone());
            }
            if !any {
                let found = find::find(catalog, name);
                let found = found.map_err(|_| Error::not_found(format!("No such image: {name}")))?;
                plan.entry(found.image.id).or_default();
            }
        }
    }
    Ok(plan)
}

/// Whether what the user typed ends in a tag: a colon after the last slash.
fn has_tag(typed: &str) -> bool {
    typed.rsplit('/').next().is_some_and(|last| last.contains(':'))
}

fn require_platform(catalog: &Catalog, plan: &Plan, platform: &Platform) -> Result<()> {
    for image in plan.keys().filter_map(|id| catalog.images.get(id)) {
        let text = |field: &str| image.config[field].as_str().unwrap_or_default();
        let own = Platform::new(text("os"), text("architecture"), text("variant"));
        if own != *platform {
            return Err(Error::not_found(format!(
                "image {} was found but its platform ({own}) does not match the specified platform ({platform})",
                image.id
            )));
        }
    }
    Ok(())
}

/// An archive about to be written. Holds all its blobs.
struct Saving {
    store: Store,
    images: Vec<Digest>,
    /// Blobs with their sizes, in the order of their digests.
    blobs: BTreeMap<Digest, u64>,
    /// Documents, in the order of their names.
    documents: BTreeMap<&'static str, Vec<u8>>,
    lease: Lease,
}

impl Saving {
    fn new(store: Store, catalog: &Catalog, plan: &Plan, lease: Lease) -> Result<Self> {
        let mut this = Self {
            store,
            images: plan.keys().copied().collect(),
            blobs: BTreeMap::new(),
            documents: BTreeMap::new(),
            lease,
        };
        let (mut entries, mut images, mut repositories) = (Vec::new(), Vec::new(), Repositories::new());
        for (id, names) in plan {
            let image = catalog.images.get(id);
            let image = image.ok_or_else(|| Error::not_found(format!("No such image: {id}")))?;
            this.image(
                catalog,
                image,
                names,
                &mut entries,
                &mut images,
                &mut repositories,
            )?;
        }
        let index = Index {
            schema_version: 2,
            media_type: layout::OCI_INDEX.to_owned(),
            manifests: entries,
        };
        this.documents.insert(layout::INDEX, layout::encode(&index)?);
        this.documents.insert(layout::MANIFEST, layout::encode(&images)?);
        this.documents
            .insert(layout::LAYOUT, layout::LAYOUT_TEXT.as_bytes().to_vec());
        if !repositories.is_empty() {
            this.documents
                .insert(layout::REPOSITORIES, layout::encode(&repositories)?);
        }
        Ok(this)
    }

    fn image(
        &mut self,
        catalog: &Catalog,
        image: &Image,
        names: &BTreeSet<ReferenceKey>,
        entries: &mut Vec<IndexEntry>,
        images: &mut Vec<DockerImage>,
        repositories: &mut Repositories,
    ) -> Result<()> {
        self.hold(image.id)?;
        let nameless = names.is_empty().then_some(None);
        let mut described: Option<&Manifest> = None;
        for name in names.iter().map(Some).chain(nameless) {
            let target = name.and_then(|name| catalog.references.get(name)?.target);
            let manifest = self.manifest_of(image, target)?;
            described.get_or_insert(manifest);
            let size = self.hold(manifest.digest)?;
            for layer in &manifest.layers {
                self.hold(layer.digest)?;
            }
            entries.push(self.entry(manifest, size, name)?);
            if let (Some(name), Some(top)) = (name, manifest.layers.last())
                && let Selector::Tag(tag) = &name.selector
            {
                let tags = repositories
                    .entry(convert::familiar_repository(name))
                    .or_default();
                tags.insert(tag.clone(), top.digest.hex());
            }
        }
        let layers = described
            .map(|manifest| manifest.layers.as_slice())
            .unwrap_or_default();
        images.push(DockerImage {
            config: layout::blob_path(&image.id),
            repo_tags: (!names.is_empty()).then(|| names.iter().map(convert::familiar).collect()),
            layers: layers
                .iter()
                .map(|layer| layout::blob_path(&layer.digest))
                .collect(),
        });
        Ok(())
    }

    /// The manifest that a name stands for: its target, or the one of the image that its target, an index, lists.
    fn manifest_of<'i>(&self, image: &'i Image, target: Option<Digest>) -> Result<&'i Manifest> {
        let known = |digest: &Digest| image.manifests.iter().find(|manifest| manifest.digest == *digest);
        if let Some(target) = target {
            if let Some(manifest) = known(&target) {
                return Ok(manifest);
            }
            let index: Option<Document> = serde_json::from_slice(&self.store.read_blob(&target)?).ok();
            let listed = index.and_then(|index| index.manifests).unwrap_or_default();
            if let Some(manifest) = listed.iter().find_map(|entry| known(&entry.digest)) {
                return Ok(manifest);
            }
        }
        image
            .manifests
            .first()
            .ok_or_else(|| Error::system(format!("image {} has lost its manifest; pull it again", image.id)))
    }

    fn entry(&self, manifest: &Manifest, size: u64, name: Option<&ReferenceKey>) -> Result<IndexEntry> {
        let document: Document =
            serde_json::from_slice(&self.store.read_blob(&manifest.digest)?).map_err(|e| {
                Error::system(format!("manifest {} cannot be read", manifest.digest)).caused_by(e)
            })?;
        let mut annotations = BTreeMap::new();
        if let Some(name) = name
            && let Selector::Tag(tag) = &name.selector
        {
            annotations.insert(layout::FULL_NAME.to_owned(), name.to_string());
            annotations.insert(layout::SHORT_NAME.to_owned(), tag.clone());
        }
        Ok(IndexEntry {
            media_type: document.manifest_type(),
            digest: manifest.digest,
            size,
            platform: None,
            annotations,
        })
    }

    /// Takes a blob into the archive; gives its size.
    fn hold(&mut self, digest: Digest) -> Result<u64> {
        if let Some(size) = self.blobs.get(&digest) {
            return Ok(*size);
        }
        let size = self.lease.blob(&digest)?.ok_or_else(|| {
            Error::system(format!(
                "blob {digest} is not kept here any more; pull the image again"
            ))
        })?;
        self.blobs.insert(digest, size);
        Ok(size)
    }

    fn run(self, shared: &Shared, mut sink: ByteSink) {
        match self.write(&mut sink) {
            Ok(()) => {
                for id in &self.images {
                    shared.event("save", id, &id.to_string());
                }
            }
            Err(error) => {
                // The head is out, so all that can be done is to break off; a client that left knows.
                tracing::warn!(%error, "saving images broke off");
                sink.fail(std::io::Error::other(error.to_string()));
            }
        }
    }

    fn write(&self, sink: &mut ByteSink) -> Result<()> {
        let mut archive = BundleWriter::new(sink);
        let mut buffer = vec![0; PIECE];
        archive.directory("blobs")?;
        archive.directory(layout::BLOBS)?;
        for (digest, size) in &self.blobs {
            archive.file(&layout::blob_path(digest), *size)?;
            let mut blob = self.store.open_blob(digest)?.take(*size);
            let mut copied = 0;
            loop {
                let count = blob
                    .read(&mut buffer)
                    .map_err(|e| Error::system(format!("read blob {digest}")).caused_by(e))?;
                if count == 0 {
                    break;
                }
                archive.data(&buffer[..count])?;
                copied += count as u64;
            }
            if copied != *size {
                return Err(Error::system(format!(
                    "blob {digest} became shorter while it was read"
                )));
            }
        }
        for (name, document) in &self.documents {
            archive.file(name, document.len() as u64)?;
            archive.data(document)?;
        }
        archive.finish()?;
        Ok(())
    }
}
