//! The packet filter rules of the default bridge: one nf_tables table of our own, replaced as a whole. Other
//! tables are never touched; note that a packet another table drops stays dropped.
//!
//! ```text
//! table ip skiff {
//!   chain forward     { type filter hook forward priority filter; policy accept;
//!       ip daddr 10.0.2.3 tcp dport != 53 drop             with an uplink: its forwarder is for DNS only,
//!       ip daddr 10.0.2.3 udp dport != 53 drop             it would lead to the loopback of the host
//!       oifname docker0 ct state established,related accept
//!       iifname docker0 accept                             containers reach everything and each other
//!       oifname docker0 drop                               nobody reaches containers unasked
//!   }
//!   chain postrouting { type nat hook postrouting priority srcnat; policy accept;
//!       ip saddr 172.17.0.0/16 oifname != docker0 masquerade
//!   }
//! }
//! ```
//!
//! Published ports will add a `prerouting` and an `output` chain here, user-defined networks their own rules.

use std::net::Ipv4Addr;

use crate::config::Bip;
use crate::netlink::Socket;
use crate::netlink::nft::{Chain, Expression, FORWARD, POSTROUTING_NAT, replace_table};

/// Name of our table.
pub(crate) const TABLE: &str = "skiff";
const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS_PORT: u16 = 53;

/// Installs the rules, in place of those of an earlier run. `forwarder` is the uplink's name server, if there is an
/// uplink.
pub(crate) fn install(
    socket: &mut Socket,
    bridge: &str,
    bip: Bip,
    forwarder: Option<Ipv4Addr>,
) -> skiff_core::Result<()> {
    let chains = [forward(bridge, forwarder), postrouting(bridge, bip)];
    Ok(replace_table(socket, TABLE, &chains)?)
}

fn forward(bridge: &str, forwarder: Option<Ipv4Addr>) -> Chain {
    let mut rules = Vec::new();
    for protocol in [TCP, UDP] {
        rules.extend(forwarder.map(|forwarder| {
            vec![
                Expression::Destination(forwarder),
                Expression::Protocol(protocol),
                Expression::DestinationPortIsNot(DNS_PORT),
                Expression::Drop,
            ]
        }));
    }
    let bridge = || bridge.to_owned();
    rules.push(vec![
        Expression::OutputInterface(bridge()),
        Expression::Established,
        Expression::Accept,
    ]);
    rules.push(vec![Expression::InputInterface(bridge()), Expression::Accept]);
    rules.push(vec![Expression::OutputInterface(bridge()), Expression::Drop]);
    Chain {
        name: "forward",
        hook: FORWARD,
        rules,
    }
}

fn postrouting(bridge: &str, bip: Bip) -> Chain {
    let rule = vec![
        Expression::Source(bip.subnet(), bip.prefix_len()),
        Expression::OutputInterfaceIsNot(bridge.to_owned()),
        Expression::Masquerade,
    ];
    Chain {
        name: "postrouting",
        hook: POSTROUTING_NAT,
        rules: vec![rule],
    }
}
