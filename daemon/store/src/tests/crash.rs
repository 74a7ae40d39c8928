//! `kill -9` at any instant: a copy of the store taken after every step, and a child process that is really killed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use super::support::{Fixture, TestImage, open};
use crate::durable::Steps;
use crate::{GcOptions, RemovalPlan, Store};

/// Names the directory in which the test binary, started as a child, works until it is killed.
const CHILD: &str = "SKIFF_STORE_CRASH_CHILD";
const NAME: &str = "docker.io/library/x:1";

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// A store that is as a killed daemon left it holds its invariants, and pull, remove and collection work in it.
fn survives(root: &Path, images: &[TestImage]) {
    let store = open(root, Steps::default()).unwrap();
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    for image in images {
        image.pull(&store, NAME);
    }
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    for image in images {
        store
            .remove(&RemovalPlan {
                names: vec![],
                image: Some(image.id),
                seen: None,
            })
            .unwrap();
    }
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    assert_eq!(store.driver().list().unwrap(), [], "orphans in the driver");
    assert_eq!(store.list_blobs().unwrap(), [], "orphans among the blobs");
    assert_eq!(
        fs::read_dir(root.join("image/ingest")).unwrap().count(),
        0,
        "orphaned downloads"
    );
    assert_eq!(
        fs::read_dir(root.join("image/vfs/layers")).unwrap().count(),
        0,
        "orphaned records"
    );
}

#[test]
fn a_crash_after_any_step_leaves_a_good_store() {
    let copies = tempfile::tempdir().unwrap();
    let source: Arc<Mutex<Option<PathBuf>>> = Arc::default();
    let taken: Arc<Mutex<Vec<(String, PathBuf)>>> = Arc::default();
    let hook = {
        let (source, taken, copies) = (Arc::clone(&source), Arc::clone(&taken), copies.path().to_owned());
        move |step: &'static str| {
            let Some(from) = source.lock().unwrap().clone() else {
                return;
            };
            let mut taken = taken.lock().unwrap();
            let to = copies.join(taken.len().to_string());
            copy(&from, &to);
            taken.push((step.to_owned(), to));
        }
    };
    let fixture = Fixture::stepping(Steps {
        hook: Some(Arc::new(hook)),
    });
    *source.lock().unwrap() = Some(fixture.path().to_owned());
    let images = [TestImage::new(&["base", "one"]), TestImage::new(&["base", "two"])];
    for image in &images {
        image.pull(&fixture.store, NAME);
    }
    for image in &images {
        fixture
            .store
            .remove(&RemovalPlan {
                names: vec![],
                image: Some(image.id),
                seen: None,
            })
            .unwrap();
    }
    *source.lock().unwrap() = None;
    let taken = taken.lock().unwrap();
    let steps: std::collections::BTreeSet<&str> = taken.iter().map(|(step, _)| step.as_str()).collect();
    assert_eq!(steps.len(), 13, "steps were missed: {steps:?}");
    for (step, root) in taken.iter() {
        let caught = std::panic::catch_unwind(|| survives(root, &images));
        assert!(caught.is_ok(), "after the step {step:?} in {}", root.display());
    }
}

/// The child: pulls and removes without end, a line for each step.
#[test]
fn crash_child() {
    let Some(root) = std::env::var_os(CHILD) else {
        return;
    };
    let hook = |step: &'static str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "step {step}").and_then(|()| out.flush()).unwrap();
    };
    let store: Store = open(
        Path::new(&root),
        Steps {
            hook: Some(Arc::new(hook)),
        },
    )
    .unwrap();
    let images = [TestImage::new(&["base", "one"]), TestImage::new(&["base", "two"])];
    loop {
        for image in &images {
            image.pull(&store, NAME);
        }
        store.settle().unwrap();
        for image in &images {
            store
                .remove(&RemovalPlan {
                    names: vec![],
                    image: Some(image.id),
                    seen: None,
                })
                .unwrap();
        }
        store.gc(&GcOptions::default()).unwrap();
    }
}

#[test]
fn a_killed_process_leaves_a_good_store() {
    let directory = tempfile::tempdir().unwrap();
    let images = [TestImage::new(&["base", "one"]), TestImage::new(&["base", "two"])];
    // Primes, so that over the rounds the kill falls on ever other steps; the instant between two steps is up to the scheduler.
    for steps in [1, 3, 7, 13, 19, 29, 37, 43, 53, 67, 79, 97] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::crash::crash_child", "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let seen = output
            .lines()
            .filter(|line| line.as_ref().is_ok_and(|l| l.starts_with("step ")))
            .take(steps)
            .count();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, steps, "the child ended by itself");
        // A copy, so that the next round starts from what the kill left.
        let copies = tempfile::tempdir().unwrap();
        let root = copies.path().join("store");
        copy(directory.path(), &root);
        survives(&root, &images);
    }
}
