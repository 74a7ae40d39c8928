//! Compression formats of layers: recognised by the first bytes, never by a media type (registries lie about it).

use std::io::{self, BufRead, Read};

use lzma_rust2::XzReader;

use crate::error::{Error, Result};
use crate::frames::Frames;
use crate::pipeline::Sender;

/// Most memory for an xz decoder, in KiB: what `xz -9` needs (a dictionary of 64 MiB) and some more.
const XZ_MEMORY_KIB: u32 = 80 * 1024;

/// A compression format. Docker reads the last two wherever it reads layers, so they are read here; they are never written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Plain,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Format {
    /// Recognises the format of a stream that begins with `head`.
    pub(crate) fn detect(head: &[u8]) -> Self {
        // zstd frames may be preceded by skippable frames, 0x184D2A50 to 0x184D2A5F little-endian (RFC 8878 §3.1.2).
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::Plain,
        }
    }
}

/// Decodes `input` into `output` until the end, an error, or until nobody reads any more.
pub(crate) fn decode(format: Format, input: impl BufRead, output: Sender) {
    // `Stopped` only says that the other side has gone; it knows why.
    let _ = match format {
        Format::Plain => pump(input, output, "layer"),
        Format::Gzip => pump(flate2::bufread::MultiGzDecoder::new(input), output, "gzip"),
        Format::Zstd => match Frames::new(input) {
            Ok(decoder) => pump(decoder, output, "zstd"),
            Err(error) => {
                output.pump(move |_| Err(corrupt("zstd", io::Error::new(error.kind(), error.to_string()))))
            }
        },
        Format::Bzip2 => pump(bzip2::bufread::MultiBzDecoder::new(input), output, "bzip2"),
        Format::Xz => pump(XzReader::new_mem_limit(input, true, XZ_MEMORY_KIB), output, "xz"),
    };
}

fn pump(mut decoder: impl Read, output: Sender, what: &'static str) -> Result<(), crate::pipeline::Stopped> {
    output.pump(|into| {
        loop {
            match decoder.read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(|error| corrupt(what, error)),
            }
        }
    })
}

/// An error of the decoder, or of the stage before it that came through it.
fn corrupt(what: &str, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Error::corrupt(format!("{what}: the stream is truncated")).caused_by(error)
        }
        Err(error) => Error::corrupt(format!("{what}: the stream is damaged")).caused_by(error),
    }
}
