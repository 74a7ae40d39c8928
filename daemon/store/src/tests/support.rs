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
pub(crate) struct TestLayer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: Digest,
}

pub(crate) struct TestImage {
    pub(crate) id: Digest,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) manifest: Digest,
    pub(crate) manifest_bytes: Vec<u8>,
    pub(crate) layers: Vec<TestLayer>,
}

impl TestImage {
    /// An image with one layer for each text.
    pub(crate) fn new(files: &[&str]) -> Self {
        Self::of(files.iter().map(|file| layer(file)).collect())
    }

    /// An image of these layers.
    pub(super) fn of(layers: Vec<TestLayer>) -> Self {
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

    pub(crate) fn chain(&self) -> Vec<LayerId> {
        let diff_ids: Vec<Digest> = self.layers.iter().map(|layer| layer.diff_id).collect();
        chain_ids(&diff_ids)
            .into_iter()
            .map(|id| id.to_layer_id().unwrap())
            .collect()
    }

    /// Puts all blobs into the store.
    pub(crate) fn fetch(&self, store: &Store) {
        store.put_blob(&self.id, &self.config_bytes).unwrap();
        store.put_blob(&self.manifest, &self.manifest_bytes).unwrap();
        for layer in &self.layers {
            store.put_blob(&layer.descriptor.digest, &layer.bytes).unwrap();
        }
    }

    pub(crate) fn unpack(&self, store: &Store) {
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

    pub(crate) fn registration(&self, name: &str) -> Registration {
        let name: ReferenceKey = name.parse().unwrap();
        Registration {
            image: self.id,
            manifest: self.manifest,
            target: self.manifest,
            names: vec![name],
        }
    }

    /// What a pull does, without a network.
    pub(crate) fn pull(&self, store: &Store, name: &str) {
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

pub(super) fn layer(text: &str) -> TestLayer {
    layer_of(|archive| {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        archive.append_data(&mut header, text, text.as_bytes()).unwrap();
    })
}

/// A layer with what `fill` puts into it.
pub(super) fn layer_of(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> TestLayer {
    let mut archive = tar::Builder::new(Vec::new());
    fill(&mut archive);
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

pub(crate) fn driver(root: &Path) -> Arc<dyn GraphDriver> {
    Arc::new(skiff_graphdrivers::Vfs::open(&root.join("vfs"), &[]).unwrap())
}

/// Opens the store below `root`.
pub(crate) fn open(root: &Path, steps: Steps) -> Result<Store> {
    Store::open_stepping(&root.join("image"), driver(root), StoreOptions::default(), steps)
}

pub(crate) struct Fixture {
    directory: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::stepping(Steps::default())
    }

    pub(crate) fn stepping(steps: Steps) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), steps).unwrap();
        Self { directory, store }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Lets go of the store (and its lock) by putting an empty one in its place.
    fn close(&mut self) {
        let elsewhere = tempfile::tempdir_in(self.path()).unwrap().keep();
        self.store = open(&elsewhere, Steps::default()).unwrap();
    }

    /// As after a restart of the daemon.
    pub(crate) fn reopen(&mut self) {
        self.try_reopen().unwrap();
    }

    pub(crate) fn try_reopen(&mut self) -> Result<()> {
        self.close();
        let reopened = open(self.path(), Steps::default());
        self.store = reopened?;
        Ok(())
    }

    /// As after a restart of the machine.
    pub(crate) fn reboot(&mut self) {
        self.close();
        let options = StoreOptions {
            boot: "the next".to_owned(),
            ..StoreOptions::default()
        };
        let root = self.path().join("image");
        self.store = Store::open_with(&root, driver(self.path()), options).unwrap();
    }

    /// Takes away all layers and their records, keeping blobs and catalogue.
    pub(crate) fn forget_layers(&mut self) {
        self.close();
        fs::remove_dir_all(self.path().join("vfs")).unwrap();
        fs::remove_dir_all(self.path().join("image/vfs")).unwrap();
        self.store = open(self.path(), Steps::default()).unwrap();
    }

    pub(crate) fn rw(&self) -> RwLayers {
        RwLayers::new(self.store.clone(), self.path().join("rootfs"))
    }

    /// A file of an image's top layer.
    pub(crate) fn read_top(&self, image: &TestImage, file: &str) -> Vec<u8> {
        fs::read(self.top_directory(image).join(file)).unwrap()
    }

    pub(crate) fn top_directory(&self, image: &TestImage) -> PathBuf {
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
