//! Against the reference implementation: Debian's docker-registry, with and without a password.
//!
//! What is pushed here by raw requests is judged by a registry that shares nothing with this client or the fakes.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use base64::prelude::{BASE64_STANDARD, Engine};
use skiff_registry_client::{Client, Credentials, ErrorKind, Reference, Verifier, media_types, sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::image::{Image, client, collect, config};

/// `joe:secret`, as `htpasswd -nbB` writes it.
const HTPASSWD: &str = "joe:$2y$04$ux/NqoY2VTAUal4tQxy1WeYD7CISICbIkfqxDhsZpv4cA9CW3V3Q2";

/// A running docker-registry with its own storage; ends when dropped.
struct Registry {
    address: SocketAddr,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Registry {
    /// `None`, with the reason printed, when the program is missing and skipping is allowed.
    #[expect(clippy::print_stdout, reason = "a skip prints its reason")]
    async fn start(password: bool) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let storage = folder.path().join("storage");
        let mut text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            storage.display()
        );
        if password {
            let file = folder.path().join("htpasswd");
            std::fs::write(&file, format!("{HTPASSWD}\n")).unwrap();
            text.push_str(&format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                file.display()
            ));
        }
        let path = folder.path().join("config.yml");
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if std::env::var_os("SKIFF_TEST_ALLOW_SKIP").is_some_and(|value| value == "1") => {
                println!("SKIPPED: docker-registry cannot be started: {error}");
                return None;
            }
            Err(error) => panic!(
                "docker-registry cannot be started: {error}; install it or set SKIFF_TEST_ALLOW_SKIP=1"
            ),
        };
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = tokio::task::spawn_blocking(move || {
            let seen = lines
                .by_ref()
                .map_while(Result::ok)
                .any(|line| line.contains("listening on"));
            // Its log goes on; a full pipe would stop it.
            std::thread::spawn(move || lines.for_each(drop));
            seen
        });
        assert!(
            listening.await.unwrap(),
            "docker-registry ended before it listened"
        );
        Some(Self {
            address,
            child,
            _folder: folder,
        })
    }

    fn reference(&self) -> Reference {
        format!("{}/a/app:1", self.address).parse().unwrap()
    }

    /// Sends one request and gives back the answer's head.
    async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut head = format!(
            "{method} {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n",
            self.address,
            body.len()
        );
        head.push_str(&format!(
            "authorization: Basic {}\r\n",
            BASE64_STANDARD.encode("joe:secret")
        ));
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        answer.split("\r\n\r\n").next().unwrap().to_owned()
    }

    async fn push(&self, image: &Image) {
        for blob in [&image.layer, &image.config] {
            let head = self.send("POST", "/v2/a/app/blobs/uploads/", &[], b"").await;
            let location = head
                .lines()
                .find_map(|line| line.strip_prefix("Location: "))
                .unwrap_or_else(|| panic!("{head}"));
            let target = location.split_once(&self.address.to_string()).unwrap().1;
            let digest = sha256(blob).to_string().replace(':', "%3A");
            let head = self
                .send(
                    "PUT",
                    &format!("{target}&digest={digest}"),
                    &[("content-type", "application/octet-stream")],
                    blob,
                )
                .await;
            assert!(head.starts_with("HTTP/1.1 201"), "{head}");
        }
        let digest = sha256(&image.manifest).to_string();
        let manifests = [
            (digest.as_str(), media_types::OCI_MANIFEST, &image.manifest),
            ("1", media_types::OCI_MANIFEST, &image.manifest),
        ];
        for (name, media_type, manifest) in manifests {
            let head = self
                .send(
                    "PUT",
                    &format!("/v2/a/app/manifests/{name}"),
                    &[("content-type", media_type)],
                    manifest,
                )
                .await;
            assert!(head.starts_with("HTTP/1.1 201"), "{head}");
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn pull(client: &Client, reference: &Reference, image: &Image, credentials: Option<&Credentials>) {
    let found = client
        .fetch_image(reference, &"linux/amd64".parse().unwrap(), credentials)
        .await
        .unwrap();
    assert_eq!(found.manifest.bytes, image.manifest);
    assert_eq!(
        client
            .fetch_config(reference, found.image.config(), credentials)
            .await
            .unwrap(),
        image.config
    );
    let layer = &found.image.layers()[0];
    let stream = client
        .fetch_blob(reference, layer, Verifier::new(layer).unwrap(), credentials)
        .await
        .unwrap();
    assert_eq!(collect(stream).await.unwrap(), image.layer);

    let mut verifier = Verifier::new(layer).unwrap();
    verifier.update(&image.layer[..1000]);
    let stream = client
        .fetch_blob(reference, layer, verifier, credentials)
        .await
        .unwrap();
    assert_eq!(collect(stream).await.unwrap(), &image.layer[1000..]);
}

#[tokio::test]
async fn an_open_registry() {
    let Some(registry) = Registry::start(false).await else {
        return;
    };
    let image = Image::new();
    registry.push(&image).await;
    let (client, reference) = (client(), registry.reference());
    pull(&client, &reference, &image, None).await;

    let error = client
        .fetch_manifest(&reference.with_tag("nope").unwrap(), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        format!(
            "manifest for {}/a/app:nope not found: manifest unknown: manifest unknown",
            registry.address
        )
    );
    let other: Reference = format!("{}/other", registry.address).parse().unwrap();
    assert_eq!(
        client.fetch_manifest(&other, None).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let missing = serde_json::json!({"mediaType": "x", "size": 1, "digest": sha256(b"missing").to_string()});
    let missing = serde_json::from_value(missing).unwrap();
    let error = client
        .fetch_blob(&reference, &missing, Verifier::new(&missing).unwrap(), None)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::NotFound, Some("BLOB_UNKNOWN"))
    );
    client.ping(&registry.address.to_string()).await.unwrap();
}

#[tokio::test]
async fn a_registry_with_a_password() {
    let Some(registry) = Registry::start(true).await else {
        return;
    };
    let image = Image::new();
    registry.push(&image).await;
    let joe = Credentials {
        username: "joe".into(),
        password: "secret".into(),
        ..Credentials::default()
    };
    let eve = Credentials {
        password: "guess".into(),
        ..joe.clone()
    };
    let (client, reference, server) = (client(), registry.reference(), registry.address.to_string());
    pull(&client, &reference, &image, Some(&joe)).await;

    let error = client.fetch_manifest(&reference, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(
        error.to_string().ends_with("no basic auth credentials"),
        "{error}"
    );
    let error = client.fetch_manifest(&reference, Some(&eve)).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Unauthorized, "unauthorized: authentication required")
    );

    assert_eq!(
        client.login(&server, &joe).await.unwrap().status,
        "Login Succeeded"
    );
    assert_eq!(
        client.login(&server, &eve).await.unwrap_err().kind(),
        ErrorKind::Unauthorized
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let file = serde_json::json!({"auths": {server: {"auth": BASE64_STANDARD.encode("joe:secret")}}});
    std::fs::write(&path, file.to_string()).unwrap();
    let mut config = config();
    config.credential_file = Some(path);
    pull(&Client::new(config).unwrap(), &reference, &image, None).await;
}
