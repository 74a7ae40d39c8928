//! `/images`.

use axum::extract::{Path, Request, State};
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, StatusCode};
use serde_json::json;
use skiff_core::images::{Progress, PullRequest, Removal};
use skiff_core::{Credentials, Error, Result};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::answer::{self, JSON};
use crate::error::{Answer, ApiError};
use crate::extract::{ApiVersion, Gone, Params};
use crate::{App, progress, tarballs, wire};

/// How many progress messages may wait for a slow client.
pub(crate) const PROGRESS_BACKLOG: usize = 64;

/// The first API version in which a client can ask how much images share.
const FIRST_WITH_SHARED_SIZE: ApiVersion = ApiVersion(42);

/// `docker images`.
pub(crate) async fn list(State(app): State<App>, params: Params, version: ApiVersion) -> Answer {
    let images = app.engine.images.list(params.flag("all"), &params.filters()?)?;
    let asked = version >= FIRST_WITH_SHARED_SIZE && params.flag("shared-size");
    let shared = asked.then(|| app.engine.images.shared_sizes());
    let summary = |image| {
        let mut summary = wire::image::Summary::new(image, version);
        if let Some(shared) = &shared {
            summary.set_shared_size(shared.of(&image.id));
        }
        summary
    };
    let summaries: Vec<_> = images.iter().map(summary).collect();
    Ok(answer::ok(&summaries))
}

/// `docker image inspect`.
pub(crate) async fn inspect(State(app): State<App>, Path(name): Path<String>, version: ApiVersion) -> Answer {
    let image = app.engine.images.find(&name)?;
    let graph = app.engine.images.graph_data(&image);
    let driver = wire::image::GraphDriver::new(&app.engine.facts.storage_driver, &graph);
    Ok(answer::ok(&wire::image::Inspect::new(&image, driver, version)))
}

/// `docker history`.
pub(crate) async fn history(State(app): State<App>, Path(name): Path<String>) -> Answer {
    let entries = app.engine.images.history(&name)?;
    Ok(answer::ok(
        &entries.iter().map(wire::image::History::new).collect::<Vec<_>>(),
    ))
}

/// `docker tag`.
pub(crate) async fn tag(State(app): State<App>, Path(name): Path<String>, params: Params) -> Answer {
    app.engine
        .images
        .tag(&name, params.text("repo"), params.text("tag"))?;
    Ok(StatusCode::CREATED.into_response())
}

/// `docker rmi`.
pub(crate) async fn remove(State(app): State<App>, Path(name): Path<String>, params: Params) -> Answer {
    let removals = app
        .engine
        .images
        .remove(&name, params.flag("force"), params.flag("noprune"))
        .await?;
    let lines: Vec<_> = removals
        .iter()
        .map(|removal| match removal {
            Removal::Untagged(reference) => json!({"Untagged": reference}),
            Removal::Deleted(id) => json!({"Deleted": id}),
        })
        .collect();
    Ok(answer::ok(&lines))
}

/// `docker pull`, and with `fromSrc` `docker import`. Until the first message an error has a status of its own; after it, it
/// is a line of the stream.
pub(crate) async fn create(
    State(app): State<App>,
    params: Params,
    headers: HeaderMap,
    Gone(gone): Gone,
    request: Request,
) -> Answer {
    if !params.text("fromSrc").is_empty() {
        return tarballs::import(&app, &params, gone, request.into_body()).await;
    }
    let request = PullRequest {
        reference: pull_reference(params.text("fromImage"), params.text("tag"))?,
        platform: params.optional("platform"),
        credentials: registry_auth(&headers),
    };
    let (sender, progress) = mpsc::channel(PROGRESS_BACKLOG);
    let images = app.engine.images.clone();
    let work = Work::new(async move { images.pull(request, sender).await }, progress);
    work.answer("pull", gone).await
}

/// A pull, load or import that makes progress while its messages are read.
pub(crate) struct Work {
    work: Option<BoxFuture<'static, Result<()>>>,
    progress: mpsc::Receiver<Progress>,
}

/// What comes out of it.
#[derive(Debug)]
pub(crate) enum Step {
    Progress(Progress),
    Failed(Error),
}

impl Step {
    /// A line of the stream.
    pub(crate) fn line(&self, what: &str) -> Bytes {
        match self {
            Self::Progress(message) => progress::line(message),
            Self::Failed(error) => {
                tracing::warn!(%error, "{what} failed");
                progress::error_line(error)
            }
        }
    }
}

impl Work {
    pub(crate) fn new(
        work: impl Future<Output = Result<()>> + Send + 'static,
        progress: mpsc::Receiver<Progress>,
    ) -> Self {
        Self {
            work: Some(Box::pin(work)),
            progress,
        }
    }

    /// The answer: an error with a status of its own when that comes before any message, else a stream of lines.
    pub(crate) async fn answer(mut self, what: &'static str, gone: CancellationToken) -> Answer {
        let first = tokio::select! {
            first = self.next() => first,
            // Nobody reads the answer, but dropping the work ends it.
            () = gone.cancelled() => return Err(Error::unavailable("the client has left").into()),
        };
        let first = match first {
            Some(Step::Failed(error)) => return Err(error.into()),
            first => first.map(|step| step.line(what)),
        };
        let lines = stream::iter(first)
            .chain(self.lines(what))
            .take_until(Box::pin(gone.cancelled_owned()));
        Ok(answer::stream(JSON, lines))
    }

