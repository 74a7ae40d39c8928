//! From a create request and an image to a container's record: merge, validate, complete.

use std::collections::BTreeMap;

use super::CreateRequest;
use crate::config::{ContainerConfig, HostConfig};
use crate::error::{Error, Result};
use crate::images::ImageView;
use crate::network::NetworkMode;

/// Docker's default for /dev/shm, in bytes.
const SHM_SIZE: i64 = 64 * 1024 * 1024;
/// `PATH` of a container whose image sets none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A request merged with its image and completed with the defaults.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) config: ContainerConfig,
    pub(super) host: HostConfig,
    /// Program and arguments, never empty.
    pub(super) command: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Merges `request` over `image`'s configuration.
///
/// # Errors
/// `InvalidParameter` for contradictions, `NotImplemented` for what this engine cannot do and must not ignore.
pub(super) fn merge(
    request: &CreateRequest,
    image: &ImageView,
    id: &str,
    default_runtime: &str,
    runtimes: &[String],
) -> Result<Merged> {
    let mut config = request.config.clone();
    let mut host = request.host_config.clone();
    let mut warnings = unsupported(request);
    inherit(&mut config, &image.config);
    if !config.volumes.as_ref().is_none_or(BTreeMap::is_empty) {
        warnings.push(
            "Config.Volumes: anonymous volumes are not supported by skiff yet; their data is kept in the container's \
             writable layer"
                .to_owned(),
        );
    }
    refuse_what_cannot_be_ignored(&config, &host)?;
    if config.hostname.is_empty() && host.uts_mode != "host" {
        config.hostname = id[..12].to_owned();
    }
    validate(&config, &host, runtimes)?;
    complete(&mut host, default_runtime);
    let command: Vec<String> = config
        .entrypoint
        .iter()
        .flatten()
        .chain(config.cmd.iter().flatten())
        .cloned()
        .collect();
    if command.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("no command specified"));
    }
    Ok(Merged {
        config,
        host,
        command,
        warnings,
    })
}

/// The complete environment of the first process: defaults, then what image and request say.
pub(super) fn environment(config: &ContainerConfig) -> Vec<String> {
    let mut entries = vec![DEFAULT_PATH.to_owned()];
    if !config.hostname.is_empty() {
        entries.push(format!("HOSTNAME={}", config.hostname));
    }
    if config.tty {
        entries.push("TERM=xterm".to_owned());
    }
    for entry in config.env.iter().flatten() {
        let name = name_of(entry);
        let place = entries.iter().position(|e| name_of(e) == name);
        match (place, entry.contains('=')) {
            (Some(place), true) => entries[place].clone_from(entry),
            (None, true) => entries.push(entry.clone()),
            // A bare name takes the variable away.
            (Some(place), false) => {
                entries.remove(place);
            }
            (None, false) => {}
        }
    }
    entries
}

fn name_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

/// What the request leaves open comes from the image.
pub(super) fn inherit(config: &mut ContainerConfig, image: &ContainerConfig) {
    if config.entrypoint.as_ref().is_none_or(Vec::is_empty) {
        if config.cmd.as_ref().is_none_or(Vec::is_empty) {
            config.cmd.clone_from(&image.cmd);
        }
        if config.entrypoint.is_none() {
            config.entrypoint.clone_from(&image.entrypoint);
        }
    }
    // `--entrypoint ""` resets the image's.
    if config
        .entrypoint
        .as_deref()
        .is_some_and(|words| words.len() == 1 && words[0].is_empty())
    {
        config.entrypoint = None;
    }
    let env = config.env.get_or_insert_default();
    for entry in image.env.iter().flatten() {
        if !env.iter().any(|own| name_of(own) == name_of(entry)) {
            env.push(entry.clone());
        }
    }
    inherit_text(&mut config.user, &image.user);
    inherit_text(&mut config.working_dir, &image.working_dir);
    inherit_map(&mut config.labels, image.labels.as_ref());
    inherit_map(&mut config.exposed_ports, image.exposed_ports.as_ref());
    inherit_map(&mut config.volumes, image.volumes.as_ref());
    if config.stop_signal.is_none() {
        config.stop_signal.clone_from(&image.stop_signal);
    }
    if config.healthcheck.is_none() {
        config.healthcheck.clone_from(&image.healthcheck);
    }
    if config.shell.is_none() {
        config.shell.clone_from(&image.shell);
    }
}

