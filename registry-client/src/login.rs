//! Checking credentials: `docker login`.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use crate::auth::{Access, Challenge, challenges};
use crate::client::Client;
use crate::credentials::Credentials;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::response::failure;
use crate::transport::address;

/// The API's root: answers 200, or 401 with a challenge.
const ROOT: &str = "v2/";

/// A successful login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// `Login Succeeded`.
    pub status: String,
    /// A refresh token to keep instead of the password, when the registry grants one.
    pub identity_token: Option<String>,
}

impl Client {
    /// Checks `credentials` with the registry at `server`: `host[:port]`, an address with a scheme, or empty for Docker Hub.
    ///
    /// # Errors
    /// `Unauthorized` when they are refused; `Unavailable`, `Tls`.
    pub async fn login(&self, server: &str, credentials: &Credentials) -> Result<Login> {
        let endpoint = self.endpoint_of(server).await?;
        // Which address it is turns out with the first answer.
        let named = |error: Error| error.context(format!("Get {:?}", address(&endpoint, ROOT)));
        let transport = &self.shared.transport;
        let first = transport
            .exchange(&endpoint, ROOT, &HeaderMap::new(), None)
            .await?;
        if first.status().is_success() {
            return Ok(succeeded(None));
        }
        if first.status() != StatusCode::UNAUTHORIZED {
            return Err(named(failure(first, &transport.config.timeouts).await));
        }
        let asked = challenges(first.headers());
        let bearer = asked.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic => None,
        });
        let (answer, identity_token) = match bearer.filter(|_| credentials.registry_token.is_none()) {
            Some(bearer) => {
                let token = transport
                    .fetch_token(&endpoint, bearer, None, Some(credentials), true)
                    .await
                    .map_err(named)?;
                (
                    Some(token.header()?),
                    token.refresh_token.filter(|token| !token.is_empty()),
                )
            }
            None => {
                let access = Access {
                    scope: None,
                    credentials: Some(credentials),
                };
                (
                    transport
                        .answer(&endpoint, &asked, access, None)
                        .await
                        .map_err(named)?,
                    None,
                )
            }
        };
        let second = transport
            .exchange(&endpoint, ROOT, &HeaderMap::new(), answer.as_ref())
            .await?;
        let status = second.status();
        if status.is_success() {
            return Ok(succeeded(identity_token));
        }
        let kind = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Unauthorized,
            _ => ErrorKind::Unavailable,
        };
        let address = address(&endpoint, ROOT);
        Err(Error::new(
            kind,
            format!("login attempt to {address} failed with status: {status}"),
        ))
    }

    /// Whether a registry answers at `server`, with or without credentials.
    ///
    /// # Errors
    /// `Unavailable` when something else answers, or nothing; `Tls`.
    pub async fn ping(&self, server: &str) -> Result<()> {
        let endpoint = self.endpoint_of(server).await?;
        let transport = &self.shared.transport;
        let response = transport
            .exchange(&endpoint, ROOT, &HeaderMap::new(), None)
            .await?;
        let status = response.status();
        if status.is_success()
            || (status == StatusCode::UNAUTHORIZED && !challenges(response.headers()).is_empty())
        {
            return Ok(());
        }
        let text = format!("{} is no registry: {status}", address(&endpoint, ROOT));
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    async fn endpoint_of(&self, server: &str) -> Result<Arc<Endpoint>> {
        let transport = &self.shared.transport;
        self.shared
            .endpoints
            .origin(domain(server)?, &transport.config, &transport.rules)
            .await
    }
}

fn succeeded(identity_token: Option<String>) -> Login {
    Login {
        status: "Login Succeeded".to_owned(),
        identity_token,
    }
}

/// The domain a reference would name for `server`.
fn domain(server: &str) -> Result<&str> {
    let bare = server
        .strip_prefix("https://")
        .or(server.strip_prefix("http://"))
        .unwrap_or(server);
    let host = bare.split('/').next().unwrap_or_default();
    match host {
        "" if bare.is_empty() => Ok("docker.io"),
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => Ok("docker.io"),
        "" => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("invalid registry address {server:?}"),
        )),
        host if host.contains(['@', '?', '#', '\\']) || host.contains(char::is_whitespace) => {
            Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("invalid registry address {server:?}"),
            ))
        }
        host => Ok(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers() {
        for (server, expected) in [
            ("", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
            ("registry.example:5000", "registry.example:5000"),
            ("https://registry.example/v2/", "registry.example"),
            ("http://localhost:5000", "localhost:5000"),
        ] {
            assert_eq!(domain(server).unwrap(), expected, "{server}");
        }
        for server in ["/v2/", "https://user@host", "a b", "https:///v2"] {
            assert!(domain(server).is_err(), "{server}");
        }
    }
}
