//! Runs containers: one shim process each, with an embedded OCI runtime or an external one.
//!
//! [`ShimRuntime`] is the daemon's side (`skiff_core::runtime::Runtime`); [`shim_main`] is the shim's, a role
//! of the same program. Between them is a socket (`protocol`) in a folder a container (`paths`).
//!
//! Invariants: the daemon never runs an OCI runtime itself (libcontainer must not be called from a threaded process); a
//! container depends on its shim only, not on the daemon; what the daemon needs after a restart is on disk or in the shim.

mod client;
mod init;
mod launch;
mod live;
mod logs;
mod paths;
mod protect;
mod protocol;
mod runtime;
mod seccomp;
mod shim;
mod spec;

pub use init::init_main;
pub use live::live_shims;
pub use protect::protected_program;
pub use runtime::{RuntimeConfig, ShimRuntime};
pub use shim::shim_main;
