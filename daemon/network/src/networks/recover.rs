//! After a restart: the living keep what they have, everything else of ours goes.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use skiff_core::Result;
use skiff_core::network::Sandbox;
use tokio::sync::Mutex as AsyncMutex;

use super::{Held, HeldPlug, Shared, in_blocking_thread};
use crate::sandbox;

impl Shared {
    /// Adopts the living and removes stray sandboxes. What needs the bridge or the uplink goes on in the background,
    /// and connections wait for it: the daemon is ready earlier.
    pub(super) async fn recover(self: &Arc<Self>, live: &[(String, Sandbox)]) -> Result<()> {
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
