//! The store as a whole, on a temporary directory with the vfs driver: life of an image, sharing, collection, crashes.

mod added;
mod chain;
mod crash;
mod damage;
pub(crate) mod drivers;
mod layered;
mod names;
pub(crate) mod support;

use std::collections::HashSet;
use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::*;
use support::{Fixture, TestImage};

fn names(image: &TestImage, store: &Store) -> Vec<String> {
    store
        .catalog()
        .names_of(&image.id)
        .map(|(name, _)| name.to_string())
        .collect()
}

fn key(text: &str) -> ReferenceKey {
    text.parse().unwrap()
}

#[test]
fn an_image_lives_through_a_restart_and_leaves_nothing_when_removed() {
    let mut fixture = Fixture::new();
    let image = TestImage::new(&["a", "b"]);
    image.pull(&fixture.store, "docker.io/library/x:1");
    assert_eq!(fixture.store.check(true).unwrap(), Vec::<String>::new());
    fixture.reopen();
    let store = &fixture.store;
    assert_eq!(names(&image, store), ["docker.io/library/x:1"]);
    let loaded = store.catalog().images[&image.id].clone();
    assert_eq!(loaded.chain, image.chain());
    // Bytes with a digest come back as they were.
    assert_eq!(store.read_blob(&image.manifest).unwrap(), image.manifest_bytes);
    assert_eq!(fixture.read_top(&image, "b"), b"b");
    assert_eq!(fixture.read_top(&image, "a"), b"a");

    let removed = store
        .remove(&RemovalPlan {
            names: vec![],
            image: Some(image.id),
            seen: None,
        })
        .unwrap();
    let top_first: Vec<_> = image.chain().into_iter().rev().collect();
    assert_eq!(removed.layers, top_first);
    assert!(store.catalog().images.is_empty() && store.catalog().references.is_empty());
    assert_eq!(store.list_blobs().unwrap(), []);
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(store.driver().list().unwrap(), []);
}

#[test]
fn layers_and_blobs_shared_by_two_images_stay_until_the_second_goes() {
    let fixture = Fixture::new();
    let (one, two) = (TestImage::new(&["base", "one"]), TestImage::new(&["base", "two"]));
    one.pull(&fixture.store, "docker.io/library/one:1");
    two.pull(&fixture.store, "docker.io/library/two:1");
    let removed = fixture
        .store
        .remove(&RemovalPlan {
            names: vec![],
            image: Some(one.id),
            seen: None,
        })
        .unwrap();
    assert_eq!(removed.layers, &one.chain()[1..]);
    assert_eq!(fixture.store.check(true).unwrap(), Vec::<String>::new());
    let removed = fixture
        .store
        .remove(&RemovalPlan {
            names: vec![],
            image: Some(two.id),
            seen: None,
        })
        .unwrap();
    assert_eq!(removed.layers.len(), 2);
    assert_eq!(fixture.store.list_blobs().unwrap(), []);
}

#[test]
fn a_container_keeps_its_layers_and_nothing_else() {
    let fixture = Fixture::new();
    let image = TestImage::new(&["a", "b"]);
    image.pull(&fixture.store, "docker.io/library/x:1");
    let rw = fixture.rw();
    rw.create("c1", image.chain().last()).unwrap();
    assert_eq!(rw.create("c1", None).unwrap_err().kind(), ErrorKind::Conflict);
    let path = rw.mount("c1", false).unwrap();
    fs::write(path.join("new"), b"12345").unwrap();
    rw.unmount("c1").unwrap();
    let removed = fixture
        .store
        .remove(&RemovalPlan {
            names: vec![],
            image: Some(image.id),
            seen: None,
        })
        .unwrap();
    assert_eq!(removed.layers, [], "the container stands on them");
    let only_c1 = GcOptions {
        containers: HashSet::from(["c1".to_owned()]),
        grace: Duration::ZERO,
    };
    fixture.store.gc(&only_c1).unwrap();
    assert_eq!(
        fs::read(rw.mount("c1", false).unwrap().join("new")).unwrap(),
        b"12345"
    );
    assert_eq!(rw.list().unwrap().len(), 1);
    rw.unmount("c1").unwrap();
    rw.remove("c1").unwrap();
    rw.remove("c1").unwrap();
    fixture.store.gc(&GcOptions::default()).unwrap();
    assert_eq!(fixture.store.driver().list().unwrap(), []);
}

