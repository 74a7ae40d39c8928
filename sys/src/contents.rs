//! Copies what is in a file to another, with its holes, as cheaply as the two file systems allow.
//!
//! Called wherever a file is made again elsewhere: copy-up, copies of layers.

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{self, SeekFrom};
use rustix::io::{Errno, retry_on_intr};

/// Files up to this size are read and written; above, the kernel copies.
const SMALL: u64 = 128 * 1024;
const BUFFER: usize = 1 << 20;

/// Tries to share blocks. Whether it worked; `false` will be the answer for every pair of files of these two file
/// systems.
///
/// # Errors
/// The target file system has no room, or fails.
pub fn share(source: impl AsFd, target: impl AsFd) -> Result<bool, Errno> {
    match fs::ioctl_ficlone(target, source) {
        Ok(()) => Ok(true),
        Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => Err(errno),
        Err(_) => Ok(false),
    }
}

/// Copies the first `size` bytes of `source` to `target`, an empty file. `blocks`: how many of 512 bytes `source` has.
///
/// # Errors
/// Whatever read(2), write(2) and copy_file_range(2) say. The target is then half-written.
pub fn copy(source: impl AsFd, target: impl AsFd, size: u64, blocks: u64) -> Result<(), Errno> {
    let (source, target) = (source.as_fd(), target.as_fd());
    if size == 0 {
        return Ok(());
    }
    // Fewer blocks than bytes: there are holes to keep. (Contents may also lie in the inode, which costs one seek.)
    if blocks.saturating_mul(512) < size {
        return copy_extents(source, target, size);
    }
    copy_range(source, target, 0, size)
}

/// Begins to write what a file holds to the disk, without waiting for it: what would otherwise lie in memory for half a
/// minute gets its place on the disk now. A file system that does not know it, or fails, is silent.
pub fn start_writing(file: impl AsFd) {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open as long as it is borrowed, and nothing else is handed over.
    unsafe { libc::sync_file_range(fd, 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

fn copy_extents(source: impl AsFd + Copy, target: impl AsFd + Copy, size: u64) -> Result<(), Errno> {
    let mut at = 0;
    while at < size {
        let start = match fs::seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(errno) => return Err(errno),
        };
        if start >= size {
            break;
        }
        let end = fs::seek(source, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        copy_range(source, target, start, end)?;
        at = end.max(start + 1);
    }
    fs::ftruncate(target, size)
}

fn copy_range(source: impl AsFd + Copy, target: impl AsFd + Copy, start: u64, end: u64) -> Result<(), Errno> {
    if end - start <= SMALL {
        return read_write(source, target, start, end);
    }
    let (mut from, mut to) = (start, start);
    while from < end {
        let wanted = usize::try_from(end - from).unwrap_or(usize::MAX).min(1 << 30);
        match fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
            // The file became shorter: what is left of its length is a hole.
            Ok(0) => return fs::ftruncate(target, end),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                return read_write(source, target, from, end);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn read_write(source: impl AsFd, target: impl AsFd, start: u64, end: u64) -> Result<(), Errno> {
    let left = usize::try_from(end - start).unwrap_or(BUFFER);
    let mut buffer = Vec::with_capacity(left.min(BUFFER));
    let mut at = start;
    while at < end {
        buffer.clear();
        let n =
            retry_on_intr(|| rustix::io::pread(&source, rustix::buffer::spare_capacity(&mut buffer), at))?;
        let n = n.min(usize::try_from(end - at).unwrap_or(usize::MAX));
        if n == 0 {
            return fs::ftruncate(target, end);
        }
        let mut piece = buffer.get(..n).unwrap_or_default();
        while !piece.is_empty() {
            let written = retry_on_intr(|| rustix::io::pwrite(&target, piece, at))?;
            piece = piece.get(written..).unwrap_or_default();
            at += written as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn contents_and_holes_are_kept() {
        let pairs = [
            (0u64, 0u64),
            (5, 0),
            (300_000, 0),
            (1 << 20, 3 << 20),
            (8 << 20, 100),
        ];
        for (hole, data) in pairs {
            let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            source
                .write_all_at(&vec![7; usize::try_from(data).unwrap()], hole)
                .unwrap();
            source.set_len(2 * hole + data).unwrap();
            let stat = source.metadata().unwrap();
            copy(&source, &target, stat.len(), stat.blocks()).unwrap();
            let copied = target.metadata().unwrap();
            assert_eq!(copied.len(), stat.len());
            assert!(
                copied.blocks() <= stat.blocks() + 8,
                "{hole} {data}: holes were filled"
            );
            let (mut a, mut b) = (Vec::new(), Vec::new());
            a.resize(usize::try_from(stat.len()).unwrap(), 0);
            b.resize(a.len(), 1);
            source.read_exact_at(&mut a, 0).unwrap();
            target.read_exact_at(&mut b, 0).unwrap();
            assert_eq!(a, b);
        }
    }

    #[test]
    fn only_the_beginning_is_copied_when_asked_for() {
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        source.write_all_at(&[9; 4000], 0).unwrap();
        copy(&source, &target, 100, 8).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 100);
    }
}
