//! Which part this process plays: by the name it was called by and by its first argument.
//!
//! Decided in `main` before any thread exists. The parts that skiffd starts itself are named by a first argument that
//! no user of dockerd would give (dockerd takes no arguments).

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// First argument of the keeper.
pub(crate) const KEEPER: &str = "keeper";
/// First argument of the daemon.
pub(crate) const DAEMON: &str = "daemon";
/// First argument of a container's shim.
pub(crate) const SHIM: &str = "shim";

/// A part to play.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// `skiffd [FLAGS]`: parent of a rootless daemon, or the daemon itself as root.
    Parent,
    /// Holds the namespaces.
    Keeper,
    /// Serves the API.
    Daemon,
    /// Holds one container; the arguments are the runtime's.
    Shim(Vec<OsString>),
    /// `dockerd-rootless-setuptool.sh COMMAND`.
    SetupTool(Vec<OsString>),
    /// `skiffd fuse-overlayfs -o … MOUNTPOINT`, one overlay mount in user space.
    FuseOverlayfs(Vec<OsString>),
    /// `docker-init -- COMMAND`, process 1 of a container.
    Init(Vec<OsString>),
    /// `skiffd storage …`, `skiffd bench …`: a command that does its work and ends; the arguments follow the program.
    Tool(Vec<OsString>),
}

/// First arguments of [`Role::Tool`].
pub(crate) const TOOLS: [&str; 2] = ["storage", "bench"];

/// Name of the setup tool.
const SETUP_TOOL: &str = "dockerd-rootless-setuptool.sh";
/// Name of the FUSE overlay, and its first argument.
const FUSE_OVERLAYFS: &str = skiff_fuse_overlay::program::NAME;
/// Name of the init that is mounted into containers.
const INIT: &str = "docker-init";

impl Role {
    /// Chooses by the whole argument vector.
    pub(crate) fn of(arguments: &[OsString]) -> Self {
        let rest = || arguments.iter().skip(1).cloned().collect();
        match program_name(arguments).as_str() {
            SETUP_TOOL => return Self::SetupTool(rest()),
            INIT => return Self::Init(rest()),
            FUSE_OVERLAYFS => return Self::FuseOverlayfs(rest()),
            _ => {}
        }
        match arguments.get(1).map(OsString::as_os_str).and_then(OsStr::to_str) {
            Some(KEEPER) => Self::Keeper,
            Some(DAEMON) => Self::Daemon,
            Some(FUSE_OVERLAYFS) => Self::FuseOverlayfs(arguments.iter().skip(2).cloned().collect()),
            Some(SHIM) => Self::Shim(arguments.iter().skip(2).cloned().collect()),
            Some(word) if TOOLS.contains(&word) => Self::Tool(rest()),
            _ => Self::Parent,
        }
    }
}

/// The last part of argv\[0\]; `skiffd` when there is none.
pub(crate) fn program_name(arguments: &[OsString]) -> String {
    arguments
        .first()
        .and_then(|name| Path::new(name).file_name())
        .map_or_else(|| "skiffd".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_by_name_and_first_argument() {
        let role = |words: &[&str]| Role::of(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(role(&[]), Role::Parent);
        assert_eq!(role(&["/usr/bin/dockerd", "--debug"]), Role::Parent);
        assert_eq!(
            role(&["dockerd-rootless.sh", "--experimental", "--storage-driver", "vfs"]),
            Role::Parent
        );
        assert_eq!(role(&["/x/skiffd", "keeper"]), Role::Keeper);
        assert_eq!(role(&["dockerd", "daemon", "--debug"]), Role::Daemon);
        for words in [
            &["/usr/bin/fuse-overlayfs", "-o", "x"][..],
            &["skiffd", "fuse-overlayfs", "-o", "x"],
        ] {
            assert_eq!(role(words), Role::FuseOverlayfs(vec!["-o".into(), "x".into()]));
        }
        assert_eq!(
            role(&["skiffd", "shim", "a", "b"]),
            Role::Shim(vec!["a".into(), "b".into()])
        );
        assert_eq!(
            role(&["skiffd", "storage", "verify"]),
            Role::Tool(vec!["storage".into(), "verify".into()])
        );
        assert_eq!(
            role(&["./dockerd-rootless-setuptool.sh", "check"]),
            Role::SetupTool(vec!["check".into()])
        );
    }
}
