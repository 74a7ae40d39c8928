//! A data root with images and containers under one driver, moved to another: everything arrives, and a kill after any
//! step is followed by success, whichever way one goes on.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use rustix::fs::{FileType, Mode, XattrFlags};
use skiff_graphdrivers::{Access, LayerId, Mount, SnapshotRef};

use super::*;
use crate::rw::active_id;
use crate::tests::drivers::{NEW, OLD, open_driver};
use crate::tests::support::TestImage;
use crate::{ErrorKind, RemovalPlan, RwLayers};

const IMAGE: &str = "docker.io/library/x:1";
/// How many times each step is followed by a kill.
const EACH_STEP: usize = 2;

/// Containers' records as files, one a container, that hold the driver's name.
struct Records(PathBuf);

impl ContainerRecords for Records {
    fn list(&self) -> Result<Vec<ContainerRecord>> {
        let mut found: Vec<ContainerRecord> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let id = entry.file_name().into_string().unwrap();
                ContainerRecord {
                    name: format!("name-of-{id}"),
                    driver: fs::read_to_string(entry.path()).unwrap(),
                    id,
                }
            })
            .collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    fn set_driver(&self, id: &str, driver: &str) -> Result<()> {
        fs::write(self.0.join(id), driver).unwrap();
        Ok(())
    }
}

/// Stops after so many steps; never with `None`.
#[derive(Default)]
struct Watcher {
    seen: Mutex<Vec<String>>,
    stop_after: Option<usize>,
}

impl Progress for Watcher {
    fn begin(&self, what: &str, _bytes: u64) {
        self.seen.lock().unwrap().push(what.to_owned());
    }
    fn advance(&self, _bytes: u64) {}
    fn stop(&self) -> bool {
        self.stop_after
            .is_some_and(|limit| self.seen.lock().unwrap().len() >= limit)
    }
}

/// One data root.
struct Place {
    root: PathBuf,
    records: Records,
}

