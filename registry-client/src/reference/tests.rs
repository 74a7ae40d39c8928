//! The table is made of the cases distribution/reference documents; the properties hold for everything the grammar allows.

use proptest::prelude::*;

use super::*;

const HEX: &str = "7cc4b5aefd1d0cadf8d97d4350462ba51c694ebca145b08d7d41b41acc8db5aa";

/// Input, domain, path, tag, digest?, familiar.
#[test]
fn normalisation() {
    let at = format!("@sha256:{HEX}");
    let table = [
        (
            "busybox",
            "docker.io",
            "library/busybox",
            Some("latest"),
            "",
            "busybox:latest",
        ),
        (
            "busybox:1.36",
            "docker.io",
            "library/busybox",
            Some("1.36"),
            "",
            "busybox:1.36",
        ),
        (
            "library/busybox",
            "docker.io",
            "library/busybox",
            Some("latest"),
            "",
            "busybox:latest",
        ),
        (
            "docker.io/busybox",
            "docker.io",
            "library/busybox",
            Some("latest"),
            "",
            "busybox:latest",
        ),
        (
            "index.docker.io/busybox",
            "docker.io",
            "library/busybox",
            Some("latest"),
            "",
            "busybox:latest",
        ),
        (
            "docker.io/library/busybox",
            "docker.io",
            "library/busybox",
            Some("latest"),
            "",
            "busybox:latest",
        ),
        (
            "user/app:v1",
            "docker.io",
            "user/app",
            Some("v1"),
            "",
            "user/app:v1",
        ),
        (
            "library/a/b",
            "docker.io",
            "library/a/b",
            Some("latest"),
            "",
            "library/a/b:latest",
        ),
        (
            "localhost/app",
            "localhost",
            "app",
            Some("latest"),
            "",
            "localhost/app:latest",
        ),
        (
            "localhost:5000/a/b:1",
            "localhost:5000",
            "a/b",
            Some("1"),
            "",
            "localhost:5000/a/b:1",
        ),
        (
            "Registry/app",
            "Registry",
            "app",
            Some("latest"),
            "",
            "Registry/app:latest",
        ),
        (
            "[::1]:5000/app",
            "[::1]:5000",
            "app",
            Some("latest"),
            "",
            "[::1]:5000/app:latest",
        ),
        (
            "[2001:db8::1]/app",
            "[2001:db8::1]",
            "app",
            Some("latest"),
            "",
            "[2001:db8::1]/app:latest",
        ),
        (
            "10.0.0.1:5000/app",
            "10.0.0.1:5000",
            "app",
            Some("latest"),
            "",
            "10.0.0.1:5000/app:latest",
        ),
        (
            "test.com:5000",
            "docker.io",
            "library/test.com",
            Some("5000"),
            "",
            "test.com:5000",
        ),
        (
            "a__b/c---d.e_f",
            "docker.io",
            "a__b/c---d.e_f",
            Some("latest"),
            "",
            "a__b/c---d.e_f:latest",
        ),
        (
            "busybox@",
            "docker.io",
            "library/busybox",
            None,
            "digest",
            "busybox@",
        ),
        ("x.io/a:1@", "x.io", "a", Some("1"), "digest", "x.io/a:1@"),
        (
            "docker.io/foo.bar/baz",
            "docker.io",
            "foo.bar/baz",
            Some("latest"),
            "",
            "docker.io/foo.bar/baz:latest",
        ),
    ];
    for (input, domain, path, tag, digest, familiar) in table {
        let expand = |text: &str| text.replace('@', &at);
        let reference = Reference::parse(&expand(input)).unwrap();
        assert_eq!(reference.domain(), domain, "{input}");
        assert_eq!(reference.path(), path, "{input}");
        assert_eq!(reference.tag(), tag, "{input}");
        assert_eq!(reference.digest().is_some(), !digest.is_empty(), "{input}");
        assert_eq!(reference.familiar(), expand(familiar), "{input}");
        assert_eq!(
            Reference::parse(&reference.familiar()).unwrap(),
            reference,
            "{input}"
        );
        assert_eq!(
            Reference::parse(&reference.canonical()).unwrap(),
            reference,
            "{input}"
        );
    }
}

