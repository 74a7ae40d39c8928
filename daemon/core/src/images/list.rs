//! `GET /images/json`: filters and order.

use std::collections::HashSet;

use jiff::{SignedDuration, Timestamp};
use skiff_store::Store;

use super::{ImageView, find, pattern, view};
use crate::error::{Error, Result};
use crate::filters::Filters;

/// The filters Docker knows here.
const KNOWN: [&str; 7] = [
    "before",
    "dangling",
    "label",
    "label!",
    "reference",
    "since",
    "until",
];

/// Lists images, newest first. Images without a name that another image was committed on top of are left out unless `all`
/// are wanted.
pub(super) fn list(store: &Store, all: bool, filters: &Filters) -> Result<Vec<ImageView>> {
    filters.check_names(&KNOWN)?;
    let dangling = filters.flag("dangling")?;
    for pattern in filters.values("reference") {
        pattern::matches(pattern, "").ok_or_else(|| Error::invalid("syntax error in pattern"))?;
    }
    let catalog = store.catalog();
    let created = |name: &str| -> Result<Option<Timestamp>> {
        Ok(view::timestamp(
            &find::find(&catalog, name)?.image.config["created"],
        ))
    };
    let before = filters
        .values("before")
        .map(created)
        .collect::<Result<Vec<_>>>()?;
    let since = filters.values("since").map(created).collect::<Result<Vec<_>>>()?;
    let until = filters
        .values("until")
        .map(|text| point_in_time(text).map(Some))
        .collect::<Result<Vec<_>>>()?;
    let views: Vec<ImageView> = catalog
        .images
        .values()
        .map(|image| view::view(store, &catalog, image))
        .collect();
    let parents: HashSet<String> = views.iter().filter_map(|view| view.parent.clone()).collect();
    // Of dangling images only those are wanted that nothing stands on, whatever `all` says.
    let intermediate = |view: &ImageView| {
        let nameless = view.tags.is_empty() && view.digests.is_empty();
        parents.contains(&view.id) && (dangling == Some(true) || (nameless && !all))
    };
    let mut views: Vec<ImageView> = views
        .into_iter()
        .filter(|view| {
            !intermediate(view)
                && before
                    .iter()
                    .chain(&until)
                    .all(|time| view.created.is_some() && view.created < *time)
                && since.iter().all(|time| view.created > *time)
                && filters.accepts_labels(|key| view.config.labels.as_ref()?.get(key).map(String::as_str))
        })
        .filter_map(|view| with_names(view, filters, dangling))
        .collect();
    views.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    Ok(views)
}

/// Applies `reference` (which also takes the other names out of the view) and `dangling`.
fn with_names(mut view: ImageView, filters: &Filters, dangling: Option<bool>) -> Option<ImageView> {
    view.tags.retain(|name| name_is_wanted(name, filters));
    view.digests.retain(|name| name_is_wanted(name, filters));
    let nameless = view.tags.is_empty() && view.digests.is_empty();
    let wanted = if nameless {
        dangling != Some(false) && !filters.has("reference")
    } else {
        dangling != Some(true) || view.tags.is_empty()
    };
    wanted.then_some(view)
}

/// A pattern is held against the familiar form, with and without tag or digest.
fn name_is_wanted(name: &str, filters: &Filters) -> bool {
    let repository = match name.split_once('@') {
        Some((repository, _)) => repository,
        None => match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository,
            _ => name,
        },
    };
    let hit = |pattern: &str, text| pattern::matches(pattern, text) == Some(true);
    filters.accepts("reference", |pattern| {
        hit(pattern, name) || hit(pattern, repository)
    })
}

/// A time as Docker's clients give it: seconds since 1970, RFC 3339, a date, or a Go duration back from now.
fn point_in_time(text: &str) -> Result<Timestamp> {
    let invalid = || Error::invalid(format!("invalid filter 'until={text}'"));
    if let Some(duration) = go_duration(text) {
        return Timestamp::now().checked_sub(duration).map_err(|_| invalid());
    }
    if let Ok(seconds) = text.parse::<f64>() {
        let duration = SignedDuration::try_from_secs_f64(seconds).map_err(|_| invalid())?;
        return Timestamp::from_duration(duration).map_err(|_| invalid());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let local = text.parse::<jiff::civil::DateTime>().map_err(|_| invalid())?;
    local
        .to_zoned(jiff::tz::TimeZone::UTC)
        .map(|zoned| zoned.timestamp())
        .map_err(|_| invalid())
}

/// `1h30m`, `10s`, `1.5h`; `None` when it is no such thing.
pub(super) fn go_duration(text: &str) -> Option<SignedDuration> {
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let units = &rest[digits..];
        let width = units
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(units.len());
        let factor = match &units[..width] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number * factor;
        rest = &units[width..];
    }
    if text.is_empty() {
        None
    } else {
        SignedDuration::try_from_secs_f64(seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time() {
        let at = |text: &str| point_in_time(text).unwrap();
        assert_eq!(at("86400"), "1970-01-02T00:00:00Z".parse().unwrap());
        assert_eq!(at("1970-01-02"), at("86400"));
        assert_eq!(at("1970-01-02T00:00:00"), at("86400"));
        assert_eq!(at("1970-01-02T01:00:00+01:00"), at("86400"));
        let before = Timestamp::now();
        let ago = at("1h30m").duration_since(before).as_secs();
        assert!((-5400..-5340).contains(&ago), "{ago}");
        for bad in ["", "x", "1d", "h", "1970-13-01", "1e400"] {
            assert!(point_in_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_match_with_and_without_tag() {
        let filters = |pattern: &str| Filters::parse(&format!(r#"{{"reference":["{pattern}"]}}"#)).unwrap();
        assert!(name_is_wanted("busybox:latest", &filters("busybox")));
        assert!(name_is_wanted("busybox:latest", &filters("busy*:lat*")));
        assert!(name_is_wanted(
            "localhost:5000/a/b:1",
            &filters("localhost:5000/*/b")
        ));
        assert!(!name_is_wanted("localhost:5000/a/b:1", &filters("b")));
        assert!(!name_is_wanted("busybox:latest", &filters("busybox:1")));
    }
}
