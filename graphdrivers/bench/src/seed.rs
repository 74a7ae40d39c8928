//! The data: layers as tar streams that are made while they are read, so that no size needs memory. The same bytes for
//! every driver, on every machine, in every run; nothing is fetched from anywhere.
//!
//! ```text
//!  layer 0     bin/true (a program of 12 bytes of code), usr/lib/node_modules/package-P/dist-D/module-0..19.js, a symlink each D
//!  layer 1     srv/big.bin
//!  layer 2…    some of the modules again, one of them deleted
//! ```

use std::io::{self, Read};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tar::{EntryType, Header};

use crate::size::Size;

/// Where the small files are.
pub(crate) const MODULES: &str = "usr/lib/node_modules";
/// The big file.
pub(crate) const BIG: &str = "srv/big.bin";
/// The program that containers run.
pub(crate) const PROGRAM: &str = "bin/true";

/// Disk space of a small file on average, rounded up, its share of the directories included.
pub(crate) const ALLOCATED_PER_FILE: u64 = 6 << 10;

const FILES_PER_DIRECTORY: u32 = 20;
const DIRECTORIES_PER_PACKAGE: u32 = 10;
/// Small files of a package.
pub(crate) const FILES_PER_PACKAGE: u32 = FILES_PER_DIRECTORY * DIRECTORIES_PER_PACKAGE;
/// Files that a layer from the third on writes again.
const CHANGED: u32 = 20;
const MTIME: u64 = 1_700_000_000;
const FILLER: usize = 1 << 20;
const BLOCK: usize = 512;

/// What the whole image contains, to be compared with what a walk finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Everything but the root directory.
    pub(crate) entries: u64,
    /// Small files.
    pub(crate) small_files: u64,
    /// Their bytes.
    pub(crate) small_bytes: u64,
}

/// One member of a layer.
enum Member {
    Directory(String),
    /// Name, length, and where in the filler its bytes begin.
    File(String, u64, usize),
    Program(Vec<u8>),
    Symlink(String, &'static str),
}

/// Layer `index` of the image. Reading fails as soon as `stop` is set.
pub(crate) fn layer<'a>(size: &Size, index: u32, stop: &'a AtomicBool) -> impl Read + Send + use<'a> {
    let members: Box<dyn Iterator<Item = Member> + Send> = match index {
        0 => Box::new(modules(size.small_files)),
        1 => Box::new(big(size.big_file)),
        n => Box::new(changes(size.small_files, n)),
    };
    Stream {
        members,
        head: Vec::new(),
        head_at: 0,
        data: Data::None,
        padding: 0,
        ended: false,
        stop,
    }
}

/// The first layer alone.
pub(crate) fn small_files<'a>(size: &Size, stop: &'a AtomicBool) -> impl Read + Send + use<'a> {
    layer(size, 0, stop)
}

/// The second layer alone.
pub(crate) fn big_file<'a>(size: &Size, stop: &'a AtomicBool) -> impl Read + Send + use<'a> {
    layer(size, 1, stop)
}

/// What all layers together contain.
pub(crate) fn contents(size: &Size) -> Contents {
    let deleted = deleted(size);
    let directories = size.small_files.div_ceil(FILES_PER_DIRECTORY);
    let packages = directories.div_ceil(DIRECTORIES_PER_PACKAGE);
    let files = size.small_files - u32::try_from(deleted.len()).unwrap_or(0);
    let bytes: u64 = (0..size.small_files).map(length).sum();
    let gone: u64 = deleted.iter().map(|&n| length(n)).sum();
    // usr, lib, node_modules, bin, true, srv, big.bin; a symlink each directory.
    let entries = 7 + u64::from(packages) + 2 * u64::from(directories) + u64::from(files);
    Contents {
        entries: entries - u64::from(program().is_none()),
        small_files: u64::from(files),
        small_bytes: bytes - gone,
    }
}

