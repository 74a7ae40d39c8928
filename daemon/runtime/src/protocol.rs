//! What daemon and shim say to each other over the shim's socket.
//!
//! ```text
//! frame    = type (1 byte) · payload length (4 bytes, little endian) · payload
//! control  : Request →   ← Response                        (`wait` and `delete` answer when the task has ended)
//! attach   : Request{Attach} →   ← Response   ← Stdout* Stderr*   Stdin* [StdinEnd] →     until either side closes
//! ```
//!
//! A connection has one purpose. Requests and responses are JSON, streams are raw bytes. Both sides are ours, but not
//! necessarily of one version (shims outlive a daemon's update), so each request carries [`VERSION`], and the decoder takes any
//! bytes without panicking.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skiff_core::runtime::{AttachStreams, LaunchSpec, TaskExit, TerminalSize};

/// Version of the protocol. A shim of another version answers with an error that says both.
pub(crate) const VERSION: u32 = 1;

/// Length of a frame's header.
pub(crate) const HEADER: usize = 5;

/// Longest payload of a request or response: a launch specification with a large environment and a seccomp profile.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

/// Longest payload of a stream frame.
pub(crate) const MAX_DATA: usize = 64 << 10;

/// Types of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FrameType {
    Request = 1,
    Response = 2,
    Stdin = 0x10,
    StdinEnd = 0x11,
    Stdout = 0x20,
    Stderr = 0x21,
}

impl FrameType {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Request,
            2 => Self::Response,
            0x10 => Self::Stdin,
            0x11 => Self::StdinEnd,
            0x20 => Self::Stdout,
            0x21 => Self::Stderr,
            _ => return None,
        })
    }

    fn limit(self) -> usize {
        match self {
            Self::Request | Self::Response => MAX_MESSAGE,
            Self::Stdin | Self::Stdout | Self::Stderr => MAX_DATA,
            Self::StdinEnd => 0,
        }
    }
}

/// What makes a byte stream not ours. The connection is of no further use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("unknown frame type {0:#x}")]
    UnknownType(u8),
    #[error("frame of {length} bytes, more than the {limit} allowed")]
    TooLong { length: usize, limit: usize },
}

/// The header of a frame.
pub(crate) fn header(kind: FrameType, length: usize) -> [u8; HEADER] {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    [kind as u8, length[0], length[1], length[2], length[3]]
}

/// Finds the frame at the start of `bytes`: its type and the length of its payload, which follows the header.
/// `None` when the header is not complete yet.
pub(crate) fn parse_header(bytes: &[u8]) -> Result<Option<(FrameType, usize)>, FrameError> {
    let Some(&[kind, a, b, c, d]) = bytes.first_chunk::<HEADER>() else {
        return match bytes.first() {
            Some(&byte) if FrameType::from_byte(byte).is_none() => Err(FrameError::UnknownType(byte)),
            _ => Ok(None),
        };
    };
    let kind = FrameType::from_byte(kind).ok_or(FrameError::UnknownType(kind))?;
    let (length, limit) = (u32::from_le_bytes([a, b, c, d]) as usize, kind.limit());
    if length > limit {
        Err(FrameError::TooLong { length, limit })
    } else {
        Ok(Some((kind, length)))
    }
}

/// Like [`parse_header`], but only when the whole frame is there.
pub(crate) fn parse_frame(bytes: &[u8]) -> Result<Option<(FrameType, &[u8])>, FrameError> {
    Ok(parse_header(bytes)?.and_then(|(kind, length)| Some((kind, bytes.get(HEADER..HEADER + length)?))))
}

/// A request with the version of who sends it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) version: u32,
    pub(crate) request: Request,
}

/// What a shim can be asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Create(Box<CreateRequest>),
    Start,
    Signal(i32),
    Resize(TerminalSize),
    Wait,
    Status,
    Delete,
    Attach(AttachStreams),
}

