//! `GET /containers/json` and prune: which containers pass the filters.

use std::sync::Arc;

use jiff::Timestamp;
use regex_lite::Regex;

use super::{ContainerView, Containers, ListOptions};
use crate::error::{Error, Result};
use crate::filters::Filters;

/// The filters Docker knows for lists.
const LIST_FILTERS: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];
const STATES: &[&str] = &[
    "created",
    "dead",
    "exited",
    "paused",
    "removing",
    "restarting",
    "running",
];

pub(super) fn list(containers: &Containers, options: &ListOptions) -> Result<Vec<Arc<ContainerView>>> {
    let filters = &options.filters;
    filters.check_names(LIST_FILTERS)?;
    let chosen = Chosen::new(containers, filters)?;
    // Asking for a state, an exit code or a number of newest ones is asking for stopped ones, too.
    let all = options.all || options.limit.is_some() || filters.has("status") || filters.has("exited");
    let mut views: Vec<Arc<ContainerView>> = containers
        .shared
        .registry
        .all()
        .iter()
        .map(super::registry::Handle::snapshot)
        .filter(|view| all || view.state.status().running)
        .filter(|view| chosen.accepts(view))
        .collect();
    views.sort_by_key(|view| std::cmp::Reverse(view.record.created));
    if let Some(limit) = options.limit.filter(|&limit| limit > 0) {
        views.truncate(limit);
    }
    Ok(views)
}

/// Ids of the stopped containers that `until` and `label` let through.
pub(super) fn prunable(containers: &Containers, filters: &Filters) -> Result<Vec<String>> {
    filters.check_names(&["until", "label", "label!"])?;
    let until = match filters.values("until").next() {
        Some(text) => Some(point_in_time(text)?),
        None => None,
    };
    let views = containers.shared.registry.all();
    Ok(views
        .iter()
        .map(super::registry::Handle::snapshot)
        .filter(|view| matches!(view.state.status().word, "created" | "exited" | "dead"))
        .filter(|view| until.is_none_or(|until| view.record.created < until))
        .filter(|view| accepts_labels(filters, view))
        .map(|view| view.record.id.clone())
        .collect())
}

/// A time as filters give it: a Go duration before now, seconds since 1970, or RFC 3339.
fn point_in_time(text: &str) -> Result<Timestamp> {
    if let Ok(seconds) = text.parse::<i64>() {
        return Timestamp::from_second(seconds)
            .map_err(|e| Error::invalid(format!("invalid time {text:?}: {e}")));
    }
    if let Ok(span) = text.parse::<jiff::SignedDuration>() {
        return Timestamp::now()
            .checked_sub(span)
            .map_err(|e| Error::invalid(format!("invalid duration {text:?}: {e}")));
    }
    text.parse()
        .map_err(|_| Error::invalid(format!("failed to parse value as time or duration: {text:?}")))
}

fn accepts_labels(filters: &Filters, view: &ContainerView) -> bool {
    let labels = view.record.config.labels.as_ref();
    filters.accepts_labels(|key| labels.and_then(|labels| labels.get(key)).map(String::as_str))
}

/// The filters, prepared.
struct Chosen<'a> {
    filters: &'a Filters,
    names: Vec<Regex>,
    ancestors: Vec<String>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
}

impl<'a> Chosen<'a> {
    fn new(containers: &Containers, filters: &'a Filters) -> Result<Self> {
        for status in filters.values("status") {
            if !STATES.contains(&status) {
                return Err(Error::invalid(format!("invalid filter 'status={status}'")));
            }
        }
        for code in filters.values("exited") {
            code.parse::<i32>()
                .map_err(|_| Error::invalid(format!("invalid filter 'exited={code}'")))?;
        }
        let names = filters
            .values("name")
            .map(|text| {
                Regex::new(text).map_err(|e| Error::invalid(format!("invalid filter 'name={text}': {e}")))
            })
            .collect::<Result<_>>()?;
        let moment = |name: &str| match filters.values(name).next() {
            Some(reference) => containers.find(reference).map(|view| Some(view.record.created)),
            None => Ok(None),
        };
        // An unknown image has no containers; that is not an error.
        let ancestors = filters
            .values("ancestor")
            .filter_map(|name| containers.shared.images.find(name).ok())
            .map(|image| image.id)
            .collect();
        Ok(Self {
            filters,
            names,
            ancestors,
            before: moment("before")?,
            since: moment("since")?,
        })
    }

    fn accepts(&self, view: &ContainerView) -> bool {
        let (record, status, filters) = (&view.record, view.state.status(), self.filters);
        let host = &record.host_config;
        let name_matches =
            |regex: &Regex| regex.is_match(&record.name) || regex.is_match(&format!("/{}", record.name));
        (self.names.is_empty() || self.names.iter().any(name_matches))
            && filters.accepts("id", |id| record.id.starts_with(id))
            && filters.accepts("status", |word| word == status.word)
            && filters.accepts("exited", |code| {
                status.word == "exited" && code.parse() == Ok(status.exit_code)
            })
            && (!filters.has("ancestor") || self.ancestors.contains(&record.image))
            && self.before.is_none_or(|moment| record.created < moment)
            && self.since.is_none_or(|moment| record.created > moment)
            && filters.accepts("network", |network| {
                host.network_mode == network
                    || view.sandbox.iter().flat_map(|s| &s.endpoints).any(|e| e.network_id == network)
            })
            && filters.accepts("volume", |volume| {
                record.mounts.iter().any(|mount| mount.source == volume || mount.destination == volume)
            })
            && filters.accepts("expose", |port| {
                let wanted = if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") };
                record.config.exposed_ports.as_ref().is_some_and(|ports| ports.contains_key(&wanted))
            })
            // Nothing is published, checked or clustered yet.
            && !filters.has("publish")
            && filters.accepts("health", |health| health == "none")
            && filters.accepts("is-task", |value| matches!(value, "false" | "0"))
            && filters.accepts("isolation", |value| value == "default")
            && accepts_labels(filters, view)
    }
}