fn inherit_text(own: &mut String, image: &str) {
    if own.is_empty() {
        image.clone_into(own);
    }
}

fn inherit_map<V: Clone>(own: &mut Option<BTreeMap<String, V>>, image: Option<&BTreeMap<String, V>>) {
    let Some(image) = image else { return };
    let own = own.get_or_insert_default();
    for (key, value) in image {
        own.entry(key.clone()).or_insert_with(|| value.clone());
    }
}

/// Warnings for what is asked for and not done; `docker run` prints them.
fn unsupported(request: &CreateRequest) -> Vec<String> {
    let host = &request.host_config;
    let mut fields: Vec<String> = host
        .unsupported()
        .into_iter()
        .map(|name| format!("HostConfig.{name}"))
        .collect();
    if !matches!(host.restart_policy.name.as_str(), "" | "no") {
        fields.push("HostConfig.RestartPolicy".to_owned());
    }
    if !matches!(host.cgroupns_mode.as_str(), "" | "private") {
        fields.push("HostConfig.CgroupnsMode".to_owned());
    }
    if request
        .config
        .healthcheck
        .as_ref()
        .is_some_and(|check| check["Test"][0] != "NONE")
    {
        fields.push("Config.Healthcheck".to_owned());
    }
    fields
        .into_iter()
        .map(|field| format!("{field} is not supported by skiff yet and is ignored"))
        .collect()
}

/// What would do harm, or astonish, when ignored.
fn refuse_what_cannot_be_ignored(config: &ContainerConfig, host: &HostConfig) -> Result<()> {
    let refuse = |what: &str| {
        Err(Error::not_implemented(format!(
            "{what} is not supported by skiff yet"
        )))
    };
    if !host.port_bindings.is_empty() {
        return refuse("publishing ports (HostConfig.PortBindings, -p)");
    }
    if host.publish_all_ports && !config.exposed_ports.as_ref().is_none_or(BTreeMap::is_empty) {
        return refuse("publishing ports (HostConfig.PublishAllPorts, -P)");
    }
    if !matches!(host.pid_mode.as_str(), "" | "private" | "host") {
        return refuse(&format!("HostConfig.PidMode {:?}", host.pid_mode));
    }
    if !matches!(host.ipc_mode.as_str(), "" | "private" | "shareable" | "host") {
        return refuse(&format!("HostConfig.IpcMode {:?}", host.ipc_mode));
    }
    if !matches!(host.uts_mode.as_str(), "" | "host") {
        return refuse(&format!("HostConfig.UTSMode {:?}", host.uts_mode));
    }
    if !matches!(host.userns_mode.as_str(), "" | "host") {
        return refuse(&format!("HostConfig.UsernsMode {:?}", host.userns_mode));
    }
    if let NetworkMode::Container(_) = NetworkMode::parse(&host.network_mode) {
        return refuse("sharing another container's network (HostConfig.NetworkMode \"container:…\")");
    }
    Ok(())
}

