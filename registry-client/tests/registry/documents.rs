//! Manifests and configurations from registries that lie, dawdle or are none.

use std::time::{Duration, Instant};

use serde_json::json;
use skiff_registry_client::{Client, Descriptor, ErrorKind, Platform, media_types, sha256};

use crate::fake::{Fake, Reply};
use crate::image::{Image, client, config, descriptor, reference};

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

#[tokio::test]
async fn an_image_through_its_index() {
    let image = Image::new();
    let served = image.clone();
    let fake = Fake::start(move |request| served.serve(request)).await;
    let (client, reference) = (client(), reference(&fake.host()));
    let found = client.fetch_image(&reference, &amd64(), None).await.unwrap();
    assert_eq!(found.top.digest, sha256(&image.index));
    assert_eq!(found.top.media_type, media_types::OCI_INDEX);
    assert_eq!(found.manifest.bytes, image.manifest);
    assert_eq!(found.image.layers(), &[image.layer()]);
    let config = client
        .fetch_config(&reference, found.image.config(), None)
        .await
        .unwrap();
    assert_eq!(config, image.config);
    // A single image serves as well, and its own digest is the top one.
    let by_digest = reference.with_digest(sha256(&image.manifest).as_ref()).unwrap();
    let found = client.fetch_image(&by_digest, &amd64(), None).await.unwrap();
    assert_eq!(found.top, found.manifest);
}

#[tokio::test]
async fn no_image_for_the_platform() {
    let image = Image::new();
    let fake = Fake::start(move |request| image.serve(request)).await;
    let error = client()
        .fetch_image(&reference(&fake.host()), &"linux/s390x".parse().unwrap(), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        "no matching manifest for linux/s390x in the manifest list entries"
    );
}

