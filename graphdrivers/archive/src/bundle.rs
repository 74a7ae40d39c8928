//! Archives that are no layers: what `docker save` writes and `docker load` reads, members that hold whole blobs.
//!
//! Called by the image store's users with visitors. Nothing is unpacked here: a name is bytes to compare with, so no name
//! can reach anything on the disk. Reading is one pass with bounded memory, in whatever order the members come.
//!
//! ```text
//!   read_bundle:   source ─▶ decode (own thread) ─▶ reader ─▶ visit(member, data)
//!   BundleWriter:  directory / file / data … finish ─▶ tar stream, the same bytes for the same calls
//! ```

use std::borrow::Cow;
use std::io::{self, BufRead, Read, Write};
use std::thread;

use crate::decode::{self, Format};
use crate::entry::{Entry, Kind};
use crate::error::{Error, ErrorKind, Result, show};
use crate::pipeline::{self, Receiver};
use crate::reader::Reader;
use crate::source::Source;
use crate::writer::{Writer, blank};

/// One member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As written in the archive.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Bytes of data.
    pub size: u64,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A file with data.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this name, relative to the member's directory.
    Symlink(Vec<u8>),
    /// Another name of the member with this name.
    HardLink(Vec<u8>),
    /// A device or a FIFO.
    Other,
}

/// Reads an archive, plain or compressed (recognised by its first bytes), and shows each member to `visit` with its data;
/// what `visit` leaves of the data is skipped. An error of the archive comes out of the data as an [`io::Error`] that
/// [`Error::of_data`] takes apart. The source is read to its end, also behind the end of the archive.
///
/// # Errors
/// The first error of `visit`; `Corrupt`, `Unsupported`; `Source` is the source's own.
pub fn read_bundle<E: From<Error>>(
    source: impl Read + Send,
    mut visit: impl FnMut(&Member, &mut dyn BufRead) -> Result<(), E>,
) -> Result<(), E> {
    thread::scope(|scope| {
        let mut source = Source::new(source, false);
        let format = Format::detect(source.head()?);
        let (sender, mut stream) = pipeline::queue();
        crate::spawn(scope, "bundle-decode", move || {
            decode::decode(format, &mut source, sender);
        })?;
        let mut reader = Reader::new(&mut stream);
        while let Some(entry) = reader.next()? {
            let member = member(entry)?;
            visit(&member, &mut Data(&mut reader))?;
        }
        stream.finish()?;
        Ok(())
    })
}

fn member(entry: Entry) -> Result<Member> {
    if entry.sparse.is_some() {
        let text = format!(
            "tar: {:?} is a sparse file, which this archive cannot have",
            show(&entry.path)
        );
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let kind = match entry.kind {
        Kind::Regular => MemberKind::File,
        Kind::Directory => MemberKind::Directory,
        Kind::Symlink => MemberKind::Symlink(entry.link),
        Kind::HardLink => MemberKind::HardLink(entry.link),
        Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => MemberKind::Other,
    };
    Ok(Member {
        name: entry.path,
        kind,
        size: entry.size,
    })
}

/// The data of the current member.
struct Data<'d, 'r>(&'d mut Reader<'r, Receiver>);

impl BufRead for Data<'_, '_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.data().map_err(io::Error::other)
    }

    fn consume(&mut self, n: usize) {
        self.0.consume(n);
    }
}

impl Read for Data<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(into)?;
        self.consume(n);
        Ok(n)
    }
}

impl Error {
    /// The error that came through a member's data.
    pub fn of_data(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(ours) => ours,
            Err(error) => Self::new(ErrorKind::Io, "read archive").caused_by(error),
        }
    }
}

/// A reader that can say what it will read next.
pub struct Peeked<R> {
    head: io::Cursor<Vec<u8>>,
    rest: R,
}

impl<R: Read> Peeked<R> {
    /// Reads up to `count` bytes ahead.
    ///
    /// # Errors
    /// The reader's.
    pub fn new(mut source: R, count: usize) -> io::Result<Self> {
        let mut head = Vec::with_capacity(count);
        Read::by_ref(&mut source)
            .take(count as u64)
            .read_to_end(&mut head)?;
        Ok(Self {
            head: io::Cursor::new(head),
            rest: source,
        })
    }

    /// What was read ahead; less than asked for when the source is that short.
    pub fn head(&self) -> &[u8] {
        self.head.get_ref()
    }
}

impl<R: Read> Read for Peeked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.head.read(into)? {
            0 => self.rest.read(into),
            n => Ok(n),
        }
    }
}

/// How the stream that begins with `head` is packed, as the end of an OCI layer's media type: empty for a plain one,
/// `+gzip`, `+zstd`; `None` for a compression for which there is no media type.
pub fn media_type_suffix(head: &[u8]) -> Option<&'static str> {
    match Format::detect(head) {
        Format::Plain => Some(""),
        Format::Gzip => Some("+gzip"),
        Format::Zstd => Some("+zstd"),
        Format::Bzip2 | Format::Xz => None,
    }
}

/// Writes an archive whose bytes depend on nothing but the calls: owner 0, time 0, no names of users.
pub struct BundleWriter<W> {
    writer: Writer<W>,
}

impl<W: Write> BundleWriter<W> {
    /// An archive that is written to `out`.
    pub fn new(out: W) -> Self {
        Self {
            writer: Writer::new(out),
        }
    }

