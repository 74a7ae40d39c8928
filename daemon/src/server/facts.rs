//! What this machine and this daemon are, for `docker info` and `docker version`. Gathered once, at start.

use std::fs;
use std::io;
use std::path::Path;
use std::thread::available_parallelism;

use skiff_core::system::{Component, SystemFacts};

use crate::config::{Config, Host};
use crate::rootless::messages::HostFacts;
use crate::rootless::record;

/// File in the data root with this daemon's id, as dockerd's.
const ENGINE_ID: &str = "engine-id";

/// `/sys/fs/cgroup`, as seen from here, is the unified tree.
pub(crate) fn cgroup_v2() -> bool {
    /// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
    const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
    rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(CGROUP2_SUPER_MAGIC))
}

/// What the storage driver says of itself.
pub(crate) struct Storage {
    /// Its name.
    pub(crate) driver: String,
    /// Its rows.
    pub(crate) status: Vec<(String, String)>,
}

/// Gathers everything.
///
/// # Errors
/// When this daemon's id cannot be read or written.
pub(crate) fn gather(config: &Config, host: &HostFacts, storage: Storage) -> Result<SystemFacts, String> {
    let uname = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let os = OsRelease::read();
    Ok(SystemFacts {
        id: engine_id(&config.data_root)
            .map_err(|error| format!("{}: {error}", config.data_root.join(ENGINE_ID).display()))?,
        version: crate::VERSION.to_owned(),
        git_commit: crate::GIT_COMMIT.to_owned(),
        build_time: option_env!("SKIFF_BUILD_TIME").unwrap_or_default().to_owned(),
        compiler: env!("SKIFF_COMPILER").to_owned(),
        kernel_version: text(uname.release()),
        operating_system: os.pretty_name,
        os_version: os.version_id,
        architecture: text(uname.machine()),
        cpus: available_parallelism().map_or(1, usize::from),
        memory: fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| total_memory(&text))
            .unwrap_or_default(),
        hostname: text(uname.nodename()),
        data_root: config.data_root.clone(),
        exec_root: config.exec_root.clone(),
        rootless: config.rootless,
        security_options: security_options(config.rootless, cgroup_v2()),
        // Containers are not put into control groups yet, whatever the machine offers.
        cgroup_driver: "none".to_owned(),
        cgroup_version: if host.cgroup_v2 { "2" } else { "1" }.to_owned(),
        storage_driver: storage.driver,
        storage_status: storage.status,
        insecure_registries: config.insecure_registries.clone(),
        registry_mirrors: config.registry_mirrors.clone(),
        debug: config.debug,
        experimental: config.experimental,
        live_restore: config.live_restore,
        warnings: warnings(config, host),
        components: components(config, host),
        labels: config.labels.clone(),
        proxies: config
            .proxies
            .clone()
            .map(|proxy| mask_credentials(&proxy.unwrap_or_default())),
    })
}

/// In dockerd's order (E1): AppArmor, seccomp, SELinux, userns, rootless, cgroupns.
fn security_options(rootless: bool, cgroup_namespaces: bool) -> Vec<String> {
    let mut options = vec!["name=seccomp,profile=builtin".to_owned()];
    if rootless {
        options.push("name=rootless".to_owned());
    }
    if cgroup_namespaces {
        options.push("name=cgroupns".to_owned());
    }
    options
}

/// dockerd's texts (E7).
fn warnings(config: &Config, host: &HostFacts) -> Vec<String> {
    let cgroups = match (config.rootless, host.cgroup_v2) {
        (true, true) => {
            "WARNING: Running in rootless-mode without cgroups. Systemd is required to enable cgroups in rootless-mode."
        }
        (true, false) => {
            "WARNING: Running in rootless-mode without cgroups. To enable cgroups in rootless-mode, you need to boot \
             the system in cgroup v2 mode."
        }
        (false, _) => "WARNING: Running without cgroups: limits on resources are not enforced.",
    };
    let mut warnings = vec![cgroups.to_owned()];
    if host.single_id {
        warnings.push(
            "WARNING: Only one id is mapped: in containers every file belongs to root. See newuidmap(1) and subuid(5)."
                .to_owned(),
        );
    }
    for host in &config.hosts {
        if let Host::Tcp(address) = host {
            warnings.push(format!(
                "[DEPRECATION NOTICE]: API is accessible on http://{address} without encryption.\n         \
                 Access to the remote API is equivalent to root access on the host. Refer\n         \
                 to the 'Docker daemon attack surface' section in the documentation for\n         \
                 more information: https://docs.docker.com/go/attack-surface/\n\
                 In future versions this will be a hard failure preventing the daemon from starting! \
                 Learn more at: https://docs.docker.com/go/api-security/"
            ));
        }
    }
    warnings
}

