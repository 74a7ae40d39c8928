//! Damage of every kind is found, named with its remedy, and repaired from what is good; what is whole stays so.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use skiff_graphdrivers::{Access, LayerId, Mount, SnapshotRef};

use super::*;
use crate::migrate::{ContainerRecord, Progress};
use crate::tests::drivers::{NEW, OLD, open_driver};
use crate::tests::support::{Fixture, TestImage};
use crate::{Store, StoreOptions};

/// As a pull names what it brings.
const NAME: &str =
    "docker.io/library/x@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: &str, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
}

fn verify(fixture: &Fixture, containers: &[ContainerRecord]) -> Verification {
    let root = fixture.path().join("image");
    let mut found = verify_blobs(&root, VerifyOptions::default(), &Silent).unwrap();
    fixture.store.verify(&mut found, containers, &Silent).unwrap();
    found
}

fn container(id: &str) -> ContainerRecord {
    ContainerRecord {
        id: id.to_owned(),
        name: format!("name-of-{id}"),
        driver: "vfs".to_owned(),
    }
}

fn directory(fixture: &Fixture, layer: &LayerId) -> PathBuf {
    directory_in(&fixture.store, layer)
}

fn directory_in(store: &Store, layer: &LayerId) -> PathBuf {
    let mounts = store
        .driver()
        .mounts(SnapshotRef::Layer(layer), Access::ReadOnly)
        .unwrap();
    match mounts.as_slice() {
        [Mount::Bind { source, .. }] => source.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_store_has_no_problems() {
    let fixture = Fixture::new();
    for (image, name) in [
        (TestImage::new(&["base", "one"]), NAME),
        (TestImage::new(&["base", "two"]), "docker.io/library/y:1"),
    ] {
        image.pull(&fixture.store, name);
    }
    fixture
        .rw()
        .create("c", TestImage::new(&["base", "one"]).chain().last())
        .unwrap();
    let found = verify(&fixture, &[container("c")]);
    assert_eq!(found.problems, []);
    assert_eq!(found.notes, Vec::<String>::new());
    assert_eq!(
        (found.images, found.blobs, found.layers, found.containers),
        (2, 7, 3, 1)
    );
    assert_eq!(found.files, 3);
    // A store that nobody has used yet.
    let nothing = verify_blobs(&fixture.path().join("nowhere"), VerifyOptions::default(), &Silent).unwrap();
    assert_eq!((nothing.blobs, nothing.problems.len()), (0, 0));
}

#[test]
fn a_damaged_blob_is_taken_away_and_a_pull_brings_it_back() {
    let fixture = Fixture::new();
    let image = TestImage::new(&["base", "one"]);
    image.pull(&fixture.store, NAME);
    let blob = image.layers[1].descriptor.digest;
    let path = fixture.store.blob_path(&blob);
    let mut bytes = fs::read(&path).unwrap();
    bytes[10] ^= 1;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, bytes).unwrap();
    let mut found = verify(&fixture, &[]);
    let [problem] = &found.problems[..] else {
        panic!("{found:#?}")
    };
    assert_eq!(problem.subject, format!("blob {blob}"));
    assert!(problem.damage.contains("digest"), "{problem:?}");
    assert_eq!(problem.remedy, Remedy::Pull(vec![format!("docker pull {NAME}")]));
    fixture.store.repair(&mut found, &Silent).unwrap();
    assert!(!path.exists());
    assert_eq!(found.unrepaired().count(), 1, "only a pull makes it whole");
    // Now it is missing, which is said in the same way.
    let found = verify(&fixture, &[]);
    let [problem] = &found.problems[..] else {
        panic!("{found:#?}")
    };
    assert_eq!(
        (problem.damage.as_str(), &problem.remedy),
        ("it is missing", &pull(&[NAME.to_owned()].into()))
    );
    image.fetch(&fixture.store);
    assert_eq!(verify(&fixture, &[]).problems, []);
}

/// Damages the lower of two layers in every way; `repaired` is what stands on it meanwhile.
fn damaged_layer(fixture: &Fixture, image: &TestImage, containers: &[ContainerRecord]) {
    let chain = image.chain();
    let lower = directory(fixture, &chain[0]);
    fs::write(lower.join("base"), "BASE").unwrap();
    fs::write(lower.join("extra"), "").unwrap();
    fs::create_dir_all(lower.join("directory/deep")).unwrap();
    let mut found = verify(fixture, containers);
    let [problem] = &found.problems[..] else {
        panic!("{found:#?}")
    };
    assert_eq!(problem.subject, format!("layer {} (vfs)", chain[0]));
    assert_eq!(
        problem.damage,
        "/base has other contents; /directory does not belong here; /directory/deep does not belong here; and 1 more"
    );
    assert_eq!((&problem.remedy, problem.repaired), (&Remedy::Repair, false));
    assert_eq!(problem.images, [NAME.to_owned()].into());
    fixture.store.repair(&mut found, &Silent).unwrap();
    assert_eq!(found.unrepaired().count(), 0, "{found:#?}");
    assert_eq!(verify(fixture, containers).problems, []);
    assert_eq!(fs::read(lower.join("base")).unwrap(), b"base");
    assert!(!lower.join("extra").exists() && !lower.join("directory").exists());
}

#[test]
fn a_damaged_layer_is_repaired_below_layers_and_containers() {
    let fixture = Fixture::new();
    let image = TestImage::new(&["base", "one"]);
    image.pull(&fixture.store, NAME);
    fixture.rw().create("c", image.chain().last()).unwrap();
    damaged_layer(&fixture, &image, &[container("c")]);
}

#[test]
fn a_damaged_top_layer_is_unpacked_again() {
    let fixture = Fixture::new();
    let image = TestImage::new(&["base", "one"]);
    image.pull(&fixture.store, NAME);
    let top = directory(&fixture, &image.chain()[1]);
    fs::remove_file(top.join("one")).unwrap();
    fs::set_permissions(top.join("base"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut found = verify(&fixture, &[]);
    assert_eq!(
        found.problems[0].damage,
        "/base should have mode 0644, has 0600; /one is missing"
    );
    fixture.store.repair(&mut found, &Silent).unwrap();
    assert_eq!(verify(&fixture, &[]).problems, []);
}

#[test]
fn nobody_can_pull_what_was_made_here() {
    let fixture = Fixture::new();
    let image = TestImage::new(&["base"]);
    image.pull(&fixture.store, "docker.io/library/made:1");
    fs::remove_file(fixture.store.blob_path(&image.layers[0].descriptor.digest)).unwrap();
    let mut found = verify(&fixture, &[]);
    let [problem] = &found.problems[..] else {
        panic!("{found:#?}")
    };
    assert_eq!(problem.damage, "it is missing");
    assert_eq!(
        problem.remedy,
        Remedy::Remove("docker rmi docker.io/library/made:1".to_owned())
    );
    fixture.store.repair(&mut found, &Silent).unwrap();
    assert_eq!(found.unrepaired().count(), 1);
}

#[test]
fn containers_without_files_and_files_without_containers_are_seen() {
    let fixture = Fixture::new();
    let image = TestImage::new(&["base"]);
    image.pull(&fixture.store, NAME);
    fixture.rw().create("nobodys", image.chain().last()).unwrap();
    let elsewhere = ContainerRecord {
        driver: "overlay2".to_owned(),
        ..container("elsewhere")
    };
    let found = verify(&fixture, &[container("lost"), elsewhere]);
    let [problem] = &found.problems[..] else {
        panic!("{found:#?}")
    };
    assert_eq!(problem.subject, "container name-of-lost (lost)");
    assert_eq!(
        problem.remedy,
        Remedy::Remove("docker rm name-of-lost".to_owned())
    );
    assert!(
        found.notes[0].starts_with("1 snapshots of vfs belong to nobody"),
        "{:?}",
        found.notes
    );
    fixture.store.put_blob(&Digest::of(b"x"), b"x").unwrap();
    let notes = verify(&fixture, &[container("nobodys")]).notes;
    assert!(
        notes[0].starts_with("1 blobs (1 bytes) are needed by no image"),
        "{notes:?}"
    );
}

#[test]
fn an_image_whose_configuration_is_damaged_is_still_named() {
    let mut fixture = Fixture::new();
    let image = TestImage::new(&["base"]);
    image.pull(&fixture.store, NAME);
    let path = fixture.store.blob_path(&image.id);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, "{}").unwrap();
    fixture.reopen();
    let found = verify(&fixture, &[]);
    let problem = &found.problems[0];
    assert_eq!(problem.subject, format!("blob {}", image.id));
    assert_eq!(problem.remedy, pull(&[NAME.to_owned()].into()));
}

/// As `skiffd storage verify --repair` goes through the drivers that were ever used here.
#[test]
fn each_driver_repairs_its_own_layers_and_no_others() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("image");
    let open = |driver: &str| {
        let driver = open_driver(place.path(), driver).unwrap();
        Store::open_for_checking(&root, driver, StoreOptions::default()).unwrap()
    };
    let (both, one) = (TestImage::new(&["both"]), TestImage::new(&["one"]));
    let top = |image: &TestImage| image.chain().pop().unwrap();
    let healthy = {
        let store = open(OLD);
        both.pull(&store, NAME);
        directory_in(&store, &top(&both)).join("both")
    };
    let inode = fs::metadata(&healthy).unwrap().ino();
    let damaged: Vec<PathBuf> = {
        let store = open(NEW);
        both.pull(&store, NAME);
        one.pull(&store, "docker.io/library/one:1");
        [(&both, "both"), (&one, "one")]
            .map(|(image, file)| directory_in(&store, &top(image)).join(file))
            .into()
    };
    for order in [[NEW, OLD], [OLD, NEW]] {
        for file in &damaged {
            fs::write(file, "damaged").unwrap();
        }
        let mut found = verify_blobs(&root, VerifyOptions::default(), &Silent).unwrap();
        for driver in order {
            let store = open(driver);
            store.verify(&mut found, &[], &Silent).unwrap();
            store.repair(&mut found, &Silent).unwrap();
            let repaired = damaged.iter().all(|file| fs::read(file).unwrap() != b"damaged");
            let unrepaired = found.unrepaired().count();
            // What is said is so, after each driver.
            assert_eq!((driver, repaired), (driver, driver == NEW || order[0] == NEW));
            assert_eq!(unrepaired, 0, "{order:?}, {driver}: {found:#?}");
        }
        assert_eq!(found.problems.len(), 2);
        assert!(
            found
                .problems
                .iter()
                .all(|problem| problem.subject.ends_with("(other)"))
        );
        assert_eq!(
            fs::metadata(&healthy).unwrap().ino(),
            inode,
            "unpacked again without need"
        );
    }
}
