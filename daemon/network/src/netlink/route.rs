//! Links, addresses and routes (`rtnetlink(7)`): requests as [`Message`]s and what the kernel answers.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Socket;
use super::message::{
    Message, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Reply, attribute, attributes, text, u32_at,
};
use super::socket::Result;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;

const AF_INET: u8 = 2;
const AF_INET6: u16 = 10;
const IFF_UP: u32 = 1;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
/// `RTEXT_FILTER_SKIP_STATS`: a dump of a hundred links is a third as long without counters.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

/// Length of `struct ifinfomsg`.
const IFINFOMSG_LEN: usize = 16;
/// Length of `struct ifaddrmsg`.
const IFADDRMSG_LEN: usize = 8;

/// A link address.
pub(crate) type Mac = [u8; 6];

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// `veth`, `bridge`, `tun` …; `None` for hardware and loopback.
    pub(crate) kind: Option<String>,
    /// The device group, 0 unless set.
    pub(crate) group: u32,
}

/// A veth pair to make, one end here and in a bridge, the other perhaps in a container's namespace.
#[derive(Debug)]
pub(crate) struct VethPair<'a> {
    /// Name of the end on this side.
    pub(crate) name: &'a str,
    /// Device group of the end on this side, by which it is found again; 0 for none.
    pub(crate) group: u32,
    /// Index of the bridge it is plugged into.
    pub(crate) bridge: u32,
    /// MTU of both ends, in bytes.
    pub(crate) mtu: u32,
    /// The other end's namespace; `None` for this one.
    pub(crate) peer_namespace: Option<BorrowedFd<'a>>,
    /// Name of the other end.
    pub(crate) peer_name: &'a str,
    /// Link address of the other end; `None` for a random one.
    pub(crate) peer_mac: Option<Mac>,
}

fn ifinfomsg(index: u32, flags: u32, change: u32) -> [u8; IFINFOMSG_LEN] {
    let mut fixed = [0; IFINFOMSG_LEN];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

/// Makes a bridge. Its address is given because it otherwise follows that of its lowest port.
pub(crate) fn add_bridge(name: &str, mac: Mac, mtu: u32) -> Message {
    let purpose = format!("create the bridge {name}");
    let mut message = Message::new(
        purpose,
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        &ifinfomsg(0, 0, 0),
    );
    message
        .text(IFLA_IFNAME, name)
        .attribute(IFLA_ADDRESS, &mac)
        .number(IFLA_MTU, mtu)
        .nested(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "bridge");
        });
    message
}

/// Makes a veth pair, one end up in a bridge, the other down in its namespace (the kernel cannot bring it up before
/// the pair is complete). Two requests, because a link's IPv6 setting is not taken at its creation.
pub(crate) fn add_veth(pair: &VethPair<'_>) -> [Message; 2] {
    let purpose = format!("create the veth pair {}", pair.name);
    let mut create = Message::new(
        purpose,
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        &ifinfomsg(0, 0, 0),
    );
    create
        .text(IFLA_IFNAME, pair.name)
        .number(IFLA_MTU, pair.mtu)
        .number(IFLA_GROUP, pair.group)
        .number(IFLA_MASTER, pair.bridge)
        .nested(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth").nested(IFLA_INFO_DATA, |data| {
                data.nested_after(VETH_INFO_PEER, &ifinfomsg(0, 0, 0), |peer| {
                    peer.text(IFLA_IFNAME, pair.peer_name).number(IFLA_MTU, pair.mtu);
                    if let Some(mac) = &pair.peer_mac {
                        peer.attribute(IFLA_ADDRESS, mac);
                    }
                    if let Some(namespace) = &pair.peer_namespace {
                        peer.number(IFLA_NET_NS_FD, namespace.as_raw_fd().cast_unsigned());
                    }
                });
            });
        });
    [create, up_without_ipv6(pair.name)]
}

/// Brings a link up that gets no IPv6 address by itself, not even a link-local one.
pub(crate) fn up_without_ipv6(name: &str) -> Message {
    let mut message = Message::new(
        format!("bring {name} up"),
        RTM_SETLINK,
        0,
        &ifinfomsg(0, IFF_UP, IFF_UP),
    );
    message.text(IFLA_IFNAME, name).nested(IFLA_AF_SPEC, |families| {
        families.nested(AF_INET6, |inet6| {
            inet6.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
        });
    });
    message
}

/// Brings a link up.
pub(crate) fn up(name: &str) -> Message {
    let mut message = Message::new(
        format!("bring {name} up"),
        RTM_SETLINK,
        0,
        &ifinfomsg(0, IFF_UP, IFF_UP),
    );
    message.text(IFLA_IFNAME, name);
    message
}

/// Sets a link's MTU, in bytes.
pub(crate) fn set_mtu(name: &str, mtu: u32) -> Message {
    let mut message = Message::new(
        format!("set the MTU of {name}"),
        RTM_SETLINK,
        0,
        &ifinfomsg(0, 0, 0),
    );
    message.text(IFLA_IFNAME, name).number(IFLA_MTU, mtu);
    message
}

