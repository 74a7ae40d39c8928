//! A netlink socket: sends requests and waits for their acknowledgements.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

use super::message::{HEADER_LEN, Message, NLM_F_ACK, Reply, attribute, replies, text, u32_at};

/// `NLMSG_ERROR`: an acknowledgement or an error.
const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const NLMSG_DONE: u16 = 3;
/// `NLM_F_CAPPED`: the request was not sent back with the acknowledgement.
const NLM_F_CAPPED: u16 = 0x100;
/// `NLMSGERR_ATTR_MSG`: an explanation in words.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The kernel fills at most 32 KiB per datagram of a dump.
const RECEIVE_BUFFER: usize = 32 * 1024;
/// `RTNLGRP_LINK` as a bit of the subscription mask: links made, changed and deleted.
const LINK_EVENTS: u32 = 1;
/// The kernel answers at once, except while others hold its one lock for network configuration.
const PATIENCE: Duration = Duration::from_secs(30);

/// A refused request.
#[derive(Debug, thiserror::Error)]
pub(crate) struct Error {
    /// What was to be done.
    purpose: String,
    /// The kernel's error number.
    pub(crate) errno: Errno,
    /// The kernel's explanation, if it gave one.
    explanation: Option<String>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.purpose, io::Error::from(self.errno))?;
        match &self.explanation {
            Some(text) => write!(f, " ({text})"),
            None => Ok(()),
        }
    }
}

impl From<Error> for skiff_core::Error {
    fn from(error: Error) -> Self {
        Self::system(error.to_string())
    }
}

/// The result of a request.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// A socket in the namespace of the thread that made it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// A socket for links, addresses and routes.
    pub(crate) fn route() -> Result<Self> {
        Self::open("open a route netlink socket", None, 0)
    }

    /// A socket that receives what happens to links from now on.
    pub(crate) fn link_events() -> Result<Self> {
        Self::open("subscribe to link events", None, LINK_EVENTS)
    }

    /// A socket for nf_tables.
    pub(crate) fn netfilter() -> Result<Self> {
        Self::open("open a netfilter netlink socket", Some(NETFILTER), 0)
    }

    fn open(purpose: &str, protocol: Option<Protocol>, groups: u32) -> Result<Self> {
        let open = || {
            let fd = socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                protocol,
            )?;
            bind(&fd, &SocketAddrNetlink::new(0, groups))?;
            set_socket_timeout(&fd, Timeout::Recv, Some(PATIENCE))?;
            Ok(fd)
        };
        let fd = open().map_err(|errno| failed(purpose, errno))?;
        // Old kernels only explain less.
        let _ = skiff_sys::netns::extended_acknowledgements(fd.as_fd());
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends one request and waits until it is done.
    pub(crate) fn request(&mut self, message: Message) -> Result<()> {
        self.batch([message])
    }

    /// Sends `messages` in one system call. The kernel works them off in order and does not stop at an error;
    /// the first error is returned after all were answered.
    pub(crate) fn batch(&mut self, messages: impl IntoIterator<Item = Message>) -> Result<()> {
        let mut bytes = Vec::new();
        let mut waiting = Vec::new();
        for message in messages {
            let sequence = self.next_sequence();
            let (mut part, purpose) = message.finish(sequence);
            acknowledged(&mut part);
            bytes.extend_from_slice(&part);
            waiting.push((sequence, purpose));
        }
        self.transmit(&bytes)
            .map_err(|errno| failed(first_purpose(&waiting), errno))?;
        self.collect(waiting)
    }

    /// Sends `messages` between `begin` and `end`, which are not acknowledged: nf_tables applies all or none.
    pub(crate) fn transaction(&mut self, begin: Message, messages: Vec<Message>, end: Message) -> Result<()> {
        let mut waiting = Vec::new();
        let begin_sequence = self.next_sequence();
        let (mut bytes, begin_purpose) = begin.finish(begin_sequence);
        for message in messages {
            let sequence = self.next_sequence();
            let (mut part, purpose) = message.finish(sequence);
            acknowledged(&mut part);
            bytes.extend_from_slice(&part);
            waiting.push((sequence, purpose));
        }
        let end_sequence = self.next_sequence();
        bytes.extend_from_slice(&end.finish(end_sequence).0);
        self.transmit(&bytes)
            .map_err(|errno| failed(&begin_purpose, errno))?;
        // A refusal of the whole batch (no nf_tables, no permission) answers its first message only.
        let refusal = (begin_sequence, begin_purpose);
        self.collect_until(waiting, Some(refusal))
    }

    /// Sends a request for one object. `None` when it does not exist.
    pub(crate) fn get(&mut self, message: Message) -> Result<Option<Reply>> {
        let sequence = self.next_sequence();
        let (bytes, purpose) = message.finish(sequence);
        self.transmit(&bytes).map_err(|errno| failed(&purpose, errno))?;
        loop {
            for reply in self.receive(&purpose)? {
                if reply.sequence != sequence {
                    continue;
                }
                if reply.kind != NLMSG_ERROR {
                    return Ok(Some(reply));
                }
                match refusal(&reply, &purpose) {
                    Some(error) if error.errno == Errno::NODEV || error.errno == Errno::NOENT => {
                        return Ok(None);
                    }
                    Some(error) => return Err(error),
                    None => return Ok(None),
                }
            }
        }
    }

    /// Sends a request for all objects of a kind.
    pub(crate) fn dump(&mut self, message: Message) -> Result<Vec<Reply>> {
        let sequence = self.next_sequence();
        let (bytes, purpose) = message.finish(sequence);
        self.transmit(&bytes).map_err(|errno| failed(&purpose, errno))?;
        let mut found = Vec::new();
        loop {
            for reply in self.receive(&purpose)? {
                match reply.kind {
                    _ if reply.sequence != sequence => {}
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => match refusal(&reply, &purpose) {
                        Some(error) => return Err(error),
                        None => return Ok(found),
                    },
                    _ => found.push(reply),
                }
            }
        }
    }

    /// Waits for the next events.
    pub(crate) fn events(&self) -> Result<Vec<Reply>> {
        self.receive("receive link events")
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn transmit(&self, bytes: &[u8]) -> rustix::io::Result<()> {
        rustix::io::retry_on_intr(|| {
            sendto(&self.fd, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))
        })?;
        Ok(())
    }

    fn receive(&self, purpose: &str) -> Result<Vec<Reply>> {
        let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
        rustix::io::retry_on_intr(|| {
            recv(
                &self.fd,
                rustix::buffer::spare_capacity(&mut buffer),
                RecvFlags::empty(),
            )
        })
        .map_err(|errno| failed(purpose, errno))?;
        Ok(replies(&buffer))
    }

    fn collect(&self, waiting: Vec<(u32, String)>) -> Result<()> {
        self.collect_until(waiting, None)
    }

    fn collect_until(&self, mut waiting: Vec<(u32, String)>, fatal: Option<(u32, String)>) -> Result<()> {
        let mut first = None;
        while !waiting.is_empty() {
            let replies = self.receive(first_purpose(&waiting))?;
            for reply in replies.iter().filter(|reply| reply.kind == NLMSG_ERROR) {
                if let Some((_, purpose)) = fatal.as_ref().filter(|(sequence, _)| *sequence == reply.sequence)
                    && let Some(error) = refusal(reply, purpose)
                {
                    return Err(error);
                }
                if let Some(place) = waiting
                    .iter()
                    .position(|(sequence, _)| *sequence == reply.sequence)
                {
                    let (_, purpose) = waiting.remove(place);
                    first = first.or_else(|| refusal(reply, &purpose));
                }
            }
        }
        first.map_or(Ok(()), Err)
    }
}

