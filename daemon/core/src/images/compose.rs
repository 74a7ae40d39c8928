//! Images that are made here, out of a layer and a configuration: by `docker commit` on top of another image, by
//! `docker import` out of nothing.
//!
//! ```text
//!   parent's configuration ─┐
//!   new configuration ──────┼─▶ configuration (its digest is the image) ─┐
//!   new layer ──────────────┤                                            ├─▶ blobs ─▶ register ─▶ "tag"
//!   parent's manifest ──────┴─▶ manifest: the parent's layers and ours ──┘
//! ```
//!
//! The documents are as dockerd writes them, field by field and in its order; history and configuration of the parent are
//! taken over as they are.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use skiff_registry_client::{Platform, Reference};
use skiff_store::{AddedLayer, Descriptor, Digest, Image, Registration};

use super::pull::{blocking, settle};
use super::{Images, Shared, convert, layout};
use crate::config::ContainerConfig;
use crate::error::{Error, Result};

/// What becomes an image.
#[derive(Debug)]
pub(crate) struct NewImage {
    /// The image below, `sha256:…`.
    pub(crate) parent: Option<String>,
    /// Its own layer; `None` when nothing changed.
    pub(crate) layer: Option<AddedLayer>,
    /// The container it was made of: id and configuration.
    pub(crate) container: Option<(String, ContainerConfig)>,
    /// What its containers inherit.
    pub(crate) config: ContainerConfig,
    pub(crate) author: String,
    pub(crate) comment: String,
    /// The name to give.
    pub(crate) name: Option<Reference>,
    /// For images without parent.
    pub(crate) platform: Option<Platform>,
}

impl Images {
    /// Makes an image known; gives its id.
    ///
    /// # Errors
    /// `NotFound` for the parent; `System`.
    pub(crate) async fn compose(&self, new: NewImage) -> Result<Digest> {
        let shared = Arc::clone(&self.shared);
        let name = new.name.clone();
        let id = blocking(move || compose(&shared, new)).await?;
        if let Some(name) = name {
            self.shared.event("tag", &id, &name.familiar());
        }
        settle(&self.shared);
        Ok(id)
    }
}

/// The name for a new image out of the two parameters that clients send; `None` without a repository.
///
/// # Errors
/// `InvalidParameter` for malformed ones.
pub(crate) fn new_name(repository: &str, tag: &str) -> Result<Option<Reference>> {
    if repository.is_empty() {
        return Ok(None);
    }
    let name = Reference::parse(repository)?;
    if name.digest().is_some() {
        return Err(Error::invalid("cannot import digest reference"));
    }
    Ok(Some(if tag.is_empty() { name } else { name.with_tag(tag)? }))
}

fn compose(shared: &Shared, new: NewImage) -> Result<Digest> {
    let store = &shared.store;
    let own_lease;
    let lease = match &new.layer {
        Some(layer) => layer.lease(),
        None => {
            own_lease = store.lease();
            &own_lease
        }
    };
    let catalog = store.catalog();
    let parent = match &new.parent {
        Some(id) => {
            let image = id.parse::<Digest>().ok().and_then(|id| catalog.images.get(&id));
            Some(image.ok_or_else(|| Error::not_found(format!("No such image: {id}")))?)
        }
        None => None,
    };
    let config = layout::encode(&configuration(parent.map(AsRef::as_ref), &new, Timestamp::now())?)?;
    let id = Digest::of(&config);
    let layers = layers(parent.map(AsRef::as_ref), new.layer.as_ref())?;
    let base = parent.and_then(|parent| Some(parent.manifests.first()?.digest));
    let manifest = layout::manifest(&layout::config_descriptor(id, config.len() as u64), &layers, base)?;
    let manifest_digest = Digest::of(&manifest);
    for digest in [id, manifest_digest] {
        lease.blob(&digest)?;
    }
    for layer in &layers {
        // The parent may have been removed since it was looked up.
        lease.blob(&layer.digest)?.ok_or_else(|| {
            Error::system(format!(
                "layer {} is not kept here any more; pull the image again",
                layer.digest
            ))
        })?;
    }
    if let Some(parent) = parent {
        for layer in &parent.chain {
            lease.layer(layer);
        }
    }
    store.put_blob(&id, &config)?;
    store.put_blob(&manifest_digest, &manifest)?;
    store.register(&Registration {
        image: id,
        manifest: manifest_digest,
        target: manifest_digest,
        names: new.name.iter().map(convert::key).collect::<Result<_>>()?,
    })?;
    Ok(id)
}

/// The layers' blobs, bottom first.
fn layers(parent: Option<&Image>, own: Option<&AddedLayer>) -> Result<Vec<Descriptor>> {
    let mut layers = match parent {
        Some(parent) => {
            let manifest = parent.manifests.first();
            let manifest = manifest.ok_or_else(|| {
                Error::system(format!(
                    "image {} has lost its manifest; pull it again",
                    parent.id
                ))
            })?;
            manifest.layers.iter().map(layout::oci_layer).collect()
        }
        None => Vec::new(),
    };
    layers.extend(own.map(|layer| layer.blob.clone()));
    Ok(layers)
}

