//! Layers of one image that are unpacked side by side.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;

use skiff_archive::{DiffOptions, DiffTree, diff_with};

use super::layered::Layered;
use super::support::{TestImage, TestLayer, layer_of};
use crate::durable::Steps;
use crate::{ChainFailed, ChainLayer, ErrorKind, GcOptions, OversizedIds, StopToken, Store, StoreOptions};

/// A store with a driver that can stack late.
fn open(root: &Path, steps: Steps, change: impl FnOnce(&mut StoreOptions)) -> Store {
    let mut options = StoreOptions {
        parallel_unpacks: 3,
        ..StoreOptions::default()
    };
    change(&mut options);
    let driver = Arc::new(Layered::open(&root.join("layered")));
    Store::open_stepping(&root.join("image"), driver, options, steps).unwrap()
}

fn chain(layers: &[TestLayer]) -> Vec<ChainLayer> {
    let of = |layer: &TestLayer| ChainLayer {
        diff_id: layer.diff_id,
        blob: Some(layer.descriptor.clone()),
    };
    layers.iter().map(of).collect()
}

/// Unpacks all layers from memory; gives the order in which they became known.
fn unpack(store: &Store, layers: &[TestLayer]) -> Result<Vec<usize>, ChainFailed> {
    let order = Mutex::new(Vec::new());
    let open = |index: usize| Ok(&layers[index].bytes[..]);
    store.unpack_chain(&chain(layers), &StopToken::default(), open, |index, _| {
        order.lock().unwrap().push(index);
    })?;
    Ok(order.into_inner().unwrap())
}

/// Nothing is left that nobody owns.
fn assert_whole(store: &Store, layers: usize) {
    assert_eq!(store.check(false).unwrap(), Vec::<String>::new());
    assert_eq!(store.holdings().layers.len(), layers);
    assert_eq!(store.driver().list().unwrap().len(), layers);
    assert!(store.holdings().unpacking.is_empty() && store.holdings().actives.is_empty());
}

#[test]
fn upper_layers_are_unpacked_before_lower_ones_and_known_after_them() {
    let directory = tempfile::tempdir().unwrap();
    let unpacked = Arc::new((Mutex::new(0), Condvar::new()));
    let hook = {
        let unpacked = Arc::clone(&unpacked);
        move |step: &'static str| {
            if step == "layer unpacked" {
                *unpacked.0.lock().unwrap() += 1;
                unpacked.1.notify_all();
            }
        }
    };
    let steps = Steps {
        hook: Some(Arc::new(hook)),
    };
    let store = open(directory.path(), steps, |_| ());
    let image = TestImage::new(&["0", "1", "2", "3", "4", "5"]);
    let order = Mutex::new(Vec::new());
    let open = |index: usize| {
        if index == 0 {
            // The bottom layer comes last of all: the two other workers unpack the rest meanwhile.
            let mut count = unpacked.0.lock().unwrap();
            while *count < image.layers.len() - 1 {
                count = unpacked.1.wait(count).unwrap();
            }
            assert_eq!(
                order.lock().unwrap().len(),
                0,
                "a layer was known before the one below"
            );
        }
        Ok(&image.layers[index].bytes[..])
    };
    let top = store
        .unpack_chain(
            &chain(&image.layers),
            &StopToken::default(),
            open,
            |index, record| {
                assert_eq!(record.size, 1);
                order.lock().unwrap().push(index);
            },
        )
        .unwrap();
    assert_eq!(top.as_ref(), image.chain().last());
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4, 5]);
    assert_whole(&store, 6);
    for (layer, below) in image.chain().iter().skip(1).zip(image.chain()) {
        let info = store
            .driver()
            .stat(skiff_graphdrivers::SnapshotRef::Layer(layer))
            .unwrap();
        assert_eq!(info.parent, Some(below));
    }
    // Once more: everything is there, nothing is opened.
    let again = store.unpack_chain(
        &chain(&image.layers),
        &StopToken::default(),
        |_| -> crate::Result<io::Empty> { panic!("opened") },
        |_, _| (),
    );
    assert_eq!(again.unwrap().as_ref(), image.chain().last());
}

