//! Images as clients see them: pull, list, inspect, tag, remove. Bytes and layers are `skiff-store`'s business.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;
use skiff_registry_client::Credentials;
use tokio::sync::mpsc;

use crate::config::ContainerConfig;
use crate::error::Result;
use crate::filters::Filters;

/// All images.
#[derive(Clone)]
pub struct Images {
    _private: (),
}

/// An image, read-only.
#[derive(Debug, Clone)]
pub struct ImageView {
    /// `sha256:…` of the configuration.
    pub id: String,
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
    /// Image id for the newest line, `<missing>` for the others.
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

#[expect(clippy::todo, clippy::unused_async, unused_variables, reason = "contract first; bodies follow in this issue")]
impl Images {
    /// Pulls an image. Progress goes to `progress` (the pull goes on when the receiver is gone only if another client
    /// waits for the same pull; otherwise it is cancelled and leaves resumable partial blobs). Two pulls of one image share one download.
    ///
    /// # Errors
    /// `NotFound` for a missing image or a refused pull (Docker's text), `Unauthorized`, `InvalidParameter` for a bad
    /// reference, `System`. Errors after the first progress message are reported in-band by the caller.
    pub async fn pull(&self, request: PullRequest, progress: mpsc::Sender<Progress>) -> Result<()> {
        todo!()
    }
    /// Finds an image by reference, id, or beginning of an id. # Errors `NotFound` "No such image: …".
    pub fn find(&self, reference: &str) -> Result<ImageView> {
        todo!()
    }
    /// Lists images, newest first.
    pub fn list(&self, all: bool, filters: &Filters) -> Result<Vec<ImageView>> {
        todo!()
    }
    /// Gives an image another name. # Errors `NotFound`, `InvalidParameter`.
    pub fn tag(&self, image: &str, repository: &str, tag: &str) -> Result<()> {
        todo!()
    }
    /// Removes a reference, and the image with it when it was the last. `users` lists the containers that use an image id.
    pub async fn remove(&self, reference: &str, force: bool, no_prune: bool) -> Result<Vec<Removal>> {
        todo!()
    }
    /// The history, newest first.
    pub fn history(&self, reference: &str) -> Result<Vec<HistoryEntry>> {
        todo!()
    }
    /// Checks credentials against a registry (`POST /auth`); returns the status text and an identity token, if any.
    pub async fn login(&self, server: &str, credentials: Credentials) -> Result<(String, Option<String>)> {
        todo!()
    }
    /// Labels, for filters and events.
    pub fn labels(&self, image_id: &str) -> BTreeMap<String, String> {
        todo!()
    }
}
