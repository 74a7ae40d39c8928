//! Pulls against a registry that misbehaves, and what clients see of the result.

mod archives;
mod registry;

use std::sync::Arc;
use std::time::Duration;

use skiff_store::{GcOptions, Store};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::*;
use crate::error::ErrorKind;
use registry::{Manners, PIECE, Registry, digest, gzip, layer};

struct Fixture {
    images: Images,
    registry: Arc<Registry>,
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap(), Arc::default())
    }

    fn at(directory: tempfile::TempDir, registry: Arc<Registry>) -> Self {
        let driver = Arc::new(skiff_graphdrivers::Vfs::open(&directory.path().join("vfs"), &[]).unwrap());
        let open = || Store::open(&directory.path().join("image"), Arc::clone(&driver) as _);
        let store = loop {
            match open() {
                // The end of the last one's background work is near.
                Err(error) if error.kind() == skiff_store::ErrorKind::Conflict => std::thread::yield_now(),
                opened => break opened.unwrap(),
            }
        };
        let images = Images::with_remote(store, Arc::new(Arc::clone(&registry)), Events::default(), 3);
        Self {
            images,
            registry,
            directory,
        }
    }

    fn request(name: &str) -> PullRequest {
        PullRequest {
            reference: name.to_owned(),
            platform: None,
            credentials: None,
        }
    }

    /// Pulls to the end; what the client saw without the numbers.
    async fn pull(&self, name: &str) -> Result<Vec<String>> {
        let (sender, receiver) = mpsc::channel(16);
        let pull = self.images.pull(Self::request(name), sender);
        let (done, lines) = tokio::join!(pull, lines(receiver));
        done.map(|()| lines)
    }

    /// Starts a pull in the background; its client stays as long as the receiver.
    fn start(&self, name: &str) -> (JoinHandle<Result<()>>, mpsc::Receiver<Progress>) {
        let (sender, receiver) = mpsc::channel(1000);
        let (images, request) = (self.images.clone(), Self::request(name));
        (
            tokio::spawn(async move { images.pull(request, sender).await }),
            receiver,
        )
    }

    /// Waits until the registry has sent so many pieces.
    async fn until_sent(&self, pieces: u64) {
        self.registry
            .sent
            .subscribe()
            .wait_for(|sent| *sent >= pieces)
            .await
            .unwrap();
    }

    /// The store is whole, nothing is half-registered and nothing runs any more.
    fn assert_clean(&self, images: usize) {
        let store = self.images.store();
        assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
        assert_eq!(store.catalog().images.len(), images);
    }
}

async fn lines(mut receiver: mpsc::Receiver<Progress>) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(message) = receiver.recv().await {
        match message {
            Progress::Status { status, id: Some(id) } => lines.push(format!("{id}: {status}")),
            Progress::Status { status, id: None } => lines.push(status),
            Progress::Text(text) => lines.push(text.trim_end().to_owned()),
            Progress::Layer { current, total, .. } => assert!(current <= total),
        }
    }
    lines
}

fn short(digest: &str) -> &str {
    &digest["sha256:".len()..][..12]
}

