//! Writes a container's output in Docker's json-file format, in the shim.
//!
//! ```text
//! {"log":"a line\n","stream":"stdout","time":"2026-11-21T23:39:51.123456789Z"}
//! ```
//!
//! One entry a line; a line longer than 16 KiB becomes several entries, all but the last without newline. One
//! write(2) for everything one read(2) gave. When the disk is full, entries are lost and the container goes on (as with Docker).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use skiff_core::runtime::{LogTarget, StdStream};

/// Longest entry, in bytes of output; Docker's.
const MAX_ENTRY: usize = 16 << 10;

/// The log of one container.
pub(crate) struct LogWriter {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: Option<u64>,
    max_files: u32,
    /// What has no newline yet, of each stream.
    partial: [Vec<u8>; 2],
    /// Entries being made.
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Opens (or goes on with) a log; `None` when there is to be none.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn open(target: &LogTarget) -> io::Result<Option<Self>> {
        let LogTarget::JsonFile {
            path,
            max_size,
            max_files,
        } = target
        else {
            return Ok(None);
        };
        let (file, size) = open_file(path)?;
        Ok(Some(Self {
            path: path.clone(),
            file,
            size,
            max_size: *max_size,
            max_files: (*max_files).max(1),
            partial: [Vec::new(), Vec::new()],
            buffer: Vec::new(),
        }))
    }

    /// Logs a piece of output.
    pub(crate) fn write(&mut self, stream: StdStream, bytes: &[u8]) {
        let time = Timestamp::now();
        let mut tail = Tail::new(stream, time);
        let mut partial = std::mem::take(&mut self.partial[index(stream)]);
        let mut rest = bytes;
        if !partial.is_empty() {
            let room = MAX_ENTRY - partial.len();
            let newline = rest
                .iter()
                .take(room)
                .position(|&byte| byte == b'\n')
                .map(|at| at + 1);
            let taken = newline.unwrap_or(room.min(rest.len()));
            partial.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if newline.is_some() || partial.len() >= MAX_ENTRY {
                let end = if newline.is_some() {
                    partial.len()
                } else {
                    character_boundary(&partial)
                };
                self.entry(&partial[..end], &mut tail);
                partial.drain(..end);
            }
        }
        while partial.len() + rest.len() > 0 && !rest.is_empty() {
            let window = &rest[..rest.len().min(MAX_ENTRY)];
            let end = match window.iter().position(|&byte| byte == b'\n') {
                Some(at) if partial.is_empty() => at + 1,
                _ if window.len() == MAX_ENTRY && partial.is_empty() => character_boundary(window),
                _ => {
                    // Too short to be an entry of its own, or behind the cut-off end of a long line.
                    let taken = window
                        .iter()
                        .position(|&byte| byte == b'\n')
                        .map_or(window.len(), |at| at + 1);
                    let taken = taken.min(MAX_ENTRY - partial.len());
                    partial.extend_from_slice(&rest[..taken]);
                    rest = &rest[taken..];
                    if partial.ends_with(b"\n") || partial.len() >= MAX_ENTRY {
                        let end = if partial.ends_with(b"\n") {
                            partial.len()
                        } else {
                            character_boundary(&partial)
                        };
                        self.entry(&partial[..end], &mut tail);
                        partial.drain(..end);
                    }
                    continue;
                }
            };
            self.entry(&rest[..end], &mut tail);
            rest = &rest[end..];
        }
        self.partial[index(stream)] = partial;
        self.flush();
    }

    /// The stream has ended: what it left without newline is logged.
    pub(crate) fn end(&mut self, stream: StdStream) {
        let partial = std::mem::take(&mut self.partial[index(stream)]);
        if !partial.is_empty() {
            self.entry(&partial, &mut Tail::new(stream, Timestamp::now()));
            self.flush();
        }
    }

    /// Gives the buffers back.
    pub(crate) fn trim(&mut self) {
        self.buffer = Vec::new();
    }

    fn entry(&mut self, bytes: &[u8], tail: &mut Tail) {
        if self
            .max_size
            .is_some_and(|limit| self.size + self.buffer.len() as u64 >= limit)
        {
            self.flush();
            // When it cannot be rotated the log goes on in the same file: a large log is better than none.
            if self.rotate().is_err() {
                self.max_size = None;
            }
        }
        self.buffer.extend_from_slice(b"{\"log\":\"");
        escape(bytes, &mut self.buffer);
        self.buffer.extend_from_slice(tail.text.as_bytes());
    }

    fn flush(&mut self) {
        if self.file.write_all(&self.buffer).is_ok() {
            self.size += self.buffer.len() as u64;
        } else {
            // A torn entry would spoil the next one.
            let _ = self.file.set_len(self.size);
        }
        self.buffer.clear();
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.max_files <= 1 {
            self.file.set_len(0)?;
        } else {
            for number in (1..self.max_files - 1).rev() {
                ignore_missing(std::fs::rename(
                    rotated(&self.path, number),
                    rotated(&self.path, number + 1),
                ))?;
            }
            ignore_missing(std::fs::rename(&self.path, rotated(&self.path, 1)))?;
        }
        (self.file, self.size) = open_file(&self.path)?;
        Ok(())
    }
}

/// The name of the `number`th older file.
pub(crate) fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn open_file(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn index(stream: StdStream) -> usize {
    usize::from(stream == StdStream::Stderr)
}

/// The end of an entry, the same for all of one read.
struct Tail {
    text: String,
}

impl Tail {
    fn new(stream: StdStream, time: Timestamp) -> Self {
        let name = if stream == StdStream::Stdout {
            "stdout"
        } else {
            "stderr"
        };
        // jiff prints RFC 3339 with as many decimals as are needed, as Go's RFC3339Nano does.
        Self {
            text: format!("\",\"stream\":\"{name}\",\"time\":\"{time}\"}}\n"),
        }
    }
}

/// Where to cut a long line so that no character is cut in two (a few bytes before the end, at most).
fn character_boundary(bytes: &[u8]) -> usize {
    let cut = (1..=3).find(|&back| back < bytes.len() && bytes[bytes.len() - back] & 0xc0 == 0xc0);
    match cut {
        Some(back) => {
            let lead = bytes[bytes.len() - back];
            let length = if lead >= 0xf0 {
                4
            } else if lead >= 0xe0 {
                3
            } else {
                2
            };
            if length > back {
                bytes.len() - back
            } else {
                bytes.len()
            }
        }
        None => bytes.len(),
    }
}

/// Appends `bytes` as the inside of a JSON string; what is not UTF-8 is replaced.
fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        escape_text(chunk.valid().as_bytes(), out);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

fn escape_text(text: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut start = 0;
    for (at, &byte) in text.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&text[start..at]);
        start = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
    }
    out.extend_from_slice(&text[start..]);
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
