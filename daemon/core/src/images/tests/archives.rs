//! Save, load and import: every layout that there is, in every order, and archives that lie.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};
use skiff_store::StopToken;
use tar::{Builder, EntryType, Header};

use super::super::docker_archive::Staged;
use super::super::layout;
use super::*;
use crate::pipe::ByteStream;

/// Members of an archive, in order.
#[derive(Clone, Default)]
struct Archive(Vec<(EntryType, String, Vec<u8>)>);

impl Archive {
    fn file(mut self, name: &str, data: impl AsRef<[u8]>) -> Self {
        self.0
            .push((EntryType::Regular, name.to_owned(), data.as_ref().to_vec()));
        self
    }

    fn json(self, name: &str, value: &Value) -> Self {
        self.file(name, value.to_string())
    }

    fn link(mut self, kind: EntryType, name: &str, target: &str) -> Self {
        self.0.push((kind, name.to_owned(), target.as_bytes().to_vec()));
        self
    }

    fn reversed(mut self) -> Self {
        self.0.reverse();
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        for (kind, name, data) in &self.0 {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            // As it is: the builder would refuse `..`.
            let field = &mut header.as_old_mut().name;
            field[..name.len()].copy_from_slice(name.as_bytes());
            if *kind == EntryType::Regular {
                header.set_size(data.len() as u64);
                header.set_cksum();
                tar.append(&header, &data[..]).unwrap();
            } else {
                header.set_size(0);
                header.as_old_mut().linkname[..data.len()].copy_from_slice(data);
                header.set_cksum();
                tar.append(&header, &b""[..]).unwrap();
            }
        }
        tar.into_inner().unwrap()
    }
}

