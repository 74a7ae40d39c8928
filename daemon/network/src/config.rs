//! What the caller decides about the network. Nothing here is read from the environment or searched for by the
//! library itself; [`UplinkPrograms::find`] only looks into the directories it is told.

use std::fmt;
use std::net::{AddrParseError, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Everything [`crate::BridgeNetworks`] needs to know.
#[derive(Debug)]
pub struct NetworkConfig {
    /// Runtime directory: sandboxes are bound at `<exec_root>/netns/<container id>`, the uplink's record and log
    /// are `<exec_root>/uplink.*`. Gone after a reboot, like everything it names.
    pub exec_root: PathBuf,
    /// Persistent directory; the networks' ids are kept in `<state_dir>/networks.json`.
    pub state_dir: PathBuf,
    /// The namespace of the bridge: the keeper's. `None` for the caller's own (as root).
    pub netns: Option<OwnedFd>,
    /// Hangs up (`POLLHUP`) when the bridge's namespace is no longer wanted because all processes that hold it have
    /// ended: the read end of a pipe whose write end only they have, or a pidfd of the keeper (Linux 6.9 or newer).
    /// slirp4netns then ends by itself. `None`: an uplink whose daemon is never started again stays.
    pub lifeline: Option<OwnedFd>,
    /// Which program gives the bridge's namespace a way out.
    pub uplink: UplinkChoice,
    /// Where the programs are.
    pub programs: UplinkPrograms,
    /// MTU of the uplink, in bytes. Docker's default is 65520: fewer, larger copies.
    pub uplink_mtu: u32,
    /// Let containers reach services that listen on the host's loopback, through 10.0.2.2. Docker's default: no.
    pub host_loopback: bool,
    /// MTU of the bridge and its containers, in bytes (`--mtu`, default 1500).
    pub mtu: u32,
    /// Address of the bridge with the length of its subnet's prefix (`--bip`).
    pub bip: Bip,
    /// Name of the bridge, at most 15 bytes.
    pub bridge: String,
    /// The host's resolver configuration, usually `/etc/resolv.conf`.
    pub host_resolv_conf: PathBuf,
    /// Read instead when the former names nothing but systemd-resolved's local address and there is no uplink that
    /// could forward to it, usually `/run/systemd/resolve/resolv.conf`.
    pub resolved_resolv_conf: PathBuf,
    /// Daemon-wide `--dns` servers; used by containers that give none.
    pub dns: Vec<std::net::IpAddr>,
    /// Daemon-wide `--dns-search`.
    pub dns_search: Vec<String>,
    /// Daemon-wide `--dns-opt`.
    pub dns_options: Vec<String>,
}

impl NetworkConfig {
    /// Docker's defaults with the given directories, for the caller's own network namespace and without uplink.
    pub fn new(exec_root: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            exec_root: exec_root.into(),
            state_dir: state_dir.into(),
            netns: None,
            lifeline: None,
            uplink: UplinkChoice::Automatic,
            programs: UplinkPrograms::default(),
            uplink_mtu: 65520,
            host_loopback: false,
            mtu: 1500,
            bip: Bip::default(),
            bridge: "docker0".to_owned(),
            host_resolv_conf: PathBuf::from("/etc/resolv.conf"),
            resolved_resolv_conf: PathBuf::from("/run/systemd/resolve/resolv.conf"),
            dns: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
        }
    }
}

/// How the bridge's namespace gets out (`DOCKERD_ROOTLESS_ROOTLESSKIT_NET`). It does so only when it is not the
/// host's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UplinkChoice {
    /// slirp4netns 0.4.0 or newer, else pasta, else none.
    #[default]
    Automatic,
    /// slirp4netns or nothing.
    Slirp4netns,
    /// pasta or nothing.
    Pasta,
    /// No way out.
    Disabled,
}

/// The uplink programs that are installed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UplinkPrograms {
    /// Path of slirp4netns.
    pub slirp4netns: Option<PathBuf>,
    /// Path of pasta.
    pub pasta: Option<PathBuf>,
}

