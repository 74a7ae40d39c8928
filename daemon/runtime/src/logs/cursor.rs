//! A position in a container's log: over all its files, rotated ones included.
//!
//! Blocking; the caller sees to it that it runs where that is allowed. All files are opened at the start, so
//! rotation while reading loses nothing. Memory: one buffer and one batch of entries.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use skiff_core::runtime::LogEntry;

use super::entry::Parser;
use super::writer::rotated;

/// How much is read at once.
const BLOCK: usize = 64 << 10;

/// Longest line that is waited for; an entry has 16 KiB of text, six times as much at worst when escaped.
const MAX_LINE: usize = 1 << 20;

/// A position in a log.
pub(super) struct Cursor {
    path: PathBuf,
    /// Files still to be read, oldest first, with the offset to begin at.
    files: VecDeque<(File, u64)>,
    /// Read on when the last file grows; otherwise only what was there at the start.
    endless: bool,
    /// Where to stop in the last file, unless endless.
    stop: u64,
    /// The beginning of a line whose end was not there yet.
    partial: Vec<u8>,
    block: Vec<u8>,
    parser: Parser,
}

impl Cursor {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            files: VecDeque::new(),
            endless: false,
            stop: 0,
            partial: Vec::new(),
            block: vec![0; BLOCK],
            parser: Parser::default(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the log's files, at the `tail`th entry from the end.
    ///
    /// # Errors
    /// Those of the file system; that there is no log (yet) is none.
    pub(super) fn open(&mut self, tail: Option<u64>, endless: bool) -> io::Result<()> {
        self.endless = endless;
        let mut left = tail;
        for number in 0.. {
            let Some(file) = open_existing(&self.name(number))? else {
                break;
            };
            let size = file.metadata()?.len();
            if number == 0 {
                self.stop = size;
            }
            let offset = match &mut left {
                Some(entries) => seek_back(&file, size, entries)?,
                None => 0,
            };
            self.files.push_front((file, offset));
            if left == Some(0) {
                break;
            }
        }
        Ok(())
    }

    fn name(&self, number: u32) -> PathBuf {
        if number == 0 {
            self.path.clone()
        } else {
            rotated(&self.path, number)
        }
    }

    /// The next entries; none at the end (for now, if endless).
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn next_batch(&mut self) -> io::Result<Vec<LogEntry>> {
        let mut entries = Vec::new();
        while entries.is_empty() {
            let last = self.files.len() <= 1;
            let Some((file, offset)) = self.files.front_mut() else {
                if self.endless && self.open_successors(None)? {
                    continue;
                }
                break;
            };
            let limit = if last && !self.endless {
                self.stop.saturating_sub(*offset)
            } else {
                u64::MAX
            };
            let limit = usize::try_from(limit).unwrap_or(BLOCK).min(BLOCK);
            let count = file.read_at(&mut self.block[..limit], *offset)?;
            *offset += count as u64;
            if count > 0 {
                self.take_lines(count, &mut entries);
            } else if !last {
                self.files.pop_front();
                self.partial.clear();
            } else if !self.endless || !self.move_on()? {
                break;
            }
        }
        Ok(entries)
    }

    /// Parses the first `count` bytes of the block.
    fn take_lines(&mut self, count: usize, entries: &mut Vec<LogEntry>) {
        let mut rest = &self.block[..count];
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line = &rest[..end];
            let entry = if self.partial.is_empty() {
                self.parser.parse(line)
            } else {
                self.partial.extend_from_slice(line);
                let entry = self.parser.parse(&self.partial);
                self.partial.clear();
                entry
            };
            entries.extend(entry);
            rest = &rest[end + 1..];
        }
        if self.partial.len() + rest.len() <= MAX_LINE {
            self.partial.extend_from_slice(rest);
        } else {
            self.partial.clear();
        }
    }

    /// At the end of the last file: was it rotated away or emptied? Whether there may be more to read.
    fn move_on(&mut self) -> io::Result<bool> {
        let Some((file, offset)) = self.files.front_mut() else {
            return Ok(false);
        };
        let meta = file.metadata()?;
        if meta.len() < *offset {
            *offset = 0;
            self.partial.clear();
            return Ok(meta.len() > 0);
        }
        let current = match std::fs::metadata(&self.path) {
            Ok(current) => current,
            // Between the two steps of a rotation.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if (current.dev(), current.ino()) == (meta.dev(), meta.ino()) {
            return Ok(false);
        }
        // The new file exists, so nothing more will be written to the old one; but something may have been, since
        // we last looked. It stays in front and is read to its end before the next.
        let grown = meta.len() > *offset;
        Ok(self.open_successors(Some((meta.dev(), meta.ino())))? || grown)
    }

    /// Queues the files that came after the one given (all, if it is no longer there). Whether there are any.
    fn open_successors(&mut self, after: Option<(u64, u64)>) -> io::Result<bool> {
        let mut found = Vec::new();
        for number in 0.. {
            let Some(file) = open_existing(&self.name(number))? else {
                break;
            };
            let meta = file.metadata()?;
            if after == Some((meta.dev(), meta.ino())) {
                break;
            }
            found.push((file, 0));
            if after.is_none() {
                break;
            }
        }
        let any = !found.is_empty();
        self.files.extend(found.into_iter().rev());
        Ok(any)
    }
}

fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the last `entries` lines of a file begin, found from its end. `entries` becomes what is missing.
fn seek_back(file: &File, size: u64, entries: &mut u64) -> io::Result<u64> {
    if *entries == 0 {
        return Ok(size);
    }
    let mut block = vec![0; BLOCK];
    let mut end = size;
    // The newline that ends the last line is not the beginning of another.
    let mut newlines = 0;
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let length = usize::try_from(end - start).unwrap_or(BLOCK);
        file.read_exact_at(&mut block[..length], start)?;
        for at in (0..length).rev().filter(|&at| block[at] == b'\n') {
            newlines += 1;
            if newlines == *entries + 1 {
                *entries = 0;
                return Ok(start + at as u64 + 1);
            }
        }
        end = start;
    }
    *entries -= newlines.min(*entries);
    Ok(0)
}
