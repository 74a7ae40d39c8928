//! Requests of the kernel, taken apart.
//!
//! The kernel is trusted not to attack, but not to be of our version: a message that is shorter than expected is
//! answered with `EINVAL` and never read beyond its end.

use std::ffi::{CStr, OsStr};
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use super::abi::IN_HEADER;

/// A message that ends too early, or a name without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// `fuse_in_header`, and what follows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) opcode: u32,
    /// Names the request in its answer.
    pub(super) unique: u64,
    /// The inode it is about.
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    pub(super) body: Body<'a>,
}

/// The rest of a message; each method takes the next field off.
#[derive(Clone, Copy)]
pub(super) struct Body<'a>(&'a [u8]);

/// As far as people want to read it: what looks like a name.
impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = &self.0[..self.0.len().min(256)];
        let words = head
            .split(|byte| !byte.is_ascii_graphic())
            .filter(|word| word.len() > 1)
            .map(String::from_utf8_lossy);
        f.debug_list().entries(words).finish()
    }
}

impl<'a> Request<'a> {
    /// Takes a message apart, as read(2) gave it.
    pub(super) fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut body = Body(message);
        let length = body.u32()?;
        if usize::try_from(length) != Ok(message.len()) || message.len() < IN_HEADER {
            return Err(Malformed);
        }
        let (opcode, unique, node) = (body.u32()?, body.u64()?, body.u64()?);
        let (uid, gid, pid) = (body.u32()?, body.u32()?, body.u32()?);
        body.u32()?; // Length of extensions, which are asked for by no flag of ours.
        Ok(Self {
            opcode,
            unique,
            node,
            uid,
            gid,
            pid,
            body,
        })
    }
}

impl<'a> Body<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_ne_bytes)
    }

    /// Skips fields that are of no use here.
    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), Malformed> {
        self.0 = self.0.get(bytes..).ok_or(Malformed)?;
        Ok(())
    }

    /// A name, up to its NUL.
    pub(super) fn name(&mut self) -> Result<&'a OsStr, Malformed> {
        let name = CStr::from_bytes_until_nul(self.0).map_err(|_| Malformed)?;
        self.0 = &self.0[name.to_bytes_with_nul().len()..];
        Ok(OsStr::from_bytes(name.to_bytes()))
    }

    /// Exactly so many bytes.
    pub(super) fn bytes(&mut self, length: u32) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let (head, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(IN_HEADER + body.len()).unwrap();
        let mut bytes = Vec::new();
        bytes.extend(length.to_ne_bytes());
        bytes.extend(1u32.to_ne_bytes());
        bytes.extend(77u64.to_ne_bytes());
        bytes.extend(1u64.to_ne_bytes());
        for id in [1000u32, 1001, 4242, 0] {
            bytes.extend(id.to_ne_bytes());
        }
        bytes.extend(body);
        bytes
    }

    #[test]
    fn fields_in_order() {
        let bytes = message(b"name\0rest\0");
        let mut request = Request::parse(&bytes).unwrap();
        assert_eq!((request.opcode, request.unique, request.node), (1, 77, 1));
        assert_eq!((request.uid, request.gid, request.pid), (1000, 1001, 4242));
        assert_eq!(request.body.name().unwrap(), "name");
        assert_eq!(request.body.bytes(2).unwrap(), b"re");
        assert_eq!(request.body.name().unwrap(), "st");
        assert_eq!(request.body.u32(), Err(Malformed));
    }

    #[test]
    fn nothing_is_read_beyond_the_end() {
        let bytes = message(b"no end");
        assert_eq!(Request::parse(&bytes).unwrap().body.name(), Err(Malformed));
        assert_eq!(Request::parse(&bytes).unwrap().body.bytes(7), Err(Malformed));
        for length in 0..IN_HEADER {
            assert!(Request::parse(&bytes[..length]).is_err());
        }
        // A length that is not the message's.
        assert!(Request::parse(&[&bytes[..], b"x"].concat()).is_err());
    }
}
