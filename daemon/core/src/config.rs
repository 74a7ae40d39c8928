//! A container's configuration as clients give it and as it is kept on disk.
//!
//! The field names are those of the Engine API, because the same JSON is what `inspect` must give back (ADR 0003);
//! what has no field here is kept in `other`, echoed by `inspect`, and reported by [`HostConfig::unsupported`]
//! when it asks for something: nothing is ignored in silence.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// The portable part: what an image can also set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// Host name; empty for the short id.
    #[serde(deserialize_with = "null_default")]
    pub hostname: String,
    /// NIS domain name.
    #[serde(deserialize_with = "null_default")]
    pub domainname: String,
    /// `USER[:GROUP]`.
    #[serde(deserialize_with = "null_default")]
    pub user: String,
    /// Attach standard input.
    #[serde(deserialize_with = "null_default")]
    pub attach_stdin: bool,
    /// Attach standard output.
    #[serde(deserialize_with = "null_default")]
    pub attach_stdout: bool,
    /// Attach standard error.
    #[serde(deserialize_with = "null_default")]
    pub attach_stderr: bool,
    /// Ports the image says it listens on, `80/tcp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, Value>>,
    /// Pseudo-terminal.
    #[serde(deserialize_with = "null_default")]
    pub tty: bool,
    /// Keep standard input open.
    #[serde(deserialize_with = "null_default")]
    pub open_stdin: bool,
    /// Close standard input after one client.
    #[serde(deserialize_with = "null_default")]
    pub stdin_once: bool,
    /// Environment, `NAME=value`; a bare `NAME` removes the image's.
    pub env: Option<Vec<String>>,
    /// Command, or arguments of the entrypoint.
    #[serde(deserialize_with = "string_or_list")]
    pub cmd: Option<Vec<String>>,
    /// Health check; kept as given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Value>,
    /// Windows only; kept for images that carry it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args_escaped: Option<bool>,
    /// The image reference as the client gave it.
    #[serde(deserialize_with = "null_default")]
    pub image: String,
    /// Anonymous volumes.
    pub volumes: Option<BTreeMap<String, Value>>,
    /// Working directory.
    #[serde(deserialize_with = "null_default")]
    pub working_dir: String,
    /// Entrypoint; `Some([""])` and `Some([])` reset the image's.
    #[serde(deserialize_with = "string_or_list")]
    pub entrypoint: Option<Vec<String>>,
    /// `--network none` of old clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_disabled: Option<bool>,
    /// Deprecated place of the link address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// Build triggers of the image.
    pub on_build: Option<Vec<String>>,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Signal that asks the container to end; the image's, or SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// Shell of build instructions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}

/// The part that binds a container to this host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// `SOURCE:TARGET[:OPTIONS]`.
    pub binds: Option<Vec<String>>,
    /// Where the container's id is written by the client; echoed only.
    #[serde(rename = "ContainerIDFile", deserialize_with = "null_default")]
    pub container_id_file: String,
    /// Log driver and its options.
    #[serde(deserialize_with = "null_default")]
    pub log_config: LogConfig,
    /// Network mode; see [`crate::network::NetworkMode`].
    #[serde(deserialize_with = "null_default")]
    pub network_mode: String,
    /// Published ports, `80/tcp` → host addresses.
    #[serde(deserialize_with = "null_default")]
    pub port_bindings: BTreeMap<String, Option<Vec<Value>>>,
    /// Restart policy.
    #[serde(deserialize_with = "null_default")]
    pub restart_policy: RestartPolicy,
    /// Remove the container when it ends (`--rm`).
    #[serde(deserialize_with = "null_default")]
    pub auto_remove: bool,
    /// `[rows, columns]` of the client's terminal.
    pub console_size: Option<[u16; 2]>,
    /// Capabilities to add.
    pub cap_add: Option<Vec<String>>,
    /// Capabilities to drop.
    pub cap_drop: Option<Vec<String>>,
    /// cgroup namespace: `private` or `host`.
    #[serde(deserialize_with = "null_default")]
    pub cgroupns_mode: String,
    /// Name servers.
    #[serde(deserialize_with = "null_default")]
    pub dns: Vec<String>,
    /// Resolver options.
    #[serde(deserialize_with = "null_default")]
    pub dns_options: Vec<String>,
    /// Search domains.
    #[serde(deserialize_with = "null_default")]
    pub dns_search: Vec<String>,
    /// Lines for /etc/hosts, `NAME:ADDRESS`.
    pub extra_hosts: Option<Vec<String>>,
    /// Additional groups.
    pub group_add: Option<Vec<String>>,
    /// IPC namespace: empty, `private`, `host`, ….
    #[serde(deserialize_with = "null_default")]
    pub ipc_mode: String,
    /// OOM preference, -1000 to 1000.
    #[serde(deserialize_with = "null_default")]
    pub oom_score_adj: i32,
    /// Process-id namespace: empty, `host`, `container:…`.
    #[serde(deserialize_with = "null_default")]
    pub pid_mode: String,
    /// All capabilities, no filters.
    #[serde(deserialize_with = "null_default")]
    pub privileged: bool,
    /// Publish all exposed ports.
    #[serde(deserialize_with = "null_default")]
    pub publish_all_ports: bool,
    /// Read-only root file system.
    #[serde(deserialize_with = "null_default")]
    pub readonly_rootfs: bool,
    /// `seccomp=…`, `no-new-privileges`, `apparmor=…`, `label=…`.
    pub security_opt: Option<Vec<String>>,
    /// Memory file systems, path → options.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs: Option<BTreeMap<String, String>>,
    /// UTS namespace: empty or `host`.
    #[serde(rename = "UTSMode", deserialize_with = "null_default")]
    pub uts_mode: String,
    /// User namespace: empty or `host`.
    #[serde(deserialize_with = "null_default")]
    pub userns_mode: String,
    /// Size of /dev/shm in bytes; 0 for 64 MiB.
    #[serde(deserialize_with = "null_default")]
    pub shm_size: i64,
    /// Kernel parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sysctls: Option<BTreeMap<String, String>>,
    /// Runtime name.
    #[serde(deserialize_with = "null_default")]
    pub runtime: String,
    /// Devices.
    pub devices: Option<Vec<DeviceMapping>>,
    /// Resource limits of the process.
    pub ulimits: Option<Vec<Ulimit>>,
    /// Run an init as pid 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// Mounts in the structured form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Vec<Mount>>,
    /// Paths to mask; `None` for the default list.
    pub masked_paths: Option<Vec<String>>,
    /// Paths to make read-only; `None` for the default list.
    pub readonly_paths: Option<Vec<String>>,
    /// OCI annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Everything else, as given.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Log driver and options.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// `json-file` or `none`; empty for the default.
    #[serde(rename = "Type", deserialize_with = "null_default")]
    pub driver: String,
    /// `max-size`, `max-file` ….
    #[serde(rename = "Config", deserialize_with = "null_default")]
    pub options: BTreeMap<String, String>,
}

