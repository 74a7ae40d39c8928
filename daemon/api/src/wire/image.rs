//! Images.

use std::collections::BTreeMap;

use serde::Serialize;
use skiff_core::config::ContainerConfig;
use skiff_core::images::{HistoryEntry, ImageView};

use crate::extract::ApiVersion;
use crate::time;

/// The last API version that repeats the size under another name.
const LAST_WITH_VIRTUAL_SIZE: ApiVersion = ApiVersion(43);
/// The last API version in which an image without name is called `<none>:<none>`.
const LAST_WITH_NONE: ApiVersion = ApiVersion(42);

/// An entry of `GET /images/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Summary<'a> {
    containers: i64,
    created: i64,
    id: &'a str,
    labels: Option<&'a BTreeMap<String, String>>,
    parent_id: &'a str,
    repo_digests: Vec<&'a str>,
    repo_tags: Vec<&'a str>,
    shared_size: i64,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_size: Option<u64>,
}

impl<'a> Summary<'a> {
    pub(crate) fn new(image: &'a ImageView, version: ApiVersion) -> Self {
        let mut repo_tags: Vec<&str> = image.tags.iter().map(String::as_str).collect();
        let mut repo_digests: Vec<&str> = image.digests.iter().map(String::as_str).collect();
        if version <= LAST_WITH_NONE && repo_tags.is_empty() && repo_digests.is_empty() {
            repo_tags.push("<none>:<none>");
            repo_digests.push("<none>@<none>");
        }
        Self {
            // Not counted; -1 says so.
            containers: -1,
            created: image.created.map_or(0, jiff::Timestamp::as_second),
            id: &image.id,
            labels: image.config.labels.as_ref(),
            parent_id: image.parent.as_deref().unwrap_or_default(),
            repo_digests,
            repo_tags,
            shared_size: -1,
            size: image.size,
            virtual_size: (version <= LAST_WITH_VIRTUAL_SIZE).then_some(image.size),
        }
    }

    /// Says how many bytes the image shares with others.
    pub(crate) fn set_shared_size(&mut self, bytes: u64) {
        self.shared_size = i64::try_from(bytes).unwrap_or(i64::MAX);
    }

    /// Says how many containers were made from the image.
    pub(crate) fn set_containers(&mut self, count: usize) {
        self.containers = i64::try_from(count).unwrap_or(i64::MAX);
    }
}

/// `GET /images/NAME/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Inspect<'a> {
    id: &'a str,
    repo_tags: &'a [String],
    repo_digests: &'a [String],
    parent: &'a str,
    comment: &'a str,
    created: String,
    docker_version: &'a str,
    author: &'a str,
    config: &'a ContainerConfig,
    architecture: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    variant: &'a str,
    os: &'a str,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_size: Option<u64>,
    graph_driver: GraphDriver<'a>,
    #[serde(rename = "RootFS")]
    root_fs: RootFs<'a>,
    metadata: Metadata,
}

/// The storage driver of an image or container, and where it keeps it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct GraphDriver<'a> {
    data: Option<BTreeMap<&'a str, &'a str>>,
    name: &'a str,
}

