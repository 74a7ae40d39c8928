//! Reading a tar stream: V7, ustar, GNU, star and PAX headers, long names, sparse files, base-256 numbers.
//!
//! Why not a library: PAX records with newlines in extended attributes, PAX sparse files and borrowed data (file
//! contents go from the decoder's buffer to write(2) without a copy) are not to be had. Which archives are accepted
//! follows Go's `archive/tar`, because that is what images were made for; where two readers could disagree about
//! where a member ends, the rule is Go's.

use crate::entry::{Entry, Extent, Kind, Time, Xattrs};
#[cfg(test)]
use crate::error::ErrorKind;
use crate::error::{Error, Result, show};
use crate::header::{BLOCK, Header};
use crate::pax;
use crate::pipeline::Receiver;
use crate::sparse;

/// Largest extension header (long name, PAX records) accepted; Go's limit.
const EXTENSION_MAX: u64 = 1 << 20;
/// Most extended attributes of one member. The kernel lists 64 KiB of names of a file, real files have a handful.
const ATTRIBUTES_MAX: usize = 4096;

/// Where tar blocks come from.
pub(crate) trait Stream {
    /// The bytes not yet consumed; empty at the end.
    fn fill(&mut self) -> Result<&[u8]>;
    /// Marks `n` of them as used.
    fn consume(&mut self, n: usize);
}

impl Stream for Receiver {
    fn fill(&mut self) -> Result<&[u8]> {
        Receiver::fill(self)
    }
    fn consume(&mut self, n: usize) {
        self.consume_bytes(n);
    }
}

impl Stream for &[u8] {
    fn fill(&mut self) -> Result<&[u8]> {
        Ok(self)
    }
    fn consume(&mut self, n: usize) {
        *self = &self[n..];
    }
}

/// Reads members one after the other.
pub(crate) struct Reader<'a, S> {
    stream: &'a mut S,
    /// Data bytes of the current member that were not read.
    remaining: u64,
    /// Filling after them, up to a whole block.
    padding: u64,
}

/// What extension headers said about the next member.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Vec<u8>,
    any: bool,
}

impl<'a, S: Stream> Reader<'a, S> {
    pub(crate) fn new(stream: &'a mut S) -> Self {
        Self {
            stream,
            remaining: 0,
            padding: 0,
        }
    }

