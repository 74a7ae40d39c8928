//! Tokens, Basic, credential files, logins; and that a failing token server is not taken for a missing image.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::json;
use skiff_registry_client::{Client, Credentials, Error, ErrorKind, Verifier};

use crate::fake::{Fake, Reply, Request};
use crate::image::{Image, client, collect, config, reference};

fn joe() -> Credentials {
    Credentials {
        username: "joe".into(),
        password: "secret".into(),
        ..Credentials::default()
    }
}

fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

/// A token server that always gives `reply`.
async fn token_server(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Fake {
    Fake::start(reply).await
}

/// A registry that wants a token accepted by `valid`, from `realm`.
async fn guarded(realm: String, valid: impl Fn(&str) -> bool + Send + Sync + 'static) -> (Fake, Image) {
    let image = Image::new();
    let served = image.clone();
    let fake = Fake::start(move |request| match request.header("authorization") {
        Some(header) if valid(header) => served.serve(request),
        _ => Reply::status(401)
            .header(
                "www-authenticate",
                format!("Bearer realm=\"{realm}\",service=\"reg,istry\",scope=\"repository:a/app:pull\""),
            )
            .body(r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#),
    })
    .await;
    (fake, image)
}

fn token(value: &str) -> Reply {
    Reply::json(json!({"token": value, "expires_in": 300}))
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once() {
    let tokens = token_server(|_| token("t1")).await;
    let (registry, image) = guarded(tokens.url("/token?x=y"), |header| header == "Bearer t1").await;
    let (client, reference) = (client(), reference(&registry.host()));
    let found = client
        .fetch_image(&reference, &"linux/amd64".parse().unwrap(), None)
        .await
        .unwrap();
    let layer = &found.image.layers()[0];
    let fetches = (0..4).map(|_| async {
        let stream = client
            .fetch_blob(&reference, layer, Verifier::new(layer).unwrap(), None)
            .await
            .unwrap();
        assert_eq!(collect(stream).await.unwrap(), image.layer);
    });
    futures_util::future::join_all(fetches).await;
    let asked = tokens.requests();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].header("authorization"), None);
    let query: Vec<_> = url::Url::parse("http://x")
        .unwrap()
        .join(&asked[0].target)
        .unwrap()
        .query_pairs()
        .into_owned()
        .collect();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    for expected in [
        pair("x", "y"),
        pair("service", "reg,istry"),
        pair("scope", "repository:a/app:pull"),
    ] {
        assert!(query.contains(&expected), "{query:?}");
    }
    let refused = registry
        .requests()
        .iter()
        .filter(|r| r.header("authorization").is_none())
        .count();
    assert_eq!(refused, 1, "later requests carry the token at once");
}

#[tokio::test]
async fn many_at_once_share_one_fetch() {
    let tokens = token_server(|_| token("t1").pause(std::time::Duration::from_millis(20))).await;
    let (registry, _) = guarded(tokens.url("/token"), |header| header == "Bearer t1").await;
    let (client, reference) = (client(), reference(&registry.host()));
    let fetches = (0..8).map(|_| client.fetch_manifest(&reference, None));
    for result in futures_util::future::join_all(fetches).await {
        result.unwrap();
    }
    assert_eq!(tokens.requests().len(), 1);
}

#[tokio::test]
async fn a_stale_token_is_replaced_once() {
    let tokens = token_server(|request| token(&format!("t{}", request.nth))).await;
    let current = Arc::new(AtomicUsize::new(0));
    let valid = Arc::clone(&current);
    let (registry, _) = guarded(tokens.url("/token"), move |header| {
        header == format!("Bearer t{}", valid.load(Ordering::Relaxed))
    })
    .await;
    let (client, reference) = (client(), reference(&registry.host()));
    client.fetch_manifest(&reference, None).await.unwrap();
    current.store(1, Ordering::Relaxed);
    client.fetch_manifest(&reference, None).await.unwrap();
    assert_eq!(tokens.requests().len(), 2);
}

#[tokio::test]
async fn refusals_do_not_loop() {
    let tokens = token_server(|request| token(&format!("t{}", request.nth))).await;
    let (registry, _) = guarded(tokens.url("/token"), |_| false).await;
    let error = client()
        .fetch_manifest(&reference(&registry.host()), Some(&joe()))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Unauthorized, "unauthorized: authentication required")
    );
    assert_eq!((registry.requests().len(), tokens.requests().len()), (2, 1));

    let basic = Fake::start(|_| {
        Reply::status(401)
            .header("www-authenticate", "Basic realm=x")
            .body("")
    })
    .await;
    let error = client()
        .fetch_manifest(&reference(&basic.host()), Some(&joe()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert_eq!(basic.requests().len(), 2);
}

#[tokio::test]
async fn user_and_password_go_to_the_realm() {
    let tokens = token_server(|request| match request.header("authorization") {
        Some(header) if header == basic("joe:secret") => token("joe's"),
        _ => token("anonymous"),
    })
    .await;
    let (registry, _) = guarded(tokens.url("/token"), |header| header == "Bearer joe's").await;
    let (client, reference) = (client(), reference(&registry.host()));
    client.fetch_manifest(&reference, Some(&joe())).await.unwrap();
    assert!(tokens.requests()[0].target.contains("account=joe"));
    // Somebody else's request does not get joe's token.
    let error = client.fetch_manifest(&reference, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(
        registry
            .requests()
            .iter()
            .all(|r| r.header("authorization").is_none_or(|h| h.starts_with("Bearer")))
    );
}

#[tokio::test]
async fn an_identity_token_is_posted() {
    let tokens = token_server(|request| {
        assert_eq!(request.method, "POST");
        Reply::json(json!({"access_token": "fresh"}))
    })
    .await;
    let (registry, _) = guarded(tokens.url("/token"), |header| header == "Bearer fresh").await;
    let credentials = Credentials {
        identity_token: Some("re&fresh".into()),
        ..Credentials::default()
    };
    client()
        .fetch_manifest(&reference(&registry.host()), Some(&credentials))
        .await
        .unwrap();
    let form = &tokens.requests()[0].body;
    for part in [
        "grant_type=refresh_token",
        "refresh_token=re%26fresh",
        "service=reg%2Cistry",
        "scope=repository%3Aa%2Fapp%3Apull",
    ] {
        assert!(form.contains(part), "{form}");
    }
}

#[tokio::test]
async fn a_registry_token_is_used_as_it_is() {
    let (registry, _) = guarded("http://127.0.0.1:1/never".into(), |header| {
        header == "Bearer mine"
    })
    .await;
    let credentials = Credentials {
        registry_token: Some("mine".into()),
        ..Credentials::default()
    };
    client()
        .fetch_manifest(&reference(&registry.host()), Some(&credentials))
        .await
        .unwrap();
}

async fn basic_registry() -> Fake {
    let image = Image::new();
    Fake::start(move |request| match request.header("authorization") {
        Some(header) if header == basic("joe:secret") => image.serve(request),
        _ => Reply::status(401)
            .header("www-authenticate", "Basic realm=\"x, y\"")
            .body(""),
    })
    .await
}

#[tokio::test]
async fn basic_with_and_without_credentials() {
    let registry = basic_registry().await;
    let (client, reference) = (client(), reference(&registry.host()));
    client.fetch_manifest(&reference, Some(&joe())).await.unwrap();
    let error = client.fetch_manifest(&reference, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let url = registry.url("/v2/a/app/manifests/1");
    assert_eq!(
        error.to_string(),
        format!("Get \"{url}\": no basic auth credentials")
    );
}

#[tokio::test]
async fn the_credential_file_is_asked() {
    let registry = basic_registry().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let file = json!({"auths": {registry.host(): {"auth": BASE64_STANDARD.encode("joe:secret")}}});
    std::fs::write(&path, file.to_string()).unwrap();
    let client = |path| {
        let mut config = config();
        config.credential_file = Some(path);
        Client::new(config).unwrap()
    };
    client(path.clone())
        .fetch_manifest(&reference(&registry.host()), None)
        .await
        .unwrap();
    // What the request brings comes first.
    let other = Credentials {
        username: "eve".into(),
        password: "x".into(),
        ..Credentials::default()
    };
    let error = client(path)
        .fetch_manifest(&reference(&registry.host()), Some(&other))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);

    // A broken file does not break pulls that need none.
    let broken = directory.path().join("broken.json");
    std::fs::write(&broken, "{").unwrap();
    let tokens = token_server(|_| token("t1")).await;
    let (public, _) = guarded(tokens.url("/token"), |header| header == "Bearer t1").await;
    client(broken)
        .fetch_manifest(&reference(&public.host()), None)
        .await
        .unwrap();
}

#[tokio::test]
async fn denied_as_docker_hub_does() {
    let tokens = token_server(|_| token("too narrow")).await;
    let realm = tokens.url("/token");
    let registry = Fake::start(move |request| {
        let error = if request.header("authorization").is_some() {
            ",error=\"insufficient_scope\""
        } else {
            ""
        };
        Reply::status(401)
            .header(
                "www-authenticate",
                format!("Bearer realm=\"{realm}\",service=\"s\"{error}"),
            )
            .body(r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#)
    })
    .await;
    let error = client()
        .fetch_manifest(&reference(&registry.host()), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let name = format!("{}/a/app", registry.host());
    let expected = format!(
        "pull access denied for {name}, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"
    );
    assert_eq!(error.to_string(), expected);
}

/// The error of a pull when the token server gives `reply`.
async fn with_token_reply(reply: Reply) -> (Error, usize) {
    let tokens = token_server(move |_| reply.clone()).await;
    let (registry, _) = guarded(tokens.url("/token"), |_| true).await;
    // The guard lets every token pass, so an error can only come from the token server.
    let error = client()
        .fetch_manifest(&reference(&registry.host()), Some(&joe()))
        .await
        .unwrap_err();
    (error, tokens.requests().len())
}

#[tokio::test]
async fn garbage_from_the_token_server() {
    let cases = [
        (
            Reply::ok("<html>"),
            ErrorKind::Unavailable,
            "unable to decode token response",
            1,
        ),
        (
            Reply::json(json!({"token": 7, "x": "hunter2"})),
            ErrorKind::Unavailable,
            "unable to decode token response",
            1,
        ),
        (
            Reply::json(json!({})),
            ErrorKind::Unavailable,
            "did not include a token",
            1,
        ),
        (
            Reply::json(json!({"token": ""})),
            ErrorKind::Unavailable,
            "did not include a token",
            1,
        ),
        (
            token("a\r\nx: y"),
            ErrorKind::Unauthorized,
            "cannot be sent in an HTTP header",
            1,
        ),
        (
            Reply::status(404).body(""),
            ErrorKind::Unavailable,
            "token server",
            1,
        ),
        (Reply::status(500).body(""), ErrorKind::Unavailable, "500", 3),
        (
            Reply::status(200).forever("{\"token\":".to_owned() + &" ".repeat(1 << 16)),
            ErrorKind::TooLarge,
            "larger",
            1,
        ),
        (
            Reply::status(401).body(r#"{"details":"incorrect username or password"}"#),
            ErrorKind::Unauthorized,
            "unauthorized: incorrect username or password",
            1,
        ),
    ];
    for (reply, kind, text, asked) in cases {
        let (error, found) = with_token_reply(reply).await;
        assert_eq!((error.kind(), found), (kind, asked), "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn realms_that_are_no_addresses() {
    for realm in [
        "",
        "nonsense",
        "ftp://127.0.0.1/t",
        "file:///etc/passwd",
        "http://[::1/t",
    ] {
        let (registry, _) = guarded(realm.to_owned(), |_| true).await;
        let error = client()
            .fetch_manifest(&reference(&registry.host()), Some(&joe()))
            .await
            .unwrap_err();
        assert_ne!(error.kind(), ErrorKind::NotFound, "{realm}: {error}");
        assert_eq!(registry.requests().len(), 1, "{realm}");
    }
}

#[tokio::test]
async fn a_posted_secret_is_not_redirected() {
    let other = token_server(|_| token("t1")).await;
    let target = other.url("/token");
    let tokens = token_server(move |_| Reply::redirect(target.clone())).await;
    let (registry, _) = guarded(tokens.url("/token"), |_| true).await;
    let credentials = Credentials {
        identity_token: Some("refresh".into()),
        ..Credentials::default()
    };
    client()
        .fetch_manifest(&reference(&registry.host()), Some(&credentials))
        .await
        .unwrap_err();
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn logins() {
    let registry = basic_registry().await;
    let login = client().login(&registry.host(), &joe()).await.unwrap();
    assert_eq!(
        (login.status.as_str(), login.identity_token),
        ("Login Succeeded", None)
    );
    let wrong = Credentials {
        password: "wrong".into(),
        ..joe()
    };
    let error = client().login(&registry.url("/v2/"), &wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let url = registry.url("/v2/");
    assert_eq!(
        error.to_string(),
        format!("login attempt to {url} failed with status: 401 Unauthorized")
    );
    client().ping(&registry.host()).await.unwrap();

    let open = Fake::start(|_| Reply::ok("{}")).await;
    client().login(&open.host(), &joe()).await.unwrap();
    let none = Fake::start(|_| Reply::status(404).body("nginx")).await;
    client().login(&none.host(), &joe()).await.unwrap_err();
    assert_eq!(
        client().ping(&none.host()).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test]
async fn logins_with_tokens() {
    let tokens = token_server(|request| match request.header("authorization") {
        Some(header) if header == basic("joe:secret") => {
            Reply::json(json!({"token": "t1", "refresh_token": "keep me"}))
        }
        _ => Reply::status(401).body(r#"{"details":"incorrect username or password"}"#),
    })
    .await;
    let (registry, _) = guarded(tokens.url("/token"), |header| header == "Bearer t1").await;
    let login = client().login(&registry.host(), &joe()).await.unwrap();
    assert_eq!(login.identity_token.as_deref(), Some("keep me"));
    let asked: &Request = &tokens.requests()[0];
    assert!(
        asked.target.contains("offline_token=true") && asked.target.contains("client_id=docker"),
        "{}",
        asked.target
    );

    let wrong = Credentials {
        password: "wrong".into(),
        ..joe()
    };
    let error = client().login(&registry.host(), &wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(
        error
            .to_string()
            .ends_with("unauthorized: incorrect username or password"),
        "{error}"
    );
}
