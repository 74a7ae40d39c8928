//! How fast a layer of many small files is unpacked, beside the floor that no unpacker of this shape can beat: the same
//! three threads, but the last one knows all names beforehand and only makes the system calls.
//!
//! Both run alternately in one process; the ratio of their times is what counts on a busy machine. `FILES`, `ROUNDS` and
//! `DIRECTORY` in the environment (each with the prefix `SKIFF_BENCH_`) change the size and the place.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark talks to its user and stops at any error"
)]

use std::fs;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use ring::digest::{Context, SHA256};
use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use skiff_archive::{ApplyOptions, ApplyTarget, WhiteoutFormat, apply, remove_tree};

const FILES_PER_DIRECTORY: usize = 10;
const MTIME: u64 = 1_700_000_000;

fn main() {
    let number = |name: &str, default: usize| {
        std::env::var(format!("SKIFF_BENCH_{name}"))
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(default)
    };
    let (files, rounds) = (number("FILES", 98_000), number("ROUNDS", 3));
    let place = std::env::var_os("SKIFF_BENCH_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    let scratch = tempfile::Builder::new()
        .prefix("skiff-bench-")
        .tempdir_in(place)
        .unwrap();

    let plan = plan(files);
    let tar_size: u64 = plan
        .iter()
        .map(|d| d.files.iter().map(|f| f.size as u64).sum::<u64>())
        .sum();
    println!(
        "{} files in {} directories, {} MiB",
        files,
        plan.len(),
        tar_size >> 20
    );
    let gzip = scratch.path().join("layer.gz");
    let mut encoder =
        flate2::write::GzEncoder::new(fs::File::create(&gzip).unwrap(), flate2::Compression::new(6));
    pack(&plan, &mut encoder);
    encoder.finish().unwrap();
    let zstd = scratch.path().join("layer.zst");
    let mut encoder = zstd::Encoder::new(fs::File::create(&zstd).unwrap(), 3).unwrap();
    pack(&plan, &mut encoder);
    encoder.finish().unwrap();

    println!(
        "{:6} {:>22} {:>22} {:>8} {:>8}",
        "", "floor wall / CPU s", "apply wall / CPU s", "wall", "CPU"
    );
    for (name, path) in [("gzip", &gzip), ("zstd", &zstd)] {
        let (mut floors, mut applies) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            floors.push(measure(scratch.path(), |target| floor(path, &plan, target)));
            applies.push(measure(scratch.path(), |target| {
                let target = ApplyTarget {
                    directory: target.to_owned(),
                    whiteouts: WhiteoutFormat::OverlayUser,
                };
                let applied =
                    apply(fs::File::open(path).unwrap(), &target, &ApplyOptions::default()).unwrap();
                assert_eq!(applied.entries, (files + plan.len()) as u64);
            }));
        }
        let (f, a) = (median(&mut floors), median(&mut applies));
        println!(
            "{name:6} {:>14.2} / {:>5.2} {:>14.2} / {:>5.2} {:>7.2}x {:>7.2}x",
            f.0,
            f.1,
            a.0,
            a.1,
            a.0 / f.0,
            a.1 / f.1
        );
    }
}

struct Planned {
    name: String,
    files: Vec<PlannedFile>,
}

struct PlannedFile {
    name: String,
    size: usize,
    /// Where its text begins in the common text.
    at: usize,
}

/// A cheap generator, so that every run unpacks the same.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn plan(files: usize) -> Vec<Planned> {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    (0..files.div_ceil(FILES_PER_DIRECTORY))
        .map(|d| Planned {
            name: format!("usr/lib/node_modules/package-{}/dist-{d}", d / 50),
            files: (0..FILES_PER_DIRECTORY.min(files - d * FILES_PER_DIRECTORY))
                .map(|f| {
                    // Mostly small, a few large: 5.8 KiB on average.
                    let size = match next(&mut state) % 20 {
                        0 => 40_000 + next(&mut state) % 30_000,
                        n => n * 150 + next(&mut state) % 3_000,
                    };
                    let size = usize::try_from(size).unwrap();
                    PlannedFile {
                        name: format!("module-{f}.js"),
                        size,
                        at: usize::try_from(next(&mut state)).unwrap() % TEXT,
                    }
                })
                .collect(),
        })
        .collect()
}

const TEXT: usize = 1 << 20;

/// Text that compresses about as well as source code.
fn text() -> Vec<u8> {
    let mut state = 42;
    let words: Vec<String> = (0..3000)
        .map(|_| format!("{:x}", next(&mut state) % 0xf_ffff_ffff))
        .collect();
    let mut text = Vec::with_capacity(2 * TEXT + 100);
    while text.len() < 2 * TEXT {
        text.extend_from_slice(words[usize::try_from(next(&mut state) % 3000).unwrap()].as_bytes());
        text.extend_from_slice(if next(&mut state).is_multiple_of(8) {
            b"();\n  "
        } else {
            b" "
        });
    }
    text
}

