//! What the domain needs of the network: a sandbox (network namespace) per container with its endpoints.
//! `skiff-network` implements it with netlink alone.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::runtime::NetworkNamespace;

/// The networks as the domain sees them.
#[async_trait]
pub trait Networks: Send + Sync + 'static {
    /// Checks a `NetworkMode` at container creation, without side effect.
    ///
    /// # Errors
    /// `NotFound` "network x not found"; `NotImplemented` for modes that are not supported yet.
    fn check(&self, mode: &NetworkMode) -> Result<()>;

    /// Makes the container's sandbox and connects it.
    ///
    /// # Errors
    /// `System`; nothing is left behind.
    async fn connect(&self, request: &SandboxRequest) -> Result<Sandbox>;

    /// Removes the sandbox and returns its addresses to the pool. Unknown ids are not an error.
    async fn disconnect(&self, container_id: &str) -> Result<()>;

    /// After a daemon restart: keeps the sandboxes of `live` containers (given with what [`Networks::connect`] returned),
    /// removes all others.
    async fn recover(&self, live: &[(String, Sandbox)]) -> Result<()>;

    /// The networks that exist, for `GET /networks`, `GET /info` and inspect.
    fn list(&self) -> Vec<NetworkInfo>;
}

/// `HostConfig.NetworkMode`, parsed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// `none`: loopback only.
    None,
    /// `host`: the host's own namespace.
    Host,
    /// `default` and `bridge`: docker0.
    Bridge,
    /// `container:NAME|ID`.
    Container(String),
    /// A network by name or id.
    Named(String),
}

/// What a container asks of the network.
#[derive(Debug, Clone)]
pub struct SandboxRequest {
    /// The container's id.
    pub container_id: String,
    /// Its mode.
    pub mode: NetworkMode,
    /// `--dns` servers; empty for the default.
    pub dns: Vec<IpAddr>,
    /// `--dns-search`.
    pub dns_search: Vec<String>,
    /// `--dns-option`.
    pub dns_options: Vec<String>,
    /// `--mac-address`, as `02:42:ac:11:00:02`.
    pub mac_address: Option<String>,
}

/// A connected sandbox; kept with the container's state so that a restarted daemon can adopt it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The namespace for the runtime.
    pub namespace: NetworkNamespace,
    /// Where the namespace is bound; `None` for host mode. Shown as `NetworkSettings.SandboxKey`.
    pub key: Option<PathBuf>,
    /// Name servers, search list and options for /etc/resolv.conf, as the file's text.
    pub resolv_conf: String,
    /// Connections to networks.
    pub endpoints: Vec<Endpoint>,
}

/// A container's connection to one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name of the network (`bridge`).
    pub network: String,
    /// Id of the network, 64 hexadecimal digits.
    pub network_id: String,
    /// Id of this endpoint, 64 hexadecimal digits.
    pub endpoint_id: String,
    /// Address in the container, if any.
    pub address: Option<Ipv4Addr>,
    /// Length of the prefix of `address`.
    pub prefix_len: u8,
    /// Default route.
    pub gateway: Option<Ipv4Addr>,
    /// Link address, as `02:42:ac:11:00:02`; empty when there is none.
    pub mac_address: String,
    /// The veth's name on the bridge's side, for the operator; empty when there is none.
    pub host_interface: String,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkInfo {
    /// Its name.
    pub name: String,
    /// Its id, 64 hexadecimal digits; the same over restarts.
    pub id: String,
    /// `bridge`, `host` or `null`.
    pub driver: String,
    /// Subnets with their gateway.
    pub subnets: Vec<(String, Option<IpAddr>)>,
    /// Driver options, as Docker shows them.
    pub options: Vec<(String, String)>,
}

impl NetworkMode {
    /// Parses `HostConfig.NetworkMode`; empty means `default`.
    pub fn parse(text: &str) -> Self {
        match text {
            "" | "default" | "bridge" => Self::Bridge,
            "none" => Self::None,
            "host" => Self::Host,
            other => match other.strip_prefix("container:") {
                Some(name) => Self::Container(name.to_owned()),
                None => Self::Named(other.to_owned()),
            },
        }
    }
}