impl<'a> GraphDriver<'a> {
    /// A driver without rows (vfs, btrfs) has `null`, as with Docker.
    pub(crate) fn new(name: &'a str, rows: &'a [(String, String)]) -> Self {
        let data = rows.iter().map(|(title, value)| (title.as_str(), value.as_str()));
        Self {
            data: (!rows.is_empty()).then(|| data.collect()),
            name,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct RootFs<'a> {
    #[serde(rename = "Type")]
    kind: &'static str,
    layers: &'a [String],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    last_tag_time: String,
}

impl<'a> Inspect<'a> {
    pub(crate) fn new(image: &'a ImageView, graph_driver: GraphDriver<'a>, version: ApiVersion) -> Self {
        let docker_version = image
            .raw_config
            .get("docker_version")
            .and_then(|v| v.as_str())
            .unwrap_or_default();
        Self {
            id: &image.id,
            repo_tags: &image.tags,
            repo_digests: &image.digests,
            parent: image.parent.as_deref().unwrap_or_default(),
            comment: &image.comment,
            created: time::rfc3339(image.created),
            docker_version,
            author: &image.author,
            config: &image.config,
            architecture: &image.architecture,
            variant: &image.variant,
            os: &image.os,
            size: image.size,
            virtual_size: (version <= LAST_WITH_VIRTUAL_SIZE).then_some(image.size),
            graph_driver,
            root_fs: RootFs {
                kind: "layers",
                layers: &image.layers,
            },
            metadata: Metadata {
                last_tag_time: time::rfc3339(image.last_tagged),
            },
        }
    }
}

/// A line of `GET /images/NAME/history`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct History<'a> {
    comment: &'a str,
    created: i64,
    created_by: &'a str,
    id: &'a str,
    size: u64,
    tags: Option<&'a [String]>,
}

impl<'a> History<'a> {
    pub(crate) fn new(entry: &'a HistoryEntry) -> Self {
        Self {
            comment: &entry.comment,
            created: entry.created,
            created_by: &entry.created_by,
            id: &entry.id,
            size: entry.size,
            tags: Some(entry.tags.as_slice()).filter(|tags| !tags.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn image() -> ImageView {
        ImageView {
            id: "sha256:aa".into(),
            tags: vec!["busybox:latest".into()],
            digests: vec!["busybox@sha256:bb".into()],
            created: Some("2026-11-21T10:00:00Z".parse().unwrap()),
            last_tagged: None,
            size: 4_000_000,
            architecture: "amd64".into(),
            variant: String::new(),
            os: "linux".into(),
            author: String::new(),
            comment: String::new(),
            config: ContainerConfig {
                cmd: Some(vec!["sh".into()]),
                ..ContainerConfig::default()
            },
            layers: vec!["sha256:cc".into()],
            top_layer: Some("sha256:cc".into()),
            raw_config: Value::Null,
            parent: None,
        }
    }

    #[test]
    fn summaries() {
        let mut image = image();
        assert_eq!(
            serde_json::to_value(Summary::new(&image, ApiVersion(51))).unwrap(),
            json!({
                "Containers": -1, "Created": 1_795_255_200, "Id": "sha256:aa", "Labels": null, "ParentId": "",
                "RepoDigests": ["busybox@sha256:bb"], "RepoTags": ["busybox:latest"], "SharedSize": -1,
                "Size": 4_000_000,
            })
        );
        image.tags.clear();
        image.digests.clear();
        let of = |version| serde_json::to_value(Summary::new(&image, ApiVersion(version))).unwrap();
        assert_eq!(
            (&of(43)["RepoTags"], &of(43)["VirtualSize"]),
            (&json!([]), &json!(4_000_000))
        );
        assert_eq!(of(42)["RepoTags"], json!(["<none>:<none>"]));
    }

    #[test]
    fn inspection() {
        let image = image();
        let with = |driver| serde_json::to_value(Inspect::new(&image, driver, ApiVersion(51))).unwrap();
        let value = with(GraphDriver::new("vfs", &[]));
        assert_eq!(value["GraphDriver"], json!({"Data": null, "Name": "vfs"}));
        let rows = [("UpperDir", "/u"), ("LowerDir", "/a:/b")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(
            with(GraphDriver::new("overlay2", &rows))["GraphDriver"],
            json!({"Data": {"LowerDir": "/a:/b", "UpperDir": "/u"}, "Name": "overlay2"})
        );
        assert_eq!(
            value["RootFS"],
            json!({"Type": "layers", "Layers": ["sha256:cc"]})
        );
        assert_eq!(value["Metadata"]["LastTagTime"], "0001-01-01T00:00:00Z");
        assert_eq!(value["Config"]["Cmd"], json!(["sh"]));
        assert_eq!(value["Created"], "2026-11-21T10:00:00Z");
        assert!(value.get("Variant").is_none() && value.get("VirtualSize").is_none());
    }
}
