//! Credentials: from `X-Registry-Auth`, from the body of `POST /auth`, and from a file of `~/.docker/config.json`'s shape.
//!
//! Secrets are never printed: `Debug` shows the user name only.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};

/// The largest credential file read.
const MAX_FILE: u64 = 4 << 20;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Credentials for a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User name, may be empty when `identity_token` or `registry_token` is set.
    pub username: String,
    /// Password.
    pub password: String,
    /// OAuth2 refresh token (`identitytoken`).
    pub identity_token: Option<String>,
    /// Bearer token to use as it is (`registrytoken`).
    pub registry_token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Docker's `AuthConfig`: the JSON in `X-Registry-Auth` and in the body of `POST /auth`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthConfig {
    /// The credentials; empty ones for `{}`, which clients send when they have none.
    pub credentials: Credentials,
    /// `serveraddress`; may be empty.
    pub server_address: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireAuthConfig {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    serveraddress: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl AuthConfig {
    /// Reads the JSON.
    ///
    /// # Errors
    /// `InvalidArgument` when it is malformed.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let invalid = |why: String| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("invalid X-Registry-Auth header: {why}"),
            )
        };
        // The causes name positions in a secret document, never its contents.
        let wire: WireAuthConfig = serde_json::from_slice(json)
            .map_err(|e| invalid(format!("invalid JSON at line {} column {}", e.line(), e.column())))?;
        let present = |field: Option<String>| field.filter(|text| !text.is_empty());
        let mut credentials = Credentials {
            username: wire.username.unwrap_or_default(),
            password: wire.password.unwrap_or_default(),
            identity_token: present(wire.identitytoken),
            registry_token: present(wire.registrytoken),
        };
        if let Some(auth) = present(wire.auth)
            && credentials.username.is_empty()
        {
            let pair = BASE64
                .decode(auth.trim())
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok());
            let (username, password) = pair
                .as_deref()
                .and_then(|pair| pair.split_once(':'))
                .ok_or_else(|| invalid("invalid auth configuration file".to_owned()))?;
            username.clone_into(&mut credentials.username);
            password
                .trim_end_matches('\0')
                .clone_into(&mut credentials.password);
        }
        Ok(Self {
            credentials,
            server_address: wire.serveraddress.unwrap_or_default(),
        })
    }

    /// Reads an `X-Registry-Auth` header: base64url of the JSON, with or without padding.
    ///
    /// # Errors
    /// `InvalidArgument` when it is malformed.
    pub fn from_header(header: &str) -> Result<Self> {
        let header = header.trim();
        if header.is_empty() {
            return Ok(Self::default());
        }
        let json = BASE64_URL
            .decode(header)
            .or_else(|_| BASE64.decode(header))
            .map_err(|_| {
                Error::new(
                    ErrorKind::InvalidArgument,
                    "invalid X-Registry-Auth header: must be a valid base64url-encoded string",
                )
            })?;
        Self::from_json(&json)
    }
}

impl Credentials {
    /// Reads an `X-Registry-Auth` header; `None` when it carries no credentials.
    ///
    /// # Errors
    /// `InvalidArgument` when it is malformed. (dockerd ignores that for a pull and goes on without credentials.)
    pub fn from_header(header: &str) -> Result<Option<Self>> {
        let credentials = AuthConfig::from_header(header)?.credentials;
        Ok((!credentials.is_empty()).then_some(credentials))
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The value of a Basic `Authorization` header; `None` without a user name.
    pub(crate) fn basic(&self) -> Option<String> {
        let pair = || format!("{}:{}", self.username, self.password);
        (!self.username.is_empty())
            .then(|| format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(pair())))
    }

    /// A value that differs for different credentials and tells nothing about them; the key of caches.
    pub(crate) fn fingerprint(credentials: Option<&Self>) -> [u8; 32] {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let empty = Self::default();
        let it = credentials.unwrap_or(&empty);
        let tokens =
            [it.identity_token.as_deref(), it.registry_token.as_deref()].map(Option::unwrap_or_default);
        for part in [it.username.as_str(), &it.password, tokens[0], tokens[1]] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(context.finish().as_ref());
        fingerprint
    }
}

