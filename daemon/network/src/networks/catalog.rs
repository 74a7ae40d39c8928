//! What the networks are called and how a container's connection to one is described. Decides nothing that lasts.

use std::net::IpAddr;
use std::path::Path;

use skiff_core::network::{Endpoint, NetworkInfo, NetworkMode, SandboxRequest};
use skiff_core::{Error, Result};

use super::{Predefined, Shared, random};
use crate::ipam;
use crate::resolv_conf::{Overrides, Reader, ResolvConf};
use crate::sandbox::Plug;

impl Shared {
    pub(super) fn resolve(&self, mode: &NetworkMode) -> Result<Predefined> {
        match mode {
            NetworkMode::None => Ok(Predefined::None),
            NetworkMode::Host => Ok(Predefined::Host),
            NetworkMode::Bridge => Ok(Predefined::Bridge),
            NetworkMode::Container(_) => Err(Error::not_implemented(
                "joining another container's network (--network container:NAME) is not supported yet",
            )),
            NetworkMode::Named(name) => self
                .by_name_or_id(name)
                .ok_or_else(|| Error::not_found(format!("network {name} not found"))),
        }
    }

    /// A network by its name, its id or an unambiguous beginning of its id.
    fn by_name_or_id(&self, name: &str) -> Option<Predefined> {
        let networks = [
            ("none", &self.ids.none, Predefined::None),
            ("host", &self.ids.host, Predefined::Host),
            ("bridge", &self.ids.bridge, Predefined::Bridge),
        ];
        let mut matching = networks
            .iter()
            .filter(|(own, id, _)| *own == name || (!name.is_empty() && id.starts_with(name)));
        let found = matching.next()?;
        matching.next().is_none().then_some(found.2)
    }

    pub(super) fn endpoint(&self, network: Predefined, plug: Option<&Plug>) -> Result<Endpoint> {
        let (name, id) = match network {
            Predefined::None => ("none", &self.ids.none),
            Predefined::Host => ("host", &self.ids.host),
            Predefined::Bridge => ("bridge", &self.ids.bridge),
        };
        Ok(Endpoint {
            network: name.to_owned(),
            network_id: id.clone(),
            endpoint_id: random(64)?,
            address: plug.map(|plug| plug.address),
            prefix_len: plug.map_or(0, |plug| plug.prefix_len),
            gateway: plug.map(|plug| plug.gateway),
            mac_address: plug.map_or_else(String::new, |plug| ipam::format_mac(plug.mac)),
            host_interface: plug.map_or_else(String::new, |plug| plug.host_name.clone()),
        })
    }

    pub(super) fn resolv_conf(&self, request: &SandboxRequest, network: Predefined) -> String {
        let config = &self.config;
        let reader = match network {
            Predefined::Host => Reader::Host,
            Predefined::None | Predefined::Bridge => Reader::Sandbox {
                forwarder: self.forwarder(),
            },
        };
        let overrides = Overrides {
            nameservers: first_filled(&request.dns, &config.dns),
            search: first_filled(&request.dns_search, &config.dns_search),
            options: first_filled(&request.dns_options, &config.dns_options),
        };
        let mut source = config.host_resolv_conf.as_path();
        let mut text = read_text(source);
        if reader == (Reader::Sandbox { forwarder: None }) && ResolvConf::parse(&text).is_systemd_resolved() {
            source = &config.resolved_resolv_conf;
            text = read_text(source);
        }
        let overridden = !(overrides.nameservers.is_empty()
            && overrides.search.is_empty()
            && overrides.options.is_empty());
        if reader == Reader::Host && !overridden {
            return text;
        }
        ResolvConf::parse(&text).generate(&source.to_string_lossy(), overrides, reader)
    }

    pub(super) fn list(&self) -> Vec<NetworkInfo> {
        let config = &self.config;
        let option = |name: &str, value: &str| (format!("com.docker.network.{name}"), value.to_owned());
        let plain = |name: &str, id: &str, driver: &str| NetworkInfo {
            name: name.to_owned(),
            id: id.to_owned(),
            driver: driver.to_owned(),
            subnets: Vec::new(),
            options: Vec::new(),
        };
        let bridge = NetworkInfo {
            subnets: vec![(config.bip.cidr(), Some(IpAddr::V4(config.bip.address())))],
            options: vec![
                option("bridge.default_bridge", "true"),
                option("bridge.enable_icc", "true"),
                option("bridge.enable_ip_masquerade", "true"),
                option("bridge.host_binding_ipv4", "0.0.0.0"),
                option("bridge.name", &config.bridge),
                option("driver.mtu", &config.mtu.to_string()),
            ],
            ..plain("bridge", &self.ids.bridge, "bridge")
        };
        vec![
            bridge,
            plain("host", &self.ids.host, "host"),
            plain("none", &self.ids.none, "null"),
        ]
    }
}

