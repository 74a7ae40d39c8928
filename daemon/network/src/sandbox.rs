//! Sandboxes: one network namespace per container, kept alive by a bind mount.
//!
//! ```text
//!            bridge's namespace                     sandbox, bound at <exec_root>/netns/<container id>
//!   docker0 ──── veth1a2b3c4d5e6 ═══════════════════ eth0  172.17.0.2/16, default route through docker0
//! ```
//!
//! Order at creation: namespace, veth pair, addresses, bind mount last. A daemon killed before the mount leaves
//! nothing, because namespace and pair die with the thread. All of it happens on one thread that nobody uses again.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skiff_core::{Error, Result};
use skiff_sys::{netns, ns};
use tokio::sync::oneshot;

use crate::bridge::Bridge;
use crate::netlink::{Socket, route};

/// First port that needs no privilege.
const UNPRIVILEGED_PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
/// Groups whose processes may send ICMP echo requests.
const PING_GROUPS: &str = "/proc/sys/net/ipv4/ping_group_range";
/// Default of a namespace's future interfaces, loopback not included.
const DISABLE_IPV6: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";

/// A connection to the bridge.
#[derive(Debug, Clone)]
pub(crate) struct Plug {
    pub(crate) bridge: Arc<Bridge>,
    /// Name of the veth on the bridge's side.
    pub(crate) host_name: String,
    pub(crate) mac: route::Mac,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix_len: u8,
    pub(crate) gateway: Ipv4Addr,
}

/// Where a container's sandbox is bound. The id becomes a file name, so it must be one.
pub(crate) fn key(exec_root: &Path, container_id: &str) -> Result<PathBuf> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let usable = !container_id.is_empty()
        && container_id.len() <= 255
        && !container_id.starts_with('.')
        && container_id.bytes().all(plain);
    if !usable {
        return Err(Error::invalid(format!("invalid container id {container_id:?}")));
    }
    Ok(exec_root.join("netns").join(container_id))
}

/// Makes a sandbox at `key`, connected by `plug` if there is one; otherwise it has its loopback only.
pub(crate) async fn create(key: PathBuf, plug: Option<Plug>) -> Result<()> {
    on_own_thread(move || {
        let result = create_here(&key, plug.as_ref());
        if let (Err(_), Some(plug)) = (&result, &plug) {
            // The namespace would take the pair with it, but only some time after this thread has ended.
            if let Err(error) = plug.bridge.unplug(&plug.host_name) {
                tracing::warn!(link = plug.host_name, %error, "cannot remove a half-made veth pair");
            }
        }
        result
            .map_err(|error| error.context(format!("failed to create the network sandbox {}", key.display())))
    })
    .await
}

fn create_here(key: &Path, plug: Option<&Plug>) -> Result<()> {
    let failed = |what: &'static str| move |error: io::Error| Error::system(what).caused_by(error);
    if let Some(directory) = key.parent() {
        fs::create_dir_all(directory).map_err(failed("cannot create the directory of sandboxes"))?;
    }
    // What a killed daemon left would be in the way.
    netns::unbind(key).map_err(failed("cannot remove a stale sandbox"))?;

    ns::unshare(&[ns::Kind::Network]).map_err(failed("cannot create a network namespace"))?;
    let namespace = netns::current().map_err(failed("cannot open the new network namespace"))?;
    allow_ports_and_ping();
    let mut socket = Socket::route()?;
    match plug {
        None => socket.request(route::up("lo"))?,
        Some(plug) => {
            disable_ipv6().map_err(failed("cannot disable IPv6"))?;
            plug.bridge.plug(&plug.host_name, namespace.as_fd(), plug.mac)?;
            let eth0 = route::link(&mut socket, "eth0")?.ok_or_else(|| Error::system("eth0 is missing"))?;
            socket.batch([
                route::up("lo"),
                route::up("eth0"),
                route::add_address(eth0.index, plug.address, plug.prefix_len),
                route::add_default_route(eth0.index, plug.gateway),
            ])?;
            plug.bridge.settle(&plug.host_name)?;
        }
    }
    netns::bind(namespace.as_fd(), key).map_err(failed("cannot bind the network namespace"))
}

/// Lets processes without privileges listen on any port and ping, as Docker does: there is nobody else in this
/// namespace to protect. A container's own `--sysctl` comes later.
fn allow_ports_and_ping() {
    let last_group = fs::read_to_string("/proc/self/gid_map")
        .ok()
        .and_then(|map| last_mapped(&map))
        .unwrap_or(0);
    for (file, value) in [
        (UNPRIVILEGED_PORTS, "0".to_owned()),
        (PING_GROUPS, format!("0 {last_group}")),
    ] {
        if let Err(error) = fs::write(file, value) {
            tracing::debug!(file, %error, "kernel parameter not set");
        }
    }
}

/// The last of the ids from 0 on that are mapped without a gap (`user_namespaces(7)`), at most what the kernel takes.
fn last_mapped(map: &str) -> Option<u32> {
    let mut ranges: Vec<(u32, u32)> = map
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_ascii_whitespace().map(str::parse);
            Some((numbers.next()?.ok()?, numbers.nth(1)?.ok()?))
        })
        .collect();
    ranges.sort_unstable();
    let mut end: u32 = 0;
    for (first, count) in ranges {
        if first != end {
            break;
        }
        end = first.saturating_add(count);
    }
    end.checked_sub(1).map(|last| last.min(i32::MAX.cast_unsigned()))
}

/// Turns IPv6 off for the interfaces to come. A kernel without IPv6 needs nothing.
fn disable_ipv6() -> io::Result<()> {
    match fs::write(DISABLE_IPV6, "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes the sandbox at `key`. The kernel frees the namespace when its last process has ended.
pub(crate) fn remove(key: &Path) -> Result<()> {
    netns::unbind(key).map_err(|error| {
        Error::system(format!("cannot remove the sandbox {}", key.display())).caused_by(error)
    })
}

/// The names (container ids) of all sandboxes below `exec_root`, half-made ones included.
pub(crate) fn list(exec_root: &Path) -> Result<Vec<String>> {
    let directory = exec_root.join("netns");
    let failed =
        |error: io::Error| Error::system(format!("cannot list {}", directory.display())).caused_by(error);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // A name that is not UTF-8 is none of ours.
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}

/// Runs `work` on a new thread, to its end even when nobody waits for it any more.
async fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || {
            // The receiver may be gone; then its owner cleans up by the container's id.
            let _ = sender.send(work());
        })
        .map_err(|error| Error::system("cannot start a thread").caused_by(error))?;
    receiver
        .await
        .unwrap_or_else(|_| Err(Error::system("the thread making a network sandbox panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mapped_id_is_found() {
        assert_eq!(
            last_mapped("         0          0 4294967295\n"),
            Some(2_147_483_647)
        );
        assert_eq!(last_mapped("0 1000 1\n1 100000 65536\n"), Some(65_536));
        assert_eq!(last_mapped("1 100000 65536\n0 1000 1\n"), Some(65_536));
        assert_eq!(last_mapped("0 1000 1\n"), Some(0));
        assert_eq!(last_mapped("5 1000 1\n"), None);
        assert_eq!(last_mapped(""), None);
    }

    #[test]
    fn a_key_never_leaves_its_directory() {
        let root = Path::new("/run/user/1000/docker");
        assert_eq!(key(root, "abc123").unwrap(), root.join("netns/abc123"));
        for id in ["", ".", "..", "a/b", "../x", "a\0b", ".hidden"] {
            assert!(key(root, id).is_err(), "{id:?}");
        }
    }
}
