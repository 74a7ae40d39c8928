//! One tar header block: fields, numbers, check sum.

use crate::entry::{Entry, Extent, Kind, Time};
use crate::error::{Error, Result, show};
use crate::sparse;

/// Bytes in a tar block.
pub(crate) const BLOCK: usize = 512;

/// Which dialect a header speaks; they share everything but the tail of the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header block whose check sum is right.
pub(crate) struct Header {
    block: [u8; BLOCK],
    dialect: Dialect,
}

impl Header {
    pub(crate) fn parse(block: [u8; BLOCK]) -> Result<Self> {
        let stored = number(&block[148..156]).ok_or_else(|| Error::corrupt("tar: invalid header"))?;
        // The check sum counts its own field as blanks. Some old programs added signed bytes.
        let (mut unsigned, mut signed) = (8 * 32i64, 8 * 32i64);
        for byte in block[..148].iter().chain(&block[156..]) {
            unsigned += i64::from(*byte);
            signed += i64::from(i8::from_ne_bytes([*byte]));
        }
        if stored != unsigned && stored != signed {
            return Err(Error::corrupt("tar: invalid header: wrong check sum"));
        }
        let dialect = match (&block[257..263], &block[263..265]) {
            (b"ustar\0", _) if &block[508..512] == b"tar\0" => Dialect::Star,
            (b"ustar\0", _) => Dialect::Ustar,
            (b"ustar ", b" \0") => Dialect::Gnu,
            _ => Dialect::V7,
        };
        Ok(Self { block, dialect })
    }

    pub(crate) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    /// Length of the data as the header says it.
    pub(crate) fn size(&self) -> Result<u64> {
        self.unsigned(124..136, "size")
    }

    /// The member as far as this block describes it.
    pub(crate) fn entry(&self) -> Result<Entry> {
        let name = text(&self.block[..100]);
        let path = match self.prefix() {
            [] => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        };
        let kind = match self.type_flag() {
            0 | b'0' | b'7' | b'S' => Kind::Regular,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(Error::corrupt(format!(
                    "unhandled tar header type {other} of {:?}",
                    show(&path)
                )));
            }
        };
        let mode = self.unsigned(100..108, "mode")?;
        let seconds = number(&self.block[136..148]).ok_or_else(|| bad("mtime"))?;
        Ok(Entry {
            path,
            link: text(&self.block[157..257]).to_vec(),
            kind,
            mode: u32::try_from(mode & 0o7777).unwrap_or_default(),
            uid: self.unsigned(108..116, "uid")?,
            gid: self.unsigned(116..124, "gid")?,
            mtime: Time {
                seconds,
                nanoseconds: 0,
            },
            atime: None,
            device: self.device(kind)?,
            size: 0,
            xattrs: Vec::new(),
            sparse: None,
        })
    }

    fn prefix(&self) -> &[u8] {
        match self.dialect {
            Dialect::Ustar => text(&self.block[345..500]),
            Dialect::Star => text(&self.block[345..476]),
            Dialect::V7 | Dialect::Gnu => &[],
        }
    }

    fn device(&self, kind: Kind) -> Result<(u32, u32)> {
        // Fields that mean nothing for this kind of member are often garbage.
        if self.dialect == Dialect::V7 || !matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            return Ok((0, 0));
        }
        let part = |range, name| -> Result<u32> {
            u32::try_from(self.unsigned(range, name)?).map_err(|_| bad(name))
        };
        Ok((part(329..337, "devmajor")?, part(337..345, "devminor")?))
    }

    fn unsigned(&self, range: std::ops::Range<usize>, name: &str) -> Result<u64> {
        number(&self.block[range])
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| bad(name))
    }

    /// The first extents of an old-GNU sparse file.
    pub(crate) fn sparse_extents(&self) -> Result<Vec<Extent>> {
        if self.dialect != Dialect::Gnu {
            return Err(Error::corrupt("tar: a sparse file without a GNU header"));
        }
        let mut map = Vec::new();
        sparse::table(&self.block[386..482], &mut map)?;
        Ok(map)
    }

    /// Whether more extents follow in a block of their own.
    pub(crate) fn sparse_continues(&self) -> bool {
        self.block[482] != 0
    }

    pub(crate) fn sparse_real_size(&self) -> Result<u64> {
        self.unsigned(483..495, "realsize")
    }
}

fn bad(field: &str) -> Error {
    Error::corrupt(format!("tar: invalid header: bad {field}"))
}

/// A field up to its first zero byte.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// A number field: octal text, or base-256 when the first bit is set (two's complement from the second bit on).
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let start = if negative {
            -1i64 << 6 | i64::from(first & 0x3f)
        } else {
            i64::from(first & 0x3f)
        };
        return rest.iter().try_fold(start, |n, &b| {
            let shifted = n.checked_mul(256)?;
            shifted.checked_add(i64::from(b))
        });
    }
    let text = field.trim_ascii_start();
    let end = text
        .iter()
        .position(|&b| b == 0 || b == b' ')
        .unwrap_or(text.len());
    let digits = &text[..end];
    if !text[end..].iter().all(|&b| b == 0 || b == b' ') && !digits.is_empty() {
        return None;
    }
    // Some programs fill with zero bytes in front.
    if digits.is_empty() {
        let rest = text
            .iter()
            .position(|&b| b != 0 && b != b' ')
            .map_or(&[][..], |at| &text[at..]);
        return if rest.is_empty() { Some(0) } else { number(rest) };
    }
    digits.iter().try_fold(0i64, |n, b| {
        matches!(b, b'0'..=b'7').then_some(())?;
        n.checked_mul(8)?.checked_add(i64::from(b - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_all_dialects() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"        "), Some(0));
        assert_eq!(number(b"0000008\0"), None);
        assert_eq!(number(b"12x4567\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(
            number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]),
            Some(-2)
        );
        // More than 63 bits.
        assert_eq!(number(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
