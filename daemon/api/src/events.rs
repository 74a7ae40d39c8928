//! `/events`: kept events from `since` on, then the live feed, one JSON object a line.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;
use skiff_core::events::Event;
use skiff_core::filters::Filters;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::answer::{self, JSON};
use crate::error::{Answer, ApiError};
use crate::extract::{Gone, Params};
use crate::{App, time};

const FILTERS: &[&str] = &[
    "config",
    "container",
    "daemon",
    "event",
    "id",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

/// An event as clients read it. `status`, `id` and `from` are the older form, for containers and images.
#[derive(Serialize)]
struct Message<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    #[serde(rename = "Type")]
    kind: &'a str,
    #[serde(rename = "Action")]
    action: &'a str,
    #[serde(rename = "Actor")]
    actor: Actor<'a>,
    scope: &'static str,
    time: i64,
    #[serde(rename = "timeNano")]
    time_nano: i64,
}

#[derive(Serialize)]
struct Actor<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    #[serde(rename = "Attributes")]
    attributes: &'a BTreeMap<String, String>,
}

fn line(event: &Event) -> Bytes {
    let old_form = matches!(event.kind, "container" | "image");
    let from = event.attributes.get("image").map(String::as_str);
    answer::json_line(&Message {
        status: old_form.then_some(&event.action),
        id: old_form.then_some(&event.id),
        from: from.filter(|_| event.kind == "container"),
        kind: event.kind,
        action: &event.action,
        actor: Actor {
            id: &event.id,
            attributes: &event.attributes,
        },
        scope: "local",
        time: event.time.as_second(),
        // Nanoseconds fit into 64 bits until the year 2262.
        time_nano: i64::try_from(event.time.as_nanosecond()).unwrap_or(i64::MAX),
    })
}

/// What a client wants to see.
struct Selection {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    filters: Filters,
}

impl Selection {
    fn parse(params: &Params, now: Timestamp) -> Result<Self, ApiError> {
        let since = time::parse_bound(params.text("since"), now)?;
        let until = time::parse_bound(params.text("until"), now)?;
        if let (Some(since), Some(until)) = (since, until)
            && since > until
        {
            return Err(ApiError::invalid(format!(
                "`since` time ({since}) cannot be after `until` time ({until})"
            )));
        }
        let filters = params.filters()?;
        filters.check_names(FILTERS)?;
        Ok(Self {
            since,
            until,
            filters,
        })
    }

    fn accepts(&self, event: &Event) -> bool {
        let filters = &self.filters;
        self.since.is_none_or(|since| event.time >= since)
            && self.until.is_none_or(|until| event.time <= until)
            && filters.accepts("type", |kind| kind == event.kind)
            && filters.accepts("event", |action| {
                // `exec_create: sh -c …` and `health_status: healthy` are asked for by their first word.
                action == event.action
                    || event
                        .action
                        .split_once(": ")
                        .is_some_and(|(first, _)| first == action)
            })
            && filters.accepts("scope", |scope| scope == "local")
            && filters.accepts("id", |id| event.id.starts_with(id))
            && filters.accepts("image", |image| image_matches(event, image))
            && [
                "container",
                "network",
                "volume",
                "daemon",
                "plugin",
                "config",
                "node",
                "secret",
                "service",
            ]
            .iter()
            .all(|kind| filters.accepts(kind, |name| object_matches(event, kind, name)))
            && filters.accepts_labels(|key| event.attributes.get(key).map(String::as_str))
    }
}

/// An object is named by its name or the beginning of either name or id.
fn object_matches(event: &Event, kind: &str, wanted: &str) -> bool {
    let name = event
        .attributes
        .get("name")
        .map(String::as_str)
        .unwrap_or_default();
    event.kind == kind && (event.id.starts_with(wanted) || name.starts_with(wanted))
}

/// An image is named with or without its tag; events of its containers count, too.
fn image_matches(event: &Event, wanted: &str) -> bool {
    let attribute = if event.kind == "image" { "name" } else { "image" };
    let name = event
        .attributes
        .get(attribute)
        .map(String::as_str)
        .unwrap_or_default();
    [event.id.as_str(), name]
        .into_iter()
        .any(|name| name == wanted || without_tag(name) == wanted)
}