/// An image's parts: configuration and layers, plain and compressed.
struct Parts {
    config: Vec<u8>,
    layers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Parts {
    fn new(files: &[&str]) -> Self {
        let layers: Vec<_> = files.iter().map(|file| layer(file)).collect();
        let diff_ids: Vec<_> = layers.iter().map(|(plain, _)| Digest::of(plain)).collect();
        let config = json!({"os": "linux", "architecture": "amd64", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        Self {
            config: config.to_string().into_bytes(),
            layers,
        }
    }

    fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    /// As docker wrote it before 25: a directory a layer, plain tars.
    fn old_docker_archive(&self, tags: &Value) -> Archive {
        let mut archive = Archive::default();
        let config = format!("{}.json", self.id().hex());
        let mut paths = Vec::new();
        for (number, (plain, _)) in self.layers.iter().enumerate() {
            let path = format!("layer{number}/layer.tar");
            archive = archive
                .file(&format!("layer{number}/VERSION"), "1.0")
                .json(&format!("layer{number}/json"), &json!({"id": number}))
                .file(&path, plain);
            paths.push(path);
        }
        archive
            .file(&config, &self.config)
            .json(
                "manifest.json",
                &json!([{"Config": config, "RepoTags": tags, "Layers": paths}]),
            )
            .json("repositories", &json!({}))
    }

    /// The manifest of an OCI layout.
    fn manifest(&self) -> Value {
        let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
        json!({"schemaVersion": 2, "mediaType": layout::OCI_MANIFEST, "annotations": {"made": "by hand"},
            "config": descriptor(layout::OCI_CONFIG, &self.config),
            "layers": self.layers.iter().map(|(_, gz)| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", gz)).collect::<Vec<_>>()})
    }

    fn oci_layout(&self, annotations: &Value) -> Archive {
        self.oci_layout_of(&self.manifest(), annotations)
    }

    fn oci_layout_of(&self, manifest: &Value, annotations: &Value) -> Archive {
        let manifest = manifest.to_string();
        let index = json!({"schemaVersion": 2, "manifests": [entry(manifest.as_bytes(), annotations)]});
        let archive = self
            .layers
            .iter()
            .fold(Archive::default(), |archive, (_, gz)| blob(archive, gz));
        let archive = blob(blob(archive, &self.config), manifest.as_bytes());
        archive
            .file("oci-layout", layout::LAYOUT_TEXT)
            .json("index.json", &index)
    }
}

fn blob(archive: Archive, bytes: &[u8]) -> Archive {
    archive.file(&layout::blob_path(&Digest::of(bytes)), bytes)
}

fn entry(manifest: &[u8], annotations: &Value) -> Value {
    json!({"mediaType": layout::OCI_MANIFEST, "digest": Digest::of(manifest), "size": manifest.len(), "annotations": annotations})
}

fn stream(bytes: &[u8]) -> ByteStream {
    let (sender, stream) = mpsc::channel(1);
    // Odd pieces, as a network gives them.
    let pieces: Vec<Bytes> = bytes.chunks(1777).map(Bytes::copy_from_slice).collect();
    tokio::spawn(async move {
        for piece in pieces {
            if sender.send(Ok(piece)).await.is_err() {
                return;
            }
        }
    });
    stream
}

impl Fixture {
    async fn load(&self, bytes: &[u8]) -> Result<Vec<String>> {
        self.load_with(LoadRequest::default(), stream(bytes)).await
    }

    async fn load_with(&self, request: LoadRequest, body: ByteStream) -> Result<Vec<String>> {
        let (sender, receiver) = mpsc::channel(16);
        let load = self.images.load(request, body, sender);
        let (done, lines) = tokio::join!(load, lines(receiver));
        done.map(|()| lines)
    }

    async fn save(&self, names: &[&str]) -> Result<Vec<u8>> {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        let mut stream = self.images.save(names, None).await?;
        let mut all = Vec::new();
        while let Some(piece) = stream.recv().await {
            all.extend_from_slice(&piece.unwrap());
        }
        Ok(all)
    }

    /// Nothing is left of what was loaded in vain.
    fn assert_empty(&self) {
        self.assert_clean(0);
        let left = |path: &str| {
            std::fs::read_dir(self.directory.path().join(path))
                .unwrap()
                .count()
        };
        assert_eq!(left("image/blobs/sha256"), 0, "blobs");
        assert_eq!(left("image/ingest"), 0, "staged files");
        let snapshots = self.images.store().driver().list().unwrap();
        assert_eq!(snapshots, [], "layers that were unpacked before it went wrong");
    }
}

/// An archive's members.
fn members(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(bytes);
    archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
            (entry.path().unwrap().display().to_string(), data)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_every_layout_and_order_are_loaded() {
    let parts = Parts::new(&["a", "b"]);
    let id = parts.id();
    let old = parts.old_docker_archive(&json!(["x:1", "localhost:5000/y:2"]));
    let named = json!({layout::FULL_NAME: "docker.io/library/x:1", layout::SHORT_NAME: "1"});
    for archive in [
        old.clone(),
        old.reversed(),
        parts.oci_layout(&named),
        parts.oci_layout(&named).reversed(),
    ] {
        for bytes in [archive.bytes(), gzip(&archive.bytes())] {
            let fixture = Fixture::new();
            let told = fixture.load(&bytes).await.unwrap();
            assert_eq!(told[0], "Loaded image: x:1");
            let found = fixture.images.find("x:1").unwrap();
            assert_eq!(found.id, id.to_string());
            assert!(found.digests.is_empty());
            fixture.assert_clean(1);
        }
    }
    let fixture = Fixture::new();
    let nameless = parts.old_docker_archive(&Value::Null).bytes();
    assert_eq!(
        fixture.load(&nameless).await.unwrap(),
        [format!("Loaded image ID: {id}")]
    );
    let short = parts.oci_layout(&json!({layout::SHORT_NAME: "latest"})).bytes();
    assert_eq!(
        fixture.load(&short).await.unwrap(),
        [format!("Loaded image ID: {id}")]
    );
    fixture.assert_clean(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_may_be_links_and_members_may_come_twice() {
    let parts = Parts::new(&["a", "b", "a"]);
    let (a, b) = (&parts.layers[0].0, &parts.layers[1].0);
    let config = format!("{}.json", parts.id().hex());
    let archive = Archive::default()
        .link(EntryType::Symlink, "two/layer.tar", "../one/layer.tar")
        .link(EntryType::Link, "three/layer.tar", "./two/layer.tar")
        .file("one/layer.tar", b"replaced below")
        .file("one/layer.tar", a)
        .file("./b.tar", b)
        .file(&config, &parts.config)
        .json(
            "manifest.json",
            &json!([{"Config": config, "RepoTags": ["x:1"], "Layers": ["one/layer.tar", "b.tar", "three/layer.tar"]}]),
        );
    let fixture = Fixture::new();
    fixture.load(&archive.bytes()).await.unwrap();
    fixture.assert_clean(1);
    // Links in a circle, and out of the archive, lead nowhere.
    for target in ["three/layer.tar", "../../etc/passwd", "/etc/passwd"] {
        let archive = archive.clone().link(EntryType::Symlink, "two/layer.tar", target);
        let archive = if target.starts_with("three") {
            archive.link(EntryType::Symlink, "three/layer.tar", "../two/layer.tar")
        } else {
            archive
        };
        let fixture = Fixture::new();
        let error = fixture.load(&archive.bytes()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "open three/layer.tar: no such file or directory",
            "{target}"
        );
        fixture.assert_empty();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_lie_or_break_off_leave_nothing() {
    let parts = Parts::new(&["a", "b"]);
    let good = parts.old_docker_archive(&json!(["x:1"]));
    let layout = parts.oci_layout(&json!({layout::FULL_NAME: "docker.io/library/x:1"}));
    let without = |archive: &Archive, name: &str| {
        Archive(
            archive
                .0
                .iter()
                .filter(|(_, member, _)| member != name)
                .cloned()
                .collect(),
        )
    };
    let replaced = |archive: &Archive, name: &str, data: &[u8]| without(archive, name).file(name, data);
    let top = layout::blob_path(&Digest::of(&parts.layers[1].1));
    let large = vec![7_u8; 200_000];
    let claimed = format!("blobs/sha256/{}", "0".repeat(64));
    let config = format!("{}.json", parts.id().hex());
    let manifest = |value: Value| replaced(&good, "manifest.json", value.to_string().as_bytes()).bytes();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("no tar", b"garbage".to_vec(), "unexpected EOF"),
        (
            "nothing",
            Vec::new(),
            "open manifest.json: no such file or directory",
        ),
        (
            "no documents",
            without(&good, "manifest.json").bytes(),
            "the archive has no manifest.json",
        ),
        ("cut", good.bytes()[..3000].to_vec(), "unexpected EOF"),
        (
            "a missing layer",
            without(&good, "layer1/layer.tar").bytes(),
            "open layer1/layer.tar: no such file",
        ),
        (
            "a missing configuration",
            without(&good, &config).bytes(),
            "no such file or directory",
        ),
        (
            "a missing blob",
            without(&layout, &top).bytes(),
            "no such file or directory",
        ),
        (
            "a small blob that lies",
            replaced(&layout, &top, b"other").bytes(),
            "has the digest",
        ),
        (
            "a large blob that lies",
            layout.clone().file(&claimed, &large).bytes(),
            "has the digest",
        ),
        (
            "another layer",
            replaced(&good, "layer1/layer.tar", &parts.layers[0].0).bytes(),
            "layers from manifest don't match image configuration",
        ),
        (
            "a layer that is none",
            replaced(&good, "layer1/layer.tar", &large).bytes(),
            "tar: ",
        ),
        ("null", manifest(json!(null)), "manifest cannot be null"),
        (
            "no JSON",
            replaced(&good, "manifest.json", b"{").bytes(),
            "manifest.json cannot be read",
        ),
        (
            "too few layers",
            manifest(json!([{"Config": config, "RepoTags": ["x:1"], "Layers": []}])),
            "layers length mismatch: expected 0, got 2",
        ),
        (
            "a bad tag",
            manifest(
                json!([{"Config": config, "RepoTags": ["UPPER:1"], "Layers": ["layer0/layer.tar", "layer1/layer.tar"]}]),
            ),
            "must be lowercase",
        ),
        (
            "a path out",
            manifest(json!([{"Config": "../../etc/passwd", "RepoTags": [], "Layers": []}])),
            "open ../../etc/passwd",
        ),
        (
            "a huge document",
            good.clone().file("index.json", vec![b' '; (8 << 20) + 1]).bytes(),
            "index.json is too large",
        ),
    ];
    for (what, bytes, expected) in cases {
        let fixture = Fixture::new();
        let error = fixture.load(&bytes).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{what}: {error}");
        fixture.assert_empty();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_lies_about_sizes_is_refused() {
    let parts = Parts::new(&["a", "b"]);
    let named = json!({layout::FULL_NAME: "docker.io/library/x:1"});
    let docker = json!([{"Config": layout::blob_path(&parts.id()), "RepoTags": ["x:1"],
        "Layers": parts.layers.iter().map(|(_, gz)| layout::blob_path(&Digest::of(gz))).collect::<Vec<_>>()}]);
    let config = parts.config.len();
    let top = parts.layers[1].1.len();
    for (field, digest, size) in [
        ("/config/size", parts.id(), config),
        ("/layers/1/size", Digest::of(&parts.layers[1].1), top),
    ] {
        let mut manifest = parts.manifest();
        *manifest.pointer_mut(field).unwrap() = json!(size + 1);
        let archive = parts.oci_layout_of(&manifest, &named);
        for archive in [archive.clone(), archive.json("manifest.json", &docker)] {
            let fixture = Fixture::new();
            let error = fixture.load(&archive.bytes()).await.unwrap_err();
            let path = layout::blob_path(&digest);
            let expected = format!("{path} has {size} bytes, its manifest says {}", size + 1);
            assert_eq!(error.to_string(), expected);
            fixture.assert_empty();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_heals_what_is_damaged() {
    let parts = Parts::new(&["a"]);
    let named = json!({layout::FULL_NAME: "docker.io/library/x:1"});
    let archive = parts.oci_layout(&named).bytes();
    let fixture = Fixture::new();
    fixture.load(&archive).await.unwrap();
    let store = fixture.images.store();
    for blob in [parts.id(), Digest::of(parts.manifest().to_string().as_bytes())] {
        damage(store, &blob);
        assert!(store.read_blob(&blob).is_err());
        fixture.load(&archive).await.unwrap();
        fixture.assert_clean(1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_members_are_refused_before_they_fill_the_memory() {
    let names = (0..40_000).map(|n| format!("{n}/{}", "x".repeat(80)));
    let archive = names.fold(Archive::default(), |archive, name| archive.file(&name, b"y"));
    let fixture = Fixture::new();
    let mut bytes = archive.bytes();
    // The same members again and again cost again and again.
    let end = bytes.len() - 1024;
    bytes.truncate(end);
    let bytes = bytes.repeat(4);
    let error = fixture.load(&bytes).await.unwrap_err();
    assert!(error.to_string().contains("too many members"), "{error}");
    fixture.assert_empty();
}

/// A manifest that claims so many layers; `number` makes it another one.
fn swollen(layers: usize, number: usize) -> Vec<u8> {
    let blob = json!({"mediaType": "", "digest": Digest::of(b"no such layer"), "size": number});
    let layers = vec![blob.to_string(); layers].join(",");
    format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[{layers}]}}"#).into_bytes()
}

/// `archive` with `index.json` and the manifests in it.
fn indexed(archive: Archive, manifests: &[Vec<u8>]) -> Archive {
    let entries: Vec<_> = manifests.iter().map(|bytes| entry(bytes, &json!({}))).collect();
    let archive = manifests
        .iter()
        .fold(archive, |archive, bytes| blob(archive, bytes));
    archive.json("index.json", &json!({"schemaVersion": 2, "manifests": entries}))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_manifests_claim_does_not_fill_the_memory() {
    let parts = Parts::new(&["a"]);
    let good = parts.old_docker_archive(&json!(["x:1"]));
    // The same one again and again is read once.
    let fixture = Fixture::new();
    let same = vec![swollen(20_000, 1); 4];
    let told = fixture.load(&indexed(good.clone(), &same).bytes()).await.unwrap();
    assert_eq!(told, ["Loaded image: x:1"]);
    fixture.assert_clean(1);

    let fixture = Fixture::new();
    let different: Vec<_> = (0..4).map(|number| swollen(20_000, number)).collect();
    let error = fixture
        .load(&indexed(good, &different).bytes())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the archive's images have more than 65536 layers together"
    );
    fixture.assert_empty();
    // The same layers in Docker's own document.
    let config = format!("{}.json", parts.id().hex());
    let many = json!([{"Config": config, "RepoTags": [], "Layers": vec!["a"; 70_000]}]);
    let archive = Archive::default()
        .file(&config, &parts.config)
        .json("manifest.json", &many);
    let error = fixture.load(&archive.bytes()).await.unwrap_err();
    assert!(error.to_string().contains("more than 65536 layers"), "{error}");
    // Few, but of any length.
    let mut manifest = parts.manifest();
    manifest["config"]["mediaType"] = json!("x".repeat(256));
    let manifest = manifest.to_string().into_bytes();
    let archive = indexed(parts.oci_layout(&json!({})), &[manifest]);
    let error = fixture.load(&archive.bytes()).await.unwrap_err();
    assert!(
        error.to_string().contains("a media type of more than 255 bytes"),
        "{error}"
    );
    fixture.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_several_entries_is_one_image() {
    let parts = Parts::new(&["a"]);
    let named = |name: &str| json!({layout::FULL_NAME: format!("docker.io/library/{name}")});
    let manifest = parts.manifest().to_string();
    let of = |annotations: &Value| entry(manifest.as_bytes(), annotations);
    // An index around it is another name for the same.
    let inner = json!({"schemaVersion": 2, "manifests": [of(&json!({}))]}).to_string();
    let entries = [
        of(&json!({})),
        of(&named("x:1")),
        entry(inner.as_bytes(), &named("y:2")),
        of(&named("z:3")),
        entry(inner.as_bytes(), &json!({})),
    ];
    let archive = blob(parts.oci_layout(&json!({})), inner.as_bytes())
        .json("index.json", &json!({"schemaVersion": 2, "manifests": entries}));
    let fixture = Fixture::new();
    let told = fixture.load(&archive.bytes()).await.unwrap();
    assert_eq!(
        told,
        ["Loaded image: x:1", "Loaded image: y:2", "Loaded image: z:3"]
    );
    fixture.assert_clean(1);
}

#[test]
fn documents_are_not_read_for_a_client_that_has_left() {
    let parts = Parts::new(&["a"]);
    for archive in [
        parts.old_docker_archive(&json!(["x:1"])),
        parts.oci_layout(&json!({})),
    ] {
        let fixture = Fixture::new();
        let mut staged = Staged::new(fixture.images.store().clone());
        skiff_archive::read_bundle(&archive.bytes()[..], |member, data| staged.take(member, data)).unwrap();
        let stop = StopToken::default();
        assert_eq!(staged.images(None, &stop).unwrap().len(), 1);
        stop.stop();
        let error = staged.images(None, &stop).unwrap_err();
        assert!(error.to_string().contains("cancelled"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_leaves_nothing() {
    let parts = Parts::new(&["a", "b"]);
    let bytes = parts
        .old_docker_archive(&json!(["x:1"]))
        .file("large", vec![7; 300_000])
        .bytes();
    // Its connection breaks.
    let fixture = Fixture::new();
    let (sender, body) = mpsc::channel(64);
    for piece in bytes[..bytes.len() / 2].chunks(10_000) {
        sender.send(Ok(Bytes::copy_from_slice(piece))).await.unwrap();
    }
    sender
        .send(Err(std::io::Error::other("connection reset")))
        .await
        .unwrap();
    let error = fixture.load_with(LoadRequest::default(), body).await.unwrap_err();
    assert!(error.to_string().contains("connection reset"), "{error}");
    fixture.assert_empty();

    // It does not wait for the answer: the load is dropped while it reads.
    let (sender, body) = mpsc::channel(1);
    let (progress, receiver) = mpsc::channel(1);
    sender
        .send(Ok(Bytes::copy_from_slice(&bytes[..20_000])))
        .await
        .unwrap();
    let images = fixture.images.clone();
    let load = tokio::spawn(async move { images.load(LoadRequest::default(), body, progress).await });
    // Taken by the reader, which then waits for more.
    sender.send(Ok(Bytes::from_static(b""))).await.unwrap();
    drop(receiver);
    assert!(load.await.unwrap().is_err());
    drop(sender);
    let ingest = fixture.directory.path().join("image/ingest");
    while std::fs::read_dir(&ingest).unwrap().count() > 0 {
        tokio::task::yield_now().await;
    }
    fixture.assert_clean(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn save_load_save_gives_the_same_bytes_and_keeps_digests() {
    let fixture = Fixture::new();
    let pulled = fixture.registry.add("busybox", &["a", "b"]);
    fixture.pull("busybox").await.unwrap();
    fixture.registry.add("other", &["a", "c"]);
    fixture.pull("other").await.unwrap();
    fixture.images.tag("busybox", "second", "name").unwrap();
    let names = ["busybox:latest", "second:name", "other"];
    let first = fixture.save(&names).await.unwrap();
    assert!(
        first == fixture.save(&["other", "second", "busybox"]).await.unwrap(),
        "the order of the names does not matter"
    );
    let inside = members(&first);
    for blob in pulled.blobs.iter().chain([&pulled.id, &pulled.manifest]) {
        let path = layout::blob_path(&digest(blob));
        assert_eq!(
            Digest::of(&inside[&path]),
            digest(blob),
            "the very bytes that were pulled"
        );
    }
    let repositories: Value = serde_json::from_slice(&inside["repositories"]).unwrap();
    assert_eq!(repositories["second"]["name"], digest(&pulled.blobs[1]).hex());

    let elsewhere = Fixture::new();
    let mut told = elsewhere.load(&first).await.unwrap();
    told.sort();
    assert_eq!(
        told,
        [
            "Loaded image: busybox:latest",
            "Loaded image: other:latest",
            "Loaded image: second:name"
        ]
    );
    elsewhere.assert_clean(2);
    assert!(first == elsewhere.save(&names).await.unwrap(), "byte-identical");
    // Loaded again, nothing is unpacked and nothing changes.
    elsewhere.load(&first).await.unwrap();
    elsewhere.assert_clean(2);
    // By id there are no names.
    let by_id = members(&elsewhere.save(&[&pulled.id]).await.unwrap());
    let manifest: Value = serde_json::from_slice(&by_id["manifest.json"]).unwrap();
    assert_eq!(manifest[0]["RepoTags"], Value::Null);
    assert!(!by_id.contains_key("repositories"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_saved_says_so_before_anything_is_sent() {
    let fixture = Fixture::new();
    fixture.registry.add("busybox", &["a"]);
    fixture.pull("busybox").await.unwrap();
    for (name, expected) in [
        ("nosuch", "No such image: nosuch"),
        ("busybox:nosuch", "reference does not exist"),
        ("UPPER", "must be lowercase"),
    ] {
        let error = fixture.save(&["busybox", name]).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
    let other = Platform::new("linux", "s390x", "");
    let error = fixture
        .images
        .save(vec!["busybox".to_owned()], Some(other))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let layer = fixture
        .images
        .store()
        .catalog()
        .images
        .values()
        .next()
        .unwrap()
        .manifests[0]
        .layers[0]
        .digest;
    std::fs::remove_file(fixture.images.store().blob_path(&layer)).unwrap();
    let error = fixture.save(&["busybox"]).await.unwrap_err();
    assert!(error.to_string().contains("is not kept here any more"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_the_image_for_the_platform_is_taken() {
    let images = [("amd64", "a"), ("arm64", "b")].map(|(architecture, file)| {
        let mut parts = Parts::new(&[file]);
        let mut config: Value = serde_json::from_slice(&parts.config).unwrap();
        config["architecture"] = json!(architecture);
        parts.config = config.to_string().into_bytes();
        parts
    });
    let mut archive = Archive::default();
    let mut entries = Vec::new();
    for parts in &images {
        let manifest = parts.manifest().to_string();
        let config: Value = serde_json::from_slice(&parts.config).unwrap();
        let mut entry = entry(manifest.as_bytes(), &json!({}));
        entry["platform"] = json!({"os": "linux", "architecture": config["architecture"]});
        entries.push(entry);
        archive = blob(
            blob(blob(archive, manifest.as_bytes()), &parts.config),
            &parts.layers[0].1,
        );
    }
    let attestation = json!({"schemaVersion": 2, "layers": [], "config": {}}).to_string();
    let mut unknown = entry(attestation.as_bytes(), &json!({}));
    unknown["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    entries.push(unknown);
    let inner = json!({"schemaVersion": 2, "mediaType": layout::OCI_INDEX, "manifests": entries}).to_string();
    let outer = json!({"schemaVersion": 2, "manifests": [entry(inner.as_bytes(), &json!({layout::FULL_NAME: "docker.io/library/x:1"}))]});
    let bytes = blob(blob(archive, inner.as_bytes()), attestation.as_bytes())
        .json("index.json", &outer)
        .bytes();
    for (platform, expected) in [("linux/amd64", &images[0]), ("linux/arm64", &images[1])] {
        let fixture = Fixture::new();
        let request = LoadRequest {
            quiet: true,
            platform: Some(platform.parse().unwrap()),
        };
        assert_eq!(
            fixture.load_with(request, stream(&bytes)).await.unwrap(),
            ["Loaded image: x:1"]
        );
        assert_eq!(fixture.images.find("x:1").unwrap().id, expected.id().to_string());
        fixture.assert_clean(1);
    }
    let fixture = Fixture::new();
    let request = LoadRequest {
        quiet: true,
        platform: Some("linux/s390x".parse().unwrap()),
    };
    assert!(
        fixture
            .load_with(request, stream(&bytes))
            .await
            .unwrap()
            .is_empty()
    );
    fixture.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_moves_to_the_loaded_image_and_the_client_is_told() {
    let fixture = Fixture::new();
    let [one, two] = ["a", "b"].map(|file| Parts::new(&[file]));
    fixture
        .load(&one.old_docker_archive(&json!(["x:1"])).bytes())
        .await
        .unwrap();
    let told = fixture
        .load(&two.old_docker_archive(&json!(["x:1"])).bytes())
        .await
        .unwrap();
    let id = one.id();
    assert_eq!(
        told,
        [
            format!("The image x:1 already exists, renaming the old one with ID {id} to empty string"),
            "Loaded image: x:1".to_owned()
        ]
    );
    fixture.assert_clean(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_makes_an_image_of_one_layer() {
    let fixture = Fixture::new();
    let (plain, compressed) = layer("a");
    let import = |bytes: Vec<u8>, changes: &[&str]| {
        let request = ImportRequest {
            source: "-".to_owned(),
            repository: "imported".to_owned(),
            changes: changes.iter().map(|&change| change.to_owned()).collect(),
            ..ImportRequest::default()
        };
        let images = fixture.images.clone();
        async move {
            let (sender, receiver) = mpsc::channel(16);
            let import = images.import(request, stream(&bytes), sender);
            let (done, lines) = tokio::join!(import, lines(receiver));
            done.map(|()| lines)
        }
    };
    for bytes in [plain.clone(), compressed] {
        let told = import(bytes, &["CMD [\"/a\"]", "ENV A=b"]).await.unwrap();
        let image = fixture.images.find("imported").unwrap();
        assert_eq!(told, std::slice::from_ref(&image.id));
        assert_eq!(image.layers, [Digest::of(&plain).to_string()]);
        assert_eq!(image.config.cmd.as_deref(), Some(&["/a".to_owned()][..]));
        assert_eq!(image.comment, "Imported from -");
    }
    let before = fixture.images.store().catalog().images.len();
    for (bytes, changes, expected) in [
        (b"garbage".to_vec(), &[][..], "unexpected EOF"),
        (plain[..700].to_vec(), &[], "unexpected EOF"),
        (plain, &["RUN x"], "RUN is not a valid change command"),
    ] {
        let error = import(bytes, changes).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    fixture.assert_clean(before);
    assert_eq!(
        std::fs::read_dir(fixture.directory.path().join("image/ingest"))
            .unwrap()
            .count(),
        0
    );
}
