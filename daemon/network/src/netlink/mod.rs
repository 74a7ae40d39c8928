//! The part of netlink(7) this crate needs, spoken over plain blocking sockets.
//!
//! ```text
//!   route.rs   links, addresses, routes   ─┐
//!   nft.rs     nf_tables rules            ─┴─▶ message.rs (attributes) ─▶ socket.rs (send, acknowledgements, dumps)
//! ```
//!
//! A socket belongs for ever to the namespace it was made in; handed to another thread it still acts on that
//! namespace. Requests take microseconds to a few milliseconds, so callers use blocking threads, not tasks.

mod message;
pub(crate) mod nft;
pub(crate) mod route;
mod socket;

pub(crate) use socket::Socket;