#[test]
fn a_bad_layer_stops_the_others_and_leaves_nothing_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), Steps::default(), |_| ());
    let image = TestImage::new(&["0", "1", "2", "3"]);
    let bad = super::support::layer("something else");

    /// Gives nothing until it is stopped.
    struct Stalled(StopToken, Arc<Barrier>);
    impl Read for Stalled {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            let (sender, receiver) = std::sync::mpsc::channel();
            self.0.on_stop(move || sender.send(()).unwrap());
            self.1.wait();
            receiver.recv().unwrap();
            self.0.check().map(|()| 0)
        }
    }
    // The layers 0 and 2 are being read when 1 turns out to be wrong.
    let stop = StopToken::default();
    let reading = Arc::new(Barrier::new(3));
    let open = |index: usize| -> crate::Result<Box<dyn Read + Send>> {
        if index != 1 {
            return Ok(Box::new(Stalled(stop.clone(), Arc::clone(&reading))));
        }
        reading.wait();
        Ok(Box::new(&bad.bytes[..]))
    };
    let failed = store
        .unpack_chain(&chain(&image.layers), &stop, open, |_, _| ())
        .unwrap_err();
    assert_eq!((failed.index, failed.error.kind()), (1, ErrorKind::Corrupt));
    assert!(stop.is_stopped());
    assert_whole(&store, 0);
    // What was finished below a failure stays.
    let mut mixed: Vec<TestLayer> = TestImage::new(&["0", "1", "2", "3"]).layers;
    mixed[2].bytes.truncate(40);
    let failed = unpack(&store, &mixed).unwrap_err();
    assert_eq!(failed.index, 2);
    let there = store.holdings().layers.len();
    assert!(there <= 2);
    assert_whole(&store, there);
    assert_eq!(unpack(&store, &image.layers).unwrap(), [0, 1, 2, 3]);
}

#[test]
fn runs_over_the_same_layers_share_the_work_and_do_not_wait_for_ever() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let unpacked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&unpacked);
        let hook = move |step: &'static str| {
            if step == "layer unpacked" {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        };
        let steps = Steps {
            hook: Some(Arc::new(hook)),
        };
        let store = open(directory.path(), steps, |_| ());
        let one = TestImage::new(&["0", "1", "2", "3", "4", "a", "b"]);
        let two = TestImage::new(&["0", "1", "2", "3", "4", "c", "d"]);
        thread::scope(|scope| {
            for image in [&one, &two, &one, &two] {
                scope.spawn(|| assert_eq!(unpack(&store, &image.layers).unwrap().len(), 7));
            }
        });
        assert_eq!(unpacked.load(Ordering::Relaxed), 9, "a layer was unpacked twice");
        assert_whole(&store, 9);
    }
}

#[test]
fn a_chain_too_long_for_the_driver_is_refused_before_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), Steps::default(), |_| ());
    let layers: Vec<String> = (0..21).map(|n| n.to_string()).collect();
    let names: Vec<&str> = layers.iter().map(String::as_str).collect();
    let failed = unpack(&store, &TestImage::new(&names).layers).unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::Unsupported);
    assert!(
        failed
            .error
            .to_string()
            .contains("at most 20 layers, this image has 21"),
        "{}",
        failed.error
    );
    assert_whole(&store, 0);
}

#[test]
fn a_crash_in_the_middle_leaves_a_good_store() {
    let copies = tempfile::tempdir().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let taken: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let hook = {
        let (taken, from, to) = (
            Arc::clone(&taken),
            directory.path().to_owned(),
            copies.path().to_owned(),
        );
        move |step: &'static str| {
            let mut taken = taken.lock().unwrap();
            // Other workers go on meanwhile, as they do in a crash; a file that vanishes while it is copied is theirs.
            let _ = std::process::Command::new("cp")
                .arg("-a")
                .arg(&from)
                .arg(to.join(taken.len().to_string()))
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
            taken.push(step);
        }
    };
    let image = TestImage::new(&["0", "1", "2", "3"]);
    let store = open(directory.path(), Steps::default(), |_| ());
    image.fetch(&store);
    drop(store);
    let steps = Steps {
        hook: Some(Arc::new(hook)),
    };
    let store = open(directory.path(), steps, |_| ());
    unpack(&store, &image.layers).unwrap();
    let taken = taken.lock().unwrap();
    for step in [
        "snapshot prepared",
        "layer unpacked",
        "layer stacked",
        "layer committed",
    ] {
        assert!(taken.contains(&step), "{step} was missed: {taken:?}");
    }
    for (number, step) in taken.iter().enumerate() {
        let store = open(&copies.path().join(number.to_string()), Steps::default(), |_| ());
        let there = store.holdings().layers.len();
        assert_eq!(store.check(true).unwrap(), Vec::<String>::new(), "{step}");
        unpack(&store, &image.layers).unwrap();
        assert_eq!(store.holdings().layers.len(), 4, "{step}: {there} were there");
        store.gc(&GcOptions::default()).unwrap();
        assert_whole(&store, 0);
    }
}

