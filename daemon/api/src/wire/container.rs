//! Containers: the line of a list, and the whole of an inspection.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use skiff_core::config::{ContainerConfig, HostConfig};
use skiff_core::container::state::Status;
use skiff_core::container::view::MountPoint;
use skiff_core::container::{ContainerSize, ContainerView};

use super::image::GraphDriver;
use super::network::{EndpointSettings, endpoints};
use crate::time;

/// An entry of `GET /containers/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Summary<'a> {
    id: &'a str,
    names: [String; 1],
    image: &'a str,
    #[serde(rename = "ImageID")]
    image_id: &'a str,
    command: String,
    created: i64,
    ports: Vec<Port<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_rw: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_root_fs: Option<u64>,
    labels: BTreeMap<&'a str, &'a str>,
    state: &'static str,
    status: String,
    host_config: SummaryHostConfig<'a>,
    network_settings: SummaryNetworkSettings<'a>,
    mounts: &'a [MountPoint],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Port<'a> {
    private_port: u16,
    #[serde(rename = "Type")]
    protocol: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct SummaryHostConfig<'a> {
    network_mode: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a BTreeMap<String, String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct SummaryNetworkSettings<'a> {
    networks: BTreeMap<&'a str, EndpointSettings<'a>>,
}

impl<'a> Summary<'a> {
    pub(crate) fn new(view: &'a ContainerView, now: Timestamp) -> Self {
        let record = &*view.record;
        let status = view.state.status();
        let labels = record.config.labels.iter().flatten();
        Self {
            id: &record.id,
            names: [format!("/{}", record.name)],
            image: &record.config.image,
            image_id: &record.image,
            command: command(&record.path, &record.args),
            created: record.created.as_second(),
            ports: if status.running {
                ports(&record.config)
            } else {
                Vec::new()
            },
            size_rw: None,
            size_root_fs: None,
            labels: labels
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect(),
            state: status.word,
            status: status_text(&status, now),
            host_config: SummaryHostConfig {
                network_mode: &record.host_config.network_mode,
                annotations: record.host_config.annotations.as_ref(),
            },
            network_settings: SummaryNetworkSettings {
                networks: endpoints(view),
            },
            mounts: &record.mounts,
        }
    }

    pub(crate) fn set_size(&mut self, size: Option<ContainerSize>) {
        self.size_rw = size.map(|size| size.rw);
        self.size_root_fs = size.map(|size| size.root_fs);
    }
}

/// The command line as `docker ps` shows it; arguments with spaces in quotes.
fn command(path: &str, args: &[String]) -> String {
    args.iter().fold(path.to_owned(), |line, arg| {
        if arg.contains(' ') {
            format!("{line} '{arg}'")
        } else {
            format!("{line} {arg}")
        }
    })
}

/// The ports the image says it listens on; none is published.
fn ports(config: &ContainerConfig) -> Vec<Port<'_>> {
    let exposed = config
        .exposed_ports
        .iter()
        .flatten()
        .map(|(port, _)| port.as_str());
    exposed
        .filter_map(|port| {
            let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
            Some(Port {
                private_port: number.parse().ok()?,
                protocol,
            })
        })
        .collect()
}

/// `Up 5 seconds`, `Exited (0) 2 minutes ago`, `Created`.
fn status_text(status: &Status, now: Timestamp) -> String {
    let since = |time: Option<Timestamp>| time.map(|time| time::human(now.duration_since(time)));
    match (status.word, since(status.started_at), since(status.finished_at)) {
        ("removing", ..) => "Removal In Progress".to_owned(),
        ("dead", ..) => "Dead".to_owned(),
        ("paused", Some(up), _) => format!("Up {up} (Paused)"),
        ("restarting", _, Some(ago)) => format!("Restarting ({}) {ago} ago", status.exit_code),
        ("running", Some(up), _) => format!("Up {up}"),
        ("exited", _, Some(ago)) => format!("Exited ({}) {ago} ago", status.exit_code),
        _ => "Created".to_owned(),
    }
}

/// `GET /containers/ID/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Inspect<'a> {
    id: &'a str,
    created: String,
    path: &'a str,
    args: &'a [String],
    state: InspectState,
    image: &'a str,
    resolv_conf_path: String,
    hostname_path: String,
    hosts_path: String,
    log_path: String,
    name: String,
    restart_count: u64,
    driver: &'a str,
    platform: &'a str,
    mount_label: &'static str,
    process_label: &'static str,
    app_armor_profile: &'static str,
    #[serde(rename = "ExecIDs")]
    exec_ids: Option<()>,
    host_config: &'a HostConfig,
    graph_driver: GraphDriver<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_rw: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_root_fs: Option<u64>,
    mounts: &'a [MountPoint],
    config: &'a ContainerConfig,
    network_settings: NetworkSettings<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct InspectState {
    status: &'static str,
    running: bool,
    paused: bool,
    restarting: bool,
    #[serde(rename = "OOMKilled")]
    oom_killed: bool,
    dead: bool,
    pid: u32,
    exit_code: i32,
    error: String,
    started_at: String,
    finished_at: String,
}

