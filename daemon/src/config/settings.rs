//! What one source, the command line or `daemon.json`, says. One struct for both: the option list exists once.
//! The field name is the key in the file; where dockerd's flag has another name, `#[arg]` says so.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

/// Options of one source. `None` was not given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct Settings {
    /// Where to listen: unix:///PATH, tcp://ADDRESS:PORT, fd:// (may be repeated)
    /// [default: unix://$XDG_RUNTIME_DIR/docker.sock; as root unix:///var/run/docker.sock]
    #[arg(short = 'H', long = "host", value_name = "HOST", help_heading = "API")]
    pub(super) hosts: Option<Vec<String>>,

    /// Images, containers and their data [default: ~/.local/share/docker; as root /var/lib/docker]
    #[arg(long, value_name = "PATH", help_heading = "Paths")]
    pub(super) data_root: Option<PathBuf>,

    /// State that a reboot may clear [default: $XDG_RUNTIME_DIR/docker; as root /var/run/docker]
    #[arg(long, value_name = "PATH", help_heading = "Paths")]
    pub(super) exec_root: Option<PathBuf>,

    /// Pid file [default: $XDG_RUNTIME_DIR/docker.pid; as root /var/run/docker.pid]
    #[arg(short = 'p', long, value_name = "PATH", help_heading = "Paths")]
    pub(super) pidfile: Option<PathBuf>,

    /// Storage driver: overlay2, btrfs, fuse-overlayfs or vfs [env: DOCKER_DRIVER] [default: the one in use, else the first that works]
    #[arg(short = 's', long, value_name = "DRIVER", help_heading = "Storage")]
    pub(super) storage_driver: Option<String>,

    /// Option of the storage driver, NAME=VALUE (may be repeated)
    #[arg(long = "storage-opt", value_name = "NAME=VALUE", help_heading = "Storage")]
    pub(super) storage_opts: Option<Vec<String>>,

    /// Registry, HOST[:PORT] or CIDR, that may speak plain HTTP or show an unknown certificate (may be repeated)
    #[arg(
        long = "insecure-registry",
        value_name = "HOST|CIDR",
        help_heading = "Registries"
    )]
    pub(super) insecure_registries: Option<Vec<String>>,

    /// Mirror of Docker Hub (may be repeated)
    #[arg(long = "registry-mirror", value_name = "URL", help_heading = "Registries")]
    pub(super) registry_mirrors: Option<Vec<String>>,

    /// Layers of one pull downloaded at the same time [default: 3]
    #[arg(long, value_name = "N", help_heading = "Registries")]
    pub(super) max_concurrent_downloads: Option<u32>,

    /// Address and prefix length of docker0 [default: 172.17.0.1/16]
    #[arg(long, value_name = "ADDRESS/BITS", help_heading = "Network")]
    pub(super) bip: Option<String>,

    /// MTU of the containers' network [default: 1500]
    #[arg(long, value_name = "BYTES", help_heading = "Network")]
    pub(super) mtu: Option<u32>,

    /// External OCI runtime (may be repeated)
    #[arg(long, value_name = "NAME=PATH", help_heading = "Containers")]
    #[serde(skip)]
    pub(super) add_runtime: Option<Vec<String>>,

    /// External OCI runtimes of the file.
    #[arg(skip)]
    pub(super) runtimes: Option<BTreeMap<String, Runtime>>,

    /// Runtime of containers that name none [default: the embedded one]
    #[arg(long, value_name = "NAME", help_heading = "Containers")]
    pub(super) default_runtime: Option<String>,

    /// Leave containers running when the daemon stops
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
          value_parser = go_bool, help_heading = "Containers")]
    pub(super) live_restore: Option<bool>,

    /// Seconds to wait for containers when the daemon stops; -1 waits without end [default: 15]
    #[arg(
        long,
        value_name = "SECONDS",
        allow_negative_numbers = true,
        help_heading = "Containers"
    )]
    pub(super) shutdown_timeout: Option<i64>,

    /// Label of this daemon, KEY=VALUE (may be repeated)
    #[arg(long = "label", value_name = "KEY=VALUE", help_heading = "Daemon")]
    pub(super) labels: Option<Vec<String>>,

    /// Log more, and show internals in `docker info`
    #[arg(short = 'D', long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", value_parser = go_bool, help_heading = "Daemon")]
    pub(super) debug: Option<bool>,

    /// debug, info, warn, error or fatal [default: info]
    #[arg(short = 'l', long, value_name = "LEVEL", help_heading = "Daemon")]
    pub(super) log_level: Option<String>,

    /// Accepted for old recipes; rootless mode is not experimental here
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
          value_parser = go_bool, help_heading = "Daemon")]
    pub(super) experimental: Option<bool>,
}

/// An external runtime, as in the file's `runtimes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Runtime {
    /// Its program: absolute, or found in PATH.
    pub(crate) path: PathBuf,
    /// Arguments before those of the command.
    #[serde(rename = "runtimeArgs")]
    pub(crate) args: Vec<String>,
}

/// The spellings of Go's `strconv.ParseBool`, which dockerd accepts: `--debug=false`, `--debug=0`.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

impl Settings {
    /// What either source says. The sources are known not to conflict; runtimes of both are kept.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            hosts: self.hosts.or(other.hosts),
            data_root: self.data_root.or(other.data_root),
            exec_root: self.exec_root.or(other.exec_root),
            pidfile: self.pidfile.or(other.pidfile),
            storage_driver: self.storage_driver.or(other.storage_driver),
            storage_opts: self.storage_opts.or(other.storage_opts),
            insecure_registries: self.insecure_registries.or(other.insecure_registries),
            registry_mirrors: self.registry_mirrors.or(other.registry_mirrors),
            max_concurrent_downloads: self.max_concurrent_downloads.or(other.max_concurrent_downloads),
            bip: self.bip.or(other.bip),
            mtu: self.mtu.or(other.mtu),
            add_runtime: self.add_runtime.or(other.add_runtime),
            runtimes: self.runtimes.or(other.runtimes),
            default_runtime: self.default_runtime.or(other.default_runtime),
            live_restore: self.live_restore.or(other.live_restore),
            shutdown_timeout: self.shutdown_timeout.or(other.shutdown_timeout),
            labels: self.labels.or(other.labels),
            debug: self.debug.or(other.debug),
            log_level: self.log_level.or(other.log_level),
            experimental: self.experimental.or(other.experimental),
        }
    }
}
