//! Manifests: what came from the registry, byte for byte, and its reading as an image or an index.
//!
//! A manifest's bytes are kept as they came: their digest is the image's identity and stores write them unchanged. Reading is strict
//! where two readers could otherwise disagree about one document (CVE-2021-41190): the type in the header, the type in the body and the
//! fields present must all say the same.

use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::{Error, ErrorKind, Result};
use crate::platform::Platform;

/// The media types of manifests, configurations and foreign layers.
pub mod media_types {
    /// Docker's image manifest, version 2, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's manifest list.
    pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker's layer that registries need not hold.
    pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    /// OCI's image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI's image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI's image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Schema 1, which this client refuses; the signed form ends in `+prettyjws`.
    pub const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";
}
use media_types::{
    DOCKER_CONFIG, DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, DOCKER_SCHEMA_1, OCI_CONFIG, OCI_INDEX,
    OCI_MANIFEST,
};

/// The manifest types this client understands, for `Accept`.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST_LIST, DOCKER_MANIFEST];

/// A manifest as the registry sent it, its digest verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// One of the four in [`media_types`].
    pub media_type: String,
    /// Of the bytes; the reference's own when it named one.
    pub digest: Digest,
    /// The document.
    pub bytes: Bytes,
    /// Its size in bytes.
    pub size: u64,
}

/// What a manifest describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// One image.
    Image(Box<ImageManifest>),
    /// Images for several platforms.
    Index(Box<ImageIndex>),
}

/// The fields that tell one sort from another.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

impl Manifest {
    /// Decides the type of a document whose digest is already verified. `content_type` is the header's, without parameters.
    pub(crate) fn identify(content_type: &str, digest: Digest, bytes: Bytes, name: &str) -> Result<Self> {
        if content_type.starts_with(DOCKER_SCHEMA_1) {
            return Err(schema_1(name));
        }
        if let Some(encoding) = compression(&bytes) {
            return Err(corrupt(format!(
                "the registry sent a manifest compressed with {encoding} for {name}"
            )));
        }
        let shape: Shape = serde_json::from_slice(&bytes).map_err(|e| {
            let kind = if content_type.is_empty() {
                "something"
            } else {
                content_type
            };
            corrupt(format!(
                "the registry sent {kind} that is no manifest for {name}: {e}"
            ))
            .caused_by(e)
        })?;
        if shape.schema_version == Some(1) || shape.fs_layers.is_some() {
            return Err(schema_1(name));
        }
        let media_type = shape
            .decide(content_type)
            .map_err(|why| corrupt(format!("{why} for {name}")))?;
        if !ACCEPTED.contains(&media_type) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("unsupported manifest media type {media_type} for {name}"),
            ));
        }
        let size = bytes.len() as u64;
        Ok(Self {
            media_type: media_type.to_owned(),
            digest,
            bytes,
            size,
        })
    }

    /// Whether this is an index or manifest list.
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_MANIFEST_LIST)
    }

    /// Reads the document.
    ///
    /// # Errors
    /// `Corrupt` when a required field is missing or malformed; `Unsupported` when it is an artifact and no image.
    pub fn parse(&self) -> Result<Body> {
        let malformed =
            |e: serde_json::Error| corrupt(format!("malformed manifest {}: {e}", self.digest)).caused_by(e);
        if self.is_index() {
            let index: ImageIndex = serde_json::from_slice(&self.bytes).map_err(malformed)?;
            return Ok(Body::Index(Box::new(index)));
        }
        let image: ImageManifest = serde_json::from_slice(&self.bytes).map_err(malformed)?;
        let config = image.config().media_type().to_string();
        // Registries of old have passed configurations through under these two.
        let image_types = [DOCKER_CONFIG, OCI_CONFIG, "application/octet-stream", "text/html"];
        if !image_types.contains(&config.as_str()) {
            let text = format!(
                "unsupported media type {config}: manifest {} does not describe a container image",
                self.digest
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(Body::Image(Box::new(image)))
    }
}

impl Shape {
    /// The type all evidence agrees on, or a sentence about the contradiction.
    fn decide<'a>(&'a self, header: &'a str) -> std::result::Result<&'a str, String> {
        let declared = self.media_type.as_deref();
        let from_header = header.starts_with("application/vnd.").then_some(header);
        let found = match (from_header, declared) {
            (Some(header), Some(declared)) if header != declared => {
                return Err(format!(
                    "the registry says {header}, the manifest says {declared}"
                ));
            }
            (Some(found), _) | (None, Some(found)) => found,
            (None, None) if self.manifests.is_some() => OCI_INDEX,
            (None, None) if self.config.is_some() => OCI_MANIFEST,
            (None, None) => return Err(format!("the registry sent {header:?} instead of a manifest")),
        };
        let image_fields = self.config.is_some() || self.layers.is_some();
        let ambiguous = match found {
            OCI_INDEX | DOCKER_MANIFEST_LIST => image_fields || self.manifests.is_none(),
            OCI_MANIFEST | DOCKER_MANIFEST => self.manifests.is_some() || !image_fields,
            _ => false,
        };
        if ambiguous {
            return Err(format!(
                "the fields of the manifest contradict its media type {found}"
            ));
        }
        Ok(found)
    }
}

/// The image of `index` that runs best on `platform`. Attestations (build provenance) are no images.
///
/// # Errors
/// `NotFound` with Docker's text.
pub(crate) fn select<'a>(index: &'a ImageIndex, platform: &Platform) -> Result<&'a Descriptor> {
    let images = || index.manifests().iter().filter(|entry| !is_attestation(entry));
    let ranked = images().filter_map(|entry| {
        let rank = entry.platform().as_ref().and_then(|other| platform.rank(other))?;
        Some((rank, entry))
    });
    if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Ok(best);
    }
    // An index may leave the platform out. With a single image there is nothing to choose.
    let mut unlabelled = images();
    if let (Some(only), None) = (unlabelled.next(), unlabelled.next())
        && only.platform().is_none()
    {
        return Ok(only);
    }
    let text = format!("no matching manifest for {platform} in the manifest list entries");
    Err(Error::new(ErrorKind::NotFound, text))
}

