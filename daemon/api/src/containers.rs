//! `/containers`, except attach and logs.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use skiff_core::Error;
use skiff_core::config::{ContainerConfig, HostConfig, NetworkingConfig};
use skiff_core::container::{
    CreateRequest, ListOptions, RemoveOptions, StopOptions, WaitCondition, WaitOutcome,
};
use skiff_core::runtime::TerminalSize;

use crate::answer::{self, JSON};
use crate::error::{Answer, ApiError};
use crate::extract::{Gone, JsonBody, Params, body_length};
use crate::{App, wire};

/// Longest body that `start` takes for an empty one; a JSON object that says something has at least 7 bytes.
const EMPTY_START_BODY: u64 = 7;

/// Body of `create`: the portable part at the top level, the rest in objects of their own.
#[derive(Debug, Deserialize)]
pub(crate) struct CreateBody {
    #[serde(flatten)]
    config: ContainerConfig,
    #[serde(rename = "HostConfig")]
    host_config: Option<HostConfig>,
    #[serde(rename = "NetworkingConfig")]
    networking: Option<NetworkingConfig>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CreateAnswer {
    id: String,
    warnings: Vec<String>,
}

/// `docker create`.
pub(crate) async fn create(
    State(app): State<App>,
    params: Params,
    JsonBody(body): JsonBody<CreateBody>,
) -> Answer {
    let created = app
        .engine
        .containers
        .create(CreateRequest {
            name: params.optional("name"),
            platform: params.optional("platform"),
            config: body.config,
            host_config: body.host_config.unwrap_or_default(),
            networking: body.networking.unwrap_or_default(),
        })
        .await?;
    let answer = CreateAnswer {
        id: created.id,
        warnings: created.warnings,
    };
    Ok(answer::json(StatusCode::CREATED, &answer))
}

/// `docker ps`.
pub(crate) async fn list(State(app): State<App>, params: Params) -> Answer {
    let options = ListOptions {
        all: params.flag("all"),
        // Docker takes 0 and negative numbers for "no limit".
        limit: params
            .integer("limit")?
            .and_then(|limit| usize::try_from(limit).ok())
            .filter(|&limit| limit > 0),
        filters: params.filters()?,
    };
    let now = Timestamp::now();
    let views = app.engine.containers.list(&options)?;
    let mut summaries = Vec::with_capacity(views.len());
    for view in &views {
        let mut summary = wire::container::Summary::new(view, now);
        if params.flag("size") {
            // A container may go while the list is made.
            summary.set_size(app.engine.containers.size(&view.record.id).await.ok());
        }
        summaries.push(summary);
    }
    Ok(answer::ok(&summaries))
}

/// `docker inspect`.
pub(crate) async fn inspect(State(app): State<App>, Path(id): Path<String>, params: Params) -> Answer {
    let view = app.engine.containers.find(&id)?;
    let size = if params.flag("size") {
        Some(app.engine.containers.size(&view.record.id).await?)
    } else {
        None
    };
    let graph = app.engine.containers.graph_data(&view.record).await;
    let mut inspect = wire::container::Inspect::new(&view, size, &graph);
    if let Some(trouble) = app.engine.containers.trouble(&view).await {
        inspect.set_error(trouble);
    }
    Ok(answer::ok(&inspect))
}

/// `docker start`.
pub(crate) async fn start(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
) -> Answer {
    if body_length(&headers).is_none_or(|length| length > EMPTY_START_BODY) {
        return Err(ApiError::invalid(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24",
        ));
    }
    if !params.text("checkpoint").is_empty() {
        return Err(Error::not_implemented("starting from a checkpoint is not supported by skiff").into());
    }
    app.engine.containers.start(&id).await?;
    Ok(answer::no_content())
}

fn stop_options(params: &Params) -> Result<StopOptions, ApiError> {
    Ok(StopOptions {
        timeout: params.integer("t")?,
        signal: params.optional("signal"),
    })
}

/// `docker stop`.
pub(crate) async fn stop(State(app): State<App>, Path(id): Path<String>, params: Params) -> Answer {
    app.engine.containers.stop(&id, stop_options(&params)?).await?;
    Ok(answer::no_content())
}

/// `docker restart`.
pub(crate) async fn restart(State(app): State<App>, Path(id): Path<String>, params: Params) -> Answer {
    app.engine.containers.restart(&id, stop_options(&params)?).await?;
    Ok(answer::no_content())
}

/// `docker kill`.
pub(crate) async fn kill(State(app): State<App>, Path(id): Path<String>, params: Params) -> Answer {
    app.engine
        .containers
        .kill(&id, params.optional("signal").as_deref())
        .await?;
    Ok(answer::no_content())
}

/// The terminal's size.
pub(crate) async fn resize(State(app): State<App>, Path(id): Path<String>, params: Params) -> Answer {
    let size = TerminalSize {
        height: params.cells("h")?,
        width: params.cells("w")?,
    };
    app.engine.containers.resize(&id, size).await?;
    Ok(StatusCode::OK.into_response())
}

/// `docker rename`.
pub(crate) async fn rename(State(app): State<App>, Path(id): Path<String>, params: Params) -> Answer {
    app.engine.containers.rename(&id, params.text("name")).await?;
    Ok(answer::no_content())
}

/// `docker rm`.
pub(crate) async fn remove(State(app): State<App>, Path(id): Path<String>, params: Params) -> Answer {
    if params.flag("link") {
        return Err(
            Error::not_implemented("removing links is not supported by skiff: there are none").into(),
        );
    }
    let options = RemoveOptions {
        force: params.flag("force"),
        volumes: params.flag("v"),
    };
    app.engine.containers.remove(&id, options).await?;
    Ok(answer::no_content())
}

/// `docker container prune`.
pub(crate) async fn prune(State(app): State<App>, params: Params) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Pruned {
        containers_deleted: Option<Vec<String>>,
        space_reclaimed: u64,
    }
    let (deleted, space_reclaimed) = app.engine.containers.prune(&params.filters()?).await?;
    // Go writes an empty list as null here, and clients compare.
    let containers_deleted = Some(deleted).filter(|deleted| !deleted.is_empty());
    Ok(answer::ok(&Pruned {
        containers_deleted,
        space_reclaimed,
    }))
}

