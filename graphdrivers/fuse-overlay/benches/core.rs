//! Operations of the overlay's core without FUSE, beside the bare system calls that they cannot do without.
//!
//! `cargo bench -p skiff-fuse-overlay --bench core`, as root (also of a user namespace).
#![expect(clippy::unwrap_used, reason = "a benchmark stops at any error")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rustix::fs::{AtFlags, Mode, OFlags};
use skiff_fuse_overlay::overlay::{Caller, Config, Lookup, Overlay, ROOT, SetAttr, SetTime};

const FILES: usize = 1000;

struct Bench {
    overlay: Overlay,
    place: tempfile::TempDir,
}

/// `lowers` layers; the lowest has `d` with many files, the others have `d` with one each.
fn overlay(lowers: usize) -> Bench {
    let place = tempfile::tempdir().unwrap();
    let path = |name: String| {
        let path = place.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let lower: Vec<_> = (0..lowers).map(|i| path(format!("lower{i}"))).collect();
    for (i, layer) in lower.iter().enumerate() {
        fs::create_dir(layer.join("d")).unwrap();
        fs::write(layer.join(format!("d/own{i}")), "x").unwrap();
    }
    for i in 0..FILES {
        fs::write(lower[lowers - 1].join(format!("d/file{i}")), [b'x'; 2048]).unwrap();
    }
    let config = Config {
        lower,
        upper: Some((path("upper".to_owned()), path("work".to_owned()))),
        ..Config::default()
    };
    Bench {
        overlay: Overlay::new(config).unwrap(),
        place,
    }
}

fn find(overlay: &Overlay, parent: u64, name: &str) -> u64 {
    match overlay.lookup(parent, OsStr::new(name)).unwrap() {
        Lookup::Found(entry) => entry.node,
        Lookup::Negative(_) => panic!("{name}"),
    }
}

fn names(prefix: &str) -> Vec<OsString> {
    (0..FILES).map(|i| format!("{prefix}{i}").into()).collect()
}

fn looking_up(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    for layers in [1, 10] {
        let bench = overlay(layers);
        let d = find(&bench.overlay, ROOT, "d");
        let files = names("file");
        let mut at = 0;
        group.bench_function(format!("lower file, {layers} layers"), |b| {
            b.iter(|| {
                at = (at + 1) % FILES;
                let Lookup::Found(entry) = bench.overlay.lookup(d, &files[at]).unwrap() else {
                    panic!()
                };
                bench.overlay.forget(entry.node, 1);
            });
        });
        group.bench_function(format!("missing name, {layers} layers"), |b| {
            b.iter(|| black_box(bench.overlay.lookup(d, OsStr::new("missing")).unwrap()));
        });
    }
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("file"), "x").unwrap();
    let fd = rustix::fs::open(place.path(), OFlags::PATH, Mode::empty()).unwrap();
    group.bench_function("bare fstatat", |b| {
        b.iter(|| rustix::fs::statat(&fd, "file", AtFlags::SYMLINK_NOFOLLOW).unwrap());
    });
    group.finish();
}

fn listing(c: &mut Criterion) {
    let mut group = c.benchmark_group("readdirplus of 1000 files");
    group.sample_size(20);
    for layers in [1, 10] {
        let bench = overlay(layers);
        let d = find(&bench.overlay, ROOT, "d");
        group.bench_function(format!("{layers} layers"), |b| {
            b.iter(|| {
                let handle = bench.overlay.opendir(d).unwrap();
                let mut known = Vec::with_capacity(FILES);
                bench
                    .overlay
                    .readdirplus(handle, 0, &mut |_, entry| {
                        known.extend(entry.map(|entry| entry.node));
                        true
                    })
                    .unwrap();
                bench.overlay.releasedir(handle);
                for node in known {
                    bench.overlay.forget(node, 1);
                }
            });
        });
    }
    group.finish();
}

