//! Writing a tar stream: ustar headers, with PAX records for whatever does not fit.

use std::io::{self, Write};

use crate::entry::{Entry, Kind, Time};
use crate::error::{Error, ErrorKind, Result};
use crate::header::BLOCK;
use crate::pax;

/// Largest number in eleven octal digits: sizes and times.
const OCTAL_11: u64 = 0o77_777_777_777;
/// Largest number in seven octal digits: ids.
const OCTAL_7: u64 = 0o7_777_777;

/// Writes members one after the other. Data follows its header by [`Writer::data`], exactly as long as announced.
pub(crate) struct Writer<W> {
    out: W,
    padding: u64,
    written: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            padding: 0,
            written: 0,
        }
    }

    /// Writes the headers of a member.
    pub(crate) fn header(&mut self, entry: &Entry) -> Result<()> {
        self.pad()?;
        let records = records(entry);
        if !records.is_empty() {
            let mut header = Entry {
                path: b"PaxHeaders.0/x".to_vec(),
                mode: 0o644,
                ..blank()
            };
            header.size = records.len() as u64;
            self.put(&block(&header, b'x'))?;
            self.put(&records)?;
            self.padding = header.size.wrapping_neg() % BLOCK as u64;
            self.pad()?;
        }
        let flag = match entry.kind {
            Kind::Regular => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        self.put(&block(entry, flag))?;
        self.padding = if entry.kind == Kind::Regular {
            entry.size.wrapping_neg() % BLOCK as u64
        } else {
            0
        };
        Ok(())
    }

    /// Writes a piece of the member's data.
    pub(crate) fn data(&mut self, piece: &[u8]) -> Result<()> {
        self.put(piece)
    }

    /// Writes the end of the archive; gives the length of the whole stream.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.pad()?;
        self.put(&[0; 2 * BLOCK])?;
        self.out.flush().map_err(failed)?;
        Ok(self.written)
    }

    fn pad(&mut self) -> Result<()> {
        let n = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or_default();
        self.put(&[0; BLOCK][..n])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes).map_err(failed)
    }
}

fn failed(error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    };
    Error::new(kind, "write archive").caused_by(error)
}

/// A member with nothing in it.
pub(crate) fn blank() -> Entry {
    Entry {
        path: Vec::new(),
        link: Vec::new(),
        kind: Kind::Regular,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        atime: None,
        device: (0, 0),
        size: 0,
        xattrs: Vec::new(),
        sparse: None,
    }
}

/// The PAX records that the member needs, in order of their keywords.
fn records(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in &entry.xattrs {
        pax::push_record(&mut out, &[pax::XATTR_PREFIX, name].concat(), value);
    }
    if entry.gid > OCTAL_7 {
        pax::push_record(&mut out, b"gid", entry.gid.to_string().as_bytes());
    }
    if !fits_link(&entry.link) {
        pax::push_record(&mut out, b"linkpath", &entry.link);
    }
    if !fits_seconds(entry.mtime) || entry.mtime.nanoseconds != 0 {
        pax::push_record(&mut out, b"mtime", pax::time_text(entry.mtime).as_bytes());
    }
    if split_path(&entry.path).is_none() {
        pax::push_record(&mut out, b"path", &entry.path);
    }
    if entry.size > OCTAL_11 {
        pax::push_record(&mut out, b"size", entry.size.to_string().as_bytes());
    }
    if entry.uid > OCTAL_7 {
        pax::push_record(&mut out, b"uid", entry.uid.to_string().as_bytes());
    }
    out
}

fn fits_link(link: &[u8]) -> bool {
    link.len() <= 100 && link.is_ascii()
}

fn fits_seconds(time: Time) -> bool {
    u64::try_from(time.seconds).is_ok_and(|s| s <= OCTAL_11)
}

/// Prefix and name of a path that fits into a ustar header.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= 100 {
        return Some((&[], path));
    }
    // A trailing slash belongs to the name.
    (1..path.len() - 1)
        .filter(|&at| path[at] == b'/' && at <= 155 && path.len() - at - 1 <= 100)
        .map(|at| (&path[..at], &path[at + 1..]))
        .next()
}

fn block(entry: &Entry, flag: u8) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    // What does not fit stands in the PAX records; a shortened copy helps readers that know none.
    let (prefix, name) = split_path(&entry.path).unwrap_or((&[], &entry.path));
    text(&mut block[..100], name);
    text(&mut block[345..500], prefix);
    octal(&mut block[100..108], entry.mode.into());
    octal(
        &mut block[108..116],
        if entry.uid > OCTAL_7 { 0 } else { entry.uid },
    );
    octal(
        &mut block[116..124],
        if entry.gid > OCTAL_7 { 0 } else { entry.gid },
    );
    octal(
        &mut block[124..136],
        if entry.size > OCTAL_11 { 0 } else { entry.size },
    );
    let seconds = if fits_seconds(entry.mtime) {
        entry.mtime.seconds.unsigned_abs()
    } else {
        0
    };
    octal(&mut block[136..148], seconds);
    block[156] = flag;
    text(&mut block[157..257], &entry.link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut block[329..337], u64::from(entry.device.0).min(OCTAL_7));
    octal(&mut block[337..345], u64::from(entry.device.1).min(OCTAL_7));
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    octal(&mut block[148..155], sum);
    block[155] = b' ';
    block
}

fn text(field: &mut [u8], bytes: &[u8]) {
    let n = bytes.len().min(field.len());
    field[..n].copy_from_slice(&bytes[..n]);
}

/// Octal digits with leading zeros and a zero byte at the end.
fn octal(field: &mut [u8], number: u64) {
    let digits = field.len() - 1;
    let text = format!("{number:0digits$o}");
    field[..digits].copy_from_slice(&text.as_bytes()[text.len() - digits..]);
}
