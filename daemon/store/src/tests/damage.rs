//! What cannot be read is kept until it can be read again, and what is brought again replaces what is damaged.

use std::fs;
use std::path::PathBuf;

use super::support::{Fixture, TestImage, TestLayer, layer};
use super::{key, names};
use crate::{Digest, ErrorKind, GcOptions, RemovalPlan, SeenNames, Store};

const LOST: &str = "docker.io/library/lost:1";
const OTHER: &str = "docker.io/library/other:1";

/// Makes a blob's file unreadable as this blob, its size unchanged.
fn damage(store: &Store, digest: &Digest) -> PathBuf {
    let path = store.blob_path(digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] ^= 0xff;
    fs::write(&path, bytes).unwrap();
    path
}

fn remove(store: &Store, image: &TestImage) {
    let plan = RemovalPlan {
        names: vec![],
        image: Some(image.id),
        seen: None,
    };
    store.remove(&plan).unwrap();
}

fn is_here(store: &Store, digest: &Digest) -> bool {
    store.blob_size(digest).unwrap().is_some()
}

fn manifests(store: &Store, image: &TestImage) -> Vec<Digest> {
    let catalog = store.catalog();
    let manifests = catalog.images[&image.id].manifests.iter();
    manifests.map(|manifest| manifest.digest).collect()
}

#[test]
fn a_manifest_that_cannot_be_read_is_not_forgotten_and_nor_are_its_layers() {
    let mut fixture = Fixture::new();
    let (lost, other) = (
        TestImage::new(&["base", "lost"]),
        TestImage::new(&["base", "other"]),
    );
    lost.pull(&fixture.store, LOST);
    other.pull(&fixture.store, OTHER);
    // As one that loses its layers when its manifest is away.
    fixture.forget_layers();
    let path = damage(&fixture.store, &lost.manifest);
    fixture.reopen();
    let store = &fixture.store;
    assert_eq!(manifests(store, &lost), []);
    assert_eq!(
        store.check(false).unwrap().len(),
        3,
        "the manifest, and two layers"
    );
    // Neither a collection, nor a removal, nor a change of the catalogue takes anything of it.
    store.put_blob(&Digest::of(b"nobody's"), b"nobody's").unwrap();
    remove(store, &other);
    let report = store.gc(&GcOptions::default()).unwrap();
    assert_eq!(report.blobs, 0);
    for blob in lost.layers.iter().map(|layer| layer.descriptor.digest) {
        assert!(is_here(store, &blob));
    }
    store.tag(&lost.id, key("docker.io/library/lost:2")).unwrap();
    assert_eq!(
        store.catalog().references[&key("docker.io/library/lost:2")].target,
        Some(lost.manifest)
    );
    // The disk was only away.
    fs::write(path, &lost.manifest_bytes).unwrap();
    fixture.reopen();
    let store = &fixture.store;
    assert_eq!(manifests(store, &lost), [lost.manifest]);
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    assert_eq!(store.gc(&GcOptions::default()).unwrap().blobs, 4);
    for gone in [other.id, other.manifest, other.layers[1].descriptor.digest] {
        assert!(!is_here(store, &gone));
    }
    let image = store.catalog().images[&lost.id].clone();
    store.ensure_layers(&image).unwrap();
    assert_eq!(fixture.read_top(&lost, "lost"), b"lost");
}

#[test]
fn an_image_of_which_nothing_can_be_read_keeps_its_layers_until_it_is_pulled_again() {
    let mut fixture = Fixture::new();
    let lost = TestImage::new(&["base", "lost"]);
    lost.pull(&fixture.store, LOST);
    let registered = fs::read_to_string(fixture.store.root().join("repositories.json")).unwrap();
    for blob in [&lost.id, &lost.manifest] {
        damage(&fixture.store, blob);
    }
    fixture.reopen();
    let store = &fixture.store;
    assert!(store.catalog().images.is_empty());
    store.put_blob(&Digest::of(b"nobody's"), b"nobody's").unwrap();
    assert_eq!(store.gc(&GcOptions::default()).unwrap().blobs, 0);
    for blob in lost.layers.iter().map(|layer| layer.descriptor.digest) {
        assert!(is_here(store, &blob));
    }
    lost.pull(store, LOST);
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    assert_eq!(names(&lost, store), [LOST]);
    let when = |text: &str| {
        let document: serde_json::Value = serde_json::from_str(text).unwrap();
        document["images"][lost.id.to_string()]["registered"].clone()
    };
    let now = fs::read_to_string(store.root().join("repositories.json")).unwrap();
    assert_eq!(when(&now), when(&registered));
    assert_eq!(store.gc(&GcOptions::default()).unwrap().blobs, 1);
}

