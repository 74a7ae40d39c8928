//! What others may see of a container: an immutable snapshot, published by its owner after each change.
//! `inspect`, `list` and `wait` read views only and never wait for a container's owner.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::state::State;
use crate::config::{ContainerConfig, HostConfig, NetworkingConfig};
use crate::network::Sandbox;

/// A snapshot of one container.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// What does not change with each start.
    pub record: std::sync::Arc<Record>,
    /// Where it is in its life.
    pub state: State,
    /// How often the restart policy started it.
    pub restart_count: u64,
    /// Its network while it runs.
    pub sandbox: Option<Sandbox>,
    /// How many times it has ended (failed starts included) since this daemon knows it; `wait` watches this number.
    pub exits: u64,
    /// Exit code of the last end.
    pub last_exit: i64,
}

/// A container's lasting description, kept in `containers/ID/config.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Format of this record; see ARCHITECTURE.md, "State on disk".
    pub version: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    /// When it was created.
    pub created: Timestamp,
    /// Image id, `sha256:…`.
    pub image: String,
    /// Top layer of the image (a chain id); `None` for an image without layers.
    pub image_top_layer: Option<String>,
    /// Platform of the image, `linux`.
    pub os: String,
    /// The storage driver that holds its writable layer.
    pub driver: String,
    /// First word of the command line.
    pub path: String,
    /// The other words.
    pub args: Vec<String>,
    /// The merged configuration (request over image).
    pub config: ContainerConfig,
    /// The host part, completed with the defaults.
    pub host_config: HostConfig,
    /// As requested.
    pub networking: NetworkingConfig,
    /// Its mounts, resolved.
    pub mounts: Vec<MountPoint>,
    /// Directory of its files (`hostname`, `hosts`, `resolv.conf`, logs).
    pub directory: PathBuf,
}

/// A resolved mount, as `inspect` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MountPoint {
    /// `bind` or `tmpfs`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Path on the host.
    pub source: String,
    /// Path in the container.
    pub destination: String,
    /// Options as text.
    pub mode: String,
    /// Writable.
    #[serde(rename = "RW")]
    pub rw: bool,
    /// Mount propagation.
    pub propagation: String,
}

impl Record {
    /// The log file of the json-file driver.
    pub fn log_path(&self) -> PathBuf {
        self.directory.join(format!("{}-json.log", self.id))
    }
}
