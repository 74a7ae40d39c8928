//! The workloads of `skiffd bench storage` under criterion, for those who change a driver: compares with the last run, and tells
//! noise from change. `scripts/bench.sh drivers` runs it in a user namespace, as the drivers run for most people.
//!
//! `SKIFF_BENCH_DIRECTORY` says where, `SKIFF_BENCH_SIZE` (quick, normal, large) how much. Drivers that do not work here
//! are named and left out.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark talks to its user and stops at any error"
)]

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use skiff_graphdrivers::{Mounter, drivers, select};
use skiff_storage_bench::{Scratch, Size, Subject, Unit, WORKLOADS};

fn main() {
    let place = std::env::var_os("SKIFF_BENCH_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    let name = std::env::var("SKIFF_BENCH_SIZE").unwrap_or_else(|_| "quick".to_owned());
    let size =
        Size::named(&name).unwrap_or_else(|| panic!("SKIFF_BENCH_SIZE={name}: quick, normal or large"));
    let root = tempfile::Builder::new()
        .prefix("skiff-bench-")
        .tempdir_in(place)
        .unwrap();
    let scratch = Scratch::open(root.path()).unwrap();
    let subjects = subjects(&scratch, &size);

    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    for workload in WORKLOADS.iter().filter(|workload| workload.unit == Unit::Seconds) {
        let mut group = criterion.benchmark_group(workload.id);
        for subject in &subjects {
            let id = BenchmarkId::from_parameter(subject.borrow().name());
            group.bench_function(id, |bencher| {
                // The clock runs inside the workload: what it prepares and removes does not count.
                bencher.iter_custom(|times| {
                    let mut subject = subject.borrow_mut();
                    (0..times)
                        .map(|_| Duration::from_secs_f64(workload.sample(&mut subject).unwrap()))
                        .sum()
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
    drop(subjects);
    scratch.close().unwrap();
}

fn subjects(scratch: &Scratch, size: &Size) -> Vec<RefCell<Subject>> {
    let (mounter, go_on) = (Arc::new(Mounter::new()), Arc::new(AtomicBool::new(false)));
    drivers()
        .filter_map(|name| match select(&scratch.path(), Some(name), &[]) {
            Ok(selected) => {
                let mut subject = Subject::new(
                    selected.driver,
                    Arc::clone(&mounter),
                    &scratch.path(),
                    size.clone(),
                    Arc::clone(&go_on),
                );
                subject.build().unwrap();
                Some(RefCell::new(subject))
            }
            Err(error) => {
                println!("left out: {error}");
                None
            }
        })
        .collect()
}
