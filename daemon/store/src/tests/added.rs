//! Layers that are made here.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::support::{Fixture, TestImage, layer, open};
use crate::durable::Steps;
use crate::{ChangeKind, Digest, ErrorKind, GcOptions};

const CONTAINER: &str = "c1";

fn in_layer(fixture: &Fixture, layer: &skiff_graphdrivers::LayerId, file: &str) -> io::Result<Vec<u8>> {
    use skiff_graphdrivers::{Access, Mounter, SnapshotRef};
    let mounts = fixture
        .store
        .driver()
        .mounts(SnapshotRef::Layer(layer), Access::ReadOnly)
        .unwrap();
    fs::read(Mounter::direct(&mounts).unwrap().join(file))
}

#[test]
fn a_plain_stream_is_kept_as_gzip_and_a_compressed_one_as_it_came() {
    let fixture = Fixture::new();
    let made = layer("one");
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&made.bytes[..])
        .read_to_end(&mut plain)
        .unwrap();
    let zstd_like = made.bytes.clone();
    for (bytes, as_it_came) in [(plain.clone(), false), (zstd_like, true)] {
        let added = fixture.store.add_layer(None, &bytes[..]).unwrap();
        assert_eq!(added.diff_id, Digest::of(&plain));
        assert_eq!(added.diff_id, made.diff_id);
        assert!(added.blob.media_type.ends_with("tar+gzip"));
        let kept = fs::read(fixture.store.blob_path(&added.blob.digest)).unwrap();
        assert_eq!(Digest::of(&kept), added.blob.digest);
        assert_eq!(kept.len() as u64, added.blob.size);
        assert_eq!(kept == bytes, as_it_came);
        let mut again = Vec::new();
        flate2::read::GzDecoder::new(&kept[..])
            .read_to_end(&mut again)
            .unwrap();
        assert_eq!(again, plain);
        assert_eq!(in_layer(&fixture, &added.chain, "one").unwrap(), b"one");
    }
    assert_eq!(fixture.store.check(true).unwrap(), Vec::<String>::new());
    // Nobody made an image of it.
    fixture.store.gc(&GcOptions::default()).unwrap();
    assert_eq!(fixture.store.list_blobs().unwrap(), []);
    assert_eq!(fixture.store.driver().list().unwrap(), []);
}

#[test]
fn a_layer_that_nothing_could_be_mounted_on_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let driver = Arc::new(super::layered::Layered::open(&directory.path().join("driver")));
    let store = crate::Store::open(&directory.path().join("image"), driver).unwrap();
    let max = store.driver().capabilities().max_depth.unwrap();
    let mut below: Option<crate::AddedLayer> = None;
    for n in 0..max {
        let parent = below.as_ref().map(|below| &below.chain);
        below = Some(store.add_layer(parent, &layer(&n.to_string()).bytes[..]).unwrap());
    }
    let top = below.unwrap();
    let error = store
        .add_layer(Some(&top.chain), &layer("too much").bytes[..])
        .unwrap_err();
    assert!(
        error.to_string().starts_with(&format!(
            "max depth exceeded: layered mounts at most {max} layers"
        )),
        "{error}"
    );
    assert_eq!(store.driver().list().unwrap().len(), max);
}

#[test]
fn a_stream_that_fails_leaves_nothing() {
    let fixture = Fixture::new();
    struct Breaking(io::Cursor<Vec<u8>>);
    impl Read for Breaking {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            match self.0.read(into)? {
                0 => Err(io::Error::other("the client left")),
                n => Ok(n),
            }
        }
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&layer("one").bytes[..])
        .read_to_end(&mut plain)
        .unwrap();
    for bytes in [
        plain[..600].to_vec(),
        layer("one").bytes[..30].to_vec(),
        Vec::new(),
    ] {
        let error = fixture
            .store
            .add_layer(None, Breaking(io::Cursor::new(bytes)))
            .unwrap_err();
        assert!(error.to_string().contains("the client left"), "{error}");
    }
    let error = fixture.store.add_layer(None, &plain[..600]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(fixture.store.driver().list().unwrap(), []);
    assert_eq!(fixture.store.list_blobs().unwrap(), []);
    assert_eq!(
        fs::read_dir(fixture.path().join("image/ingest")).unwrap().count(),
        0
    );
}

/// A container that changed a file, and where its files are.
fn container(fixture: &Fixture, image: &TestImage) -> PathBuf {
    image.pull(&fixture.store, "docker.io/library/x:1");
    fixture.rw().create(CONTAINER, image.chain().last()).unwrap();
    fixture.rw().mount(CONTAINER, false).unwrap()
}

