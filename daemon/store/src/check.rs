//! Verifies the store's invariants; for tests and for an operator who distrusts a disk.

use std::collections::HashSet;
use std::fs;
use std::io::Read;

use skiff_graphdrivers::{LayerId, SnapshotKey};

use crate::Store;
use crate::catalog::Catalog;
use crate::digest::{Digest, Hasher, chain_id};
use crate::error::{Error, Result};
use crate::image::Image;

impl Store {
    /// Verifies what the module documentation promises and returns each violation as a sentence. With `deep`, every
    /// blob is hashed. Meant for a store in which nothing happens at the moment.
    ///
    /// # Errors
    /// `Io` when the disk cannot be read at all.
    pub fn check(&self, deep: bool) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        let catalog = self.catalog();
        let driver_layers: HashSet<LayerId> = self
            .inner
            .driver
            .list()?
            .into_iter()
            .filter_map(|info| match info.key {
                SnapshotKey::Layer(id) => Some(id),
                SnapshotKey::Active(_) => None,
            })
            .collect();
        self.check_names(&catalog, &mut problems)?;
        for image in catalog.images.values() {
            self.check_image(image, &mut problems)?;
        }
        self.check_layers(&driver_layers, &mut problems);
        if deep {
            self.check_blobs(&mut problems)?;
        }
        Ok(problems)
    }

    fn check_names(&self, catalog: &Catalog, problems: &mut Vec<String>) -> Result<()> {
        for (name, reference) in &catalog.references {
            if !catalog.images.contains_key(&reference.image) {
                problems.push(format!("{name} names {}, which does not exist", reference.image));
            }
            if let Some(target) = &reference.target
                && self.blob_size(target)?.is_none()
            {
                problems.push(format!("{name} stands for manifest {target}, which is missing"));
            }
        }
        Ok(())
    }

    fn check_image(&self, image: &Image, problems: &mut Vec<String>) -> Result<()> {
        for document in std::iter::once(image.id).chain(image.manifest_digests()) {
            if let Err(error) = self.read_blob(&document) {
                problems.push(format!("image {}: {error}", image.id));
            }
        }
        for (index, layer) in image.chain.iter().enumerate() {
            let mut kept = false;
            for blob in image.layer_sources(index) {
                kept |= self.blob_size(&blob.digest)? == Some(blob.size);
            }
            if self.layer(layer).is_none() && !kept {
                problems.push(format!(
                    "image {}: layer {layer} is neither unpacked nor kept as blob",
                    image.id
                ));
            }
        }
        Ok(())
    }

    fn check_layers(&self, driver_layers: &HashSet<LayerId>, problems: &mut Vec<String>) {
        let holdings = self.holdings();
        for (id, record) in &holdings.layers {
            if !driver_layers.contains(id) {
                problems.push(format!("layer {id} has a record but the driver does not have it"));
            }
            if chain_id(record.parent.as_ref(), &record.diff_id) != Digest::from(id) {
                problems.push(format!("layer {id} is not what its parent and diff id make"));
            }
            let parent_known = record
                .parent
                .is_none_or(|p| p.to_layer_id().is_ok_and(|p| holdings.layers.contains_key(&p)));
            if !parent_known {
                problems.push(format!("layer {id} has a parent without record"));
            }
        }
    }

    fn check_blobs(&self, problems: &mut Vec<String>) -> Result<()> {
        for digest in self.list_blobs()? {
            let actual = self.hash_blob(&digest)?;
            if actual != digest {
                problems.push(format!("blob {digest} has the digest {actual}"));
            }
        }
        Ok(())
    }

    fn hash_blob(&self, digest: &Digest) -> Result<Digest> {
        let path = self.blob_path(digest);
        let failed = |e| Error::io(format!("read {}", path.display()), e);
        let mut file = fs::File::open(&path).map_err(failed)?;
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => return Ok(hasher.finish()),
                count => hasher.update(&buffer[..count]),
            }
        }
    }
}
