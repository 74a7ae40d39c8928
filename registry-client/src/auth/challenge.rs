//! `WWW-Authenticate`: what a registry asks for (RFC 9110, 11.6.1; RFC 6750, 3).
//!
//! A header may hold several challenges, and values in quotes may hold commas; both occur with real registries.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// One challenge that this client can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer(Bearer),
}

/// A token server's address and what to ask it for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Bearer {
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
    pub(crate) scope: Option<String>,
    /// `invalid_token` or `insufficient_scope`, when a token was sent already.
    pub(crate) error: Option<String>,
    pub(crate) error_description: Option<String>,
}

/// All challenges of an answer, in its order. Schemes that are unknown or lack a realm are left out.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values.flat_map(parse).collect()
}

fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut current: Option<(String, Vec<(String, String)>)> = None;
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some((name, after)) = token(rest) else { break };
        let spaced = after.trim_start_matches([' ', '\t']);
        if let (Some(value), Some((_, parameters))) = (spaced.strip_prefix('='), current.as_mut()) {
            let (value, after) = parameter_value(value.trim_start_matches([' ', '\t']));
            parameters.push((name.to_ascii_lowercase(), value));
            rest = after;
        } else {
            // A word without `=` begins the next challenge.
            found.extend(current.take().and_then(build));
            current = Some((name.to_ascii_lowercase(), Vec::new()));
            rest = spaced.strip_prefix('=').unwrap_or(spaced);
        }
    }
    found.extend(current.and_then(build));
    found
}

/// A token of RFC 9110 and what follows.
fn token(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)));
    let (token, rest) = text.split_at(end.unwrap_or(text.len()));
    (!token.is_empty()).then_some((token, rest))
}

/// A quoted string or the text up to the next comma or space, and what follows.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((i, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[i + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

fn build((scheme, parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let get = |name: &str| {
        parameters
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.clone())
    };
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer(Bearer {
            realm: get("realm").filter(|realm| !realm.is_empty())?,
            service: get("service"),
            scope: get("scope").filter(|scope| !scope.is_empty()),
            error: get("error"),
            error_description: get("error_description"),
        })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer(Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
            ..Bearer::default()
        })
    }

    #[test]
    fn headers_of_the_field() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#;
        let cases = [
            (
                hub,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/busybox:pull"),
                )],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("Basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://x/t",scope="repository:a:pull,push""#,
                vec![bearer("https://x/t", None, Some("repository:a:pull,push"))],
            ),
            (
                r#"Negotiate, Basic realm="x", Bearer realm="https://x/t""#,
                vec![Challenge::Basic, bearer("https://x/t", None, None)],
            ),
            (
                r#"Negotiate YII=, bearer Realm = "https://x/t" , Service=s"#,
                vec![bearer("https://x/t", Some("s"), None)],
            ),
            (
                r#"Bearer realm="https://x/a\"b""#,
                vec![bearer("https://x/a\"b", None, None)],
            ),
            (r#"Bearer service="s""#, vec![]),
            (
                r#"Bearer realm="https://x/t"#,
                vec![bearer("https://x/t", None, None)],
            ),
            ("", vec![]),
            (r#","="",,"#, vec![]),
        ];
        for (header, expected) in cases {
            assert_eq!(parse(header), expected, "{header}");
        }
    }

    #[test]
    fn several_headers() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=x".parse().unwrap());
        headers.append(
            WWW_AUTHENTICATE,
            "Bearer realm=\"https://x/t\",error=\"insufficient_scope\""
                .parse()
                .unwrap(),
        );
        let found = challenges(&headers);
        assert_eq!(found.len(), 2);
        let Challenge::Bearer(bearer) = &found[1] else {
            panic!("{found:?}")
        };
        assert_eq!(bearer.error.as_deref(), Some("insufficient_scope"));
    }

    proptest! {
        #[test]
        fn never_panics_and_ends(text in "[A-Za-z=\",\\\\ é]{0,40}") {
            parse(&text);
        }
    }
}