/// Deletes a link; of a veth pair both ends go.
pub(crate) fn delete_link(name: &str) -> Message {
    let mut message = Message::new(format!("delete link {name}"), RTM_DELLINK, 0, &ifinfomsg(0, 0, 0));
    message.text(IFLA_IFNAME, name);
    message
}

/// Adds an address, or changes nothing when it is there.
pub(crate) fn add_address(index: u32, address: Ipv4Addr, prefix_len: u8) -> Message {
    let purpose = format!("add the address {address}/{prefix_len}");
    let broadcast = Ipv4Addr::from(u32::from(address) | host_mask(prefix_len));
    let mut message = Message::new(
        purpose,
        RTM_NEWADDR,
        NLM_F_CREATE | NLM_F_REPLACE,
        &ifaddrmsg(index, prefix_len),
    );
    message
        .attribute(IFA_LOCAL, &address.octets())
        .attribute(IFA_ADDRESS, &address.octets())
        .attribute(IFA_BROADCAST, &broadcast.octets());
    message
}

/// Removes an address.
pub(crate) fn delete_address(index: u32, address: Ipv4Addr, prefix_len: u8) -> Message {
    let purpose = format!("remove the address {address}/{prefix_len}");
    let mut message = Message::new(purpose, RTM_DELADDR, 0, &ifaddrmsg(index, prefix_len));
    message.attribute(IFA_LOCAL, &address.octets());
    message
}

/// Adds the default route through `gateway`.
pub(crate) fn add_default_route(index: u32, gateway: Ipv4Addr) -> Message {
    let purpose = format!("add the default route through {gateway}");
    let fixed = [
        AF_INET,
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_BOOT,
        0,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new(purpose, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &fixed);
    message
        .attribute(RTA_GATEWAY, &gateway.octets())
        .number(RTA_OIF, index);
    message
}

fn ifaddrmsg(index: u32, prefix_len: u8) -> [u8; IFADDRMSG_LEN] {
    let mut fixed = [0; IFADDRMSG_LEN];
    fixed[0] = AF_INET;
    fixed[1] = prefix_len;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed
}

/// The bits of an address behind its prefix.
fn host_mask(prefix_len: u8) -> u32 {
    u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0)
}

/// The link called `name`, if there is one. From Linux 6.8 on, asking also makes the kernel act on a carrier that has
/// just appeared, which it otherwise does up to a second later.
pub(crate) fn link(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    let mut message = Message::new(
        format!("look for link {name}"),
        RTM_GETLINK,
        0,
        &ifinfomsg(0, 0, 0),
    );
    message
        .text(IFLA_IFNAME, name)
        .number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    Ok(socket.get(message)?.and_then(|reply| parse_link(&reply.payload)))
}

/// All links.
pub(crate) fn links(socket: &mut Socket) -> Result<Vec<Link>> {
    let mut message = Message::new("list the links", RTM_GETLINK, NLM_F_DUMP, &ifinfomsg(0, 0, 0));
    message.number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    Ok(socket
        .dump(message)?
        .iter()
        .filter_map(|reply| parse_link(&reply.payload))
        .collect())
}

/// Whether an event says that the link `name` was deleted.
pub(crate) fn is_deletion(event: &Reply, name: &str) -> bool {
    event.kind == RTM_DELLINK && parse_link(&event.payload).is_some_and(|link| link.name == name)
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let tree = payload.get(IFINFOMSG_LEN..)?;
    let mut link = Link {
        index: u32_at(payload, 4)?,
        name: String::new(),
        kind: None,
        group: 0,
    };
    for (kind, value) in attributes(tree) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_GROUP => link.group = u32_at(value, 0)?,
            IFLA_LINKINFO => link.kind = attribute(value, IFLA_INFO_KIND).map(text),
            _ => {}
        }
    }
    Some(link)
}

/// The IPv4 addresses of link `index` with the length of their prefix.
pub(crate) fn addresses(socket: &mut Socket, index: u32) -> Result<Vec<(Ipv4Addr, u8)>> {
    let message = Message::new("list the addresses", RTM_GETADDR, NLM_F_DUMP, &ifaddrmsg(0, 0));
    let found = socket.dump(message)?;
    Ok(found
        .iter()
        .filter_map(|reply| parse_address(&reply.payload, index))
        .collect())
}

fn parse_address(payload: &[u8], index: u32) -> Option<(Ipv4Addr, u8)> {
    let family = *payload.first()?;
    if family != AF_INET || u32_at(payload, 4)? != index {
        return None;
    }
    let raw: [u8; 4] = attribute(payload.get(IFADDRMSG_LEN..)?, IFA_LOCAL)?
        .try_into()
        .ok()?;
    Some((Ipv4Addr::from(raw), *payload.get(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_masks() {
        assert_eq!(host_mask(0), u32::MAX);
        assert_eq!(host_mask(16), 0xffff);
        assert_eq!(host_mask(32), 0);
    }

    #[test]
    fn the_loopback_address_is_listed() {
        let mut socket = Socket::route().unwrap();
        let lo = link(&mut socket, "lo").unwrap().unwrap();
        for (address, prefix_len) in addresses(&mut socket, lo.index).unwrap() {
            assert!(!address.is_unspecified() && prefix_len <= 32);
        }
    }
}
