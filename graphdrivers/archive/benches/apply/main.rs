//! How fast layers are unpacked, beside the floor that no unpacker of this shape can beat, and in how much memory; and how
//! long the difference of one file in a big tree takes.
//!
//! Both sides run alternately in one process; the ratio of their times is what counts: of the medians (`wall`), of the best
//! rounds (`best`), and of the processor time (`CPU`). On a busy machine only the last is worth anything. In the
//! environment (each with the prefix `SKIFF_BENCH_`) `FILES`, `BIG` (MiB), `ROUNDS` and `DIRECTORY` change sizes and
//! place, and `ONLY` names the layers to run (`many,big,base`). Not on ext4 without a journal: there the kernel spends most
//! of the time on not giving out inodes that were deleted a moment ago.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark talks to its user and stops at any error"
)]

mod floor;
mod layers;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use layers::Layer;
use skiff_archive::{ApplyOptions, ApplyTarget, DiffTree, WhiteoutFormat, apply, diff, remove_tree};

/// No unpack may take more, whatever the layer (requirement).
const MEMORY_MAX_MIB: f64 = 64.0;
/// As many layers at once as the engine unpacks.
const AT_ONCE: usize = 4;

struct Settings {
    files: usize,
    big: u64,
    rounds: usize,
    only: Option<String>,
}

