//! System-call filters: Docker's default profile, custom ones in its format, and the compiler to BPF.
//!
//! Called while a container's OCI specification is built ([`resolve`]) and, for the embedded runtime, to make the
//! program that its first process loads ([`compile`]); external runtimes compile it themselves.

mod bpf;
mod default;
mod profile;
mod syscalls;

use oci_spec::runtime::LinuxSeccomp;
use skiff_core::runtime::SeccompProfile;

pub(crate) use bpf::compile;
pub(crate) use profile::Circumstances;

/// What is wrong with a profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    /// It is not a profile.
    #[error("Decoding seccomp profile failed: {0}")]
    Invalid(String),
    /// It asks for something this engine does not do.
    #[error("seccomp profile: {0} is not supported")]
    Unsupported(String),
}

/// The OCI form of a profile for one container; `None` for no filter.
///
/// # Errors
/// `Invalid` and `Unsupported`, of custom profiles.
pub(crate) fn resolve(
    profile: &SeccompProfile,
    circumstances: &Circumstances<'_>,
) -> Result<Option<LinuxSeccomp>, SeccompError> {
    match profile {
        SeccompProfile::Unconfined => Ok(None),
        SeccompProfile::Builtin => default::profile().reduce(circumstances).map(Some),
        SeccompProfile::Custom(json) => profile::parse(json)?.reduce(circumstances).map(Some),
    }
}

/// Major and minor version of the running kernel.
pub(crate) fn kernel_version() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut parts = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxSeccompAction;
    use std::collections::BTreeSet;

    fn resolved(profile: &SeccompProfile, capabilities: &[&str]) -> LinuxSeccomp {
        let capabilities: BTreeSet<String> = capabilities.iter().map(|&c| c.to_owned()).collect();
        let circumstances = Circumstances {
            capabilities: &capabilities,
            kernel: (6, 1),
        };
        resolve(profile, &circumstances).unwrap().unwrap()
    }

    fn allows(oci: &LinuxSeccomp, name: &str) -> bool {
        oci.syscalls().iter().flatten().any(|rule| {
            rule.action() == LinuxSeccompAction::ScmpActAllow
                && rule.args().is_none()
                && rule.names().iter().any(|n| n == name)
        })
    }

    #[test]
    fn capabilities_open_what_belongs_to_them() {
        let plain = resolved(&SeccompProfile::Builtin, &["CAP_CHOWN", "CAP_SYS_CHROOT"]);
        for name in ["read", "ptrace", "chroot"] {
            assert!(allows(&plain, name), "{name}");
        }
        for name in [
            "mount",
            "unshare",
            "keyctl",
            "add_key",
            "bpf",
            "clone3",
            "clone",
            "io_uring_setup",
            "userfaultfd",
            "kexec_load",
            "open_by_handle_at",
        ] {
            assert!(!allows(&plain, name), "{name}");
        }
        let admin = resolved(&SeccompProfile::Builtin, &["CAP_SYS_ADMIN"]);
        for name in ["mount", "unshare", "clone", "clone3"] {
            assert!(allows(&admin, name), "{name}");
        }
    }

    #[test]
    fn the_built_in_profile_compiles_to_a_program_the_kernel_takes() {
        let program = compile(&resolved(&SeccompProfile::Builtin, &["CAP_CHOWN"])).unwrap();
        assert!(
            (200..4096).contains(&program.len()),
            "{} instructions",
            program.len()
        );
    }

    #[test]
    fn every_name_of_the_built_in_profile_is_a_system_call_somewhere() {
        for rule in &default::profile().syscalls {
            for name in &rule.names {
                use syscalls::{Abi, number};
                let known = [Abi::X86_64, Abi::X86, Abi::X32, Abi::Aarch64, Abi::Arm]
                    .iter()
                    .any(|&abi| number(abi, name).is_some());
                assert!(known, "{name}");
            }
        }
    }

    #[test]
    fn a_custom_profile_in_dockers_format_is_read() {
        let json = r#"{
            "defaultAction": "SCMP_ACT_ALLOW",
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null}],
            "syscalls": [
                {"name": "mkdir", "action": "SCMP_ACT_ERRNO", "args": null},
                {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "includes": {"caps": ["CAP_CHOWN"]}, "excludes": {}},
                {"names": ["chown"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "99.0"}, "comment": "never"}
            ]}"#;
        let oci = resolved(&SeccompProfile::Custom(json.to_owned()), &["CAP_CHOWN"]);
        assert_eq!(oci.default_action(), LinuxSeccompAction::ScmpActAllow);
        let names: Vec<_> = oci
            .syscalls()
            .iter()
            .flatten()
            .flat_map(|rule| rule.names().clone())
            .collect();
        assert_eq!(names, ["mkdir", "chmod"]);
        assert!(compile(&oci).is_ok());
    }

    #[test]
    fn nonsense_is_an_error() {
        let capabilities = BTreeSet::new();
        let circumstances = Circumstances {
            capabilities: &capabilities,
            kernel: (6, 1),
        };
        for json in [
            "",
            "[]",
            r#"{"defaultAction": "SCMP_ACT_WHATEVER"}"#,
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "x"}]}"#,
        ] {
            assert!(
                resolve(&SeccompProfile::Custom(json.to_owned()), &circumstances).is_err(),
                "{json}"
            );
        }
    }
}