fn first_filled<'a, T>(own: &'a [T], fallback: &'a [T]) -> &'a [T] {
    if own.is_empty() { fallback } else { own }
}

/// The file's text; a host without the file has an empty configuration, as for the resolver.
fn read_text(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use skiff_core::network::Networks as _;
    use skiff_core::runtime::NetworkNamespace;

    use super::super::BridgeNetworks;
    use super::*;
    use crate::config::NetworkConfig;

    fn networks(directory: &Path) -> BridgeNetworks {
        BridgeNetworks::new(NetworkConfig::new(
            directory.join("exec"),
            directory.join("state"),
        ))
        .unwrap()
    }

    #[test]
    fn modes_are_checked_with_dockers_words() {
        use skiff_core::ErrorKind;
        let directory = tempfile::tempdir().unwrap();
        let networks = networks(directory.path());
        for mode in [NetworkMode::None, NetworkMode::Host, NetworkMode::Bridge] {
            networks.check(&mode).unwrap();
        }
        let error = networks
            .check(&NetworkMode::Named("x-net".to_owned()))
            .unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::NotFound, "network x-net not found")
        );
        let error = networks
            .check(&NetworkMode::Container("abc".to_owned()))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotImplemented);
    }

    #[test]
    fn a_network_is_found_by_its_id_or_its_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let networks = networks(directory.path());
        for info in networks.list() {
            networks
                .check(&NetworkMode::Named(info.id[..12].to_owned()))
                .unwrap();
            networks.check(&NetworkMode::Named(info.id)).unwrap();
        }
        assert!(networks.check(&NetworkMode::Named(String::new())).is_err());
    }

    #[test]
    fn the_list_shows_what_docker_shows() {
        let directory = tempfile::tempdir().unwrap();
        let list = networks(directory.path()).list();
        let drivers: Vec<_> = list
            .iter()
            .map(|info| (info.name.as_str(), info.driver.as_str()))
            .collect();
        assert_eq!(
            drivers,
            [("bridge", "bridge"), ("host", "host"), ("none", "null")]
        );
        assert_eq!(
            list[0].subnets,
            [("172.17.0.0/16".to_owned(), Some("172.17.0.1".parse().unwrap()))]
        );
        assert!(
            list[0]
                .options
                .contains(&("com.docker.network.bridge.name".to_owned(), "docker0".to_owned()))
        );
    }

    #[test]
    fn impossible_settings_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for bridge in ["", "a/b", "sixteen-bytes-xx", "a b", ".."] {
            let mut config = NetworkConfig::new(directory.path(), directory.path());
            config.bridge = bridge.to_owned();
            assert_eq!(
                BridgeNetworks::new(config).unwrap_err().kind(),
                skiff_core::ErrorKind::InvalidParameter
            );
        }
        let mut config = NetworkConfig::new(directory.path(), directory.path());
        config.mtu = 10;
        assert!(BridgeNetworks::new(config).is_err());
    }

    #[tokio::test]
    async fn host_mode_needs_no_sandbox_and_gives_the_hosts_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = NetworkConfig::new(directory.path().join("exec"), directory.path().join("state"));
        config.host_resolv_conf = directory.path().join("resolv.conf");
        std::fs::write(&config.host_resolv_conf, "nameserver 127.0.0.53 # mine\n").unwrap();
        let networks = BridgeNetworks::new(config).unwrap();
        let mut request = SandboxRequest {
            container_id: "c1".to_owned(),
            mode: NetworkMode::Host,
            dns: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
            mac_address: None,
        };
        let sandbox = networks.connect(&request).await.unwrap();
        assert_eq!(sandbox.namespace, NetworkNamespace::Host);
        assert_eq!(sandbox.key, None);
        assert_eq!(sandbox.resolv_conf, "nameserver 127.0.0.53 # mine\n");
        assert_eq!(sandbox.endpoints[0].network, "host");

        request.dns = vec!["192.0.2.9".parse().unwrap()];
        let sandbox = networks.connect(&request).await.unwrap();
        assert!(sandbox.resolv_conf.contains("\nnameserver 192.0.2.9\n"));
        networks.disconnect("c1").await.unwrap();
    }
}