impl UplinkPrograms {
    /// Looks for the programs in the directories of `path`, the text of a `PATH` variable.
    pub fn find(path: &str) -> Self {
        let look = |name: &str| {
            path.split(':')
                .filter(|directory| directory.starts_with('/'))
                .map(|directory| Path::new(directory).join(name))
                .find(|candidate| is_executable(candidate))
        };
        Self {
            slirp4netns: look("slirp4netns"),
            pasta: look("pasta"),
        }
    }
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The bridge's address and subnet, as in `--bip 172.17.0.1/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bip {
    address: Ipv4Addr,
    prefix_len: u8,
}

impl Bip {
    /// The address of the bridge, which is the containers' gateway.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The length of the subnet's prefix, 1 to 30.
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// The subnet's first address.
    pub fn subnet(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) & !self.host_mask())
    }

    /// The subnet's last address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) | self.host_mask())
    }

    /// The subnet in CIDR notation.
    pub fn cidr(self) -> String {
        format!("{}/{}", self.subnet(), self.prefix_len)
    }

    fn host_mask(self) -> u32 {
        u32::MAX >> self.prefix_len
    }
}

impl Default for Bip {
    /// Docker's 172.17.0.1/16.
    fn default() -> Self {
        Self {
            address: Ipv4Addr::new(172, 17, 0, 1),
            prefix_len: 16,
        }
    }
}

impl fmt::Display for Bip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// Why a text is no [`Bip`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BipError {
    /// No `ADDRESS/LENGTH` at all.
    #[error("invalid CIDR address: {0}")]
    Syntax(String),
    /// A prefix that leaves no address for a container.
    #[error("invalid prefix length in {0}: it must be between 1 and 30")]
    Prefix(String),
    /// The first or last address of its subnet, or no host's address at all.
    #[error("{0} is not the address of a host")]
    NotAHost(String),
}

impl FromStr for Bip {
    type Err = BipError;

    fn from_str(text: &str) -> Result<Self, BipError> {
        let syntax = || BipError::Syntax(text.to_owned());
        let (address, prefix_len) = text.split_once('/').ok_or_else(syntax)?;
        let address: Ipv4Addr = address.parse().map_err(|_: AddrParseError| syntax())?;
        let prefix_len: u8 = prefix_len.parse().map_err(|_| syntax())?;
        if !(1..=30).contains(&prefix_len) {
            return Err(BipError::Prefix(text.to_owned()));
        }
        let bip = Self { address, prefix_len };
        let reserved = address.is_loopback() || address.is_multicast() || address.is_unspecified();
        if reserved || address == bip.subnet() || address == bip.broadcast() {
            return Err(BipError::NotAHost(text.to_owned()));
        }
        Ok(bip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bip_is_parsed_and_its_subnet_computed() {
        let bip: Bip = "10.20.30.1/22".parse().unwrap();
        assert_eq!(bip.cidr(), "10.20.28.0/22");
        assert_eq!(bip.broadcast(), Ipv4Addr::new(10, 20, 31, 255));
        assert_eq!(bip.to_string(), "10.20.30.1/22");
        assert_eq!(Bip::default().cidr(), "172.17.0.0/16");
    }

    #[test]
    fn nonsense_is_refused_by_kind() {
        assert_eq!("x".parse::<Bip>(), Err(BipError::Syntax("x".to_owned())));
        assert_eq!(
            "10.0.0.1".parse::<Bip>(),
            Err(BipError::Syntax("10.0.0.1".to_owned()))
        );
        for text in ["10.0.0.1/31", "10.0.0.1/0", "10.0.0.1/33"] {
            assert_eq!(text.parse::<Bip>(), Err(BipError::Prefix(text.to_owned())));
        }
        for text in [
            "10.0.0.0/24",
            "10.0.0.255/24",
            "127.0.0.1/8",
            "0.0.0.0/8",
            "224.0.0.1/8",
        ] {
            assert_eq!(text.parse::<Bip>(), Err(BipError::NotAHost(text.to_owned())));
        }
    }

    #[test]
    fn programs_are_found_in_the_first_directory_that_has_an_executable_one() {
        use std::os::unix::fs::PermissionsExt;
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(first.path().join("pasta"), "not executable").unwrap();
        let program = second.path().join("pasta");
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir(first.path().join("slirp4netns")).unwrap();

        let path = format!("relative::{}:{}", first.path().display(), second.path().display());
        let found = UplinkPrograms::find(&path);
        assert_eq!(
            found,
            UplinkPrograms {
                slirp4netns: None,
                pasta: Some(program)
            }
        );
    }
}
