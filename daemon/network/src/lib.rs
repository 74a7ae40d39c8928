//! The containers' networks: implements [`skiff_core::network::Networks`] with netlink and nf_tables alone. No
//! program is executed except the uplink (pasta or slirp4netns). Made by `skiffd`, called by `skiff-core`.
//!
//! ```text
//!  host's namespace          keeper's namespace (rootless), or the host's (as root)         sandboxes
//!
//!  pasta or slirp4netns ── tap0 ── forwarding + masquerade ── docker0 ─┬─ veth… ═══ eth0   container 1
//!   (uplink/)                      (firewall.rs)          (bridge.rs)  └─ veth… ═══ eth0   container 2
//!                                                                                 (sandbox.rs, ipam.rs)
//! ```
//!
//! * [`BridgeNetworks`] (networks.rs) holds the state: who has which sandbox and address. It is rebuilt by `recover`
//!   from what the containers' records say; only the networks' ids are stored (ids.rs).
//! * Everything that blocks runs on threads of its own; the async side only waits.
//! * A sandbox exists exactly as long as its bind mount; a half-made one is removed by whoever finds it.
//! * The library neither searches `PATH` nor reads the environment.
//!
//! Where later features go: user-defined networks beside `bridge.rs` (one `Bridge` and `Pool` each), published ports
//! as chains in `firewall.rs`, embedded DNS as a listener made inside a sandbox, statistics as a request in
//! `netlink/route.rs`.

mod bridge;
mod config;
mod firewall;
mod ids;
mod ipam;
mod netlink;
mod networks;
mod resolv_conf;
mod sandbox;
mod uplink;

pub use config::{Bip, BipError, NetworkConfig, UplinkChoice, UplinkPrograms};
pub use networks::BridgeNetworks;