#[test]
fn the_collector_respects_leases_grace_and_running_writers() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let image = TestImage::new(&["a"]);
    let lease = store.lease();
    assert_eq!(lease.blob(&image.id).unwrap(), None);
    assert!(lease.layer(&image.chain()[0]).is_none());
    image.fetch(store);
    image.unpack(store);
    let half = Digest::of(b"12345");
    let mut ingest = store.ingest(&half, 5).unwrap();
    ingest.write(b"123").unwrap();
    let report = store.gc(&GcOptions::default()).unwrap();
    assert_eq!((report.layers.len(), report.partials), (0, 0));
    assert!(store.blob_size(&image.id).unwrap().is_some(), "leased");
    assert!(store.blob_size(&image.manifest).unwrap().is_none(), "not leased");

    drop(lease);
    let young = GcOptions {
        grace: Duration::from_secs(600),
        ..GcOptions::default()
    };
    assert_eq!(store.gc(&young).unwrap().blobs, 0);
    assert!(store.layer(&image.chain()[0]).is_some());
    drop(ingest);
    let report = store.gc(&GcOptions::default()).unwrap();
    assert_eq!((report.layers.len(), report.partials), (1, 1));
    assert_eq!(store.list_blobs().unwrap(), []);
}

#[test]
fn a_blob_is_resumed_and_followed_and_verified() {
    let fixture = Fixture::new();
    let content: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let digest = Digest::of(&content);
    let mut ingest = fixture.store.ingest(&digest, content.len() as u64).unwrap();
    ingest.write(&content[..1000]).unwrap();
    let mut follower = ingest.follower().reader(&StopToken::default());
    drop(ingest);
    let failed = follower.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(failed.to_string().contains("interrupted"), "{failed}");

    let mut ingest = fixture.store.ingest(&digest, content.len() as u64).unwrap();
    assert_eq!(ingest.offset(), 1000);
    let mut follower = ingest.follower().reader(&StopToken::default());
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        follower.read_to_end(&mut all).map(|_| all)
    });
    for piece in content[1000..].chunks(7777) {
        ingest.write(piece).unwrap();
    }
    ingest.commit().unwrap();
    assert_eq!(reader.join().unwrap().unwrap(), content);
    assert_eq!(
        fixture.store.blob_size(&digest).unwrap(),
        Some(content.len() as u64)
    );
}

#[test]
fn a_reader_that_waits_can_be_stopped() {
    let fixture = Fixture::new();
    let ingest = fixture.store.ingest(&Digest::of(b"abc"), 3).unwrap();
    let stop = StopToken::default();
    let mut reader = ingest.follower().reader(&stop);
    let waiting = thread::spawn(move || reader.read(&mut [0; 8]));
    stop.stop();
    assert_eq!(waiting.join().unwrap().unwrap_err().to_string(), "cancelled");
}

#[test]
fn wrong_bytes_never_get_a_name() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let digest = Digest::of(b"right");
    let mut wrong = store.ingest(&digest, 5).unwrap();
    wrong.write(b"wrong").unwrap();
    assert_eq!(wrong.commit().unwrap_err().kind(), ErrorKind::Corrupt);
    let mut long = store.ingest(&digest, 5).unwrap();
    assert_eq!(long.offset(), 0, "worthless bytes are not resumed");
    assert_eq!(long.write(b"right!").unwrap_err().kind(), ErrorKind::Corrupt);
    drop(long);
    let mut short = store.ingest(&digest, 5).unwrap();
    short.write(b"rig").unwrap();
    assert!(short.commit().unwrap_err().to_string().contains("truncated"));
    let mut rest = store.ingest(&digest, 5).unwrap();
    assert_eq!(rest.offset(), 3, "a short blob is resumed");
    rest.write(b"ht").unwrap();
    rest.commit().unwrap();
    assert_eq!(store.read_blob(&digest).unwrap(), b"right");
    // A blob that rotted on the disk is noticed when it is used.
    fs::write(store.blob_path(&digest), b"r0tte").unwrap();
    assert_eq!(store.read_blob(&digest).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(store.check(true).unwrap().len(), 1);
}