/// Restart policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// `no`, `always`, `unless-stopped`, `on-failure`, or empty.
    #[serde(deserialize_with = "null_default")]
    pub name: String,
    /// For `on-failure`: how often; 0 without end.
    #[serde(deserialize_with = "null_default")]
    pub maximum_retry_count: i64,
}

/// A device to pass in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceMapping {
    /// Path on the host.
    pub path_on_host: String,
    /// Path in the container.
    pub path_in_container: String,
    /// `rwm` or a part of it.
    pub cgroup_permissions: String,
}

/// A resource limit (setrlimit(2)); -1 is unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ulimit {
    /// `nofile`, `nproc`, …
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}

/// A mount in the structured form (`--mount`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Mount {
    /// Path in the container.
    pub target: String,
    /// Path on the host, or a volume's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// `bind`, `volume`, `tmpfs`, …
    #[serde(rename = "Type")]
    pub kind: String,
    /// Mount read-only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Options of bind mounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<BindOptions>,
    /// Options of tmpfs mounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<TmpfsOptions>,
    /// Everything else, as given.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Options of a bind mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BindOptions {
    /// Propagation; empty for `rprivate`.
    pub propagation: String,
    /// Do not bind the mounts below.
    pub non_recursive: bool,
    /// Make a missing source directory.
    pub create_mountpoint: bool,
}

/// Options of a tmpfs mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TmpfsOptions {
    /// Size in bytes; 0 for the kernel's default.
    pub size_bytes: i64,
    /// Mode bits of its root; 0 for 01777.
    pub mode: u32,
}

/// `NetworkingConfig` of a create request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkingConfig {
    /// Settings of each network's endpoint, as given.
    #[serde(deserialize_with = "null_default")]
    pub endpoints_config: BTreeMap<String, Value>,
}

impl HostConfig {
    /// The fields of `other` that ask for something this engine does not do, in the order of the alphabet.
    /// Zero, `false`, empty and `null` ask for nothing, nor do values the stock CLI always sends.
    pub fn unsupported(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .other
            .iter()
            .filter(|(name, value)| !asks_for_nothing(value) && !is_cli_default(name, value))
            .map(|(name, _)| name.as_str())
            .collect();
        names.sort_unstable();
        names
    }
}

fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Bool(true) => false,
    }
}

/// `docker run` sends `MemorySwappiness: -1` and a few empty values on each create.
fn is_cli_default(name: &str, value: &Value) -> bool {
    matches!((name, value.as_i64()), ("MemorySwappiness", Some(-1)))
        || (name == "Isolation" && value.as_str() == Some("default"))
}

/// Docker's clients send `null` where they mean the zero value.
fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Commands may be given as one string or as a list (Docker's `StrSlice`).
fn string_or_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    Ok(
        Option::<Either>::deserialize(deserializer)?.map(|either| match either {
            Either::One(text) => vec![text],
            Either::Many(list) => list,
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_absent_mean_the_zero_value() {
        let config: ContainerConfig =
            serde_json::from_str(r#"{"Image":"busybox","Cmd":"true","Tty":null,"Entrypoint":null}"#).unwrap();
        assert_eq!(config.cmd.as_deref(), Some(&["true".to_owned()][..]));
        assert_eq!(config.entrypoint, None);
        assert!(!config.tty);
    }

    #[test]
    fn unsupported_fields_are_named_and_kept() {
        let host: HostConfig = serde_json::from_str(
            r#"{"Memory":1048576,"CpuShares":0,"MemorySwappiness":-1,"Links":null,"NanoCpus":5,"AutoRemove":true}"#,
        )
        .unwrap();
        assert_eq!(host.unsupported(), ["Memory", "NanoCpus"]);
        let back = serde_json::to_value(&host).unwrap();
        assert_eq!(back["Memory"], 1_048_576);
        assert_eq!(back["AutoRemove"], true);
    }
}
