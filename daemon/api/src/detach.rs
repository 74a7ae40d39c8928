//! Detach keys: the sequence that ends an attach to a terminal without ending the container
//! (`detachKeys`, `ctrl-p,ctrl-q` unless told otherwise).
//!
//! Pure: bytes in, bytes out. Input that might be the beginning of the sequence is held back until it is clear.

use crate::error::ApiError;

/// ctrl-p, ctrl-q.
const DEFAULT: &[u8] = &[16, 17];

/// A detach sequence and how much of it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// Parses `ctrl-p,ctrl-q`, `a,b`, `DEL`, …; empty text is the default.
    ///
    /// # Errors
    /// 400 "Invalid detach keys (…) provided".
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        if text.is_empty() {
            return Ok(Self {
                keys: DEFAULT.to_vec(),
                matched: 0,
            });
        }
        let keys = text.split(',').map(key).collect::<Option<Vec<u8>>>();
        keys.map(|keys| Self { keys, matched: 0 })
            .ok_or_else(|| ApiError::invalid(format!("Invalid detach keys ({text}) provided")))
    }

    /// Takes input from the client and appends what is meant for the container to `out`.
    /// `true` when the sequence is complete; what follows it is dropped.
    pub(crate) fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in input {
            // After a mismatch the longest end of the held bytes that still begins the sequence stays held.
            while self.matched > 0 && self.keys[self.matched] != byte {
                let shorter = self.fallback();
                out.extend_from_slice(&self.keys[..self.matched - shorter]);
                self.matched = shorter;
            }
            if self.keys[self.matched] == byte {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return true;
                }
            } else {
                out.push(byte);
            }
        }
        false
    }

    /// Length of the longest proper prefix of the matched bytes that is also their end.
    fn fallback(&self) -> usize {
        let held = &self.keys[..self.matched];
        (0..self.matched)
            .rev()
            .find(|&length| held.ends_with(&held[..length]))
            .unwrap_or(0)
    }
}

/// The byte of one key name.
fn key(name: &str) -> Option<u8> {
    match (name.as_bytes(), name.strip_prefix("ctrl-").map(str::as_bytes)) {
        (&[byte], _) => Some(byte),
        (b"DEL", _) => Some(127),
        (_, Some(&[byte @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')])) => Some(byte & 0x1f),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(keys: &str, pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut keys = DetachKeys::parse(keys).unwrap();
        let mut out = Vec::new();
        let detached = pieces.iter().any(|piece| keys.feed(piece, &mut out));
        (out, detached)
    }

    #[test]
    fn the_default_sequence_detaches_and_does_not_reach_the_container() {
        assert_eq!(run("", &[b"ls\r\x10\x11rest"]), (b"ls\r".to_vec(), true));
        assert_eq!(run("", &[b"ls\r\x10", b"\x11"]), (b"ls\r".to_vec(), true));
    }

    #[test]
    fn a_beginning_that_leads_nowhere_is_passed_on() {
        assert_eq!(run("", &[b"\x10", b"x"]), (b"\x10x".to_vec(), false));
        assert_eq!(run("", &[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(run("a,a,b", &[b"aa", b"ab"]), (b"a".to_vec(), true));
        assert_eq!(run("a,b,a,c", &[b"ababac"]), (b"ab".to_vec(), true));
        assert_eq!(run("a,b,a,c", &[b"abax"]), (b"abax".to_vec(), false));
    }

    #[test]
    fn names_of_keys() {
        assert_eq!(
            DetachKeys::parse("ctrl-@,ctrl-_,DEL,x").unwrap().keys,
            [0, 31, 127, b'x']
        );
        assert_eq!(DetachKeys::parse("ctrl-\\,ctrl-[").unwrap().keys, [28, 27]);
        for bad in ["ctrl-", "ctrl-A", "foo", "a,,b", "ctrl-é"] {
            let error = DetachKeys::parse(bad).unwrap_err().into_inner();
            assert_eq!(error.to_string(), format!("Invalid detach keys ({bad}) provided"));
        }
    }
}
