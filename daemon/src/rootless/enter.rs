//! Entering the user's namespaces: by the daemon, which its parent hands them to, and by the command-line roles
//! (`skiffd storage`, `skiffd bench`), which look for them, or make some for as long as they run.
//!
//! ```text
//! a keeper or shim of a daemon lives ──► join its namespaces          the same ids, the same mounts as the daemon
//! none does ───────────────────────────► a keeper of our own, join    nobody records it, so it ends with us
//! ```
//!
//! It is the calling process itself that moves: standard input, output and error, the exit status, the terminal's
//! signals and its place in a shell's job control stay what they are, and there is nothing to forward.

use std::io;
use std::process::Child;

use skiff_sys::ns::{self, Kind, Namespaces};

use super::record::Record;
use super::{adopt, preflight, start};
use crate::config::Config;
use crate::environment::Environment;

/// The stay in the namespaces. Whoever made them for itself ends them by dropping this (or by ending).
#[derive(Debug)]
pub(crate) struct Stay {
    /// The keeper, when the namespaces are ours alone. It waits for a word that never comes, and ends with us even if
    /// we are killed: its channel breaks.
    keeper: Option<(Child, super::channel::Channel)>,
}

impl Stay {
    /// Moves this process into the namespaces in which the files below the data root have their owners. As root that
    /// is where it is already. The working directory stays.
    ///
    /// Call before there is any other thread: the kernel lets only single-threaded processes enter a user namespace.
    ///
    /// # Errors
    /// The text for the user, the one that a start of the daemon would give.
    pub(crate) fn enter(config: &Config, environment: &Environment) -> Result<Self, String> {
        if environment.root {
            return Ok(Self { keeper: None });
        }
        preflight::check(environment)?;
        let record = Record::new(&config.exec_root, &config.pidfile);
        let (namespaces, keeper) = match adopt::find(&record, &config.exec_root) {
            Some(previous) => (previous.namespaces, None),
            None => {
                let fresh = start::fresh().map_err(|error| error.to_string())?;
                for warning in &fresh.warnings {
                    tracing::warn!("{warning}");
                }
                let keeper = fresh.keeper;
                (keeper.namespaces, Some((keeper.child, keeper.channel)))
            }
        };
        let stay = Self { keeper };
        join(&namespaces).map_err(|error| format!("cannot enter the namespaces: {error}"))?;
        // The same name means the same directory inside, except below mounts that only the keeper has.
        if std::env::set_current_dir(&environment.current_dir).is_err() {
            tracing::warn!(
                "{} is not reachable in the namespaces; names without a leading slash are below /",
                environment.current_dir.display()
            );
        }
        Ok(stay)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.keeper {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Joins all but the network namespace: pulls and the API use the host's. The working directory becomes `/`.
///
/// # Errors
/// setns(2)'s; `EINVAL` from a process with threads.
pub(crate) fn join(namespaces: &Namespaces) -> io::Result<()> {
    ns::join(&namespaces.user, Kind::User)?;
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable);
    ns::join(&namespaces.cgroup, Kind::Cgroup)?;
    ns::join(&namespaces.mount, Kind::Mount)?;
    std::env::set_current_dir("/")
}