fn main() {
    let variable = |name: &str| std::env::var(format!("SKIFF_BENCH_{name}")).ok();
    let number = |name: &str, default: u64| variable(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let settings = Settings {
        files: usize::try_from(number("FILES", 98_000)).unwrap(),
        big: number("BIG", 1024) << 20,
        rounds: usize::try_from(number("ROUNDS", 5)).unwrap(),
        only: variable("ONLY"),
    };
    let place = variable("DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    let scratch = tempfile::Builder::new()
        .prefix("skiff-bench-")
        .tempdir_in(place)
        .unwrap();
    println!(
        "{:12} {:>8} {:>20} {:>20} {:>7} {:>7} {:>7} {:>9} {:>8}",
        "layer", "MiB", "floor wall/CPU s", "apply wall/CPU s", "wall", "best", "CPU", "verified", "RSS MiB"
    );
    for layer in Layer::all(settings.files, settings.big) {
        if settings
            .only
            .as_ref()
            .is_none_or(|only| only.split(',').any(|name| name == layer.name))
        {
            unpack(&layer, &settings, scratch.path());
        }
    }
    at_once(scratch.path());
    difference(settings.files, scratch.path());
}

/// Compresses the layer with both, and measures.
fn unpack(layer: &Layer, settings: &Settings, scratch: &Path) {
    let gzip = scratch.join("layer.gz");
    // Level 6 of one gibibyte takes half a minute and is decoded no faster.
    let level = flate2::Compression::new(if layer.size() > 900 << 20 { 1 } else { 6 });
    let mut encoder = flate2::write::GzEncoder::new(fs::File::create(&gzip).unwrap(), level);
    layer.pack(&mut encoder);
    encoder.finish().unwrap();
    let zstd = scratch.join("layer.zst");
    let mut encoder = zstd::Encoder::new(fs::File::create(&zstd).unwrap(), 3).unwrap();
    layer.pack(&mut encoder);
    encoder.finish().unwrap();
    for (name, path) in [("gzip", &gzip), ("zstd", &zstd)] {
        let (mut floors, mut applies, mut verified) = (Vec::new(), Vec::new(), Vec::new());
        let mut peak = 0.0f64;
        for _ in 0..settings.rounds {
            floors.push(measure(scratch, |target| floor::floor(path, layer, target)).0);
            let (time, memory) = measure(scratch, |target| once(path, layer, target, false));
            applies.push(time);
            peak = peak.max(memory);
            verified.push(measure(scratch, |target| once(path, layer, target, true)).0);
        }
        let (f, a, v) = (median(&mut floors), median(&mut applies), median(&mut verified));
        println!(
            "{:12} {:>8} {:>12.2} / {:>5.2} {:>12.2} / {:>5.2} {:>6.2}x {:>6.2}x {:>6.2}x {:>8.2}x {peak:>8.1}",
            format!("{} {name}", layer.name),
            layer.size() >> 20,
            f.wall,
            f.cpu,
            a.wall,
            a.cpu,
            a.wall / f.wall,
            // They are in order now.
            applies[0].wall / floors[0].wall,
            a.cpu / f.cpu,
            v.wall / f.wall,
        );
        assert!(peak <= MEMORY_MAX_MIB, "{peak} MiB of memory for one unpack");
    }
}

/// Unpacks a layer; `verified` is how the engine does it, which hashes the compressed bytes while they come.
fn once(path: &Path, layer: &Layer, target: &Path, verified: bool) {
    let target = ApplyTarget {
        directory: target.to_owned(),
        whiteouts: WhiteoutFormat::OverlayUser,
    };
    let options = ApplyOptions {
        source_verified: verified,
        ..ApplyOptions::default()
    };
    let applied = apply(fs::File::open(path).unwrap(), &target, &options).unwrap();
    assert_eq!(applied.entries, layer.members.len() as u64);
}

/// Memory of several unpacks at the same time.
fn at_once(scratch: &Path) {
    let layer = Layer::base();
    let path = scratch.join("layer.zst");
    let mut encoder = zstd::Encoder::new(fs::File::create(&path).unwrap(), 3).unwrap();
    encoder.window_log(23).unwrap();
    layer.pack(&mut encoder);
    encoder.finish().unwrap();
    let (time, memory) = measure(scratch, |target| {
        thread::scope(|scope| {
            for n in 0..AT_ONCE {
                let (layer, path) = (&layer, &path);
                let target = target.join(n.to_string());
                fs::create_dir(&target).unwrap();
                scope.spawn(move || once(path, layer, &target, true));
            }
        });
    });
    println!(
        "{AT_ONCE} at once (base, zstd with a window of 8 MiB): {:.2} s, {memory:.1} MiB",
        time.wall
    );
    assert!(
        memory <= MEMORY_MAX_MIB,
        "{memory} MiB of memory for {AT_ONCE} unpacks"
    );
}

/// One changed file on top of a big tree: an overlay's upper directory, and two trees side by side.
fn difference(files: usize, scratch: &Path) {
    let layer = Layer::many(files);
    let (lower, upper) = (scratch.join("lower"), scratch.join("upper"));
    let path = scratch.join("layer.zst");
    let mut encoder = zstd::Encoder::new(fs::File::create(&path).unwrap(), 1).unwrap();
    layer.pack(&mut encoder);
    encoder.finish().unwrap().flush().unwrap();
    fs::create_dir(&lower).unwrap();
    once(&path, &layer, &lower, true);
    let changed = upper.join("usr/lib/node_modules/package-1/dist-50");
    fs::create_dir_all(&changed).unwrap();
    fs::write(changed.join("module-1.js"), "changed").unwrap();
    let native = DiffTree::Native {
        directory: &upper,
        whiteouts: WhiteoutFormat::OverlayUser,
    };
    let mut times: Vec<f64> = (0..21)
        .map(|_| {
            let start = Instant::now();
            let done = diff(&native, std::io::sink()).unwrap();
            assert_eq!(done.entries, 6);
            start.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let start = Instant::now();
    let compare = DiffTree::Compare {
        directory: &lower,
        parent: Some(&lower),
    };
    assert_eq!(diff(&compare, std::io::sink()).unwrap().entries, 0);
    println!(
        "diff of one changed file on {files}: {:.2} ms (native), {:.0} ms (two trees compared)",
        times[times.len() / 2],
        start.elapsed().as_secs_f64() * 1000.0
    );
}

#[derive(Clone, Copy)]
struct Taken {
    wall: f64,
    cpu: f64,
}

/// Wall and CPU seconds of `work` in a fresh directory, and by how many MiB the process grew meanwhile.
fn measure(scratch: &Path, work: impl FnOnce(&Path)) -> (Taken, f64) {
    let target = scratch.join("target");
    fs::create_dir(&target).unwrap();
    let before = memory("VmRSS");
    // Resets the peak, see proc_pid_clear_refs(5).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    work(&target);
    let taken = Taken {
        wall: start.elapsed().as_secs_f64(),
        cpu: cpu_seconds() - cpu,
    };
    let grown = memory("VmHWM") - before;
    remove_tree(&target).unwrap();
    // What was written must not be written back during the next measurement.
    rustix::fs::syncfs(fs::File::open(scratch).unwrap()).unwrap();
    (taken, grown)
}

/// A line of `/proc/self/status`, in MiB.
fn memory(name: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(times: &mut [Taken]) -> Taken {
    times.sort_by(|a, b| a.wall.total_cmp(&b.wall));
    times[times.len() / 2]
}
