//! After many runs there is as little as before: no process, no mount, no descriptor, no directory too many.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::harness::{
    Engine, Image, Layer, PATIENCE, eventually, is_root, mounts_of, number, on_both_drivers,
    open_descriptors, registry, require,
};

/// What can pile up.
#[derive(Debug, PartialEq, Eq)]
struct Footprint {
    /// Programs by name, with how many processes each has.
    processes: BTreeMap<String, usize>,
    /// Mount points, with how many mounts each has.
    mounts: BTreeMap<String, usize>,
    descriptors: usize,
    /// Entries below the data and exec roots, by directory.
    entries: BTreeMap<String, usize>,
}

impl Footprint {
    fn of(engine: &Engine) -> Self {
        let mut processes = BTreeMap::new();
        for process in engine.processes() {
            let name = if process.zombie {
                format!("zombie {}", process.command)
            } else {
                process.command
            };
            *processes.entry(name).or_default() += 1;
        }
        let mut mounts = BTreeMap::new();
        for mount in mounts_of(engine.keeper_pid()) {
            *mounts.entry(mount).or_default() += 1;
        }
        let mut entries = BTreeMap::new();
        for root in [engine.data_root(), engine.runtime_dir()] {
            count(&root, 0, &mut entries);
        }
        Self {
            processes,
            mounts,
            descriptors: open_descriptors(engine.daemon_pid()).len(),
            entries,
        }
    }

    /// Nothing more than before; less is fine (an idle way out ends, trash is emptied). Descriptors may be a few more:
    /// connections kept alive, an event loop's own.
    fn is_no_more_than(&self, before: &Self) -> bool {
        let fewer = |now: &BTreeMap<String, usize>, then: &BTreeMap<String, usize>| {
            now.iter()
                .all(|(what, count)| then.get(what).is_some_and(|most| count <= most))
        };
        fewer(&self.processes, &before.processes)
            && fewer(&self.mounts, &before.mounts)
            && fewer(&self.entries, &before.entries)
            && self.descriptors <= before.descriptors + 4
    }
}

/// Counts the entries of directories, not too deep: containers and layers have a directory each, their files do not matter.
fn count(directory: &Path, depth: u32, into: &mut BTreeMap<String, usize>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    let entries: Vec<_> = entries.flatten().collect();
    into.insert(directory.display().to_string(), entries.len());
    for entry in entries {
        if depth < 3 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            count(&entry.path(), depth + 1, into);
        }
    }
}

on_both_drivers! {
    fn runs_leave_nothing_behind(engine) {
        require!(Engine::own() && is_root(), "counts the daemon's processes, mounts and descriptors");
        // The first runs make what stays: the bridge, the way out, directories.
        for network in ["bridge", "none"] {
            engine.busybox(&["--network", network], &["true"]).run().code(0);
        }
        let before = Footprint::of(engine);
        let image = registry().busybox();
        let runs = number("SKIFF_TEST_RUNS", 100);
        std::thread::scope(|scope| {
            for worker in 0..2 {
                let image = &image;
                scope.spawn(move || {
                    for n in 0..runs / 2 {
                        match (n + worker) % 5 {
                            0 => drop(engine.busybox(&[], &["true"]).run().code(0)),
                            1 => drop(engine.busybox(&["--network", "none", "-i"], &["cat"]).stdin("x").run().code(0)),
                            2 => drop(engine.busybox(&["--network", "none", "-t"], &["sh", "-c", "exit 4"]).run().code(4)),
                            3 => drop(engine.busybox(&[], &["nosuchcmd"]).run().code(127)),
                            _ => {
                                let id = engine.docker(["run", "-d", "--tmpfs", "/t", image, "sleep", "1000"]).ok();
                                engine.docker(["rm", "-f", &id]).ok();
                            }
                        }
                    }
                });
            }
        });
        let mut last = Footprint::of(engine);
        let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("everything is given back", PATIENCE, || {
                last = Footprint::of(engine);
                last.is_no_more_than(&before).then_some(())
            });
        }));
        assert!(settled.is_ok(), "before: {before:#?}\nafter {runs} runs: {last:#?}\n{:#?}", open_descriptors(engine.daemon_pid()));
    }

    fn a_removed_image_gives_its_space_back(engine) {
        require!(Engine::own() && is_root(), "measures the data root");
        let used = || {
            let done = std::process::Command::new("du").args(["-s", "--block-size=1K"]).arg(engine.data_root()).output().unwrap();
            String::from_utf8_lossy(&done.stdout).split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let before = used();
        let noise: Vec<u8> = (0..6_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0]).collect();
        let image = Image::busybox().layer(Layer::new().file("noise", &noise)).push("large");
        engine.docker(["pull", "-q", &image]).ok();
        engine.docker(["run", "--rm", &image, "sh", "-c", "cp /noise /copy"]).run().code(0);
        assert!(used() > before + 5_000);
        engine.docker(["rmi", &image]).ok();
        eventually("the space is free again", PATIENCE, || (used() < before + 500).then_some(()));
    }
}
