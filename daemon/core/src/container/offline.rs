//! Containers' records while no daemon runs: for commands that work on the data root (`skiffd storage …`).

use std::io::ErrorKind as IoKind;
use std::path::PathBuf;

use skiff_store::migrate::{ContainerRecord, ContainerRecords};
use skiff_store::{Error, Result};

use super::disk::Disk;

/// The records below a directory. Nothing is made, removed or repaired by reading them.
#[derive(Debug, Clone)]
pub struct OfflineRecords {
    disk: Disk,
}

impl OfflineRecords {
    /// The records in `directory` (`<data-root>/containers`), which need not exist.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            disk: Disk::at(directory),
        }
    }
}

impl ContainerRecords for OfflineRecords {
    /// # Errors
    /// Also when a single record cannot be read: whoever acted on the others could take its data for nobody's.
    fn list(&self) -> Result<Vec<ContainerRecord>> {
        let mut found = Vec::new();
        let ids = match self.disk.ids() {
            // There never was a daemon.
            Err(error) if error.kind() == IoKind::NotFound => Vec::new(),
            other => other.map_err(|e| Error::io("list the containers", e))?,
        };
        for id in ids {
            let record = self.disk.read_record(&id);
            let record = record.map_err(|e| Error::corrupt(format!("record of container {id}: {e}")))?;
            found.extend(record.map(|record| ContainerRecord {
                id: record.id,
                name: record.name,
                driver: record.driver,
            }));
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    fn set_driver(&self, id: &str, driver: &str) -> Result<()> {
        let failed = |e: crate::Error| Error::corrupt(format!("record of container {id}: {e}"));
        let record = self.disk.read_record(id).map_err(failed)?;
        let mut record = record.ok_or_else(|| Error::not_found(format!("container {id} does not exist")))?;
        if record.driver == driver {
            return Ok(());
        }
        driver.clone_into(&mut record.driver);
        self.disk.write_record(&record).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_and_nothing_unreadable_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("containers");
        let records = OfflineRecords::new(directory.clone());
        assert_eq!(records.list().unwrap(), []);
        assert!(!directory.exists());
        // Half made, as a killed `docker create` leaves it.
        std::fs::create_dir_all(directory.join("a".repeat(64))).unwrap();
        assert_eq!(records.list().unwrap(), []);
        assert!(records.set_driver(&"a".repeat(64), "vfs").is_err());
        let damaged = directory.join("b".repeat(64));
        std::fs::create_dir(&damaged).unwrap();
        std::fs::write(damaged.join("config.json"), "{").unwrap();
        let text = records.list().unwrap_err().to_string();
        assert!(text.contains(&"b".repeat(64)), "{text}");
    }
}
