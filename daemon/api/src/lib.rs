//! The Docker Engine API over HTTP: turns requests into calls on [`skiff_core::Engine`] and their results into
//! JSON. Called by `skiffd`, which binds the sockets and calls [`serve`] for each. It decides nothing: what may be
//! done, and what happens, is the domain's business; what is here is wording, framing and order of bytes.
//!
//! ```text
//!  socket ─▶ serve ─▶ hijack::HijackIo ─▶ hyper ─▶ negotiate (version, headers) ─▶ routes ─▶ handlers ─▶ Engine
//!                          ▲                                                                  │
//!                          └── tunnel (attach) ◀── connection taken over ◀────────────────────┘
//! ```
//!
//! Handlers live by object (`containers`, `images`, `networks`, `system`, `events`), what they write in `wire`.

mod answer;
mod attach;
mod commit;
mod containers;
mod detach;
mod disk_usage;
mod error;
mod events;
mod extract;
mod hijack;
mod images;
mod logs;
mod negotiate;
mod networks;
mod progress;
mod routes;
mod serve;
mod system;
mod tarballs;
mod time;
mod volumes;
mod wire;

use std::sync::Arc;

use axum::Router;
use skiff_core::Engine;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use serve::{Listener, serve};

/// What handlers share.
#[derive(Clone)]
pub(crate) struct App {
    /// The domain.
    pub(crate) engine: Engine,
    /// Cancelled when endless streams must end.
    pub(crate) shutdown: CancellationToken,
    /// Cancelled when everything must end.
    pub(crate) cut: CancellationToken,
    /// Taken-over connections run here.
    pub(crate) tasks: TaskTracker,
}

/// The whole API as a service; cheap to clone.
#[derive(Clone)]
pub(crate) struct Api {
    router: Router,
    identity: Arc<negotiate::Identity>,
}

impl Api {
    pub(crate) fn new(
        engine: Engine,
        shutdown: &CancellationToken,
        cut: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        let identity = negotiate::Identity::new(&engine.facts.version, engine.facts.experimental);
        let app = App {
            engine,
            shutdown: shutdown.clone(),
            cut: cut.clone(),
            tasks: tasks.clone(),
        };
        Self {
            router: routes::router().with_state(app),
            identity: Arc::new(identity),
        }
    }
}
