//! Every object × every action, done on a mount of the kernel's and on one of ours over the same lower layers; then the
//! upper directory each has written is mounted by the other.
//!
//! ```text
//!                      lower layers (never changed)
//!                     /                            \
//!   kernel + upper A ─┤ same answers, same tree     ├─ ours + upper B
//!                     \   A and B alike on disk     /
//!   ours   + upper A ─┤ same tree again             ├─ kernel + upper B
//! ```
//!
//! The kernel's answers are the expectation; none is written down here. Where ours differ on purpose, [`DIFFERENT`]
//! says why, and a line there that no longer applies is a failure too.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use crate::mounts::{Layers, Mounted, Scratch};
use crate::tree::{self, Seen, Tree, What};

mod actions;
mod objects;

use actions::{ACTIONS, Run, WITH_NEIGHBOURS};
use objects::{OBJECTS, OLD, Place};

/// Where ours answers otherwise than the kernel: a scenario (`object/action`, either may be `*`) and the reason. The
/// same list is explained in `docs/fuse-overlay-conformance.md`.
const DIFFERENT: &[(&str, &str)] = &[];

/// Scenarios shown in detail; the rest is only named.
const SHOWN: usize = 20;

/// The whole table.
pub(crate) fn the_kernel_and_we_agree() {
    let scratch = Scratch::in_memory();
    let ours = scratch.layers("ours");
    let kernel = ours.with_upper(&scratch.path().join("kernel"));
    build(&ours);
    // The upper directories begin alike: what the fixture puts there exists once for each.
    build_upper(&kernel);
    let before = (normal(&ours.top, false), normal(&ours.bottom, false));

    let (kernel_log, kernel_tree) = work(kernel.kernel());
    let (our_log, our_tree) = work(ours.ours());
    let mut report = Report::default();
    for (name, expected) in &kernel_log {
        report.compare(name, "answers", expected, &our_log[name]);
    }
    // The kernel shows a link to a lower special file as a link only to those who look it up anew.
    report.trees(
        "merged tree",
        &tree::without_links(&kernel_tree),
        &tree::without_links(&our_tree),
    );
    report.trees(
        "upper directory on disk",
        &normal(&kernel.upper, true),
        &normal(&ours.upper, true),
    );
    report.trees(
        "left in the work directory",
        &leftovers(&kernel.work),
        &leftovers(&ours.work),
    );

    // Looked at anew: hard links that the kernel's own mount did not show while it made them appear now.
    let expected = seen(kernel.kernel());
    report.trees(
        "the kernel's upper directory, mounted by us",
        &expected,
        &seen(kernel.ours()),
    );
    report.trees(
        "our upper directory, mounted by the kernel",
        &expected,
        &seen(ours.kernel()),
    );
    report.trees(
        "our upper directory, mounted by us",
        &expected,
        &seen(ours.ours()),
    );

    let after = (normal(&ours.top, false), normal(&ours.bottom, false));
    assert!(after == before, "a lower layer was changed");
    report.finish(kernel_log.len());
}

/// The tree of a mount, which is unmounted then.
fn seen(mount: Mounted) -> Tree {
    let tree = normal(mount.path(), false);
    mount.unmount();
    tree
}

/// What the system calls returned, by scenario.
type Log = BTreeMap<String, Vec<String>>;

/// Its name, what makes its objects, what is done to them.
type Scenario = (String, fn(&Place), fn(&mut Run));

fn scenarios() -> impl Iterator<Item = Scenario> {
    // All of them where the format was made for; a sample with root's powers, which change little.
    let step = if crate::userns::inside() { 1 } else { 5 };
    OBJECTS
        .iter()
        .flat_map(|(object, build)| {
            ACTIONS
                .iter()
                .map(move |(action, work)| (format!("{object}/{action}"), *build, *work))
        })
        .step_by(step)
}

fn place(layers: &Layers, name: &str) -> Place {
    Place {
        bottom: layers.bottom.join(name),
        top: layers.top.join(name),
        upper: layers.upper.join(name),
    }
}

fn build(layers: &Layers) {
    for (object, _) in OBJECTS {
        for layer in [&layers.bottom, &layers.top, &layers.upper] {
            objects::directory(layer, object);
        }
    }
    for (name, build, _) in scenarios() {
        let place = place(layers, &name);
        objects::directory(&layers.bottom, &name);
        if WITH_NEIGHBOURS.iter().any(|action| name.ends_with(action)) {
            objects::file(&place.bottom, "lower", "lower");
            objects::directory(&place.bottom, "lower-directory");
            objects::file(&place.bottom, "lower-directory/l", "l");
        }
        build(&place);
    }
    for layer in [&layers.bottom, &layers.top, &layers.upper] {
        objects::age(layer);
    }
}

