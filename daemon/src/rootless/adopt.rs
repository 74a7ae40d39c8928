//! Finding the namespaces of an earlier run: they live as long as any process in them does.

use std::io;
use std::path::Path;

use skiff_sys::identity::ProcessIdentity;
use skiff_sys::ns::{self, Kind, Namespaces};

use super::record::Record;

/// Namespaces of an earlier run.
#[derive(Debug)]
pub(crate) struct Previous {
    /// Their descriptors.
    pub(crate) namespaces: Namespaces,
    /// The keeper, when it is it that still lives; it is replaced by one that knows its parent.
    pub(crate) keeper: Option<ProcessIdentity>,
}

/// Looks for a living process that holds the namespaces: the recorded keeper, else any container's shim.
pub(crate) fn find(record: &Record, exec_root: &Path) -> Option<Previous> {
    if let Some(keeper) = record.read()
        && let Some(namespaces) = holds(&keeper)
    {
        return Some(Previous {
            namespaces,
            keeper: Some(keeper),
        });
    }
    let namespaces = skiff_runtime::live_shims(exec_root).iter().find_map(holds)?;
    Some(Previous {
        namespaces,
        keeper: None,
    })
}

/// The namespaces of this very process, if they are a rootless daemon's of ours. Anything unexpected means no.
fn holds(holder: &ProcessIdentity) -> Option<Namespaces> {
    let alive = || holder.is_alive().unwrap_or(false);
    if !alive() {
        return None;
    }
    let namespaces = Namespaces::of_process(holder.pid).ok()?;
    // The process may have ended, and its pid been reused, while its files were being opened.
    (alive() && is_ours(&namespaces).unwrap_or(false)).then_some(namespaces)
}

/// A user namespace that we made, and that is not the one we are in. Only its owner may enter it, so this is also
/// what keeps a forged record from leading us into somebody else's.
fn is_ours(namespaces: &Namespaces) -> io::Result<bool> {
    let me = rustix::process::geteuid().as_raw();
    Ok(ns::id(&namespaces.user)? != ns::current(Kind::User)?
        && ns::id(&namespaces.network)? != ns::current(Kind::Network)?
        && ns::owner_uid(&namespaces.user)? == me)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_namespaces_are_not_a_previous_run() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::new(dir.path(), &dir.path().join("docker.pid"));
        assert!(find(&record, dir.path()).is_none());
        record.write(&ProcessIdentity::current().unwrap()).unwrap();
        assert!(find(&record, dir.path()).is_none());
    }
}
