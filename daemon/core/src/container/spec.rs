//! From a container's record to what the runtime must know ([`LaunchSpec`]), and the texts of the files that are
//! bound into each container.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::create::environment;
use super::mounts;
use super::view::Record;
use crate::config::LogConfig;
use crate::error::{Error, Result};
use crate::network::Sandbox;
use crate::runtime::{
    LaunchSpec, LogTarget, MountKind, MountSpec, ProcessSpec, SeccompProfile, TerminalSize,
};

/// `--security-opt`, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Security {
    pub(super) seccomp: SeccompProfile,
    pub(super) no_new_privileges: bool,
    /// `systempaths=unconfined`: nothing masked, nothing read-only.
    pub(super) bare_system_paths: bool,
}

/// Parses the security options.
///
/// # Errors
/// `InvalidParameter` for an unknown option, `NotImplemented` for confinement that is not there.
pub(super) fn security(options: &[String]) -> Result<Security> {
    let mut security = Security {
        seccomp: SeccompProfile::Builtin,
        no_new_privileges: false,
        bare_system_paths: false,
    };
    for option in options {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("seccomp", "unconfined") => security.seccomp = SeccompProfile::Unconfined,
            ("seccomp", "builtin") => security.seccomp = SeccompProfile::Builtin,
            ("seccomp", json) => security.seccomp = SeccompProfile::Custom(json.to_owned()),
            ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false") => security.no_new_privileges = false,
            ("systempaths", "unconfined") => security.bare_system_paths = true,
            // Asking for no confinement where there is none.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            ("apparmor" | "label", _) => {
                return Err(Error::not_implemented(format!(
                    "--security-opt {option}: {name} confinement is not available to an unprivileged engine"
                )));
            }
            _ => return Err(Error::invalid(format!("invalid --security-opt 2: {option:?}"))),
        }
    }
    Ok(security)
}

/// `max-size` (bytes) and `max-file` of the json-file driver.
///
/// # Errors
/// `InvalidParameter` for an unknown option or a bad number.
pub(super) fn log_limits(config: &LogConfig) -> Result<(Option<u64>, u32)> {
    let (mut max_size, mut max_files) = (None, 1);
    for (name, value) in &config.options {
        match (config.driver.as_str(), name.as_str()) {
            ("none", _) => {}
            (_, "max-size") if value == "-1" => max_size = None,
            (_, "max-size") => {
                let size = parse_size(value).filter(|&size| size > 0);
                max_size = Some(size.ok_or_else(|| Error::invalid(format!("invalid max-size: {value:?}")))?);
            }
            (_, "max-file") => {
                let number = value.parse().ok().filter(|&n| n >= 1);
                max_files = number
                    .ok_or_else(|| Error::invalid(format!("max-file cannot be less than 1: {value:?}")))?;
            }
            _ => {
                return Err(Error::invalid(format!(
                    "unknown log opt '{name}' for json-file log driver"
                )));
            }
        }
    }
    Ok((max_size, max_files))
}

