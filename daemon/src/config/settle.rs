//! From what the sources say to what holds: defaults, checks, paths.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::file::{self, FileSettings};
use super::settings::{Runtime, Settings};
use super::{Config, ConfigError, Host, LogLevel};
use crate::environment::Environment;
use crate::paths::Defaults;

const DEFAULT_MAX_CONCURRENT_DOWNLOADS: u32 = 3;
const DEFAULT_SHUTDOWN_TIMEOUT_SECONDS: i64 = 15;

/// Merges command line and file and fills in the defaults.
///
/// # Errors
/// The file's, a value that cannot be, or a missing `HOME` or `XDG_RUNTIME_DIR`.
pub(super) fn settle(
    flags: Settings,
    given: &BTreeMap<&'static str, String>,
    config_file: Option<PathBuf>,
    mut warnings: Vec<String>,
    environment: &Environment,
) -> Result<Config, ConfigError> {
    let defaults = Defaults::new(environment).map_err(ConfigError::new)?;
    let absolute = |path: PathBuf| environment.current_dir.join(path);
    let explicit = config_file.is_some();
    let config_file = config_file.map_or(defaults.config_file, absolute);
    let FileSettings {
        settings: from_file,
        warnings: file_warnings,
    } = file::read(&config_file, explicit, given)?;
    let both = flags.or(from_file);
    warnings.extend(file_warnings);
    let uplink = environment.uplink().map_err(ConfigError::new)?;
    if !environment.root {
        warnings.extend(uplink.warnings);
    }

    let hosts = match both.hosts.filter(|hosts| !hosts.is_empty()) {
        Some(hosts) => hosts
            .iter()
            .map(|text| parse_host(text, &defaults.socket))
            .collect::<Result<_, _>>()?,
        None => vec![Host::Unix(defaults.socket)],
    };
    let mut runtimes = both.runtimes.unwrap_or_default();
    for text in both.add_runtime.unwrap_or_default() {
        let (name, path) = parse_runtime(&text)?;
        runtimes.insert(
            name,
            Runtime {
                path,
                args: Vec::new(),
            },
        );
    }
    let labels = both.labels.unwrap_or_default();
    if let Some(bad) = labels
        .iter()
        .find(|label| label.split_once('=').is_none_or(|(key, _)| key.is_empty()))
    {
        return Err(ConfigError::new(format!("bad attribute format: {bad}")));
    }
    if let Some(bip) = &both.bip {
        check_bip(bip)?;
    }
    if let Some(mtu) = both.mtu
        && mtu != 0
        && !(68..=65_535).contains(&mtu)
    {
        return Err(ConfigError::new(format!(
            "invalid default MTU: {mtu}: expected 68 to 65535"
        )));
    }
    let mirrors = both.registry_mirrors.unwrap_or_default();
    mirrors.iter().try_for_each(|mirror| check_mirror(mirror))?;
    let downloads = match both
        .max_concurrent_downloads
        .unwrap_or(DEFAULT_MAX_CONCURRENT_DOWNLOADS)
    {
        0 => DEFAULT_MAX_CONCURRENT_DOWNLOADS,
        n => n,
    };

    let (squash_oversized_ids, storage_opts) = engine_storage_opts(both.storage_opts.unwrap_or_default())?;

    Ok(Config {
        rootless: !environment.root,
        hosts,
        data_root: both.data_root.map_or(defaults.data_root, absolute),
        exec_root: both.exec_root.map_or(defaults.exec_root, absolute),
        pidfile: both.pidfile.map_or(defaults.pidfile, absolute),
        config_file,
        storage_driver: environment
            .docker_driver
            .clone()
            .or(both.storage_driver)
            .filter(|name| !name.is_empty()),
        storage_opts,
        squash_oversized_ids,
        insecure_registries: both.insecure_registries.unwrap_or_default(),
        registry_mirrors: mirrors,
        max_concurrent_downloads: usize::try_from(downloads).unwrap_or(usize::MAX),
        experimental: both.experimental.unwrap_or_default(),
        debug: both.debug.unwrap_or_default(),
        log_level: both
            .log_level
            .as_deref()
            .map_or(Ok(LogLevel::Info), parse_log_level)?,
        live_restore: both.live_restore.unwrap_or_default(),
        shutdown_timeout: both.shutdown_timeout.unwrap_or(DEFAULT_SHUTDOWN_TIMEOUT_SECONDS),
        bip: both.bip.filter(|bip| !bip.is_empty()),
        mtu: both.mtu.filter(|mtu| *mtu != 0),
        labels,
        runtimes,
        default_runtime: both.default_runtime.filter(|name| !name.is_empty()),
        uplink: uplink.program,
        uplink_mtu: uplink.mtu,
        host_loopback: uplink.host_loopback,
        proxies: environment.proxies.clone(),
        certificate_directories: defaults.certificate_directories,
        credentials_file: environment
            .docker_config
            .clone()
            .or_else(|| environment.home.as_ref().map(|home| home.join(".docker")))
            .map(|dir| absolute(dir).join("config.json")),
        warnings,
    })
}

