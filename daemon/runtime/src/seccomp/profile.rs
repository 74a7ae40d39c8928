//! Seccomp profiles in Docker's JSON format, and their reduction to the OCI form for one container.
//!
//! Docker's format adds conditions to OCI's: a rule may include or exclude capabilities, architectures and kernel versions.

use std::collections::BTreeSet;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSyscall};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::SeccompError;
use super::default::native_architectures;

/// A profile as it is written.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Profile {
    pub(super) default_action: String,
    pub(super) default_errno_ret: Option<u32>,
    pub(super) architectures: Vec<String>,
    pub(super) arch_map: Option<Vec<ArchMap>>,
    pub(super) flags: Option<Vec<String>>,
    pub(super) listener_path: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) syscalls: Vec<Rule>,
}

/// An architecture with those that its kernels also run.
#[derive(Debug, Default, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ArchMap {
    architecture: String,
    #[serde(deserialize_with = "null_is_default")]
    sub_architectures: Vec<String>,
}

/// One rule.
#[derive(Debug, Default, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Rule {
    #[serde(deserialize_with = "null_is_default")]
    pub(super) names: Vec<String>,
    /// The older form: a single name.
    pub(super) name: String,
    pub(super) action: String,
    pub(super) errno_ret: Option<u32>,
    pub(super) args: Option<Vec<Condition>>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) includes: Filter,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) excludes: Filter,
}

/// A condition on an argument.
#[derive(Debug, Default, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Condition {
    pub(super) index: usize,
    pub(super) value: u64,
    pub(super) value_two: u64,
    pub(super) op: String,
}

/// When a rule applies, or does not.
#[derive(Debug, Default, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Filter {
    #[serde(deserialize_with = "null_is_default")]
    pub(super) caps: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) arches: Vec<String>,
    pub(super) min_kernel: Option<String>,
}

/// What the conditions are judged by.
pub(crate) struct Circumstances<'a> {
    /// The container's bounding capabilities, as `CAP_…`.
    pub(crate) capabilities: &'a BTreeSet<String>,
    /// Major and minor version of the kernel.
    pub(crate) kernel: (u32, u32),
}

/// Parses a profile. # Errors: `Invalid` with what is wrong.
pub(super) fn parse(json: &str) -> Result<Profile, SeccompError> {
    serde_json::from_str(json).map_err(|error| SeccompError::Invalid(error.to_string()))
}

impl Profile {
    /// The OCI form for one container.
    ///
    /// # Errors
    /// `Invalid` for unknown names of actions, operators or architectures, and contradictory rules.
    pub(super) fn reduce(&self, circumstances: &Circumstances<'_>) -> Result<LinuxSeccomp, SeccompError> {
        let mut oci = LinuxSeccomp::default();
        oci.set_default_action(parse_name(&self.default_action)?);
        oci.set_default_errno_ret(self.default_errno_ret);
        if self.listener_path.is_some() {
            return Err(SeccompError::Unsupported("listenerPath".to_owned()));
        }
        if let Some(flags) = &self.flags {
            oci.set_flags(Some(
                flags
                    .iter()
                    .map(|flag| parse_name(flag))
                    .collect::<Result<_, _>>()?,
            ));
        }
        oci.set_architectures(Some(self.architectures()?));
        let mut syscalls = Vec::new();
        for rule in &self.syscalls {
            if !rule.name.is_empty() && !rule.names.is_empty() {
                return Err(SeccompError::Invalid("use either 'name' or 'names'".to_owned()));
            }
            if rule.includes.includes(circumstances) && !rule.excludes.excludes(circumstances) {
                syscalls.push(rule.reduce()?);
            }
        }
        oci.set_syscalls(Some(syscalls));
        Ok(oci)
    }

    fn architectures(&self) -> Result<Vec<Arch>, SeccompError> {
        let native = native_architectures();
        let map = self.arch_map.as_deref().unwrap_or_default();
        if !map.is_empty() && !self.architectures.is_empty() {
            return Err(SeccompError::Invalid(
                "use either 'architectures' or 'archMap'".to_owned(),
            ));
        }
        let names: Vec<&String> = match map
            .iter()
            .find(|entry| Some(&entry.architecture) == native.first())
        {
            Some(entry) => std::iter::once(&entry.architecture)
                .chain(&entry.sub_architectures)
                .collect(),
            None => self.architectures.iter().collect(),
        };
        names.into_iter().map(|name| parse_name(name)).collect()
    }
}

impl Rule {
    fn reduce(&self) -> Result<LinuxSyscall, SeccompError> {
        let mut oci = LinuxSyscall::default();
        let names = if self.name.is_empty() {
            self.names.clone()
        } else {
            vec![self.name.clone()]
        };
        oci.set_names(names);
        oci.set_action(parse_name(&self.action)?);
        oci.set_errno_ret(self.errno_ret);
        let args = self.args.as_deref().unwrap_or_default();
        if !args.is_empty() {
            let args = serde_json::to_value(args).and_then(serde_json::from_value);
            oci.set_args(Some(
                args.map_err(|error| SeccompError::Invalid(error.to_string()))?,
            ));
        }
        Ok(oci)
    }
}

impl Filter {
    /// All that is named must be so.
    fn includes(&self, circumstances: &Circumstances<'_>) -> bool {
        (self.arches.is_empty() || self.arches.iter().any(|arch| is_native(arch)))
            && self
                .caps
                .iter()
                .all(|capability| circumstances.capabilities.contains(capability))
            && self
                .min_kernel
                .as_deref()
                .is_none_or(|version| at_least(circumstances.kernel, version))
    }

    /// Anything that is named suffices.
    fn excludes(&self, circumstances: &Circumstances<'_>) -> bool {
        self.arches.iter().any(|arch| is_native(arch))
            || self
                .caps
                .iter()
                .any(|capability| circumstances.capabilities.contains(capability))
            || self
                .min_kernel
                .as_deref()
                .is_some_and(|version| at_least(circumstances.kernel, version))
    }
}

/// Go's name of the architecture we run on.
fn is_native(arch: &str) -> bool {
    arch == if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

fn at_least(kernel: (u32, u32), version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    kernel >= (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// Parses one of OCI's `SCMP_…` names.
fn parse_name<T: DeserializeOwned>(name: &str) -> Result<T, SeccompError> {
    serde_json::from_value(serde_json::Value::String(name.to_owned()))
        .map_err(|error| SeccompError::Invalid(error.to_string()))
}

fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
