//! The journal of a migration: `image/migration.json`, replaced by rename at each stage.
//!
//! ```text
//!             ┌─────────────── interrupted: the same command goes on ──────────────┐
//!  (none) ─▶ Converting ─▶ Switching ─▶ Converted ─▶ Confirming ─▶ (none), only the new state is left
//!                 │             │           │
//!                 └─────────────┴───────────┴─▶ RollingBack ─▶ (none), only the old state is left
//!
//!  the old state is whole in   Converting Switching Converted RollingBack
//!  the new state is whole in             Switching Converted Confirming
//!  a daemon may start in                           Converted Confirming, with the new driver
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::FORMAT_VERSION;
use crate::digest::Digest;
use crate::durable::{self, Steps};
use crate::error::{Error, ErrorKind, Result};

/// The file in the store's directory.
const FILE: &str = "migration.json";

/// How far a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Layers and containers are copied to the new driver; nothing of the old state is touched.
    Converting,
    /// Everything is copied and on the disk; containers' records are rewritten to name the new driver.
    Switching,
    /// Done, but for somebody's word that it is good.
    Converted,
    /// It is good: the old state is being removed.
    Confirming,
    /// It is not: the new state is being removed, records name the old driver again.
    RollingBack,
}

/// A migration that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    version: u32,
    /// The driver everything goes to.
    pub to: String,
    /// The drivers whose state goes.
    pub sources: Vec<String>,
    /// How far it is.
    pub stage: Stage,
    /// When it began.
    pub started: Timestamp,
    /// When a daemon first ran with the new driver: from then on a roll-back loses what containers wrote.
    #[serde(default)]
    pub used: Option<Timestamp>,
    /// The boot in which copies were made: until the stage is `Switching` they are in the page cache only.
    pub(super) boot: String,
    /// Layers that the new driver had before; a roll-back leaves them.
    pub(super) had_layers: BTreeSet<Digest>,
    /// The new driver held nothing before: a roll-back removes its directory.
    pub(super) was_empty: bool,
    /// Containers whose writable layers are copied.
    pub(super) containers: Vec<Moved>,
}

/// A container's writable layer on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moved {
    pub(super) id: String,
    pub(super) from: String,
    /// The copy is complete.
    pub(super) done: bool,
}

impl Journal {
    pub(super) fn new(to: &str, sources: Vec<String>, boot: &str) -> Self {
        Self {
            version: FORMAT_VERSION,
            to: to.to_owned(),
            sources,
            stage: Stage::Converting,
            started: Timestamp::now(),
            used: None,
            boot: boot.to_owned(),
            had_layers: BTreeSet::new(),
            was_empty: false,
            containers: Vec::new(),
        }
    }

    /// The journal of the store below `root` (`<data-root>/image`); `None` when no migration is under way.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` when a newer engine wrote it; `Io`.
    pub fn read(root: &Path) -> Result<Option<Self>> {
        let path = root.join(FILE);
        let Some(journal) = durable::read_json::<Self>(&path)? else {
            return Ok(None);
        };
        if journal.version != FORMAT_VERSION {
            let text = format!("{} has format {}", path.display(), journal.version);
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{text}, this engine reads {FORMAT_VERSION}"),
            ));
        }
        Ok(Some(journal))
    }

    pub(super) fn write(&self, root: &Path, steps: &Steps) -> Result<()> {
        durable::write_json(root, FILE, self, steps)
    }

    pub(super) fn remove(root: &Path) -> Result<()> {
        let path = root.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()), error))
            }
            _ => durable::sync_directory(root),
        }
    }

    /// The driver a daemon has to use; `wanted` is what it was told.
    ///
    /// # Errors
    /// `Conflict` in the middle of a migration, and for another driver than the one everything was moved to. The text
    /// says how to go on.
    pub fn driver_for_daemon(&self, wanted: Option<&str>) -> Result<&str> {
        let to = &self.to;
        let refuse = |text: String| Err(Error::new(ErrorKind::Conflict, text));
        match self.stage {
            Stage::Converting | Stage::Switching => refuse(format!(
                "a migration of this data root to the storage driver {to} was interrupted; finish it with \
                 `skiffd storage migrate --to {to}`, or take it back with `skiffd storage migrate --rollback`"
            )),
            Stage::RollingBack => refuse(format!(
                "taking back a migration of this data root to the storage driver {to} was interrupted; finish it with \
                 `skiffd storage migrate --rollback`"
            )),
            Stage::Converted | Stage::Confirming => {
                match wanted.filter(|name| !name.is_empty() && name != to) {
                    None => Ok(to),
                    Some(other) => refuse(format!(
                        "images and containers were moved to the storage driver {to}, so {other} cannot be used: start \
                     without --storage-driver (or with {to}), or go back with `skiffd storage migrate --rollback`"
                    )),
                }
            }
        }
    }

    /// Whether the new state is not whole yet, or the old one not any more.
    pub fn is_half_done(&self) -> bool {
        matches!(
            self.stage,
            Stage::Converting | Stage::Switching | Stage::RollingBack
        )
    }

    /// Checks that a store may be opened with `driver` for ordinary work, and notes that this was done.
    pub(crate) fn admit(root: &Path, driver: &str) -> Result<()> {
        let Some(mut journal) = Self::read(root)? else {
            return Ok(());
        };
        journal.driver_for_daemon(Some(driver))?;
        if journal.used.is_none() {
            journal.used = Some(Timestamp::now());
            journal.write(root, &Steps::default())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_starts_only_on_a_whole_state_and_with_its_driver() {
        let mut journal = Journal::new("overlay2", vec!["vfs".to_owned()], "boot");
        for stage in [Stage::Converting, Stage::Switching, Stage::RollingBack] {
            journal.stage = stage;
            let text = journal.driver_for_daemon(None).unwrap_err().to_string();
            assert!(
                journal.is_half_done() && text.contains("skiffd storage migrate --rollback"),
                "{text}"
            );
        }
        for stage in [Stage::Converted, Stage::Confirming] {
            journal.stage = stage;
            assert_eq!(journal.driver_for_daemon(None).unwrap(), "overlay2");
            assert_eq!(journal.driver_for_daemon(Some("overlay2")).unwrap(), "overlay2");
            let error = journal.driver_for_daemon(Some("vfs")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert!(!journal.is_half_done());
        }
    }

    #[test]
    fn what_is_written_is_read_and_a_newer_format_is_not() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Journal::read(root.path()).unwrap(), None);
        let mut journal = Journal::new("btrfs", vec!["vfs".to_owned()], "boot");
        journal.containers.push(Moved {
            id: "c".to_owned(),
            from: "vfs".to_owned(),
            done: true,
        });
        journal.stage = Stage::Converted;
        journal.write(root.path(), &Steps::default()).unwrap();
        assert_eq!(Journal::read(root.path()).unwrap(), Some(journal.clone()));
        Journal::admit(root.path(), "btrfs").unwrap();
        assert!(Journal::read(root.path()).unwrap().unwrap().used.is_some());
        assert!(Journal::admit(root.path(), "vfs").is_err());
        journal.version += 1;
        journal.write(root.path(), &Steps::default()).unwrap();
        assert_eq!(
            Journal::read(root.path()).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        Journal::remove(root.path()).unwrap();
        Journal::remove(root.path()).unwrap();
        assert_eq!(Journal::read(root.path()).unwrap(), None);
    }
}
