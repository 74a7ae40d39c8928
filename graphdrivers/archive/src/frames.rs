//! zstd frame by frame, so that each frame's window is known before memory is taken for it (RFC 8878).
//!
//! A frame says how far back it refers, and a decoder needs as much memory. Up to [`WINDOW_SMALL`] (what every level below
//! `--ultra` makes) is given to any number of layers at once; larger ones, up to [`WINDOW_MAX`], to one layer at a time;
//! what is beyond is refused, as zstd(1) does.
//!
//! ```text
//!   stream = { skippable frame | frame } ;  frame = header (2 to 18 bytes) data [check sum]
//!     Between ──header──▶ Inside ──end of frame──▶ Between … end of input only Between
//! ```

use std::io::{self, BufRead, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};

use zstd::stream::raw::{DParameter, Decoder, Operation};

use crate::error::{Error, ErrorKind};

/// Window that any number of layers may have at the same time, in bytes.
const WINDOW_SMALL: u64 = 8 << 20;
/// Largest window accepted, as a power of two: what `zstd --ultra -22` needs.
const WINDOW_LOG_MAX: u32 = 27;
const WINDOW_MAX: u64 = 1 << WINDOW_LOG_MAX;

/// Bytes of the longest frame header, with the magic number.
const HEADER_MAX: usize = 18;

/// Held by the layer that has a large window.
static LARGE: Mutex<()> = Mutex::new(());

/// A decoder of all frames of a stream.
pub(crate) struct Frames<R> {
    input: R,
    decoder: Decoder<'static>,
    /// Within a frame.
    inside: bool,
    /// Beginning of the frame, read ahead and not yet given to the decoder.
    header: Vec<u8>,
    large: Option<MutexGuard<'static, ()>>,
}

