//! The default bridge in its namespace: made at the daemon's start, taken over as it is after a restart.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use skiff_core::{Error, Result};
use skiff_sys::netns;

use crate::config::Bip;
use crate::firewall;
use crate::ids::random_hex;
use crate::netlink::{Socket, route};

/// Marks our links, so that those nobody needs any more are found again. (The bytes of "skif".)
const LINK_GROUP: u32 = 0x736b_6966;
/// Global switch for routing between interfaces, in the namespace of the thread that opens it.
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// What [`Bridge::set_up`] needs to know.
#[derive(Debug, Clone)]
pub(crate) struct BridgeSettings {
    pub(crate) name: String,
    pub(crate) bip: Bip,
    pub(crate) mtu: u32,
    /// Address of the uplink's DNS forwarder, if there is an uplink.
    pub(crate) forwarder: Option<Ipv4Addr>,
}

/// The bridge that exists, and the socket through which its namespace is configured.
#[derive(Debug)]
pub(crate) struct Bridge {
    index: u32,
    mtu: u32,
    /// `None`: the daemon's own.
    namespace: Option<OwnedFd>,
    socket: Mutex<Socket>,
}

impl Bridge {
    /// Makes bridge, address, forwarding and packet filter rules in `namespace` (`None`: the caller's), or brings
    /// what an earlier run left to that state. Blocks for some milliseconds.
    pub(crate) fn set_up(namespace: Option<BorrowedFd<'_>>, settings: &BridgeSettings) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::system("cannot enter the network namespace of the default bridge").caused_by(error)
        };
        let kept = namespace
            .map(|namespace| namespace.try_clone_to_owned())
            .transpose()
            .map_err(failed)?;
        let (index, socket) = netns::run_in(namespace, || set_up_here(settings)).map_err(failed)??;
        Ok(Self {
            index,
            mtu: settings.mtu,
            namespace: kept,
            socket: Mutex::new(socket),
        })
    }

    /// Connects the namespace `sandbox` by a veth pair: `host_name` on the bridge's side, eth0 with `mac` inside.
    pub(crate) fn plug(&self, host_name: &str, sandbox: BorrowedFd<'_>, mac: route::Mac) -> Result<()> {
        let pair = route::VethPair {
            name: host_name,
            group: LINK_GROUP,
            bridge: self.index,
            mtu: self.mtu,
            peer_namespace: Some(sandbox),
            peer_name: "eth0",
            peer_mac: Some(mac),
        };
        let messages = route::add_veth(&pair);
        Ok(self.socket().batch(messages)?)
    }

    /// Lets the kernel take notice, now that the other end is up, that this port has a carrier. Left to itself it does
    /// so some milliseconds later, and would lose what is sent until then: for TCP and DNS a second's delay.
    pub(crate) fn settle(&self, host_name: &str) -> Result<()> {
        route::link(&mut self.socket(), host_name)?;
        Ok(())
    }

    /// Removes a veth pair; it need not exist.
    ///
    /// Returns when the pair is out of the bridge and its name is free. The kernel then goes on freeing it for 15 to
    /// 30 ms, and only at the end of that acknowledges the request; nobody needs to wait for it.
    pub(crate) fn unplug(&self, host_name: &str) -> Result<()> {
        let namespace = self.namespace.as_ref().map(OwnedFd::as_fd);
        netns::run_in(namespace, || delete_link_here(host_name)).map_err(|error| {
            Error::system("cannot enter the network namespace of the default bridge").caused_by(error)
        })?
    }

    /// The names of all veth pairs of this and earlier runs.
    pub(crate) fn plugged(&self) -> Result<Vec<String>> {
        let links = route::links(&mut self.socket())?;
        let ours = |link: &route::Link| link.group == LINK_GROUP && link.kind.as_deref() == Some("veth");
        Ok(links.into_iter().filter(ours).map(|link| link.name).collect())
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        // A panic elsewhere leaves at worst an unread acknowledgement, which is skipped by its sequence number.
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_up_here(settings: &BridgeSettings) -> Result<(u32, Socket)> {
    let mut socket = Socket::route()?;
    enable_forwarding()?;
    let index = make_bridge(&mut socket, settings)?;
    for (address, prefix_len) in route::addresses(&mut socket, index)? {
        if (address, prefix_len) != (settings.bip.address(), settings.bip.prefix_len()) {
            socket.request(route::delete_address(index, address, prefix_len))?;
        }
    }
    socket.batch([
        route::up("lo"),
        route::set_mtu(&settings.name, settings.mtu),
        route::up_without_ipv6(&settings.name),
        route::add_address(index, settings.bip.address(), settings.bip.prefix_len()),
    ])?;
    keep_carrier(&mut socket, settings, index)?;
    firewall::install(
        &mut Socket::netfilter()?,
        &settings.name,
        settings.bip,
        settings.forwarder,
    )?;
    Ok((index, socket))
}

/// Gives the bridge a port that is always up.
///
/// A bridge without a live port has no carrier. When it gets its first one, the kernel lets the bridge itself send only
/// after its link watch has run, up to a second later: the first container's first packets through the gateway would
/// be lost, and so each time the last container has gone.
fn keep_carrier(socket: &mut Socket, settings: &BridgeSettings, bridge: u32) -> Result<()> {
    let (name, peer_name) = (format!("skiff{bridge}"), format!("skiff{bridge}p"));
    if route::link(socket, &name)?.is_none() {
        let pair = route::VethPair {
            name: &name,
            group: 0,
            bridge,
            mtu: settings.mtu,
            peer_namespace: None,
            peer_name: &peer_name,
            peer_mac: None,
        };
        socket.batch(route::add_veth(&pair))?;
    }
    socket.batch([
        route::set_mtu(&name, settings.mtu),
        route::up_without_ipv6(&name),
        route::up_without_ipv6(&peer_name),
    ])?;
    // Newer kernels take notice now, port first.
    for link in [&name, &settings.name] {
        route::link(socket, link)?;
    }
    Ok(())
}

/// The index of the bridge, made unless it exists.
fn make_bridge(socket: &mut Socket, settings: &BridgeSettings) -> Result<u32> {
    let name = settings.name.as_str();
    if let Some(link) = route::link(socket, name)? {
        return match link.kind.as_deref() {
            Some("bridge") => Ok(link.index),
            _ => Err(Error::conflict(format!(
                "cannot use {name} as the default bridge: it is another kind of link"
            ))),
        };
    }
    socket.request(route::add_bridge(name, random_mac()?, settings.mtu))?;
    let link = route::link(socket, name)?;
    link.map(|link| link.index)
        .ok_or_else(|| Error::system(format!("the bridge {name} vanished")))
}

/// Deletes a link of the calling thread's namespace and returns as soon as it is gone.
fn delete_link_here(name: &str) -> Result<()> {
    let failed = |error: io::Error| Error::system(format!("cannot delete link {name}")).caused_by(error);
    let events = Socket::link_events()?;
    let mut socket = Socket::route()?;
    let (answered, answer) = io::pipe().map_err(failed)?;
    let request = route::delete_link(name);
    // A new thread is in the namespace of the one that made it. Its closing of `answer` says that it has ended.
    let deletion = std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let _answer = answer;
            socket.request(request)
        });
    let deletion = deletion.map_err(failed)?;
    loop {
        let mut fds = [
            PollFd::new(&answered, PollFlags::IN),
            PollFd::new(&events, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).map_err(|errno| failed(errno.into()))?;
        if !fds[0].revents().is_empty() {
            return match deletion.join() {
                Ok(Err(error)) if error.errno == rustix::io::Errno::NODEV => Ok(()),
                Ok(result) => Ok(result?),
                Err(_) => Err(failed(io::Error::other("the thread panicked"))),
            };
        }
        // So many events that some were lost: the answer remains.
        let Ok(happened) = events.events() else { continue };
        if happened.iter().any(|event| route::is_deletion(event, name)) {
            return Ok(());
        }
    }
}

/// A random, locally administered link address in Docker's range.
fn random_mac() -> Result<route::Mac> {
    let failed = |error: io::Error| Error::system("cannot make a link address").caused_by(error);
    let digits = random_hex(8).map_err(failed)?;
    let number = u32::from_str_radix(&digits, 16).unwrap_or_default();
    let [a, b, c, d] = number.to_be_bytes();
    Ok([0x02, 0x42, a, b, c, d])
}

fn enable_forwarding() -> Result<()> {
    let forward = || -> io::Result<()> {
        // Only written when needed: /proc/sys may be read-only in a container whose creator has already done it.
        if fs::read(IP_FORWARD)?.first() != Some(&b'1') {
            fs::write(IP_FORWARD, "1")?;
        }
        Ok(())
    };
    forward().map_err(|error| {
        Error::system(format!("cannot enable IPv4 forwarding in {IP_FORWARD}")).caused_by(error)
    })
}