/// Reads the file again (SIGHUP) and returns the log level it asks for now. `None`: the file does not speak of it.
///
/// # Errors
/// The file's; nothing changes then.
pub(crate) fn reload(config: &Config) -> Result<Option<LogLevel>, ConfigError> {
    let settings = file::read(&config.config_file, false, &BTreeMap::new())?.settings;
    let level = settings.log_level.as_deref().map(parse_log_level).transpose()?;
    Ok(match settings.debug {
        Some(true) => Some(level.unwrap_or(LogLevel::Debug).max(LogLevel::Debug)),
        Some(false) => Some(level.unwrap_or(LogLevel::Info)),
        None => level,
    })
}

fn parse_log_level(text: &str) -> Result<LogLevel, ConfigError> {
    match text {
        "trace" => Ok(LogLevel::Trace),
        "debug" => Ok(LogLevel::Debug),
        "" | "info" => Ok(LogLevel::Info),
        "warn" | "warning" => Ok(LogLevel::Warn),
        "error" | "fatal" | "panic" => Ok(LogLevel::Error),
        _ => Err(ConfigError::new(format!(
            "invalid logging level: {text}: expected debug, info, warn, error or fatal"
        ))),
    }
}

/// Takes the options that are this engine's, not a driver's, out of the storage options.
fn engine_storage_opts(options: Vec<String>) -> Result<(bool, Vec<String>), ConfigError> {
    let mut squash = false;
    let mut rest = Vec::new();
    for option in options {
        match option.split_once('=') {
            Some(("oversized-ids", "squash")) => squash = true,
            Some(("oversized-ids", "refuse")) => squash = false,
            Some(("oversized-ids", other)) => {
                return Err(ConfigError::new(format!(
                    "--storage-opt oversized-ids={other}: expected refuse or squash"
                )));
            }
            _ => rest.push(option),
        }
    }
    Ok((squash, rest))
}

fn parse_host(text: &str, default_socket: &Path) -> Result<Host, ConfigError> {
    let invalid = |why: &str| ConfigError::new(format!("invalid bind address ({text}): {why}"));
    let (scheme, rest) = match text.split_once("://") {
        Some(split) => split,
        None if text.starts_with('/') => ("unix", text),
        None => ("tcp", text),
    };
    match scheme {
        "unix" if rest.is_empty() => Ok(Host::Unix(default_socket.to_owned())),
        "unix" if rest.starts_with('/') => Ok(Host::Unix(PathBuf::from(rest))),
        "unix" => Err(invalid("expected unix:///ABSOLUTE/PATH")),
        "fd" if rest.is_empty() || rest == "*" => Ok(Host::Fd(None)),
        "fd" => rest
            .parse()
            .map(|number| Host::Fd(Some(number)))
            .map_err(|_| invalid("expected fd:// or fd://NUMBER")),
        "tcp" => {
            let rest = rest.trim_end_matches('/');
            let (address, port) = match rest.rsplit_once(':') {
                Some((address, port)) if !address.ends_with(':') || address.ends_with(']') => (address, port),
                Some(_) => return Err(invalid("expected an IPv6 address in brackets")),
                None => (rest, "2375"),
            };
            let port: u16 = port.parse().map_err(|_| invalid("expected tcp://ADDRESS:PORT"))?;
            let address = if address.is_empty() { "127.0.0.1" } else { address };
            Ok(Host::Tcp(format!("{address}:{port}")))
        }
        _ => Err(invalid("expected unix://, tcp:// or fd://")),
    }
}

