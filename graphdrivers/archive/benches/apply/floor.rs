//! The floor: what no unpacker of this shape can beat. The same threads (read and hash, decode, hash, write), but the
//! last one knows all names beforehand and only makes the system calls: nothing is parsed, looked up or checked.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use ring::digest::{Context, SHA256};
use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};

use crate::layers::{Layer, MTIME, What};

type Chunk = (Vec<u8>, usize);

struct Stage {
    full: mpsc::Receiver<Chunk>,
    empty: mpsc::Sender<Vec<u8>>,
    current: Option<Chunk>,
    at: usize,
}

/// A thread that fills buffers from `read`, one that hashes them, and where they come out.
fn stage(mut read: impl Read + Send + 'static, hash: Hash) -> Stage {
    let (full_in, mut full) = mpsc::channel::<Chunk>();
    let (empty, empty_out) = mpsc::channel::<Vec<u8>>();
    // As many as the unpacker has.
    for _ in 0..16 {
        empty.send(vec![0; 256 * 1024]).unwrap();
    }
    thread::spawn(move || {
        let mut digest = Context::new(&SHA256);
        for mut buffer in empty_out {
            let mut filled = 0;
            while filled < buffer.len() {
                match read.read(&mut buffer[filled..]).unwrap() {
                    0 => break,
                    n => filled += n,
                }
            }
            if hash == Hash::Here {
                digest.update(&buffer[..filled]);
            }
            if full_in.send((buffer, filled)).is_err() || filled == 0 {
                break;
            }
        }
        black_box(digest.finish());
    });
    if hash == Hash::Beside {
        let (hashed_in, hashed) = mpsc::channel::<Chunk>();
        let from = std::mem::replace(&mut full, hashed);
        thread::spawn(move || {
            let mut digest = Context::new(&SHA256);
            for (buffer, filled) in from {
                digest.update(&buffer[..filled]);
                if hashed_in.send((buffer, filled)).is_err() {
                    break;
                }
            }
            black_box(digest.finish());
        });
    }
    Stage {
        full,
        empty,
        current: None,
        at: 0,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hash {
    Here,
    Beside,
}

impl Stage {
    fn fill(&mut self) -> &[u8] {
        if self.current.as_ref().is_none_or(|(_, len)| self.at == *len) {
            if let Some((buffer, _)) = self.current.take() {
                let _ = self.empty.send(buffer);
            }
            self.current = Some(self.full.recv().unwrap_or_default());
            self.at = 0;
        }
        let (buffer, len) = self.current.as_ref().unwrap();
        &buffer[self.at..*len]
    }

    fn each(&mut self, mut n: u64, mut take: impl FnMut(&[u8])) {
        while n > 0 {
            let piece = self.fill();
            assert!(!piece.is_empty());
            let step = piece.len().min(usize::try_from(n).unwrap_or(usize::MAX));
            take(&piece[..step]);
            self.at += step;
            n -= step as u64;
        }
    }
}

impl Read for Stage {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill();
        let n = piece.len().min(into.len());
        into[..n].copy_from_slice(&piece[..n]);
        self.at += n;
        Ok(n)
    }
}

impl io::BufRead for Stage {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.fill())
    }
    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

/// Unpacks `layer`, which `path` holds compressed, to `target`.
pub(crate) fn floor(path: &Path, layer: &Layer, target: &Path) {
    let compressed = stage(File::open(path).unwrap(), Hash::Here);
    let mut plain = if path.extension().is_some_and(|e| e == "gz") {
        stage(flate2::bufread::MultiGzDecoder::new(compressed), Hash::Beside)
    } else {
        stage(zstd::Decoder::with_buffer(compressed).unwrap(), Hash::Beside)
    };
    let time = Timespec {
        tv_sec: MTIME as i64,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let top: OwnedFd = File::open(target).unwrap().into();
    // Directories above the current place: they are in the order of a walk.
    let mut above: Vec<(&str, OwnedFd)> = Vec::new();
    for member in &layer.members {
        plain.each(512, |_| ());
        let (parent, base) = member.path.rsplit_once('/').unwrap_or(("", &member.path));
        while above.last().is_some_and(|(path, _)| *path != parent) {
            // Like the unpacker: a directory's times come after its contents.
            let (_, done) = above.pop().unwrap();
            fs::futimens(&done, &times).unwrap();
        }
        if above.is_empty() && !parent.is_empty() {
            // Left before, in a layer that is no walk: once more from the top.
            let fd = fs::openat(&top, parent, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
            above.push((parent, fd));
        }
        let here = above.last().map_or(&top, |(_, fd)| fd);
        match &member.what {
            What::Directory => {
                fs::mkdirat(here, base, Mode::from_raw_mode(0o700)).unwrap();
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let fd = fs::openat(here, base, flags, Mode::empty()).unwrap();
                fs::fchown(&fd, Some(Uid::ROOT), Some(Gid::ROOT)).unwrap();
                fs::fchmod(&fd, Mode::from_raw_mode(0o755)).unwrap();
                above.push((&member.path, fd));
            }
            What::File(content) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let out = fs::openat(here, base, flags, Mode::from_raw_mode(0o600)).unwrap();
                plain.each(content.size(), |piece| {
                    assert_eq!(rustix::io::write(&out, piece).unwrap(), piece.len());
                });
                fs::fchown(&out, Some(Uid::ROOT), Some(Gid::ROOT)).unwrap();
                fs::fchmod(&out, Mode::from_raw_mode(0o644)).unwrap();
                fs::futimens(&out, &times).unwrap();
                let size = content.size();
                plain.each(size.next_multiple_of(512) - size, |_| ());
            }
            What::Symlink(to) => {
                fs::symlinkat(*to, here, base).unwrap();
                fs::chownat(
                    here,
                    base,
                    Some(Uid::ROOT),
                    Some(Gid::ROOT),
                    AtFlags::SYMLINK_NOFOLLOW,
                )
                .unwrap();
                fs::utimensat(here, base, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            }
            What::HardLink(to) => {
                fs::linkat(&top, &to[..], here, base, AtFlags::empty()).unwrap();
                fs::utimensat(here, base, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            }
        }
    }
    for (_, done) in above {
        fs::futimens(&done, &times).unwrap();
    }
    while !plain.fill().is_empty() {
        let n = plain.fill().len();
        plain.at += n;
    }
}