/// The upper part of the fixture alone: the rest is built elsewhere and thrown away.
fn build_upper(layers: &Layers) {
    let scratch = Scratch::new();
    let elsewhere = Layers {
        upper: layers.upper.clone(),
        ..scratch.layers("elsewhere")
    };
    build(&elsewhere);
}

/// Runs all scenarios, each in its directory, and unmounts.
fn work(mount: Mounted) -> (Log, Tree) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let log = scenarios()
        .map(|(name, _, work)| {
            let mut run = Run::new(&mount.join(&name));
            work(&mut run);
            (name, run.log)
        })
        .collect();
    (log, seen(mount))
}

/// A tree without what may differ: times of "now", and for an upper directory the ways to write a whiteout and the
/// attributes that are the kernel's private notes.
fn normal(root: &Path, raw: bool) -> Tree {
    let mut tree = tree::read(root);
    for seen in tree.values_mut() {
        // What the fixture or an action has set is compared; the time of the test run is not.
        seen.mtime = seen.mtime.filter(|(seconds, _)| *seconds <= OLD + 200_000_000);
    }
    if raw {
        let whiteouts: Vec<_> = tree
            .iter()
            .filter(|(_, seen)| is_whiteout(seen))
            .map(|(path, _)| path.clone())
            .collect();
        for seen in tree.values_mut() {
            let linked = matches!(&seen.what, What::LinkTo(first) if whiteouts.contains(first));
            if linked || is_whiteout(seen) {
                *seen = Seen {
                    what: What::Device(0),
                    mode: 0,
                    owner: (0, 0),
                    mtime: None,
                    xattrs: BTreeMap::new(),
                };
            }
            // Which directories are opaque is seen when the other mounts them: the kernel marks some that hide nothing.
            seen.xattrs.retain(|name, _| {
                !matches!(
                    name.as_str(),
                    "user.overlay.origin"
                        | "user.overlay.impure"
                        | "user.overlay.nlink"
                        | "user.overlay.opaque"
                )
            });
        }
    }
    tree
}

fn is_whiteout(seen: &Seen) -> bool {
    seen.what == What::Device(0)
        || (seen.what == What::File(Vec::new()) && seen.xattrs.contains_key("user.overlay.whiteout"))
}

/// Files left below a work directory; an overlay keeps empty directories there, and a whiteout to link from.
fn leftovers(work: &Path) -> Tree {
    let mut tree = tree::read(work);
    tree.retain(|_, seen| seen.what != What::Directory && !is_whiteout(seen));
    tree
}

/// Collects what differs.
#[derive(Default)]
struct Report {
    text: String,
    /// How often, by scenario.
    differences: BTreeMap<String, usize>,
    used: Vec<usize>,
}

impl Report {
    fn compare<T: PartialEq + std::fmt::Debug + ?Sized>(
        &mut self,
        scenario: &str,
        what: &str,
        kernel: &T,
        ours: &T,
    ) {
        if kernel == ours {
            return;
        }
        if let Some(index) = DIFFERENT
            .iter()
            .position(|(pattern, _)| matches(pattern, scenario))
        {
            self.used.push(index);
            return;
        }
        *self.differences.entry(scenario.to_owned()).or_default() += 1;
        if self.differences.len() <= SHOWN {
            let _ = writeln!(
                self.text,
                "{scenario}: {what}\n   kernel {kernel:?}\n   ours   {ours:?}"
            );
        }
    }

    fn trees(&mut self, what: &str, kernel: &Tree, ours: &Tree) {
        let paths: std::collections::BTreeSet<_> = kernel.keys().chain(ours.keys()).collect();
        for path in paths {
            let scenario: Vec<_> = path
                .components()
                .take(2)
                .map(|c| c.as_os_str().to_string_lossy())
                .collect();
            let what = format!("{what}: {}", path.display());
            self.compare(&scenario.join("/"), &what, &kernel.get(path), &ours.get(path));
        }
    }

    fn finish(&self, scenarios: usize) {
        println!(
            "{scenarios} scenarios, {} differ unexpectedly",
            self.differences.len()
        );
        let all: Vec<_> = self.differences.keys().collect();
        assert!(all.is_empty(), "{}\ndifferent: {all:#?}", self.text);
        let unused: Vec<_> = (0..DIFFERENT.len())
            .filter(|index| !self.used.contains(index))
            .map(|index| DIFFERENT[index].0)
            .collect();
        if crate::userns::inside() {
            assert!(unused.is_empty(), "listed as different, but not: {unused:?}");
            assert!(scenarios > 2500, "the table has shrunk");
        }
    }
}

/// Whether `object/action` is meant by a pattern in which either part may be `*`.
fn matches(pattern: &str, scenario: &str) -> bool {
    let split = |text: &str| text.split_once('/').map(|(a, b)| (a.to_owned(), b.to_owned()));
    match (split(pattern), split(scenario)) {
        (Some((object, action)), Some((of, with))) => {
            (object == "*" || object == of) && (action == "*" || action == with)
        }
        _ => false,
    }
}
