//! Images as clients see them: pull, list, inspect, tag, remove. Bytes and layers are `skiff-store`'s business, the
//! network is `skiff-registry-client`'s; this module decides.
//!
//! ```text
//!   Images ─┬─ find, list, history, tag      read the store's catalogue            find.rs list.rs view.rs
//!           ├─ remove                        a pure plan, carried out in one step  removal.rs
//!           ├─ save, load, import            archives, streamed                     save.rs load.rs import.rs compose.rs
//!           └─ pull ── resolve ── transfers (shared by digest) ── unpack, bottom up ── register
//!                      remote.rs  transfer.rs                     pull.rs            progress.rs
//! ```
//!
//! Called by `api` and by `container` (through its traits). Reading calls only look at memory; `tag` waits for one
//! durable write; everything longer runs on blocking threads.

mod compose;
mod convert;
mod docker_archive;
mod find;
mod history;
mod import;
mod instructions;
mod layout;
mod list;
mod load;
mod pattern;
mod progress;
mod pull;
mod remote;
mod removal;
mod save;
mod transfer;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use serde_json::Value;
use skiff_graphdrivers::{LayerId, SnapshotRef};
use skiff_registry_client::{Client, Credentials, Platform, Reference};
use skiff_store::{Digest, Store};
use tokio::sync::mpsc;

use crate::config::ContainerConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Events;
use crate::filters::Filters;
use crate::pipe::ByteStream;

pub(crate) use compose::{NewImage, new_name};
pub use import::ImportRequest;
pub(crate) use instructions::apply as apply_changes;
pub use load::LoadRequest;

use remote::Remote;
use transfer::Transfers;

/// All images; cheap to clone.
#[derive(Clone)]
pub struct Images {
    shared: Arc<Shared>,
}

/// What [`Images`] is made of.
pub struct ImagesConfig {
    /// Where images are kept.
    pub store: Store,
    /// The way to registries.
    pub client: Client,
    /// Where `pull`, `tag`, `untag` and `delete` are told.
    pub events: Events,
    /// `--max-concurrent-downloads`; 0 is taken as 1.
    pub max_concurrent_downloads: usize,
}

/// Ids of the containers made from an image, those that run marked `true`.
pub type ImageUsers = Arc<dyn Fn(&str) -> Vec<(String, bool)> + Send + Sync>;

struct Shared {
    store: Store,
    events: Events,
    remote: Arc<dyn Remote>,
    transfers: Arc<Transfers>,
    users: OnceLock<ImageUsers>,
    client: Option<Client>,
}

/// An image, read-only.
#[derive(Debug, Clone)]
pub struct ImageView {
    /// `sha256:…` of the configuration.
    pub id: String,
    /// The image it was committed on top of, while that one is here.
    pub parent: Option<String>,
    /// `name:tag` references, in their familiar form (`busybox:latest`).
    pub tags: Vec<String>,
    /// `name@sha256:…` references, familiar form.
    pub digests: Vec<String>,
    /// Creation time from the configuration.
    pub created: Option<Timestamp>,
    /// When this engine last gave it a name.
    pub last_tagged: Option<Timestamp>,
    /// Size of all layers unpacked, in bytes.
    pub size: u64,
    /// `amd64`, …
    pub architecture: String,
    /// Variant, may be empty.
    pub variant: String,
    /// `linux`.
    pub os: String,
    /// Author, may be empty.
    pub author: String,
    /// Comment of the last history entry.
    pub comment: String,
    /// What containers inherit.
    pub config: ContainerConfig,
    /// Diff ids, bottom first.
    pub layers: Vec<String>,
    /// Chain id of the top layer; `None` without layers.
    pub top_layer: Option<String>,
    /// The configuration as it came, for fields that have no place here.
    pub raw_config: Value,
}

/// What images share.
#[derive(Debug, Clone)]
pub struct SharedSizes {
    /// Bytes of all layers of all images, each once.
    pub layers: u64,
    shared: HashMap<String, u64>,
}

impl SharedSizes {
    /// Bytes of those of an image's layers that another image has, too; 0 for an image that was not there.
    pub fn of(&self, id: &str) -> u64 {
        self.shared.get(id).copied().unwrap_or(0)
    }
}

/// `POST /images/create?fromImage=…`.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// The reference as typed: `busybox`, `localhost:5000/a/b:1`, `name@sha256:…`.
    pub reference: String,
    /// `os[/arch[/variant]]`; `None` for this machine's.
    pub platform: Option<String>,
    /// From `X-Registry-Auth`; `None` looks into the daemon user's credential file.
    pub credentials: Option<Credentials>,
}

