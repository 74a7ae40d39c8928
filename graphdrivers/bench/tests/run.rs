//! The whole benchmark with tiny sizes, as root and once more as an unprivileged user inside a user namespace: figures
//! for every line, nothing left behind at the end, after a stop, and after a panic.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests talk, and stop at any error"
)]

#[path = "../../archive/tests/support/userns.rs"]
mod userns;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use skiff_graphdrivers::Mounter;
use skiff_storage_bench::{ErrorKind, Options, Scratch, Size, Unit, WORKLOADS, run};

#[test]
fn in_a_user_namespace() {
    userns::rerun("in_a_user_namespace");
}

fn tiny() -> Size {
    Size {
        name: "tiny".to_owned(),
        small_files: 420,
        big_file: 1 << 20,
        created_files: 60,
        layers: 3,
        containers: 2,
        starts: 2,
    }
}

fn options(drivers: &[&str], size: Size, root: &Path) -> Options {
    Options {
        drivers: drivers.iter().map(|name| (*name).to_owned()).collect(),
        size,
        rounds: 2,
        data_root: root.display().to_string(),
        program: "test".to_owned(),
        now: "2026-01-01T00:00:00Z".to_owned(),
        mounter: Arc::new(Mounter::new()),
    }
}

fn mounts_below(root: &Path) -> Vec<String> {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter(|line| line.contains(root.to_str().unwrap()))
        .map(str::to_owned)
        .collect()
}

fn nothing_left(root: &Path) {
    assert_eq!(mounts_below(root), [""; 0]);
    assert!(!root.join("bench/scratch").exists());
}

#[test]
fn every_line_has_figures_for_every_driver() {
    if !userns::powers() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let scratch = Scratch::open(root.path()).unwrap();
    let go_on = Arc::new(AtomicBool::new(false));
    let mut steps = Vec::new();
    let options = options(
        &["overlay2", "vfs", "fuse-overlayfs", "overlay2"],
        tiny(),
        root.path(),
    );
    let report = run(&options, &scratch, &go_on, &mut |progress| {
        steps.push(progress.clone());
    })
    .unwrap();

    assert_eq!(report.measured().count(), 3, "{:?}", report.drivers);
    for line in &report.workloads {
        for cell in &line.results {
            assert_eq!(cell.error, None, "{}: {}", cell.driver, line.title);
            let rounds = if line.unit == Unit::Bytes { 1 } else { 2 };
            assert_eq!(cell.samples.len(), rounds, "{}: {}", cell.driver, line.title);
            assert!(
                cell.samples.iter().all(|sample| *sample > 0.0)
                    && cell.ratio.is_some_and(|ratio| ratio >= 1.0)
            );
        }
        assert!(line.results.iter().any(|cell| cell.ratio == Some(1.0)));
    }
    // A copy for each layer and container is more than one of each, whatever the disk is.
    let disk = report.workloads.iter().find(|line| line.id == "disk").unwrap();
    assert!(disk.of("vfs").unwrap().samples[0] > disk.of("overlay2").unwrap().samples[0]);
    assert!(report.advice.driver.is_some(), "{:?}", report.advice);

    let last = steps.last().unwrap();
    assert_eq!((steps.len(), last.done + 1), (last.total, last.total));
    assert_eq!(last.total, 3 * (1 + 2 * WORKLOADS.len()));

    scratch.store(&report).unwrap();
    scratch.close().unwrap();
    nothing_left(root.path());
    let kept = fs::read_to_string(root.path().join(skiff_storage_bench::RESULT)).unwrap();
    assert_eq!(
        skiff_storage_bench::Report::from_json(&kept).unwrap().advice,
        report.advice
    );
    println!(
        "{}",
        skiff_storage_bench::table::render(&report, ("", ""), ("", ""))
    );
}

#[test]
fn a_stop_at_any_step_leaves_nothing() {
    if !userns::powers() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    // While the images are unpacked, right after, with a container mounted, and near the end of a round.
    for wanted in [0, 2, 12, 27] {
        let scratch = Scratch::open(root.path()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let options = options(&["overlay2", "vfs"], tiny(), root.path());
        let error = run(&options, &scratch, &stop, &mut |progress| {
            if progress.done == wanted {
                asked.store(true, Ordering::Relaxed);
            }
        })
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stopped, "{error}");
        drop(scratch);
        nothing_left(root.path());
    }
    assert!(!root.path().join(skiff_storage_bench::RESULT).exists());
}

#[test]
fn mounts_of_a_broken_off_run_are_swept() {
    if !userns::powers() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let scratch = Scratch::open(root.path()).unwrap();
    let options = options(&["overlay2"], tiny(), root.path());
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let go_on = Arc::new(AtomicBool::new(false));
        run(&options, &scratch, &go_on, &mut |progress| {
            if progress.what.starts_with("create") {
                fs::create_dir_all(scratch.path().join("copy/mnt")).unwrap();
                let bind = rustix::mount::mount_bind(
                    scratch.path().join("overlay2"),
                    scratch.path().join("copy/mnt"),
                );
                bind.unwrap();
                std::panic::resume_unwind(Box::new("killed"));
            }
        })
    }));
    assert!(stopped.is_err() && !mounts_below(root.path()).is_empty());
    drop(scratch);
    nothing_left(root.path());
}

#[test]
fn drivers_that_do_not_work_are_listed_and_unknown_ones_refused() {
    if !userns::powers() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let scratch = Scratch::open(root.path()).unwrap();
    let go_on = Arc::new(AtomicBool::new(false));
    let error = run(
        &options(&["overlay3"], tiny(), root.path()),
        &scratch,
        &go_on,
        &mut |_| (),
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("overlay3"), "{error}");

    let mut enormous = tiny();
    enormous.big_file = 1 << 60;
    let error = run(
        &options(&["vfs"], enormous, root.path()),
        &scratch,
        &go_on,
        &mut |_| (),
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
}
