//! Frees space in the background: that of removed containers, and what failed or cancelled pulls, loads and commits left.
//!
//! A removal is a rename; this task, rung after each, lets the storage layer empty its trash and collect what nobody
//! needs, once for many removals. On a host that removes nothing it looks once an hour.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::Shared;
use super::registry::Handle;
use crate::error::{Error, Result};

/// How long to wait for more removals before the work begins.
const SETTLE: Duration = Duration::from_millis(500);

/// The longest time between two rounds. As long as the storage layer's grace for what nobody needs yet, so that an
/// interrupted pull's leftovers go within twice that.
const ROUND: Duration = Duration::from_secs(3600);

/// Tells the janitor that there is something to do; many rings before it looks are one.
pub(super) type Bell = Arc<Notify>;

/// Starts the janitor, with a first round for what the last daemon left.
pub(super) fn spawn(shared: &Arc<Shared>) {
    let bell = Arc::clone(&shared.janitor);
    bell.notify_one();
    let weak = Arc::downgrade(shared);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = bell.notified() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(ROUND) => {}
            }
            let Some(shared) = weak.upgrade() else { return };
            if let Err(error) = round(&shared).await {
                tracing::warn!(%error, "cannot free the space of what nobody needs");
            }
        }
    });
}

/// Collects once. Without a complete list of the containers nothing is collected.
async fn round(shared: &Arc<Shared>) -> Result<()> {
    // Also those whose record cannot be read: nobody can use them, but their data is theirs. A container that is being
    // created may be missing in both; the storage layer knows it as its own.
    let reader = Arc::clone(shared);
    let on_disk = tokio::task::spawn_blocking(move || reader.disk.ids())
        .await
        .map_err(|e| Error::system("list the containers").caused_by(e))?
        .map_err(|e| Error::system("list the containers").caused_by(e))?;
    let known = shared.registry.all();
    let known = known
        .iter()
        .map(Handle::snapshot)
        .map(|view| view.record.id.clone());
    let live: BTreeSet<String> = known.chain(on_disk).collect();
    shared.filesystems.keep_only(&Vec::from_iter(live)).await
}