/// Everything a shim needs to create its container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CreateRequest {
    pub(crate) launch: LaunchSpec,
    /// Program of an external OCI runtime; `None` for the embedded one.
    pub(crate) runtime: Option<PathBuf>,
    /// The namespace the shim itself moves to, so that it keeps the namespace alive.
    pub(crate) keeper_netns: Option<PathBuf>,
    /// Whether we are in a user namespace of an unprivileged user.
    pub(crate) rootless: bool,
    /// Our own program, for `--init`.
    pub(crate) init_program: PathBuf,
}

/// What a shim answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    Done,
    Attached { stdin: bool },
    Created { pid: u32 },
    Exited(TaskExit),
    Status { phase: Phase, pid: u32 },
    Failed(Failure),
}

/// Where in its life a task is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Nothing was created yet (or it is being created).
    New,
    Created,
    Running,
    Exited(TaskExit),
}

/// An error on its way to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
    /// The exit code to record when a launch failed.
    pub(crate) exit_code: i32,
}

/// The kinds of [`Failure`]; those of `skiff_core::ErrorKind` that occur here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FailureKind {
    Invalid,
    NotFound,
    Conflict,
    NotImplemented,
    System,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            exit_code: 128,
        }
    }

    pub(crate) fn system(message: impl Into<String>) -> Self {
        Self::new(FailureKind::System, message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Conflict, message)
    }
}

impl From<Failure> for skiff_core::Error {
    fn from(failure: Failure) -> Self {
        let kind = match failure.kind {
            FailureKind::Invalid => skiff_core::ErrorKind::InvalidParameter,
            FailureKind::NotFound => skiff_core::ErrorKind::NotFound,
            FailureKind::Conflict => skiff_core::ErrorKind::Conflict,
            FailureKind::NotImplemented => skiff_core::ErrorKind::NotImplemented,
            FailureKind::System => skiff_core::ErrorKind::System,
        };
        Self::new(kind, failure.message)
    }
}

/// A message as a complete frame.
pub(crate) fn encode(kind: FrameType, message: &impl Serialize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    // Our own messages have string keys and no failing serialisers, so this cannot fail; an empty payload would be
    // refused by the other side as malformed.
    if serde_json::to_writer(&mut frame, message).is_err() {
        frame.truncate(HEADER);
    }
    let head = header(kind, frame.len() - HEADER);
    frame[..HEADER].copy_from_slice(&head);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_survives_the_trip_and_a_partial_one_waits() {
        let frame = encode(
            FrameType::Request,
            &Envelope {
                version: VERSION,
                request: Request::Signal(15),
            },
        );
        for cut in 0..frame.len() {
            assert_eq!(parse_frame(&frame[..cut]), Ok(None), "cut at {cut}");
        }
        let (kind, payload) = parse_frame(&frame).unwrap().unwrap();
        assert_eq!(kind, FrameType::Request);
        let back: Envelope = serde_json::from_slice(payload).unwrap();
        assert!(matches!(back.request, Request::Signal(15)));
    }

    #[test]
    fn what_is_not_ours_is_refused_at_the_first_byte_and_before_memory_is_taken() {
        assert_eq!(parse_header(b"G"), Err(FrameError::UnknownType(b'G')));
        let error = parse_header(&[FrameType::Stdin as u8, 0xff, 0xff, 0xff, 0xff]).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { limit: MAX_DATA, .. }));
        assert!(parse_header(&[FrameType::StdinEnd as u8, 1, 0, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some((_, payload))) = parse_frame(&bytes) {
                prop_assert!(payload.len() + HEADER <= bytes.len());
                let _ = serde_json::from_slice::<Envelope>(payload);
                let _ = serde_json::from_slice::<Response>(payload);
            }
        }

        #[test]
        fn any_payload_is_found_again(payload in proptest::collection::vec(any::<u8>(), 0..4096), tail in proptest::collection::vec(any::<u8>(), 0..16)) {
            let mut bytes = header(FrameType::Stdout, payload.len()).to_vec();
            bytes.extend_from_slice(&payload);
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(parse_frame(&bytes), Ok(Some((FrameType::Stdout, payload.as_slice()))));
        }
    }
}