impl<R: BufRead> Frames<R> {
    pub(crate) fn new(input: R) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok(Self {
            input,
            decoder,
            inside: false,
            header: Vec::with_capacity(HEADER_MAX),
            large: None,
        })
    }

    /// Reads the header of the next frame; `false` at the end of the stream.
    fn begin(&mut self) -> io::Result<bool> {
        self.header.clear();
        if !self.peek(4)? {
            return if self.header.is_empty() {
                Ok(false)
            } else {
                Err(truncated())
            };
        }
        match self.header[..4] {
            [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {}
            [0x28, 0xb5, 0x2f, 0xfd] => {
                let size = match self.peek(5)? {
                    true => header_size(self.header[4]),
                    false => return Err(truncated()),
                };
                if !self.peek(size)? {
                    return Err(truncated());
                }
                self.admit(window(&self.header))?;
            }
            _ => {
                let text = "what follows is no frame";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        self.inside = true;
        Ok(true)
    }

    /// Reads on until the header has `size` bytes; `false` when there are not as many.
    fn peek(&mut self, size: usize) -> io::Result<bool> {
        while self.header.len() < size {
            let available = self.input.fill_buf()?;
            if available.is_empty() {
                return Ok(false);
            }
            let n = available.len().min(size - self.header.len());
            self.header.extend_from_slice(&available[..n]);
            self.input.consume(n);
        }
        Ok(true)
    }

    /// Decides on a window of so many bytes.
    fn admit(&mut self, window: u64) -> io::Result<()> {
        if window > WINDOW_MAX {
            let text = format!("zstd: a window of {window} bytes, more than {WINDOW_MAX}");
            return Err(io::Error::other(Error::new(ErrorKind::Unsupported, text)));
        }
        if window > WINDOW_SMALL && self.large.is_none() {
            self.large = Some(LARGE.lock().unwrap_or_else(PoisonError::into_inner));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.inside && !self.begin()? {
                return Ok(0);
            }
            let from_header = !self.header.is_empty();
            let source: &[u8] = if from_header {
                &self.header
            } else {
                self.input.fill_buf()?
            };
            let ended = source.is_empty();
            let status = self.decoder.run_on_buffers(source, into)?;
            if from_header {
                self.header.drain(..status.bytes_read);
            } else {
                self.input.consume(status.bytes_read);
            }
            self.inside = status.remaining != 0;
            if status.bytes_written > 0 {
                return Ok(status.bytes_written);
            }
            // With nothing to read the decoder may still have given out what it held.
            if ended && self.inside {
                return Err(truncated());
            }
        }
    }
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "incomplete frame")
}

/// Length of a frame's header, with the magic number, from its descriptor.
fn header_size(descriptor: u8) -> usize {
    let single_segment = descriptor & 0x20 != 0;
    let window = usize::from(!single_segment);
    4 + 1 + window + dictionary_size(descriptor) + content_size_size(descriptor)
}

fn dictionary_size(descriptor: u8) -> usize {
    [0, 1, 2, 4][usize::from(descriptor & 3)]
}

fn content_size_size(descriptor: u8) -> usize {
    match descriptor >> 6 {
        0 => usize::from(descriptor & 0x20 != 0),
        n => 1 << n,
    }
}

/// The window of the frame with this (whole) header, in bytes.
fn window(header: &[u8]) -> u64 {
    let descriptor = header[4];
    if descriptor & 0x20 == 0 {
        let (exponent, mantissa) = (u32::from(header[5] >> 3), u64::from(header[5] & 7));
        let base = 1u64 << (10 + exponent);
        return base + base / 8 * mantissa;
    }
    // One segment: the content is the window.
    let at = 5 + dictionary_size(descriptor);
    let mut bytes = [0; 8];
    let size = content_size_size(descriptor);
    bytes[..size].copy_from_slice(&header[at..at + size]);
    u64::from_le_bytes(bytes) + if size == 2 { 256 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, as a slow network may.
    struct Drops<'a>(&'a [u8]);
    impl Read for Drops<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(1).min(into.len());
            into[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let (mut whole, mut drops) = (Vec::new(), Vec::new());
        let outcome = Frames::new(bytes)?.read_to_end(&mut whole);
        let slowly = Frames::new(io::BufReader::with_capacity(1, Drops(bytes)))?.read_to_end(&mut drops);
        assert_eq!(outcome.is_ok(), slowly.is_ok());
        outcome?;
        assert!(whole == drops);
        Ok(whole)
    }

    fn content(length: usize) -> Vec<u8> {
        (0..251).cycle().take(length).collect()
    }

    #[test]
    fn frames_of_all_forms_follow_each_other() {
        let skippable = b"\x5f\x2a\x4d\x18\x04\0\0\0skip".to_vec();
        let empty = zstd::encode_all(&b""[..], 1).unwrap();
        for length in [0, 1, 255, 256, 70_000, 3_000_000] {
            let data = content(length);
            let streaming = zstd::encode_all(&data[..], 3).unwrap();
            // With the size in its header, and a check sum.
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.set_pledged_src_size(Some(length as u64)).unwrap();
            encoder.include_contentsize(true).unwrap();
            io::copy(&mut &data[..], &mut encoder).unwrap();
            let sized = encoder.finish().unwrap();
            assert!(decode(&streaming).unwrap() == data);
            assert!(decode(&sized).unwrap() == data);
            let all = [&skippable[..], &sized, &empty, &skippable, &streaming, &skippable].concat();
            assert!(decode(&all).unwrap() == data.repeat(2));
            for cut in [3, 5, sized.len() / 2, sized.len() - 1] {
                assert!(decode(&sized[..cut.min(sized.len() - 1)]).is_err());
            }
            assert!(decode(&[&sized[..], b"garbage"].concat()).is_err());
            assert!(decode(&[&sized[..], b"g"].concat()).is_err());
        }
        assert!(decode(b"").unwrap().is_empty());
        assert!(decode(&skippable).unwrap().is_empty());
    }

    #[test]
    fn windows_are_read_from_the_header() {
        for (log, expected) in [(10, 1 << 10), (21, 1 << 21), (27, 1 << 27)] {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            io::copy(&mut &content(5_000)[..], &mut encoder).unwrap();
            let bytes = encoder.finish().unwrap();
            assert_eq!(window(&bytes), expected);
            assert_eq!(decode(&bytes).unwrap(), content(5_000));
        }
        // Descriptor and window byte by hand: 2^10 × (1 + 3/8).
        assert_eq!(window(&[0x28, 0xb5, 0x2f, 0xfd, 0, 3]), 1408);
        // One segment with sizes of one, two, four and eight bytes.
        let magic = [0x28, 0xb5, 0x2f, 0xfd];
        for (descriptor, size, expected) in [
            (0x20, &[200][..], 200),
            (0x60, &[1, 1], 513),
            (0xa0, &[0, 0, 1, 0], 65_536),
            (0xe0, &[0, 0, 0, 0, 0, 1, 0, 0], 1 << 40),
        ] {
            let header = [&magic[..], &[descriptor], size].concat();
            assert_eq!(header_size(descriptor), header.len());
            assert_eq!(window(&header), expected);
        }
    }

    #[test]
    fn a_window_that_is_too_large_is_refused_with_the_limit() {
        for header in [
            &b"\x28\xb5\x2f\xfd\0\xa0\x01\0\0"[..],
            b"\x28\xb5\x2f\xfd\xe0\0\0\0\0\0\x01\0\0\x01\0\0",
        ] {
            let error = decode(header).unwrap_err();
            assert!(error.to_string().contains("more than 134217728"), "{error}");
        }
    }

    #[test]
    fn large_windows_are_given_to_one_at_a_time() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(24).unwrap();
        io::copy(&mut &content(100_000)[..], &mut encoder).unwrap();
        let bytes = encoder.finish().unwrap();
        let mut first = Frames::new(&bytes[..]).unwrap();
        first.read_exact(&mut [0; 10]).unwrap();
        assert!(LARGE.try_lock().is_err());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| decode(&bytes).unwrap().len());
            drop(first);
            assert_eq!(second.join().unwrap(), 100_000);
        });
    }
}
