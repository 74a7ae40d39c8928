//! `/networks`, read-only.

use axum::extract::{Path, State};
use jiff::Timestamp;
use skiff_core::container::ListOptions;
use skiff_core::filters::Filters;
use skiff_core::network::NetworkInfo;
use skiff_core::{Error, Result};

use crate::error::Answer;
use crate::extract::Params;
use crate::{App, answer, wire};

const FILTERS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];

/// `docker network ls`.
pub(crate) async fn list(State(app): State<App>, params: Params) -> Answer {
    let filters = params.filters()?;
    filters.check_names(FILTERS)?;
    let dangling = filters.flag("dangling")?;
    let networks = app.engine.networks.list();
    let shown: Vec<_> = networks
        .iter()
        .filter(|network| matches(network, &filters, dangling))
        .map(|network| wire::network::Network::new(network, &[]))
        .collect();
    Ok(answer::ok(&shown))
}

/// Networks here are the predefined ones: of type `builtin`, never dangling, without labels, on this machine only.
fn matches(network: &NetworkInfo, filters: &Filters, dangling: Option<bool>) -> bool {
    filters.accepts("name", |name| network.name.contains(name))
        && filters.accepts("id", |id| network.id.contains(id))
        && filters.accepts("driver", |driver| network.driver == driver)
        && filters.accepts("scope", |scope| scope == "local")
        && filters.accepts("type", |kind| kind == "builtin")
        && filters.accepts_labels(|_| None)
        && dangling != Some(true)
}

/// `docker network inspect`.
pub(crate) async fn inspect(State(app): State<App>, Path(reference): Path<String>) -> Answer {
    let networks = app.engine.networks.list();
    let network = find(&networks, &reference)?;
    let containers = app.engine.containers.list(&ListOptions::default())?;
    Ok(answer::ok(&wire::network::Network::new(network, &containers)))
}

/// By id, then by name, then by the unambiguous beginning of an id.
fn find<'a>(networks: &'a [NetworkInfo], reference: &str) -> Result<&'a NetworkInfo> {
    let exact = networks
        .iter()
        .find(|network| network.id == reference)
        .or_else(|| networks.iter().find(|network| network.name == reference));
    if let Some(network) = exact {
        return Ok(network);
    }
    let mut candidates = networks
        .iter()
        .filter(|network| network.id.starts_with(reference));
    match (candidates.next(), candidates.next()) {
        (Some(network), None) => Ok(network),
        (Some(_), Some(_)) => Err(Error::invalid(format!("network {reference} is ambiguous"))),
        (None, _) => Err(Error::not_found(format!("network {reference} not found"))),
    }
}

/// When a predefined network came into being is not recorded.
pub(crate) const CREATED: Option<Timestamp> = None;

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str, id: &str, driver: &str) -> NetworkInfo {
        NetworkInfo {
            name: name.into(),
            id: id.into(),
            driver: driver.into(),
            subnets: Vec::new(),
            options: Vec::new(),
        }
    }

    #[test]
    fn networks_are_found_by_id_name_and_beginning_of_an_id() {
        let networks = [network("bridge", "aa11", "bridge"), network("aa", "ab22", "host")];
        assert_eq!(find(&networks, "aa11").unwrap().name, "bridge");
        assert_eq!(
            find(&networks, "aa").unwrap().name,
            "aa",
            "names win over beginnings"
        );
        assert_eq!(find(&networks, "ab").unwrap().name, "aa");
        assert_eq!(
            find(&networks, "a").unwrap_err().to_string(),
            "network a is ambiguous"
        );
        assert_eq!(
            find(&networks, "nope").unwrap_err().to_string(),
            "network nope not found"
        );
    }

    #[test]
    fn filters() {
        let bridge = network("bridge", "aa11", "bridge");
        let check = |json: &str| {
            let filters = Filters::parse(json).unwrap();
            matches(&bridge, &filters, filters.flag("dangling").unwrap())
        };
        assert!(check(
            r#"{"name":["rid"],"driver":["bridge"],"type":["builtin"]}"#
        ));
        assert!(!check(r#"{"name":["host"]}"#));
        assert!(!check(r#"{"type":["custom"]}"#));
        assert!(!check(r#"{"label":["com.docker.compose.project=x"]}"#));
        assert!(!check(r#"{"dangling":["true"]}"#));
        assert!(check(r#"{"dangling":["false"]}"#));
    }
}