/// What Docker shows here is RootlessKit. There is none, and no client is known to look for it, so the part that
/// does its work goes by its own name, with the same rows.
fn components(config: &Config, host: &HostFacts) -> Vec<Component> {
    let Some(keeper) = host.keeper else {
        return Vec::new();
    };
    let rows = [
        (
            "NetworkDriver",
            config.uplink.clone().unwrap_or_else(|| "automatic".to_owned()),
        ),
        ("PortDriver", "none".to_owned()),
        ("StateDir", config.exec_root.display().to_string()),
        ("Pid", keeper.to_string()),
    ];
    let rows = rows.map(|(name, value)| (name.to_owned(), value)).to_vec();
    vec![Component {
        name: "skiff-keeper".to_owned(),
        version: crate::VERSION.to_owned(),
        details: rows,
    }]
}

/// The id that this data root was given when it was first used.
fn engine_id(data_root: &Path) -> io::Result<String> {
    let path = data_root.join(ENGINE_ID);
    match fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?
        .trim()
        .to_owned();
    record::replace(&path, &id)?;
    Ok(id)
}

#[derive(Debug, PartialEq, Eq)]
struct OsRelease {
    pretty_name: String,
    version_id: String,
}

impl OsRelease {
    fn read() -> Self {
        let text =
            fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release"));
        Self::parse(&text.unwrap_or_default())
    }

    /// os-release(5): shell-like assignments, values perhaps in quotes.
    fn parse(text: &str) -> Self {
        let value = |name: &str| {
            text.lines()
                .filter_map(|line| line.trim().split_once('='))
                .filter(|(key, _)| *key == name)
                .map(|(_, value)| value.trim_matches(['"', '\'']).replace("\\\"", "\""))
                .next_back()
        };
        Self {
            pretty_name: value("PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned()),
            version_id: value("VERSION_ID").unwrap_or_default(),
        }
    }
}

/// Bytes of memory in `/proc/meminfo`.
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_ascii_whitespace()
        .next()?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// As dockerd shows a proxy: who logs in is nobody's business.
fn mask_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let authority_end = rest.find('/').unwrap_or(rest.len());
    match rest[..authority_end].rfind('@') {
        Some(at) => format!("{scheme}://xxxxx:xxxxx@{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_system_are_read() {
        let os =
            OsRelease::parse("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID='12'\n");
        assert_eq!(
            (os.pretty_name.as_str(), os.version_id.as_str()),
            ("Debian GNU/Linux 12 (bookworm)", "12")
        );
        assert_eq!(OsRelease::parse("").pretty_name, "Linux");
        assert_eq!(
            total_memory("MemTotal:       24681234 kB\nMemFree: 1 kB\n"),
            Some(24_681_234 * 1024)
        );
        assert_eq!(total_memory("nothing"), None);
    }

    #[test]
    fn proxies_are_shown_without_credentials() {
        for (url, shown) in [
            (
                "http://user:secret@proxy:3128/x@y",
                "http://xxxxx:xxxxx@proxy:3128/x@y",
            ),
            ("http://u:p@ss@proxy", "http://xxxxx:xxxxx@proxy"),
            ("http://proxy:3128", "http://proxy:3128"),
            ("localhost,.example", "localhost,.example"),
            ("", ""),
        ] {
            assert_eq!(mask_credentials(url), shown);
        }
    }

    #[test]
    fn the_id_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let id = engine_id(dir.path()).unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(engine_id(dir.path()).unwrap(), id);
    }
}