#[tokio::test]
async fn a_missing_manifest() {
    let fake = Fake::start(|_| {
        Reply::status(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":"unknown tag=1"}]}"#)
    })
    .await;
    let error = client()
        .fetch_manifest(&reference(&fake.host()), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.code(), Some("MANIFEST_UNKNOWN"));
    assert_eq!(
        error.to_string(),
        format!(
            "manifest for {}/a/app:1 not found: manifest unknown: manifest unknown",
            fake.host()
        )
    );
    assert_eq!(fake.requests().len(), 1, "not repeated");
}

/// The error of fetching the manifest from a registry that always gives `reply`, and how often it was asked.
async fn refused(reply: Reply) -> (ErrorKind, String, usize) {
    let fake = Fake::start(move |_| reply.clone()).await;
    let error = client()
        .fetch_manifest(&reference(&fake.host()), None)
        .await
        .unwrap_err();
    (error.kind(), error.to_string(), fake.requests().len())
}

#[tokio::test]
async fn other_things_than_manifests() {
    let oci = |body: &[u8]| Reply::ok(body).header("content-type", media_types::OCI_MANIFEST);
    let cases = [
        (
            Reply::ok("<html>login</html>").header("content-type", "text/html; charset=utf-8"),
            ErrorKind::Corrupt,
            "text/html",
        ),
        (oci(b"\x1f\x8b\x08\0\0\0\0\0"), ErrorKind::Corrupt, "gzip"),
        (oci(b""), ErrorKind::Corrupt, "no manifest"),
        (oci(b"{"), ErrorKind::Corrupt, "no manifest"),
        (oci(b"null"), ErrorKind::Corrupt, "no manifest"),
        (
            oci(br#"{"schemaVersion":1,"fsLayers":[]}"#),
            ErrorKind::Unsupported,
            "schema 1",
        ),
        (
            oci(b"{}").header("docker-content-digest", sha256(b"other").to_string()),
            ErrorKind::Corrupt,
            "manifest verification failed",
        ),
        (
            oci(b"{}").header("docker-content-digest", "sha256:xyz"),
            ErrorKind::Corrupt,
            "malformed digest",
        ),
        (Reply::status(204), ErrorKind::Corrupt, "no manifest"),
        (Reply::status(302), ErrorKind::Unavailable, "302"),
    ];
    for (reply, kind, text) in cases {
        let printed = format!("{reply:?}");
        let (found, error, asked) = refused(reply).await;
        assert_eq!((found, asked), (kind, 1), "{printed}: {error}");
        assert!(error.contains(text), "{printed}: {error}");
    }
}

#[tokio::test]
async fn a_wrong_manifest_for_a_digest() {
    let fake = Fake::start(|_| Reply::ok("{}").header("content-type", media_types::OCI_MANIFEST)).await;
    let wanted = sha256(b"something else");
    let reference = reference(&fake.host()).with_digest(wanted.as_ref()).unwrap();
    let error = client().fetch_manifest(&reference, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(
        error.to_string(),
        format!("manifest verification failed for digest {wanted}")
    );
}

#[tokio::test]
async fn endless_documents_are_cut_off() {
    let declared = Reply::status(200)
        .header("content-length", "9999999999999")
        .then_hang();
    let endless = Reply::status(200)
        .header("content-type", media_types::OCI_MANIFEST)
        .forever(vec![b' '; 1 << 16]);
    for reply in [declared, endless] {
        let (kind, error, asked) = refused(reply).await;
        assert_eq!((kind, asked), (ErrorKind::TooLarge, 1), "{error}");
    }
}

#[tokio::test]
async fn endless_headers_are_cut_off() {
    let endless = Reply::raw()
        .send("HTTP/1.1 200 OK\r\n")
        .forever("x: y\r\n".repeat(1000));
    let (kind, error, _) = refused(endless).await;
    assert_eq!(kind, ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn silence_and_trickle_have_an_end() {
    let silent = Reply::raw().then_hang();
    let mut trickle = Reply::status(200).header("content-length", "100000");
    for _ in 0..100 {
        trickle = trickle.send(" ").pause(Duration::from_millis(10));
    }
    for reply in [silent, trickle] {
        let fake = Fake::start(move |_| reply.clone()).await;
        let mut config = config();
        config.timeouts.headers = Duration::from_millis(60);
        config.timeouts.document = Duration::from_millis(60);
        config.retry.attempts = 2;
        let start = Instant::now();
        let error = Client::new(config)
            .unwrap()
            .fetch_manifest(&reference(&fake.host()), None)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert_eq!(fake.requests().len(), 2, "{error}");
        assert!(start.elapsed() < Duration::from_secs(2), "{error}");
    }
}

#[tokio::test]
async fn passing_failures_are_repeated() {
    let image = Image::new();
    let fake = Fake::start(
        move |request| match (request.path().ends_with("/1"), request.nth) {
            (true, 0) => Reply::status(503).body("overloaded"),
            (true, 1) => Reply::status(429).header("retry-after", "0").body(""),
            _ => image.serve(request),
        },
    )
    .await;
    client()
        .fetch_manifest(&reference(&fake.host()), None)
        .await
        .unwrap();
    assert_eq!(fake.requests_for("/manifests/1").len(), 3);
}

#[tokio::test]
async fn attempts_are_counted() {
    let (kind, error, asked) = refused(Reply::status(500).body("")).await;
    assert_eq!((kind, asked), (ErrorKind::Unavailable, 3));
    assert_eq!(
        error,
        "received unexpected HTTP status: 500 Internal Server Error"
    );
    let limited = Reply::status(429).header("retry-after", "3600").body(
        r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#,
    );
    let (kind, error, asked) = refused(limited).await;
    assert_eq!(
        (kind, asked),
        (ErrorKind::RateLimited, 1),
        "an hour is not waited for"
    );
    assert_eq!(error, "toomanyrequests: You have reached your pull rate limit.");
}

#[tokio::test]
async fn nobody_listens() {
    let fake = Fake::start(|_| Reply::status(200)).await;
    let (host, start) = (fake.host(), Instant::now());
    drop(fake);
    let error = client()
        .fetch_manifest(&reference(&host), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(
        error.to_string(),
        format!("Get \"http://{host}/v2/a/app/manifests/1\": dial tcp {host}: connect: connection refused")
    );
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn configurations() {
    let image = Image::new();
    let lying = Fake::start(|_| Reply::ok("{}")).await;
    let (client, reference) = (client(), reference(&lying.host()));
    let error = client
        .fetch_config(&reference, &image.config(), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(
        error.to_string(),
        format!(
            "image config verification failed for digest {}",
            image.config().digest()
        )
    );

    let mut huge = descriptor(media_types::OCI_CONFIG, b"");
    huge["size"] = json!(1_u64 << 40);
    let huge: Descriptor = serde_json::from_value(huge).unwrap();
    let error = client.fetch_config(&reference, &huge, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);

    let longer = Fake::start(|_| Reply::ok(vec![b'x'; 4096])).await;
    let error = client
        .fetch_config(&crate::image::reference(&longer.host()), &image.config(), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}

#[tokio::test]
async fn an_index_of_itself_ends() {
    let bytes = |size: usize| {
        // An index can only name documents that exist already; a registry that answers every digest with a fresh index
        // is caught by the digest, so the depth is what is left to test.
        let mut innermost = json!({"schemaVersion": 2, "mediaType": media_types::OCI_INDEX, "manifests": []})
            .to_string()
            .into_bytes();
        let mut chain = vec![innermost.clone()];
        for _ in 0..size {
            let mut entry = descriptor(media_types::OCI_INDEX, &innermost);
            entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
            let index =
                json!({"schemaVersion": 2, "mediaType": media_types::OCI_INDEX, "manifests": [entry]});
            innermost = index.to_string().into_bytes();
            chain.push(innermost.clone());
        }
        chain
    };
    let chain = bytes(8);
    let fake = Fake::start(move |request| {
        let wanted = |document: &&Vec<u8>| request.path().ends_with(&sha256(document).to_string());
        let document = chain.iter().find(wanted).or(chain.last()).unwrap();
        Reply::ok(document.clone()).header("content-type", media_types::OCI_INDEX)
    })
    .await;
    let error = client()
        .fetch_image(&reference(&fake.host()), &amd64(), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("nested deeper"), "{error}");
}