#[test]
fn errors_are_docker_s() {
    let long = format!("x.io/{}", "a".repeat(256));
    let long_tag = format!("a:{}", "t".repeat(129));
    let identifier = format!("invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings");
    let table: &[(&str, &str)] = &[
        ("", "invalid reference format"),
        (":tag", "invalid reference format"),
        (
            "BAD",
            "invalid reference format: repository name (library/BAD) must be lowercase",
        ),
        (
            "x.io/Bad:1",
            "invalid reference format: repository name (Bad) must be lowercase",
        ),
        ("-a", "invalid reference format"),
        ("a/", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("/a", "invalid reference format"),
        ("a___b", "invalid reference format"),
        ("a..b", "invalid reference format"),
        ("a b", "invalid reference format"),
        ("a:", "invalid reference format"),
        ("a:.x", "invalid reference format"),
        ("a@b", "invalid reference format"),
        ("a@sha256:abc", "invalid reference format"),
        ("a\n", "invalid reference format"),
        ("a\0", "invalid reference format"),
        ("..", "invalid reference format"),
        ("../etc/passwd", "invalid reference format"),
        ("localhost:/a", "invalid reference format"),
        ("localhost:x/a", "invalid reference format"),
        ("foo_bar.com/a", "invalid reference format"),
        ("[::1/a", "invalid reference format"),
        ("[]/a", "invalid reference format"),
        ("https://x.io/a", "invalid reference format"),
        (
            "a@sha256:00000000000000000000000000000000",
            "invalid checksum digest length",
        ),
        (
            "a@tarsum:00000000000000000000000000000000",
            "unsupported digest algorithm",
        ),
        (&long, "repository name must not be more than 255 characters"),
        (&long_tag, "invalid reference format"),
        (HEX, &identifier),
    ];
    for (input, text) in table {
        let error = Reference::parse(input).expect_err(input);
        assert_eq!(error.to_string(), *text, "{input:?}");
        assert_eq!(error.kind(), ErrorKind::InvalidReference);
    }
    let upper = format!("a@sha256:{}", HEX.to_uppercase());
    assert_eq!(
        Reference::parse(&upper).unwrap_err().to_string(),
        "invalid checksum digest format"
    );
}

#[test]
fn other_tag_and_digest() {
    let reference = Reference::parse("busybox:1").unwrap();
    assert_eq!(reference.with_tag("2").unwrap().familiar(), "busybox:2");
    let digest = format!("sha256:{HEX}");
    let by_digest = reference.with_digest(&digest).unwrap();
    assert_eq!(by_digest.familiar(), format!("busybox@{digest}"));
    assert_eq!(by_digest.identifier(), digest);
    assert_eq!(by_digest.with_tag("2").unwrap(), reference.with_tag("2").unwrap());
    assert!(reference.with_tag("").is_err());
    assert!(reference.with_tag("a/b").is_err());
    assert!(reference.with_digest("sha256:..").is_err());
}

proptest! {
    #[test]
    fn never_panics(text in any::<String>()) {
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert_eq!(&Reference::parse(&reference.canonical()).unwrap(), &reference);
        }
    }

    /// Near misses: the grammar's own characters in any order.
    #[test]
    fn near_misses_round_trip(text in "[a-c0A._/:@\\[\\]-]{0,24}(@sha256:[0-9a-f]{64})?") {
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
            prop_assert_eq!(&Reference::parse(&reference.canonical()).unwrap(), &reference);
            prop_assert!(!reference.path().contains(".."));
        }
    }

    #[test]
    fn valid_references_round_trip(
        domain in "(([a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?\\.){1,2}[a-z]{2,3}|localhost|docker\\.io)(:[0-9]{1,5})?",
        path in "[a-z0-9]{1,6}(([._]|__|-{1,3})[a-z0-9]{1,4})?(/[a-z0-9]{1,6}){0,3}",
        tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
        hex in proptest::option::of("[0-9a-f]{64}"),
    ) {
        let mut text = format!("{domain}/{path}");
        if let Some(tag) = &tag { text.push_str(&format!(":{tag}")); }
        if let Some(hex) = &hex { text.push_str(&format!("@sha256:{hex}")); }
        let reference = Reference::parse(&text).unwrap();
        prop_assert_eq!(reference.domain(), domain.as_str());
        prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
        prop_assert_eq!(&Reference::parse(&reference.canonical()).unwrap(), &reference);
    }
}
