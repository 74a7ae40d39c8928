//! The typed channel between the parent and each of its two children: one message a stage, descriptors may travel along.
//!
//! A SOCK_SEQPACKET pair: the kernel keeps message boundaries, and the death of either side, however it comes, is an
//! end-of-file for the other. The child finds its end at descriptor 0 (neither child reads standard input), so no
//! descriptor numbers have to be agreed on and nothing unsafe is needed to take it.

use std::fs::OpenOptions;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message in bytes, far below the kernel's default send buffer (212,992).
const MAX_MESSAGE: usize = 128 * 1024;
/// Most descriptors in one message: namespaces, locks, and what a service manager passes. The kernel's limit is 253.
pub(crate) const MAX_FDS: usize = 64;

/// One end.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
}

/// Why nothing was received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The other side is gone.
    #[error("the other process ended")]
    Closed,
    /// It took too long.
    #[error("no answer in time")]
    TimedOut,
    /// A message that this version does not know.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// The system.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Channel {
    /// Our end, and the other one to be given to a child as its standard input.
    ///
    /// # Errors
    /// `EMFILE` and the like.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self { socket: ours }, theirs))
    }

    /// The child's end: takes descriptor 0 and puts `/dev/null` in its place.
    ///
    /// # Errors
    /// When descriptor 0 is not such a channel: the role was called by hand.
    pub(crate) fn from_stdin() -> io::Result<Self> {
        let stdin = io::stdin();
        let kind = rustix::net::sockopt::socket_type(&stdin)?;
        if kind != SocketType::SEQPACKET {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "standard input is not a channel to skiffd",
            ));
        }
        let socket = stdin.as_fd().try_clone_to_owned()?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        Ok(Self { socket })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// `EPIPE` when the other side is gone (never a SIGPIPE).
    pub(crate) fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
        if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too long"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        sendmsg(
            &self.socket,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Waits for a message; `None` waits without end.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub(crate) fn receive<M: DeserializeOwned>(
        &self,
        timeout: Option<Duration>,
    ) -> Result<(M, Vec<OwnedFd>), ReceiveError> {
        self.wait_readable(timeout)?;
        let mut bytes = vec![0; self.next_length()?.min(MAX_MESSAGE)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let result = recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            );
            match result {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(ReceiveError::Closed),
                other => break other.map_err(io::Error::from)?,
            }
        };
        if received.bytes == 0 {
            return Err(ReceiveError::Closed);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(ReceiveError::Malformed("truncated".to_owned()));
        }
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let message = serde_json::from_slice(&bytes[..received.bytes])
            .map_err(|error| ReceiveError::Malformed(error.to_string()))?;
        Ok((message, fds))
    }

    /// Bytes of the message that is received next; the keeper never needs more memory than this.
    fn next_length(&self) -> io::Result<usize> {
        let mut nothing: [u8; 0] = [];
        loop {
            match recv(&self.socket, &mut nothing, RecvFlags::PEEK | RecvFlags::TRUNC) {
                Err(Errno::INTR) => {}
                // The real length is the second number.
                other => return Ok(other.map(|(_, length)| length)?),
            }
        }
    }

    fn wait_readable(&self, timeout: Option<Duration>) -> Result<(), ReceiveError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left
                .map(Timespec::try_from)
                .transpose()
                .map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], left.as_ref()) {
                Err(Errno::INTR) => {}
                Ok(0) => return Err(ReceiveError::TimedOut),
                Ok(_) => return Ok(()),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// For the daemon, which watches its end from tokio.
impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    fn pair() -> (Channel, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        (ours, Channel { socket: theirs })
    }

    #[test]
    fn messages_keep_their_boundaries_and_descriptors() {
        let (a, b) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through").unwrap();
        a.send(&"first", &[]).unwrap();
        a.send(&("second", 2), &[file.as_fd()]).unwrap();
        assert_eq!(b.receive::<String>(None).unwrap().0, "first");
        let ((word, number), fds) = b.receive::<(String, u8)>(None).unwrap();
        assert_eq!((word.as_str(), number, fds.len()), ("second", 2, 1));
        let mut copy = std::fs::File::from(fds.into_iter().next().unwrap());
        copy.rewind().unwrap();
        let mut text = String::new();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn silence_death_and_nonsense_are_told_apart() {
        let (a, b) = pair();
        let timed_out = b.receive::<String>(Some(Duration::ZERO));
        assert!(matches!(timed_out, Err(ReceiveError::TimedOut)));
        a.send(&17, &[]).unwrap();
        assert!(matches!(
            b.receive::<String>(None),
            Err(ReceiveError::Malformed(_))
        ));
        drop(a);
        assert!(matches!(b.receive::<String>(None), Err(ReceiveError::Closed)));
        assert_eq!(b.send(&1, &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_was_sent_before_death_is_still_received() {
        let (a, b) = pair();
        a.send(&"last words", &[]).unwrap();
        drop(a);
        assert_eq!(b.receive::<String>(None).unwrap().0, "last words");
        assert!(matches!(b.receive::<String>(None), Err(ReceiveError::Closed)));
    }
}