/// `10m`, `1G`, `512`, `20kb`: powers of 1024, as Docker reads them.
fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let bare = lower
        .strip_suffix("ib")
        .or_else(|| lower.strip_suffix('b'))
        .unwrap_or(&lower);
    let (digits, shift) = match bare.as_bytes().last()? {
        b'k' => (&bare[..bare.len() - 1], 10),
        b'm' => (&bare[..bare.len() - 1], 20),
        b'g' => (&bare[..bare.len() - 1], 30),
        b't' => (&bare[..bare.len() - 1], 40),
        _ => (bare, 0),
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Where a container's log goes.
pub(super) fn log_target(record: &Record) -> Result<LogTarget> {
    let config = &record.host_config.log_config;
    if config.driver == "none" {
        return Ok(LogTarget::None);
    }
    let (max_size, max_files) = log_limits(config)?;
    Ok(LogTarget::JsonFile {
        path: record.log_path(),
        max_size,
        max_files,
    })
}

/// Everything the runtime needs.
pub(super) fn launch_spec(record: &Record, rootfs: PathBuf, sandbox: &Sandbox) -> Result<LaunchSpec> {
    let (config, host) = (&record.config, &record.host_config);
    let security = security(host.security_opt.as_deref().unwrap_or_default())?;
    let bare = security.bare_system_paths.then(Vec::new);
    Ok(LaunchSpec {
        id: record.id.clone(),
        rootfs,
        runtime: Some(host.runtime.clone()).filter(|name| !name.is_empty()),
        process: process(record),
        hostname: (host.uts_mode != "host").then(|| config.hostname.clone()),
        domainname: config.domainname.clone(),
        mounts: all_mounts(record),
        readonly_rootfs: host.readonly_rootfs,
        network: sandbox.namespace.clone(),
        host_pid: host.pid_mode == "host",
        host_ipc: host.ipc_mode == "host",
        shm_size: u64::try_from(host.shm_size).unwrap_or_default(),
        privileged: host.privileged,
        cap_add: host.cap_add.clone().unwrap_or_default(),
        cap_drop: host.cap_drop.clone().unwrap_or_default(),
        seccomp: if host.privileged && security.seccomp == SeccompProfile::Builtin {
            SeccompProfile::Unconfined
        } else {
            security.seccomp
        },
        no_new_privileges: security.no_new_privileges,
        masked_paths: bare.clone().or_else(|| host.masked_paths.clone()),
        readonly_paths: bare.or_else(|| host.readonly_paths.clone()),
        ulimits: host.ulimits.clone().unwrap_or_default(),
        sysctls: host.sysctls.clone().unwrap_or_default().into_iter().collect(),
        devices: host
            .devices
            .iter()
            .flatten()
            .map(|d| {
                (
                    d.path_on_host.clone().into(),
                    d.path_in_container.clone().into(),
                    d.cgroup_permissions.clone(),
                )
            })
            .collect(),
        oom_score_adj: host.oom_score_adj,
        init: host.init.unwrap_or(false),
        log: log_target(record)?,
        annotations: host.annotations.clone().unwrap_or_default().into_iter().collect(),
    })
}

fn process(record: &Record) -> ProcessSpec {
    let (config, host) = (&record.config, &record.host_config);
    ProcessSpec {
        args: std::iter::once(&record.path)
            .chain(&record.args)
            .cloned()
            .collect(),
        env: environment(config),
        cwd: if config.working_dir.is_empty() {
            "/".to_owned()
        } else {
            config.working_dir.clone()
        },
        user: config.user.clone(),
        additional_groups: host.group_add.clone().unwrap_or_default(),
        tty: config.tty,
        open_stdin: config.open_stdin,
        stdin_once: config.stdin_once,
        console_size: host
            .console_size
            .filter(|size| size[0] > 0 && size[1] > 0)
            .map(|[height, width]| TerminalSize { height, width }),
    }
}

/// The three generated files first (unless the user mounts over them), then the user's own mounts.
fn all_mounts(record: &Record) -> Vec<MountSpec> {
    let user = mounts::specs(&record.mounts);
    let generated = ["resolv.conf", "hostname", "hosts"]
        .into_iter()
        .map(|name| MountSpec {
            target: format!("/etc/{name}"),
            kind: MountKind::Bind {
                source: record.directory.join(name),
                propagation: "rprivate".to_owned(),
                recursive: true,
            },
            read_only: record.host_config.readonly_rootfs,
        });
    let mut all: Vec<MountSpec> = generated
        .filter(|file| user.iter().all(|mount| mount.target != file.target))
        .collect();
    all.extend(user);
    all
}

/// Text of /etc/hosts: the host's for host networking, otherwise loopback, the container itself, `--add-host`.
pub(super) fn hosts_text(record: &Record, sandbox: &Sandbox, host_file: &Path) -> String {
    let own_network = sandbox.key.is_some();
    let mut text = if own_network {
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            .to_owned()
    } else {
        std::fs::read_to_string(host_file).unwrap_or_default()
    };
    for line in record.host_config.extra_hosts.iter().flatten() {
        if let Some((name, address)) = line.split_once(':') {
            let address = address.trim_start_matches('[').trim_end_matches(']');
            let address = match (address, gateway(sandbox)) {
                ("host-gateway", Some(gateway)) => gateway.to_string(),
                _ => address.to_owned(),
            };
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
    for address in sandbox.endpoints.iter().filter_map(|endpoint| endpoint.address) {
        let config = &record.config;
        if config.domainname.is_empty() {
            text.push_str(&format!("{address}\t{}\n", config.hostname));
        } else {
            text.push_str(&format!(
                "{address}\t{0}.{1} {0}\n",
                config.hostname, config.domainname
            ));
        }
    }
    text
}

fn gateway(sandbox: &Sandbox) -> Option<Ipv4Addr> {
    sandbox.endpoints.iter().find_map(|endpoint| endpoint.gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("10m"), Some(10 << 20));
        assert_eq!(parse_size("1G"), Some(1 << 30));
        assert_eq!(parse_size("20kb"), Some(20 << 10));
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("m"), None);
        assert_eq!(parse_size("99999999999t"), None);
    }

    #[test]
    fn security_options() {
        let parse = |options: &[&str]| security(&options.iter().map(|&o| o.to_owned()).collect::<Vec<_>>());
        let parsed = parse(&["seccomp=unconfined", "no-new-privileges"]).unwrap();
        assert_eq!(
            (parsed.seccomp, parsed.no_new_privileges),
            (SeccompProfile::Unconfined, true)
        );
        assert!(parse(&["no-new-privileges:true"]).unwrap().no_new_privileges);
        assert_eq!(
            parse(&["seccomp={\"a\":1}"]).unwrap().seccomp,
            SeccompProfile::Custom("{\"a\":1}".to_owned())
        );
        assert_eq!(
            parse(&["apparmor=docker-default"]).unwrap_err().kind(),
            crate::ErrorKind::NotImplemented
        );
        assert_eq!(
            parse(&["x=y"]).unwrap_err().to_string(),
            "invalid --security-opt 2: \"x=y\""
        );
    }

    #[test]
    fn unknown_log_options_are_refused() {
        let options = [
            ("max-size".to_owned(), "1k".to_owned()),
            ("bogus".to_owned(), String::new()),
        ];
        let config = LogConfig {
            driver: "json-file".to_owned(),
            options: options.into_iter().collect(),
        };
        assert_eq!(
            log_limits(&config).unwrap_err().to_string(),
            "unknown log opt 'bogus' for json-file log driver"
        );
    }
}