    /// Adds a directory; the slash at the end of its name is added here.
    ///
    /// # Errors
    /// `NoSpace` or `Io`, the writer's.
    pub fn directory(&mut self, name: &str) -> Result<()> {
        let name: Cow<'_, str> = if name.ends_with('/') {
            name.into()
        } else {
            format!("{name}/").into()
        };
        self.writer.header(&Entry {
            path: name.as_bytes().to_vec(),
            kind: Kind::Directory,
            mode: 0o755,
            ..blank()
        })
    }

    /// Begins a file of `size` bytes, which [`BundleWriter::data`] then gets.
    ///
    /// # Errors
    /// As [`BundleWriter::directory`].
    pub fn file(&mut self, name: &str, size: u64) -> Result<()> {
        self.writer.header(&Entry {
            path: name.as_bytes().to_vec(),
            mode: 0o644,
            size,
            ..blank()
        })
    }

    /// A piece of the file.
    ///
    /// # Errors
    /// As [`BundleWriter::directory`].
    pub fn data(&mut self, piece: &[u8]) -> Result<()> {
        self.writer.data(piece)
    }

    /// The end of the archive; gives its length.
    ///
    /// # Errors
    /// As [`BundleWriter::directory`].
    pub fn finish(self) -> Result<u64> {
        self.writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>> {
        let mut found = Vec::new();
        read_bundle(bytes, |member, data| {
            let mut content = Vec::new();
            data.read_to_end(&mut content).map_err(Error::of_data)?;
            found.push((member.clone(), content));
            Ok::<(), Error>(())
        })?;
        Ok(found)
    }

    fn bundle() -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = BundleWriter::new(&mut out);
        writer.directory("blobs").unwrap();
        for (name, content) in [("blobs/one", &b"1"[..]), ("two", &[7; 600_000])] {
            writer.file(name, content.len() as u64).unwrap();
            writer.data(content).unwrap();
        }
        let length = writer.finish().unwrap();
        assert_eq!(length, out.len() as u64);
        out
    }

    #[test]
    fn what_was_written_is_read_again_plain_and_compressed() {
        let plain = bundle();
        assert_eq!(plain, bundle(), "the same calls give the same bytes");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        for bytes in [
            plain.clone(),
            gzip.finish().unwrap(),
            zstd::encode_all(&plain[..], 1).unwrap(),
        ] {
            let found = read_all(&bytes).unwrap();
            let names: Vec<_> = found.iter().map(|(member, _)| member.name.clone()).collect();
            assert_eq!(
                names,
                [b"blobs/".to_vec(), b"blobs/one".to_vec(), b"two".to_vec()]
            );
            assert_eq!(found[0].0.kind, MemberKind::Directory);
            assert_eq!((found[1].0.size, &found[1].1[..]), (1, &b"1"[..]));
            assert_eq!(found[2].1, [7; 600_000]);
        }
    }

    /// `xz -6` of a tar with one file.
    const XZ: &str = "fd377a585a000004e6d6b4460200210116000000742fe5a3e007ff00415d00341949ee8dd7f8b83fc93732dec8d58031\
             34559feeaa52e0fd470c106cb0a7d390c2a0dd14b1e8798457a6eb20d98c89324f1f6926610992f591dba22df9d16100\
             0000000005a515565ff18b6100015d8010000000f928ba92b1c467fb020000000004595a";

    #[test]
    fn bzip2_and_xz_are_read() {
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&bundle()).unwrap();
        let bzip2 = bzip2.finish().unwrap();
        assert_eq!(read_all(&bzip2).unwrap().len(), 3);
        let xz = hex::decode(XZ).unwrap();
        let found = read_all(&xz).unwrap();
        assert_eq!(
            (&found[0].0.name[..], &found[0].1[..]),
            (&b"hello"[..], &b"world"[..])
        );
        for cut in [&bzip2[..bzip2.len() - 5], &xz[..xz.len() - 5]] {
            assert_eq!(read_all(cut).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn a_visitor_may_leave_data_and_its_error_ends_the_reading() {
        let plain = bundle();
        let mut seen = 0;
        read_bundle(&plain[..], |_, _| {
            seen += 1;
            Ok::<(), Error>(())
        })
        .unwrap();
        assert_eq!(seen, 3);
        let error = read_bundle(&plain[..], |_, _| {
            Err::<(), _>(Error::new(ErrorKind::Io, "enough"))
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "enough");
    }

    #[test]
    fn a_truncated_archive_is_corrupt_and_a_failing_source_is_its_own_error() {
        let plain = bundle();
        for cut in [600, 2000, plain.len() - 2000] {
            let error = read_all(&plain[..cut]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{cut}: {error}");
        }
        struct Cut<'a>(&'a [u8]);
        impl Read for Cut<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                match self.0.read(into)? {
                    0 => Err(io::Error::other("the client left")),
                    n => Ok(n),
                }
            }
        }
        let error = read_bundle(Cut(&plain[..2000]), |_, data| {
            io::copy(data, &mut io::sink()).map_err(Error::of_data)?;
            Ok::<(), Error>(())
        })
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Source, "{error}");
        assert!(error.to_string().contains("the client left"), "{error}");
    }

    #[test]
    fn a_head_is_shown_and_read_again() {
        let mut peeked = Peeked::new(&b"abcdef"[..], 4).unwrap();
        assert_eq!(peeked.head(), b"abcd");
        let mut all = String::new();
        peeked.read_to_string(&mut all).unwrap();
        assert_eq!(all, "abcdef");
        assert_eq!(Peeked::new(&b"a"[..], 4).unwrap().head(), b"a");
    }
}