    /// The next member; what was left of the data of the last one is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            let rest = self.remaining + self.padding;
            (self.remaining, self.padding) = (0, 0);
            self.skip(rest)?;
            let Some(header) = self.header()? else {
                if extensions.any {
                    return Err(Error::corrupt("tar: the archive ends after an extension header"));
                }
                return Ok(None);
            };
            match header.type_flag() {
                b'x' => {
                    extensions.pax = self.extension(&header)?;
                    extensions.any = true;
                }
                // Global headers are read over, as Docker and containerd do.
                b'g' => {
                    self.extension(&header)?;
                }
                b'L' => {
                    extensions.path = Some(c_string(self.extension(&header)?));
                    extensions.any = true;
                }
                b'K' => {
                    extensions.link = Some(c_string(self.extension(&header)?));
                    extensions.any = true;
                }
                _ => return self.member(&header, extensions).map(Some),
            }
        }
    }

    /// A piece of the current member's data; empty at its end. Holes of sparse files are not part of the data.
    pub(crate) fn data(&mut self) -> Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let limit = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let piece = self.stream.fill()?;
        if piece.is_empty() {
            return Err(truncated());
        }
        Ok(&piece[..piece.len().min(limit)])
    }

    /// Marks `n` bytes of what [`Reader::data`] gave as used.
    pub(crate) fn consume(&mut self, n: usize) {
        self.stream.consume(n);
        self.remaining -= n as u64;
    }

    fn member(&mut self, header: &Header, extensions: Extensions) -> Result<Entry> {
        let mut entry = header.entry()?;
        let mut size = header.size()?;
        let mut sparse = sparse::Builder::default();
        for (key, value) in pax::records(&extensions.pax)? {
            apply_record(&mut entry, &mut size, &mut sparse, key, value)?;
        }
        sort_attributes(&mut entry.xattrs)?;
        // GNU's own extensions win over PAX, as in Go.
        if let Some(path) = extensions.path {
            entry.path = path;
        }
        if let Some(link) = extensions.link {
            entry.link = link;
        }
        if header.type_flag() == 0 && entry.path.ends_with(b"/") {
            entry.kind = Kind::Directory;
        }
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return Err(Error::corrupt(format!(
                "tar: name {:?} holds a zero byte",
                show(&entry.path)
            )));
        }
        entry.size = if entry.kind.is_header_only() { 0 } else { size };
        self.remaining = entry.size;
        self.padding = entry.size.wrapping_neg() % BLOCK as u64;
        if entry.kind == Kind::Regular {
            self.sparse_map(header, &mut entry, sparse)?;
        }
        Ok(entry)
    }

    /// Finds the map of a sparse file, wherever its variant of the format keeps it.
    fn sparse_map(&mut self, header: &Header, entry: &mut Entry, builder: sparse::Builder) -> Result<()> {
        let (map, real_size) = if header.type_flag() == b'S' {
            let mut map = header.sparse_extents()?;
            let mut more = header.sparse_continues();
            while more {
                let block = self.block()?.ok_or_else(truncated)?;
                more = sparse::extension_block(&block, &mut map)?;
            }
            (map, header.sparse_real_size()?)
        } else {
            match builder.finish()? {
                sparse::Map::None => return Ok(()),
                sparse::Map::Known(map, real_size) => (map, real_size),
                sparse::Map::InData(real_size) => (self.sparse_map_in_data()?, real_size),
            }
        };
        sparse::check(&map, self.remaining, real_size)
            .ok_or_else(|| Error::corrupt(format!("tar: bad sparse map of {:?}", show(&entry.path))))?;
        entry.size = real_size;
        entry.sparse = Some(map);
        Ok(())
    }

    /// PAX sparse format 1.0 keeps the map in front of the data, in whole blocks.
    fn sparse_map_in_data(&mut self) -> Result<Vec<Extent>> {
        let mut parser = sparse::DataMap::default();
        loop {
            if self.remaining < BLOCK as u64 {
                return Err(truncated());
            }
            let block = self.block()?.ok_or_else(truncated)?;
            self.remaining -= BLOCK as u64;
            if let Some(map) = parser.push(&block)? {
                return Ok(map);
            }
        }
    }

    fn header(&mut self) -> Result<Option<Header>> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block != [0; BLOCK] {
            return Header::parse(block).map(Some);
        }
        // The end is two blocks of zeros; one and then nothing is let through, one and then something is not.
        match self.block()? {
            None => Ok(None),
            Some(second) if second == [0; BLOCK] => Ok(None),
            Some(_) => Err(Error::corrupt("tar: invalid header after a block of zeros")),
        }
    }

    /// One block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let piece = self.stream.fill()?;
            if piece.is_empty() {
                return if filled == 0 { Ok(None) } else { Err(truncated()) };
            }
            let n = piece.len().min(BLOCK - filled);
            block[filled..filled + n].copy_from_slice(&piece[..n]);
            self.stream.consume(n);
            filled += n;
        }
        Ok(Some(block))
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>> {
        let size = header.size()?;
        if size > EXTENSION_MAX {
            return Err(Error::corrupt(format!(
                "tar: an extension header of {size} bytes, more than {EXTENSION_MAX}"
            )));
        }
        self.remaining = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        let mut data = Vec::new();
        loop {
            let piece = self.data()?;
            if piece.is_empty() {
                return Ok(data);
            }
            data.extend_from_slice(piece);
            let n = piece.len();
            self.consume(n);
        }
    }

    fn skip(&mut self, mut n: u64) -> Result<()> {
        while n > 0 {
            let available = self.stream.fill()?.len();
            if available == 0 {
                return Err(truncated());
            }
            let step = available.min(usize::try_from(n).unwrap_or(usize::MAX));
            self.stream.consume(step);
            n -= step as u64;
        }
        Ok(())
    }
}

fn truncated() -> Error {
    Error::corrupt("tar: unexpected EOF: the archive is truncated")
}

fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn apply_record(
    entry: &mut Entry,
    size: &mut u64,
    sparse: &mut sparse::Builder,
    key: &[u8],
    value: &[u8],
) -> Result<()> {
    let bad = || Error::corrupt(format!("tar: bad PAX record {:?}", show(key)));
    if let Some(name) = key.strip_prefix(pax::XATTR_PREFIX) {
        entry.xattrs.push((name.to_vec(), value.to_vec()));
        return Ok(());
    }
    if key.starts_with(b"GNU.sparse.") {
        if key == b"GNU.sparse.name" {
            entry.path = value.to_vec();
        }
        return sparse.record(key, value);
    }
    // An empty value takes a record back: the header's field holds.
    if value.is_empty() {
        return Ok(());
    }
    let time = || -> Result<Time> { pax::time(value).ok_or_else(bad) };
    match key {
        // The real name of a sparse file is in GNU.sparse.name, wherever that record stands.
        b"path" if !sparse.named() => entry.path = value.to_vec(),
        b"linkpath" => entry.link = value.to_vec(),
        b"size" => {
            *size = pax::decimal(value)
                .filter(|n| *n <= i64::MAX as u64)
                .ok_or_else(bad)?;
        }
        b"uid" => entry.uid = pax::decimal(value).ok_or_else(bad)?,
        b"gid" => entry.gid = pax::decimal(value).ok_or_else(bad)?,
        b"mtime" => entry.mtime = time()?,
        b"atime" => entry.atime = Some(time()?),
        _ => {}
    }
    Ok(())
}

/// Brings attributes into the order of their names. Of several with one name the last one counts.
fn sort_attributes(attributes: &mut Xattrs) -> Result<()> {
    // Stable, so that the last one is the first of its name after this.
    attributes.reverse();
    attributes.sort_by(|(a, _), (b, _)| a.cmp(b));
    attributes.dedup_by(|(a, _), (b, _)| a == b);
    if attributes.len() > ATTRIBUTES_MAX {
        return Err(Error::corrupt(format!(
            "tar: a member with {} extended attributes, more than {ATTRIBUTES_MAX}",
            attributes.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