/// Packages, from the last one on, that hold about `files` small files: what a container deletes.
pub(crate) fn packages(size: &Size, files: u32) -> Vec<String> {
    let all = size.small_files.div_ceil(FILES_PER_PACKAGE);
    let wanted = files.div_ceil(FILES_PER_PACKAGE).min(all / 2).max(1);
    (all - wanted..all).map(package).collect()
}

/// A small file that no layer deletes.
pub(crate) fn some_module() -> String {
    module(0)
}

fn deleted(size: &Size) -> Vec<u32> {
    (2..size.layers)
        .map(|index| victim(size.small_files, index))
        .collect()
}

/// The file that layer `index` deletes: the last of some directory, which no layer changes.
fn victim(files: u32, index: u32) -> u32 {
    (index * FILES_PER_DIRECTORY + FILES_PER_DIRECTORY - 1) % files
}

fn package(number: u32) -> String {
    format!("{MODULES}/package-{number}")
}

fn directory(number: u32) -> String {
    format!("{}/dist-{number}", package(number / DIRECTORIES_PER_PACKAGE))
}

fn module(number: u32) -> String {
    format!(
        "{}/module-{}.js",
        directory(number / FILES_PER_DIRECTORY),
        number % FILES_PER_DIRECTORY
    )
}

/// Length of a small file: most under four KiB, one in twenty tens of KiB.
fn length(number: u32) -> u64 {
    let random = scramble(u64::from(number));
    if random.is_multiple_of(20) {
        20_000 + (random >> 8) % 16_000
    } else {
        100 + (random >> 8) % 3_900
    }
}

fn modules(files: u32) -> impl Iterator<Item = Member> + Send {
    let directories = files.div_ceil(FILES_PER_DIRECTORY);
    let head = ["bin/", "usr/", "usr/lib/", "usr/lib/node_modules/"]
        .into_iter()
        .map(|name| Member::Directory(name.to_owned()))
        .chain(program().map(Member::Program));
    let tree = (0..directories).flat_map(move |d| {
        let new_package = d.is_multiple_of(DIRECTORIES_PER_PACKAGE);
        let first = new_package.then(|| Member::Directory(package(d / DIRECTORIES_PER_PACKAGE) + "/"));
        let inside = d * FILES_PER_DIRECTORY..files.min((d + 1) * FILES_PER_DIRECTORY);
        first
            .into_iter()
            .chain([Member::Directory(directory(d) + "/")])
            .chain(inside.map(|n| Member::File(module(n), length(n), offset(n, 0))))
            .chain([Member::Symlink(directory(d) + "/index.js", "module-0.js")])
    });
    head.chain(tree)
}

fn big(length: u64) -> impl Iterator<Item = Member> + Send {
    [
        Member::Directory("srv/".to_owned()),
        Member::File(BIG.to_owned(), length, 0),
    ]
    .into_iter()
}

/// The same names and lengths with other bytes, so that what an image contains does not depend on the order.
fn changes(files: u32, index: u32) -> impl Iterator<Item = Member> + Send {
    let directories = files.div_ceil(FILES_PER_DIRECTORY);
    let changed = (0..CHANGED.min(directories)).map(move |n| {
        let number = (index * 31 + n * (directories / CHANGED.min(directories)).max(1)) % directories
            * FILES_PER_DIRECTORY;
        Member::File(module(number), length(number), offset(number, index))
    });
    let gone = module(victim(files, index));
    let (parent, name) = gone.rsplit_once('/').unwrap_or(("", &gone));
    let whiteout = Member::File(format!("{parent}/.wh.{name}"), 0, 0);
    changed.chain([whiteout]).collect::<Vec<_>>().into_iter()
}

fn offset(number: u32, index: u32) -> usize {
    let random = scramble(u64::from(number) << 8 | u64::from(index));
    usize::try_from(random >> 40).unwrap_or(0) % FILLER
}

