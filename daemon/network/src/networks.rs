//! [`BridgeNetworks`]: who has which sandbox.
//!
//! ```text
//!            connect                     made                      disconnect
//!   (absent) ───────▶ entry, locked  ──────────▶ entry: Some(Held) ──────────▶ (absent)
//!                          │ failed: undone, (absent)
//! ```
//!
//! An entry is locked while its sandbox is made or removed, so `disconnect` waits for a `connect` under way.
//! `connect` and `disconnect` finish in tasks of their own even if their caller goes away.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use skiff_core::network::{Endpoint, NetworkInfo, NetworkMode, Networks, Sandbox, SandboxRequest};
use skiff_core::runtime::NetworkNamespace;
use skiff_core::{Error, Result};
use tokio::sync::{Mutex as AsyncMutex, OnceCell, RwLock};

use crate::bridge::{Bridge, BridgeSettings};
use crate::config::NetworkConfig;
use crate::ids::{NetworkIds, random_hex};
use crate::ipam::{self, Pool};
use crate::resolv_conf::{Overrides, Reader, ResolvConf};
use crate::sandbox::{self, Plug};
use crate::uplink::{self, Uplink};

/// The predefined networks: `none`, `host` and the default bridge. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BridgeNetworks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: NetworkConfig,
    ids: NetworkIds,
    /// Set up at the first need or by [`BridgeNetworks::prepare`]; a failure is tried again at the next need.
    bridge: OnceCell<Arc<Bridge>>,
    pool: Mutex<Pool>,
    entries: Mutex<HashMap<String, Entry>>,
    /// The way out of the bridge's namespace, if it needs one and a program is installed.
    uplink: Option<Uplink>,
    /// Held for reading while a sandbox is made, for writing while strays are removed.
    recovery: Arc<RwLock<()>>,
}

/// What a container has; `None` while it is being made and after it was removed.
type Entry = Arc<AsyncMutex<Option<Held>>>;

#[derive(Debug, Clone)]
struct Held {
    key: PathBuf,
    plug: Option<HeldPlug>,
}

#[derive(Debug, Clone)]
struct HeldPlug {
    host_name: String,
    address: Ipv4Addr,
}

/// The networks that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Predefined {
    None,
    Host,
    Bridge,
}

impl BridgeNetworks {
    /// Reads or makes the networks' ids; touches no network yet.
    ///
    /// # Errors
    /// `InvalidParameter` for an impossible bridge name or MTU, `System` when `state_dir` cannot be used.
    pub fn new(config: NetworkConfig) -> Result<Self> {
        let name = config.bridge.as_str();
        let usable = !name.is_empty() && name.len() <= 15 && name != "." && name != "..";
        if !usable || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
            return Err(Error::invalid(format!("invalid bridge name {name:?}")));
        }
        // RFC 791: every host must take 68 bytes; more than 65535 does not fit an IPv4 packet.
        if !(68..=65535).contains(&config.mtu) {
            return Err(Error::invalid(format!(
                "invalid MTU {}: must be between 68 and 65535",
                config.mtu
            )));
        }
        let ids = NetworkIds::load_or_create(&config.state_dir)?;
        let pool = Mutex::new(Pool::new(config.bip));
        let uplink = Uplink::new(&config)?;
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                ids,
                bridge: OnceCell::new(),
                pool,
                entries: Mutex::default(),
                uplink,
                recovery: Arc::default(),
            }),
        })
    }

    /// Starts setting up the default bridge without waiting for it; whoever needs it first waits. A failure is
    /// logged, and reported again by the connection that needs the bridge.
    pub fn prepare(&self) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            if let Err(error) = shared.bridge().await {
                tracing::error!(%error, "cannot set up the default bridge; containers need --network none or host");
            }
        });
    }

    /// Waits until the default bridge exists and what [`Networks::recover`] began is finished; sets the bridge up if
    /// [`BridgeNetworks::prepare`] was not called.
    ///
    /// # Errors
    /// `System` with the request the kernel refused.
    pub async fn ready(&self) -> Result<()> {
        let _recovered = self.shared.recovery.read().await;
        self.shared.bridge().await.map(|_| ())
    }

    /// Ends the uplink at an orderly stop of the daemon, unless a container on the bridge lives on
    /// (`--live-restore`). Sandboxes are removed by `disconnect`, bridge and rules go with their namespace.
    pub async fn shut_down(&self) {
        let Some(uplink) = &self.shared.uplink else { return };
        if self.shared.bridge_users().await == 0 {
            uplink.shut_down().await;
        }
    }
}

