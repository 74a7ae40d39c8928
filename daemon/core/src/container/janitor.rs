//! Frees the space of removed containers in the background. A removal is a rename; this task, rung after each, lets the
//! storage layer empty its trash and collect what a killed daemon left, once for many removals.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::Shared;

/// How long to wait for more removals before the work begins.
const SETTLE: Duration = Duration::from_millis(500);

/// Tells the janitor that there is something to do; many rings before it looks are one.
pub(super) type Bell = Arc<Notify>;

/// Starts the janitor, with a first round for what the last daemon left.
pub(super) fn spawn(shared: &Arc<Shared>) {
    let bell = Arc::clone(&shared.janitor);
    bell.notify_one();
    let weak = Arc::downgrade(shared);
    tokio::spawn(async move {
        loop {
            bell.notified().await;
            tokio::time::sleep(SETTLE).await;
            let Some(shared) = weak.upgrade() else { return };
            // A container that is being created is not in the list; the storage layer knows it as its own.
            let live: Vec<String> = shared
                .registry
                .all()
                .iter()
                .map(|handle| handle.snapshot().record.id.clone())
                .collect();
            if let Err(error) = shared.filesystems.keep_only(&live).await {
                tracing::warn!(%error, "cannot free the space of removed containers");
            }
        }
    });
}