impl InspectState {
    fn new(status: Status) -> Self {
        Self {
            status: status.word,
            running: status.running,
            paused: status.word == "paused",
            restarting: status.word == "restarting",
            oom_killed: status.oom_killed,
            dead: status.dead,
            pid: status.pid,
            exit_code: status.exit_code,
            error: status.error,
            started_at: time::rfc3339(status.started_at),
            finished_at: time::rfc3339(status.finished_at),
        }
    }
}

/// The container's network. The fields from `EndpointID` to `MacAddress` repeat the connection to the default
/// bridge, for old clients.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings<'a> {
    bridge: &'static str,
    #[serde(rename = "SandboxID")]
    sandbox_id: &'a str,
    sandbox_key: String,
    ports: BTreeMap<&'a str, Option<()>>,
    hairpin_mode: bool,
    #[serde(rename = "LinkLocalIPv6Address")]
    link_local_ipv6_address: &'static str,
    #[serde(rename = "LinkLocalIPv6PrefixLen")]
    link_local_ipv6_prefix_len: u8,
    #[serde(rename = "SecondaryIPAddresses")]
    secondary_ip_addresses: Option<()>,
    #[serde(rename = "SecondaryIPv6Addresses")]
    secondary_ipv6_addresses: Option<()>,
    #[serde(rename = "EndpointID")]
    endpoint_id: &'a str,
    gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    global_ipv6_address: &'static str,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    global_ipv6_prefix_len: u8,
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    ipv6_gateway: &'static str,
    mac_address: &'a str,
    networks: BTreeMap<&'a str, EndpointSettings<'a>>,
}

impl<'a> NetworkSettings<'a> {
    fn new(view: &'a ContainerView) -> Self {
        let sandbox = view.sandbox.as_ref();
        let bridge = sandbox.and_then(|s| s.endpoints.iter().find(|endpoint| endpoint.network == "bridge"));
        let running = view.state.status().running;
        let exposed = view
            .record
            .config
            .exposed_ports
            .iter()
            .flatten()
            .filter(|_| running);
        Self {
            bridge: "",
            // Sandboxes are named after their container.
            sandbox_id: sandbox.map(|_| view.record.id.as_str()).unwrap_or_default(),
            sandbox_key: sandbox
                .and_then(|sandbox| sandbox.key.as_ref())
                .map(|key| key.display().to_string())
                .unwrap_or_default(),
            ports: exposed.map(|(port, _)| (port.as_str(), None)).collect(),
            hairpin_mode: false,
            link_local_ipv6_address: "",
            link_local_ipv6_prefix_len: 0,
            secondary_ip_addresses: None,
            secondary_ipv6_addresses: None,
            endpoint_id: bridge
                .map(|endpoint| endpoint.endpoint_id.as_str())
                .unwrap_or_default(),
            gateway: bridge
                .and_then(|e| e.gateway)
                .map(|gateway| gateway.to_string())
                .unwrap_or_default(),
            global_ipv6_address: "",
            global_ipv6_prefix_len: 0,
            ip_address: bridge
                .and_then(|e| e.address)
                .map(|address| address.to_string())
                .unwrap_or_default(),
            ip_prefix_len: bridge
                .filter(|e| e.address.is_some())
                .map_or(0, |endpoint| endpoint.prefix_len),
            ipv6_gateway: "",
            mac_address: bridge
                .map(|endpoint| endpoint.mac_address.as_str())
                .unwrap_or_default(),
            networks: endpoints(view),
        }
    }
}

impl<'a> Inspect<'a> {
    /// Something is wrong with a container that runs.
    pub(crate) fn set_error(&mut self, error: String) {
        self.state.error = error;
    }

    /// `graph` are the storage driver's rows.
    pub(crate) fn new(
        view: &'a ContainerView,
        size: Option<ContainerSize>,
        graph: &'a [(String, String)],
    ) -> Self {
        let record = &*view.record;
        let file = |name: &str| record.directory.join(name).display().to_string();
        let log_path = match record.host_config.log_config.driver.as_str() {
            "" | "json-file" => record.log_path().display().to_string(),
            _ => String::new(),
        };
        Self {
            id: &record.id,
            created: time::rfc3339(Some(record.created)),
            path: &record.path,
            args: &record.args,
            state: InspectState::new(view.state.status()),
            image: &record.image,
            resolv_conf_path: file("resolv.conf"),
            hostname_path: file("hostname"),
            hosts_path: file("hosts"),
            log_path,
            name: format!("/{}", record.name),
            restart_count: view.restart_count,
            driver: &record.driver,
            platform: &record.os,
            mount_label: "",
            process_label: "",
            app_armor_profile: "",
            exec_ids: None,
            host_config: &record.host_config,
            graph_driver: GraphDriver::new(&record.driver, graph),
            size_rw: size.map(|size| size.rw),
            size_root_fs: size.map(|size| size.root_fs),
            mounts: &record.mounts,
            config: &record.config,
            network_settings: NetworkSettings::new(view),
        }
    }
}

#[cfg(test)]
mod tests;
