//! The keeper: the process that holds the namespaces and otherwise does nothing.
//!
//! Single-threaded, no async runtime, no allocation once it sleeps. It outlives the parent and the daemon, so that a
//! restarted daemon finds the same mounts and the same network. `docker.pid` names it: signals sent to that pid are
//! passed on to the parent; when there is no parent any more, they end the keeper.

use std::fs;
use std::io;

use nix::sys::signal::{SigSet, Signal};
use rustix::io::Errno;
use rustix::thread::{Gid, Uid};
use skiff_sys::ns::{self, Kind, Namespaces};

use super::channel::{Channel, ReceiveError};
use super::messages::{FromKeeper, Stage, ToKeeper};

/// Name shown by ps and top.
const COMM: &std::ffi::CStr = c"skiffd-keeper";

/// The signals that are passed on.
const PASSED_ON: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];

/// Runs the keeper. Returns only when the set-up fails or the parent is gone and a signal asks it to end.
///
/// # Errors
/// Only when the channel fails; everything else is reported over it.
pub(crate) fn run() -> io::Result<()> {
    // Whatever our caller left open: it would stay open as long as we live.
    skiff_sys::process::close_inherited_descriptors();
    let channel = Channel::from_stdin()?;
    let signals = PASSED_ON.into_iter().collect::<SigSet>();
    signals.thread_block()?;
    // Ctrl-C in the terminal of the parent is the parent's business.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(COMM);
    std::env::set_current_dir("/")?;

    match set_up(&channel) {
        Ok(warnings) => channel.send(&FromKeeper::Ready { warnings }, &[])?,
        Err(Failure::Parent) => return Ok(()),
        Err(Failure::System(stage, error)) => {
            let errno = error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
            return channel.send(&FromKeeper::Failed { stage, errno }, &[]);
        }
    }
    // Nobody could ever find a keeper that is not written down: it must not outlive a parent that was killed before.
    let Ok((ToKeeper::Recorded, _)) = channel.receive(None) else {
        return Ok(());
    };
    skiff_sys::heap::trim();
    let _ = skiff_sys::heap::release_program_pages();
    sleep(&channel, &signals)
}

enum Failure {
    /// The parent is gone or speaks nonsense; nobody can be told.
    Parent,
    System(Stage, io::Error),
}

impl From<ReceiveError> for Failure {
    fn from(_: ReceiveError) -> Self {
        Self::Parent
    }
}

fn at(stage: Stage) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::System(stage, error)
}

fn set_up(channel: &Channel) -> Result<Vec<String>, Failure> {
    let (message, fds) = channel.receive::<ToKeeper>(None)?;
    match (message, <[_; 4]>::try_from(fds)) {
        (ToKeeper::Create { last_id }, _) => create(channel, last_id),
        (ToKeeper::Join, Ok(fds)) => join(&Namespaces::from_fds(fds)).map_err(at(Stage::Join)),
        _ => Err(Failure::Parent),
    }
}

fn create(channel: &Channel, last_id: u32) -> Result<Vec<String>, Failure> {
    ns::unshare(&[Kind::User]).map_err(at(Stage::UserNamespace))?;
    channel
        .send(&FromKeeper::UserNamespaceMade, &[])
        .map_err(|_| Failure::Parent)?;
    match channel.receive::<ToKeeper>(None)? {
        (ToKeeper::Mapped, _) => {}
        _ => return Err(Failure::Parent),
    }
    // The group first: without CAP_SETGID it could not be changed any more.
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .map_err(|e| at(Stage::Root)(e.into()))?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .map_err(|e| at(Stage::Root)(e.into()))?;
    // A change of ids makes a process undumpable, and /proc/PID/ns then unreadable for its owner and for nsenter.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable);
    ns::unshare(&[Kind::Mount, Kind::Network]).map_err(at(Stage::Namespaces))?;
    ns::receive_mounts_only().map_err(at(Stage::Propagation))?;

    let mut warnings = Vec::new();
    let mut optional = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            warnings.push(format!("could not {what}: {error}"));
        }
    };
    optional(
        "bring up lo in the containers' network namespace",
        ns::loopback_up(),
    );
    optional(
        "mount an empty control group tree over /sys/fs/cgroup",
        ns::unshare(&[Kind::Cgroup]).and_then(|()| ns::mount_own_cgroup_tree()),
    );
    for (path, value) in network_settings(last_id) {
        optional(&format!("set {path} to \"{value}\""), set(path, &value));
    }
    Ok(warnings)
}

/// Settings of the new network namespace: it forwards, and inside it every port and ping are for everyone.
fn network_settings(last_id: u32) -> [(&'static str, String); 4] {
    [
        ("/proc/sys/net/ipv4/ip_forward", "1".to_owned()),
        ("/proc/sys/net/ipv6/conf/all/forwarding", "1".to_owned()),
        ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0".to_owned()),
        // Groups that are not mapped cannot be named here, so it ends at the last one that is.
        ("/proc/sys/net/ipv4/ping_group_range", format!("0 {last_id}")),
    ]
}

/// A kernel without IPv6 has no IPv6 settings, which is not worth a word.
fn set(path: &str, value: &str) -> io::Result<()> {
    match fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.contains("/ipv6/") => Ok(()),
        result => result,
    }
}

fn join(namespaces: &Namespaces) -> io::Result<Vec<String>> {
    ns::join(&namespaces.user, Kind::User)?;
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable);
    ns::join(&namespaces.cgroup, Kind::Cgroup)?;
    ns::join(&namespaces.network, Kind::Network)?;
    ns::join(&namespaces.mount, Kind::Mount)?;
    Ok(Vec::new())
}

fn sleep(channel: &Channel, signals: &SigSet) -> io::Result<()> {
    loop {
        let signal = signals.wait()?;
        if channel.send(&FromKeeper::Signalled(signal as i32), &[]).is_err() {
            return Ok(());
        }
    }
}
