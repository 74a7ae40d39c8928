//! What is written down about the keeper: `<exec_root>/keeper` for the next start, and `docker.pid` for people.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use skiff_sys::identity::ProcessIdentity;

/// File in the exec root with the keeper's identity.
const NAME: &str = "keeper";

/// The two files.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    identity_file: PathBuf,
    pidfile: PathBuf,
}

impl Record {
    /// The files of this configuration.
    pub(crate) fn new(exec_root: &Path, pidfile: &Path) -> Self {
        Self {
            identity_file: exec_root.join(NAME),
            pidfile: pidfile.to_owned(),
        }
    }

    /// The keeper of the last run, dead or alive; `None` without a record, also a damaged one.
    pub(crate) fn read(&self) -> Option<ProcessIdentity> {
        fs::read_to_string(&self.identity_file).ok()?.parse().ok()
    }

    /// Records a keeper. # Errors: the disk's.
    pub(crate) fn write(&self, keeper: &ProcessIdentity) -> io::Result<()> {
        replace(&self.identity_file, &format!("{keeper}\n"))?;
        // dockerd writes the bare number, and some scripts compare the whole file.
        replace(&self.pidfile, &keeper.pid.to_string())
    }

    /// Forgets it.
    pub(crate) fn remove(&self) {
        for path in [&self.pidfile, &self.identity_file] {
            // A file that cannot be removed is found stale by the next start.
            let _ = fs::remove_file(path);
        }
    }
}

/// Replaces a file at once. No fsync: what it says is void after a crash of the machine.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let result = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::new(dir.path(), &dir.path().join("docker.pid"));
        assert_eq!(record.read(), None);
        let me = ProcessIdentity::current().unwrap();
        record.write(&me).unwrap();
        assert_eq!(record.read(), Some(me.clone()));
        assert_eq!(
            fs::read_to_string(dir.path().join("docker.pid")).unwrap(),
            me.pid.to_string()
        );
        record.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_record_is_no_record() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), "4711").unwrap();
        assert_eq!(Record::new(dir.path(), &dir.path().join("p")).read(), None);
    }
}
