//! Builds the engine. The only module that knows every crate; nothing is decided here.
//!
//! ```text
//! graphdrivers::select ─► store ─┬─► core::images ◄─ registry-client
//!                                └─► core::containers ◄─ runtime (shims), network (keeper's namespace)
//!                                          └─► core::Engine ─► api::serve, one for each socket
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use skiff_api::Listener;
use skiff_core::Engine;
use skiff_core::container::{Containers, Neighbours, Settings, StoredFilesystems};
use skiff_core::events::Events;
use skiff_core::images::{Images, ImagesConfig};
use skiff_graphdrivers::{FuseServer, Mounter};
use skiff_network::{BridgeNetworks, NetworkConfig, UplinkChoice, UplinkPrograms};
use skiff_registry_client::{Client, ClientConfig, Proxies};
use skiff_runtime::{RuntimeConfig, ShimRuntime};
use skiff_store::migrate::Journal;
use skiff_store::{OversizedIds, Store, StoreOptions};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::config::{Config, Host};
use crate::rootless::messages::HostFacts;
use crate::server::facts::{self, Storage};
use crate::server::listen::{Bound, Socket};

/// Where uplink programs are looked for when PATH is not set.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The containers' side of the network.
#[derive(Debug, Default)]
pub(crate) struct Networking {
    /// The keeper's network namespace; `None` as root.
    pub(crate) namespace: Option<OwnedFd>,
    /// Hangs up when nobody needs the uplink any more.
    pub(crate) lifeline: Option<OwnedFd>,
}

/// Everything that runs.
pub(crate) struct Wired {
    engine: Engine,
    networks: Arc<BridgeNetworks>,
    /// Shims enter it by the path of this descriptor.
    _namespace: Option<OwnedFd>,
}

/// Starts everything but the sockets.
///
/// # Errors
/// The text for the user.
pub(crate) async fn start(
    config: &Config,
    host: &HostFacts,
    networking: Networking,
) -> Result<Wired, String> {
    let events = Events::default();
    let (store, storage) = open_store(config).await?;
    let facts = facts::gather(config, host, storage)?;
    tracing::info!(
        commit = facts.git_commit,
        "graphdriver(s)" = facts.storage_driver,
        version = facts.version,
        "Docker daemon"
    );
    let namespace = networking.namespace.as_ref().map(OwnedFd::try_clone).transpose();
    let namespace = namespace.map_err(|error| format!("network namespace: {error}"))?;
    let networks =
        BridgeNetworks::new(network_config(config, networking)?).map_err(|error| error.to_string())?;
    // Needed by the first container only; a start does not wait for it.
    networks.prepare();
    let program = protected_program(config);
    let runtime = ShimRuntime::new(runtime_config(config, &program, namespace.as_ref()))
        .map_err(|error| error.to_string())?;
    let images = Images::new(ImagesConfig {
        store: store.clone(),
        client: Client::new(client_config(config)?).map_err(|error| error.to_string())?,
        events: events.clone(),
        max_concurrent_downloads: config.max_concurrent_downloads,
    });
    let (networks, runtime) = (Arc::new(networks), Arc::new(runtime));
    let bridge = Arc::clone(&networks);
    let containers = Containers::open(
        container_settings(config),
        Neighbours {
            images: Arc::new(images.clone()),
            filesystems: Arc::new(StoredFilesystems::new(
                store,
                config.exec_root.join("rootfs"),
                Mounter::with_fuse_server(FuseServer::Program(crate::fuse::command(program))),
            )),
            networks: networks.clone(),
            runtime: runtime.clone(),
            events: events.clone(),
        },
    )
    .map_err(|error| error.to_string())?;
    let users = containers.clone();
    images.set_users(Arc::new(move |id: &str| users.using_image(id)));

    tracing::info!("Loading containers: start.");
    containers
        .recover()
        .await
        .map_err(|error| format!("loading containers: {error}"))?;
    tracing::info!("Loading containers: done.");
    let engine = Engine {
        containers,
        images,
        events,
        networks,
        runtime,
        facts: Arc::new(facts),
    };
    Ok(Wired {
        engine,
        networks: bridge,
        _namespace: namespace,
    })
}

/// What a store is opened with.
pub(crate) fn store_options(config: &Config) -> StoreOptions {
    let mut options = StoreOptions::default();
    if config.squash_oversized_ids {
        options.apply.oversized_ids = OversizedIds::Squash;
    }
    options
}

