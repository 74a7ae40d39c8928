//! The real registry (Debian's docker-registry): the one that `scripts/integration.sh` started and filled with busybox, and
//! one with a password file that a test starts for itself.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::http::{Exchange, Response, query};
use super::image::{Built, MANIFEST};
use super::{PATIENCE, eventually, this_machine, unused_port};

/// A registry on this machine, over plain HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    /// `localhost:PORT`.
    pub(crate) address: String,
    authorization: Option<String>,
}

/// The shared registry.
pub(crate) fn registry() -> Registry {
    let address =
        std::env::var("SKIFF_TEST_REGISTRY").expect("SKIFF_TEST_REGISTRY is not set: run `make integration`");
    Registry {
        address,
        authorization: None,
    }
}

impl Registry {
    /// Reference of the busybox image.
    pub(crate) fn busybox(&self) -> String {
        format!("{}/busybox", self.address)
    }

    fn request(&self, method: &str, target: &str, media_type: &str, body: &[u8]) -> Response {
        let stream = TcpStream::connect(&self.address).unwrap();
        let authorization = self.authorization.clone().unwrap_or_default();
        let mut headers = vec![
            ("Connection", "close"),
            ("Accept", MANIFEST),
            ("Content-Type", media_type),
        ];
        if !authorization.is_empty() {
            headers.push(("Authorization", &authorization));
        }
        Exchange::begin(stream, method, target, &headers, body)
            .and_then(Exchange::finish)
            .unwrap()
    }

    /// Pushes an image as `NAME[:TAG]`; gives the full reference.
    pub(crate) fn push(&self, image: &Built, name: &str) -> String {
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        for blob in image.blobs() {
            if self
                .request(
                    "HEAD",
                    &format!("/v2/{repository}/blobs/{}", blob.digest),
                    "",
                    b"",
                )
                .status
                == 200
            {
                continue;
            }
            let upload = self
                .request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"")
                .expect_status(202);
            let location = upload.header("location").unwrap();
            let target = location.find("/v2/").map(|start| &location[start..]).unwrap();
            let target = format!("{target}&digest={}", query(&blob.digest));
            self.request("PUT", &target, "application/octet-stream", &blob.bytes)
                .expect_status(201);
        }
        self.request(
            "PUT",
            &format!("/v2/{repository}/manifests/{tag}"),
            MANIFEST,
            &image.manifest,
        )
        .expect_status(201);
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Fetches an image.
    pub(crate) fn pull(&self, repository: &str, tag: &str) -> Built {
        let get = |target: String| self.request("GET", &target, "", b"").expect_status(200).body;
        let manifest = get(format!("/v2/{repository}/manifests/{tag}"));
        Built::from_parts(manifest, |digest| get(format!("/v2/{repository}/blobs/{digest}")))
    }
}

/// A registry that wants a name and a password (`tester`, `secret`); ended when dropped.
#[derive(Debug)]
pub(crate) struct PasswordRegistry {
    pub(crate) registry: Registry,
    child: Child,
    _directory: TempDir,
}

impl PasswordRegistry {
    pub(crate) const USER: &'static str = "tester";
    pub(crate) const PASSWORD: &'static str = "secret";

    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let hashed = Command::new("htpasswd")
            .args(["-Bbn", "-C", "4", Self::USER, Self::PASSWORD])
            .output()
            .unwrap();
        assert!(hashed.status.success(), "htpasswd");
        fs::write(path.join("htpasswd"), hashed.stdout).unwrap();
        let port = unused_port();
        let config = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {0}/data}}}}\nhttp: {{addr: \":{port}\"}}\n\
             auth: {{htpasswd: {{realm: test, path: {0}/htpasswd}}}}\n",
            path.display()
        );
        fs::write(path.join("config.yml"), config).unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "--", "docker-registry", "serve"])
            .arg(path.join("config.yml"));
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = format!("{}:{port}", this_machine());
        eventually("the registry listens", PATIENCE, || {
            TcpStream::connect(&address).ok()
        });
        let credentials = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            format!("{}:{}", Self::USER, Self::PASSWORD),
        );
        let registry = Registry {
            address,
            authorization: Some(format!("Basic {credentials}")),
        };
        Self {
            registry,
            child,
            _directory: directory,
        }
    }
}

impl Drop for PasswordRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