    /// The next message, or the error that ended the work after all its messages.
    pub(crate) async fn next(&mut self) -> Option<Step> {
        let Some(work) = &mut self.work else {
            return self.progress.recv().await.map(Step::Progress);
        };
        let result = tokio::select! {
            biased;
            Some(message) = self.progress.recv() => return Some(Step::Progress(message)),
            result = work => result,
        };
        self.work = None;
        // What was sent before the end is still to be shown, an error after it.
        let Err(error) = result else {
            return self.progress.recv().await.map(Step::Progress);
        };
        match self.progress.try_recv() {
            Ok(message) => {
                self.work = Some(Box::pin(std::future::ready(Err(error))));
                Some(Step::Progress(message))
            }
            Err(_) => Some(Step::Failed(error)),
        }
    }

    /// The rest as lines.
    pub(crate) fn lines(self, what: &'static str) -> impl Stream<Item = Bytes> + Send {
        stream::unfold(Some(self), move |work| async move {
            let mut work = work?;
            let step = work.next().await?;
            let ended = matches!(step, Step::Failed(_));
            Some((step.line(what), (!ended).then_some(work)))
        })
    }
}

/// Puts `fromImage` and `tag` (a tag or a digest) together as the user typed them.
fn pull_reference(image: &str, tag: &str) -> Result<String, ApiError> {
    let image = image.strip_suffix(':').unwrap_or(image);
    if image.is_empty() {
        return Err(ApiError::invalid("invalid reference format"));
    }
    Ok(match tag {
        "" => image.to_owned(),
        digest if digest.contains(':') => format!("{image}@{digest}"),
        tag => format!("{image}:{tag}"),
    })
}

/// The credentials in `X-Registry-Auth`. A header that makes no sense counts as absent, as in Docker.
fn registry_auth(headers: &HeaderMap) -> Option<Credentials> {
    let value = headers.get("x-registry-auth")?.to_str().ok()?;
    Credentials::from_header(value).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_put_together_as_typed() {
        for (image, tag, expected) in [
            ("busybox", "", "busybox"),
            ("busybox", "latest", "busybox:latest"),
            ("busybox:", "", "busybox"),
            ("localhost:5000/a/b", "1", "localhost:5000/a/b:1"),
            ("busybox", "sha256:00", "busybox@sha256:00"),
        ] {
            assert_eq!(pull_reference(image, tag).unwrap(), expected);
        }
        assert!(pull_reference("", "latest").is_err());
    }

    #[test]
    fn a_senseless_auth_header_counts_as_absent() {
        let auth = |value: &'static str| {
            registry_auth(&HeaderMap::from_iter([(
                http::HeaderName::from_static("x-registry-auth"),
                http::HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(auth("eyJ1c2VybmFtZSI6InUifQ").unwrap().username, "u");
        assert!(
            auth("e30=").is_none(),
            "the CLI sends an empty object when nobody is logged in"
        );
        assert!(auth("garbage!").is_none());
        assert!(registry_auth(&HeaderMap::new()).is_none());
    }

    fn status(text: &str) -> Progress {
        Progress::Status {
            status: text.into(),
            id: None,
        }
    }

    #[tokio::test]
    async fn an_error_before_the_first_message_stands_alone() {
        let (sender, progress) = mpsc::channel(4);
        let work = async move {
            drop(sender);
            Err(Error::not_found("manifest unknown"))
        };
        let mut pull = Work {
            work: Some(Box::pin(work)),
            progress,
        };
        assert!(matches!(pull.next().await, Some(Step::Failed(e)) if e.to_string() == "manifest unknown"));
    }

    #[tokio::test]
    async fn messages_come_before_the_error_that_ends_them() {
        let (sender, progress) = mpsc::channel(4);
        let work = async move {
            sender.send(status("one")).await.unwrap();
            sender.send(status("two")).await.unwrap();
            Err(Error::system("cut"))
        };
        let pull = Work {
            work: Some(Box::pin(work)),
            progress,
        };
        let lines: Vec<_> = pull.lines("pull").collect().await;
        let lines: Vec<_> = lines
            .iter()
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        assert_eq!(
            lines,
            [
                "{\"status\":\"one\"}\r\n",
                "{\"status\":\"two\"}\r\n",
                "{\"errorDetail\":{\"message\":\"cut\"},\"error\":\"cut\"}\r\n"
            ]
        );
    }

    #[tokio::test]
    async fn a_good_pull_ends_after_its_last_message() {
        let (sender, progress) = mpsc::channel(1);
        let work = async move {
            for n in 0..10 {
                sender.send(status(&n.to_string())).await.unwrap();
            }
            Ok(())
        };
        let pull = Work {
            work: Some(Box::pin(work)),
            progress,
        };
        assert_eq!(pull.lines("pull").count().await, 10);
    }
}