/// Chooses the driver by trying, which mounts and writes: on a thread that may block.
async fn open_store(config: &Config) -> Result<(Store, Storage), String> {
    let (data_root, wanted, options) = (
        config.data_root.clone(),
        config.storage_driver.clone(),
        config.storage_opts.clone(),
    );
    let store_options = store_options(config);
    let open = move || -> Result<(Store, Storage), String> {
        let options = options
            .iter()
            .map(|option| {
                option
                    .split_once('=')
                    .ok_or_else(|| format!("--storage-opt {option}: expected NAME=VALUE"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let image_root = data_root.join("image");
        // After a change of driver two of them have state until somebody says that the new one is good.
        let wanted = match Journal::read(&image_root).map_err(|error| error.to_string())? {
            Some(journal) => journal
                .driver_for_daemon(wanted.as_deref())
                .map(str::to_owned)
                .map(Some),
            None => Ok(wanted),
        }
        .map_err(|error| error.to_string())?;
        let selected = skiff_graphdrivers::select(&data_root, wanted.as_deref(), &options)
            .map_err(|error| format!("error initializing graphdriver: {error}"))?;
        let storage = Storage {
            driver: selected.driver.name().to_owned(),
            status: selected.status(),
        };
        let store = Store::open_with(&image_root, selected.driver, store_options)
            .map_err(|error| error.to_string())?;
        Ok((store, storage))
    };
    tokio::task::spawn_blocking(open)
        .await
        .map_err(|error| error.to_string())?
}

fn network_config(config: &Config, networking: Networking) -> Result<NetworkConfig, String> {
    let mut network = NetworkConfig::new(&config.exec_root, config.data_root.join("network"));
    network.uplink = match config.uplink.as_deref() {
        _ if networking.namespace.is_none() => UplinkChoice::Disabled,
        Some("slirp4netns") => UplinkChoice::Slirp4netns,
        Some("pasta") => UplinkChoice::Pasta,
        _ => UplinkChoice::Automatic,
    };
    let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
    network.programs = UplinkPrograms::find(&path);
    network.netns = networking.namespace;
    network.lifeline = networking.lifeline;
    network.host_loopback = config.host_loopback;
    network.uplink_mtu = config.uplink_mtu.unwrap_or(network.uplink_mtu);
    network.mtu = config.mtu.unwrap_or(network.mtu);
    if let Some(bip) = &config.bip {
        network.bip = bip.parse().map_err(|error| format!("--bip: {error}"))?;
    }
    Ok(network)
}

/// The path by which this program starts itself in other roles.
fn protected_program(config: &Config) -> PathBuf {
    skiff_runtime::protected_program(&config.exec_root).unwrap_or_else(|error| {
        tracing::warn!(%error, "a container could overwrite this program's file (CVE-2019-5736): cannot mount it read-only");
        "/proc/self/exe".into()
    })
}

fn runtime_config(config: &Config, program: &Path, namespace: Option<&OwnedFd>) -> RuntimeConfig {
    for (name, runtime) in &config.runtimes {
        if !runtime.args.is_empty() {
            tracing::warn!("runtimeArgs of runtime {name} have no effect in this version");
        }
    }
    let found = |path: &PathBuf| {
        let name = path.to_str().filter(|name| !name.contains('/'));
        name.and_then(crate::rootless::subids::find_program)
            .unwrap_or_else(|| path.clone())
    };
    let runtimes: BTreeMap<String, PathBuf> = config
        .runtimes
        .iter()
        .map(|(name, runtime)| (name.clone(), found(&runtime.path)))
        .collect();
    RuntimeConfig {
        exec_root: config.exec_root.clone(),
        shim_command: [program.as_os_str().to_owned(), crate::role::SHIM.into()].to_vec(),
        init_program: program.to_owned(),
        // Not the keeper's /proc entry: the keeper may be killed and replaced, this descriptor stays.
        keeper_netns: namespace
            .map(|fd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()).into()),
        rootless: config.rootless,
        runtimes,
        default_runtime: config.default_runtime.clone().unwrap_or_default(),
    }
}

fn client_config(config: &Config) -> Result<ClientConfig, String> {
    let mirror = |text: &String| Url::parse(text).map_err(|error| format!("invalid mirror: {text}: {error}"));
    let [http, https, no_proxy] = config.proxies.clone();
    Ok(ClientConfig {
        insecure_registries: config.insecure_registries.clone(),
        mirrors: config
            .registry_mirrors
            .iter()
            .map(mirror)
            .collect::<Result<_, _>>()?,
        certificate_directories: config.certificate_directories.clone(),
        credential_file: config.credentials_file.clone(),
        proxies: Proxies {
            http,
            https,
            no_proxy: no_proxy.unwrap_or_default(),
        },
        ..ClientConfig::default()
    })
}

fn container_settings(config: &Config) -> Settings {
    let own_socket = config.hosts.iter().find_map(|host| match host {
        Host::Unix(path) => Some(path.clone()),
        Host::Tcp(_) | Host::Fd(_) => None,
    });
    Settings {
        directory: config.data_root.join("containers"),
        hosts_file: "/etc/hosts".into(),
        own_socket,
    }
}

/// The listening sockets at work.
pub(crate) struct Servers {
    tasks: TaskTracker,
}

impl Servers {
    /// Until all have ended.
    pub(crate) async fn wait(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Wired {
    /// Serves the API until `shutdown` is cancelled.
    ///
    /// # Errors
    /// When a socket cannot be given to the async runtime.
    pub(crate) fn serve(&self, bound: Vec<Bound>, shutdown: &CancellationToken) -> Result<Servers, String> {
        let tasks = TaskTracker::new();
        for bound in bound {
            let name = bound.name;
            let listener = match bound.socket {
                Socket::Unix(listener) => tokio::net::UnixListener::from_std(listener).map(Listener::Unix),
                Socket::Tcp(listener) => tokio::net::TcpListener::from_std(listener).map(Listener::Tcp),
            };
            let listener = listener.map_err(|error| format!("{name}: {error}"))?;
            tasks.spawn(skiff_api::serve(listener, self.engine.clone(), shutdown.clone()));
        }
        Ok(Servers { tasks })
    }

    /// Stops all containers, each with its own signal and patience, at most so long; negative waits without end.
    pub(crate) async fn stop_containers(&self, timeout_seconds: i64) {
        let timeout = u64::try_from(timeout_seconds).map_or(Duration::MAX, Duration::from_secs);
        self.engine.containers.shutdown(timeout).await;
    }

    /// Ends the way out of the containers' network, which nobody needs any more.
    pub(crate) async fn shut_down_networks(&self) {
        self.networks.shut_down().await;
    }
}

/// The role of a container's shim.
pub(crate) fn shim(arguments: Vec<OsString>) -> ExitCode {
    skiff_runtime::shim_main(arguments.into_iter())
}
