//! Which shims live. Called by the daemon's bootstrap before any thread exists, so there is no tokio here.

use std::path::Path;

use skiff_sys::identity::ProcessIdentity;

use crate::paths;

/// The shims of an execution root that are alive. Each holds the user, mount and network namespace of the daemon that started it
/// (`/proc/PID/ns`).
///
/// Folders that cannot be read are passed over: the question is who is alive, not what is wrong.
pub fn live_shims(exec_root: &Path) -> Vec<ProcessIdentity> {
    std::fs::read_dir(paths::containers(exec_root))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| paths::read_identity(&entry.path().join(paths::SHIM_PID)))
        .filter(|shim| shim.is_alive().unwrap_or(false))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_are_listed_and_the_dead_and_the_broken_are_not() {
        let root = tempfile::tempdir().unwrap();
        assert!(live_shims(root.path()).is_empty());
        let me = ProcessIdentity::current().unwrap();
        let dead = ProcessIdentity {
            start_time: me.start_time + 1,
            ..me.clone()
        };
        for (id, text) in [
            ("a", me.to_string()),
            ("b", dead.to_string()),
            ("c", "nonsense".to_owned()),
        ] {
            let folder = paths::containers(root.path()).join(id);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(paths::SHIM_PID), text).unwrap();
        }
        assert_eq!(live_shims(root.path()), [me]);
    }
}
