//! The environment variables skiffd looks at, read in one place so that everything else can be tested without them.
//! No library crate reads the environment.

use std::env;
use std::path::PathBuf;

/// What the environment says. Empty variables count as unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    /// `euid == 0`.
    pub(crate) root: bool,
    /// `HOME`.
    pub(crate) home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub(crate) xdg_runtime_dir: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub(crate) xdg_data_home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub(crate) xdg_config_home: Option<PathBuf>,
    /// `DOCKER_CONFIG`: where the client keeps its configuration, and with it credentials.
    pub(crate) docker_config: Option<PathBuf>,
    /// `DOCKER_DRIVER`: overrides `--storage-driver`, as with dockerd.
    pub(crate) docker_driver: Option<String>,
    /// The `DOCKERD_ROOTLESS_ROOTLESSKIT_*` variables that are set, without that prefix, in the table's order.
    pub(crate) rootlesskit: Vec<(&'static str, String)>,
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`, or the same in small letters.
    pub(crate) proxies: [Option<String>; 3],
    /// The working directory, for relative paths.
    pub(crate) current_dir: PathBuf,
}

const ROOTLESSKIT_PREFIX: &str = "DOCKERD_ROOTLESS_ROOTLESSKIT_";

/// What the variables of dockerd-rootless.sh mean here.
const ROOTLESSKIT_NAMES: &[&str] = &[
    "STATE_DIR",
    "NET",
    "MTU",
    "PORT_DRIVER",
    "SLIRP4NETNS_SANDBOX",
    "SLIRP4NETNS_SECCOMP",
    "DISABLE_HOST_LOOPBACK",
    "DETACH_NETNS",
    "FLAGS",
];

impl Environment {
    /// Reads it. The working directory is `/` when it cannot be found out (it was removed).
    pub(crate) fn read() -> Self {
        let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Self {
            root: rustix::process::geteuid().is_root(),
            home: path("HOME"),
            xdg_runtime_dir: path("XDG_RUNTIME_DIR"),
            xdg_data_home: path("XDG_DATA_HOME"),
            xdg_config_home: path("XDG_CONFIG_HOME"),
            docker_config: path("DOCKER_CONFIG"),
            docker_driver: text("DOCKER_DRIVER"),
            rootlesskit: ROOTLESSKIT_NAMES
                .iter()
                .filter_map(|name| Some((*name, text(&format!("{ROOTLESSKIT_PREFIX}{name}"))?)))
                .collect(),
            proxies: ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"]
                .map(|name| text(name).or_else(|| text(&name.to_ascii_lowercase()))),
            current_dir: env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
        }
    }
}

/// The uplink asked for by `DOCKERD_ROOTLESS_ROOTLESSKIT_*`, and what else was said there without effect.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct UplinkWishes {
    /// Program to use.
    pub(crate) program: Option<String>,
    /// Its MTU.
    pub(crate) mtu: Option<u32>,
    /// Let containers reach the host's loopback.
    pub(crate) host_loopback: bool,
    /// One sentence for each variable without effect.
    pub(crate) warnings: Vec<String>,
}

impl Environment {
    /// Reads the wishes out of the variables.
    ///
    /// # Errors
    /// The text for the user, for a value that dockerd-rootless.sh refuses, too.
    pub(crate) fn uplink(&self) -> Result<UplinkWishes, String> {
        let mut wishes = UplinkWishes::default();
        for (name, value) in &self.rootlesskit {
            let full = format!("{ROOTLESSKIT_PREFIX}{name}");
            let no_effect = match (*name, value.as_str()) {
                ("NET", "slirp4netns" | "pasta") => {
                    wishes.program = Some(value.clone());
                    continue;
                }
                ("NET", "vpnkit" | "lxc-user-nic" | "gvisor-tap-vsock") => {
                    "this version knows slirp4netns and pasta; one of them is used if it is installed"
                }
                ("NET", other) => {
                    return Err(format!(
                        "{full}={other} is not supported; use slirp4netns or pasta"
                    ));
                }
                ("MTU", text) => {
                    let mtu = text.parse().ok().filter(|mtu| (68..=65_535).contains(mtu));
                    wishes.mtu = Some(mtu.ok_or_else(|| format!("{full}={text}: expected 68 to 65535"))?);
                    continue;
                }
                ("DISABLE_HOST_LOOPBACK", "false") => {
                    wishes.host_loopback = true;
                    continue;
                }
                // What these ask for is how it is.
                ("DISABLE_HOST_LOOPBACK" | "DETACH_NETNS", "true" | "auto") => continue,
                ("SLIRP4NETNS_SANDBOX" | "SLIRP4NETNS_SECCOMP", "auto") => continue,
                ("STATE_DIR", _) => "there is no RootlessKit; state is kept under --exec-root",
                ("PORT_DRIVER", _) => "ports are not published in this version",
                ("FLAGS", _) => {
                    "the daemon listens in the host's network namespace, give -H tcp://ADDRESS:PORT alone"
                }
                _ => "not supported by this version",
            };
            wishes.warnings.push(format!("{full} has no effect: {no_effect}"));
        }
        Ok(wishes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(list: &[(&'static str, &str)]) -> Environment {
        Environment {
            rootlesskit: list
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            ..Environment::default()
        }
    }

    #[test]
    fn uplinks_are_chosen_or_refused() {
        let wishes = with(&[("NET", "pasta"), ("MTU", "1400"), ("DETACH_NETNS", "true")])
            .uplink()
            .unwrap();
        assert_eq!(
            (wishes.program.as_deref(), wishes.mtu),
            (Some("pasta"), Some(1400))
        );
        assert!(wishes.warnings.is_empty());
        assert!(
            with(&[("NET", "host")])
                .uplink()
                .unwrap_err()
                .contains("NET=host is not supported")
        );
        assert!(with(&[("MTU", "1")]).uplink().is_err());
    }

    #[test]
    fn flags_of_old_recipes_are_accepted_with_a_word() {
        let wishes = with(&[
            ("FLAGS", "-p 0.0.0.0:2376:2376/tcp"),
            ("PORT_DRIVER", "slirp4netns"),
        ])
        .uplink()
        .unwrap();
        assert_eq!(wishes.warnings.len(), 2);
        assert!(wishes.warnings[0].contains("PORT_DRIVER") || wishes.warnings[0].contains("FLAGS"));
    }
}