fn validate(config: &ContainerConfig, host: &HostConfig, runtimes: &[String]) -> Result<()> {
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(Error::invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    if let Some(entry) = config
        .env
        .iter()
        .flatten()
        .find(|entry| entry.is_empty() || entry.starts_with('='))
    {
        return Err(Error::invalid(format!("invalid environment variable: {entry}")));
    }
    if let Some(signal) = &config.stop_signal {
        super::signal::parse(signal)?;
    }
    if host.auto_remove && !matches!(host.restart_policy.name.as_str(), "" | "no") {
        return Err(Error::invalid(
            "can't create 'AutoRemove' container with restart policy",
        ));
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(Error::invalid(format!(
            "invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        )));
    }
    if host.shm_size < 0 {
        return Err(Error::invalid("SHM size can not be less than 0"));
    }
    if !host.runtime.is_empty() && !runtimes.contains(&host.runtime) {
        return Err(Error::invalid(format!(
            "unknown or invalid runtime name: {}",
            host.runtime
        )));
    }
    if !matches!(host.log_config.driver.as_str(), "" | "json-file" | "none") {
        return Err(Error::invalid(format!(
            "logger: no log driver named '{}' is registered",
            host.log_config.driver
        )));
    }
    for host_line in host.extra_hosts.iter().flatten() {
        if host_line
            .split_once(':')
            .is_none_or(|(name, address)| name.is_empty() || address.is_empty())
        {
            return Err(Error::invalid(format!(
                "invalid value for extra host: {host_line:?}"
            )));
        }
    }
    super::spec::log_limits(&host.log_config)?;
    super::spec::security(host.security_opt.as_deref().unwrap_or_default()).map(|_| ())
}

fn complete(host: &mut HostConfig, default_runtime: &str) {
    if host.shm_size == 0 {
        host.shm_size = SHM_SIZE;
    }
    let fill = |field: &mut String, value: &str| {
        if field.is_empty() {
            value.clone_into(field);
        }
    };
    fill(&mut host.log_config.driver, "json-file");
    fill(&mut host.ipc_mode, "private");
    fill(&mut host.cgroupns_mode, "private");
    fill(&mut host.runtime, default_runtime);
    fill(&mut host.restart_policy.name, "no");
    if matches!(host.network_mode.as_str(), "" | "default") {
        "bridge".clone_into(&mut host.network_mode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|&w| w.to_owned()).collect())
    }

    fn image() -> ImageView {
        ImageView {
            id: "sha256:0".to_owned(),
            tags: Vec::new(),
            digests: Vec::new(),
            created: None,
            last_tagged: None,
            size: 0,
            architecture: "amd64".to_owned(),
            variant: String::new(),
            os: "linux".to_owned(),
            author: String::new(),
            comment: String::new(),
            config: ContainerConfig {
                entrypoint: list(&["/entry"]),
                cmd: list(&["serve"]),
                env: list(&["PATH=/bin", "A=image", "B=image"]),
                working_dir: "/srv".to_owned(),
                user: "www".to_owned(),
                ..ContainerConfig::default()
            },
            layers: Vec::new(),
            top_layer: None,
            raw_config: serde_json::Value::Null,
            parent: None,
        }
    }

    fn merged(config: ContainerConfig, host: HostConfig) -> Result<Merged> {
        let request = CreateRequest {
            config,
            host_config: host,
            ..CreateRequest::default()
        };
        merge(
            &request,
            &image(),
            &"c".repeat(64),
            "skiff",
            &["skiff".to_owned()],
        )
    }

    #[test]
    fn command_follows_docker_s_rules() {
        let command = |entrypoint, cmd| {
            let config = ContainerConfig {
                entrypoint,
                cmd,
                ..ContainerConfig::default()
            };
            merged(config, HostConfig::default()).map(|m| m.command.join(" "))
        };
        assert_eq!(command(None, None).unwrap(), "/entry serve");
        assert_eq!(command(None, list(&["x"])).unwrap(), "/entry x");
        assert_eq!(command(list(&["/own"]), None).unwrap(), "/own");
        assert_eq!(command(list(&[""]), list(&["x"])).unwrap(), "x");
        assert_eq!(
            command(list(&[""]), None).unwrap_err().to_string(),
            "no command specified"
        );
    }

    #[test]
    fn environment_is_merged_by_name() {
        let config = ContainerConfig {
            env: list(&["B=own", "A", "C=1"]),
            ..ContainerConfig::default()
        };
        let merged = merged(config, HostConfig::default()).unwrap();
        assert_eq!(
            environment(&merged.config),
            ["PATH=/bin", "HOSTNAME=cccccccccccc", "B=own", "C=1"]
        );
    }

    #[test]
    fn unsupported_things_warn_or_fail_by_name() {
        let host: HostConfig =
            serde_json::from_str(r#"{"Memory":4194304,"RestartPolicy":{"Name":"always"}}"#).unwrap();
        let warnings = merged(ContainerConfig::default(), host).unwrap().warnings;
        assert_eq!(
            warnings,
            [
                "HostConfig.Memory is not supported by skiff yet and is ignored",
                "HostConfig.RestartPolicy is not supported by skiff yet and is ignored"
            ]
        );
        for json in [
            r#"{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}"#,
            r#"{"PidMode":"container:x"}"#,
            r#"{"UsernsMode":"keep-id"}"#,
            r#"{"NetworkMode":"container:x"}"#,
        ] {
            let error = merged(ContainerConfig::default(), serde_json::from_str(json).unwrap()).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::NotImplemented, "{json}");
        }
    }

    #[test]
    fn defaults_are_completed() {
        let host = merged(ContainerConfig::default(), HostConfig::default())
            .unwrap()
            .host;
        assert_eq!(
            (host.shm_size, host.network_mode.as_str()),
            (67_108_864, "bridge")
        );
        assert_eq!(
            (host.runtime.as_str(), host.log_config.driver.as_str()),
            ("skiff", "json-file")
        );
    }
}