/// Looks `server` up in the file at `path`, asking a credential helper program when the file names one. `server` is `host[:port]`, or
/// `https://index.docker.io/v1/` for Docker Hub. `Ok(None)` when there is no file or no entry.
///
/// # Errors
/// `Configuration` when the file or the helper's answer cannot be read, or the helper takes longer than `limit`.
pub(crate) async fn look_up(path: &Path, server: &str, limit: Duration) -> Result<Option<Credentials>> {
    let (path, server) = (path.to_owned(), server.to_owned());
    let failed = {
        let (path, server) = (path.clone(), server.clone());
        move |why: String| {
            let text = format!("credentials for {server} from {}: {why}", path.display());
            Error::new(ErrorKind::Configuration, text)
        }
    };
    // The helper is a program of the user's and may wait for a key ring to be unlocked. A thread of its own, because the runtime
    // waits for its blocking tasks when the daemon ends, and one that never answers must not hold that up.
    let (answer, answered) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new()
        .name("credentials".to_owned())
        .spawn(move || {
            // Nobody waits any more when the limit has passed.
            let _ = answer.send(read_file(path, &server));
        });
    spawned.map_err(|e| failed(e.to_string()))?;
    match tokio::time::timeout(limit, answered).await {
        Ok(Ok(result)) => result.map_err(failed),
        Ok(Err(_)) => Err(failed("the look-up panicked".to_owned())),
        Err(_) => Err(failed(format!(
            "the credential helper did not answer within {limit:?}"
        ))),
    }
}

fn read_file(path: PathBuf, server: &str) -> std::result::Result<Option<Credentials>, String> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    if !file.metadata().map_err(|e| e.to_string())?.is_file() {
        return Err("not a regular file".to_owned());
    }
    match docker_credential::get_credential_from_reader(file.take(MAX_FILE), server) {
        Ok(found) => Ok(from_docker(found)),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        // The helpers' agreed sentence for "no entry".
        Err(CredentialRetrievalError::HelperFailure { stdout, .. })
            if stdout.trim() == "credentials not found in native keychain" =>
        {
            Ok(None)
        }
        // Its standard output may hold the secret; its standard error is meant for people.
        Err(CredentialRetrievalError::HelperFailure { helper, stderr, .. }) => {
            Err(format!("{helper} failed: {}", stderr.trim()))
        }
        Err(other) => Err(other.to_string()),
    }
}