fn without_tag(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// `docker events`.
pub(crate) async fn events(State(app): State<App>, params: Params, Gone(gone): Gone) -> Answer {
    let now = Timestamp::now();
    let selection = Selection::parse(&params, now)?;
    let (history, feed) = app.engine.events.subscribe();
    // Without `since` (or an `until` in the past) only what comes is of interest.
    let past_only = selection.until.is_some_and(|until| until <= now);
    let wants_history = selection.since.is_some() || past_only;
    let kept: Vec<Bytes> = history
        .iter()
        .filter(|event| wants_history && selection.accepts(event))
        .map(|event| line(event))
        .collect();
    let kept = stream::iter(kept);
    if past_only {
        return Ok(answer::stream(JSON, kept));
    }
    let until = selection
        .until
        .map(|until| until.duration_since(now).unsigned_abs());
    let end = async move {
        tokio::select! {
            () = gone.cancelled() => {}
            () = app.shutdown.cancelled() => {}
            () = sleep_or_never(until) => {}
        }
    };
    Ok(answer::stream(
        JSON,
        kept.chain(live(feed, selection)).take_until(Box::pin(end)),
    ))
}

async fn sleep_or_never(duration: Option<std::time::Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// The feed, filtered. A client that is too slow to keep up loses its stream rather than events in silence: it can
/// ask again with `since`.
fn live(feed: Receiver<Arc<Event>>, selection: Selection) -> impl futures_util::Stream<Item = Bytes> + Send {
    stream::unfold((feed, selection), |(mut feed, selection)| async move {
        loop {
            match feed.recv().await {
                Ok(event) if selection.accepts(&event) => return Some((line(&event), (feed, selection))),
                Ok(_) => {}
                Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(lost)) => {
                    tracing::warn!(lost, "an events client reads too slowly; its stream is ended");
                    return None;
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_core::events::{BACKLOG, Events};

    fn event(kind: &'static str, action: &str, id: &str, attributes: &[(&str, &str)]) -> Event {
        Event {
            kind,
            action: action.into(),
            id: id.into(),
            attributes: attributes
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
            time: "2026-11-21T10:00:00.5Z".parse().unwrap(),
        }
    }

    fn selection(query: &str) -> Selection {
        Selection::parse(&Params::parse(query), "2026-11-21T12:00:00Z".parse().unwrap()).unwrap()
    }

    fn filtered(filters: &str, event: &Event) -> bool {
        Selection {
            since: None,
            until: None,
            filters: Filters::parse(filters).unwrap(),
        }
        .accepts(event)
    }

    #[test]
    fn container_events_carry_old_and_new_form() {
        let text = line(&event(
            "container",
            "die",
            "abc",
            &[("exitCode", "3"), ("image", "busybox")],
        ));
        assert_eq!(
            std::str::from_utf8(&text).unwrap(),
            "{\"status\":\"die\",\"id\":\"abc\",\"from\":\"busybox\",\"Type\":\"container\",\"Action\":\"die\",\
             \"Actor\":{\"ID\":\"abc\",\"Attributes\":{\"exitCode\":\"3\",\"image\":\"busybox\"}},\
             \"scope\":\"local\",\"time\":1795255200,\"timeNano\":1795255200500000000}\n"
        );
        let text = line(&event("network", "connect", "n1", &[("container", "abc")]));
        assert!(
            text.starts_with(b"{\"Type\":\"network\""),
            "networks have no old form: {text:?}"
        );
        assert!(
            line(&event("image", "pull", "busybox:latest", &[])).starts_with(b"{\"status\":\"pull\",\"id\":")
        );
    }

    #[test]
    fn filters_select() {
        let die = event(
            "container",
            "die",
            "abcdef",
            &[("name", "web"), ("image", "r:5000/a/b:1"), ("l", "1")],
        );
        for (filters, expected) in [
            (r#"{"type":["container"]}"#, true),
            (r#"{"type":["image"]}"#, false),
            (r#"{"event":["die","start"]}"#, true),
            (r#"{"event":["start"]}"#, false),
            (r#"{"container":["web"]}"#, true),
            (r#"{"container":["abc"]}"#, true),
            (r#"{"container":["db"]}"#, false),
            (r#"{"image":["r:5000/a/b"]}"#, true),
            (r#"{"image":["r:5000/a/b:1"]}"#, true),
            (r#"{"image":["r"]}"#, false),
            (r#"{"label":["l=1"]}"#, true),
            (r#"{"label":["l=2"]}"#, false),
            (r#"{"scope":["swarm"]}"#, false),
            (r#"{"network":["abc"]}"#, false),
        ] {
            assert_eq!(filtered(filters, &die), expected, "{filters}");
        }
        let health = event("container", "health_status: healthy", "a", &[]);
        assert!(filtered(r#"{"event":["health_status"]}"#, &health));
    }

    #[test]
    fn bounds_and_bad_parameters() {
        let event = event("image", "pull", "x", &[]);
        assert!(selection("since=2026-11-21T10:00:00Z").accepts(&event));
        assert!(!selection("since=2026-11-21T10:00:01Z").accepts(&event));
        assert!(selection("until=1h").accepts(&event));
        assert!(!selection("until=2026-11-21T10:00:00Z").accepts(&event));
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        for bad in [
            "since=x",
            "filters=x",
            "filters=%7B%22nope%22%3A%5B%22x%22%5D%7D",
            "since=20&until=10",
        ] {
            assert!(Selection::parse(&Params::parse(bad), now).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_slow_client_loses_its_stream_not_its_events() {
        let events = Events::default();
        let (_, feed) = events.subscribe();
        let publish = |n: usize| events.publish("container", "create", n.to_string(), BTreeMap::new());
        publish(0);
        let mut lines = Box::pin(live(feed, selection("")));
        assert!(lines.next().await.is_some());
        (1..BACKLOG + 100).for_each(publish);
        assert!(lines.next().await.is_none());
    }
}
