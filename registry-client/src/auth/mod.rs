//! Authorisation: what a registry asks for, and the answer to it.
//!
//! ```text
//!  request ─▶ 401 + WWW-Authenticate ─▶ challenge.rs
//!                 Basic   ─▶ user and password, to the registry itself
//!                 Bearer  ─▶ token.rs: the cache, or the realm (with user and password, or a refresh token)
//!          ─▶ the request again, once; a second 401 is the user's error
//! ```
//!
//! A registry's challenge is remembered, so that later requests carry their token at once.

mod challenge;
mod token;

use http::HeaderValue;

pub(crate) use challenge::{Bearer, Challenge, challenges};
pub(crate) use token::Tokens;

use crate::credentials::Credentials;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::Transport;

/// What a token shall allow: `repository:NAME:ACTIONS`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scope(String);

impl Scope {
    /// Reading `path`.
    pub(crate) fn pull(path: &str) -> Self {
        Self(format!("repository:{path}:pull"))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// On whose behalf a request is made, and for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access<'a> {
    /// `None` for a login, which asks for no repository.
    pub(crate) scope: Option<&'a Scope>,
    /// What the caller brought; without, the credential file is asked.
    pub(crate) credentials: Option<&'a Credentials>,
}

impl Transport {
    /// The `Authorization` header that answers `challenges`; `None` when there is nothing better than `rejected`.
    ///
    /// # Errors
    /// `Unauthorized` when the registry wants credentials and there are none; the token server's errors.
    pub(crate) async fn answer(
        &self,
        endpoint: &Endpoint,
        challenges: &[Challenge],
        access: Access<'_>,
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>> {
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic => None,
        });
        let basic = challenges.contains(&Challenge::Basic);
        if bearer.is_none() && !basic {
            return Ok(None);
        }
        let looked_up = match access.credentials {
            Some(_) => None,
            None => self.credentials_for(endpoint).await,
        };
        let credentials = access.credentials.or(looked_up.as_ref());
        let answer = match (bearer, credentials.and_then(|c| c.registry_token.as_deref())) {
            (_, Some(token)) => header(&format!("Bearer {token}"))?,
            (Some(bearer), None) => {
                self.bearer(endpoint, bearer, access.scope, credentials, rejected)
                    .await?
            }
            (None, None) => {
                let none = || {
                    Error::new(ErrorKind::Unauthorized, "no basic auth credentials").with_code("UNAUTHORIZED")
                };
                header(&credentials.and_then(Credentials::basic).ok_or_else(none)?)?
            }
        };
        Ok((rejected != Some(&answer)).then_some(answer))
    }
}

/// A header value that is not printed.
///
/// # Errors
/// `Unauthorized` when the text cannot stand in a header.
fn header(text: &str) -> Result<HeaderValue> {
    let invalid = |_| {
        Error::new(
            ErrorKind::Unauthorized,
            "the credentials or token cannot be sent in an HTTP header",
        )
    };
    let mut value = HeaderValue::from_str(text).map_err(invalid)?;
    value.set_sensitive(true);
    Ok(value)
}
