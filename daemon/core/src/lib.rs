//! The engine's domain: containers, images, networks, events, and the traits it needs of the layers beside it.
//!
//! Called by `skiff-api` (which turns HTTP into these calls and their results into JSON) and wired up by `skiffd`.
//! Invariants: knows no HTTP; reads neither the environment nor the home directory; one owner per container.

pub mod config;
pub mod container;
mod error;
pub mod events;
pub mod filters;
pub mod images;
pub mod network;
mod pipe;
pub mod runtime;
pub mod system;
pub mod usage;

use std::sync::Arc;

pub use error::{Error, ErrorKind, Result};
pub use pipe::ByteStream;
pub use skiff_registry_client::{AuthConfig, Credentials, Platform};

/// Everything a front end needs; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    /// Containers.
    pub containers: container::Containers,
    /// Images.
    pub images: images::Images,
    /// Events.
    pub events: events::Events,
    /// Networks.
    pub networks: Arc<dyn network::Networks>,
    /// The runtime.
    pub runtime: Arc<dyn runtime::Runtime>,
    /// Facts for `info` and `version`.
    pub facts: Arc<system::SystemFacts>,
}
