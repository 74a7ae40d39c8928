//! Networks, and a container's connections to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use skiff_core::container::ContainerView;
use skiff_core::network::{Endpoint, NetworkInfo, NetworkMode};

use crate::{networks, time};

/// `GET /networks/ID`, and an entry of `GET /networks`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Network<'a> {
    name: &'a str,
    id: &'a str,
    created: String,
    scope: &'static str,
    driver: &'a str,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam<'a>,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_from: ConfigFrom,
    config_only: bool,
    containers: BTreeMap<&'a str, Connected<'a>>,
    options: BTreeMap<&'a str, &'a str>,
    labels: BTreeMap<&'a str, &'a str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam<'a> {
    driver: &'static str,
    options: Option<()>,
    config: Vec<Subnet<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Subnet<'a> {
    subnet: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigFrom {
    network: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Connected<'a> {
    name: &'a str,
    #[serde(rename = "EndpointID")]
    endpoint_id: &'a str,
    mac_address: &'a str,
    #[serde(rename = "IPv4Address")]
    ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    ipv6_address: &'static str,
}

impl<'a> Network<'a> {
    /// `running` are the containers to look for connections in; none for the list.
    pub(crate) fn new(network: &'a NetworkInfo, running: &'a [Arc<ContainerView>]) -> Self {
        let subnet = |(subnet, gateway): &'a (String, Option<_>)| Subnet {
            subnet,
            gateway: gateway.as_ref().map(std::net::IpAddr::to_string),
        };
        Self {
            name: &network.name,
            id: &network.id,
            created: time::rfc3339(networks::CREATED),
            scope: "local",
            driver: &network.driver,
            enable_ipv4: true,
            enable_ipv6: false,
            ipam: Ipam {
                driver: "default",
                options: None,
                config: network.subnets.iter().map(subnet).collect(),
            },
            internal: false,
            attachable: false,
            ingress: false,
            config_from: ConfigFrom { network: "" },
            config_only: false,
            containers: running
                .iter()
                .filter_map(|view| Connected::find(view, &network.id))
                .collect(),
            options: network
                .options
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect(),
            labels: BTreeMap::new(),
        }
    }
}

impl<'a> Connected<'a> {
    fn find(view: &'a ContainerView, network_id: &str) -> Option<(&'a str, Self)> {
        let endpoint = view
            .sandbox
            .as_ref()?
            .endpoints
            .iter()
            .find(|endpoint| endpoint.network_id == network_id)?;
        let ipv4_address = endpoint
            .address
            .map(|address| format!("{address}/{}", endpoint.prefix_len))
            .unwrap_or_default();
        let connected = Self {
            name: &view.record.name,
            endpoint_id: &endpoint.endpoint_id,
            mac_address: &endpoint.mac_address,
            ipv4_address,
            ipv6_address: "",
        };
        Some((&view.record.id, connected))
    }
}

/// `NetworkSettings.Networks.NAME` of a container: what was asked for, and what it has while it runs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct EndpointSettings<'a> {
    #[serde(rename = "IPAMConfig")]
    ipam_config: Option<&'a Value>,
    links: Option<&'a Value>,
    aliases: Option<&'a Value>,
    mac_address: &'a str,
    driver_opts: Option<&'a Value>,
    gw_priority: i64,
    #[serde(rename = "NetworkID")]
    network_id: &'a str,
    #[serde(rename = "EndpointID")]
    endpoint_id: &'a str,
    gateway: String,
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    ipv6_gateway: &'static str,
    #[serde(rename = "GlobalIPv6Address")]
    global_ipv6_address: &'static str,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    global_ipv6_prefix_len: u8,
    #[serde(rename = "DNSNames")]
    dns_names: Option<()>,
}

impl<'a> EndpointSettings<'a> {
    fn new(requested: Option<&'a Value>, endpoint: Option<&'a Endpoint>) -> Self {
        let asked = |name: &str| {
            requested
                .and_then(|settings| settings.get(name))
                .filter(|value| !value.is_null())
        };
        Self {
            ipam_config: asked("IPAMConfig"),
            links: asked("Links"),
            aliases: asked("Aliases"),
            mac_address: endpoint
                .map(|endpoint| endpoint.mac_address.as_str())
                .or_else(|| asked("MacAddress")?.as_str())
                .unwrap_or_default(),
            driver_opts: asked("DriverOpts"),
            gw_priority: asked("GwPriority").and_then(Value::as_i64).unwrap_or(0),
            network_id: endpoint
                .map(|endpoint| endpoint.network_id.as_str())
                .unwrap_or_default(),
            endpoint_id: endpoint
                .map(|endpoint| endpoint.endpoint_id.as_str())
                .unwrap_or_default(),
            gateway: endpoint
                .and_then(|e| e.gateway)
                .map(|gateway| gateway.to_string())
                .unwrap_or_default(),
            ip_address: endpoint
                .and_then(|e| e.address)
                .map(|address| address.to_string())
                .unwrap_or_default(),
            ip_prefix_len: endpoint
                .filter(|e| e.address.is_some())
                .map_or(0, |endpoint| endpoint.prefix_len),
            ipv6_gateway: "",
            global_ipv6_address: "",
            global_ipv6_prefix_len: 0,
            dns_names: None,
        }
    }
}

/// All networks of a container by name.
pub(crate) fn endpoints(view: &ContainerView) -> BTreeMap<&str, EndpointSettings<'_>> {
    let requested = &view.record.networking.endpoints_config;
    let connected = view.sandbox.iter().flat_map(|sandbox| &sandbox.endpoints);
    let mut networks: BTreeMap<&str, Option<&Endpoint>> = connected
        .map(|endpoint| (endpoint.network.as_str(), Some(endpoint)))
        .collect();
    for name in requested.keys() {
        networks.entry(network_name(name)).or_default();
    }
    let mode = view.record.host_config.network_mode.as_str();
    if !matches!(NetworkMode::parse(mode), NetworkMode::Container(_)) {
        networks.entry(network_name(mode)).or_default();
    }
    let settings_of = |name: &str| {
        requested
            .get(name)
            .or_else(|| requested.get("default").filter(|_| name == "bridge"))
    };
    networks
        .into_iter()
        .map(|(name, endpoint)| (name, EndpointSettings::new(settings_of(name), endpoint)))
        .collect()
}

/// `default` is the network named `bridge`.
fn network_name(name: &str) -> &str {
    match name {
        "" | "default" => "bridge",
        other => other,
    }
}