fn is_attestation(entry: &Descriptor) -> bool {
    let reference_type =
        |a: &std::collections::HashMap<String, String>| a.contains_key("vnd.docker.reference.type");
    let unknown = |p: &oci_spec::image::Platform| {
        p.os().to_string() == "unknown" && p.architecture().to_string() == "unknown"
    };
    entry.annotations().as_ref().is_some_and(reference_type) || entry.platform().as_ref().is_some_and(unknown)
}

fn compression(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        _ => None,
    }
}

fn corrupt(text: String) -> Error {
    Error::new(ErrorKind::Corrupt, text)
}

fn schema_1(name: &str) -> Error {
    let text = format!(
        "Docker image manifest version 2, schema 1 is not supported; suggest the author of {name} to upgrade the image \
         to the OCI format or Docker image manifest version 2, schema 2"
    );
    Error::new(ErrorKind::Unsupported, text)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::digest::sha256;

    fn identify(content_type: &str, body: &[u8]) -> Result<Manifest> {
        let bytes = Bytes::copy_from_slice(body);
        Manifest::identify(content_type, sha256(&bytes), bytes, "busybox:latest")
    }

    fn descriptor(platform: Value, annotations: Value) -> Value {
        json!({
            "mediaType": OCI_MANIFEST, "size": 7, "digest": sha256(platform.to_string().as_bytes()).to_string(),
            "platform": platform, "annotations": annotations,
        })
    }

    fn index(entries: &[Value]) -> ImageIndex {
        let body = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string();
        match identify(OCI_INDEX, body.as_bytes()).unwrap().parse().unwrap() {
            Body::Index(index) => *index,
            Body::Image(_) => panic!("an index"),
        }
    }

    #[test]
    fn chooses_by_platform_and_skips_attestations() {
        let attested = json!({"vnd.docker.reference.type": "attestation-manifest"});
        let index = index(&[
            descriptor(
                json!({"os": "linux", "architecture": "amd64", "variant": "bogus"}),
                attested,
            ),
            descriptor(json!({"os": "unknown", "architecture": "unknown"}), json!({})),
            descriptor(json!({"os": "linux", "architecture": "386"}), json!({})),
            descriptor(json!({"os": "linux", "architecture": "amd64"}), json!({})),
            descriptor(
                json!({"os": "linux", "architecture": "arm64", "variant": "v8"}),
                json!({}),
            ),
        ]);
        let chosen = |platform: &str| select(&index, &platform.parse().unwrap()).map(|d| d.digest().clone());
        let entry = |i: usize| index.manifests()[i].digest().clone();
        assert_eq!(chosen("linux/amd64").unwrap(), entry(3));
        assert_eq!(chosen("linux/386").unwrap(), entry(2));
        assert_eq!(chosen("linux/arm64").unwrap(), entry(4));
        let error = chosen("linux/s390x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(
            error.to_string(),
            "no matching manifest for linux/s390x in the manifest list entries"
        );
    }

    #[test]
    fn a_single_unlabelled_image_is_it() {
        let mut entry = descriptor(json!({"os": "linux", "architecture": "amd64"}), json!({}));
        entry.as_object_mut().unwrap().remove("platform");
        let other = descriptor(json!({"os": "linux", "architecture": "s390x"}), json!({}));
        let platform = "linux/amd64".parse().unwrap();
        assert!(select(&index(std::slice::from_ref(&entry)), &platform).is_ok());
        assert!(select(&index(&[entry, other]), &platform).is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        let zero = json!({"mediaType": OCI_CONFIG, "size": 2, "digest": sha256(b"{}").to_string()});
        let image = json!({"schemaVersion": 2, "config": zero, "layers": []});
        let mut both = image.clone();
        both["manifests"] = json!([]);
        let mut declared = image.clone();
        declared["mediaType"] = json!(OCI_INDEX);
        for (header, body) in [
            (OCI_MANIFEST, &both),
            (OCI_INDEX, &both),
            (OCI_MANIFEST, &declared),
            (OCI_INDEX, &image),
            ("", &declared),
        ] {
            let error = identify(header, body.to_string().as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{header} {body}: {error}");
        }
        assert_eq!(
            identify("application/json", image.to_string().as_bytes())
                .unwrap()
                .media_type,
            OCI_MANIFEST
        );
    }

    #[test]
    fn other_documents_are_refused() {
        let cases: [(&str, &[u8], ErrorKind, &str); 6] = [
            (
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                b"{}",
                ErrorKind::Unsupported,
                "schema 1",
            ),
            (
                "application/json",
                br#"{"schemaVersion":1}"#,
                ErrorKind::Unsupported,
                "schema 1",
            ),
            (
                "text/html",
                b"<html>",
                ErrorKind::Corrupt,
                "text/html that is no manifest",
            ),
            (OCI_MANIFEST, b"\x1f\x8b\x08\x00", ErrorKind::Corrupt, "gzip"),
            (
                "application/json",
                b"{}",
                ErrorKind::Corrupt,
                "instead of a manifest",
            ),
            (
                "application/vnd.x+json",
                b"{}",
                ErrorKind::Unsupported,
                "application/vnd.x+json",
            ),
        ];
        for (content_type, body, kind, text) in cases {
            let error = identify(content_type, body).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn artifacts_are_no_images() {
        let config = json!({"mediaType": "application/vnd.cncf.helm.config.v1+json", "size": 2, "digest": sha256(b"{}").to_string()});
        let body = json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
        let error = identify(OCI_MANIFEST, body.as_bytes())
            .unwrap()
            .parse()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("helm"), "{error}");
    }

    #[test]
    fn malformed_digests_are_refused() {
        let config = json!({"mediaType": OCI_CONFIG, "size": 2, "digest": "sha256:../../etc/passwd"});
        let body = json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
        let error = identify(OCI_MANIFEST, body.as_bytes())
            .unwrap()
            .parse()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    proptest::proptest! {
        /// Any bytes, and JSON that is nearly a manifest.
        #[test]
        fn never_panics(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64),
            text in r#"\{("(schemaVersion|mediaType|config|layers|manifests)":([12]|"x"|\[\]|\{\}|null),){0,4}"a":1\}"#,
        ) {
            for document in [bytes.as_slice(), text.as_bytes()] {
                if let Ok(manifest) = identify(OCI_MANIFEST, document) {
                    let _ = manifest.parse();
                }
            }
        }
    }
}
