//! What parent, keeper and daemon say to each other.
//!
//! ```text
//! parent                          keeper                       parent                     daemon
//!   │ Create | Join(+4 fds) ────────►│                            │ Boot (+ fds) ───────────►│ joins the namespaces
//!   │◄──────────── UserNamespaceMade │ (Create only)              │◄──────────── SignalsHeld │ its handlers are in place
//!   │ Mapped ───────────────────────►│                            │◄────────────────── Ready │ the sockets answer
//!   │◄──────────────── Ready | Failed│                            │◄──────────────── Stopped │ orderly end
//!   │ Recorded ─────────────────────►│ may outlive the parent     │
//!   │◄─────────────────── Signalled… │ for ever                   ▼ end-of-file: the other died
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::Config;

/// Parent to keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToKeeper {
    /// Make new namespaces.
    Create {
        /// Highest id that will be mapped, for `ping_group_range`.
        last_id: u32,
    },
    /// The id maps are written; go on.
    Mapped,
    /// Join these: user, mount, network, cgroup.
    Join,
    /// It is written down, so that the next start can find it; without this it ends with its parent.
    Recorded,
}

/// Keeper to parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromKeeper {
    /// It is in a user namespace of its own and waits for the maps.
    UserNamespaceMade,
    /// All namespaces are there and set up.
    Ready {
        /// What could not be set up and is not essential.
        warnings: Vec<String>,
    },
    /// It gives up.
    Failed {
        /// At what.
        stage: Stage,
        /// The error number.
        errno: i32,
    },
    /// Somebody sent it this signal; it was meant for the daemon, whose place in `docker.pid` it holds.
    Signalled(i32),
}

/// What a keeper does, for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// `unshare(CLONE_NEWUSER)`.
    UserNamespace,
    /// Becoming root in it.
    Root,
    /// Mount and network namespace.
    Namespaces,
    /// Mount propagation.
    Propagation,
    /// Joining existing ones.
    Join,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserNamespace => "make a user namespace",
            Self::Root => "become root in the user namespace",
            Self::Namespaces => "make a mount and a network namespace",
            Self::Propagation => "make the mounts of the new mount namespace slaves of the host's",
            Self::Join => "join the namespaces of the previous run",
        })
    }
}

/// Parent to daemon, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Boot {
    /// The settled configuration.
    pub(crate) config: Config,
    /// What the parent found out about the host, which looks different from inside.
    pub(crate) host: HostFacts,
    /// How many descriptors of each kind come along, in this order: namespaces (user, mount, network, cgroup), the
    /// uplink's lifeline, locks, listeners of the service manager.
    pub(crate) locks: usize,
    /// See `locks`.
    pub(crate) listeners: usize,
}

/// Facts about the host that only its own namespaces show.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostFacts {
    /// `/sys/fs/cgroup` is the unified tree.
    pub(crate) cgroup_v2: bool,
    /// Only one id is mapped.
    pub(crate) single_id: bool,
    /// Pid of the keeper at start.
    pub(crate) keeper: Option<u32>,
    /// The namespaces are those of an earlier run.
    pub(crate) adopted: bool,
}

/// Daemon to parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromDaemon {
    /// Signals may be forwarded from now on.
    SignalsHeld,
    /// The sockets answer.
    Ready,
    /// The end was asked for and everything is put away.
    Stopped {
        /// Containers were left running (live restore), so the namespaces must stay.
        containers_left: bool,
    },
}