#[test]
fn a_damaged_layer_leaves_nothing_and_the_next_try_works() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let image = TestImage::new(&["a"]);
    let blob = &image.layers[0];
    let new = NewLayer {
        parent: None,
        diff_id: blob.diff_id,
        blob: &blob.descriptor,
    };
    let good = blob.bytes.clone();
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let other = TestImage::new(&["other"]).layers[0].bytes.clone();
    for (bad, kind) in [
        (good[..good.len() / 2].to_vec(), ErrorKind::Corrupt),
        (flipped, ErrorKind::Corrupt),
        (other, ErrorKind::Corrupt),
        (Vec::new(), ErrorKind::Corrupt),
    ] {
        let error = store.unpack(&new, || Ok(bad.as_slice())).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(store.driver().list().unwrap(), [], "{error}");
        assert_eq!(store.purge().unwrap(), 0, "its space is free already");
        assert!(store.layer(&new.chain_id().unwrap()).is_none());
    }
    let wrong_id = NewLayer {
        diff_id: Digest::of(b"?"),
        ..new.clone()
    };
    let error = store.unpack(&wrong_id, || Ok(good.as_slice())).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("layers from manifest don't match image configuration"),
        "{error}"
    );
    store.unpack(&new, || Ok(good.as_slice())).unwrap();
}

#[test]
fn one_layer_is_unpacked_once_however_many_want_it() {
    let fixture = Fixture::new();
    let image = TestImage::new(&["a"]);
    let opened = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            let (store, blob, opened) = (&fixture.store, &image.layers[0], &opened);
            scope.spawn(move || {
                let new = NewLayer {
                    parent: None,
                    diff_id: blob.diff_id,
                    blob: &blob.descriptor,
                };
                let open = || {
                    opened.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    Ok(blob.bytes.as_slice())
                };
                assert_eq!(store.unpack(&new, open).unwrap().size, 1);
            });
        }
    });
    assert_eq!(opened.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn an_incomplete_image_cannot_be_registered() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let image = TestImage::new(&["a"]);
    let name = "docker.io/library/x:1";
    let missing = |store: &Store| store.register(&image.registration(name)).unwrap_err().kind();
    assert_eq!(missing(store), ErrorKind::NotFound);
    image.fetch(store);
    assert_eq!(missing(store), ErrorKind::NotFound, "not unpacked");
    assert!(store.catalog().images.is_empty());
    image.unpack(store);
    assert!(store.register(&image.registration(name)).unwrap().1, "new");
    assert!(!store.register(&image.registration(name)).unwrap().1, "known");
}

#[test]
fn after_a_change_of_driver_images_are_unpacked_from_their_blobs() {
    let mut fixture = Fixture::new();
    let image = TestImage::new(&["a", "b"]);
    image.pull(&fixture.store, "docker.io/library/x:1");
    // What another driver starts with: no layers and no records.
    fixture.forget_layers();
    let loaded = fixture.store.catalog().images[&image.id].clone();
    assert!(fixture.store.layer(&image.chain()[0]).is_none());
    assert_eq!(fixture.store.check(true).unwrap(), Vec::<String>::new());
    let rw = fixture.rw();
    rw.create("c1", image.chain().last()).unwrap();
    assert_eq!(fs::read(rw.mount("c1", false).unwrap().join("a")).unwrap(), b"a");
    rw.unmount("c1").unwrap();
    assert_eq!(
        fixture.store.ensure_layers(&loaded).unwrap(),
        image.chain().last().cloned()
    );
}

