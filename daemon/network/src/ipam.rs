//! Which addresses of a bridge's subnet are in use. Nothing is stored: after a restart the addresses of living
//! sandboxes are taken again ([`Pool::reserve`]).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::config::Bip;

/// The addresses of one subnet.
#[derive(Debug)]
pub(crate) struct Pool {
    bip: Bip,
    used: BTreeSet<u32>,
}

impl Pool {
    /// The subnet of `bip`, with the gateway's own address in use.
    pub(crate) fn new(bip: Bip) -> Self {
        Self {
            bip,
            used: BTreeSet::from([u32::from(bip.address())]),
        }
    }

    /// Takes the lowest free address, as Docker does; `None` when the subnet is full.
    pub(crate) fn allocate(&mut self) -> Option<Ipv4Addr> {
        let mut free = u32::from(self.bip.subnet()) + 1;
        let end = u32::from(self.bip.broadcast());
        // The set is sorted: the first place where it runs ahead of counting is the lowest gap.
        for &used in self.used.range(free..) {
            if used != free {
                break;
            }
            free += 1;
        }
        if free >= end {
            return None;
        }
        self.used.insert(free);
        Some(Ipv4Addr::from(free))
    }

    /// Takes a certain address; false when it is in use. Addresses outside the subnet (the bridge's address was
    /// changed while a container lived) are nobody's, so taking them succeeds and means nothing.
    pub(crate) fn reserve(&mut self, address: Ipv4Addr) -> bool {
        !self.contains(address) || self.used.insert(u32::from(address))
    }

    /// Gives an address back.
    pub(crate) fn release(&mut self, address: Ipv4Addr) {
        if address != self.bip.address() {
            self.used.remove(&u32::from(address));
        }
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        (self.bip.subnet()..=self.bip.broadcast()).contains(&address)
    }
}

/// The link address Docker derives from an IPv4 address: locally administered, and unique as the address is. A
/// successor with the same address has the same link address, so no neighbour's ARP entry goes stale.
pub(crate) fn mac_for(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// Parses `02:42:ac:11:00:02` (also with `-`); `None` unless it is the address of a single device.
pub(crate) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut mac = [0; 6];
    let mut parts = text.split(separator);
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16)
            .ok()
            .filter(|_| !part.starts_with('+'))?;
    }
    let multicast = mac[0] & 1 != 0;
    (parts.next().is_none() && !multicast && mac != [0; 6]).then_some(mac)
}

/// The usual notation of a link address.
pub(crate) fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_start_at_two_and_freed_ones_come_first() {
        let mut pool = Pool::new(Bip::default());
        let taken: Vec<_> = (0..3).map(|_| pool.allocate().unwrap().to_string()).collect();
        assert_eq!(taken, ["172.17.0.2", "172.17.0.3", "172.17.0.4"]);
        pool.release(Ipv4Addr::new(172, 17, 0, 3));
        assert_eq!(pool.allocate(), Some(Ipv4Addr::new(172, 17, 0, 3)));
        assert_eq!(pool.allocate(), Some(Ipv4Addr::new(172, 17, 0, 5)));
    }

    #[test]
    fn the_gateway_is_never_given_away() {
        let bip: Bip = "10.0.0.3/29".parse().unwrap();
        let mut pool = Pool::new(bip);
        pool.release(bip.address());
        let all: Vec<_> = std::iter::from_fn(|| pool.allocate())
            .map(|address| address.octets()[3])
            .collect();
        assert_eq!(all, [1, 2, 4, 5, 6]);
    }

    #[test]
    fn mac_addresses() {
        assert_eq!(
            format_mac(mac_for(Ipv4Addr::new(172, 17, 0, 2))),
            "02:42:ac:11:00:02"
        );
        assert_eq!(parse_mac("02:42:AC:11:00:02"), Some([2, 0x42, 0xac, 0x11, 0, 2]));
        assert_eq!(
            parse_mac("92-d0-c6-0a-29-33"),
            Some([0x92, 0xd0, 0xc6, 0x0a, 0x29, 0x33])
        );
        for wrong in [
            "",
            "02:42",
            "02:42:ac:11:00:02:03",
            "01:00:5e:00:00:01",
            "2:42:ac:11:0:2",
            "+2:42:ac:11:00:02",
        ] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice_and_all_are_used(
            steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200),
        ) {
            let bip: Bip = "10.0.0.1/27".parse().unwrap();
            let mut pool = Pool::new(bip);
            let mut held: Vec<Ipv4Addr> = Vec::new();
            for (take, which) in steps {
                if take || held.is_empty() {
                    match pool.allocate() {
                        Some(address) => {
                            prop_assert!(!held.contains(&address));
                            prop_assert!(address > bip.subnet() && address < bip.broadcast());
                            prop_assert_ne!(address, bip.address());
                            // The lowest free one.
                            let lower = (u32::from(bip.subnet()) + 2..u32::from(address)).map(Ipv4Addr::from);
                            for address in lower {
                                prop_assert!(held.contains(&address));
                            }
                            held.push(address);
                        }
                        None => prop_assert_eq!(held.len(), 29),
                    }
                } else {
                    pool.release(held.swap_remove(which.index(held.len())));
                }
            }
        }

        #[test]
        fn reserved_addresses_are_skipped(last_octets: HashSet<u8>) {
            let mut pool = Pool::new("10.0.0.1/24".parse().unwrap());
            for &octet in &last_octets {
                let free = octet != 1;
                prop_assert_eq!(pool.reserve(Ipv4Addr::new(10, 0, 0, octet)), free);
            }
            while let Some(address) = pool.allocate() {
                prop_assert!(!last_octets.contains(&address.octets()[3]));
            }
        }
    }
}
