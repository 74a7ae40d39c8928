//! Mirrors of Docker Hub.

use serde_json::json;
use skiff_registry_client::{Client, Credentials, ErrorKind, Reference, Verifier, media_types};

use crate::fake::{Fake, Reply, Request};
use crate::image::{Image, collect, config};

fn joe() -> Credentials {
    Credentials {
        username: "joe".into(),
        password: "secret".into(),
        ..Credentials::default()
    }
}

fn busybox() -> Reference {
    "busybox:1".parse().unwrap()
}

/// Docker Hub, with a guard, and a client that has `mirrors` before it.
async fn hub(mirrors: &[&Fake]) -> (Fake, Image, Client) {
    let image = Image::new();
    let served = image.clone();
    let hub = Fake::start(move |request: &Request| match request.header("authorization") {
        Some(_) => served.serve(request),
        None => Reply::status(401)
            .header("www-authenticate", "Basic realm=hub")
            .body(""),
    })
    .await;
    let mut config = config();
    config.docker_hub = Some(hub.url("").parse().unwrap());
    config.mirrors = mirrors
        .iter()
        .map(|mirror| mirror.url("").parse().unwrap())
        .collect();
    (hub, image, Client::new(config).unwrap())
}

async fn pull(client: &Client, image: &Image) -> Result<(), skiff_registry_client::Error> {
    let found = client
        .fetch_image(&busybox(), &"linux/amd64".parse().unwrap(), Some(&joe()))
        .await?;
    assert_eq!(found.top.bytes, image.index);
    client
        .fetch_config(&busybox(), found.image.config(), Some(&joe()))
        .await?;
    let layer = &found.image.layers()[0];
    let stream = client
        .fetch_blob(&busybox(), layer, Verifier::new(layer)?, Some(&joe()))
        .await?;
    assert_eq!(collect(stream).await?, image.layer);
    Ok(())
}

#[tokio::test]
async fn a_good_mirror_serves_all() {
    let image = Image::new();
    let mirror = Fake::start(move |request| image.serve(request)).await;
    let (hub, image, client) = hub(&[&mirror]).await;
    pull(&client, &image).await.unwrap();
    assert!(hub.requests().is_empty());
    assert!(
        mirror
            .requests()
            .iter()
            .all(|request| request.path().starts_with("/v2/library/busybox/"))
    );
    // Other registries' images do not go through it.
    let before = mirror.requests().len();
    let other: Reference = format!("{}/app:1", hub.host()).parse().unwrap();
    client.fetch_manifest(&other, Some(&joe())).await.unwrap();
    assert_eq!(mirror.requests().len(), before);
}

#[tokio::test]
async fn credentials_of_docker_hub_do_not_reach_a_mirror() {
    let mirror = Fake::start(|_| {
        Reply::status(401)
            .header("www-authenticate", "Basic realm=mirror")
            .body("")
    })
    .await;
    let (_hub, image, client) = hub(&[&mirror]).await;
    pull(&client, &image).await.unwrap();
    assert!(!mirror.requests().is_empty());
    assert!(
        mirror
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
}

#[tokio::test]
async fn failing_mirrors_are_passed_over() {
    let html = || Reply::ok("<html>").header("content-type", "text/html");
    let lying = || {
        Reply::ok("{}")
            .header("content-type", media_types::OCI_INDEX)
            .header("docker-content-digest", "sha256:0")
    };
    let schema_1 = || Reply::json(json!({"schemaVersion": 1}));
    for reply in [
        Reply::status(404).body(""),
        Reply::status(500).body(""),
        Reply::raw(),
        html(),
        lying(),
        schema_1(),
    ] {
        let printed = format!("{reply:?}");
        let mirror = Fake::start(move |_| reply.clone()).await;
        let (hub, image, client) = hub(&[&mirror]).await;
        pull(&client, &image)
            .await
            .unwrap_or_else(|error| panic!("{printed}: {error}"));
        assert!(
            !mirror.requests().is_empty() && !hub.requests().is_empty(),
            "{printed}"
        );
    }
}

#[tokio::test]
async fn a_mirror_that_is_down_is_left_out_for_a_while() {
    let down = Fake::start(|_| Reply::status(503).body("")).await;
    let image = Image::new();
    let second = Fake::start(move |request| image.serve(request)).await;
    let (hub, image, client) = hub(&[&down, &second]).await;
    pull(&client, &image).await.unwrap();
    assert_eq!(down.requests().len(), 1, "asked once");
    assert!(hub.requests().is_empty());
}

#[tokio::test]
async fn a_mirror_that_dies_in_a_blob_is_replaced() {
    let image = Image::new();
    let served = image.clone();
    let mirror =
        Fake::start(
            move |request| match request.path().contains(served.layer().digest().as_ref()) {
                true => served.cut(1000),
                false => served.serve(request),
            },
        )
        .await;
    let (hub, image, client) = hub(&[&mirror]).await;
    pull(&client, &image).await.unwrap();
    assert!(!hub.requests_for(image.layer().digest().as_ref()).is_empty());
}

#[tokio::test]
async fn after_a_wrong_blob_the_next_try_works() {
    let image = Image::new();
    let served = image.clone();
    let mirror =
        Fake::start(
            move |request| match request.path().contains(served.layer().digest().as_ref()) {
                true => Reply::ok(vec![0; served.layer.len()]),
                false => served.serve(request),
            },
        )
        .await;
    let (_hub, image, client) = hub(&[&mirror]).await;
    assert_eq!(
        pull(&client, &image).await.unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    pull(&client, &image).await.unwrap();
}

#[tokio::test]
async fn the_origin_s_word_counts() {
    let mirror = Fake::start(|_| Reply::status(500).body("")).await;
    let (_hub, _, client) = hub(&[&mirror]).await;
    let error = client
        .fetch_manifest(&"busybox:nope".parse().unwrap(), Some(&joe()))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "manifest for busybox:nope not found: manifest unknown: manifest unknown"
    );
}

#[test]
fn malformed_mirrors_are_refused() {
    for url in [
        "ftp://x/",
        "https://user:pw@x/",
        "https://x/?q",
        "https://x/#f",
        "unix:/run/x",
    ] {
        let mut config = config();
        config.mirrors = vec![url.parse().unwrap()];
        assert_eq!(
            Client::new(config).unwrap_err().kind(),
            ErrorKind::Configuration,
            "{url}"
        );
    }
}
