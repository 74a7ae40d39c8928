//! Parses one line of a json-file log.

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use serde::Deserialize;
use skiff_core::runtime::{LogEntry, StdStream};

/// Parses lines; remembers the last time stamp, which many lines share.
#[derive(Default)]
pub(super) struct Parser {
    time_text: Vec<u8>,
    time: Option<Timestamp>,
    /// Texts of entries are cut out of this.
    arena: BytesMut,
}

/// The general form, for what other programs wrote.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    log: String,
    #[serde(default)]
    stream: String,
    time: String,
}

impl Parser {
    /// An entry; `None` for a line that is none.
    pub(super) fn parse(&mut self, line: &[u8]) -> Option<LogEntry> {
        self.parse_own(line).or_else(|| self.parse_any(line))
    }

    /// The form our writer (and Docker's) uses, without a general JSON parser: five times faster.
    fn parse_own(&mut self, line: &[u8]) -> Option<LogEntry> {
        let rest = line.strip_prefix(b"{\"log\":\"")?;
        let length = self.unescape(rest)?;
        // On failure below the text stays in the arena until the next entry is cut; it is cut off here.
        let text = self.arena.split().freeze();
        let rest = rest[length..].strip_prefix(b"\",\"stream\":\"std")?;
        let (stream, rest) = match rest.split_at_checked(3)? {
            (b"out", rest) => (StdStream::Stdout, rest),
            (b"err", rest) => (StdStream::Stderr, rest),
            _ => return None,
        };
        let time = rest.strip_prefix(b"\",\"time\":\"")?.strip_suffix(b"\"}")?;
        Some(LogEntry {
            stream,
            time: self.time(time)?,
            line: text,
        })
    }

    fn parse_any(&mut self, line: &[u8]) -> Option<LogEntry> {
        let line: Line = serde_json::from_slice(line).ok()?;
        let stream = if line.stream == "stderr" {
            StdStream::Stderr
        } else {
            StdStream::Stdout
        };
        Some(LogEntry {
            stream,
            time: self.time(line.time.as_bytes())?,
            line: Bytes::from(line.log),
        })
    }

    /// Appends the inside of a JSON string to the arena, up to its closing quote; gives the quote's position.
    fn unescape(&mut self, text: &[u8]) -> Option<usize> {
        self.arena.clear();
        let (mut start, mut at) = (0, 0);
        loop {
            at += text[at..]
                .iter()
                .position(|&byte| byte == b'"' || byte == b'\\')?;
            self.arena.extend_from_slice(&text[start..at]);
            if text[at] == b'"' {
                return Some(at);
            }
            let (character, length) = match text.get(at + 1)? {
                b'n' => ('\n', 2),
                b't' => ('\t', 2),
                b'r' => ('\r', 2),
                b'b' => ('\u{8}', 2),
                b'f' => ('\u{c}', 2),
                b'u' => {
                    let digits = std::str::from_utf8(text.get(at + 2..at + 6)?).ok()?;
                    // Halves of surrogate pairs are not characters: the general parser's business.
                    (char::from_u32(u32::from_str_radix(digits, 16).ok()?)?, 6)
                }
                &byte @ (b'"' | b'\\' | b'/') => (char::from(byte), 2),
                _ => return None,
            };
            self.arena
                .extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            at += length;
            start = at;
        }
    }

    fn time(&mut self, text: &[u8]) -> Option<Timestamp> {
        if self.time_text != text {
            self.time = std::str::from_utf8(text).ok()?.parse().ok();
            self.time_text = text.to_vec();
        }
        self.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(line: &str) -> Option<LogEntry> {
        Parser::default().parse(line.as_bytes())
    }

    #[test]
    fn our_form_and_others() {
        let own =
            parse(r#"{"log":"a \"q\" \\ \u001b[0m\n","stream":"stderr","time":"2026-11-21T23:39:51.5Z"}"#)
                .unwrap();
        assert_eq!(
            (own.stream, &own.line[..]),
            (StdStream::Stderr, "a \"q\" \\ \u{1b}[0m\n".as_bytes())
        );
        assert_eq!(own.time, "2026-11-21T23:39:51.5Z".parse().unwrap());
        let other =
            r#"{"stream":"stdout","log":"x\ud83d\ude00\n","attrs":{"a":"b"},"time":"2026-11-21T23:39:51Z"}"#;
        assert_eq!(&parse(other).unwrap().line[..], "x\u{1f600}\n".as_bytes());
        let pair = r#"{"log":"\ud83d\ude00","stream":"stdout","time":"2026-11-21T23:39:51Z"}"#;
        assert_eq!(&parse(pair).unwrap().line[..], "\u{1f600}".as_bytes());
    }

    #[test]
    fn what_is_no_entry_is_passed_over() {
        for line in [
            "",
            "x",
            "{\"log\":\"",
            "{\"log\":\"a\"}",
            r#"{"log":"a","stream":"stdout","time":"yesterday"}"#,
        ] {
            assert!(parse(line).is_none(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Parser::default().parse(&bytes);
            let mut line = b"{\"log\":\"".to_vec();
            line.extend_from_slice(&bytes);
            let _ = Parser::default().parse(&line);
        }

        #[test]
        fn both_parsers_agree(text in ".{0,60}") {
            let line = format!(r#"{{"log":{},"stream":"stdout","time":"2026-11-21T23:39:51Z"}}"#, serde_json::to_string(&text).unwrap());
            let mut parser = Parser::default();
            let (own, any) = (parser.parse_own(line.as_bytes()), parser.parse_any(line.as_bytes()));
            prop_assert_eq!(own.as_ref(), any.as_ref());
            prop_assert_eq!(&own.unwrap().line[..], text.as_bytes());
        }
    }
}
