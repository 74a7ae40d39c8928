//! Which hosts may be spoken to without verified TLS: loopback, and what the operator declared insecure.
//!
//! Used by `endpoint.rs` (base URLs of a registry) and `transport.rs` (redirects, token servers). The rules are dockerd's: an entry
//! is compared exactly with `host[:port]`, a CIDR with the address, or with the addresses a name resolves to.

use std::net::IpAddr;

use ipnet::IpNet;
use url::{Host, Url};

use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, Default)]
pub(crate) struct Rules {
    names: Vec<String>,
    networks: Vec<IpNet>,
}

impl Rules {
    pub(crate) fn new(entries: &[String]) -> Result<Self> {
        let mut rules = Self::default();
        for entry in entries {
            let invalid = |why: &str| {
                Error::new(
                    ErrorKind::Configuration,
                    format!("insecure registry {entry} is not valid: {why}"),
                )
            };
            if let Ok(network) = entry.parse() {
                rules.networks.push(network);
                continue;
            }
            // dockerd takes a scheme off with a warning.
            let name = entry
                .strip_prefix("http://")
                .or(entry.strip_prefix("https://"))
                .unwrap_or(entry);
            if name.is_empty() || name.contains(['/', '@', '?', '#']) {
                return Err(invalid("expected HOST, HOST:PORT or CIDR"));
            }
            Url::parse(&format!("https://{name}")).map_err(|e| invalid(&e.to_string()))?;
            rules.names.push(name.to_ascii_lowercase());
        }
        Ok(rules)
    }

    /// Whether `authority` (`host[:port]`) may be spoken to without verified TLS. Resolves names only when a CIDR is configured.
    pub(crate) async fn is_insecure(&self, authority: &str) -> bool {
        if self.names.contains(&authority.to_ascii_lowercase()) {
            return true;
        }
        let Ok(url) = Url::parse(&format!("https://{authority}")) else {
            return false;
        };
        match url.host() {
            Some(host) if is_loopback(&host) => true,
            Some(Host::Ipv4(address)) => self.contains(address.into()),
            Some(Host::Ipv6(address)) => self.contains(address.into()),
            Some(Host::Domain(name)) if !self.networks.is_empty() => {
                let port = url.port_or_known_default().unwrap_or(443);
                match tokio::net::lookup_host((name, port)).await {
                    Ok(mut addresses) => addresses.any(|address| self.contains(address.ip())),
                    Err(_) => false,
                }
            }
            _ => false,
        }
    }

    /// Whether `url`'s host was declared insecure by name or address. Loopback does not count: see [`Rules::is_insecure`].
    pub(crate) fn is_declared(&self, url: &Url) -> bool {
        let declared = match url.host() {
            Some(Host::Ipv4(address)) => self.contains(address.into()),
            Some(Host::Ipv6(address)) => self.contains(address.into()),
            _ => false,
        };
        declared || self.names.contains(&authority(url))
    }

    fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }
}

/// `localhost`, 127.0.0.0/8 and ::1.
fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => name.eq_ignore_ascii_case("localhost"),
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => IpAddr::V6(*address).to_canonical().is_loopback(),
    }
}

/// `host[:port]` of a URL, lower-case.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(entries: &[&str]) -> Result<Rules> {
        Rules::new(&entries.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>())
    }

    #[tokio::test]
    async fn who_is_insecure() {
        let rules = rules(&["Reg.local:5000", "http://plain.local", "10.1.0.0/16", "fd00::/8"]).unwrap();
        for authority in [
            "localhost",
            "LOCALHOST:5000",
            "127.3.2.1:5000",
            "[::1]:5000",
            "[::ffff:127.0.0.1]",
            "reg.local:5000",
            "plain.local",
            "10.1.2.3",
            "10.1.2.3:443",
            "[fd00::1]:5000",
        ] {
            assert!(rules.is_insecure(authority).await, "{authority}");
        }
        for authority in ["10.2.0.1", "[fe80::1]", "128.0.0.1"] {
            assert!(!rules.is_insecure(authority).await, "{authority}");
        }
    }

    #[tokio::test]
    async fn names_compare_exactly() {
        let rules = rules(&["reg.local:5000"]).unwrap();
        for authority in [
            "reg.local",
            "reg.local:5001",
            "xreg.local:5000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
        ] {
            assert!(!rules.is_insecure(authority).await, "{authority}");
        }
        assert!(rules.is_declared(&"http://REG.local:5000/v2/".parse().unwrap()));
        assert!(!rules.is_declared(&"http://localhost/".parse().unwrap()));
    }

    #[test]
    fn malformed_entries_are_refused() {
        for entry in ["", "a/b", "https://", "user@host", "host:port", "10.0.0.0/33"] {
            let error = rules(&[entry]).expect_err(entry);
            assert_eq!(error.kind(), ErrorKind::Configuration);
        }
    }
}
