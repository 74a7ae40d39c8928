//! Facts about this daemon and this machine, for `GET /info`, `GET /version` and `GET /_ping`.
//! They are gathered once by the program at start-up; this crate reads neither files nor the environment for them.

use std::path::PathBuf;

/// What does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct SystemFacts {
    /// Id of this daemon, a UUID kept in the data root.
    pub id: String,
    /// Version of this program.
    pub version: String,
    /// Commit it was built from, may be empty.
    pub git_commit: String,
    /// Build time, RFC 3339, may be empty.
    pub build_time: String,
    /// Version of the compiler.
    pub compiler: String,
    /// `uname -r`.
    pub kernel_version: String,
    /// `PRETTY_NAME` of /etc/os-release.
    pub operating_system: String,
    /// `VERSION_ID` of /etc/os-release.
    pub os_version: String,
    /// `x86_64` or `aarch64`, as in uname.
    pub architecture: String,
    /// Processors.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Host name.
    pub hostname: String,
    /// Data root.
    pub data_root: PathBuf,
    /// Exec root.
    pub exec_root: PathBuf,
    /// Runs without root.
    pub rootless: bool,
    /// `name=seccomp,profile=builtin`, `name=rootless`, …
    pub security_options: Vec<String>,
    /// `none`, `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// Storage driver's name.
    pub storage_driver: String,
    /// Storage driver's rows.
    pub storage_status: Vec<(String, String)>,
    /// Registries that may speak plain HTTP or have unverified certificates, host names and CIDRs.
    pub insecure_registries: Vec<String>,
    /// Mirrors of Docker Hub.
    pub registry_mirrors: Vec<String>,
    /// `--debug`.
    pub debug: bool,
    /// `--experimental`.
    pub experimental: bool,
    /// `--live-restore`.
    pub live_restore: bool,
    /// Lines shown by `docker info` as warnings.
    pub warnings: Vec<String>,
    /// Components besides the engine, for `docker version`.
    pub components: Vec<Component>,
    /// Labels of this daemon.
    pub labels: Vec<String>,
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY` as the daemon uses them, credentials masked.
    pub proxies: [String; 3],
}

/// A part of the engine with a version of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Rows shown below it.
    pub details: Vec<(String, String)>,
}

/// The newest Engine API version spoken.
pub const API_VERSION: &str = "1.51";
/// The oldest.
pub const MIN_API_VERSION: &str = "1.24";
