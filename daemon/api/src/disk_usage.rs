//! `GET /system/df`.
//!
//! Since API 1.42 a client may ask for some kinds of objects only (`type=image&type=container`); what was not asked for is
//! null. There are no volumes and no build cache yet, which is said by empty lists.

use axum::extract::State;
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_core::Error;
use skiff_core::usage::ImagesUsage;

use crate::error::{Answer, ApiError};
use crate::extract::{ApiVersion, Params};
use crate::{App, answer, wire};

/// The first API version in which a client can choose.
const FIRST_WITH_TYPES: ApiVersion = ApiVersion(42);

/// What was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Kinds {
    containers: bool,
    images: bool,
    volumes: bool,
    build_cache: bool,
}

impl Kinds {
    fn asked(types: &[String], version: ApiVersion) -> Result<Self, ApiError> {
        if types.is_empty() || version < FIRST_WITH_TYPES {
            return Ok(Self {
                containers: true,
                images: true,
                volumes: true,
                build_cache: true,
            });
        }
        let mut kinds = Self::default();
        for kind in types {
            match kind.as_str() {
                "container" => kinds.containers = true,
                "image" => kinds.images = true,
                "volume" => kinds.volumes = true,
                "build-cache" => kinds.build_cache = true,
                other => return Err(ApiError::invalid(format!("unknown object type: {other}"))),
            }
        }
        Ok(kinds)
    }
}

/// `docker system df`.
pub(crate) async fn df(State(app): State<App>, params: Params, version: ApiVersion) -> Answer {
    let kinds = Kinds::asked(&params.all("type"), version)?;
    let images = async {
        match kinds.images {
            true => app.engine.images_usage().await.map(Some),
            false => Ok(None),
        }
    };
    let containers = async {
        match kinds.containers {
            true => app.engine.containers_usage().await.map(Some),
            false => Ok(None),
        }
    };
    let (images, containers) = tokio::try_join!(images, containers)?;
    let now = Timestamp::now();
    let containers = containers.map(|containers| {
        let summary = |(view, size): &(std::sync::Arc<_>, _)| {
            let mut summary = wire::container::Summary::new(view, now);
            summary.set_size(*size);
            encode(&summary)
        };
        containers.iter().map(summary).collect::<Result<Vec<_>, _>>()
    });
    let none: [Value; 0] = [];
    Ok(answer::ok(&json!({
        "LayersSize": images.as_ref().map_or(0, |images| images.layers_size),
        "Images": images.as_ref().map(|images| summaries(images, version)),
        "Containers": containers.transpose()?,
        "Volumes": kinds.volumes.then_some(&none),
        "BuildCache": kinds.build_cache.then_some(&none),
    })))
}

fn summaries(usage: &ImagesUsage, version: ApiVersion) -> Vec<wire::image::Summary<'_>> {
    let images = usage.images.iter();
    images
        .map(|usage| {
            let mut summary = wire::image::Summary::new(&usage.image, version);
            summary.set_shared_size(usage.shared);
            summary.set_containers(usage.containers);
            summary
        })
        .collect()
}

fn encode(value: &impl serde::Serialize) -> Result<Value, ApiError> {
    let encoded = serde_json::to_value(value);
    encoded.map_err(|error| Error::system("encode the answer").caused_by(error).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_chosen_since_1_42_and_unknown_ones_are_refused() {
        let asked = |types: &[&str], version| {
            let types: Vec<String> = types.iter().map(|text| (*text).to_owned()).collect();
            Kinds::asked(&types, ApiVersion(version))
        };
        let all = asked(&[], 51).unwrap();
        assert!(all.containers && all.images && all.volumes && all.build_cache);
        assert_eq!(asked(&["image"], 41).unwrap(), all, "an old server did not look");
        let some = asked(&["image", "build-cache"], 42).unwrap();
        assert_eq!(
            (some.images, some.build_cache, some.containers, some.volumes),
            (true, true, false, false)
        );
        assert!(asked(&["image", "disk"], 51).is_err());
    }
}
