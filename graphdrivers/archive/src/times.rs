//! Times of directories, kept until everything else is written.
//!
//! A layer may have any number of directories, and memory is bounded: beyond [`BUFFERED`] bytes the log continues in a
//! file without a name on the disk that is being written anyway.

use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::os::fd::BorrowedFd;

use rustix::fs::{self, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

/// Bytes kept in memory: enough for some ten thousand directories.
const BUFFERED: usize = 1 << 20;

/// Names and times, in order.
#[derive(Debug, Default)]
pub(crate) struct TimesLog {
    buffer: Vec<u8>,
    file: Option<File>,
    /// The file system has no nameless files: everything stays in memory.
    no_file: bool,
}

impl TimesLog {
    /// Appends a line. `place` is a directory on the disk to use.
    pub(crate) fn push(
        &mut self,
        place: BorrowedFd<'_>,
        path: &[u8],
        times: &Timestamps,
    ) -> Result<(), Errno> {
        let length = u32::try_from(path.len()).map_err(|_| Errno::NAMETOOLONG)?;
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        for time in [&times.last_access, &times.last_modification] {
            self.buffer.extend_from_slice(&time.tv_sec.to_ne_bytes());
            self.buffer.extend_from_slice(&time.tv_nsec.to_ne_bytes());
        }
        self.buffer.extend_from_slice(path);
        if self.buffer.len() < BUFFERED || self.no_file {
            return Ok(());
        }
        self.spill(place)
    }

    fn spill(&mut self, place: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.file.is_none() {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            match fs::openat(place, ".", flags, Mode::from_raw_mode(0o600)) {
                Ok(fd) => self.file = Some(File::from(fd)),
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                    self.no_file = true;
                    return Ok(());
                }
                Err(errno) => return Err(errno),
            }
        }
        if let Some(file) = &mut self.file {
            file.write_all(&self.buffer)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Calls `set` for each line, in order.
    pub(crate) fn each(self, mut set: impl FnMut(&[u8], &Timestamps) -> Result<()>) -> Result<()> {
        let Self { buffer, file, .. } = self;
        if let Some(mut file) = file {
            file.rewind().map_err(broken)?;
            lines(BufReader::with_capacity(1 << 16, file), &mut set)?;
        }
        lines(&buffer[..], &mut set)
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "read the times of directories back").caused_by(error)
}

fn lines(mut log: impl Read, set: &mut impl FnMut(&[u8], &Timestamps) -> Result<()>) -> Result<()> {
    let mut path = Vec::new();
    loop {
        let mut length = [0; 4];
        match log.read(&mut length[..1]) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken(error)),
        }
        let times = (|| {
            log.read_exact(&mut length[1..])?;
            let times = Timestamps {
                last_access: time(&mut log)?,
                last_modification: time(&mut log)?,
            };
            path.resize(u32::from_ne_bytes(length) as usize, 0);
            log.read_exact(&mut path)?;
            Ok(times)
        })()
        .map_err(broken)?;
        set(&path, &times)?;
    }
}

fn time(log: &mut impl Read) -> std::io::Result<Timespec> {
    let (mut seconds, mut nanoseconds) = ([0; 8], [0; 8]);
    log.read_exact(&mut seconds)?;
    log.read_exact(&mut nanoseconds)?;
    Ok(Timespec {
        tv_sec: i64::from_ne_bytes(seconds),
        tv_nsec: i64::from_ne_bytes(nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn lines_come_back_in_order_from_memory_and_disk() {
        let scratch = tempfile::tempdir().unwrap();
        let place = File::open(scratch.path()).unwrap();
        let stamp = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        for (count, no_file) in [(10, false), (60_000, false), (60_000, true)] {
            let mut log = TimesLog {
                no_file,
                ..TimesLog::default()
            };
            for n in 0..count {
                let times = Timestamps {
                    last_access: stamp(n, 1),
                    last_modification: stamp(-n, 999_999_999),
                };
                log.push(place.as_fd(), format!("some/directory-{n}").as_bytes(), &times)
                    .unwrap();
            }
            assert_eq!(log.file.is_some(), count > 10 && !no_file);
            assert!(no_file || log.buffer.capacity() <= 4 * BUFFERED);
            let mut next = 0;
            log.each(|path, times| {
                assert_eq!(path, format!("some/directory-{next}").as_bytes());
                assert_eq!(
                    (times.last_access.tv_sec, times.last_modification.tv_sec),
                    (next, -next)
                );
                assert_eq!(times.last_modification.tv_nsec, 999_999_999);
                next += 1;
                Ok(())
            })
            .unwrap();
            assert_eq!(next, count);
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