#[test]
fn a_second_daemon_is_kept_out() {
    let fixture = Fixture::new();
    let error = Store::open(fixture.store.root(), Arc::clone(fixture.store.driver())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[test]
fn a_damaged_or_newer_catalogue_is_refused_not_replaced() {
    let mut fixture = Fixture::new();
    let path = fixture.store.root().join("repositories.json");
    for (text, kind) in [
        ("{", ErrorKind::Corrupt),
        (
            r#"{"version":2,"images":{},"references":{}}"#,
            ErrorKind::Unsupported,
        ),
    ] {
        fs::write(&path, text).unwrap();
        assert_eq!(fixture.try_reopen().unwrap_err().kind(), kind);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn an_image_without_its_configuration_keeps_its_names_until_it_is_pulled_again() {
    let mut fixture = Fixture::new();
    let (lost, other) = (TestImage::new(&["lost"]), TestImage::new(&["other"]));
    let name = |tag: &str| format!("docker.io/library/{tag}");
    let key = |tag: &str| name(tag).parse::<ReferenceKey>().unwrap();
    lost.pull(&fixture.store, &name("lost:1"));
    for tag in ["lost:2", "lost:3", "lost:4"] {
        fixture.store.tag(&lost.id, key(tag)).unwrap();
    }
    let blob = fixture.store.root().join("blobs/sha256").join(lost.id.hex());
    fs::remove_file(&blob).unwrap();
    fixture.reopen();
    let shown = |fixture: &Fixture| {
        let catalog = fixture.store.catalog();
        let names = catalog.references.iter();
        names
            .map(|(name, reference)| (name.to_string(), reference.image))
            .collect::<Vec<_>>()
    };
    assert_eq!(shown(&fixture), []);
    // Changes of the catalogue, a collection and restarts leave the names alone; one is given to another image, and one
    // is taken away.
    other.pull(&fixture.store, &name("lost:2"));
    assert!(fixture.store.forget_damaged(&key("lost:4")).unwrap());
    assert!(!fixture.store.forget_damaged(&key("lost:4")).unwrap());
    fixture.store.gc(&GcOptions::default()).unwrap();
    for digest in [lost.manifest, lost.layers[0].descriptor.digest] {
        assert!(fixture.store.blob_size(&digest).unwrap().is_some());
    }
    fixture.reopen();
    assert_eq!(shown(&fixture), [(name("lost:2"), other.id)]);
    lost.pull(&fixture.store, &name("lost:1"));
    let expected = [
        (name("lost:1"), lost.id),
        (name("lost:2"), other.id),
        (name("lost:3"), lost.id),
    ];
    assert_eq!(shown(&fixture), expected);
    fixture.reopen();
    assert_eq!(shown(&fixture), expected);
    // With its last name the damaged image goes, too.
    fs::remove_file(&blob).unwrap();
    fixture.reopen();
    for tag in ["lost:1", "lost:3"] {
        assert!(fixture.store.forget_damaged(&key(tag)).unwrap());
    }
    fixture.store.gc(&GcOptions::default()).unwrap();
    assert_eq!(fixture.store.blob_size(&lost.manifest).unwrap(), None);
    assert!(
        !fs::read_to_string(fixture.store.root().join("repositories.json"))
            .unwrap()
            .contains(&lost.id.hex())
    );
}

#[test]
fn a_full_disk_says_so_and_gives_the_space_back() {
    // /dev/full answers every write as a full disk does.
    let fixture = Fixture::new();
    let digest = Digest::of(b"abc");
    let partial = fixture.store.partial_path(&digest);
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let mut ingest = fixture.store.ingest(&digest, 3).unwrap();
    let error = ingest.write(b"abc").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(
        error.to_string().ends_with(".partial: no space left on device"),
        "{error}"
    );
    drop(ingest);
    assert!(partial.symlink_metadata().is_err());
    fixture.store.put_blob(&digest, b"abc").unwrap();
}

#[test]
fn names_move_and_the_old_image_stays_nameless() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let (old, new) = (TestImage::new(&["old"]), TestImage::new(&["new"]));
    old.pull(store, "docker.io/library/x:1");
    new.pull(store, "docker.io/library/x:1");
    assert_eq!(names(&old, store), Vec::<String>::new());
    assert_eq!(names(&new, store), ["docker.io/library/x:1"]);
    store.tag(&old.id, key("localhost:5000/a/b:2")).unwrap();
    assert_eq!(names(&old, store), ["localhost:5000/a/b:2"]);
    assert_eq!(
        store.tag(&Digest::of(b"?"), key("x:1")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let by_digest = key(&format!("x@{}", old.manifest));
    assert_eq!(
        store.tag(&old.id, by_digest).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    assert_eq!(store.catalog().by_prefix(&old.id.hex()[..10]).len(), 1);
    assert_eq!(store.catalog().by_prefix("").len(), 0);
    let mut readable = Vec::new();
    File::open(store.root().join("repositories.json"))
        .unwrap()
        .read_to_end(&mut readable)
        .unwrap();
    assert!(
        String::from_utf8(readable)
            .unwrap()
            .contains("localhost:5000/a/b:2")
    );
}

#[test]
fn a_power_failure_costs_only_what_had_not_reached_the_disk() {
    let mut fixture = Fixture::new();
    let (safe, lost) = (
        TestImage::new(&["base", "safe"]),
        TestImage::new(&["base", "lost"]),
    );
    safe.pull(&fixture.store, "docker.io/library/safe:1");
    fixture.store.settle().unwrap();
    lost.pull(&fixture.store, "docker.io/library/lost:1");
    fixture.reopen();
    assert!(
        fixture.store.layer(&lost.chain()[1]).is_some(),
        "a mere kill loses nothing"
    );
    fixture.reboot();
    let store = &fixture.store;
    assert!(store.layer(&safe.chain()[1]).is_some());
    assert!(store.layer(&lost.chain()[1]).is_none());
    assert_eq!(store.driver().list().unwrap().len(), 2);
    let image = store.catalog().images[&lost.id].clone();
    store.ensure_layers(&image).unwrap();
    assert_eq!(fixture.read_top(&lost, "lost"), b"lost");
}

#[test]
fn what_a_power_failure_damaged_below_containers_is_unpacked_again_before_they_start() {
    let mut fixture = Fixture::new();
    let (image, gone) = (TestImage::new(&["base", "lost"]), TestImage::new(&["gone"]));
    for (image, container) in [(&image, "one"), (&gone, "two")] {
        image.pull(&fixture.store, &format!("docker.io/library/{container}:1"));
        fixture.rw().create(container, image.chain().last()).unwrap();
        // What the disk may hold then: names without contents.
        let name = if container == "one" { "lost" } else { "gone" };
        fs::write(fixture.top_directory(image).join(name), "").unwrap();
    }
    let forgotten = RemovalPlan {
        names: vec![key("docker.io/library/two:1")],
        image: Some(gone.id),
        seen: None,
    };
    fixture.store.remove(&forgotten).unwrap();
    fixture.reboot();
    assert!(fixture.store.layer(&image.chain()[1]).is_none());
    let rw = fixture.rw();
    rw.mount("one", false).unwrap();
    assert_eq!(fixture.read_top(&image, "lost"), b"lost");
    assert!(fixture.store.layer(&image.chain()[1]).is_some());
    // Nobody has the layer of this one any more; what the container wrote is still its own.
    rw.mount("two", false).unwrap();
    for container in ["one", "two"] {
        rw.unmount(container).unwrap();
        rw.remove(container).unwrap();
    }
    fixture.store.gc(&GcOptions::default()).unwrap();
    assert_eq!(fixture.store.check(true).unwrap(), Vec::<String>::new());
}