fn condition(text: &str) -> Result<WaitCondition, ApiError> {
    match text {
        "" | "not-running" => Ok(WaitCondition::NotRunning),
        "next-exit" => Ok(WaitCondition::NextExit),
        "removed" => Ok(WaitCondition::Removed),
        other => Err(ApiError::invalid(format!("invalid condition: {other:?}"))),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct WaitAnswer {
    status_code: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<WaitError>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct WaitError {
    message: String,
}

impl From<WaitOutcome> for WaitAnswer {
    fn from(outcome: WaitOutcome) -> Self {
        Self {
            status_code: outcome.status_code,
            error: outcome.error.map(|message| WaitError { message }),
        }
    }
}

/// `docker wait`. The head of the answer says that the wait has begun; `docker run` starts the container then.
pub(crate) async fn wait(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
    Gone(gone): Gone,
) -> Result<Response, ApiError> {
    let outcome = app
        .engine
        .containers
        .wait(&id, condition(params.text("condition"))?)?;
    let line = async move { answer::json_line(&WaitAnswer::from(outcome.await)) };
    let lines = stream::once(line).take_until(Box::pin(gone.cancelled_owned()));
    Ok(answer::stream(JSON, lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_bodies_have_three_parts() {
        let body: CreateBody = crate::extract::parse_json(
            br#"{"Image":"busybox","Cmd":["true"],"Tty":true,"HostConfig":{"AutoRemove":true,"Memory":5},
                 "NetworkingConfig":{"EndpointsConfig":{"bridge":{}}},"Unknown":1}"#,
        )
        .unwrap();
        assert_eq!((body.config.image.as_str(), body.config.tty), ("busybox", true));
        let host = body.host_config.unwrap();
        assert!(host.auto_remove);
        assert_eq!(host.unsupported(), ["Memory"]);
        assert!(body.networking.unwrap().endpoints_config.contains_key("bridge"));
        let body: CreateBody =
            crate::extract::parse_json(br#"{"Image":"x","HostConfig":null,"NetworkingConfig":null}"#)
                .unwrap();
        assert!(body.host_config.is_none() && body.networking.is_none());
    }

    #[test]
    fn wait_conditions() {
        assert_eq!(condition("").unwrap(), WaitCondition::NotRunning);
        assert_eq!(condition("next-exit").unwrap(), WaitCondition::NextExit);
        assert_eq!(condition("removed").unwrap(), WaitCondition::Removed);
        assert_eq!(
            condition("x").unwrap_err().into_inner().to_string(),
            "invalid condition: \"x\""
        );
    }

    #[test]
    fn wait_answers() {
        let line =
            |outcome| String::from_utf8(answer::json_line(&WaitAnswer::from(outcome)).to_vec()).unwrap();
        assert_eq!(
            line(WaitOutcome {
                status_code: 3,
                error: None
            }),
            "{\"StatusCode\":3}\n"
        );
        assert_eq!(
            line(WaitOutcome {
                status_code: 125,
                error: Some("no".into())
            }),
            "{\"StatusCode\":125,\"Error\":{\"Message\":\"no\"}}\n"
        );
    }

    #[test]
    fn a_created_container_has_warnings_even_when_it_has_none() {
        let answer = CreateAnswer {
            id: "a".into(),
            warnings: Vec::new(),
        };
        assert_eq!(
            &answer::json_line(&answer)[..],
            b"{\"Id\":\"a\",\"Warnings\":[]}\n"
        );
    }
}
