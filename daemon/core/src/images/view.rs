//! From a stored image to the view that clients get.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use skiff_store::{Catalog, Image, Selector, Store};

use super::{ImageView, convert};
use crate::config::ContainerConfig;

/// The view of an image.
pub(super) fn view(store: &Store, catalog: &Catalog, image: &Image) -> ImageView {
    let config = &image.config;
    let mut tags = Vec::new();
    let mut digests = Vec::new();
    let mut last_tagged = None;
    for (name, reference) in catalog.names_of(&image.id) {
        match name.selector {
            Selector::Tag(_) => tags.push(convert::familiar(name)),
            Selector::Digest(_) => digests.push(convert::familiar(name)),
        }
        last_tagged = last_tagged.max(Some(reference.tagged));
    }
    ImageView {
        id: image.id.to_string(),
        parent: parent(catalog, image).map(|parent| parent.id.to_string()),
        tags,
        digests,
        created: timestamp(&config["created"]),
        last_tagged,
        size: store.layer_sizes(image).iter().sum(),
        architecture: text(&config["architecture"]),
        variant: text(&config["variant"]),
        os: text(&config["os"]),
        author: text(&config["author"]),
        comment: last_comment(config),
        config: container_config(image),
        layers: image.diff_ids.iter().map(ToString::to_string).collect(),
        top_layer: image.top_layer().map(ToString::to_string),
        raw_config: config.clone(),
    }
}

/// The image that this one was committed on top of, while it is here. Its manifest names that one's.
pub(super) fn parent<'c>(catalog: &'c Catalog, image: &Image) -> Option<&'c Image> {
    // Other engines name a base, too; what was pulled has no parent in Docker's eyes.
    image.config["container"].as_str()?;
    let base = image.manifests.iter().find_map(|manifest| manifest.base)?;
    let is_base = |other: &&Arc<Image>| other.manifests.iter().any(|manifest| manifest.digest == base);
    let parent = catalog.images.values().find(is_base)?;
    (parent.id != image.id).then_some(parent)
}

/// What containers inherit; empty when the image has nothing there or nonsense.
fn container_config(image: &Image) -> ContainerConfig {
    let value = &image.config["config"];
    if value.is_null() {
        return ContainerConfig::default();
    }
    serde_json::from_value(value.clone()).unwrap_or_else(|error| {
        tracing::warn!(image = %image.id, %error, "the image's container configuration cannot be read and is ignored");
        ContainerConfig::default()
    })
}

fn last_comment(config: &Value) -> String {
    let own = text(&config["comment"]);
    let last = config["history"].as_array().and_then(|history| history.last());
    if own.is_empty() {
        last.map(|entry| text(&entry["comment"])).unwrap_or_default()
    } else {
        own
    }
}

/// A time of the configuration; Go's zero time (year 1) is none.
pub(super) fn timestamp(value: &Value) -> Option<Timestamp> {
    let time: Timestamp = value.as_str()?.parse().ok()?;
    (time.as_second() > GO_ZERO_TIME).then_some(time)
}

/// 0001-01-01T00:00:00Z in seconds since 1970.
const GO_ZERO_TIME: i64 = -62_135_596_800;

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