impl Place {
    fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            records: Records(root.join("containers")),
        }
    }

    /// Two images that share a layer, one layer whose blob is gone, three containers, one of them of a removed image.
    fn fill(root: &Path) -> Self {
        fs::create_dir_all(root.join("containers")).unwrap();
        let place = Self::at(root);
        let store = place.store(OLD);
        let images = images();
        for (image, name) in images
            .iter()
            .zip([IMAGE, "docker.io/library/y:1", "docker.io/library/z:1"])
        {
            image.pull(&store, name);
        }
        let rw = RwLayers::new(store.clone(), root.join("rootfs"));
        for (id, image) in ["one", "two", "three"].into_iter().zip(&images) {
            rw.create(id, image.chain().last()).unwrap();
            place.records.set_driver(id, OLD).unwrap();
            place.write_into(&store, id);
        }
        rw.create("scratch", None).unwrap();
        place.records.set_driver("scratch", OLD).unwrap();
        // Its layers stay, because a container stands on them; its blobs go.
        let removed = RemovalPlan {
            names: vec![],
            image: Some(images[2].id),
            seen: None,
        };
        store.remove(&removed).unwrap();
        fs::remove_file(store.blob_path(&images[1].layers[1].descriptor.digest)).unwrap();
        store.settle().unwrap();
        place
    }

    fn store(&self, driver: &str) -> Store {
        Store::open(&self.root.join("image"), open_driver(&self.root, driver).unwrap()).unwrap()
    }

    fn directory(store: &Store, snapshot: SnapshotRef<'_>) -> PathBuf {
        match store
            .driver()
            .mounts(snapshot, Access::ReadOnly)
            .unwrap()
            .as_slice()
        {
            [Mount::Bind { source, .. }] => source.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Everything a layer can say: new, changed and deleted files, links, attributes, modes, holes, times.
    fn write_into(&self, store: &Store, id: &str) {
        let dir = Self::directory(store, SnapshotRef::Active(&active_id(id).unwrap()));
        fs::remove_file(dir.join("base")).unwrap();
        fs::create_dir_all(dir.join("d/e")).unwrap();
        fs::write(dir.join("d/e/file"), id.repeat(1000)).unwrap();
        fs::hard_link(dir.join("d/e/file"), dir.join("link")).unwrap();
        symlink("d/nowhere", dir.join("symbolic")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.join("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o640),
            0,
        )
        .unwrap();
        fs::set_permissions(dir.join("d/e/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        rustix::fs::setxattr(dir.join("d"), "user.note", b"kept", XattrFlags::empty()).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777)).unwrap();
        let hole = fs::File::create(dir.join("hole")).unwrap();
        hole.set_len(1 << 20).unwrap();
    }

    fn migrate<T>(&self, steps: &Steps, work: impl FnOnce(&Migration<'_>) -> T) -> T {
        self.migrate_in(StoreOptions::default(), steps, work)
    }

    fn migrate_in<T>(
        &self,
        options: StoreOptions,
        steps: &Steps,
        work: impl FnOnce(&Migration<'_>) -> T,
    ) -> T {
        let open = |root: &Path, name: &str| open_driver(root, name);
        let mut migration = Migration::new(&self.root, &open, &self.records, options);
        migration.steps = steps.clone();
        work(&migration)
    }

    fn convert(&self, steps: &Steps) {
        self.migrate(steps, |migration| {
            let plan = migration.plan(NEW).unwrap();
            assert_eq!(
                migration.convert(&plan, &Watcher::default()).unwrap(),
                Outcome::Converted
            );
        });
    }

    fn confirm(&self, steps: &Steps) {
        self.migrate(steps, |migration| migration.confirm(&Watcher::default()).unwrap());
    }

    fn roll_back(&self, steps: &Steps) {
        self.migrate(steps, |migration| {
            migration.roll_back(&Watcher::default()).unwrap()
        });
    }

    /// What containers and images look like with a driver: path → everything that can be seen of it.
    fn view(&self, driver: &str) -> BTreeMap<String, String> {
        let store = self.store(driver);
        assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
        let mut view = BTreeMap::new();
        for container in self.records.list().unwrap() {
            assert_eq!(container.driver, driver);
            let active = active_id(&container.id).unwrap();
            let directory = Self::directory(&store, SnapshotRef::Active(&active));
            see(&container.id, &directory, &mut view);
        }
        for image in store.catalog().images.values() {
            let top = store.ensure_layers(image).unwrap().unwrap();
            see(
                &image.id.short(),
                &Self::directory(&store, SnapshotRef::Layer(&top)),
                &mut view,
            );
            // These layers say nothing of the root directory: it is as new as the unpacking.
            view.remove(&format!("{}/", image.id.short()));
        }
        view
    }

    /// Everything is with `driver` and nothing else is left.
    fn has_only(&self, driver: &str, expected: &BTreeMap<String, String>) {
        assert_eq!(Journal::read(&self.root.join("image")).unwrap(), None);
        assert_eq!(&self.view(driver), expected);
        let other = if driver == OLD { NEW } else { OLD };
        for gone in [self.root.join(other), self.root.join("image").join(other)] {
            assert!(!gone.exists(), "{} is left", gone.display());
        }
        let names: BTreeSet<String> = fs::read_dir(&self.root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, ["containers", "image", driver].map(str::to_owned).into());
    }
}

fn images() -> [TestImage; 3] {
    [&["base", "one"][..], &["base", "two"], &["base", "removed"]].map(TestImage::new)
}

/// What can be seen of a tree; inodes as the first of their names.
fn see(prefix: &str, root: &Path, view: &mut BTreeMap<String, String>) {
    fn walk(path: &Path, all: &mut Vec<PathBuf>) {
        all.push(path.to_owned());
        if path.symlink_metadata().unwrap().is_dir() {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
            names.sort();
            names.iter().for_each(|name| walk(name, all));
        }
    }
    let mut all = Vec::new();
    walk(root, &mut all);
    let mut first: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for path in all {
        let meta = path.symlink_metadata().unwrap();
        let short = path.strip_prefix(root).unwrap().to_owned();
        let content = if meta.is_file() {
            crate::Digest::of(&fs::read(&path).unwrap()).short()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else {
            String::new()
        };
        let mut note = [0; 64];
        let note = rustix::fs::lgetxattr(&path, "user.note", &mut note).map_or(&[][..], |n| &note[..n]);
        let size = if meta.is_dir() { 0 } else { meta.len() };
        let inode = first.entry(meta.ino()).or_insert_with(|| short.clone());
        let text = format!(
            "{:o} {}:{} {size} {} {content} {note:?} {}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            inode.display()
        );
        view.insert(format!("{prefix}/{}", short.display()), text);
    }
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

#[test]
fn everything_arrives_and_the_old_state_goes_when_it_is_confirmed() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::fill(&directory.path().join("data"));
    let before = place.view(OLD);
    assert!(
        before["one/link"].ends_with("d/e/file") && before["one/d"].contains("[107,"),
        "{before:#?}"
    );

    let steps = Steps::default();
    place.migrate(&steps, |migration| {
        let plan = migration.plan(NEW).unwrap();
        assert_eq!(plan.sources, [OLD]);
        assert_eq!(plan.losses, Vec::<String>::new());
        let ways: Vec<bool> = plan
            .layers
            .iter()
            .map(|l| matches!(l.way, Way::Blob { .. }))
            .collect();
        assert_eq!(ways.len(), 4, "{:#?}", plan.layers);
        assert_eq!(
            ways.iter().filter(|blob| **blob).count(),
            2,
            "two have no blob any more"
        );
        assert_eq!(plan.containers.len(), 4);
        assert!(plan.needed > 0 && plan.check_space().is_ok());
    });
    assert!(!place.root.join(NEW).exists(), "a plan makes nothing");

    place.convert(&steps);
    assert_eq!(place.view(NEW), before);
    assert!(Store::open(&place.root.join("image"), open_driver(&place.root, OLD).unwrap()).is_err());
    place.confirm(&steps);
    place.has_only(NEW, &before);
}

#[test]
fn a_roll_back_returns_to_the_old_state_also_after_use() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::fill(&directory.path().join("data"));
    let before = place.view(OLD);
    let steps = Steps::default();
    place.convert(&steps);
    // Somebody has tried it, written, and made a container.
    let store = place.store(NEW);
    let rw = RwLayers::new(store.clone(), directory.path().join("rootfs"));
    rw.create("late", images()[0].chain().last()).unwrap();
    place.records.set_driver("late", NEW).unwrap();
    let one = Place::directory(&store, SnapshotRef::Active(&active_id("one").unwrap()));
    fs::write(one.join("since"), "x").unwrap();
    drop((rw, store));
    place.migrate(&steps, |migration| {
        let journal = migration.journal().unwrap().unwrap();
        assert!(journal.used.is_some());
        let error = migration.roll_back(&Watcher::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("name-of-late"), "{error}");
    });
    fs::remove_file(place.root.join("containers/late")).unwrap();
    place.roll_back(&steps);
    place.has_only(OLD, &before);
}

#[test]
fn what_the_new_driver_had_before_stays_after_a_roll_back() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::fill(&directory.path().join("data"));
    let before = place.view(OLD);
    // The first image was used with the new driver, and a container was made.
    let store = place.store(NEW);
    let image = &images()[0];
    let rw = RwLayers::new(store.clone(), directory.path().join("rootfs"));
    rw.create("early", image.chain().last()).unwrap();
    place.write_into(&store, "early");
    drop((rw, store));
    place.records.set_driver("early", NEW).unwrap();
    let steps = Steps::default();
    place.convert(&steps);
    place.roll_back(&steps);
    let store = place.store(NEW);
    let layers: HashSet<LayerId> = store.holdings().layers.keys().cloned().collect();
    assert_eq!(layers, image.chain().into_iter().collect());
    assert_eq!(store.driver().list().unwrap().len(), 3);
    drop(store);
    fs::remove_file(place.root.join("containers/early")).unwrap();
    assert_eq!(place.view(OLD), before);
}

/// Interrupted after each step in turn, and then the power fails: every file of the new driver is empty after it.
#[test]
fn copies_that_a_power_failure_damaged_are_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let full = Place::fill(&directory.path().join("full"));
    let before = full.view(OLD);
    for limit in 1.. {
        let root = directory.path().join(format!("data-{limit}"));
        copy(&full.root, &root);
        let place = Place::at(&root);
        let outcome = place.migrate(&Steps::default(), |migration| {
            let watcher = Watcher {
                stop_after: Some(limit),
                ..Watcher::default()
            };
            migration
                .convert(&migration.plan(NEW).unwrap(), &watcher)
                .unwrap()
        });
        if outcome == Outcome::Converted {
            assert!(limit > 5);
            return;
        }
        empty_files(&root.join(NEW));
        let after = StoreOptions {
            boot: "the next".to_owned(),
            ..StoreOptions::default()
        };
        place.migrate_in(after, &Steps::default(), |migration| {
            let plan = migration.plan(NEW).unwrap();
            assert_eq!(
                migration.convert(&plan, &Watcher::default()).unwrap(),
                Outcome::Converted
            );
        });
        place.confirm(&Steps::default());
        place.has_only(NEW, &before);
    }
}

fn empty_files(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for path in entries.map(|entry| entry.unwrap().path()) {
        let kind = path.symlink_metadata().unwrap();
        // The driver's own marks are synced when they are made.
        let own = path.file_name().is_some_and(|name| name == "format");
        if kind.is_dir() {
            empty_files(&path);
        } else if kind.is_file() && !own {
            fs::write(&path, "").unwrap();
        }
    }
}

#[test]
fn an_interrupted_conversion_goes_on_and_meanwhile_no_daemon_starts() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::fill(&directory.path().join("data"));
    let before = place.view(OLD);
    for limit in 1.. {
        let outcome = place.migrate(&Steps::default(), |migration| {
            let plan = migration.plan(NEW).unwrap();
            let watcher = Watcher {
                stop_after: Some(limit),
                ..Watcher::default()
            };
            migration.convert(&plan, &watcher).unwrap()
        });
        if outcome == Outcome::Converted {
            assert!(limit > 1);
            break;
        }
        for driver in [OLD, NEW] {
            let error = Store::open(
                &place.root.join("image"),
                open_driver(&place.root, driver).unwrap(),
            )
            .unwrap_err();
            assert!(error.to_string().contains("--rollback"), "{error}");
        }
        place.migrate(&Steps::default(), |migration| {
            assert_eq!(
                migration.confirm(&Watcher::default()).unwrap_err().kind(),
                ErrorKind::Conflict
            );
            let mut plan = migration.plan(NEW).unwrap();
            plan.to = "third".to_owned();
            assert_eq!(
                migration.convert(&plan, &Watcher::default()).unwrap_err().kind(),
                ErrorKind::Conflict
            );
        });
    }
    assert_eq!(place.view(NEW), before);
}

#[test]
fn an_image_too_deep_for_the_new_driver_is_refused_before_anything_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::fill(&directory.path().join("data"));
    TestImage::new(&["1", "2", "3", "4"]).pull(&place.store(OLD), IMAGE);
    let error = place.migrate(&Steps::default(), |migration| migration.plan(NEW).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.to_string().contains("4 layers, other stacks at most 3"),
        "{error}"
    );
    assert!(!place.root.join(NEW).exists());
}

/// After every step of a conversion, a confirmation and a roll-back the data root is copied, as a kill would leave it;
/// each copy is then finished, and rolled back where that is possible.
#[test]
fn a_kill_after_any_step_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("data");
    let before = Place::fill(&original).view(OLD);
    let (mut finished, mut returned, mut kinds) = (0, 0, BTreeSet::new());
    for way_out in [Place::confirm as fn(&Place, &Steps), Place::roll_back] {
        let work = directory.path().join("work");
        copy(&original, &work);
        let taken: Arc<Mutex<Vec<(&'static str, PathBuf)>>> = Arc::default();
        let hook = {
            let (taken, work, copies) = (Arc::clone(&taken), work.clone(), directory.path().to_owned());
            move |step: &'static str| {
                let mut taken = taken.lock().unwrap();
                // The same step of the next layer or container shows little more, and every copy takes its time.
                if taken.iter().filter(|(known, _)| *known == step).count() == EACH_STEP {
                    return;
                }
                let to = copies.join(format!("copy-{}", taken.len()));
                copy(&work, &to);
                taken.push((step, to));
            }
        };
        let steps = Steps {
            hook: Some(Arc::new(hook)),
        };
        let place = Place::at(&work);
        place.convert(&steps);
        way_out(&place, &steps);
        let taken = std::mem::take(&mut *taken.lock().unwrap());
        for (step, root) in taken {
            kinds.insert(step);
            let place = Place::at(&root);
            let stage = Journal::read(&root.join("image"))
                .unwrap()
                .map(|journal| journal.stage);
            let second = directory.path().join("second");
            copy(&root, &second);
            // One way …
            match stage {
                None => {}
                Some(Stage::RollingBack) => place.roll_back(&Steps::default()),
                Some(Stage::Confirming) => place.confirm(&Steps::default()),
                Some(_) => {
                    place.convert(&Steps::default());
                    place.confirm(&Steps::default());
                }
            }
            let there = if root.join(NEW).exists() { NEW } else { OLD };
            place.has_only(there, &before);
            finished += 1;
            // … and the other.
            if matches!(
                stage,
                Some(Stage::Converting | Stage::Switching | Stage::Converted)
            ) {
                let place = Place::at(&second);
                place.roll_back(&Steps::default());
                place.has_only(OLD, &before);
                returned += 1;
            }
            fs::remove_dir_all(&root).unwrap();
            fs::remove_dir_all(&second).unwrap();
        }
        fs::remove_dir_all(&work).unwrap();
    }
    assert!(finished > 20 && returned > 12, "{finished} {returned}");
    for step in [
        "layer moved",
        "copy prepared",
        "copy filled",
        "writable layer moved",
        "container switched",
        "old driver removed",
        "container switched back",
        "metadata written",
        "metadata renamed",
    ] {
        assert!(kinds.contains(step), "{step}: {kinds:?}");
    }
}
