//! Blobs from registries that cut, lie, dawdle and ignore ranges.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::json;
use skiff_registry_client::{Client, Descriptor, ErrorKind, Verifier, sha256};

use crate::fake::{Fake, Reply, Request};
use crate::image::{Image, blob, client, collect, config, descriptor, range, reference};

/// Fetches the layer; the first request gets `first`, the later ones what `later` says.
async fn fetch(
    first: impl Fn(&Image) -> Reply,
    later: impl Fn(&Image, &Request) -> Reply + Send + Sync + 'static,
) -> (Result<Vec<u8>, skiff_registry_client::Error>, Vec<Request>, Image) {
    let image = Image::new();
    let (first, served) = (first(&image), image.clone());
    let fake = Fake::start(move |request| {
        if request.nth == 0 {
            first.clone()
        } else {
            later(&served, request)
        }
    })
    .await;
    // A client that never gives up shall be a failure and no hang.
    let (client, host) = (client(), fake.host());
    let whole = blob(&client, &host, &image);
    let bytes = tokio::time::timeout(Duration::from_secs(20), whole)
        .await
        .unwrap();
    (bytes, fake.requests(), image)
}

#[tokio::test]
async fn whole() {
    let (bytes, requests, image) =
        fetch(|image| Reply::ok(image.layer.clone()), |_, _| Reply::status(500)).await;
    assert_eq!(bytes.unwrap(), image.layer);
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("range"), None);
    assert_eq!(requests[0].header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn cut_at_half_then_resumed() {
    let (bytes, requests, image) = fetch(
        |image| image.cut(image.layer.len() / 2),
        |image, request| image.serve_layer(request),
    )
    .await;
    assert_eq!(bytes.unwrap(), image.layer);
    assert_eq!(requests.len(), 2);
    let resumed = range(&requests[1]).unwrap();
    assert!(resumed > 0 && resumed <= image.layer.len() / 2, "{resumed}");
}

#[tokio::test]
async fn ranges_ignored() {
    let (bytes, requests, image) = fetch(
        |image| image.cut(image.layer.len() / 2),
        |image, _| Reply::ok(image.layer.clone()),
    )
    .await;
    assert_eq!(bytes.unwrap(), image.layer);
    assert!(requests[1].header("range").is_some());
}

#[tokio::test]
async fn ranges_mishandled() {
    let wrong_start: fn(&Image) -> Reply = |image| image.partial(7);
    let no_content_range: fn(&Image) -> Reply = |image| Reply::status(206).body(image.layer.clone());
    let unsatisfiable: fn(&Image) -> Reply = |_| Reply::status(416).body("");
    for wrong in [wrong_start, no_content_range, unsatisfiable] {
        let (bytes, requests, image) = fetch(
            |image| image.cut(image.layer.len() / 2),
            move |image, request| match range(request) {
                Some(_) => wrong(image),
                None => Reply::ok(image.layer.clone()),
            },
        )
        .await;
        assert_eq!(bytes.unwrap(), image.layer);
        assert_eq!(requests.len(), 3);
        assert_eq!(requests[2].header("range"), None, "asked without a range at last");
    }
}

#[tokio::test]
async fn resumed_by_the_caller() {
    let image = Image::new();
    let served = image.clone();
    let fake = Fake::start(move |request| served.serve(request)).await;
    let layer = image.layer();
    let (known, rest) = image.layer.split_at(12_345);
    let mut verifier = Verifier::new(&layer).unwrap();
    verifier.update(known);
    let stream = client()
        .fetch_blob(&reference(&fake.host()), &layer, verifier.clone(), None)
        .await
        .unwrap();
    assert_eq!(
        (stream.offset(), stream.size()),
        (12_345, image.layer.len() as u64)
    );
    assert_eq!(collect(stream).await.unwrap(), rest);
    assert_eq!(range(&fake.requests()[0]), Some(12_345));

    // All is there already: no request.
    verifier.update(rest);
    let stream = client()
        .fetch_blob(&reference(&fake.host()), &layer, verifier, None)
        .await
        .unwrap();
    assert!(collect(stream).await.unwrap().is_empty());
    assert_eq!(fake.requests().len(), 1);

    // The partial file was damaged: found out at the end.
    let mut verifier = Verifier::new(&layer).unwrap();
    verifier.update(&vec![0xff; 12_345]);
    let stream = client()
        .fetch_blob(&reference(&fake.host()), &layer, verifier, None)
        .await
        .unwrap();
    assert_eq!(collect(stream).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_wrong_digest_withholds_the_end() {
    let image = Image::new();
    let mut damaged = image.layer.clone();
    damaged[1000] ^= 1;
    let fake = Fake::start(move |_| Reply::ok(damaged.clone())).await;
    let layer = image.layer();
    let verifier = Verifier::new(&layer).unwrap();
    let mut stream = client()
        .fetch_blob(&reference(&fake.host()), &layer, verifier, None)
        .await
        .unwrap();
    let mut received = 0;
    let error = loop {
        match stream.next().await.expect("an error before the end") {
            Ok(chunk) => received += chunk.len() as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(
        error.to_string(),
        format!(
            "filesystem layer verification failed for digest {}",
            layer.digest()
        )
    );
    assert!(received < layer.size());
    assert!(stream.next().await.is_none());
    assert_eq!(fake.requests().len(), 1, "the same bytes are not fetched again");
}

#[tokio::test]
async fn too_long() {
    let (bytes, ..) = fetch(
        |image| Reply::ok([image.layer.as_slice(), b"more"].concat()),
        |_, _| Reply::status(500),
    )
    .await;
    let error = bytes.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("longer than its size"), "{error}");
}

#[tokio::test]
async fn always_truncated() {
    let half = |image: &Image| image.layer.len() / 2;
    // Both kinds of end: too early for the declared length, and a smaller length declared.
    let cut = fetch(
        move |image| image.cut(half(image)),
        move |image, _| image.cut(half(image)),
    )
    .await;
    let short = fetch(
        move |image| Reply::ok(&image.layer[..half(image)]),
        move |image, _| Reply::ok(&image.layer[..half(image)]),
    )
    .await;
    for (bytes, requests, _) in [cut, short] {
        let error = bytes.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("unexpected EOF"), "{error}");
        assert_eq!(requests.len(), 3, "as many attempts as the policy allows");
    }
}

#[tokio::test]
async fn a_byte_a_connection_is_no_progress() {
    let byte = |image: &Image, start: usize| {
        Reply::status(206)
            .header(
                "content-range",
                format!("bytes {start}-{}/{}", image.layer.len() - 1, image.layer.len()),
            )
            .header("content-length", (image.layer.len() - start).to_string())
            .send(&image.layer[start..=start])
    };
    let (bytes, requests, _) = fetch(
        |image| image.cut(1),
        move |image, request| byte(image, range(request).unwrap()),
    )
    .await;
    assert_eq!(bytes.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(requests.len(), 3);
}

#[tokio::test]
async fn more_cuts_than_attempts_with_progress_between() {
    let image = Image::with_layer(vec![7; 3 << 20]);
    let served = image.clone();
    let fake = Fake::start(move |request| {
        let start = range(request).unwrap_or(0);
        let end = (start + (300 << 10)).min(served.layer.len());
        let last = served.layer.len() - 1;
        Reply::status(if start == 0 { 200 } else { 206 })
            .header(
                "content-range",
                format!("bytes {start}-{last}/{}", served.layer.len()),
            )
            .header("content-length", (served.layer.len() - start).to_string())
            .send(&served.layer[start..end])
    })
    .await;
    assert_eq!(blob(&client(), &fake.host(), &image).await.unwrap(), image.layer);
    assert!(fake.requests().len() > 5);
}

#[tokio::test]
async fn the_registry_goes_down_in_between() {
    let image = Image::new();
    let served = image.clone();
    let fake = Fake::start(move |request| match request.nth {
        0 => served.cut(1000),
        1 => Reply::status(503).body(""),
        _ => served.serve_layer(request),
    })
    .await;
    assert_eq!(blob(&client(), &fake.host(), &image).await.unwrap(), image.layer);
    assert_eq!(fake.requests().len(), 3);
}

#[tokio::test]
async fn silence_is_a_cut() {
    let image = Image::new();
    let served = image.clone();
    let fake = Fake::start(move |request| match request.nth {
        0 => served.cut(1000).then_hang(),
        _ => served.serve_layer(request),
    })
    .await;
    let mut config = config();
    config.timeouts.idle = Duration::from_millis(60);
    let start = Instant::now();
    assert_eq!(
        blob(&Client::new(config).unwrap(), &fake.host(), &image)
            .await
            .unwrap(),
        image.layer
    );
    assert_eq!(range(&fake.requests()[1]), Some(1000));
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn slow_is_fine() {
    let image = Image::with_layer(b"0123456789abcdef".to_vec());
    let mut slow = Reply::status(200).header("content-length", "16");
    for byte in &image.layer {
        slow = slow.send([*byte]).pause(Duration::from_millis(10));
    }
    let fake = Fake::start(move |_| slow.clone()).await;
    let mut config = config();
    // Shorter than the whole takes: there is no limit on the whole.
    config.timeouts.idle = Duration::from_millis(120);
    config.timeouts.document = Duration::from_millis(20);
    config.timeouts.headers = Duration::from_millis(120);
    assert_eq!(
        blob(&Client::new(config).unwrap(), &fake.host(), &image)
            .await
            .unwrap(),
        image.layer
    );
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn sha512_and_empty() {
    let digest = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                  2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
    let fake = Fake::start(|request| {
        Reply::ok(if request.path().contains("sha512") {
            "abc"
        } else {
            ""
        })
    })
    .await;
    let layer: Descriptor =
        serde_json::from_value(json!({"mediaType": "x", "size": 3, "digest": digest})).unwrap();
    let get = |layer: Descriptor| {
        let (client, reference) = (client(), reference(&fake.host()));
        async move {
            collect(
                client
                    .fetch_blob(&reference, &layer, Verifier::new(&layer).unwrap(), None)
                    .await?,
            )
            .await
        }
    };
    assert_eq!(get(layer).await.unwrap(), b"abc");
    let empty: Descriptor = serde_json::from_value(descriptor("x", b"")).unwrap();
    assert!(get(empty).await.unwrap().is_empty());
    let mut lying = descriptor("x", b"something");
    lying["size"] = json!(0);
    let lying: Descriptor = serde_json::from_value(lying).unwrap();
    assert_eq!(get(lying).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_missing_blob() {
    let (bytes, requests, _) = fetch(
        |_| {
            Reply::status(404)
                .body(r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#)
        },
        |_, _| Reply::status(500),
    )
    .await;
    let error = bytes.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::NotFound, "blob unknown: blob unknown to registry")
    );
    assert_eq!(requests.len(), 1);
}

#[tokio::test]
async fn foreign_layers() {
    let elsewhere = Fake::start(|_| Reply::ok("foreign")).await;
    let registry = Fake::start(|_| Reply::status(404).body("")).await;
    let mut layer = descriptor(
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        b"foreign",
    );
    layer["urls"] = json!(["ftp://x/y", "not an address", elsewhere.url("/layer")]);
    let foreign: Descriptor = serde_json::from_value(layer.clone()).unwrap();
    layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar");
    let ordinary: Descriptor = serde_json::from_value(layer).unwrap();
    let get = |layer: Descriptor| {
        let (client, reference) = (client(), reference(&registry.host()));
        async move {
            collect(
                client
                    .fetch_blob(&reference, &layer, Verifier::new(&layer).unwrap(), None)
                    .await?,
            )
            .await
        }
    };
    assert_eq!(get(foreign).await.unwrap(), b"foreign");
    assert_eq!(elsewhere.requests().len(), 1);
    // Addresses of ordinary layers are not visited: a manifest must not direct the daemon's requests.
    assert_eq!(get(ordinary).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(elsewhere.requests().len(), 1);
}

#[tokio::test]
async fn a_dropped_stream_ends_the_connection() {
    let image = Image::new();
    let served = image.clone();
    let fake = Fake::start(move |_| served.cut(1000).then_hang()).await;
    let layer = image.layer();
    let mut stream = client()
        .fetch_blob(
            &reference(&fake.host()),
            &layer,
            Verifier::new(&layer).unwrap(),
            None,
        )
        .await
        .unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    // The https attempt that comes before plain http has left one permit.
    fake.connection_gone().await;
    drop(stream);
    tokio::time::timeout(Duration::from_secs(5), fake.connection_gone())
        .await
        .expect("the connection is closed");
}

#[tokio::test]
async fn offsets_must_fit() {
    let image = Image::new();
    let layer = image.layer();
    let other: Descriptor = serde_json::from_value(descriptor("x", b"other")).unwrap();
    let verifier = Verifier::new(&other).unwrap();
    let error = client()
        .fetch_blob(&reference("localhost:1"), &layer, verifier, None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_ne!(sha256(b"other"), *layer.digest());
}
