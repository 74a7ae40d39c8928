//! `skiffd bench storage` as an ordinary user: it measures, leaves nothing but its result, and stops when told to.
//!
//! The sizes are the smallest, and what is checked is never how fast anything was.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{Engine, Options, PATIENCE, eventually, is_root, require};

/// An account with its directories; no daemon runs unless a test starts it.
fn account() -> Engine {
    Engine::prepare(Options::default())
}

fn benchmark(engine: &Engine, words: &[&str]) -> Command {
    let mut command = engine.program();
    command
        .args(["bench", "storage", "--quick"])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Below the data root, without what the engine itself keeps.
fn left(data_root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(data_root.join("bench")) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Waits until nothing runs as the account's ids any more.
fn wait_until_alone(engine: &Engine) {
    eventually("the benchmark's processes end", PATIENCE, || {
        engine
            .processes()
            .iter()
            .all(|process| process.zombie)
            .then_some(())
    });
}

/// Nothing of a run is left: no files, no processes, no mounts anybody could see.
fn nothing_left(engine: &Engine) {
    let files: Vec<_> = left(&engine.data_root())
        .into_iter()
        .filter(|path| !path.ends_with("storage.json"))
        .collect();
    assert_eq!(files, Vec::<PathBuf>::new());
    wait_until_alone(engine);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = format!("{}/", engine.data_root().display());
    assert!(!mounts.contains(&below), "{mounts}");
}

/// Waits until the benchmark is at work: something is there below its scratch directory. What is in there is not readable
/// for others, but that it is there can be seen as root; as the user itself, too.
fn wait_until(engine: &Engine, child: &mut Child, there: impl Fn(&Path) -> bool) {
    let scratch = engine.data_root().join("bench/scratch");
    eventually("the benchmark is at work", PATIENCE, || {
        assert_eq!(
            child.try_wait().unwrap(),
            None,
            "the benchmark ended before it was told to"
        );
        there(&scratch).then_some(())
    });
}

fn wait_until_busy(engine: &Engine, child: &mut Child) {
    wait_until(engine, child, |scratch| {
        scratch.join("overlay2/l").symlink_metadata().is_ok()
    });
}

fn end(child: Child) -> (ExitStatus, String) {
    let output = child.wait_with_output().unwrap();
    (
        output.status,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn it_measures_every_driver_that_works_and_leaves_only_its_result() {
    require!(Engine::own(), "runs the program itself");
    let engine = account();
    let svg = engine.home().join("drivers.svg");
    let output = benchmark(
        &engine,
        &["--rounds", "1", "--json", "--svg", svg.to_str().unwrap()],
    )
    .output()
    .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");

    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["version"], 1);
    let measured: Vec<&str> = report["drivers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|driver| driver["refused"].is_null())
        .map(|driver| driver["name"].as_str().unwrap())
        .collect();
    for wanted in ["overlay2", "vfs"] {
        assert!(measured.contains(&wanted), "{report}");
    }
    let workloads = report["workloads"].as_array().unwrap();
    assert!(workloads.len() >= 14);
    for line in workloads {
        for cell in line["results"].as_array().unwrap() {
            assert!(
                cell["error"].is_null() && cell["median"].as_f64().unwrap() > 0.0,
                "{line}"
            );
        }
    }
    let advice = report["advice"]["sentence"].as_str().unwrap();
    assert!(measured.iter().any(|name| advice.contains(name)), "{advice}");

    // Kept for `docker info` and the like, and drawn.
    let kept = std::fs::read(engine.data_root().join("bench/storage.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&kept).unwrap(), report);
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"));
    nothing_left(&engine);
}

#[test]
fn ctrl_c_in_the_middle_leaves_nothing() {
    require!(Engine::own(), "runs the program itself");
    let engine = account();
    for which in [Signal::SIGINT, Signal::SIGTERM] {
        let mut child = benchmark(&engine, &["--rounds", "1000"]).spawn().unwrap();
        wait_until_busy(&engine, &mut child);
        signal(&child, which);
        let (status, said) = end(child);
        assert_eq!(status.code(), Some(130), "{said}");
        assert!(
            said.contains("interrupted; what the benchmark had made is removed"),
            "{said}"
        );
        assert_eq!(left(&engine.data_root()), Vec::<PathBuf>::new());
        nothing_left(&engine);
    }
}

#[test]
fn what_a_kill_leaves_the_next_run_removes_and_only_one_runs_at_a_time() {
    require!(Engine::own(), "runs the program itself");
    let engine = account();
    let mut child = benchmark(&engine, &["--rounds", "1000"]).spawn().unwrap();
    wait_until_busy(&engine, &mut child);

    let second = benchmark(&engine, &["--driver", "vfs"]).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(2), "{said}");
    assert!(said.contains("another benchmark is running"), "{said}");

    signal(&child, Signal::SIGKILL);
    end(child);
    assert!(engine.data_root().join("bench/scratch").exists());
    // Its mounts and servers went with it.
    wait_until_alone(&engine);

    let output = benchmark(&engine, &["--rounds", "1", "--driver", "vfs", "--json"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    nothing_left(&engine);
}

#[test]
fn subvolumes_and_fuse_servers_go_with_it_however_it_ends() {
    require!(Engine::own() && is_root(), "only root can mount a btrfs");
    let engine = Engine::prepare(Options::default().on_btrfs());
    let drivers = ["--driver", "btrfs", "--driver", "fuse-overlayfs"];
    for which in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut child = benchmark(&engine, &[&["--rounds", "1000"][..], &drivers].concat())
            .spawn()
            .unwrap();
        wait_until(&engine, &mut child, |scratch| {
            let snapshots = std::fs::read_dir(scratch.join("btrfs")).into_iter().flatten();
            let mut subvolumes = snapshots.map(|entry| entry.unwrap().path().join("subvolume"));
            subvolumes.any(|path| path.exists()) && scratch.join("fuse-overlayfs/l").exists()
        });
        signal(&child, which);
        let (status, said) = end(child);
        wait_until_alone(&engine);
        if which == Signal::SIGTERM {
            assert_eq!(status.code(), Some(130), "{said}");
            nothing_left(&engine);
        }
    }
    assert!(engine.data_root().join("bench/scratch/btrfs").exists());
    let words = ["--rounds", "1", "--driver", "btrfs"];
    let output = benchmark(&engine, &words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    nothing_left(&engine);
}

#[test]
fn a_disk_that_somebody_else_fills_ends_it_and_nothing_is_left() {
    require!(Engine::own() && is_root(), "mounts a small file system");
    let small = Engine::prepare(Options::default().data_root_of_mib(64));
    let output = benchmark(&small, &["--driver", "vfs"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("the storage benchmark needs") && said.contains("are free"),
        "{said}"
    );
    nothing_left(&small);
    drop(small);

    let engine = Engine::prepare(Options::default().data_root_of_mib(256));
    let mut child = benchmark(&engine, &["--driver", "vfs", "--rounds", "1000"])
        .spawn()
        .unwrap();
    wait_until(&engine, &mut child, |scratch| {
        scratch.join("vfs/staging").exists()
    });
    // What the benchmark gives back is taken at once, until it has none.
    let filler = engine.data_root().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    let block = vec![1; 1 << 20];
    eventually("the benchmark gives up", PATIENCE, || {
        while file.write_all(&block).is_ok() {}
        child.try_wait().unwrap()
    });
    let (status, said) = end(child);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.to_lowercase().contains("no space left on device"), "{said}");
    std::fs::remove_file(&filler).unwrap();
    nothing_left(&engine);
    assert_eq!(left(&engine.data_root()), Vec::<PathBuf>::new());
}

#[test]
fn it_runs_beside_a_daemon_and_touches_none_of_its_images() {
    require!(Engine::own(), "runs the program itself");
    let engine = Engine::with_busybox("overlay2");
    let before = engine.docker(["images", "-aq", "--no-trunc"]).ok();
    let mut child = benchmark(&engine, &["--rounds", "1", "--driver", "overlay2"])
        .spawn()
        .unwrap();
    let mut table = String::new();
    child.stdout.take().unwrap().read_to_string(&mut table).unwrap();
    let (status, said) = end(child);
    assert!(status.success(), "{said}");
    assert!(table.contains("overlay2 was the only driver measured"), "{table}");
    assert!(table.contains("start, run, remove a container"), "{table}");
    assert_eq!(engine.docker(["images", "-aq", "--no-trunc"]).ok(), before);
    assert_eq!(engine.busybox(&[], &["echo", "still here"]).ok(), "still here");
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_is_written() {
    require!(Engine::own(), "runs the program itself");
    let engine = account();
    for (words, text) in [
        (&["--driver", "zfs"][..], "zfs"),
        (&["--svg", "/nonexistent/x.svg"], "/nonexistent/x.svg"),
    ] {
        let output = benchmark(&engine, words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(text), "{said}");
        nothing_left(&engine);
    }
}