fn pack(plan: &[Planned], out: impl Write) {
    let text = text();
    let mut builder = tar::Builder::new(out);
    let header = |kind, size, mode| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(MTIME);
        header
    };
    for directory in plan {
        let mut h = header(tar::EntryType::Directory, 0, 0o755);
        builder
            .append_data(&mut h, format!("{}/", directory.name), io::empty())
            .unwrap();
        for file in &directory.files {
            let mut h = header(tar::EntryType::Regular, file.size as u64, 0o644);
            let data = &text[file.at..file.at + file.size];
            builder
                .append_data(&mut h, format!("{}/{}", directory.name, file.name), data)
                .unwrap();
        }
    }
    builder.finish().unwrap();
}

/// Wall and CPU seconds of `work` in a fresh directory.
fn measure(scratch: &Path, work: impl FnOnce(&Path)) -> (f64, f64) {
    let target = scratch.join("target");
    fs::create_dir(&target).unwrap();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    work(&target);
    let taken = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    remove_tree(&target).unwrap();
    // What was written must not be written back during the next measurement.
    rustix::fs::syncfs(fs::File::open(scratch).unwrap()).unwrap();
    taken
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(times: &mut [(f64, f64)]) -> (f64, f64) {
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    times[times.len() / 2]
}

type Chunk = (Vec<u8>, usize);

/// A thread that fills buffers from `read`, and where they come out.
fn stage(mut read: impl Read + Send + 'static, hash: bool) -> Stage {
    let (full_in, full) = mpsc::channel::<Chunk>();
    let (empty, empty_out) = mpsc::channel::<Vec<u8>>();
    for _ in 0..4 {
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
            if hash {
                digest.update(&buffer[..filled]);
            }
            if full_in.send((buffer, filled)).is_err() || filled == 0 {
                break;
            }
        }
        black_box(digest.finish());
    });
    Stage {
        full,
        empty,
        current: None,
        at: 0,
        digest: None,
    }
}

struct Stage {
    full: mpsc::Receiver<Chunk>,
    empty: mpsc::Sender<Vec<u8>>,
    current: Option<Chunk>,
    at: usize,
    digest: Option<Context>,
}

impl Stage {
    fn fill(&mut self) -> &[u8] {
        if self.current.as_ref().is_none_or(|(_, len)| self.at == *len) {
            if let Some((buffer, _)) = self.current.take() {
                let _ = self.empty.send(buffer);
            }
            let (buffer, len) = self.full.recv().unwrap_or_default();
            if let Some(digest) = &mut self.digest {
                digest.update(&buffer[..len]);
            }
            self.current = Some((buffer, len));
            self.at = 0;
        }
        let (buffer, len) = self.current.as_ref().unwrap();
        &buffer[self.at..*len]
    }

    fn each(&mut self, mut n: usize, mut take: impl FnMut(&[u8])) {
        while n > 0 {
            let piece = self.fill();
            assert!(!piece.is_empty());
            let step = piece.len().min(n);
            take(&piece[..step]);
            self.at += step;
            n -= step;
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

/// Read and hash, decode, hash and write: with nothing to parse, to look up or to check.
fn floor(path: &Path, plan: &[Planned], target: &Path) {
    let compressed = stage(fs::File::open(path).unwrap(), true);
    let mut plain = if path.extension().is_some_and(|e| e == "gz") {
        let buffered = io::BufReader::with_capacity(256 * 1024, compressed);
        stage(flate2::bufread::MultiGzDecoder::new(buffered), false)
    } else {
        stage(zstd::Decoder::new(compressed).unwrap(), false)
    };
    plain.digest = Some(Context::new(&SHA256));
    let time = Timespec {
        tv_sec: MTIME as i64,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    for directory in plan {
        plain.each(512, |_| ());
        let name = target.join(&directory.name);
        if let Err(error) = fs::create_dir(&name) {
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            fs::create_dir_all(&name).unwrap();
        }
        let fd = fs::File::open(&name).unwrap();
        rustix::fs::fchown(&fd, Some(Uid::ROOT), Some(Gid::ROOT)).unwrap();
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755)).unwrap();
        for file in &directory.files {
            plain.each(512, |_| ());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let out = rustix::fs::openat(&fd, &file.name[..], flags, Mode::from_raw_mode(0o600)).unwrap();
            plain.each(file.size, |piece| {
                assert_eq!(rustix::io::write(&out, piece).unwrap(), piece.len());
            });
            rustix::fs::fchown(&out, Some(Uid::ROOT), Some(Gid::ROOT)).unwrap();
            rustix::fs::fchmod(&out, Mode::from_raw_mode(0o644)).unwrap();
            rustix::fs::futimens(&out, &times).unwrap();
            plain.each(file.size.next_multiple_of(512) - file.size, |_| ());
        }
        // Like the unpacker: a directory's times come after its contents.
        rustix::fs::futimens(&fd, &times).unwrap();
    }
    while !plain.fill().is_empty() {
        let n = plain.fill().len();
        plain.at += n;
    }
    black_box(plain.digest.take().unwrap().finish());
}
