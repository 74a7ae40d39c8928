//! Platforms: parsing `os/arch/variant`, this machine's own, and which images of an index run on it.
//!
//! The names, the normalisation and the order of preference are those of containerd's `platforms`, which dockerd uses.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Platform as OciPlatform;

use crate::error::{Error, ErrorKind, Result};

/// Operating system, processor architecture and its variant, normalised (`aarch64` is `arm64`, `arm64/v8` prints as `arm64/v8`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, ….
    pub architecture: String,
    /// `v8`, …; empty when the architecture has none.
    pub variant: String,
}

const KNOWN_OS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

const KNOWN_ARCHITECTURE: &[&str] = &[
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le",
    "riscv", "riscv64", "s390", "s390x", "sparc", "sparc64", "wasm",
];

impl Platform {
    /// Normalises the three parts.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        let (architecture, variant) = normalise(architecture, variant);
        Self {
            os,
            architecture,
            variant,
        }
    }

    /// This machine's.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            "mips64" if cfg!(target_endian = "little") => "mips64le",
            other => other,
        };
        Self::new("linux", architecture, "")
    }

    /// The platforms whose images run here, best first: older variants of the architecture, and the 32-bit one of amd64.
    fn preferences(&self) -> Vec<Self> {
        let with = |architecture: &str, variant: &str| Self {
            os: self.os.clone(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        };
        let mut list = vec![self.clone()];
        let number = self.variant.strip_prefix('v').and_then(|n| n.parse::<u8>().ok());
        match (self.architecture.as_str(), number) {
            ("amd64", number) => {
                list.extend(
                    (2..number.unwrap_or(1))
                        .rev()
                        .map(|n| with("amd64", &format!("v{n}"))),
                );
                list.extend(self.variant.starts_with('v').then(|| with("amd64", "")));
                list.push(with("386", ""));
            }
            ("arm", Some(number)) => {
                list.extend((5..number.min(9)).rev().map(|n| with("arm", &format!("v{n}"))));
            }
            ("arm64", number) => {
                list.extend(
                    (8..number.unwrap_or(8).min(10))
                        .rev()
                        .map(|n| with("arm64", &format!("v{n}"))),
                );
                list.extend((5..=8).rev().map(|n| with("arm", &format!("v{n}"))));
            }
            _ => {}
        }
        list
    }

    /// How well an image for `other` fits: 0 is best; `None` when it does not run.
    pub(crate) fn rank(&self, other: &OciPlatform) -> Option<usize> {
        let variant = other.variant().as_deref().unwrap_or_default();
        let other = Self::new(
            &other.os().to_string(),
            &other.architecture().to_string(),
            variant,
        );
        self.fitness(&other)
    }

    /// How well an image for `other` runs on this platform: 0 is best; `None` when it does not run.
    pub fn fitness(&self, other: &Self) -> Option<usize> {
        self.preferences().iter().position(|candidate| candidate == other)
    }
}

/// One spelling for each architecture; the default variant is explicit for the arms and left out for amd64.
fn normalise(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = (architecture.to_ascii_lowercase(), variant.to_ascii_lowercase());
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386" | "x86" | "386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "" | "8" | "v8" | "v8.0") => ("arm64", "v8"),
        ("aarch64" | "arm64", "9" | "v9" | "v9.0") => ("arm64", "v9"),
        ("aarch64" | "arm64", variant) => ("arm64", variant),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        (architecture, variant) => (architecture, variant),
    };
    (architecture.to_owned(), variant.to_owned())
}

impl FromStr for Platform {
    type Err = Error;

    /// `os`, `arch`, `os/arch`, `arch/variant` or `os/arch/variant`.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = |text: String| Error::new(ErrorKind::InvalidArgument, text);
        let parts: Vec<&str> = text.split('/').collect();
        for part in &parts {
            if part.is_empty()
                || !part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
            {
                return Err(invalid(format!(
                    "{part:?} is an invalid component of {text:?}: platform specifier component must match \
                     \"^[A-Za-z0-9_.-]+$\": invalid argument"
                )));
            }
        }
        let host = Self::host();
        let known_os = |name: &str| KNOWN_OS.contains(&Self::new(name, "", "").os.as_str());
        let known_architecture = |name: &str| KNOWN_ARCHITECTURE.contains(&normalise(name, "").0.as_str());
        match *parts.as_slice() {
            [os] if known_os(os) => Ok(Self::new(os, &host.architecture, &host.variant)),
            [architecture] if known_architecture(architecture) => Ok(Self::new("linux", architecture, "")),
            [_] => Err(invalid(format!(
                "{text:?}: unknown operating system or architecture: invalid argument"
            ))),
            [os, architecture] if known_os(os) => Ok(Self::new(os, architecture, "")),
            [architecture, variant] if known_architecture(architecture) => {
                Ok(Self::new("linux", architecture, variant))
            }
            [_, _] => Err(invalid(format!(
                "{text:?}: unknown operating system or architecture: invalid argument"
            ))),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(invalid(format!(
                "{text:?}: cannot parse platform specifier: invalid argument"
            ))),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.variant)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("linux/aarch64", "linux/arm64/v8"),
            ("arm64", "linux/arm64/v8"),
            ("arm/v6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("Linux/ARM/5", "linux/arm/v5"),
            ("windows/amd64", "windows/amd64"),
            ("linux/i386", "linux/386"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), expected, "{text}");
        }
        assert_eq!("linux".parse::<Platform>().unwrap(), Platform::host());
        for text in [
            "",
            "/",
            "linux/",
            "a b",
            "foo",
            "foo/bar",
            "linux/amd64/v1/x",
            "linux/amd\n64",
        ] {
            let error = text.parse::<Platform>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn ranks() {
        let oci = |os: &str, architecture: &str, variant: &str| -> OciPlatform {
            serde_json::from_value(
                serde_json::json!({"os": os, "architecture": architecture, "variant": variant}),
            )
            .unwrap()
        };
        let amd64 = Platform::new("linux", "amd64", "");
        assert_eq!(amd64.rank(&oci("linux", "amd64", "")), Some(0));
        assert!(amd64.rank(&oci("linux", "386", "")) > Some(0));
        assert_eq!(amd64.rank(&oci("linux", "amd64", "v3")), None);
        assert_eq!(amd64.rank(&oci("windows", "amd64", "")), None);
        let v3 = Platform::new("linux", "amd64", "v3");
        assert!(v3.rank(&oci("linux", "amd64", "v2")) < v3.rank(&oci("linux", "amd64", "")));
        let arm64 = Platform::new("linux", "arm64", "");
        assert_eq!(arm64.rank(&oci("linux", "arm64", "v8")), Some(0));
        assert!(arm64.rank(&oci("linux", "arm", "v7")) < arm64.rank(&oci("linux", "arm", "v6")));
        let arm6 = Platform::new("linux", "arm", "v6");
        assert_eq!(arm6.rank(&oci("linux", "arm", "v7")), None);
        assert_eq!(arm6.rank(&oci("linux", "arm", "v5")), Some(1));
    }
}
