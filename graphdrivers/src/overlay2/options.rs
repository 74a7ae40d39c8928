//! `--storage-opt overlay2.*`.

use crate::error::{Error, Result};

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) mount_options: Vec<String>,
}

/// Options that would change what this driver relies on.
const RESERVED: [&str; 10] = [
    "index",
    "lowerdir",
    "lowerdir+",
    "datadir+",
    "upperdir",
    "workdir",
    "redirect_dir",
    "metacopy",
    "nfs_export",
    "userxattr",
];

impl Options {
    /// Checks the options; keys are as on the command line, in any case.
    pub(super) fn parse(options: &[(&str, &str)]) -> Result<Self> {
        let mut parsed = Self::default();
        for (key, value) in options {
            match key.to_ascii_lowercase().as_str() {
                "overlay2.override_kernel_check" => {
                    // Kept by Docker for old configuration files; the kernel is tried out, not asked for its version.
                    parse_bool(value)
                        .ok_or_else(|| Error::invalid(format!("overlay2: {key}: invalid value {value:?}")))?;
                    tracing::warn!("DEPRECATED: the overlay2.override_kernel_check option is ignored");
                }
                "overlay2.mountopt" => parsed.mount_options = mount_options(value)?,
                "overlay2.size" | "size" => {
                    return Err(Error::invalid(
                        "overlay2: storage-opt size needs XFS project quotas, which this engine does not set",
                    ));
                }
                _ => return Err(Error::invalid(format!("overlay2: unknown option {key}"))),
            }
        }
        Ok(parsed)
    }
}

fn mount_options(value: &str) -> Result<Vec<String>> {
    let mut options = Vec::new();
    for option in value.split(',').filter(|option| !option.is_empty()) {
        let name = option.split('=').next().unwrap_or(option);
        if RESERVED.contains(&name) {
            return Err(Error::invalid(format!(
                "overlay2.mountopt: {name} is the driver's own"
            )));
        }
        options.push(option.to_owned());
    }
    Ok(options)
}

/// Go's `strconv.ParseBool`.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_options_pass_and_others_are_named() {
        let parsed = Options::parse(&[
            ("overlay2.override_kernel_check", "true"),
            ("overlay2.mountopt", "volatile,xino=off"),
        ]);
        assert_eq!(parsed.unwrap().mount_options, ["volatile", "xino=off"]);
        for (key, value, text) in [
            (
                "overlay2.nonsense",
                "1",
                "overlay2: unknown option overlay2.nonsense",
            ),
            ("dm.basesize", "1", "overlay2: unknown option dm.basesize"),
            ("overlay2.size", "10G", "quotas"),
            ("overlay2.override_kernel_check", "maybe", "invalid value"),
            ("overlay2.mountopt", "metacopy=on", "metacopy is the driver's own"),
        ] {
            let error = Options::parse(&[(key, value)]).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
