//! Kill -9 at any instant: a child process works on the driver without end and says what it did; the parent kills it
//! after a line of its choice, opens the driver and looks.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use skiff_graphdrivers::{Access, ErrorKind, SnapshotKey, SnapshotRef, select};

use super::{Fixture, commit, fill, key, layer, list, names, prepare, see};

const ROOT: &str = "SKIFF_TEST_CRASH_ROOT";
const DRIVER: &str = "SKIFF_TEST_CRASH_DRIVER";
const FILES: usize = 12;

/// The child: runs only when it was started by the scenario below.
pub(crate) fn child() {
    let (Some(root), Some(name)) = (std::env::var_os(ROOT), std::env::var(DRIVER).ok()) else {
        return;
    };
    let driver = select(Path::new(&root), Some(&name), &[]).unwrap().driver;
    let say = |text: &str| {
        // libtest captures println; the parent reads the pipe.
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    };
    say("ready");
    let paths: Vec<String> = (0..FILES).map(|n| format!("d{}/f{n}", n % 3)).collect();
    let files: Vec<(&str, &str)> = paths.iter().map(|path| (&path[..], "content")).collect();
    let mut parent = None;
    for round in 0.. {
        let name = format!("a{round}");
        prepare(&*driver, &name, parent.as_ref());
        say("prepared");
        fill(&*driver, &name, &files);
        say("filled");
        driver.commit(&key(&name), &layer(round)).unwrap();
        say("committed");
        if round % 4 == 3 {
            driver.remove(SnapshotRef::Layer(&layer(round))).unwrap();
            say("removed");
            driver.purge().unwrap();
            say("purged");
        } else if round % 20 < 10 {
            parent = Some(layer(round));
        } else {
            parent = None;
        }
    }
}

pub(crate) fn a_kill_at_any_instant_leaves_a_sound_state(f: &Fixture) {
    for (round, lines) in [1, 2, 3, 4, 5, 7, 9, 13, 14, 15, 16, 17, 18, 19, 31, 47]
        .into_iter()
        .enumerate()
    {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash_child", "--nocapture", "--test-threads=1"])
            .env(ROOT, f.data_root().join(round.to_string()))
            .env(DRIVER, f.name)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let reader = BufReader::new(child.stdout.take().unwrap());
        let said = |line: &String| {
            ["ready", "prepared", "filled", "committed", "removed", "purged"]
                .iter()
                .any(|word| line.ends_with(word))
        };
        let heard: Vec<String> = reader
            .lines()
            .map_while(Result::ok)
            .filter(said)
            .take(lines)
            .collect();
        // Spread the instants between two lines; the work done here is different each round.
        std::hint::black_box((0..round * 40_000).fold(0u64, |a, b| a ^ b as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(heard.len(), lines);
        check(f, &f.data_root().join(round.to_string()));
    }
}

/// Opens the driver and looks at everything.
fn check(f: &Fixture, root: &Path) {
    let driver = select(root, Some(f.name), &[]).unwrap().driver;
    let found = list(&*driver);
    let known: HashSet<_> = found.iter().map(|(key, _)| key.clone()).collect();
    for (snapshot, parent) in &found {
        if let Some(parent) = parent {
            assert!(
                known.contains(&SnapshotKey::Layer(parent.clone())),
                "{snapshot:?} lacks its parent"
            );
        }
        if let SnapshotKey::Layer(id) = snapshot {
            // A layer is whole.
            let seen = see(f, &*driver, SnapshotRef::Layer(id), Access::ReadOnly, |p| {
                names(p).iter().map(|d| names(&p.join(d)).len()).sum::<usize>()
            });
            assert_eq!(seen, FILES);
        }
    }
    // Work can go on at once: the next commit, and the removal of what was left.
    let parent = found.iter().find_map(|(key, _)| match key {
        SnapshotKey::Layer(id) => Some(id.clone()),
        SnapshotKey::Active(_) => None,
    });
    commit(&*driver, &layer(9999), parent.as_ref(), &[("x", "x")]);
    let live = HashSet::from([SnapshotKey::Layer(layer(9999))]);
    let report = driver.cleanup(&live).unwrap();
    assert!(report.removed.iter().all(|key| known.contains(key)));
    assert!(
        list(&*driver)
            .iter()
            .all(|(key, _)| !matches!(key, SnapshotKey::Active(_)))
    );
    for place in ["staging", "trash"] {
        assert!(names(&root.join(f.name).join(place)).is_empty());
    }
    let missing = driver.remove(SnapshotRef::Active(&key("a0"))).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let _ = fs::remove_dir(root);
}