/// The image's configuration.
fn configuration(parent: Option<&Image>, new: &NewImage, now: Timestamp) -> Result<Value> {
    let old = |field: &str| {
        parent
            .map(|parent| parent.config[field].clone())
            .filter(|value| !value.is_null())
    };
    let encode = |config: &ContainerConfig| {
        serde_json::to_value(config).map_err(|e| Error::system("encode a configuration").caused_by(e))
    };
    let platform = new.platform.clone().unwrap_or_else(Platform::host);
    let created = now.to_string();
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| out.insert(name.to_owned(), value);
    put(
        "architecture",
        old("architecture").unwrap_or_else(|| json!(platform.architecture)),
    );
    if !new.author.is_empty() {
        put("author", json!(new.author));
    }
    if parent.is_none() && !new.comment.is_empty() {
        put("comment", json!(new.comment));
    }
    put("config", encode(&new.config)?);
    if let Some((id, config)) = &new.container {
        put("container", json!(id));
        put("container_config", encode(config)?);
    }
    put("created", json!(created));
    put("docker_version", json!(env!("CARGO_PKG_VERSION")));
    let mut history = old("history")
        .and_then(|h| h.as_array().cloned())
        .unwrap_or_default();
    history.push(history_entry(new, &created));
    put("history", Value::Array(history));
    put("os", old("os").unwrap_or_else(|| json!(platform.os)));
    for field in ["os.version", "os.features"] {
        if let Some(value) = old(field) {
            put(field, value);
        }
    }
    let mut diff_ids: Vec<Digest> = parent.map(|parent| parent.diff_ids.clone()).unwrap_or_default();
    diff_ids.extend(new.layer.as_ref().map(|layer| layer.diff_id));
    put("rootfs", json!({"type": "layers", "diff_ids": diff_ids}));
    let own_variant = || (parent.is_none() && !platform.variant.is_empty()).then(|| json!(platform.variant));
    if let Some(variant) = old("variant").or_else(own_variant) {
        put("variant", variant);
    }
    Ok(Value::Object(out))
}

fn history_entry(new: &NewImage, created: &str) -> Value {
    let mut entry = Map::new();
    entry.insert("created".to_owned(), json!(created));
    if let Some((_, config)) = &new.container {
        let command = config.cmd.as_deref().unwrap_or_default().join(" ");
        if !command.is_empty() {
            entry.insert("created_by".to_owned(), json!(command));
        }
    }
    for (field, text) in [("author", &new.author), ("comment", &new.comment)] {
        if !text.is_empty() {
            entry.insert(field.to_owned(), json!(text));
        }
    }
    if new.layer.is_none() {
        entry.insert("empty_layer".to_owned(), json!(true));
    }
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(container: Option<(String, ContainerConfig)>) -> NewImage {
        NewImage {
            parent: None,
            layer: None,
            container,
            config: ContainerConfig::default(),
            author: "me".to_owned(),
            comment: "why".to_owned(),
            name: None,
            platform: Some(Platform::new("linux", "arm64", "v8")),
        }
    }

    #[test]
    fn a_child_keeps_its_parent_s_history_and_platform() {
        let bytes = br#"{"architecture":"riscv64","os":"linux","config":{"Cmd":["old"]},"history":[{"created_by":"first"}],
            "rootfs":{"type":"layers","diff_ids":[]}}"#;
        let parent = Image::parse(Digest::of(bytes), bytes).unwrap();
        let config = ContainerConfig {
            cmd: Some(vec!["sh".to_owned(), "-c".to_owned(), "x".to_owned()]),
            ..ContainerConfig::default()
        };
        let now: Timestamp = "2026-11-22T02:48:39.0090854Z".parse().unwrap();
        let made = configuration(Some(&parent), &new(Some(("c0".to_owned(), config))), now).unwrap();
        assert_eq!(made["architecture"], "riscv64");
        assert_eq!(made["container"], "c0");
        assert_eq!(made["created"], "2026-11-22T02:48:39.0090854Z");
        assert_eq!(
            made["history"],
            json!([{"created_by": "first"}, {"created": "2026-11-22T02:48:39.0090854Z", "created_by": "sh -c x",
                "author": "me", "comment": "why", "empty_layer": true}])
        );
        assert_eq!(
            made.get("comment"),
            None,
            "only images without parent have it there"
        );
    }

    #[test]
    fn an_import_says_its_platform_and_comment() {
        let made = configuration(None, &new(None), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(
            (&made["architecture"], &made["variant"], &made["os"]),
            (&json!("arm64"), &json!("v8"), &json!("linux"))
        );
        assert_eq!(made["comment"], "why");
        assert_eq!(made["history"][0].get("created_by"), None);
    }

    #[test]
    fn names_of_new_images() {
        let name = |repository, tag| new_name(repository, tag).map(|name| name.map(|name| name.familiar()));
        assert_eq!(name("", "x").unwrap(), None);
        assert_eq!(name("a", "").unwrap().unwrap(), "a:latest");
        assert_eq!(name("a:1", "").unwrap().unwrap(), "a:1");
        assert_eq!(
            name("localhost:5000/a", "2").unwrap().unwrap(),
            "localhost:5000/a:2"
        );
        assert!(name("UPPER", "").is_err() && name("a", "-").is_err());
        let digest = format!("a@{}", Digest::of(b""));
        assert_eq!(
            name(&digest, "").unwrap_err().to_string(),
            "cannot import digest reference"
        );
    }
}