/// A bijective mixing of 64 bits (SplitMix64's finaliser): random enough for lengths and contents.
pub(crate) fn scramble(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// A MiB that a file system's compression can halve: words in one half, noise in the other, in pieces of 64 bytes.
fn filler() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut bytes = Vec::with_capacity(FILLER + 64);
        let mut n = 0;
        while bytes.len() < FILLER {
            for _ in 0..8 {
                n += 1;
                bytes.extend_from_slice(&scramble(n).to_le_bytes());
            }
            for _ in 0..8 {
                n += 1;
                bytes.extend_from_slice(if scramble(n).is_multiple_of(3) {
                    b"function"
                } else {
                    b" return;"
                });
            }
        }
        bytes.truncate(FILLER);
        bytes
    })
}

/// A static program that ends at once with status 0: an ELF header, one segment, and `exit(0)` for this processor.
/// `None` where nobody wrote the four instructions yet.
pub(crate) fn program() -> Option<Vec<u8>> {
    let (machine, code): (u16, &[u8]) = if cfg!(target_arch = "x86_64") {
        // mov eax, 60; xor edi, edi; syscall
        (62, &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05])
    } else if cfg!(target_arch = "aarch64") {
        // mov x0, #0; mov x8, #93; svc #0
        (
            183,
            &[
                0x00, 0x00, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4,
            ],
        )
    } else {
        return None;
    };
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let length = HEADERS + code.len() as u64;
    let mut elf = Vec::new();
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2, machine] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    elf.extend_from_slice(&1u32.to_le_bytes());
    // Entry, program headers, no sections.
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    // PT_LOAD, readable and executable: the whole file.
    for half in [1u32, 5] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    for word in [0, BASE, BASE, length, length, 0x1_0000] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(code);
    Some(elf)
}

/// The archive, made as it is read.
struct Stream<'a> {
    members: Box<dyn Iterator<Item = Member> + Send>,
    /// A header, or the end of the archive.
    head: Vec<u8>,
    head_at: usize,
    data: Data,
    padding: usize,
    ended: bool,
    stop: &'a AtomicBool,
}

enum Data {
    None,
    /// Bytes left, and where in the filler the next one is.
    Filler(u64, usize),
    Own(io::Cursor<Vec<u8>>),
}

