//! Images made to order: layers entry by entry (also such as no tool would write), in every compression, on top of busybox
//! or from nothing. The result is bytes with digests, for the real registry or for the hostile one.

use std::io::Write as _;

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::registry::registry;

/// `sha256:…` of bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!(
        "sha256:{}",
        hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes))
    )
}

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Zstd,
    Plain,
}

impl Compression {
    fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
        }
    }

    fn pack(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar).unwrap();
                encoder.finish().unwrap()
            }
            Self::Zstd => zstd::encode_all(tar, 1).unwrap(),
            Self::Plain => tar.to_vec(),
        }
    }
}

/// A layer's tar under construction.
pub(crate) struct Layer {
    tar: Builder<Vec<u8>>,
}

impl Layer {
    pub(crate) fn new() -> Self {
        Self {
            tar: Builder::new(Vec::new()),
        }
    }

    /// The machine's own static busybox as the only file.
    pub(crate) fn from_busybox_binary() -> Self {
        let base = registry().pull("busybox", "latest");
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(base.layers[0].bytes.as_slice()));
        let mut entries = archive.entries().unwrap().map(Result::unwrap);
        let mut entry = entries
            .find(|entry| entry.path().unwrap().ends_with("bin/busybox"))
            .unwrap();
        let mut program = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut program).unwrap();
        Self::new()
            .dir("bin")
            .file_of("bin/busybox", 0o755, (0, 0), &program)
    }

    /// Any entry. The path goes into the header as it is: absolute, with `..`, whatever.
    pub(crate) fn entry(
        mut self,
        kind: EntryType,
        path: &str,
        mode: u32,
        owner: (u64, u64),
        link: &str,
        data: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_735_689_600);
        header.set_size(data.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.tar.append(&header, data).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, 0o644, (0, 0), "", data)
    }

    pub(crate) fn file_of(self, path: &str, mode: u32, owner: (u64, u64), data: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, mode, owner, "", data)
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, 0o755, (0, 0), "", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, 0o777, (0, 0), target, b"")
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, 0o644, (0, 0), target, b"")
    }

    /// Removes a path of the layers below.
    pub(crate) fn whiteout(self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let slash = if parent.is_empty() { "" } else { "/" };
        self.file(&format!("{parent}{slash}.wh.{name}"), b"")
    }

    /// Hides everything the layers below have in a directory.
    pub(crate) fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), b"")
    }

    /// The extended attribute record that PAX writers put before a file.
    pub(crate) fn xattr_for_next(mut self, name: &str, value: &str) -> Self {
        self.tar
            .append_pax_extensions([(format!("SCHILY.xattr.{name}").as_str(), value.as_bytes())])
            .unwrap();
        self
    }

    fn finish(self) -> Vec<u8> {
        self.tar.into_inner().unwrap()
    }
}

/// A blob as it lies in a registry.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) bytes: Vec<u8>,
    media_type: String,
}

impl Blob {
    fn new(bytes: Vec<u8>, media_type: &str) -> Self {
        Self {
            digest: digest(&bytes),
            bytes,
            media_type: media_type.to_owned(),
        }
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// An image under construction.
#[derive(Debug, Default)]
pub(crate) struct Image {
    layers: Vec<Blob>,
    diff_ids: Vec<String>,
    config: Value,
}

/// A finished image.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Image {
    /// Without layers.
    pub(crate) fn scratch() -> Self {
        Self {
            config: json!({"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]}),
            ..Self::default()
        }
    }

    /// On top of the busybox image in the registry.
    pub(crate) fn busybox() -> Self {
        let base = registry().pull("busybox", "latest");
        let config: Value = serde_json::from_slice(&base.config.bytes).unwrap();
        let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
        Self {
            diff_ids: diff_ids
                .iter()
                .map(|id| id.as_str().unwrap().to_owned())
                .collect(),
            layers: base.layers,
            config: config["config"].clone(),
        }
    }

    pub(crate) fn layer(self, layer: Layer) -> Self {
        self.packed_layer(layer, Compression::Gzip)
    }

    pub(crate) fn packed_layer(mut self, layer: Layer, compression: Compression) -> Self {
        let tar = layer.finish();
        self.diff_ids.push(digest(&tar));
        self.layers
            .push(Blob::new(compression.pack(&tar), compression.media_type()));
        self
    }

    /// Sets a field of the image's configuration (`Entrypoint`, `User`, `Env`, …).
    pub(crate) fn with(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    pub(crate) fn build(self) -> Built {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2025-01-01T00:00:00Z", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
            "history": self.diff_ids.iter().map(|_| json!({"created": "2025-01-01T00:00:00Z", "created_by": "test"})).collect::<Vec<_>>(),
        });
        let config = Blob::new(
            config.to_string().into_bytes(),
            "application/vnd.oci.image.config.v1+json",
        );
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
            "layers": self.layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        Built {
            manifest: manifest.to_string().into_bytes(),
            config,
            layers: self.layers,
        }
    }

    /// Builds and pushes to the shared registry; gives the full reference.
    pub(crate) fn push(self, name: &str) -> String {
        registry().push(&self.build(), name)
    }
}

impl Built {
    pub(super) fn from_parts(manifest: Vec<u8>, mut fetch: impl FnMut(&str) -> Vec<u8>) -> Self {
        let parsed: Value = serde_json::from_slice(&manifest).unwrap();
        let mut blob = |descriptor: &Value| Blob {
            digest: descriptor["digest"].as_str().unwrap().to_owned(),
            bytes: fetch(descriptor["digest"].as_str().unwrap()),
            media_type: descriptor["mediaType"].as_str().unwrap().to_owned(),
        };
        let config = blob(&parsed["config"]);
        let layers = parsed["layers"].as_array().unwrap().iter().map(blob).collect();
        Self {
            manifest,
            config,
            layers,
        }
    }

    /// Digest of the manifest.
    pub(crate) fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// The configuration and the layers.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}
