//! The data root a command works on, and whether anything else does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use skiff_core::container::OfflineRecords;
use skiff_graphdrivers::GraphDriver;
use skiff_sys::lock::FileLock;

use crate::config::Config;
use crate::locks::{self, Taken};

/// A data root.
#[derive(Debug)]
pub(super) struct Place {
    /// Its path, without symbolic links.
    pub(super) data_root: PathBuf,
    /// `--storage-opt`.
    options: Vec<(String, String)>,
    exec_root: PathBuf,
}

impl Place {
    /// The one the configuration names.
    ///
    /// # Errors
    /// When it does not exist.
    pub(super) fn of(config: &Config) -> Result<Self, String> {
        let data_root = std::fs::canonicalize(&config.data_root)
            .map_err(|error| format!("data root {}: {error}", config.data_root.display()))?;
        let split = |option: &String| match option.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(format!("--storage-opt {option}: expected NAME=VALUE")),
        };
        Ok(Self {
            data_root,
            options: config.storage_opts.iter().map(split).collect::<Result<_, _>>()?,
            exec_root: config.exec_root.clone(),
        })
    }

    /// The directory of the image store.
    pub(super) fn image_root(&self) -> PathBuf {
        self.data_root.join("image")
    }

    /// The containers' records.
    pub(super) fn containers(&self) -> OfflineRecords {
        OfflineRecords::new(self.data_root.join("containers"))
    }

    /// Opens a storage driver in some data root, with those of the options that are for it.
    pub(super) fn open_driver(&self, data_root: &Path, name: &str) -> Result<Arc<dyn GraphDriver>, String> {
        let for_it = |key: &str| key.split_once('.').is_none_or(|(prefix, _)| prefix == name);
        let options: Vec<(&str, &str)> = self
            .options
            .iter()
            .filter(|(key, _)| for_it(key))
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        skiff_graphdrivers::select(data_root, Some(name), &options)
            .map(|selected| selected.driver)
            .map_err(|error| error.to_string())
    }

    /// Keeps every daemon out as long as the result lives.
    ///
    /// # Errors
    /// When a daemon has it, with the command that stops it; when containers still run, whose files must not move.
    pub(super) fn lock(&self) -> Result<FileLock, String> {
        match self.try_lock()? {
            Locked::Ours(lock) => Ok(lock),
            busy @ Locked::InUse(_) => Err(busy.refusal(self)),
        }
    }

    /// As [`Place::lock`], for those who can do something all the same.
    ///
    /// # Errors
    /// When the lock cannot be asked for.
    pub(super) fn try_lock(&self) -> Result<Locked, String> {
        let lock = match locks::take("data root", &self.data_root)? {
            Taken::Ours(lock) => lock,
            Taken::Theirs(holder) => return Ok(Locked::InUse(User::Daemon(holder.map(|holder| holder.pid)))),
        };
        // A shim ends a moment after its container.
        let end = Instant::now() + Duration::from_secs(1);
        loop {
            match skiff_runtime::live_shims(&self.exec_root).len() {
                0 => return Ok(Locked::Ours(lock)),
                running if Instant::now() > end => return Ok(Locked::InUse(User::Containers(running))),
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// Whether a data root is ours alone.
#[derive(Debug)]
pub(super) enum Locked {
    /// It is.
    Ours(FileLock),
    /// It is not.
    InUse(User),
}

/// Who uses a data root.
#[derive(Debug)]
pub(super) enum User {
    /// A daemon, by its pid.
    Daemon(Option<u32>),
    /// So many containers, although no daemon runs.
    Containers(usize),
}

impl Locked {
    /// What to say to somebody who needs it for himself.
    pub(super) fn refusal(&self, place: &Place) -> String {
        match self {
            Self::Ours(_) => String::new(),
            Self::InUse(User::Daemon(pid)) => {
                let pid = pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
                format!(
                    "the daemon (process {pid}) uses {}; stop it first, with\n    kill {pid}\nor, if it is a service, \
                     with\n    systemctl --user stop docker",
                    place.data_root.display()
                )
            }
            Self::InUse(User::Containers(count)) => format!(
                "{count} containers still run, although the daemon does not; start it, `docker stop` them, and stop it"
            ),
        }
    }
}
