//! `--storage-opt fuse-overlayfs.*`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// Another program than ours.
    pub(super) program: Option<PathBuf>,
    pub(super) mount_options: Vec<String>,
}

/// Options of a mount that are not the user's to choose, because the driver relies on them.
const RESERVED: [&str; 13] = [
    "lowerdir",
    "upperdir",
    "workdir",
    "ro",
    "uidmapping",
    "gidmapping",
    "squash_to_root",
    "squash_to_uid",
    "squash_to_gid",
    "xattr_permissions",
    "redirect_dir",
    "metacopy",
    "plugins",
];

impl Options {
    /// Checks the options; keys are as on the command line, in any case.
    pub(super) fn parse(options: &[(&str, &str)]) -> Result<Self> {
        let mut parsed = Self::default();
        for (key, value) in options {
            match key.to_ascii_lowercase().as_str() {
                "fuse-overlayfs.mount_program" => parsed.program = Some(program(value)?),
                "fuse-overlayfs.mountopt" => parsed.mount_options = mount_options(value)?,
                "fuse-overlayfs.size" | "size" => {
                    return Err(Error::invalid(
                        "fuse-overlayfs: storage-opt size needs quotas, which a file system in user space does not have",
                    ));
                }
                _ => return Err(Error::invalid(format!("fuse-overlayfs: unknown option {key}"))),
            }
        }
        // Another program knows its own options; the trial mount asks it.
        if parsed.program.is_none() {
            skiff_fuse_overlay::program::check_options(&parsed.mount_options.join(","))
                .map_err(|text| Error::invalid(format!("fuse-overlayfs.mountopt: {text}")))?;
        }
        Ok(parsed)
    }
}

fn program(value: &str) -> Result<PathBuf> {
    let refused = |why: &str| Error::invalid(format!("fuse-overlayfs.mount_program={value}: {why}"));
    let path = Path::new(value);
    if !path.is_absolute() {
        return Err(refused("expected an absolute path"));
    }
    let metadata = path.metadata().map_err(|error| refused(&error.to_string()))?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(refused("not an executable file"));
    }
    Ok(path.to_owned())
}

fn mount_options(value: &str) -> Result<Vec<String>> {
    let mut options = Vec::new();
    for option in value.split(',').filter(|option| !option.is_empty()) {
        let name = option.split('=').next().unwrap_or(option);
        if RESERVED.contains(&name) {
            return Err(Error::invalid(format!(
                "fuse-overlayfs.mountopt: {name} is the driver's own"
            )));
        }
        options.push(option.to_owned());
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_options_pass_and_others_are_named() {
        let parsed = Options::parse(&[
            ("fuse-overlayfs.mount_program", "/bin/sh"),
            ("Fuse-Overlayfs.MountOpt", "noatime,timeout=10"),
        ])
        .unwrap();
        assert_eq!(parsed.program, Some("/bin/sh".into()));
        assert_eq!(parsed.mount_options, ["noatime", "timeout=10"]);
        for (key, value, text) in [
            (
                "fuse-overlayfs.x",
                "1",
                "fuse-overlayfs: unknown option fuse-overlayfs.x",
            ),
            ("fuse-overlayfs.size", "10G", "quotas"),
            ("fuse-overlayfs.mount_program", "sh", "expected an absolute path"),
            ("fuse-overlayfs.mount_program", "/no/such", "No such file"),
            ("fuse-overlayfs.mount_program", "/tmp", "not an executable file"),
            (
                "fuse-overlayfs.mountopt",
                "lowerdir=/x",
                "lowerdir is the driver's own",
            ),
            ("fuse-overlayfs.mountopt", "nonsense", "unknown option nonsense"),
        ] {
            let error = Options::parse(&[(key, value)]).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
