//! How much room images take: bytes of layers' files, as Docker counts them. Nothing is walked here: each layer was measured
//! when it was made, and its record says what it has.

use std::collections::{BTreeMap, HashMap};

use skiff_graphdrivers::LayerId;

use crate::Store;
use crate::catalog::Catalog;
use crate::digest::Digest;
use crate::image::Image;
use crate::{layers, migrate};

/// The room all images take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Each image.
    pub images: BTreeMap<Digest, ImageSize>,
    /// All layers of all images, each once.
    pub layers: u64,
}

/// The room an image takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageSize {
    /// All its layers.
    pub total: u64,
    /// Those of them that another image has, too.
    pub shared: u64,
}

impl Store {
    /// Bytes of a layer's files; `None` for a layer that was never unpacked here.
    pub fn layer_size(&self, layer: &LayerId) -> Option<u64> {
        if let Some(record) = self.layer(layer) {
            return Some(record.size);
        }
        self.other_sizes().get(layer).copied()
    }

    /// Bytes of each layer of an image, bottom first. One that was never unpacked counts as its compressed blob.
    pub fn layer_sizes(&self, image: &Image) -> Vec<u64> {
        let compressed = |index: usize| image.layer_sources(index).next().map_or(0, |blob| blob.size);
        let size = |(index, layer)| self.layer_size(layer).unwrap_or_else(|| compressed(index));
        image.chain.iter().enumerate().map(size).collect()
    }

    /// The sizes of all images of a catalogue.
    pub fn sizes(&self, catalog: &Catalog) -> Sizes {
        let mut users: HashMap<&LayerId, (u64, usize)> = HashMap::new();
        let each: Vec<(&Image, Vec<u64>)> = catalog
            .images
            .values()
            .map(|image| (image.as_ref(), self.layer_sizes(image)))
            .collect();
        for (image, sizes) in &each {
            for (layer, size) in image.chain.iter().zip(sizes) {
                users.entry(layer).or_insert((*size, 0)).1 += 1;
            }
        }
        let of_image = |(image, sizes): &(&Image, Vec<u64>)| {
            let shared = image
                .chain
                .iter()
                .zip(sizes)
                .filter(|(layer, _)| users[layer].1 > 1);
            let size = ImageSize {
                total: sizes.iter().sum(),
                shared: shared.map(|(_, size)| size).sum(),
            };
            (image.id, size)
        };
        Sizes {
            images: each.iter().map(of_image).collect(),
            layers: users.values().map(|(size, _)| size).sum(),
        }
    }

    /// Sizes that records of other drivers say, read once: after a change of driver an image has the size it had.
    fn other_sizes(&self) -> &HashMap<LayerId, u64> {
        self.inner.other_sizes.get_or_init(|| {
            let root = &self.inner.root;
            let mut sizes = HashMap::new();
            for driver in migrate::drivers_with_records(root).unwrap_or_default() {
                if driver != self.inner.driver.name() {
                    let records = layers::read_records(&root.join(driver).join("layers"));
                    let records = records.unwrap_or_default().into_iter();
                    sizes.extend(records.map(|(id, record)| (id, record.size)));
                }
            }
            sizes
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::support::{Fixture, TestImage};

    #[test]
    fn shared_layers_count_once_and_a_change_of_driver_changes_no_size() {
        let fixture = Fixture::new();
        let images = [
            TestImage::new(&["base", "four"]),
            TestImage::new(&["base", "seven.."]),
        ];
        for (image, name) in images
            .iter()
            .zip(["docker.io/library/x:1", "docker.io/library/y:1"])
        {
            image.pull(&fixture.store, name);
        }
        let catalog = fixture.store.catalog();
        let sizes = fixture.store.sizes(&catalog);
        assert_eq!(sizes.layers, 4 + 4 + 7);
        let of = |image: &TestImage| (sizes.images[&image.id].total, sizes.images[&image.id].shared);
        assert_eq!(images.each_ref().map(of), [(8, 4), (11, 4)]);

        // The same records under another driver's name, and nothing unpacked with this one.
        let root = fixture.path().join("image");
        std::fs::create_dir(root.join("elsewhere")).unwrap();
        std::fs::rename(root.join("vfs/layers"), root.join("elsewhere/layers")).unwrap();
        let mut fixture = fixture;
        fixture.reopen();
        assert!(fixture.store.layer(&images[0].chain()[0]).is_none());
        assert_eq!(fixture.store.sizes(&fixture.store.catalog()), sizes);
    }
}
