//! `POST /commit` and `GET /containers/ID/changes`: what a container changed, as an image and as a list.

use axum::extract::{Path, Request, State};
use http::StatusCode;
use serde::Serialize;
use skiff_core::config::ContainerConfig;
use skiff_core::container::{Change, ChangeKind, CommitRequest};

use crate::App;
use crate::answer;
use crate::error::Answer;
use crate::extract::{OptionalJsonBody, Params};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Committed {
    id: String,
}

/// `docker commit`.
pub(crate) async fn commit(State(app): State<App>, params: Params, request: Request) -> Answer {
    let OptionalJsonBody(config) = OptionalJsonBody::<ContainerConfig>::read(request).await?;
    let request = CommitRequest {
        container: params.text("container").to_owned(),
        repository: params.text("repo").to_owned(),
        tag: params.text("tag").to_owned(),
        comment: params.text("comment").to_owned(),
        author: params.text("author").to_owned(),
        pause: params.text("pause").is_empty() || params.flag("pause"),
        changes: params.all("changes"),
        config,
    };
    let id = app.engine.containers.commit(&app.engine.images, request).await?;
    Ok(answer::json(StatusCode::CREATED, &Committed { id }))
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ChangeLine {
    path: String,
    kind: u8,
}

impl From<Change> for ChangeLine {
    fn from(change: Change) -> Self {
        Self {
            path: change.path,
            kind: match change.kind {
                ChangeKind::Modified => 0,
                ChangeKind::Added => 1,
                ChangeKind::Deleted => 2,
            },
        }
    }
}

/// `docker diff`.
pub(crate) async fn changes(State(app): State<App>, Path(id): Path<String>) -> Answer {
    let changes = app.engine.containers.changes(&id).await?;
    // Go writes an empty list as null, and clients compare.
    let lines: Option<Vec<ChangeLine>> =
        (!changes.is_empty()).then(|| changes.into_iter().map(ChangeLine::from).collect());
    Ok(answer::ok(&lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_numbered_as_in_docker() {
        let line = |kind| {
            let change = Change {
                path: "/a".to_owned(),
                kind,
            };
            String::from_utf8(answer::json_line(&ChangeLine::from(change)).to_vec()).unwrap()
        };
        assert_eq!(line(ChangeKind::Modified), "{\"Path\":\"/a\",\"Kind\":0}\n");
        assert_eq!(line(ChangeKind::Added), "{\"Path\":\"/a\",\"Kind\":1}\n");
        assert_eq!(line(ChangeKind::Deleted), "{\"Path\":\"/a\",\"Kind\":2}\n");
    }
}
