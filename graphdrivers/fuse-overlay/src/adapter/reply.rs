//! Answers, put together in a buffer that each thread uses again and again.
//!
//! ```text
//!   length u32 │ -errno i32 │ unique u64 │ structure or data …
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::abi::{DIRENT, ENTRY_OUT, OUT_HEADER};

/// A buffer for one answer at a time.
#[derive(Debug)]
pub(super) struct Reply {
    buffer: Box<[u8]>,
    length: usize,
}

impl Reply {
    /// Room for the largest answer: `payload` bytes behind the header.
    pub(super) fn with_room(payload: usize) -> Self {
        Self {
            buffer: vec![0; OUT_HEADER + payload].into_boxed_slice(),
            length: OUT_HEADER,
        }
    }

    /// Forgets what was put in.
    pub(super) fn clear(&mut self) {
        self.length = OUT_HEADER;
    }

    /// Bytes behind the header.
    pub(super) fn payload(&self) -> usize {
        self.length - OUT_HEADER
    }

    /// Appends; what has no room is a mistake in the sizes given to the kernel and is cut off.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let room = self.buffer.len() - self.length;
        let bytes = &bytes[..bytes.len().min(room)];
        self.buffer[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
        self
    }

    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn zeros(&mut self, count: usize) -> &mut Self {
        for _ in 0..count {
            self.bytes(&[0]);
        }
        self
    }

    /// Lets `fill` write up to `limit` bytes of data and say how many they are.
    pub(super) fn fill<E>(
        &mut self,
        limit: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let end = (self.length + limit).min(self.buffer.len());
        let written = fill(&mut self.buffer[self.length..end])?;
        self.length = (self.length + written).min(end);
        Ok(())
    }

    /// Whether a directory entry still fits into an answer of at most `limit` bytes.
    pub(super) fn has_room_for(&self, name: &OsStr, plus: bool, limit: usize) -> bool {
        let entry = if plus { ENTRY_OUT } else { 0 } + dirent_size(name);
        self.payload() + entry <= limit && self.length + entry <= self.buffer.len()
    }

    /// `fuse_dirent`. `kind` is the file type's four bits of the mode.
    pub(super) fn dirent(&mut self, ino: u64, offset: u64, kind: u32, name: &OsStr) -> &mut Self {
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
        self.u64(ino)
            .u64(offset)
            .u32(length)
            .u32(kind)
            .bytes(name.as_bytes());
        self.zeros(dirent_size(name) - DIRENT - name.len())
    }

    /// The finished message.
    pub(super) fn message(&mut self, unique: u64, errno: i32) -> &[u8] {
        if errno != 0 {
            self.length = OUT_HEADER;
        }
        self.header(unique, -errno)
    }

    /// The same as an unasked-for notice of this kind.
    pub(super) fn notice(&mut self, kind: i32) -> &[u8] {
        self.header(0, kind)
    }

    fn header(&mut self, unique: u64, error: i32) -> &[u8] {
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        self.buffer[..4].copy_from_slice(&length.to_ne_bytes());
        self.buffer[4..8].copy_from_slice(&error.to_ne_bytes());
        self.buffer[8..OUT_HEADER].copy_from_slice(&unique.to_ne_bytes());
        &self.buffer[..self.length]
    }
}

/// A directory entry is padded to eight bytes.
fn dirent_size(name: &OsStr) -> usize {
    (DIRENT + name.len()).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_nothing_else() {
        let mut reply = Reply::with_room(64);
        reply.u64(5);
        assert_eq!(reply.payload(), 8);
        let message = reply.message(9, 2).to_vec();
        assert_eq!(message.len(), OUT_HEADER);
        assert_eq!(message[..4], 16u32.to_ne_bytes());
        assert_eq!(message[4..8], (-2i32).to_ne_bytes());
        assert_eq!(message[8..], 9u64.to_ne_bytes());
    }

    #[test]
    fn entries_are_padded_and_bounded() {
        let mut reply = Reply::with_room(100);
        let name = OsStr::new("abcde");
        assert!(reply.has_room_for(name, false, 32));
        assert!(!reply.has_room_for(name, false, 31));
        assert!(!reply.has_room_for(name, true, 4096));
        reply.dirent(1, 2, 8, name);
        assert_eq!(reply.payload(), 32);
        assert_eq!(&reply.message(1, 0)[OUT_HEADER + 24..], b"abcde\0\0\0");
    }

    #[test]
    fn data_is_filled_in_place() {
        let mut reply = Reply::with_room(8);
        let outcome: Result<(), ()> = reply.fill(100, |space| {
            space[..3].copy_from_slice(b"abc");
            Ok(3)
        });
        outcome.unwrap();
        assert_eq!(&reply.message(1, 0)[OUT_HEADER..], b"abc");
    }
}
