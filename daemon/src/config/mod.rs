//! The daemon's configuration: flags, `daemon.json`, environment and defaults, settled into one value.
//!
//! ```text
//! command line ─► Settings ─┐
//!                           ├─► merge (conflicts are errors) ─► settle (defaults, checks) ─► Config
//! daemon.json ──► Settings ─┘          keys.rs: every name dockerd knows, and what it means here
//! ```
//!
//! Read once, by the parent (or by the daemon itself as root); the daemon gets the settled value over the boot channel.

mod cli;
mod file;
mod keys;
mod settings;
mod settle;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use cli::{Outcome, parse};
pub(crate) use settings::Runtime;
pub(crate) use settle::reload;

/// Everything the daemon was told, with all defaults filled in. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    /// Started by an ordinary user.
    pub(crate) rootless: bool,
    /// Where to listen; never empty.
    pub(crate) hosts: Vec<Host>,
    /// Images and containers.
    pub(crate) data_root: PathBuf,
    /// State that need not survive a reboot.
    pub(crate) exec_root: PathBuf,
    /// Names the process that holds the namespaces (rootless) or the daemon (as root).
    pub(crate) pidfile: PathBuf,
    /// `daemon.json`, also when there is none.
    pub(crate) config_file: PathBuf,
    /// `--storage-driver`; `None` to choose by what is there and what works.
    pub(crate) storage_driver: Option<String>,
    /// Options of the storage driver, `NAME=VALUE`.
    pub(crate) storage_opts: Vec<String>,
    /// `--storage-opt oversized-ids=squash`: owners that do not exist in the user namespace are folded onto one that does.
    pub(crate) squash_oversized_ids: bool,
    /// Registries that may speak plain HTTP or have unverified certificates: `HOST[:PORT]` or CIDR.
    pub(crate) insecure_registries: Vec<String>,
    /// Mirrors of Docker Hub, as URLs.
    pub(crate) registry_mirrors: Vec<String>,
    /// Layers of one pull downloaded at the same time; at least 1.
    pub(crate) max_concurrent_downloads: usize,
    /// `--experimental`; only shown.
    pub(crate) experimental: bool,
    /// `--debug`.
    pub(crate) debug: bool,
    /// `--log-level`; `--debug` overrides it.
    pub(crate) log_level: LogLevel,
    /// Leave containers running when the daemon stops.
    pub(crate) live_restore: bool,
    /// Seconds to wait for containers when the daemon stops; negative waits without end.
    pub(crate) shutdown_timeout: i64,
    /// Address and prefix length of docker0, `172.17.0.1/16`.
    pub(crate) bip: Option<String>,
    /// MTU of docker0 and its containers.
    pub(crate) mtu: Option<u32>,
    /// `KEY=VALUE`.
    pub(crate) labels: Vec<String>,
    /// External runtimes by name.
    pub(crate) runtimes: BTreeMap<String, Runtime>,
    /// Runtime of containers that name none; `None` for the embedded one.
    pub(crate) default_runtime: Option<String>,
    /// `DOCKERD_ROOTLESS_ROOTLESSKIT_NET`: which program connects the containers to the world; `None` to probe.
    pub(crate) uplink: Option<String>,
    /// `DOCKERD_ROOTLESS_ROOTLESSKIT_MTU`: MTU of that connection.
    pub(crate) uplink_mtu: Option<u32>,
    /// `DOCKERD_ROOTLESS_ROOTLESSKIT_DISABLE_HOST_LOOPBACK=false`: containers may reach the host's loopback.
    pub(crate) host_loopback: bool,
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`.
    pub(crate) proxies: [Option<String>; 3],
    /// Folders with certificates of registries, `HOST[:PORT]/*.crt`; those that do not exist are skipped.
    pub(crate) certificate_directories: Vec<PathBuf>,
    /// `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`: credentials of pulls that bring none.
    pub(crate) credentials_file: Option<PathBuf>,
    /// What was accepted and has no effect, one sentence each; logged at start.
    pub(crate) warnings: Vec<String>,
}

/// A place to listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Host {
    /// `unix:///path`.
    Unix(PathBuf),
    /// `tcp://address:port`.
    Tcp(String),
    /// `fd://`: all sockets the service manager passed; `fd://N`: only that descriptor.
    Fd(Option<u32>),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Fd(None) => f.write_str("fd://"),
            Self::Fd(Some(number)) => write!(f, "fd://{number}"),
        }
    }
}

/// How much is logged; each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// `error`, `fatal` and `panic`.
    Error,
    /// `warn`.
    Warn,
    /// `info`.
    Info,
    /// `debug`.
    Debug,
    /// `trace`.
    Trace,
}

/// What keeps the daemon from starting, in dockerd's words where it has words for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConfigError(String);

impl ConfigError {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl Config {
    /// The level in force.
    pub(crate) fn effective_log_level(&self) -> LogLevel {
        if self.debug {
            self.log_level.max(LogLevel::Debug)
        } else {
            self.log_level
        }
    }
}
