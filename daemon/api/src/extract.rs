//! What handlers take out of a request: query parameters with Go's rules, JSON bodies with Docker's error texts,
//! the API version, and the connection itself.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http_body_util::{BodyExt, Limited};
use hyper::upgrade::OnUpgrade;
use serde::de::DeserializeOwned;
use skiff_core::filters::Filters;
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::hijack::Exchange;

/// Largest JSON body; real ones have a few kilobytes.
const MAX_JSON: usize = 8 << 20;

/// The minor number of the request's API version (`1.45` is 45); the newest when the path has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ApiVersion(pub(crate) u32);

impl<S: Sync> FromRequestParts<S> for ApiVersion {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or(Self(u32::MAX)))
    }
}

/// Query parameters; the first value of a name counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    pub(crate) fn parse(query: &str) -> Self {
        // Text that is not a list of pairs has no parameters.
        Self(serde_urlencoded::from_str(query).unwrap_or_default())
    }

    /// The value of `name`, empty when absent.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    /// All values of `name`, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        let of_name = self.0.iter().filter(|(key, _)| key == name);
        of_name.map(|(_, value)| value.clone()).collect()
    }

    /// The value of `name`, `None` when absent or empty.
    pub(crate) fn optional(&self, name: &str) -> Option<String> {
        Some(self.text(name))
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    }

    /// Docker's idea of a boolean: anything but empty, `0`, `no`, `false` and `none` is true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        let value = self.text(name).trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// An integer, `None` when absent or empty.
    ///
    /// # Errors
    /// 400 in the words of Go's strconv.
    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.optional(name) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| not_a_number(&text))
    }

    /// An integer that must be there and fit into 16 bits (terminal sizes).
    ///
    /// # Errors
    /// As [`Params::integer`].
    pub(crate) fn cells(&self, name: &str) -> Result<u16, ApiError> {
        self.text(name).parse().map_err(|_| not_a_number(self.text(name)))
    }

    /// The `filters` parameter.
    ///
    /// # Errors
    /// 400 "invalid filter".
    pub(crate) fn filters(&self) -> Result<Filters, ApiError> {
        Ok(Filters::parse(self.text("filters"))?)
    }
}

fn not_a_number(text: &str) -> ApiError {
    ApiError::invalid(format!("strconv.Atoi: parsing {text:?}: invalid syntax"))
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

/// Cancelled when the client has left.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gone(pub(crate) CancellationToken);

impl<S: Sync> FromRequestParts<S> for Gone {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let exchange: Option<&Arc<Exchange>> = parts.extensions.get();
        Ok(Self(
            exchange
                .map(|exchange| exchange.gone().clone())
                .unwrap_or_default(),
        ))
    }
}

/// The connection, to be taken over by attach and exec.
#[derive(Debug)]
pub(crate) struct Hijack {
    /// Resolves to the connection once the 101 answer is written.
    pub(crate) connection: OnUpgrade,
    /// The client asked for it with an `Upgrade` header (and so learns of the framing by the content type).
    pub(crate) asked: bool,
}

impl<S: Sync> FromRequestParts<S> for Hijack {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let bare = parts
            .extensions
            .get::<Arc<Exchange>>()
            .is_some_and(|exchange| exchange.is_bare());
        let connection = parts
            .extensions
            .remove()
            .ok_or_else(|| ApiError::invalid("the connection cannot be taken over: use HTTP/1.1"))?;
        Ok(Self {
            connection,
            asked: !bare && parts.headers.contains_key(UPGRADE),
        })
    }
}

/// A JSON body that must be there.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        check_content_type(&parts)?;
        parse_json(&whole(body).await?).map(Self)
    }
}

/// A JSON body that may be missing, empty or `null`.
#[derive(Debug)]
pub(crate) struct OptionalJsonBody<T>(pub(crate) Option<T>);

impl<T: DeserializeOwned> OptionalJsonBody<T> {
    /// Reads it. A body without content type is taken for none when there is nothing in it.
    pub(crate) async fn read(request: Request) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = whole(body).await?;
        if bytes.trim_ascii().is_empty() {
            return Ok(Self(None));
        }
        check_content_type(&parts)?;
        parse_json(&bytes).map(Self)
    }
}

async fn whole(body: axum::body::Body) -> Result<bytes::Bytes, ApiError> {
    let body = Limited::new(body, MAX_JSON)
        .collect()
        .await
        .map_err(|error| ApiError::invalid(format!("cannot read the request body: {error}")))?;
    Ok(body.to_bytes())
}

/// Whether the request has a body, as far as its head tells.
pub(crate) fn body_length(headers: &http::HeaderMap) -> Option<u64> {
    if headers.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    Some(
        headers
            .get(CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok()?.parse().ok())
            .unwrap_or(0),
    )
}

fn check_content_type(parts: &Parts) -> Result<(), ApiError> {
    let Some(value) = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes) else {
        // Without a body nothing needs to be said about it.
        return if body_length(&parts.headers) == Some(0) {
            Ok(())
        } else {
            Err(ApiError::invalid(
                "malformed Content-Type header (): mime: no media type",
            ))
        };
    };
    let text = String::from_utf8_lossy(value);
    let media_type = text.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    if media_type.is_empty() {
        return Err(ApiError::invalid(format!(
            "malformed Content-Type header ({text}): mime: no media type"
        )));
    }
    Err(ApiError::invalid(format!(
        "unsupported Content-Type header ({text}): must be 'application/json'"
    )))
}