impl Stream<'_> {
    fn next_member(&mut self) -> io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("interrupted"));
        }
        self.head_at = 0;
        let Some(member) = self.members.next() else {
            self.ended = true;
            self.head = vec![0; 2 * BLOCK];
            return Ok(());
        };
        let mut header = Header::new_ustar();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(MTIME);
        let (name, mode, length) = match &member {
            Member::Directory(name) => (name.as_str(), 0o755, 0),
            Member::File(name, length, _) => (name.as_str(), 0o644, *length),
            Member::Program(bytes) => (PROGRAM, 0o755, bytes.len() as u64),
            Member::Symlink(name, _) => (name.as_str(), 0o777, 0),
        };
        header.set_path(name)?;
        header.set_mode(mode);
        header.set_size(length);
        header.set_entry_type(match &member {
            Member::Directory(_) => EntryType::Directory,
            Member::Symlink(..) => EntryType::Symlink,
            Member::File(..) | Member::Program(_) => EntryType::Regular,
        });
        if let Member::Symlink(_, target) = &member {
            header.set_link_name(target)?;
        }
        header.set_cksum();
        self.head.clear();
        self.head.extend_from_slice(header.as_bytes());
        self.padding = usize::try_from(length.next_multiple_of(BLOCK as u64) - length).unwrap_or(0);
        self.data = match member {
            Member::File(_, length, at) => Data::Filler(length, at),
            Member::Program(bytes) => Data::Own(io::Cursor::new(bytes)),
            Member::Directory(_) | Member::Symlink(..) => Data::None,
        };
        Ok(())
    }

    fn read_data(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.data {
            Data::None => Ok(0),
            Data::Own(cursor) => cursor.read(into),
            Data::Filler(left, at) => {
                let filler = filler();
                let wanted = usize::try_from(*left).unwrap_or(usize::MAX).min(into.len());
                let n = wanted.min(filler.len() - *at);
                into[..n].copy_from_slice(&filler[*at..*at + n]);
                *left -= n as u64;
                *at = (*at + n) % filler.len();
                Ok(n)
            }
        }
    }

    /// The next piece; 0 when a new member is needed.
    fn piece(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let head = &self.head[self.head_at..];
        if !head.is_empty() {
            let n = head.len().min(into.len());
            into[..n].copy_from_slice(&head[..n]);
            self.head_at += n;
            return Ok(n);
        }
        let n = self.read_data(into)?;
        if n > 0 {
            return Ok(n);
        }
        let n = self.padding.min(into.len());
        into[..n].fill(0);
        self.padding -= n;
        Ok(n)
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("interrupted"));
        }
        // As much as fits: a reader that gets 512 bytes at a time would measure its own calls.
        let mut filled = 0;
        while filled < into.len() {
            let n = self.piece(&mut into[filled..])?;
            filled += n;
            if n == 0 {
                if self.ended {
                    break;
                }
                self.next_member()?;
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeMap;

    static GO_ON: AtomicBool = AtomicBool::new(false);

    fn small() -> Size {
        Size {
            small_files: 250,
            big_file: 3 << 20,
            layers: 4,
            ..Size::quick()
        }
    }

    #[test]
    fn streams_are_archives_and_add_up_to_the_contents() {
        let size = small();
        let mut tree = BTreeMap::new();
        for index in 0..size.layers {
            let mut archive = tar::Archive::new(layer(&size, index, &GO_ON));
            for entry in archive.entries().unwrap() {
                let entry = entry.unwrap();
                let name = entry
                    .path()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .trim_end_matches('/')
                    .to_owned();
                match name.rsplit_once("/.wh.") {
                    Some((parent, victim)) => {
                        assert!(tree.remove(&format!("{parent}/{victim}")).is_some(), "{name}");
                    }
                    None => drop(tree.insert(name, entry.size())),
                }
            }
        }
        let expected = contents(&size);
        assert_eq!(tree.len() as u64, expected.entries);
        let small: Vec<u64> = tree
            .iter()
            .filter(|(name, _)| name.contains("/module-"))
            .map(|(_, size)| *size)
            .collect();
        assert_eq!(
            (small.len() as u64, small.iter().sum::<u64>()),
            (expected.small_files, expected.small_bytes)
        );
        assert_eq!(tree[BIG], 3 << 20);
        assert!(tree.contains_key(&some_module()));
        for package in packages(&size, 50) {
            assert!(tree.contains_key(&package), "{package}");
        }
    }

    #[test]
    fn every_reading_gives_the_same_bytes_in_pieces_of_any_length() {
        let size = small();
        for index in [0, 1, 2] {
            let mut whole = Vec::new();
            layer(&size, index, &GO_ON).read_to_end(&mut whole).unwrap();
            assert_eq!(whole.len() % BLOCK, 0);
            let mut pieces = Vec::new();
            let mut stream = layer(&size, index, &GO_ON);
            let mut piece = [0; 77];
            loop {
                match stream.read(&mut piece).unwrap() {
                    0 => break,
                    n => pieces.extend_from_slice(&piece[..n]),
                }
            }
            assert!(whole == pieces, "layer {index}");
        }
    }

    #[test]
    fn a_stop_ends_the_stream_with_an_error() {
        let stop = AtomicBool::new(false);
        let mut stream = layer(&small(), 1, &stop);
        assert!(stream.read(&mut [0; 4096]).is_ok());
        stop.store(true, Ordering::Relaxed);
        assert!(stream.read(&mut [0; 4096]).is_err());
    }

    #[test]
    fn the_program_runs() {
        use std::os::unix::fs::PermissionsExt;
        let Some(bytes) = program() else { return };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("true");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Another test's child may have inherited the descriptor we wrote through, for the moment before its execve.
        let status = loop {
            match std::process::Command::new(&path).status() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                other => break other.unwrap(),
            }
        };
        assert!(status.success());
    }

    #[test]
    fn small_files_take_the_space_that_is_asked_for() {
        let blocks: u64 = (0..10_000).map(|n| length(n).next_multiple_of(4096)).sum();
        assert!(blocks / 10_000 < ALLOCATED_PER_FILE, "{}", blocks / 10_000);
    }
}