#[test]
fn a_damaged_image_keeps_its_other_manifests_when_it_is_pulled_again() {
    let mut fixture = Fixture::new();
    let image = TestImage::new(&["base"]);
    image.pull(&fixture.store, LOST);
    let second = TestImage {
        manifest_bytes: [&image.manifest_bytes[..], b" "].concat(),
        ..TestImage::new(&["base"])
    };
    let second = TestImage {
        manifest: Digest::of(&second.manifest_bytes),
        ..second
    };
    second.pull(&fixture.store, OTHER);
    damage(&fixture.store, &image.id);
    fixture.reopen();
    image.pull(&fixture.store, LOST);
    let mut expected = [image.manifest, second.manifest];
    expected.sort();
    let mut found = manifests(&fixture.store, &image);
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_damaged_image_can_be_removed_by_its_id_whether_it_has_names_or_not() {
    let mut fixture = Fixture::new();
    let (named, nameless, good) = (
        TestImage::new(&["named"]),
        TestImage::new(&["nameless"]),
        TestImage::new(&["good"]),
    );
    named.pull(&fixture.store, LOST);
    named.pull(&fixture.store, "docker.io/library/lost:2");
    nameless.pull(&fixture.store, OTHER);
    good.pull(&fixture.store, OTHER);
    for image in [&named, &nameless] {
        damage(&fixture.store, &image.id);
        damage(&fixture.store, &image.manifest);
    }
    fixture.reopen();
    let store = &fixture.store;
    for unknown in ["", "sha256:", "x", &good.id.to_string()] {
        assert_eq!(
            store.forget_damaged_image(unknown, true).unwrap(),
            None,
            "{unknown}"
        );
    }
    let gone = store.forget_damaged_image(&nameless.id.hex(), false).unwrap();
    assert_eq!(gone, Some((nameless.id, vec![])));
    let prefix = &named.id.to_string()[..15];
    let error = store.forget_damaged_image(prefix, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let names = vec![key(LOST), key("docker.io/library/lost:2")];
    assert_eq!(
        store.forget_damaged_image(prefix, true).unwrap(),
        Some((named.id, names))
    );
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(store.list_blobs().unwrap().len(), 3, "the good image's");
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
}

/// The same layer, compressed differently.
fn recompressed(layer: TestLayer) -> TestLayer {
    // An empty member more: gzip readers join them.
    let empty = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let bytes = [layer.bytes, empty.finish().unwrap()].concat();
    let mut descriptor = layer.descriptor;
    descriptor.digest = Digest::of(&bytes);
    descriptor.size = bytes.len() as u64;
    TestLayer {
        bytes,
        descriptor,
        ..layer
    }
}

#[test]
fn the_blob_a_needed_layer_came_from_is_needed() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let one = TestImage::new(&["base", "one"]);
    let two = TestImage::of(vec![recompressed(layer("base")), layer("two")]);
    assert_eq!(one.chain()[0], two.chain()[0]);
    one.pull(store, LOST);
    two.pull(store, OTHER);
    let source = one.layers[0].descriptor.digest;
    assert_ne!(source, two.layers[0].descriptor.digest);
    remove(store, &one);
    store.gc(&GcOptions::default()).unwrap();
    assert!(is_here(store, &source));
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    // It goes with the layer, without a collection.
    remove(store, &two);
    assert_eq!(store.list_blobs().unwrap(), []);
}

#[test]
fn a_document_that_is_brought_again_replaces_a_damaged_one() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let lease = store.lease();
    let digest = Digest::of(b"right");
    let put = || store.put_blob(&digest, b"right").unwrap();
    let stage = || {
        let mut staging = store.stage().unwrap();
        staging.push(b"right").unwrap();
        assert_eq!(staging.finish(&lease).unwrap(), (digest, 5));
    };
    for bring in [&put as &dyn Fn(), &stage] {
        bring();
        assert_eq!(store.read_blob(&digest).unwrap(), b"right");
        damage(store, &digest);
        assert!(!store.has_good_blob(&digest, 5).unwrap());
        bring();
        assert_eq!(store.read_blob(&digest).unwrap(), b"right");
        assert!(store.has_good_blob(&digest, 5).unwrap());
    }
    // What is right is not replaced by what is wrong.
    let error = store.put_blob(&digest, b"wrong").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(store.read_blob(&digest).unwrap(), b"right");
}

#[test]
fn bytes_that_did_not_get_to_the_disk_are_not_taken_for_good_by_the_next_try() {
    // Whatever is written to it, its fsync fails.
    let fixture = Fixture::new();
    let store = &fixture.store;
    let digest = Digest::of(b"abc");
    let partial = store.partial_path(&digest);
    std::os::unix::fs::symlink("/dev/null", &partial).unwrap();
    let mut ingest = store.ingest(&digest, 3).unwrap();
    ingest.write(b"abc").unwrap();
    let error = ingest.commit().unwrap_err();
    assert!(error.to_string().starts_with("fsync "), "{error}");
    assert!(partial.symlink_metadata().is_err());
    assert!(!is_here(store, &digest));
    store.put_blob(&digest, b"abc").unwrap();
    assert_eq!(store.read_blob(&digest).unwrap(), b"abc");
}

#[test]
fn a_removal_that_was_decided_on_other_names_does_nothing() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let image = TestImage::new(&["a"]);
    image.pull(store, "docker.io/library/a:1");
    let plan = RemovalPlan {
        names: vec![key("docker.io/library/a:1")],
        image: Some(image.id),
        seen: Some(SeenNames {
            image: image.id,
            names: vec![key("docker.io/library/a:1")],
        }),
    };
    // Another pull of the same image.
    image.pull(store, "docker.io/library/b:1");
    assert_eq!(store.remove(&plan).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(
        names(&image, store),
        ["docker.io/library/a:1", "docker.io/library/b:1"]
    );
    let untag = RemovalPlan {
        names: vec![key("docker.io/library/b:1")],
        image: None,
        seen: None,
    };
    store.remove(&untag).unwrap();
    store.remove(&plan).unwrap();
    assert_eq!(store.list_blobs().unwrap(), []);
    // The image is gone, and so are its names.
    assert_eq!(store.remove(&plan).unwrap_err().kind(), ErrorKind::Conflict);
}