fn parse_runtime(text: &str) -> Result<(String, PathBuf), ConfigError> {
    match text.split_once('=') {
        Some((name, path)) if !name.trim().is_empty() && !path.trim().is_empty() => {
            Ok((name.trim().to_lowercase(), PathBuf::from(path.trim())))
        }
        _ => Err(ConfigError::new(format!(
            "invalid runtime {text}: expected NAME=PATH"
        ))),
    }
}

fn check_bip(text: &str) -> Result<(), ConfigError> {
    let valid = text.is_empty()
        || text.split_once('/').is_some_and(|(address, bits)| {
            address.parse::<std::net::Ipv4Addr>().is_ok()
                && bits.parse::<u8>().is_ok_and(|bits| (1..=30).contains(&bits))
        });
    if valid {
        return Ok(());
    }
    Err(ConfigError::new(format!(
        "invalid --bip {text}: expected an IPv4 address and prefix length, such as 172.17.0.1/16"
    )))
}

fn check_mirror(text: &str) -> Result<(), ConfigError> {
    let invalid = |why: String| ConfigError::new(format!("invalid mirror: {why}"));
    let (scheme, rest) = text.split_once("://").ok_or_else(|| {
        invalid(format!(
            "no scheme specified for \"{text}\": must use either 'https://' or 'http://'"
        ))
    })?;
    if !matches!(scheme, "http" | "https") {
        return Err(invalid(format!(
            "unsupported scheme \"{scheme}\" in \"{text}\": must use either 'https://' or 'http://'"
        )));
    }
    if rest.contains(['?', '#']) {
        return Err(invalid(format!("query or fragment at end of the URI \"{text}\"")));
    }
    if rest.contains('@') {
        return Err(invalid(format!(
            "username/password not allowed in URI \"{scheme}://xxxxx@…\""
        )));
    }
    if rest.trim_start_matches('/').is_empty() {
        return Err(invalid(format!("no host in \"{text}\"")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let socket = Path::new("/run/x.sock");
        for (text, expected) in [
            ("unix://", Host::Unix("/run/x.sock".into())),
            ("unix:///a/b", Host::Unix("/a/b".into())),
            ("/a/b", Host::Unix("/a/b".into())),
            ("tcp://0.0.0.0:2376", Host::Tcp("0.0.0.0:2376".into())),
            ("tcp://:2375", Host::Tcp("127.0.0.1:2375".into())),
            ("tcp://[::1]:99/", Host::Tcp("[::1]:99".into())),
            ("0.0.0.0:5", Host::Tcp("0.0.0.0:5".into())),
            ("tcp://localhost", Host::Tcp("localhost:2375".into())),
            ("fd://", Host::Fd(None)),
            ("fd://3", Host::Fd(Some(3))),
        ] {
            assert_eq!(parse_host(text, socket), Ok(expected), "{text}");
        }
        for text in [
            "unix://relative",
            "http://x",
            "tcp://a:b",
            "tcp://::1:5x",
            "fd://x",
            "npipe:////./pipe/x",
        ] {
            assert!(parse_host(text, socket).is_err(), "{text}");
        }
    }

    #[test]
    fn the_engines_own_storage_options_do_not_reach_the_driver() {
        let options = |list: &[&str]| engine_storage_opts(list.iter().map(ToString::to_string).collect());
        let driver = "overlay2.mountopt=nodev";
        assert_eq!(options(&[driver]), Ok((false, vec![driver.to_owned()])));
        let (squash, rest) = options(&["oversized-ids=squash", driver]).unwrap();
        assert!(squash && rest == [driver]);
        assert_eq!(options(&["oversized-ids=refuse"]), Ok((false, vec![])));
        let error = options(&["oversized-ids=65534"]).unwrap_err();
        assert!(error.to_string().contains("expected refuse or squash"), "{error}");
    }

    #[test]
    fn values_that_cannot_be() {
        assert!(check_bip("172.17.0.1/16").is_ok());
        for text in ["172.17.0.1", "172.17.0.1/33", "x/8", "fd00::1/64"] {
            assert!(check_bip(text).is_err(), "{text}");
        }
        assert!(check_mirror("https://mirror.example").is_ok());
        for text in [
            "mirror.example",
            "ftp://x",
            "https://u:p@x",
            "https://x?y",
            "http://",
        ] {
            assert!(check_mirror(text).is_err(), "{text}");
        }
        assert!(parse_runtime("crun=/usr/bin/crun").is_ok());
        assert!(parse_runtime("crun").is_err());
    }
}
