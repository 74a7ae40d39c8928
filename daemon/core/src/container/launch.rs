//! The effects of a container's life on the world: launch, clean-up, deletion. Each is a sequence over the network,
//! the storage layer and the runtime that undoes itself when it fails half-way.

use std::path::PathBuf;
use std::sync::Arc;

use super::Shared;
use super::attach::Waiting;
use super::disk::{FORMAT, StateFile};
use super::spec;
use super::state::State;
use super::view::Record;
use crate::error::{Error, Result};
use crate::network::{NetworkMode, Sandbox, SandboxRequest};
use crate::runtime::LaunchFailure;

/// Exit code recorded for a start that failed for a reason other than the command.
const FAILED: i32 = 128;

/// Starts a container: network and root filesystem at the same time, then the task.
pub(super) async fn launch(
    shared: &Arc<Shared>,
    record: &Record,
    waiting: &Waiting,
    state: State,
) -> Result<(u32, Sandbox), LaunchFailure> {
    let id = record.id.as_str();
    // Also for starts that no client asked for.
    shared.require_own_driver(record).map_err(failure)?;
    let request = sandbox_request(record).map_err(failure)?;
    let (rootfs, sandbox) = tokio::join!(
        shared.filesystems.mount(id, record.host_config.auto_remove),
        shared.networks.connect(&request)
    );
    let started = match (rootfs, sandbox) {
        (Ok(rootfs), Ok(sandbox)) => start_task(shared, record, waiting, state, rootfs, &sandbox)
            .await
            .map(|pid| (pid, sandbox)),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(failure(error)),
        (Err(mount), Err(network)) => Err(failure(mount.caused_by(network))),
    };
    if started.is_err() {
        waiting.dismiss();
        clean_up(shared, id).await;
    }
    started
}

async fn start_task(
    shared: &Arc<Shared>,
    record: &Record,
    waiting: &Waiting,
    state: State,
    rootfs: PathBuf,
    sandbox: &Sandbox,
) -> Result<u32, LaunchFailure> {
    let id = record.id.as_str();
    write_files(shared, record, sandbox).map_err(failure)?;
    let launch_spec = spec::launch_spec(record, rootfs, sandbox).map_err(failure)?;
    // Written before anything runs: a daemon that is killed from here on finds the network it must keep.
    let file = StateFile {
        version: FORMAT,
        state,
        sandbox: Some(sandbox.clone()),
        restart_count: 0,
    };
    shared.disk.write_state(id, &file).map_err(failure)?;
    let pid = shared.runtime.create(&launch_spec).await?;
    waiting.connect(&*shared.runtime, id).await.map_err(failure)?;
    shared.runtime.start(id).await?;
    Ok(pid)
}

fn write_files(shared: &Shared, record: &Record, sandbox: &Sandbox) -> Result<()> {
    let id = record.id.as_str();
    let hosts = spec::hosts_text(record, sandbox, &shared.settings.hosts_file);
    shared.disk.write_file(id, "hosts", &hosts)?;
    shared
        .disk
        .write_file(id, "hostname", &format!("{}\n", record.config.hostname))?;
    shared.disk.write_file(id, "resolv.conf", &sandbox.resolv_conf)?;
    Ok(())
}

fn sandbox_request(record: &Record) -> Result<SandboxRequest> {
    let host = &record.host_config;
    let mode = if record.config.network_disabled == Some(true) {
        NetworkMode::None
    } else {
        NetworkMode::parse(&host.network_mode)
    };
    Ok(SandboxRequest {
        container_id: record.id.clone(),
        mode,
        dns: super::dns_servers(host)?,
        dns_search: host.dns_search.clone(),
        dns_options: host.dns_options.clone(),
        mac_address: record.config.mac_address.clone().filter(|mac| !mac.is_empty()),
    })
}

/// Undoes a launch. Failures are logged, not returned: the container has ended either way, and the next daemon start
/// removes what is left.
pub(super) async fn clean_up(shared: &Shared, id: &str) {
    if let Err(error) = shared.runtime.delete(id).await {
        tracing::warn!(container = %id, %error, "cannot delete the task");
    }
    let (unmounted, disconnected) =
        tokio::join!(shared.filesystems.unmount(id), shared.networks.disconnect(id));
    if let Err(error) = unmounted {
        tracing::warn!(container = %id, %error, "cannot unmount the root filesystem");
    }
    if let Err(error) = disconnected {
        tracing::warn!(container = %id, %error, "cannot remove the network sandbox");
    }
}

/// Deletes a stopped container's layer, files and record.
pub(super) async fn delete(shared: &Arc<Shared>, id: &str) -> Result<()> {
    shared.filesystems.unmount(id).await?;
    shared.filesystems.remove(id).await?;
    let (shared, id) = (Arc::clone(shared), id.to_owned());
    tokio::task::spawn_blocking(move || shared.disk.remove(&id))
        .await
        .map_err(|e| Error::system("remove the container's files").caused_by(e))?
}

fn failure(error: Error) -> LaunchFailure {
    LaunchFailure {
        error,
        exit_code: FAILED,
    }
}