#[test]
fn owners_that_do_not_exist_here_are_kept_beside_the_layer() {
    let directory = tempfile::tempdir().unwrap();
    let squash = |options: &mut StoreOptions| {
        // Whatever this machine has: nobody has more than this here.
        options.apply.max_id = Some(65_536);
        options.apply.oversized_ids = OversizedIds::Squash;
    };
    let file = |path: &str, uid: u64| {
        layer_of(|archive| {
            let mut header = tar::Header::new_gnu();
            header.set_uid(uid);
            header.set_gid(5);
            header.set_mode(0o644);
            header.set_size(1);
            header.set_cksum();
            archive.append_data(&mut header, path, &b"x"[..]).unwrap();
        })
    };
    let layers = vec![file("a", 718_322_462), file("b", 1000), file("c", 70_000)];
    let refusing = open(&directory.path().join("refusing"), Steps::default(), |options| {
        options.apply.max_id = Some(65_536);
    });
    // Without the third, which may fail before the first does.
    let failed = unpack(&refusing, &layers[..2]).unwrap_err();
    assert_eq!((failed.index, failed.error.kind()), (0, ErrorKind::IdRange));
    assert!(
        failed.error.to_string().starts_with(
            "failed to Lchown \"/a\" for UID 718322462, GID 5 (try increasing the number of subordinate IDs in \
             /etc/subuid and /etc/subgid)"
        ),
        "{}",
        failed.error
    );

    let mut store = open(directory.path(), Steps::default(), squash);
    unpack(&store, &layers).unwrap();
    let ids: Vec<_> = crate::chain_ids(&layers.iter().map(|l| l.diff_id).collect::<Vec<_>>())
        .into_iter()
        .map(|id| id.to_layer_id().unwrap())
        .collect();
    for _ in 0..2 {
        let squashed = store.layer(&ids[0]).unwrap().squashed.clone().unwrap();
        assert_eq!((squashed.files, squashed.uid, squashed.gid), (1, 65_536, 65_536));
        assert_eq!(store.layer(&ids[1]).unwrap().squashed, None);
        let owners = store.real_owners(&ids[2]).unwrap().unwrap();
        assert_eq!(owners.real(b"a", 65_536, 5), (718_322_462, 5));
        assert_eq!(owners.real(b"c", 65_536, 5), (70_000, 5));
        assert_eq!(owners.real(b"b", 1000, 5), (1000, 5));
        assert_eq!(
            store.real_owners(&ids[1]).unwrap().unwrap().real(b"c", 65_536, 5),
            (65_536, 5)
        );
        // A diff gives the image's own bytes again.
        let diff = Layered::open(&directory.path().join("layered")).diff(&ids[0]);
        assert_eq!(fs::metadata(diff.join("a")).unwrap().uid(), 65_536);
        let tree = DiffTree::Compare {
            directory: &diff,
            parent: None,
        };
        let mut out = Vec::new();
        let options = DiffOptions {
            owners: Some(&owners),
            ..DiffOptions::default()
        };
        diff_with(&tree, &options, &mut out).unwrap();
        let mut archive = tar::Archive::new(&out[..]);
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.header().gid().unwrap(), 5);
        let mut entry = entry;
        let uid = entry
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(Result::unwrap)
            .find(|record| record.key() == Ok("uid"));
        assert_eq!(uid.unwrap().value(), Ok("718322462"));
        drop(store);
        store = open(directory.path(), Steps::default(), squash);
    }
    let records = directory.path().join("image/layered/layers");
    assert_eq!(fs::read_dir(&records).unwrap().count(), 5);
    // A table without layer, as a crash may leave it, goes at the next start; the others with their layers.
    fs::write(records.join(format!("{}.owners", "0".repeat(64))), "").unwrap();
    drop(store);
    let store = open(directory.path(), Steps::default(), squash);
    assert_eq!(fs::read_dir(&records).unwrap().count(), 5);
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(fs::read_dir(&records).unwrap().count(), 0);
}

#[test]
fn directories_that_a_layer_does_not_describe_look_as_below() {
    let directory = tempfile::tempdir().unwrap();
    let described = layer_of(|archive| {
        for (path, mode) in [("tmp", 0o1777), ("tmp/private", 0o700)] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(mode);
            header.set_mtime(1_234_567);
            header.set_size(0);
            header.set_cksum();
            archive.append_data(&mut header, path, io::empty()).unwrap();
        }
    });
    let layers = vec![
        described,
        super::support::layer("other"),
        super::support::layer("tmp/private/new/file"),
    ];
    // With all at once, and one after the other.
    for parallel in [3, 1] {
        let root = directory.path().join(parallel.to_string());
        let store = open(&root, Steps::default(), |options| {
            options.parallel_unpacks = parallel;
        });
        unpack(&store, &layers).unwrap();
        let ids = crate::chain_ids(&layers.iter().map(|l| l.diff_id).collect::<Vec<_>>());
        let diff = Layered::open(&root.join("layered")).diff(&ids[2].to_layer_id().unwrap());
        let seen = |path: &str| {
            let metadata = fs::metadata(diff.join(path)).unwrap();
            (metadata.permissions().mode() & 0o7777, metadata.mtime())
        };
        assert_eq!(seen("tmp"), (0o1777, 1_234_567));
        assert_eq!(seen("tmp/private"), (0o700, 1_234_567));
        assert_eq!(seen("tmp/private/new").0, 0o755, "not there below");
    }
}