/// Sets `NLM_F_ACK` in a finished message.
fn acknowledged(bytes: &mut [u8]) {
    let flags = u16::from_ne_bytes([bytes[6], bytes[7]]) | NLM_F_ACK;
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
}

fn first_purpose(waiting: &[(u32, String)]) -> &str {
    waiting
        .first()
        .map_or("configure the network", |(_, purpose)| purpose)
}

fn failed(purpose: &str, errno: Errno) -> Error {
    Error {
        purpose: purpose.to_owned(),
        errno,
        explanation: None,
    }
}

/// The error in an `NLMSG_ERROR` message; `None` when it is an acknowledgement.
fn refusal(reply: &Reply, purpose: &str) -> Option<Error> {
    // The kernel's code is a negated errno; anything else would not be netlink.
    let code = u32_at(&reply.payload, 0).map_or(0, u32::cast_signed);
    if code == 0 {
        return None;
    }
    let request_len = match reply.flags & NLM_F_CAPPED {
        0 => u32_at(&reply.payload, 4)
            .and_then(|length| usize::try_from(length).ok())
            .unwrap_or(HEADER_LEN),
        _ => HEADER_LEN,
    };
    let details = reply
        .payload
        .get(4 + request_len.next_multiple_of(4)..)
        .unwrap_or_default();
    Some(Error {
        purpose: purpose.to_owned(),
        errno: Errno::from_raw_os_error(code.saturating_neg()),
        explanation: attribute(details, NLMSGERR_ATTR_MSG).map(text),
    })
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::route;
    use super::*;

    #[test]
    fn the_loopback_device_is_found_and_a_missing_one_is_none() {
        let mut socket = Socket::route().unwrap();
        let lo = route::link(&mut socket, "lo").unwrap().unwrap();
        assert_eq!(lo.name, "lo");
        assert!(route::link(&mut socket, "skiff-absent").unwrap().is_none());
        assert!(
            route::links(&mut socket)
                .unwrap()
                .iter()
                .any(|link| link.name == "lo")
        );
    }

    #[test]
    fn a_refusal_carries_purpose_and_errno() {
        let mut socket = Socket::route().unwrap();
        let error = socket.request(route::delete_link("skiff-absent")).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot delete link skiff-absent: "),
            "{error}"
        );
        assert!([Errno::NODEV, Errno::PERM].contains(&error.errno));
    }

    #[test]
    fn a_batch_reports_its_first_error_and_leaves_the_socket_usable() {
        let mut socket = Socket::route().unwrap();
        let messages = [
            route::delete_link("skiff-absent1"),
            route::delete_link("skiff-absent2"),
        ];
        assert!(
            socket
                .batch(messages)
                .unwrap_err()
                .to_string()
                .contains("skiff-absent1")
        );
        assert!(route::link(&mut socket, "lo").unwrap().is_some());
    }
}