/// A progress message of a pull, in the order Docker's clients expect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// `Pulling from library/busybox` with the tag as id; `Digest: …`; `Status: …` without id.
    Status {
        /// The text.
        status: String,
        /// Tag or short layer id; `None` for lines about the whole.
        id: Option<String>,
    },
    /// A text for the user that ends with a newline: `Loaded image: …`.
    Text(String),
    /// A layer's progress, in bytes.
    Layer {
        /// Short id of the layer (12 digits of the blob's digest).
        id: String,
        /// `Downloading`, `Extracting`, ….
        status: &'static str,
        /// Bytes so far.
        current: u64,
        /// Bytes in all; 0 when unknown.
        total: u64,
    },
}

/// What `DELETE /images/NAME` did, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// A reference went.
    Untagged(String),
    /// An image or a layer went.
    Deleted(String),
}

/// One line of `GET /images/NAME/history`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Image id for the newest line and those of the images it was committed on top of, `<missing>` for the others.
    pub id: String,
    /// When, in seconds.
    pub created: i64,
    /// The instruction.
    pub created_by: String,
    /// Tags of that image.
    pub tags: Vec<String>,
    /// Bytes of the layer.
    pub size: u64,
    /// Comment.
    pub comment: String,
}

impl Images {
    /// The images of a store.
    pub fn new(config: ImagesConfig) -> Self {
        let remote: Arc<dyn Remote> = Arc::new(config.client.clone());
        let mut images = Self::with_remote(
            config.store,
            remote,
            config.events,
            config.max_concurrent_downloads,
        );
        if let Some(shared) = Arc::get_mut(&mut images.shared) {
            shared.client = Some(config.client);
        }
        images
    }

