//! Where things are when nobody says so: dockerd's places, for root and for everyone else.

use std::path::PathBuf;

use crate::environment::Environment;

/// Default paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Defaults {
    /// `docker.sock`.
    pub(crate) socket: PathBuf,
    /// Images and containers.
    pub(crate) data_root: PathBuf,
    /// What a reboot may clear.
    pub(crate) exec_root: PathBuf,
    /// `docker.pid`.
    pub(crate) pidfile: PathBuf,
    /// `daemon.json`.
    pub(crate) config_file: PathBuf,
    /// Certificates of registries, looked at in this order.
    pub(crate) certificate_directories: Vec<PathBuf>,
}

/// Certificates that the machine's administrator installed.
const SYSTEM_CERTIFICATES: &str = "/etc/docker/certs.d";

/// The advice that goes with every complaint about the runtime directory.
pub(crate) const RUNTIME_DIR_ADVICE: &str = "\
       A login session started by systemd-logind sets it (/run/user/UID). Without one, make a directory of your own
       (not under /tmp, where others could take the name first) and start again:
           mkdir -p -m 700 ~/.docker/run
           export XDG_RUNTIME_DIR=$HOME/.docker/run";

impl Defaults {
    /// Computes them.
    ///
    /// # Errors
    /// The text for the user when `HOME` or `XDG_RUNTIME_DIR` is missing and needed.
    pub(crate) fn new(environment: &Environment) -> Result<Self, String> {
        if environment.root {
            return Ok(Self {
                socket: "/var/run/docker.sock".into(),
                data_root: "/var/lib/docker".into(),
                exec_root: "/var/run/docker".into(),
                pidfile: "/var/run/docker.pid".into(),
                config_file: "/etc/docker/daemon.json".into(),
                certificate_directories: vec![SYSTEM_CERTIFICATES.into()],
            });
        }
        let Some(home) = environment.home.clone().filter(|home| home.is_absolute()) else {
            return Err("could not get HOME: $HOME needs to be set to an existing directory".to_owned());
        };
        let Some(runtime) = environment
            .xdg_runtime_dir
            .clone()
            .filter(|dir| dir.is_absolute())
        else {
            return Err(format!(
                "could not get XDG_RUNTIME_DIR: $XDG_RUNTIME_DIR needs to be set and writable\n{RUNTIME_DIR_ADVICE}"
            ));
        };
        // The XDG specification: relative paths are to be ignored.
        let xdg = |dir: &Option<PathBuf>, default: &str| {
            dir.clone()
                .filter(|dir| dir.is_absolute())
                .unwrap_or_else(|| home.join(default))
        };
        let config = xdg(&environment.xdg_config_home, ".config").join("docker");
        Ok(Self {
            socket: runtime.join("docker.sock"),
            exec_root: runtime.join("docker"),
            pidfile: runtime.join("docker.pid"),
            data_root: xdg(&environment.xdg_data_home, ".local/share").join("docker"),
            config_file: config.join("daemon.json"),
            certificate_directories: vec![config.join("certs.d"), SYSTEM_CERTIFICATES.into()],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rootless_paths_follow_xdg() {
        let mut environment = Environment {
            home: Some("/home/u".into()),
            xdg_runtime_dir: Some("/run/user/7".into()),
            ..Environment::default()
        };
        let defaults = Defaults::new(&environment).unwrap();
        assert_eq!(defaults.socket, PathBuf::from("/run/user/7/docker.sock"));
        assert_eq!(defaults.data_root, PathBuf::from("/home/u/.local/share/docker"));
        assert_eq!(
            defaults.config_file,
            PathBuf::from("/home/u/.config/docker/daemon.json")
        );

        environment.xdg_data_home = Some("/data".into());
        environment.xdg_config_home = Some("relative".into());
        let defaults = Defaults::new(&environment).unwrap();
        assert_eq!(defaults.data_root, PathBuf::from("/data/docker"));
        assert_eq!(
            defaults.config_file,
            PathBuf::from("/home/u/.config/docker/daemon.json")
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut environment = Environment {
            home: Some("/home/u".into()),
            ..Environment::default()
        };
        let text = Defaults::new(&environment).unwrap_err();
        assert!(
            text.starts_with("could not get XDG_RUNTIME_DIR") && text.contains("~/.docker/run"),
            "{text}"
        );
        environment.home = None;
        assert!(Defaults::new(&environment).unwrap_err().contains("HOME"));
        environment.root = true;
        assert_eq!(
            Defaults::new(&environment).unwrap().pidfile,
            PathBuf::from("/var/run/docker.pid")
        );
    }
}
