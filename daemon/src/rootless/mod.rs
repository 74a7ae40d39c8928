//! Rootless start (ADR 0001): parent, keeper, and what they need.
//!
//! ```text
//! parent (parent.rs)       host namespaces: preflight, locks, id maps, supervision, exits with the daemon's status
//!  ├─ keeper (keeper.rs)   user + mount + network + cgroup namespace; docker.pid names it
//!  └─ daemon (../server)   user + mount + cgroup namespace of the keeper, network namespace of the host
//! ```
//!
//! A start after a crash takes the same path as a first one, with the namespaces of a process that still lives
//! (adopt.rs) in the place of new ones: in either case the parent starts a keeper of its own.

pub(crate) mod adopt;
pub(crate) mod channel;
pub(crate) mod enter;
pub(crate) mod keeper;
pub(crate) mod messages;
pub(crate) mod parent;
pub(crate) mod preflight;
pub(crate) mod record;
pub(crate) mod remedies;
pub(crate) mod start;
pub(crate) mod subids;
pub(crate) mod supervise;
