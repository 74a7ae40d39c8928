//! Tokens: the cache, and the two ways to ask a token server (distribution's "token" and "oauth2" protocols).
//!
//! One token per realm, service, scope and credentials; requests that need the same one wait for a single fetch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::HeaderValue;
use serde::Deserialize;
use url::Url;

use super::{Bearer, Scope, header};
use crate::credentials::Credentials;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::response::{failure, read_bounded};
use crate::transport::Transport;

/// What token servers know this sort of client by; Docker Hub grants refresh tokens to it.
const CLIENT_ID: &str = "docker";
/// The largest token document read, in bytes.
const MAX_TOKEN: usize = 1 << 20;
/// Lifetime of a token that names none, and the shortest one believed (distribution's token specification).
const SHORTEST_LIFE: Duration = Duration::from_secs(60);
/// A token is not used in its last moments: the request must still arrive.
const MARGIN: Duration = Duration::from_secs(10);
/// Tokens kept.
const KEPT: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
    credentials: [u8; 32],
}

#[derive(Debug, Clone)]
struct Token {
    header: HeaderValue,
    expires: Instant,
}

type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// The cache.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<Key, Slot>>);

impl Tokens {
    fn slot(&self, key: Key) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= KEPT {
            // Whoever waits for a slot holds it; only the cache's own copy goes.
            slots.clear();
        }
        Arc::clone(slots.entry(key).or_default())
    }
}

/// A token server's answer.
#[derive(Deserialize)]
pub(crate) struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
    pub(crate) refresh_token: Option<String>,
}

impl TokenResponse {
    pub(crate) fn header(&self) -> Result<HeaderValue> {
        let present = |token: &Option<String>| token.clone().filter(|token| !token.is_empty());
        let token = present(&self.token).or_else(|| present(&self.access_token));
        let missing = || {
            Error::new(
                ErrorKind::Unavailable,
                "authorization server did not include a token in the response",
            )
        };
        header(&format!("Bearer {}", token.ok_or_else(missing)?))
    }
}

impl Transport {
    /// The `Authorization` header for `bearer`'s realm, from the cache unless it is the one just rejected.
    pub(super) async fn bearer(
        &self,
        endpoint: &Endpoint,
        bearer: &Bearer,
        scope: Option<&Scope>,
        credentials: Option<&Credentials>,
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue> {
        let key = Key {
            realm: bearer.realm.clone(),
            service: bearer.service.clone(),
            scope: scope
                .map(|s| s.as_str().to_owned())
                .or_else(|| bearer.scope.clone()),
            credentials: Credentials::fingerprint(credentials),
        };
        let scope = key.scope.clone();
        let slot = self.tokens.slot(key);
        let mut slot = slot.lock().await;
        if let Some(token) = slot.as_ref()
            && token.expires > Instant::now()
            && rejected != Some(&token.header)
        {
            return Ok(token.header.clone());
        }
        let response = self
            .fetch_token(endpoint, bearer, scope.as_deref(), credentials, false)
            .await?;
        let header = response.header()?;
        let life = response
            .expires_in
            .map_or(SHORTEST_LIFE, Duration::from_secs)
            .clamp(SHORTEST_LIFE, SHORTEST_LIFE * 1440);
        *slot = Some(Token {
            header: header.clone(),
            expires: Instant::now() + life - MARGIN,
        });
        Ok(header)
    }

    /// Asks the realm. `offline` asks for a refresh token besides, as a login does.
    pub(crate) async fn fetch_token(
        &self,
        endpoint: &Endpoint,
        bearer: &Bearer,
        scope: Option<&str>,
        credentials: Option<&Credentials>,
        offline: bool,
    ) -> Result<TokenResponse> {
        let realm = self.realm(endpoint, bearer)?;
        let refresh = credentials.and_then(|c| c.identity_token.as_deref());
        let response = match refresh {
            Some(refresh) => self.post_refresh(endpoint, realm, bearer, scope, refresh).await?,
            None => {
                self.get_token(endpoint, realm, bearer, scope, credentials, offline)
                    .await?
            }
        };
        if !response.status().is_success() {
            return Err(refusal(failure(response, &self.config.timeouts).await));
        }
        let body = read_bounded(
            response,
            MAX_TOKEN,
            &self.config.timeouts,
            "the token server's answer",
        )
        .await?;
        // serde's message may quote the document, which may hold a token.
        serde_json::from_slice(&body).map_err(|e| {
            let text = format!(
                "unable to decode token response: invalid JSON at line {} column {}",
                e.line(),
                e.column()
            );
            Error::new(ErrorKind::Unavailable, text)
        })
    }

    /// The realm's address. It may lie on another host than the registry, as Docker Hub's does.
    fn realm(&self, endpoint: &Endpoint, bearer: &Bearer) -> Result<Url> {
        let invalid = |e: url::ParseError| {
            Error::new(
                ErrorKind::Unavailable,
                format!(
                    "invalid token realm {:?} from {}: {e}",
                    bearer.realm, endpoint.authority
                ),
            )
        };
        let realm = Url::parse(&bearer.realm).map_err(invalid)?;
        self.may_visit(endpoint, &realm)?;
        Ok(realm)
    }

    async fn get_token(
        &self,
        endpoint: &Endpoint,
        mut realm: Url,
        bearer: &Bearer,
        scope: Option<&str>,
        credentials: Option<&Credentials>,
        offline: bool,
    ) -> Result<reqwest::Response> {
        {
            let mut query = realm.query_pairs_mut();
            if let Some(service) = &bearer.service {
                query.append_pair("service", service);
            }
            if let Some(scope) = scope {
                query.append_pair("scope", scope);
            }
            if offline {
                query.append_pair("offline_token", "true");
            }
            query.append_pair("client_id", CLIENT_ID);
            if let Some(account) = credentials
                .map(|c| c.username.as_str())
                .filter(|name| !name.is_empty())
            {
                query.append_pair("account", account);
            }
        }
        let basic = credentials
            .and_then(Credentials::basic)
            .map(|text| header(&text))
            .transpose()?;
        self.follow(endpoint, realm, &HeaderMap::new(), basic.as_ref())
            .await
    }

    async fn post_refresh(
        &self,
        endpoint: &Endpoint,
        realm: Url,
        bearer: &Bearer,
        scope: Option<&str>,
        refresh: &str,
    ) -> Result<reqwest::Response> {
        let mut form = vec![
            ("grant_type", "refresh_token"),
            ("client_id", CLIENT_ID),
            ("refresh_token", refresh),
        ];
        form.extend(bearer.service.as_deref().map(|service| ("service", service)));
        form.extend(scope.map(|scope| ("scope", scope)));
        self.post_form(endpoint, realm, &form).await
    }
}

/// A token server's failure must not be taken for the registry's word about an image.
fn refusal(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Unauthorized | ErrorKind::Denied | ErrorKind::RateLimited | ErrorKind::Unavailable => {
            error
        }
        _ => error.with_kind(ErrorKind::Unavailable).with_code("UNKNOWN"),
    }
    .context("token server")
}