/// Parses one JSON value with nothing behind it.
///
/// # Errors
/// 400 in the words of Docker, which are mostly those of Go's encoding/json.
pub(crate) fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.trim_ascii().is_empty() {
        return Err(ApiError::invalid(
            "invalid JSON: got EOF while reading request body",
        ));
    }
    let mut values = serde_json::Deserializer::from_slice(body);
    let value = T::deserialize(&mut values)
        .map_err(|error| ApiError::invalid(format!("invalid JSON: {}", go_words(&error, body))))?;
    values
        .end()
        .map_err(|_| ApiError::invalid("unexpected content after JSON"))?;
    Ok(value)
}

/// serde_json's complaint as Go's decoder would say it.
fn go_words(error: &serde_json::Error, body: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected EOF".to_owned();
    }
    let text = error.to_string();
    if !error.is_syntax() {
        return format!("json: {text}");
    }
    let context = [
        (
            "key must be a string",
            "looking for beginning of object key string",
        ),
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("trailing comma", "looking for beginning of value"),
        ("expected value", "looking for beginning of value"),
        ("expected ident", "looking for beginning of value"),
        ("invalid escape", "in string escape code"),
        ("control character", "in string literal"),
        ("invalid number", "in numeric literal"),
    ]
    .iter()
    .find(|(serde, _)| text.starts_with(serde))
    .map(|(_, go)| go);
    match (context, byte_at(body, error.line(), error.column())) {
        (Some(context), Some(byte)) => format!("invalid character {:?} {context}", char::from(byte)),
        _ => text,
    }
}

fn byte_at(body: &[u8], line: usize, column: usize) -> Option<u8> {
    let line = body.split(|&b| b == b'\n').nth(line.checked_sub(1)?)?;
    line.get(column.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use serde_json::Value;
    use skiff_core::ErrorKind;

    async fn body(content_type: Option<&str>, text: &'static str) -> Result<Value, (ErrorKind, String)> {
        let mut request = http::Request::post("/").header(CONTENT_LENGTH, text.len());
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let request = request.body(Body::from(text)).unwrap();
        JsonBody::from_request(request, &())
            .await
            .map(|JsonBody(value)| value)
            .map_err(|error| {
                let error = error.into_inner();
                (error.kind(), error.to_string())
            })
    }

    #[tokio::test]
    async fn bodies_are_refused_in_docker_s_words() {
        for (content_type, text, expected) in [
            (
                "application/json",
                "",
                "invalid JSON: got EOF while reading request body",
            ),
            (
                "application/json",
                " \n",
                "invalid JSON: got EOF while reading request body",
            ),
            (
                "application/json",
                "{bad",
                "invalid JSON: invalid character 'b' looking for beginning of object key string",
            ),
            (
                "application/json",
                "bad",
                "invalid JSON: invalid character 'b' looking for beginning of value",
            ),
            (
                "application/json",
                "{\"a\" 1}",
                "invalid JSON: invalid character '1' after object key",
            ),
            (
                "application/json",
                "{\"a\":1 x}",
                "invalid JSON: invalid character 'x' after object key:value pair",
            ),
            (
                "application/json",
                "[1 2]",
                "invalid JSON: invalid character '2' after array element",
            ),
            ("application/json", "{\"a\":", "invalid JSON: unexpected EOF"),
            ("application/json", "{} {}", "unexpected content after JSON"),
            (
                "text/plain",
                "x",
                "unsupported Content-Type header (text/plain): must be 'application/json'",
            ),
            ("", "{}", "malformed Content-Type header (): mime: no media type"),
        ] {
            let (kind, message) = body(Some(content_type), text).await.unwrap_err();
            assert_eq!(
                (kind, message.as_str()),
                (ErrorKind::InvalidParameter, expected),
                "{text:?}"
            );
        }
        let (_, message) = body(None, "{}").await.unwrap_err();
        assert_eq!(message, "malformed Content-Type header (): mime: no media type");
        let (_, message) = body(None, "").await.unwrap_err();
        assert_eq!(message, "invalid JSON: got EOF while reading request body");
    }

    #[tokio::test]
    async fn bodies_are_taken_with_parameters_and_white_space() {
        assert_eq!(
            body(Some("Application/JSON; charset=utf-8"), " {\"a\":1}\n")
                .await
                .unwrap()["a"],
            1
        );
    }

    #[test]
    fn type_errors_name_what_was_expected() {
        let error = parse_json::<Vec<bool>>(b"[1]").unwrap_err().into_inner();
        assert!(
            error.to_string().starts_with("invalid JSON: json: invalid type"),
            "{error}"
        );
    }

    #[test]
    fn parameters_follow_go_s_rules() {
        let params = Params::parse("a=1&b=False&c=&d=no&e=x%20y+z&n=-3&bad=1x&filters=%7B%7D");
        assert!(params.flag("a") && params.flag("e"));
        assert!(!params.flag("b") && !params.flag("c") && !params.flag("d") && !params.flag("absent"));
        assert_eq!(params.text("e"), "x y z");
        assert_eq!(Params::parse("names=a&x=1&names=b").all("names"), ["a", "b"]);
        assert_eq!(params.integer("n").unwrap(), Some(-3));
        assert_eq!(params.integer("absent").unwrap(), None);
        let error = params.integer("bad").unwrap_err().into_inner();
        assert_eq!(error.to_string(), "strconv.Atoi: parsing \"1x\": invalid syntax");
        assert!(params.cells("n").is_err() && params.cells("absent").is_err());
        assert_eq!(params.filters().unwrap(), Filters::default());
    }
}
