//! Maps of sparse files: old GNU headers and the PAX formats 0.0, 0.1 and 1.0.
//!
//! A map lists the pieces that have data. It is trusted only after [`check`]: in order, without overlap, inside the
//! file, and together exactly as long as the data that follows.

use crate::entry::Extent;
use crate::error::{Error, Result};
use crate::header::{BLOCK, number};
use crate::pax;

/// Most extents a map may have; a map in data could otherwise grow without bound.
const EXTENTS_MAX: usize = 1 << 20;

/// What the PAX records say about the map.
pub(crate) enum Map {
    /// Not sparse.
    None,
    /// The map, and the file's real size.
    Known(Vec<Extent>, u64),
    /// The map stands in front of the data; the file's real size.
    InData(u64),
}

/// Collects the `GNU.sparse.*` records of one member.
#[derive(Default)]
pub(crate) struct Builder {
    named: bool,
    major: Option<u64>,
    minor: Option<u64>,
    size: Option<u64>,
    pending: Option<u64>,
    map: Vec<Extent>,
    mapped: bool,
}

fn bad() -> Error {
    Error::corrupt("tar: bad sparse map")
}

fn too_long() -> Error {
    Error::corrupt(format!("tar: a sparse map of more than {EXTENTS_MAX} pieces"))
}

fn push(map: &mut Vec<Extent>, extent: Extent) -> Result<()> {
    if map.len() == EXTENTS_MAX {
        return Err(too_long());
    }
    map.push(extent);
    Ok(())
}

impl Builder {
    /// Whether the file's real name was among the records.
    pub(crate) fn named(&self) -> bool {
        self.named
    }

    pub(crate) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let value_number = || pax::decimal(value).ok_or_else(bad);
        match &key[b"GNU.sparse.".len()..] {
            b"name" => self.named = true,
            b"major" => self.major = Some(value_number()?),
            b"minor" => self.minor = Some(value_number()?),
            b"size" | b"realsize" => self.size = Some(value_number()?),
            // 0.0: pairs of records, in order.
            b"offset" => self.pending = Some(value_number()?),
            b"numbytes" => {
                let offset = self.pending.take().ok_or_else(bad)?;
                push(
                    &mut self.map,
                    Extent {
                        offset,
                        length: value_number()?,
                    },
                )?;
                self.mapped = true;
            }
            // 0.1: all in one record.
            b"map" => {
                let numbers: Option<Vec<u64>> = value.split(|&b| b == b',').map(pax::decimal).collect();
                let numbers = numbers.filter(|n| n.len() % 2 == 0).ok_or_else(bad)?;
                for pair in numbers.chunks_exact(2) {
                    push(
                        &mut self.map,
                        Extent {
                            offset: pair[0],
                            length: pair[1],
                        },
                    )?;
                }
                self.mapped = true;
            }
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Map> {
        match (self.major, self.minor, self.size) {
            (Some(1), Some(0), Some(size)) => Ok(Map::InData(size)),
            (None | Some(0), None | Some(0 | 1), Some(size)) if self.mapped => Ok(Map::Known(self.map, size)),
            (None, None, _) if !self.mapped => Ok(Map::None),
            _ => Err(bad()),
        }
    }
}

/// Reads the pairs of an old-GNU table; an empty pair ends it.
pub(crate) fn table(bytes: &[u8], map: &mut Vec<Extent>) -> Result<()> {
    for pair in bytes.chunks_exact(24) {
        if pair[0] == 0 || pair[12] == 0 {
            break;
        }
        let field = |range: std::ops::Range<usize>| -> Result<u64> {
            number(&pair[range])
                .and_then(|n| u64::try_from(n).ok())
                .ok_or_else(bad)
        };
        push(
            map,
            Extent {
                offset: field(0..12)?,
                length: field(12..24)?,
            },
        )?;
    }
    Ok(())
}

/// Reads a continuation block of an old-GNU table; says whether another one follows.
pub(crate) fn extension_block(block: &[u8; BLOCK], map: &mut Vec<Extent>) -> Result<bool> {
    table(&block[..504], map)?;
    Ok(block[504] != 0)
}

/// Parser of the map in front of the data (format 1.0): decimal lines, the first is the number of pairs.
#[derive(Default)]
pub(crate) struct DataMap {
    line: Vec<u8>,
    wanted: Option<usize>,
    offset: Option<u64>,
    map: Vec<Extent>,
}

impl DataMap {
    /// Takes a block; gives the map when it is complete (the rest of the block is filling).
    pub(crate) fn push(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Extent>>> {
        for &byte in block {
            if byte != b'\n' {
                if self.line.len() == 20 {
                    return Err(bad());
                }
                self.line.push(byte);
                continue;
            }
            let value = pax::decimal(&self.line).ok_or_else(bad)?;
            self.line.clear();
            match (self.wanted, self.offset.take()) {
                (None, _) => {
                    self.wanted = Some(
                        usize::try_from(value)
                            .ok()
                            .filter(|n| *n <= EXTENTS_MAX)
                            .ok_or_else(too_long)?,
                    );
                }
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => push(
                    &mut self.map,
                    Extent {
                        offset,
                        length: value,
                    },
                )?,
            }
            if self.wanted == Some(self.map.len()) {
                return Ok(Some(std::mem::take(&mut self.map)));
            }
        }
        Ok(None)
    }
}

/// `Some` when the map is sound for a file of `real_size` bytes of which `data` bytes are stored.
pub(crate) fn check(map: &[Extent], data: u64, real_size: u64) -> Option<()> {
    let (mut end, mut sum) = (0u64, 0u64);
    for extent in map {
        if extent.offset < end {
            return None;
        }
        end = extent.offset.checked_add(extent.length)?;
        sum = sum.checked_add(extent.length)?;
    }
    (end <= real_size && sum == data && real_size <= i64::MAX as u64).then_some(())
}
