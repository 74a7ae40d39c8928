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

mod catalog;
mod recover;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use skiff_core::network::{NetworkInfo, NetworkMode, Networks, Sandbox, SandboxRequest};
use skiff_core::runtime::NetworkNamespace;
use skiff_core::{Error, Result};
use tokio::sync::{Mutex as AsyncMutex, OnceCell, RwLock};

use crate::bridge::{Bridge, BridgeSettings};
use crate::config::NetworkConfig;
use crate::ids::{NetworkIds, random_hex};
use crate::ipam::{self, Pool};
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

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