/// What tar(1) does for a file, and rm(1) afterwards.
fn making(c: &mut Criterion) {
    let mut group = c.benchmark_group("one file");
    let caller = Caller::default();
    let bench = overlay(3);
    let overlay = &bench.overlay;
    let fresh = overlay
        .mkdir(&caller, ROOT, OsStr::new("fresh"), 0o755)
        .unwrap()
        .node;
    let merged = find(overlay, ROOT, "d");
    let name = OsStr::new("new");
    let flags = (OFlags::WRONLY | OFlags::EXCL).bits();
    for (what, parent) in [("fresh", fresh), ("merged", merged)] {
        let timed = |rounds: u64, unlink: bool| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                let start = Instant::now();
                let (entry, opened) = overlay.create(&caller, parent, name, 0o644, flags).unwrap();
                overlay.write(opened.handle, 0, &[7; 2048], false).unwrap();
                let change = SetAttr {
                    mtime: Some(SetTime::Now),
                    ..SetAttr::default()
                };
                overlay.setattr(entry.node, Some(opened.handle), &change).unwrap();
                overlay.release(opened.handle);
                let made = start.elapsed();
                let start = Instant::now();
                overlay.unlink(parent, name).unwrap();
                overlay.forget(entry.node, 1);
                spent += if unlink { start.elapsed() } else { made };
            }
            spent
        };
        group.bench_function(format!("create, write, set times in a {what} directory"), |b| {
            b.iter_custom(|rounds| timed(rounds, false));
        });
        group.bench_function(format!("unlink from a {what} directory"), |b| {
            b.iter_custom(|rounds| timed(rounds, true));
        });
    }
    let place = tempfile::tempdir().unwrap();
    group.bench_function("bare create, write, set times", |b| {
        b.iter_custom(|n| bare(place.path(), n, false));
    });
    group.bench_function("bare unlink", |b| b.iter_custom(|n| bare(place.path(), n, true)));
    group.finish();
}

fn bare(place: &Path, rounds: u64, unlink: bool) -> Duration {
    let directory = rustix::fs::open(place, OFlags::PATH, Mode::empty()).unwrap();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let now = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        last_modification: rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
    };
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        let start = Instant::now();
        let fd = rustix::fs::openat(&directory, "new", flags, Mode::from_raw_mode(0o644)).unwrap();
        rustix::fs::fstat(&fd).unwrap();
        rustix::io::write(&fd, &[7; 2048]).unwrap();
        rustix::fs::futimens(&fd, &now).unwrap();
        rustix::fs::fstat(&fd).unwrap();
        drop(fd);
        let made = start.elapsed();
        let start = Instant::now();
        rustix::fs::unlinkat(&directory, "new", AtFlags::empty()).unwrap();
        spent += if unlink { start.elapsed() } else { made };
    }
    spent
}

/// Each file only once, so that a round is a fresh overlay.
fn changing(c: &mut Criterion) {
    let mut group = c.benchmark_group("1000 lower files");
    group.sample_size(10);
    group.bench_function("copy-up of 2 KiB", |b| {
        b.iter_batched(
            || overlay(1),
            |bench| {
                let d = find(&bench.overlay, ROOT, "d");
                for name in names("file") {
                    let Lookup::Found(entry) = bench.overlay.lookup(d, &name).unwrap() else {
                        panic!()
                    };
                    let opened = bench.overlay.open(entry.node, OFlags::WRONLY.bits()).unwrap();
                    bench.overlay.release(opened.handle);
                }
                bench
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("bare copy of 2 KiB", |b| {
        b.iter_batched(
            || {
                let bench = overlay(1);
                fs::create_dir(bench.place.path().join("copy")).unwrap();
                bench
            },
            |bench| {
                for name in names("file") {
                    let from = bench.place.path().join("lower0/d").join(&name);
                    let contents = fs::read(from).unwrap();
                    fs::write(bench.place.path().join("copy").join(&name), contents).unwrap();
                }
                bench
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("whiteouts", |b| {
        b.iter_batched(
            || overlay(1),
            |bench| {
                let d = find(&bench.overlay, ROOT, "d");
                for name in names("file") {
                    bench.overlay.unlink(d, &name).unwrap();
                }
                bench
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, looking_up, listing, making, changing);
criterion_main!(benches);
