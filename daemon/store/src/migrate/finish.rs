//! The two ways out of a migration: the old state goes, or the new one.

use std::collections::{BTreeSet, HashSet};
use std::fs;

use skiff_graphdrivers::{ErrorKind as DriverErrorKind, GraphDriver, LayerId, SnapshotKey, SnapshotRef};

use super::journal::{Journal, Stage};
use super::{Migration, Progress, reserve};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::rw::active_id;

/// What a roll-back did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RolledBack {
    /// The driver that has everything again; several when several had.
    pub drivers: Vec<String>,
    /// Containers that are back.
    pub containers: usize,
}

impl Migration<'_> {
    /// Removes the old state: the new one is good. Gives the bytes that were freed, as far as known.
    ///
    /// # Errors
    /// `NotFound` when there is nothing to confirm; `Conflict` when the copies are not complete; `Io`, after which the
    /// same call goes on.
    pub fn confirm(&self, progress: &dyn Progress) -> Result<u64> {
        let mut journal = self.expect_journal("confirm")?;
        match journal.stage {
            Stage::Converted => {
                reserve::give_back(&self.root)?;
                journal.stage = Stage::Confirming;
                journal.write(&self.root, &self.steps)?;
            }
            Stage::Confirming => reserve::give_back(&self.root)?,
            Stage::Converting | Stage::Switching | Stage::RollingBack => {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "the migration to {} is not complete, so it cannot be confirmed",
                        journal.to
                    ),
                ));
            }
        }
        let mut freed = 0;
        for name in &journal.sources {
            progress.begin(&format!("removing what {name} holds"), 0);
            freed += self.remove_driver(name)?;
            self.steps.after("old driver removed");
        }
        Journal::remove(&self.root)?;
        Ok(freed)
    }

    /// Names of containers that exist only in the new driver: a roll-back would lose them.
    ///
    /// # Errors
    /// As [`super::ContainerRecords::list`].
    pub fn made_since(&self, journal: &Journal) -> Result<Vec<String>> {
        let moved: HashSet<&str> = journal.containers.iter().map(|moved| moved.id.as_str()).collect();
        let mut since = Vec::new();
        // What the new driver had before the migration is not the migration's to judge.
        if journal.was_empty {
            for container in self.containers.list()? {
                if container.driver == journal.to && !moved.contains(container.id.as_str()) {
                    since.push(container.name);
                }
            }
        }
        Ok(since)
    }

    /// Removes the new state; the old one is as it was when the migration began.
    ///
    /// # Errors
    /// `NotFound` when there is nothing to roll back; `Conflict` when the old state is being removed already, or when
    /// containers were made with the new driver, which would be lost; `Io`, after which the same call goes on.
    pub fn roll_back(&self, progress: &dyn Progress) -> Result<RolledBack> {
        let mut journal = self.expect_journal("roll back")?;
        if journal.stage == Stage::Confirming {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the migration was confirmed, and the old state is being removed: finish that with --confirm",
            ));
        }
        let since = self.made_since(&journal)?;
        if !since.is_empty() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "these containers were made after the migration and exist only in {}: {}; remove them first",
                    journal.to,
                    since.join(", ")
                ),
            ));
        }
        reserve::give_back(&self.root)?;
        if journal.stage != Stage::RollingBack {
            journal.stage = Stage::RollingBack;
            journal.write(&self.root, &self.steps)?;
        }
        let there: HashSet<String> = self.containers.list()?.into_iter().map(|c| c.id).collect();
        for moved in journal
            .containers
            .iter()
            .filter(|moved| there.contains(&moved.id))
        {
            self.containers.set_driver(&moved.id, &moved.from)?;
            self.steps.after("container switched back");
        }
        progress.begin(&format!("removing what was copied to {}", journal.to), 0);
        if journal.was_empty {
            self.remove_driver(&journal.to)?;
        } else {
            self.remove_copies(&journal)?;
        }
        Journal::remove(&self.root)?;
        Ok(RolledBack {
            drivers: journal.sources,
            containers: journal.containers.len(),
        })
    }

    fn expect_journal(&self, what: &str) -> Result<Journal> {
        let journal = self.journal()?;
        journal.ok_or_else(|| Error::not_found(format!("there is no migration to {what}")))
    }

    /// Removes everything a driver holds, and its records.
    fn remove_driver(&self, name: &str) -> Result<u64> {
        let directory = self.data_root.join(name);
        let mut freed = 0;
        if directory.is_dir() {
            match self.open_driver(name) {
                // Only the driver knows how (btrfs has subvolumes).
                Ok(driver) => {
                    let report = driver.cleanup(&HashSet::new())?;
                    freed += report.freed;
                }
                Err(error) => {
                    tracing::warn!(driver = name, %error, "cannot be opened; removing its directory");
                }
            }
            freed += skiff_graphdrivers::remove_roots(&directory)?;
        }
        let records = self.root.join(name);
        match fs::remove_dir_all(&records) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", records.display()), error))
            }
            _ => Ok(freed),
        }
    }

    /// Removes what the migration put beside things the driver had before.
    fn remove_copies(&self, journal: &Journal) -> Result<()> {
        let store = self.open_store(self.open_driver(&journal.to)?)?;
        let driver = store.driver();
        for moved in &journal.containers {
            ignore_missing(driver.remove(SnapshotRef::Active(&active_id(&moved.id)?)))?;
        }
        let new = |id: &LayerId| !journal.had_layers.contains(&Digest::from(id));
        let mut left: BTreeSet<LayerId> = layers_of(driver.as_ref())?.into_iter().filter(new).collect();
        // Children before parents; what something that was there before stands on stays.
        loop {
            let before = left.len();
            let mut holdings = store.holdings();
            for id in left.clone() {
                if store.drop_layer(&mut holdings, &id)? {
                    left.remove(&id);
                }
            }
            drop(holdings);
            if left.len() == before {
                break;
            }
        }
        store.purge().map(drop)
    }
}

fn layers_of(driver: &dyn GraphDriver) -> Result<Vec<LayerId>> {
    let layer = |key| match key {
        SnapshotKey::Layer(id) => Some(id),
        SnapshotKey::Active(_) => None,
    };
    Ok(driver
        .list()?
        .into_iter()
        .filter_map(|info| layer(info.key))
        .collect())
}

fn ignore_missing(result: skiff_graphdrivers::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != DriverErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