#[async_trait]
impl Networks for BridgeNetworks {
    fn check(&self, mode: &NetworkMode) -> Result<()> {
        self.shared.resolve(mode).map(|_| ())
    }

    async fn connect(&self, request: &SandboxRequest) -> Result<Sandbox> {
        let (shared, request) = (Arc::clone(&self.shared), request.clone());
        in_own_task(async move { shared.connect(&request).await }).await
    }

    async fn disconnect(&self, container_id: &str) -> Result<()> {
        let (shared, id) = (Arc::clone(&self.shared), container_id.to_owned());
        in_own_task(async move { shared.disconnect(&id).await }).await
    }

    async fn recover(&self, live: &[(String, Sandbox)]) -> Result<()> {
        let (shared, live) = (Arc::clone(&self.shared), live.to_vec());
        in_own_task(async move { shared.recover(&live).await }).await
    }

    fn list(&self) -> Vec<NetworkInfo> {
        self.shared.list()
    }
}

impl Shared {
    fn resolve(&self, mode: &NetworkMode) -> Result<Predefined> {
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

    /// The default bridge, set up on first use.
    async fn bridge(self: &Arc<Self>) -> Result<Arc<Bridge>> {
        let bridge = self.bridge.get_or_try_init(|| {
            let shared = Arc::clone(self);
            async move { in_blocking_thread(move || shared.set_up_bridge()).await }
        });
        bridge.await.cloned()
    }

    fn set_up_bridge(&self) -> Result<Arc<Bridge>> {
        let config = &self.config;
        let settings = BridgeSettings {
            name: config.bridge.clone(),
            bip: config.bip,
            mtu: config.mtu,
            forwarder: self.forwarder(),
        };
        let bridge = Bridge::set_up(config.netns.as_ref().map(|netns| netns.as_fd()), &settings)?;
        tracing::info!(
            "Default bridge ({}) is assigned with an IP address {}. Daemon option --bip can be used to set a preferred IP address",
            config.bridge,
            config.bip.cidr(),
        );
        Ok(Arc::new(bridge))
    }

    /// Where the uplink answers DNS queries.
    fn forwarder(&self) -> Option<Ipv4Addr> {
        self.uplink.as_ref().map(|_| uplink::FORWARDER)
    }

    /// How many sandboxes are connected to the bridge.
    async fn bridge_users(&self) -> usize {
        let entries: Vec<Entry> = self.entries().values().cloned().collect();
        let mut users = 0;
        for entry in entries {
            users += usize::from(
                entry
                    .lock()
                    .await
                    .as_ref()
                    .is_some_and(|held| held.plug.is_some()),
            );
        }
        users
    }

    async fn connect(self: &Arc<Self>, request: &SandboxRequest) -> Result<Sandbox> {
        let network = self.resolve(&request.mode)?;
        if network == Predefined::Host {
            return Ok(Sandbox {
                namespace: NetworkNamespace::Host,
                key: None,
                resolv_conf: self.resolv_conf(request, network),
                endpoints: vec![self.endpoint(network, None)?],
            });
        }
        let key = sandbox::key(&self.config.exec_root, &request.container_id)?;
        let _not_during_recovery = self.recovery.read().await;
        let entry = Entry::default();
        let mut held = Arc::clone(&entry).lock_owned().await;
        self.claim(&request.container_id, entry)?;
        match self.make_sandbox(request, network, key).await {
            Ok((sandbox, made)) => {
                *held = Some(made);
                Ok(sandbox)
            }
            Err(error) => {
                self.entries().remove(&request.container_id);
                Err(error)
            }
        }
    }

    fn claim(&self, container_id: &str, entry: Entry) -> Result<()> {
        let mut entries = self.entries();
        if entries.contains_key(container_id) {
            return Err(Error::conflict(format!(
                "container {container_id} is already connected to a network"
            )));
        }
        entries.insert(container_id.to_owned(), entry);
        Ok(())
    }

    async fn make_sandbox(
        self: &Arc<Self>,
        request: &SandboxRequest,
        network: Predefined,
        key: PathBuf,
    ) -> Result<(Sandbox, Held)> {
        let plug = match network {
            Predefined::Bridge => Some(self.make_plug(request).await?),
            Predefined::None | Predefined::Host => None,
        };
        let made = match self.endpoint(network, plug.as_ref()) {
            Ok(endpoint) => self.make_namespace(&key, plug.as_ref()).await.map(|()| endpoint),
            Err(error) => Err(error),
        };
        let endpoint =
            made.inspect_err(|_| plug.iter().for_each(|plug| self.pool().release(plug.address)))?;
        let sandbox = Sandbox {
            namespace: NetworkNamespace::Path(key.clone()),
            key: Some(key.clone()),
            resolv_conf: self.resolv_conf(request, network),
            endpoints: vec![endpoint],
        };
        let plug = plug.map(|plug| HeldPlug {
            host_name: plug.host_name,
            address: plug.address,
        });
        Ok((sandbox, Held { key, plug }))
    }

    /// Makes the namespace while the uplink, if the bridge needs one, comes up.
    async fn make_namespace(&self, key: &Path, plug: Option<&Plug>) -> Result<()> {
        let create = sandbox::create(key.to_owned(), plug.cloned());
        let (Some(uplink), Some(_)) = (&self.uplink, plug) else {
            return create.await;
        };
        let (created, ()) = tokio::join!(create, uplink.acquire());
        if created.is_err() {
            uplink.release().await;
        }
        created
    }

    /// Decides on names and addresses of a connection to the bridge. The address is the caller's to release.
    async fn make_plug(self: &Arc<Self>, request: &SandboxRequest) -> Result<Plug> {
        let asked = match request.mac_address.as_deref().filter(|text| !text.is_empty()) {
            Some(text) => {
                let invalid = || Error::invalid(format!("invalid MAC address: {text}"));
                Some(ipam::parse_mac(text).ok_or_else(invalid)?)
            }
            None => None,
        };
        let bridge = self.bridge().await?;
        let host_name = format!("veth{}", random(11)?);
        let address = self.pool().allocate().ok_or_else(|| {
            Error::system(format!(
                "no available IPv4 addresses on this network's address pools: bridge ({})",
                self.ids.bridge
            ))
        })?;
        Ok(Plug {
            bridge,
            host_name,
            mac: asked.unwrap_or_else(|| ipam::mac_for(address)),
            address,
            prefix_len: self.config.bip.prefix_len(),
            gateway: self.config.bip.address(),
        })
    }

    fn endpoint(&self, network: Predefined, plug: Option<&Plug>) -> Result<Endpoint> {
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

    fn resolv_conf(&self, request: &SandboxRequest, network: Predefined) -> String {
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

    async fn disconnect(self: &Arc<Self>, container_id: &str) -> Result<()> {
        let Some(entry) = self.entries().get(container_id).cloned() else {
            return Ok(());
        };
        let mut slot = entry.lock().await;
        // Taken by a concurrent call, or never made.
        let Some(held) = slot.clone() else { return Ok(()) };
        let bridge = match &held.plug {
            Some(_) => Some(self.bridge().await?),
            None => None,
        };
        let removed = held.clone();
        // On an error everything stays as it is, for another try.
        in_blocking_thread(move || {
            if let (Some(bridge), Some(plug)) = (bridge, &removed.plug) {
                bridge.unplug(&plug.host_name)?;
            }
            sandbox::remove(&removed.key)
        })
        .await?;
        *slot = None;
        if let Some(plug) = &held.plug {
            self.pool().release(plug.address);
        }
        self.entries().remove(container_id);
        if let (Some(uplink), Some(_)) = (&self.uplink, &held.plug) {
            uplink.release().await;
        }
        Ok(())
    }

    /// Adopts the living and removes stray sandboxes. What needs the bridge or the uplink goes on in the background,
    /// and connections wait for it: the daemon is ready earlier.
    async fn recover(self: &Arc<Self>, live: &[(String, Sandbox)]) -> Result<()> {
        let no_connects = Arc::clone(&self.recovery).write_owned().await;
        for (container_id, sandbox) in live {
            self.adopt(container_id, sandbox);
        }
        let kept: HashSet<String> = self.entries().keys().cloned().collect();
        let exec_root = self.config.exec_root.clone();
        in_blocking_thread(move || remove_stray_sandboxes(&exec_root, &kept)).await?;

        let endpoints = live.iter().flat_map(|(_, sandbox)| &sandbox.endpoints);
        let links: HashSet<String> = endpoints
            .map(|endpoint| endpoint.host_interface.clone())
            .collect();
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = shared.remove_stray_links(links).await {
                tracing::warn!(%error, "cannot remove the links of containers that ended while no daemon ran");
            }
            if let Some(uplink) = &shared.uplink {
                uplink.recover(shared.bridge_users().await).await;
            }
            drop(no_connects);
        });
        Ok(())
    }

    async fn remove_stray_links(self: &Arc<Self>, kept: HashSet<String>) -> Result<()> {
        let bridge = self.bridge().await?;
        in_blocking_thread(move || {
            for name in bridge.plugged()?.iter().filter(|name| !kept.contains(*name)) {
                tracing::debug!(link = %name, "removing a stray veth pair");
                bridge.unplug(name)?;
            }
            Ok(())
        })
        .await
    }

    /// Takes a living container's sandbox over from the daemon that made it.
    fn adopt(&self, container_id: &str, sandbox: &Sandbox) {
        let Some(key) = sandbox.key.clone() else { return };
        if !skiff_sys::netns::is_bound(&key).unwrap_or(false) {
            tracing::warn!(container = %container_id, "the network sandbox of a running container is gone");
        }
        let plugged = sandbox
            .endpoints
            .iter()
            .find(|endpoint| endpoint.network_id == self.ids.bridge);
        let plug = plugged.and_then(|endpoint| {
            Some(HeldPlug {
                host_name: endpoint.host_interface.clone(),
                address: endpoint.address?,
            })
        });
        if let Some(plug) = &plug
            && !self.pool().reserve(plug.address)
        {
            tracing::warn!(container = %container_id, address = %plug.address, "two running containers have one address");
        }
        let entry = Arc::new(AsyncMutex::new(Some(Held { key, plug })));
        self.entries().insert(container_id.to_owned(), entry);
    }

    fn list(&self) -> Vec<NetworkInfo> {
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

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove_stray_sandboxes(exec_root: &Path, kept: &HashSet<String>) -> Result<()> {
    for name in sandbox::list(exec_root)?
        .iter()
        .filter(|name| !kept.contains(*name))
    {
        tracing::debug!(container = %name, "removing a stray network sandbox");
        sandbox::remove(&sandbox::key(exec_root, name)?)?;
    }
    Ok(())
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

fn random(digits: usize) -> Result<String> {
    random_hex(digits).map_err(|error| Error::system("cannot make an id").caused_by(error))
}

/// Runs `work` to its end, whether or not the caller goes on waiting.
async fn in_own_task<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|error| Err(Error::system("a network task failed").caused_by(error)))
}

async fn in_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::system("a network thread failed").caused_by(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