/// `None` for an entry that is present and empty, as `docker logout` leaves it.
fn from_docker(found: DockerCredential) -> Option<Credentials> {
    let credentials = match found {
        DockerCredential::IdentityToken(token) => Credentials {
            identity_token: Some(token).filter(|t| !t.is_empty()),
            ..Credentials::default()
        },
        DockerCredential::UsernamePassword(username, password) => Credentials {
            username,
            password,
            ..Credentials::default()
        },
    };
    (!credentials.is_empty()).then_some(credentials)
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;

    #[test]
    fn headers() {
        let json = json!({"username": "joe", "password": "s>e?c~ret", "serveraddress": "x.io"}).to_string();
        for header in [
            BASE64_URL_SAFE.encode(&json),
            BASE64_URL_SAFE_NO_PAD.encode(&json),
            BASE64_STANDARD.encode(&json),
        ] {
            let config = AuthConfig::from_header(&header).unwrap();
            assert_eq!(
                (
                    config.credentials.username.as_str(),
                    config.credentials.password.as_str()
                ),
                ("joe", "s>e?c~ret")
            );
            assert_eq!(config.server_address, "x.io");
        }
        let header = |value: serde_json::Value| BASE64_URL_SAFE.encode(value.to_string());
        let read = |value| Credentials::from_header(&header(value)).unwrap();
        assert_eq!(read(json!({})), None);
        assert_eq!(Credentials::from_header("").unwrap(), None);
        assert_eq!(read(json!({"username": null, "password": null})), None);
        assert_eq!(
            read(json!({"identitytoken": "t"}))
                .unwrap()
                .identity_token
                .as_deref(),
            Some("t")
        );
        assert_eq!(
            read(json!({"registrytoken": "t"}))
                .unwrap()
                .registry_token
                .as_deref(),
            Some("t")
        );
        let auth = read(json!({"auth": BASE64_STANDARD.encode("joe:pass:word")})).unwrap();
        assert_eq!(
            (auth.username.as_str(), auth.password.as_str()),
            ("joe", "pass:word")
        );
    }

    #[test]
    fn malformed_headers() {
        let bad_json = BASE64_URL_SAFE.encode(r#"{"password":"hunter2""#);
        let bad_auth = BASE64_URL_SAFE.encode(r#"{"auth":"hunter2"}"#);
        for header in ["%%%", &bad_json, &bad_auth] {
            let error = Credentials::from_header(header).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(!format!("{error:?} {error}").contains("hunter2"));
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let credentials = Credentials {
            username: "joe".into(),
            password: "hunter2".into(),
            ..Credentials::default()
        };
        let printed = format!("{credentials:?}");
        assert!(
            printed.contains("joe") && !printed.contains("hunter2"),
            "{printed}"
        );
    }

    #[test]
    fn fingerprints_keep_fields_apart() {
        let of = |username: &str, password: &str| {
            Credentials::fingerprint(Some(&Credentials {
                username: username.into(),
                password: password.into(),
                ..Credentials::default()
            }))
        };
        assert_ne!(of("ab", "c"), of("a", "bc"));
        assert_eq!(Credentials::fingerprint(None), of("", ""));
    }

    #[tokio::test]
    async fn credential_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let limit = Duration::from_secs(10);
        assert_eq!(look_up(&path, "x.io", limit).await.unwrap(), None);
        let file = json!({"auths": {
            "x.io": {"auth": BASE64_STANDARD.encode("joe:secret")},
            "https://index.docker.io/v1/": {"auth": BASE64_STANDARD.encode("hub:word")},
            "token.io": {"identitytoken": "t"},
            "empty.io": {},
        }});
        std::fs::write(&path, file.to_string()).unwrap();
        let found = look_up(&path, "x.io", limit).await.unwrap().unwrap();
        assert_eq!(
            (found.username.as_str(), found.password.as_str()),
            ("joe", "secret")
        );
        assert_eq!(
            look_up(&path, "https://index.docker.io/v1/", limit)
                .await
                .unwrap()
                .unwrap()
                .username,
            "hub"
        );
        assert_eq!(
            look_up(&path, "token.io", limit)
                .await
                .unwrap()
                .unwrap()
                .identity_token
                .as_deref(),
            Some("t")
        );
        assert_eq!(look_up(&path, "empty.io", limit).await.unwrap(), None);
        assert_eq!(look_up(&path, "other.io", limit).await.unwrap(), None);
        std::fs::write(&path, "not json").unwrap();
        assert_eq!(
            look_up(&path, "x.io", limit).await.unwrap_err().kind(),
            ErrorKind::Configuration
        );
        assert_eq!(
            look_up(directory.path(), "x.io", limit).await.unwrap_err().kind(),
            ErrorKind::Configuration
        );
    }

    #[tokio::test]
    async fn a_missing_helper_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, json!({"credsStore": "skiff-no-such-helper"}).to_string()).unwrap();
        let error = look_up(&path, "x.io", Duration::from_secs(10)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
    }

    proptest::proptest! {
        #[test]
        fn headers_never_panic(text in "[A-Za-z0-9+/=_{}\":-]{0,40}") {
            let _ = Credentials::from_header(&text);
            let _ = AuthConfig::from_json(text.as_bytes());
        }
    }
}