    fn with_remote(store: Store, remote: Arc<dyn Remote>, events: Events, downloads: usize) -> Self {
        let transfers = Transfers::new(store.clone(), Arc::clone(&remote), downloads);
        let shared = Shared {
            store,
            events,
            remote,
            transfers,
            users: OnceLock::new(),
            client: None,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Says how to learn which containers use an image; without it no image is in use. Only the first call counts.
    pub fn set_users(&self, users: ImageUsers) {
        if self.shared.users.set(users).is_err() {
            tracing::debug!("the image users were set twice");
        }
    }

    /// The store behind the images.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Pulls an image. Progress goes to `progress`. When its receiver goes away (or this future is dropped) the pull is
    /// cancelled; downloads that another pull shares go on, others leave a partial blob that the next pull resumes.
    ///
    /// # Errors
    /// `NotFound` for a missing image or a refused pull (Docker's text), `InvalidParameter` for a bad reference,
    /// `System` (also for missing credentials). Errors after the first progress message are reported in-band by the caller.
    pub async fn pull(&self, request: PullRequest, progress: mpsc::Sender<Progress>) -> Result<()> {
        // dockerd answers 500 where a registry wants credentials: at 401 the docker CLI begins to ask for a name and a
        // password, which a script that waits for the pull never gives.
        let done = |result: Result<()>| {
            result.map_err(|error| match error.kind() {
                ErrorKind::Unauthorized => error.with_kind(ErrorKind::System),
                _ => error,
            })
        };
        tokio::select! {
            result = pull::pull(&self.shared, request, &progress) => done(result),
            () = progress.closed() => Err(Error::system("pull cancelled: the client went away")),
        }
    }

    /// Finds an image by reference, id, or beginning of an id.
    ///
    /// # Errors
    /// `NotFound` "No such image: …"; `InvalidParameter` "invalid reference format".
    pub fn find(&self, reference: &str) -> Result<ImageView> {
        let catalog = self.shared.store.catalog();
        let found = find::find(&catalog, reference)?;
        Ok(view::view(&self.shared.store, &catalog, &found.image))
    }

    /// Where the storage driver keeps an image's top layer, in Docker's words. Empty when the driver has nothing to say,
    /// and while the layer is not unpacked for this driver.
    pub fn graph_data(&self, image: &ImageView) -> Vec<(String, String)> {
        let layer = image.top_layer.as_deref().and_then(|id| LayerId::new(id).ok());
        layer
            .and_then(|layer| {
                let driver = self.shared.store.driver();
                driver.inspect(SnapshotRef::Layer(&layer)).ok()
            })
            .unwrap_or_default()
    }

    /// Lists images, newest first. Without `all`, images that have no name and that another image was committed on top of
    /// are left out.
    ///
    /// # Errors
    /// `InvalidParameter` for an unknown filter or a malformed value; `NotFound` for the image of `before` and `since`.
    pub fn list(&self, all: bool, filters: &Filters) -> Result<Vec<ImageView>> {
        list::list(&self.shared.store, all, filters)
    }

    /// What images share. Costs no walk: layers are measured when they are made.
    pub fn shared_sizes(&self) -> SharedSizes {
        let store = &self.shared.store;
        let sizes = store.sizes(&store.catalog());
        let images = sizes.images.into_iter();
        SharedSizes {
            layers: sizes.layers,
            shared: images.map(|(id, size)| (id.to_string(), size.shared)).collect(),
        }
    }

    /// Gives an image another name. An empty `tag` is `latest`, or what `repository` has behind a colon.
    ///
    /// # Errors
    /// `NotFound`; `InvalidParameter` for a malformed name; `System`.
    pub fn tag(&self, image: &str, repository: &str, tag: &str) -> Result<()> {
        let catalog = self.shared.store.catalog();
        let found = find::find(&catalog, image)?;
        let mut name = Reference::parse(repository)?;
        if name.digest().is_some() {
            return Err(Error::invalid("refusing to create a tag with a digest reference"));
        }
        if !tag.is_empty() {
            name = name.with_tag(tag)?;
        }
        self.shared.store.tag(&found.image.id, convert::key(&name)?)?;
        self.shared.event("tag", &found.image.id, &name.familiar());
        Ok(())
    }

    /// Removes a name, and the image with it when it was the last; or an image by its id. `no_prune` has no effect
    /// yet: only the builder makes images with parents here.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when containers or further names use the image (Docker's texts); `System`.
    pub async fn remove(&self, reference: &str, force: bool, _no_prune: bool) -> Result<Vec<Removal>> {
        removal::remove(&self.shared, reference, force).await
    }

    /// Saves images as one tar stream, an OCI layout that is a Docker archive, too. `names` are references, repositories
    /// (all their tags), ids or beginnings of ids. The stream ends with an error when a blob cannot be read.
    ///
    /// # Errors
    /// `NotFound`, also when an image is for another platform than asked for; `InvalidParameter` for a malformed name;
    /// `System` for a blob that is not there.
    pub async fn save(&self, names: Vec<String>, platform: Option<Platform>) -> Result<ByteStream> {
        save::save(&self.shared, names, platform).await
    }

    /// Loads images from an archive. Cancelled, it leaves nothing but the images that were complete before.
    ///
    /// # Errors
    /// `System` with what is wrong with the archive, or the disk.
    pub async fn load(
        &self,
        request: LoadRequest,
        body: ByteStream,
        progress: mpsc::Sender<Progress>,
    ) -> Result<()> {
        tokio::select! {
            result = load::load(&self.shared, request, body, progress.clone()) => result,
            () = progress.closed() => Err(Error::system("load cancelled: the client went away")),
        }
    }

    /// Makes an image of one layer out of a tar stream. The only message is its id.
    ///
    /// # Errors
    /// `InvalidParameter` for a malformed name, platform or instruction; `NotImplemented` for a source that is no stream;
    /// `System` for a damaged archive.
    pub async fn import(
        &self,
        request: ImportRequest,
        body: ByteStream,
        progress: mpsc::Sender<Progress>,
    ) -> Result<()> {
        tokio::select! {
            result = import::import(self, request, body, &progress) => result,
            () = progress.closed() => Err(Error::system("import cancelled: the client went away")),
        }
    }

    /// The history, newest first.
    ///
    /// # Errors
    /// As [`Images::find`].
    pub fn history(&self, reference: &str) -> Result<Vec<HistoryEntry>> {
        let catalog = self.shared.store.catalog();
        let found = find::find(&catalog, reference)?;
        Ok(history::history(&self.shared.store, &catalog, &found.image))
    }

    /// Checks credentials against a registry (`POST /auth`); returns the status text and an identity token, if any.
    ///
    /// # Errors
    /// `Unauthorized`; `InvalidParameter` for a malformed server name; `System`.
    pub async fn login(&self, server: &str, credentials: Credentials) -> Result<(String, Option<String>)> {
        let client = self.shared.client.as_ref();
        let client = client.ok_or_else(|| Error::unavailable("this engine has no registry client"))?;
        let login = client.login(server, &credentials).await?;
        Ok((login.status, login.identity_token))
    }

    /// Labels, for filters and events; empty for an unknown image.
    pub fn labels(&self, image_id: &str) -> BTreeMap<String, String> {
        let id = image_id.parse::<Digest>().ok();
        id.map(|id| self.shared.labels(&id)).unwrap_or_default()
    }
}

impl Shared {
    fn labels(&self, id: &Digest) -> BTreeMap<String, String> {
        let catalog = self.store.catalog();
        let labels = catalog
            .images
            .get(id)
            .map(|image| &image.config["config"]["Labels"]);
        labels
            .and_then(|labels| serde_json::from_value(labels.clone()).ok())
            .unwrap_or_default()
    }

    /// Tells of a change of an image: its labels and the name used are the attributes.
    fn event(&self, action: &str, id: &Digest, name: &str) {
        let mut attributes = self.labels(id);
        attributes.insert("name".to_owned(), name.to_owned());
        self.events.publish("image", action, id.to_string(), attributes);
    }

    fn users(&self, id: &Digest) -> Vec<(String, bool)> {
        self.users
            .get()
            .map(|users| users(&id.to_string()))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