fn put(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[test]
fn a_container_s_changes_are_listed_and_become_a_layer() {
    let fixture = Fixture::new();
    let image = TestImage::new(&["one", "two"]);
    let root = container(&fixture, &image);
    let top = image.chain().pop();
    assert!(
        fixture.rw().commit(CONTAINER, top.as_ref()).unwrap().is_none(),
        "nothing changed"
    );
    put(&root.join("etc/hostname"), "");
    put(&root.join("dev/console"), "");
    fs::create_dir(root.join("proc")).unwrap();
    assert!(
        fixture.rw().commit(CONTAINER, top.as_ref()).unwrap().is_none(),
        "only what was mounted on"
    );
    assert_eq!(fixture.rw().changes(CONTAINER).unwrap(), []);

    put(&root.join("etc/motd"), "welcome");
    fs::remove_file(root.join("one")).unwrap();
    put(&root.join("two"), "changed");
    let changes = fixture.rw().changes(CONTAINER).unwrap();
    let shown: Vec<_> = changes
        .iter()
        .map(|c| (String::from_utf8_lossy(&c.path).into_owned(), c.kind))
        .collect();
    assert_eq!(
        shown,
        [
            ("etc".to_owned(), ChangeKind::Added),
            ("etc/motd".to_owned(), ChangeKind::Added),
            ("one".to_owned(), ChangeKind::Deleted),
            ("two".to_owned(), ChangeKind::Modified),
        ]
    );
    let added = fixture.rw().commit(CONTAINER, top.as_ref()).unwrap().unwrap();
    assert_eq!(in_layer(&fixture, &added.chain, "etc/motd").unwrap(), b"welcome");
    assert_eq!(in_layer(&fixture, &added.chain, "two").unwrap(), b"changed");
    for gone in ["one", "etc/hostname", "dev/console", "proc"] {
        assert_eq!(
            in_layer(&fixture, &added.chain, gone).unwrap_err().kind(),
            io::ErrorKind::NotFound,
            "{gone}"
        );
    }
    // The same changes are the same layer.
    let again = fixture.rw().commit(CONTAINER, top.as_ref()).unwrap().unwrap();
    assert_eq!((&again.chain, &again.blob), (&added.chain, &added.blob));
    assert_eq!(fixture.store.check(true).unwrap(), Vec::<String>::new());
}

#[test]
fn a_whole_container_is_exported() {
    let fixture = Fixture::new();
    let image = TestImage::new(&["one", "two"]);
    let root = container(&fixture, &image);
    put(&root.join("new/file"), "x");
    let mut out = Vec::new();
    let export = fixture.rw().export(CONTAINER, image.chain().last()).unwrap();
    export.write(&mut out).unwrap();
    let mut archive = tar::Archive::new(&out[..]);
    let names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names, ["new/", "new/file", "one", "two"]);
    // What cannot be reached is said before anything is written.
    assert_eq!(
        fixture.rw().export("nobody", None).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    fs::rename(&root, root.with_extension("elsewhere")).unwrap();
    let error = fixture.rw().export(CONTAINER, None).unwrap_err();
    assert_ne!(error.to_string(), "");
}

/// A copy of the store after every step of a commit is a good store without the layer or with it.
#[test]
fn a_crash_after_any_step_of_a_commit_leaves_a_good_store() {
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
            assert!(
                Command::new("cp")
                    .arg("-a")
                    .arg(&from)
                    .arg(&to)
                    .status()
                    .unwrap()
                    .success()
            );
            taken.push((step.to_owned(), to));
        }
    };
    let fixture = Fixture::stepping(Steps {
        hook: Some(Arc::new(hook)),
    });
    let image = TestImage::new(&["one"]);
    let root = container(&fixture, &image);
    put(&root.join("two"), "2");
    *source.lock().unwrap() = Some(fixture.path().to_owned());
    drop(fixture.rw().commit(CONTAINER, image.chain().last()).unwrap());
    *source.lock().unwrap() = None;
    let taken = taken.lock().unwrap();
    let steps: Vec<&str> = taken.iter().map(|(step, _)| step.as_str()).collect();
    for step in [
        "new layer unpacked",
        "staged blob written",
        "staged blob renamed",
        "new layer committed",
    ] {
        assert!(steps.contains(&step), "{step} was missed: {steps:?}");
    }
    for (step, root) in taken.iter() {
        let store = open(root, Steps::default()).unwrap();
        assert_eq!(store.check(true).unwrap(), Vec::<String>::new(), "after {step}");
        assert_eq!(
            fs::read_dir(root.join("image/ingest")).unwrap().count(),
            0,
            "after {step}"
        );
        let report = store.gc(&GcOptions {
            containers: [CONTAINER.to_owned()].into(),
            ..GcOptions::default()
        });
        report.unwrap();
        assert_eq!(
            store.driver().list().unwrap().len(),
            2,
            "after {step}: the image's layer and the container"
        );
        assert_eq!(
            store.list_blobs().unwrap().len(),
            3,
            "after {step}: configuration, manifest, layer"
        );
        assert_eq!(store.check(true).unwrap(), Vec::<String>::new(), "after {step}");
    }
}