fn gate() -> (watch::Sender<bool>, Manners) {
    let (sender, receiver) = watch::channel(false);
    (sender, Manners::Gate(receiver))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_tells_its_client_what_dockers_does() {
    let fixture = Fixture::new();
    let image = fixture.registry.add("busybox", &["a"]);
    let layer = short(&image.blobs[0]);
    let told = fixture.pull("busybox").await.unwrap();
    let mut expected = vec![
        "latest: Pulling from library/busybox".to_owned(),
        format!("{layer}: Pulling fs layer"),
        format!("{layer}: Verifying Checksum"),
        format!("{layer}: Download complete"),
        format!("{layer}: Pull complete"),
        format!("Digest: {}", image.manifest),
        "Status: Downloaded newer image for busybox:latest".to_owned(),
    ];
    let without_waiting: Vec<_> = told
        .into_iter()
        .filter(|line| !line.ends_with("Waiting"))
        .collect();
    assert_eq!(without_waiting, expected);
    expected.drain(1..5);
    expected.insert(1, format!("{layer}: Already exists"));
    expected[3] = "Status: Image is up to date for busybox:latest".to_owned();
    assert_eq!(
        fixture.pull("docker.io/library/busybox:latest").await.unwrap(),
        expected
    );
    assert_eq!(fixture.registry.times_asked(&image.blobs[0]), 1);

    let view = fixture.images.find("busybox").unwrap();
    assert_eq!((view.id.as_str(), view.os.as_str()), (image.id.as_str(), "linux"));
    assert_eq!(view.tags, ["busybox:latest"]);
    assert_eq!(view.digests, [format!("busybox@{}", image.manifest)]);
    assert_eq!(view.config.cmd.as_deref(), Some(&["/bin/true".to_owned()][..]));
    assert_eq!(view.size, 8 * PIECE as u64);
    assert_eq!(view.created.unwrap().to_string(), "2024-05-01T10:00:00Z");
    for name in [
        &image.id,
        short(&image.id),
        &image.id[..20],
        view.digests[0].as_str(),
    ] {
        assert_eq!(fixture.images.find(name).unwrap().id, image.id, "{name}");
    }
    let history = fixture.images.history("busybox").unwrap();
    assert_eq!((history[0].created_by.as_str(), history[0].size), ("ENV y", 0));
    assert_eq!(
        (history[1].id.as_str(), history[1].size),
        ("<missing>", 8 * PIECE as u64)
    );
    let (events, _) = fixture.images.shared.events.subscribe();
    assert_eq!(
        (events[0].action.as_str(), events[0].id.as_str()),
        ("pull", "busybox:latest")
    );
    assert_eq!(events[0].attributes["name"], "busybox");
    assert_eq!(events[0].attributes["l"], "busybox");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_images_and_bad_names_have_dockers_texts() {
    let fixture = Fixture::new();
    let error = fixture.pull("localhost:5000/x:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        "manifest for localhost:5000/x:1 not found: manifest unknown: manifest unknown"
    );
    for (name, kind, text) in [
        ("nosuch", ErrorKind::NotFound, "No such image: nosuch:latest"),
        ("nosuch:2", ErrorKind::NotFound, "No such image: nosuch:2"),
        ("abc", ErrorKind::NotFound, "No such image: abc:latest"),
        ("", ErrorKind::InvalidParameter, "invalid reference format"),
        ("a b", ErrorKind::InvalidParameter, "invalid reference format"),
    ] {
        let error = fixture.images.find(name).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, text));
    }
    let id = format!("sha256:{}", "0".repeat(64));
    assert_eq!(
        fixture.images.find(&id).unwrap_err().to_string(),
        format!("No such image: {id}")
    );
    fixture.assert_clean(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_at_once_share_downloads_and_layers() {
    let fixture = Fixture::new();
    let one = fixture.registry.add("one", &["base", "one"]);
    let two = fixture.registry.add("two", &["base", "two"]);
    let (open, manners) = gate();
    fixture.registry.behave(&one.blobs[0], manners);
    let pulls = [fixture.start("one"), fixture.start("one"), fixture.start("two")];
    // Both tops and the first piece of the base are there; everybody waits for the base.
    fixture.until_sent(1).await;
    open.send(true).unwrap();
    for (pull, _client) in pulls {
        pull.await.unwrap().unwrap();
    }
    for blob in one.blobs.iter().chain(&two.blobs) {
        assert_eq!(fixture.registry.times_asked(blob), 1);
    }
    fixture.assert_clean(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_cancels_its_pull_and_the_next_one_resumes() {
    let fixture = Fixture::new();
    let image = fixture.registry.add("x", &["a"]);
    let (open, manners) = gate();
    fixture.registry.behave(&image.blobs[0], manners);
    let (pull, mut client) = fixture.start("x");
    // Once its bytes are reported, the first piece is on its way to the disk.
    while !matches!(client.recv().await.unwrap(), Progress::Layer { current, .. } if current == PIECE as u64)
    {
    }
    drop(client);
    assert!(pull.await.unwrap().unwrap_err().to_string().contains("cancelled"));
    fixture.assert_clean(0);
    // The download's task notices on its own time: the gate is closed for good once nobody waits at it.
    fixture.registry.behave(&image.blobs[0], Manners::Good);
    open.closed().await;
    fixture.pull("x").await.unwrap();
    let asked = fixture.registry.asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        [
            (image.blobs[0].clone(), 0),
            (image.blobs[0].clone(), PIECE as u64)
        ]
    );
    fixture.assert_clean(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_leaves_the_others_their_download() {
    let fixture = Fixture::new();
    let image = fixture.registry.add("x", &["a"]);
    let (open, manners) = gate();
    fixture.registry.behave(&image.blobs[0], manners);
    let (first, leaving) = fixture.start("x");
    fixture.until_sent(1).await;
    let (second, mut staying) = fixture.start("x");
    // The second has joined once it tells about its layer.
    while !matches!(staying.recv().await.unwrap(), Progress::Status { status, .. } if status == "Pulling fs layer")
    {
    }
    drop(leaving);
    first.await.unwrap().unwrap_err();
    open.send(true).unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(fixture.registry.times_asked(&image.blobs[0]), 1);
    fixture.assert_clean(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_download_is_an_error_and_resumed_by_the_next_pull() {
    let fixture = Fixture::new();
    let image = fixture.registry.add("x", &["a", "b"]);
    fixture.registry.behave(&image.blobs[1], Manners::Cut);
    let error = fixture.pull("x").await.unwrap_err();
    assert_eq!(error.to_string(), "connection lost");
    fixture.assert_clean(0);
    fixture.registry.behave(&image.blobs[1], Manners::Good);
    fixture.pull("x").await.unwrap();
    assert_eq!(
        fixture.registry.asked.lock().unwrap().last().unwrap().1,
        PIECE as u64
    );
    fixture.assert_clean(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_partial_blob_is_fetched_afresh() {
    let fixture = Fixture::new();
    let image = fixture.registry.add("x", &["a"]);
    let partial = format!("image/ingest/{}.partial", &image.blobs[0]["sha256:".len()..]);
    std::fs::write(fixture.directory.path().join(partial), [0; 100]).unwrap();
    fixture.pull("x").await.unwrap();
    let offsets: Vec<u64> = fixture
        .registry
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|(_, offset)| *offset)
        .collect();
    assert_eq!(offsets, [100, 0]);
    fixture.assert_clean(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_refused_and_the_next_try_works() {
    let fixture = Fixture::new();
    let image = fixture.registry.add("x", &["a", "b"]);
    let mut flipped = layer("a").1;
    flipped[5000] ^= 1;
    // Wrong content of a good layer; another layer; nonsense.
    for bad in [flipped, layer("b").1, vec![7; layer("a").1.len()]] {
        fixture.registry.behave(&image.blobs[0], Manners::Other(bad));
        let error = fixture.pull("x").await.unwrap_err();
        assert!(error.to_string().contains("verification failed"), "{error}");
        fixture.assert_clean(0);
    }
    fixture.registry.behave(&image.blobs[0], Manners::Good);
    fixture.pull("x").await.unwrap();
    fixture.assert_clean(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_cannot_be_unpacked_are_refused() {
    let fixture = Fixture::new();
    let (plain, good) = layer("a");
    let truncated = good[..good.len() / 2].to_vec();
    let other = layer("b").1;
    let garbage = gzip(&[7; 2048]);
    for (name, blob, text) in [
        ("truncated", truncated, "failed to register layer: "),
        ("garbage", garbage, "failed to register layer: "),
        (
            "other",
            other,
            "failed to register layer: layers from manifest don't match image configuration",
        ),
    ] {
        fixture.registry.add_layers(name, &[(plain.clone(), blob)]);
        let error = fixture.pull(name).await.unwrap_err();
        assert!(error.to_string().starts_with(text), "{name}: {error}");
        fixture.assert_clean(0);
        assert_eq!(fixture.images.store().driver().list().unwrap(), []);
    }
    fixture
        .images
        .store()
        .gc(&GcOptions {
            containers: Default::default(),
            grace: Duration::ZERO,
        })
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn anothers_failing_download_does_not_fail_us() {
    let fixture = Fixture::new();
    let image = fixture.registry.add("x", &["a"]);
    let (open, manners) = gate();
    fixture.registry.behave(&image.blobs[0], manners);
    let (first, _client) = fixture.start("x");
    fixture.until_sent(1).await;
    let (second, mut staying) = fixture.start("x");
    while !matches!(staying.recv().await.unwrap(), Progress::Status { status, .. } if status == "Pulling fs layer")
    {
    }
    // The first client's connection is lost; the second tries by itself.
    fixture.registry.behave(&image.blobs[0], Manners::Good);
    drop(open);
    assert_eq!(first.await.unwrap().unwrap_err().to_string(), "connection lost");
    second.await.unwrap().unwrap();
    fixture.assert_clean(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_is_pulled_without_a_tag() {
    let fixture = Fixture::new();
    let image = fixture.registry.add("x:1", &["a"]);
    let name = format!("x@{}", image.manifest);
    let told = fixture.pull(&name).await.unwrap();
    assert_eq!(told[0], format!("{}: Pulling from library/x", image.manifest));
    assert_eq!(
        told.last().unwrap(),
        &format!("Status: Downloaded newer image for {name}")
    );
    let view = fixture.images.find(&name).unwrap();
    assert_eq!((view.tags.len(), view.digests), (0, vec![name]));
}

/// Changes a blob's bytes on the disk, not their number.
fn damage(store: &Store, blob: &Digest) {
    let path = store.blob_path(blob);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 0xff;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_heals_what_is_damaged() {
    let fixture = Fixture::new();
    let image = fixture.registry.add("x", &["a"]);
    fixture.pull("x").await.unwrap();
    let store = fixture.images.store();
    for blob in [&image.id, &image.manifest] {
        damage(store, &digest(blob));
        assert!(store.read_blob(&digest(blob)).is_err());
        fixture.pull("x").await.unwrap();
        fixture.assert_clean(1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_comes_while_an_image_is_removed_keeps_it() {
    let fixture = Fixture::new();
    let image = fixture.registry.add("a:1", &["a"]);
    fixture.pull("a:1").await.unwrap();
    let images = &fixture.images;
    // Asked for between the look at the names and the removal: there comes what another pull of the image does.
    let (store, id) = (images.store().clone(), digest(&image.id));
    let asked = std::sync::atomic::AtomicUsize::new(0);
    images.set_users(Arc::new(move |_| {
        if asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 {
            store.tag(&id, "docker.io/library/b:1".parse().unwrap()).unwrap();
        }
        Vec::new()
    }));
    let removed = images.remove("a:1", false, false).await.unwrap();
    let expected = [
        Removal::Untagged("a:1".to_owned()),
        Removal::Untagged(format!("a@{}", image.manifest)),
    ];
    assert_eq!(removed, expected);
    assert_eq!(images.find("b:1").unwrap().tags, ["b:1"]);
    fixture.assert_clean(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_is_removed_by_name_or_id() {
    let fixture = Fixture::new();
    let image = fixture.registry.add("a:1", &["a"]);
    let other = fixture.registry.add("b:1", &["b"]);
    fixture.pull("a:1").await.unwrap();
    fixture.pull("b:1").await.unwrap();
    for blob in [&image.id, &other.id] {
        damage(fixture.images.store(), &digest(blob));
    }
    let Fixture {
        images,
        registry,
        directory,
    } = fixture;
    drop(images);
    let fixture = Fixture::at(directory, registry);
    let images = &fixture.images;
    assert_eq!(
        images.remove("a:1", false, false).await.unwrap(),
        [Removal::Untagged("a:1".to_owned())]
    );
    assert_eq!(
        images.remove(short(&image.id), false, false).await.unwrap(),
        [
            Removal::Untagged(format!("a@{}", image.manifest)),
            Removal::Deleted(image.id.clone())
        ]
    );
    let conflict = images.remove(&other.id, false, false).await.unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict);
    assert!(conflict.to_string().contains("must be forced"), "{conflict}");
    assert_eq!(images.remove(&other.id, true, false).await.unwrap().len(), 3);
    let unknown = images.remove(&other.id, true, false).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    images.store().gc(&GcOptions::default()).unwrap();
    fixture.assert_clean(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_filters_and_removal() {
    let fixture = Fixture::new();
    let image = fixture.registry.add("busybox", &["base", "a"]);
    let other = fixture.registry.add("localhost:5000/a/b:1", &["base", "b"]);
    fixture.pull("busybox").await.unwrap();
    fixture.pull("localhost:5000/a/b:1").await.unwrap();
    let images = &fixture.images;
    images.tag("busybox", "mine", "v1").unwrap();
    for (repository, tag, text) in [
        (
            "BAD",
            "",
            "invalid reference format: repository name (library/BAD) must be lowercase",
        ),
        ("x", "a b", "invalid tag format"),
        (
            &format!("x@{}", image.manifest),
            "",
            "refusing to create a tag with a digest reference",
        ),
    ] {
        assert_eq!(
            images.tag("busybox", repository, tag).unwrap_err().to_string(),
            text
        );
    }
    let list = |filters: &str| -> Vec<Vec<String>> {
        let views = images.list(false, &Filters::parse(filters).unwrap()).unwrap();
        views.into_iter().map(|view| view.tags).collect()
    };
    assert_eq!(list("").len(), 2);
    assert_eq!(list(r#"{"reference":["min*"]}"#), [["mine:v1"]]);
    assert_eq!(
        list(r#"{"label":["l=localhost:5000/a/b:1"]}"#),
        [["localhost:5000/a/b:1"]]
    );
    assert_eq!(list(r#"{"dangling":["true"]}"#).len(), 0);
    assert_eq!(list(r#"{"until":["2024-01-01"]}"#).len(), 0);
    assert!(
        images
            .list(false, &Filters::parse(r#"{"nope":["1"]}"#).unwrap())
            .is_err()
    );

    let users: Vec<(String, bool)> = vec![("c".repeat(64), true)];
    let used = image.id.clone();
    images.set_users(Arc::new(
        move |id| if id == used { users.clone() } else { Vec::new() },
    ));
    assert_eq!(
        images.remove("mine:v1", false, false).await.unwrap(),
        [Removal::Untagged("mine:v1".to_owned())]
    );
    let conflict = images.remove("busybox", false, false).await.unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict);
    assert!(
        conflict.to_string().contains("is using its referenced image"),
        "{conflict}"
    );
    let removed = images.remove("localhost:5000/a/b:1", false, false).await.unwrap();
    let top = {
        let (base, top) = (layer("base").0, layer("b").0);
        let ids = [
            digest(skiff_registry_client::sha256(&base).as_ref()),
            digest(skiff_registry_client::sha256(&top).as_ref()),
        ];
        skiff_store::chain_ids(&ids)[1]
    };
    let expected = [
        Removal::Untagged("localhost:5000/a/b:1".to_owned()),
        Removal::Untagged(format!("localhost:5000/a/b@{}", other.manifest)),
        Removal::Deleted(other.id.clone()),
        Removal::Deleted(top.to_string()),
    ];
    assert_eq!(removed, expected);
    fixture.assert_clean(1);
    let (events, _) = images.shared.events.subscribe();
    let told: Vec<&str> = events.iter().map(|event| event.action.as_str()).collect();
    assert_eq!(told, ["pull", "pull", "tag", "untag", "untag", "untag", "delete"]);
    assert_eq!(events.last().unwrap().id, other.id);
}
