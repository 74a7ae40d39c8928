//! Unpacking, and finding what changed, under criterion: for those who change the archive engine. It compares with the last run, and
//! tells noise from change. How far the engine is from what is possible says the other benchmark, `apply`.
//!
//! `SKIFF_BENCH_DIRECTORY` says where. Not on ext4 without a journal, see there.
#![expect(clippy::unwrap_used, reason = "a benchmark stops at any error")]

// Its sizes are not all used here.
#[expect(dead_code, reason = "shared with the other benchmark")]
#[path = "apply/layers.rs"]
mod layers;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use layers::Layer;
use skiff_archive::{ApplyOptions, ApplyTarget, DiffTree, WhiteoutFormat, apply, diff, remove_tree};

/// Files of the layer of small ones, and of the trees that are compared.
const FILES: usize = 5_000;

fn main() {
    let place = std::env::var_os("SKIFF_BENCH_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    let scratch = tempfile::Builder::new()
        .prefix("skiff-bench-")
        .tempdir_in(place)
        .unwrap();
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for layer in [Layer::many(FILES), Layer::base()] {
        unpacking(&mut criterion, &layer, scratch.path());
    }
    differing(&mut criterion, scratch.path());
    criterion.final_summary();
}

fn unpacking(criterion: &mut Criterion, layer: &Layer, scratch: &Path) {
    let mut group = criterion.benchmark_group(format!("unpack {}", layer.name));
    group.throughput(Throughput::Bytes(layer.size()));
    for (compression, archive) in archives(layer) {
        group.bench_function(BenchmarkId::from_parameter(compression), |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| unpack(&archive, scratch)).sum());
        });
    }
    group.finish();
}

/// The layer as registries have it. In memory: its reader is not what is measured.
fn archives(layer: &Layer) -> [(&'static str, Vec<u8>); 3] {
    let mut plain = Vec::new();
    layer.pack(&mut plain);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(&plain).unwrap();
    let zstd = zstd::encode_all(plain.as_slice(), 3).unwrap();
    [("gzip", gzip.finish().unwrap()), ("zstd", zstd), ("plain", plain)]
}

/// Unpacks into a fresh directory, which is removed outside of the clock.
fn unpack(archive: &[u8], scratch: &Path) -> Duration {
    let directory = scratch.join("target");
    fs::create_dir(&directory).unwrap();
    let target = ApplyTarget {
        directory: directory.clone(),
        whiteouts: WhiteoutFormat::OverlayUser,
    };
    let source = io::Cursor::new(archive.to_vec());
    let start = Instant::now();
    apply(source, &target, &ApplyOptions::default()).unwrap();
    let taken = start.elapsed();
    remove_tree(&directory).unwrap();
    rustix::fs::syncfs(fs::File::open(scratch).unwrap()).unwrap();
    taken
}

/// One changed file: in an overlay's upper directory, and in one of two whole trees.
fn differing(criterion: &mut Criterion, scratch: &Path) {
    let (_, archive) = archives(&Layer::many(FILES)).into_iter().next_back().unwrap();
    let [lower, upper, whole] = ["lower", "upper", "whole"].map(|name| scratch.join(name));
    for directory in [&lower, &whole] {
        fs::create_dir(directory).unwrap();
        let target = ApplyTarget {
            directory: directory.clone(),
            whiteouts: WhiteoutFormat::OverlayUser,
        };
        let source = io::Cursor::new(archive.clone());
        apply(source, &target, &ApplyOptions::default()).unwrap();
    }
    let changed = Path::new("usr/lib/node_modules/package-1/dist-50/module-1.js");
    fs::create_dir_all(upper.join(changed).parent().unwrap()).unwrap();
    for tree in [&upper, &whole] {
        fs::write(tree.join(changed), "changed").unwrap();
    }
    let trees = [
        (
            "upper directory",
            DiffTree::Native {
                directory: &upper,
                whiteouts: WhiteoutFormat::OverlayUser,
            },
        ),
        (
            "two trees",
            DiffTree::Compare {
                directory: &whole,
                parent: Some(&lower),
            },
        ),
    ];
    let mut group = criterion.benchmark_group("diff of one changed file");
    for (name, tree) in trees {
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                let done = diff(&tree, io::sink()).unwrap();
                assert!(done.entries > 0);
            });
        });
    }
    group.finish();
}
