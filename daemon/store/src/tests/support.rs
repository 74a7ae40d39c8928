//! Small images, and a store in a temporary directory.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use skiff_graphdrivers::{Access, GraphDriver, LayerId, Mount, SnapshotRef};

use crate::durable::Steps;
use crate::{
    Descriptor, Digest, NewLayer, ReferenceKey, Registration, Result, RwLayers, Store, StoreOptions,
    chain_ids,
};

/// A layer with one file, named and filled with the same text.
pub(super) struct TestLayer {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: Digest,
}

pub(super) struct TestImage {
    pub(super) id: Digest,
    pub(super) config_bytes: Vec<u8>,
    pub(super) manifest: Digest,
    pub(super) manifest_bytes: Vec<u8>,
    pub(super) layers: Vec<TestLayer>,
}

impl TestImage {
    /// An image with one layer for each text.
    pub(super) fn new(files: &[&str]) -> Self {
        let layers: Vec<TestLayer> = files.iter().map(|file| layer(file)).collect();
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let config = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config_bytes = serde_json::to_vec(&config).unwrap();
        let descriptors: Vec<&Descriptor> = layers.iter().map(|layer| &layer.descriptor).collect();
        let id = Digest::of(&config_bytes);
        let config = Descriptor {
            media_type: "application/vnd.oci.image.config.v1+json".to_owned(),
            digest: id,
            size: config_bytes.len() as u64,
        };
        // Deliberately not how this crate would write it.
        let manifest_bytes = format!(
            "{}\n",
            json!({"schemaVersion": 2, "layers": descriptors, "config": config})
        )
        .into_bytes();
        Self {
            id,
            config_bytes,
            manifest: Digest::of(&manifest_bytes),
            manifest_bytes,
            layers,
        }
    }

    pub(super) fn chain(&self) -> Vec<LayerId> {
        let diff_ids: Vec<Digest> = self.layers.iter().map(|layer| layer.diff_id).collect();
        chain_ids(&diff_ids)
            .into_iter()
            .map(|id| id.to_layer_id().unwrap())
            .collect()
    }

    /// Puts all blobs into the store.
    pub(super) fn fetch(&self, store: &Store) {
        store.put_blob(&self.id, &self.config_bytes).unwrap();
        store.put_blob(&self.manifest, &self.manifest_bytes).unwrap();
        for layer in &self.layers {
            store.put_blob(&layer.descriptor.digest, &layer.bytes).unwrap();
        }
    }

    pub(super) fn unpack(&self, store: &Store) {
        let mut parent: Option<LayerId> = None;
        for (layer, id) in self.layers.iter().zip(self.chain()) {
            let new = NewLayer {
                parent: parent.as_ref(),
                diff_id: layer.diff_id,
                blob: &layer.descriptor,
            };
            store
                .unpack(&new, || store.open_blob(&layer.descriptor.digest))
                .unwrap();
            parent = Some(id);
        }
    }

    pub(super) fn registration(&self, name: &str) -> Registration {
        let name: ReferenceKey = name.parse().unwrap();
        Registration {
            image: self.id,
            manifest: self.manifest,
            target: self.manifest,
            names: vec![name],
        }
    }

    /// What a pull does, without a network.
    pub(super) fn pull(&self, store: &Store, name: &str) {
        let lease = store.lease();
        for layer in self.chain() {
            lease.layer(&layer);
        }
        for blob in self
            .layers
            .iter()
            .map(|l| l.descriptor.digest)
            .chain([self.id, self.manifest])
        {
            lease.blob(&blob).unwrap();
        }
        self.fetch(store);
        self.unpack(store);
        store.register(&self.registration(name)).unwrap();
    }
}

fn layer(text: &str) -> TestLayer {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    archive.append_data(&mut header, text, text.as_bytes()).unwrap();
    let plain = archive.into_inner().unwrap();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&plain).unwrap();
    let bytes = gzip.finish().unwrap();
    let descriptor = Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
    };
    TestLayer {
        bytes,
        descriptor,
        diff_id: Digest::of(&plain),
    }
}

pub(super) fn driver(root: &Path) -> Arc<dyn GraphDriver> {
    Arc::new(skiff_graphdrivers::Vfs::open(&root.join("vfs"), &[]).unwrap())
}

/// Opens the store below `root`.
pub(super) fn open(root: &Path, steps: Steps) -> Result<Store> {
    Store::open_stepping(&root.join("image"), driver(root), StoreOptions::default(), steps)
}

pub(super) struct Fixture {
    directory: tempfile::TempDir,
    pub(super) store: Store,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::stepping(Steps::default())
    }

    pub(super) fn stepping(steps: Steps) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), steps).unwrap();
        Self { directory, store }
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Lets go of the store (and its lock) by putting an empty one in its place.
    fn close(&mut self) {
        let elsewhere = tempfile::tempdir_in(self.path()).unwrap().keep();
        self.store = open(&elsewhere, Steps::default()).unwrap();
    }

    /// As after a restart of the daemon.
    pub(super) fn reopen(&mut self) {
        self.try_reopen().unwrap();
    }

    pub(super) fn try_reopen(&mut self) -> Result<()> {
        self.close();
        let reopened = open(self.path(), Steps::default());
        self.store = reopened?;
        Ok(())
    }

    /// As after a restart of the machine.
    pub(super) fn reboot(&mut self) {
        self.close();
        let options = StoreOptions {
            boot: "the next".to_owned(),
            ..StoreOptions::default()
        };
        let root = self.path().join("image");
        self.store = Store::open_with(&root, driver(self.path()), options).unwrap();
    }

    /// Takes away all layers and their records, keeping blobs and catalogue.
    pub(super) fn forget_layers(&mut self) {
        self.close();
        fs::remove_dir_all(self.path().join("vfs")).unwrap();
        fs::remove_dir_all(self.path().join("image/vfs")).unwrap();
        self.store = open(self.path(), Steps::default()).unwrap();
    }

    pub(super) fn rw(&self) -> RwLayers {
        RwLayers::new(self.store.clone(), self.path().join("rootfs"))
    }

    /// A file of an image's top layer.
    pub(super) fn read_top(&self, image: &TestImage, file: &str) -> Vec<u8> {
        fs::read(self.top_directory(image).join(file)).unwrap()
    }

    fn top_directory(&self, image: &TestImage) -> PathBuf {
        let chain = image.chain();
        let top = SnapshotRef::Layer(chain.last().unwrap());
        match self
            .store
            .driver()
            .mounts(top, Access::ReadOnly)
            .unwrap()
            .as_slice()
        {
            [Mount::Bind { source, .. }] => source.clone(),
            other => panic!("vfs gave {other:?}"),
        }
    }
}
