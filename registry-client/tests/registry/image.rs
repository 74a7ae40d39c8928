//! A small image and what the tests ask of it.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use skiff_registry_client::{
    BlobStream, Client, ClientConfig, Descriptor, Error, Reference, RetryPolicy, Timeouts, Verifier,
    media_types, sha256,
};

use crate::fake::{Reply, Request};

/// Short limits: a test that waits for one waits a fifth of a second at most.
pub(crate) fn config() -> ClientConfig {
    ClientConfig {
        retry: RetryPolicy {
            attempts: 3,
            initial_pause: Duration::from_millis(2),
            longest_pause: Duration::from_millis(20),
        },
        timeouts: Timeouts {
            connect: Duration::from_secs(5),
            headers: Duration::from_millis(2000),
            idle: Duration::from_millis(2000),
            document: Duration::from_millis(4000),
            helper: Duration::from_secs(5),
        },
        ..ClientConfig::default()
    }
}

pub(crate) fn client() -> Client {
    Client::new(config()).unwrap()
}

pub(crate) fn reference(host: &str) -> Reference {
    format!("{host}/a/app:1").parse().unwrap()
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "size": bytes.len(), "digest": sha256(bytes).to_string()})
}

/// An image with one layer, and the index that names it.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) layer: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) index: Vec<u8>,
}

impl Image {
    pub(crate) fn new() -> Self {
        Self::with_layer((0..100_000_u32).flat_map(u32::to_le_bytes).collect())
    }

    pub(crate) fn with_layer(layer: Vec<u8>) -> Self {
        let config =
            json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}})
                .to_string()
                .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_types::OCI_MANIFEST,
            "config": descriptor(media_types::OCI_CONFIG, &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = descriptor(media_types::OCI_MANIFEST, &manifest);
        entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
        let mut attestation = descriptor(media_types::OCI_MANIFEST, b"attestation");
        attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        let index = json!({"schemaVersion": 2, "mediaType": media_types::OCI_INDEX, "manifests": [attestation, entry]});
        Self {
            layer,
            config,
            manifest,
            index: index.to_string().into_bytes(),
        }
    }

    pub(crate) fn layer(&self) -> Descriptor {
        serde_json::from_value(descriptor("application/vnd.oci.image.layer.v1.tar", &self.layer)).unwrap()
    }

    pub(crate) fn config(&self) -> Descriptor {
        serde_json::from_value(descriptor(media_types::OCI_CONFIG, &self.config)).unwrap()
    }

    /// A registry that behaves.
    pub(crate) fn serve(&self, request: &Request) -> Reply {
        let by_digest = |bytes: &[u8]| request.path().ends_with(&sha256(bytes).to_string());
        match request.path() {
            "/v2/" => Reply::json(json!({})),
            path if path.ends_with("/manifests/1") => {
                Reply::ok(self.index.clone()).header("content-type", media_types::OCI_INDEX)
            }
            path if path.contains("/manifests/") && by_digest(&self.manifest) => {
                Reply::ok(self.manifest.clone()).header("content-type", media_types::OCI_MANIFEST)
            }
            path if path.contains("/blobs/") && by_digest(&self.config) => Reply::ok(self.config.clone()),
            path if path.contains("/blobs/") && by_digest(&self.layer) => self.serve_layer(request),
            _ => Reply::status(404)
                .body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
        }
    }

    /// The layer, from where the request wants it.
    pub(crate) fn serve_layer(&self, request: &Request) -> Reply {
        match range(request) {
            Some(start) => self.partial(start),
            None => Reply::ok(self.layer.clone()),
        }
    }

    pub(crate) fn partial(&self, start: usize) -> Reply {
        let last = self.layer.len() - 1;
        Reply::status(206)
            .header(
                "content-range",
                format!("bytes {start}-{last}/{}", self.layer.len()),
            )
            .body(&self.layer[start..])
    }

    /// Declares the whole layer, sends `bytes` of it and cuts the connection.
    pub(crate) fn cut(&self, bytes: usize) -> Reply {
        Reply::status(200)
            .header("content-length", self.layer.len().to_string())
            .send(&self.layer[..bytes])
    }
}

pub(crate) fn range(request: &Request) -> Option<usize> {
    request
        .header("range")?
        .strip_prefix("bytes=")?
        .strip_suffix('-')?
        .parse()
        .ok()
}

pub(crate) async fn blob(client: &Client, host: &str, image: &Image) -> Result<Vec<u8>, Error> {
    let layer = image.layer();
    let verifier = Verifier::new(&layer).unwrap();
    collect(
        client
            .fetch_blob(&reference(host), &layer, verifier, None)
            .await?,
    )
    .await
}

pub(crate) async fn collect(mut stream: BlobStream) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}
