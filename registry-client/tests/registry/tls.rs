//! TLS: private authorities, self-signed certificates, client certificates, insecure registries, downgrades.
//!
//! Loopback registries are insecure by rule, so the registries here are called `registry.test` and reached through a proxy.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use skiff_registry_client::{Client, ClientConfig, ErrorKind, Reference};

use crate::fake::{Fake, Proxy, Reply};
use crate::image::{Image, config};

const NAME: &str = "registry.test";

fn app() -> Reference {
    format!("{NAME}/a/app:1").parse().unwrap()
}

struct Pair {
    certificate: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut parameters = CertificateParams::new(vec![]).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

fn issued(name: &str, authority: &Authority) -> Pair {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()])
        .unwrap()
        .signed_by(&key, authority)
        .unwrap();
    Pair {
        certificate: certificate.der().clone(),
        pem: certificate.pem(),
        key,
    }
}

/// As `openssl req -x509` makes them: an authority and a server at once.
fn self_signed(name: &str, until: i32) -> Pair {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.not_before = rcgen::date_time_ymd(2000, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(until, 1, 1);
    let certificate = parameters.self_signed(&key).unwrap();
    Pair {
        certificate: certificate.der().clone(),
        pem: certificate.pem(),
        key,
    }
}

fn server(pair: &Pair, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::try_from(pair.key.serialize_der()).unwrap();
    Arc::new(
        builder
            .with_single_cert(vec![pair.certificate.clone()], key)
            .unwrap(),
    )
}

/// A registry behind TLS, the proxy that gives it its name, and a folder for certificates.
struct World {
    fake: Fake,
    proxy: Proxy,
    folder: tempfile::TempDir,
}

impl World {
    async fn new(tls: Arc<ServerConfig>) -> Self {
        let image = Image::new();
        Self::around(Fake::start_tls(tls, move |request| image.serve(request)).await).await
    }

    async fn around(fake: Fake) -> Self {
        let proxy = Proxy::to(fake.address).await;
        Self {
            fake,
            proxy,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn put(&self, name: &str, text: &str) {
        let folder = self.folder.path().join(NAME);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), text).unwrap();
    }

    fn config(&self) -> ClientConfig {
        let mut config = config();
        config.proxies.http = Some(self.proxy.url());
        config.proxies.https = Some(self.proxy.url());
        config.certificate_directories = vec![
            Path::new("/nonexistent").to_owned(),
            self.folder.path().to_owned(),
        ];
        config
    }

    fn client(&self) -> Client {
        Client::new(self.config()).unwrap()
    }

    async fn error(&self) -> (ErrorKind, String) {
        let error = self.client().fetch_manifest(&app(), None).await.unwrap_err();
        (error.kind(), error.to_string())
    }
}

#[tokio::test]
async fn a_private_authority() {
    let authority = authority();
    let world = World::new(server(&issued(NAME, &authority), None)).await;
    let client = world.client();
    let error = client.fetch_manifest(&app(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls);
    let unknown = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    assert_eq!(
        error.to_string(),
        format!("Get \"https://{NAME}/v2/a/app/manifests/1\": {unknown}")
    );
    // The same client notices the certificate: no restart of the daemon is needed.
    world.put("ca.crt", &authority.pem());
    client.fetch_manifest(&app(), None).await.unwrap();
    assert!(!world.fake.requests().is_empty());
}

#[tokio::test]
async fn a_name_the_certificate_does_not_carry() {
    let authority = authority();
    let world = World::new(server(&issued("other.test", &authority), None)).await;
    world.put("ca.crt", &authority.pem());
    let (kind, text) = world.error().await;
    assert_eq!(kind, ErrorKind::Tls, "{text}");
    assert!(
        text.contains("x509: ") && text.contains("not valid for name"),
        "{text}"
    );
}

#[tokio::test]
async fn self_signed_certificates() {
    let pair = self_signed(NAME, 2100);
    let world = World::new(server(&pair, None)).await;
    assert_eq!(world.error().await.0, ErrorKind::Tls);
    world.put("registry.crt", &pair.pem);
    world.client().fetch_manifest(&app(), None).await.unwrap();

    for (pair, text) in [
        (self_signed("other.test", 2100), "not valid for name"),
        (self_signed(NAME, 2001), "expired"),
    ] {
        let world = World::new(server(&pair, None)).await;
        world.put("registry.crt", &pair.pem);
        let (kind, error) = world.error().await;
        assert_eq!(kind, ErrorKind::Tls);
        assert!(error.contains(text), "{error}");
    }
}

#[tokio::test]
async fn insecure_registries_are_not_verified() {
    let world = World::new(server(&self_signed("other.test", 2001), None)).await;
    let mut config = world.config();
    config.insecure_registries = vec![NAME.to_owned()];
    Client::new(config)
        .unwrap()
        .fetch_manifest(&app(), None)
        .await
        .unwrap();
}

#[tokio::test]
async fn loopback_is_not_verified() {
    let image = Image::new();
    let fake = Fake::start_tls(server(&self_signed("other.test", 2001), None), move |request| {
        image.serve(request)
    })
    .await;
    for host in [fake.host(), format!("localhost:{}", fake.address.port())] {
        let client = Client::new(config()).unwrap();
        client
            .fetch_manifest(&format!("{host}/a/app:1").parse().unwrap(), None)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn client_certificates() {
    let (authority, clients) = (authority(), authority());
    let world = World::new(server(&issued(NAME, &authority), Some(&clients))).await;
    world.put("ca.crt", &authority.pem());
    world.client().fetch_manifest(&app(), None).await.unwrap_err();
    let identity = issued("joe", &clients);
    world.put("client.cert", &identity.pem);
    let (kind, text) = world.error().await;
    assert_eq!(kind, ErrorKind::Tls);
    assert_eq!(
        text,
        "missing key client.key for client certificate client.cert. CA certificates must use the extension .crt"
    );
    world.put("client.key", &identity.key.serialize_pem());
    world.client().fetch_manifest(&app(), None).await.unwrap();
}

#[tokio::test]
async fn unusable_files() {
    let authority = authority();
    let world = World::new(server(&issued(NAME, &authority), None)).await;
    for text in [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        world.put("ca.crt", text);
        let (kind, error) = world.error().await;
        assert_eq!(kind, ErrorKind::Tls);
        assert!(error.contains("ca.crt"), "{error}");
    }
    world.put("ca.crt", &authority.pem());
    world.put("client.key", "x");
    let (kind, error) = world.error().await;
    assert_eq!(
        (kind, error.as_str()),
        (
            ErrorKind::Tls,
            "missing client certificate client.cert for key client.key"
        )
    );
}

#[tokio::test]
async fn plain_http_needs_permission() {
    let image = Image::new();
    let world = World::around(Fake::start(move |request| image.serve(request)).await).await;
    world.put("ca.crt", &authority().pem());
    let (kind, text) = world.error().await;
    assert_eq!(kind, ErrorKind::Tls);
    assert_eq!(
        text,
        format!(
            "Get \"https://{NAME}/v2/a/app/manifests/1\": http: server gave HTTP response to HTTPS client"
        )
    );
    assert!(world.fake.requests().is_empty(), "nothing was sent in the clear");

    let mut config = world.config();
    config.insecure_registries = vec![NAME.to_owned()];
    Client::new(config)
        .unwrap()
        .fetch_manifest(&app(), None)
        .await
        .unwrap();
}

#[tokio::test]
async fn no_way_down_from_https() {
    let authority = authority();
    let image = Image::new();
    let plain = Fake::start(move |request| image.serve(request)).await;
    let target = plain.url("/v2/a/app/manifests/1");
    let tls = server(&issued(NAME, &authority), None);
    let world = World::around(Fake::start_tls(tls, move |_| Reply::redirect(target.clone())).await).await;
    world.put("ca.crt", &authority.pem());
    let (kind, text) = world.error().await;
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(text.contains("refusing to go from https to http"), "{text}");
    assert!(plain.requests().is_empty());

    // The operator may declare the target, or the registry, insecure.
    for insecure in [plain.host(), NAME.to_owned()] {
        let mut config = world.config();
        config.insecure_registries = vec![insecure];
        Client::new(config)
            .unwrap()
            .fetch_manifest(&app(), None)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn tokens_are_not_asked_for_in_the_clear() {
    let authority = authority();
    let tokens = Fake::start(|_| Reply::ok(r#"{"token":"t"}"#)).await;
    let realm = tokens.url("/token");
    let tls = server(&issued(NAME, &authority), None);
    let guard = move |_: &crate::fake::Request| {
        Reply::status(401)
            .header("www-authenticate", format!("Bearer realm=\"{realm}\""))
            .body("")
    };
    let world = World::around(Fake::start_tls(tls, guard).await).await;
    world.put("ca.crt", &authority.pem());
    let (kind, text) = world.error().await;
    assert_eq!(kind, ErrorKind::Unsupported, "{text}");
    assert!(tokens.requests().is_empty());
}

#[tokio::test]
async fn a_missing_client_certificate_is_not_repeated() {
    let (authority, clients) = (authority(), authority());
    let world = World::new(server(&issued(NAME, &authority), Some(&clients))).await;
    world.put("ca.crt", &authority.pem());
    let (kind, text) = world.error().await;
    assert_eq!(kind, ErrorKind::Tls, "{text}");
    assert!(text.contains("CertificateRequired"), "{text}");
}
