//! Redirects: followed, counted, and never with credentials to another host.

use skiff_registry_client::{Credentials, ErrorKind, Verifier};

use crate::fake::{Fake, Reply};
use crate::image::{Image, blob, client, collect, range, reference};

fn joe() -> Credentials {
    Credentials {
        username: "joe".into(),
        password: "secret".into(),
        ..Credentials::default()
    }
}

#[tokio::test]
async fn credentials_stay_at_home() {
    let image = Image::new();
    let served = image.clone();
    let storage = Fake::start(move |request| served.serve_layer(request)).await;
    let (target, served) = (storage.url("/bucket/layer?signature=abc"), image.clone());
    let registry = Fake::start(move |request| match request.header("authorization") {
        None => Reply::status(401)
            .header("www-authenticate", "Basic realm=x")
            .body(""),
        Some(_) if request.path().starts_with("/moved") => Reply::redirect(target.clone()),
        Some(_) if request.path().contains("/blobs/") => Reply::redirect(format!("/moved{}", request.path())),
        Some(_) => served.serve(request),
    })
    .await;
    let layer = image.layer();
    let verifier = Verifier::new(&layer).unwrap();
    let stream = client()
        .fetch_blob(&reference(&registry.host()), &layer, verifier, Some(&joe()))
        .await
        .unwrap();
    assert_eq!(collect(stream).await.unwrap(), image.layer);
    // Within the registry they travel along.
    assert!(
        registry
            .requests_for("/moved")
            .iter()
            .all(|r| r.header("authorization").is_some())
    );
    let asked = storage.requests();
    assert_eq!(asked.len(), 1);
    for secret in ["authorization", "cookie", "referer"] {
        assert_eq!(asked[0].header(secret), None, "{:?}", asked[0]);
    }
}

#[tokio::test]
async fn credentials_do_not_come_back() {
    let image = Image::new();
    let registry_address = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let back = std::sync::Arc::clone(&registry_address);
    let bouncer = Fake::start(move |_| Reply::redirect(format!("{}/stolen", back.lock().unwrap()))).await;
    let (target, served) = (bouncer.url("/x"), image.clone());
    let registry = Fake::start(move |request| match request.path() {
        "/stolen" => served.serve_layer(request),
        _ if request.header("authorization").is_none() => Reply::status(401)
            .header("www-authenticate", "Basic realm=x")
            .body(""),
        _ => Reply::redirect(target.clone()),
    })
    .await;
    *registry_address.lock().unwrap() = registry.url("");
    let layer = image.layer();
    let stream = client()
        .fetch_blob(
            &reference(&registry.host()),
            &layer,
            Verifier::new(&layer).unwrap(),
            Some(&joe()),
        )
        .await
        .unwrap();
    assert_eq!(collect(stream).await.unwrap(), image.layer);
    assert_eq!(registry.requests_for("/stolen")[0].header("authorization"), None);
}

#[tokio::test]
async fn loops_end() {
    let fake = Fake::start(|request| Reply::redirect(format!("{}x", request.target))).await;
    let error = client()
        .fetch_manifest(&reference(&fake.host()), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("stopped after 10 redirects"),
        "{error}"
    );
    assert_eq!(fake.requests().len(), 11);
}

#[tokio::test]
async fn nowhere() {
    for target in ["file:///etc/passwd", "ftp://127.0.0.1/", "http://", "unix:/run/x"] {
        let fake = Fake::start(move |_| Reply::redirect(target)).await;
        let error = client()
            .fetch_manifest(&reference(&fake.host()), None)
            .await
            .unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Unavailable),
            "{target}: {error}"
        );
        assert_eq!(fake.requests().len(), 1, "{target}");
    }
}

#[tokio::test]
async fn an_expired_signature_is_asked_for_anew() {
    let image = Image::new();
    let served = image.clone();
    let storage = Fake::start(move |request| match request.target.as_str() {
        "/expired" => Reply::status(403).body("<Error><Code>AccessDenied</Code></Error>"),
        _ => served.serve_layer(request),
    })
    .await;
    let (expired, fresh) = (storage.url("/expired"), storage.url("/fresh"));
    let registry =
        Fake::start(move |request| Reply::redirect(if request.nth == 0 { &expired } else { &fresh })).await;
    assert_eq!(
        blob(&client(), &registry.host(), &image).await.unwrap(),
        image.layer
    );
}

#[tokio::test]
async fn a_storage_host_s_word_is_not_the_registry_s() {
    let storage = Fake::start(|_| Reply::status(404).body("")).await;
    let target = storage.url("/x?signature=hunter2");
    let registry = Fake::start(move |_| Reply::redirect(target.clone())).await;
    let error = client()
        .fetch_manifest(&reference(&registry.host()), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(
        error.to_string().contains(&storage.host()) && !error.to_string().contains("hunter2"),
        "{error}"
    );
}

#[tokio::test]
async fn ranges_survive_redirects() {
    let image = Image::new();
    let served = image.clone();
    let storage = Fake::start(move |request| {
        if request.nth == 0 {
            served.cut(5000)
        } else {
            served.serve_layer(request)
        }
    })
    .await;
    let target = storage.url("/x");
    let registry = Fake::start(move |_| Reply::redirect(target.clone())).await;
    assert_eq!(
        blob(&client(), &registry.host(), &image).await.unwrap(),
        image.layer
    );
    assert_eq!(range(&storage.requests()[1]), Some(5000));
    assert_eq!(registry.requests().len(), 2, "a fresh address for each attempt");
}
