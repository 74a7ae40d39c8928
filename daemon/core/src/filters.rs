//! The `filters` parameter of list, prune and events: names with a set of accepted values.
//! Two JSON forms exist: `{"name":["a","b"]}` and the older `{"name":{"a":true,"b":false}}`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::error::{Error, Result};

/// Parsed filters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    List(Vec<String>),
    Map(BTreeMap<String, bool>),
}

impl Filters {
    /// Parses the query parameter; empty text is no filter.
    ///
    /// # Errors
    /// `InvalidParameter` "invalid filter".
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let raw: BTreeMap<String, Values> =
            serde_json::from_str(text).map_err(|_| Error::invalid("invalid filter"))?;
        Ok(Self(
            raw.into_iter()
                .map(|(name, values)| {
                    let set = match values {
                        Values::List(list) => list.into_iter().collect(),
                        Values::Map(map) => map
                            .into_iter()
                            .filter(|(_, on)| *on)
                            .map(|(value, _)| value)
                            .collect(),
                    };
                    (name, set)
                })
                .collect(),
        ))
    }

    /// Refuses names outside `known`.
    ///
    /// # Errors
    /// `InvalidParameter` "invalid filter 'x'".
    pub fn check_names(&self, known: &[&str]) -> Result<()> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(Error::invalid(format!("invalid filter '{name}'"))),
            None => Ok(()),
        }
    }

    /// The values given for `name`; nothing when the filter is absent.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    /// Whether the filter was given at all (with at least one value).
    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|set| !set.is_empty())
    }

    /// True when `name` was not given, or one of its values satisfies `matches`.
    pub fn accepts(&self, name: &str, matches: impl Fn(&str) -> bool) -> bool {
        !self.has(name) || self.values(name).any(matches)
    }

    /// The boolean filter `name` (`true`/`1`, `false`/`0`); `None` when absent.
    ///
    /// # Errors
    /// `InvalidParameter` for another value or for two values.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some("true" | "1"), None) => Ok(Some(true)),
            (Some("false" | "0"), None) => Ok(Some(false)),
            (Some(value), _) => Err(Error::invalid(format!("invalid filter '{name}={value}'"))),
        }
    }

    /// The `label` filter: each value is `KEY` or `KEY=VALUE`, and all of them must hold.
    pub fn accepts_labels<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let holds = |wanted: &str| match wanted.split_once('=') {
            Some((key, value)) => label(key) == Some(value),
            None => label(wanted).is_some(),
        };
        self.values("label").all(holds) && !self.values("label!").any(holds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_json_forms_mean_the_same() {
        let list = Filters::parse(r#"{"status":["exited","created"]}"#).unwrap();
        let map = Filters::parse(r#"{"status":{"exited":true,"created":true,"dead":false}}"#).unwrap();
        assert_eq!(list, map);
        assert!(list.accepts("status", |s| s == "created"));
        assert!(!list.accepts("status", |s| s == "dead"));
        assert!(list.accepts("name", |_| false));
    }

    #[test]
    fn unknown_names_and_bad_json_are_refused_in_docker_s_words() {
        assert_eq!(Filters::parse("x").unwrap_err().to_string(), "invalid filter");
        let filters = Filters::parse(r#"{"nope":["1"]}"#).unwrap();
        assert_eq!(
            filters.check_names(&["id"]).unwrap_err().to_string(),
            "invalid filter 'nope'"
        );
    }

    #[test]
    fn labels_must_all_hold() {
        let label = |key: &str| (key == "a").then_some("1");
        let accepts = |json: &str| Filters::parse(json).unwrap().accepts_labels(label);
        assert!(accepts(r#"{"label":["a"]}"#));
        assert!(accepts(r#"{"label":["a=1"]}"#));
        assert!(!accepts(r#"{"label":["a=2"]}"#));
        assert!(!accepts(r#"{"label":["a","b"]}"#));
        assert!(!accepts(r#"{"label!":["a"]}"#));
    }
}
