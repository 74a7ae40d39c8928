//! Identifiers: random ones for endpoints and links, persistent ones for the predefined networks.
//!
//! ```text
//! <state_dir>/networks.json   {"version":1,"bridge":"<64 hex>","host":"<64 hex>","none":"<64 hex>"}
//! ```
//!
//! The file is written once, by rename; a file that cannot be understood is an error rather than new ids, because
//! containers remember the old ones.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use skiff_core::{Error, Result};

/// The ids of the predefined networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkIds {
    version: u32,
    pub(crate) bridge: String,
    pub(crate) host: String,
    pub(crate) none: String,
}

impl NetworkIds {
    /// Reads the ids from `state_dir`, or makes and stores them.
    pub(crate) fn load_or_create(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join("networks.json");
        let failed = |what: &str, error: io::Error| {
            Error::system(format!("cannot {what} {}", path.display())).caused_by(error)
        };
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Self>(&bytes)
                .ok()
                .filter(Self::is_valid)
                .ok_or_else(|| Error::system(format!("{} is damaged or of another version", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let ids = Self::random().map_err(|error| failed("make ids for", error))?;
                ids.store(state_dir, &path)
                    .map_err(|error| failed("write", error))?;
                Ok(ids)
            }
            Err(error) => Err(failed("read", error)),
        }
    }

    fn random() -> io::Result<Self> {
        Ok(Self {
            version: 1,
            bridge: random_hex(64)?,
            host: random_hex(64)?,
            none: random_hex(64)?,
        })
    }

    fn is_valid(&self) -> bool {
        let id = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.version == 1
            && [&self.bridge, &self.host, &self.none]
                .into_iter()
                .all(|text| id(text))
    }

    fn store(&self, state_dir: &Path, path: &Path) -> io::Result<()> {
        fs::create_dir_all(state_dir)?;
        let staged = state_dir.join("networks.json.tmp");
        let mut file = File::create(&staged)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&staged, path)?;
        File::open(state_dir)?.sync_all()
    }
}

/// `length` random hexadecimal digits.
pub(crate) fn random_hex(length: usize) -> io::Result<String> {
    let mut bytes = vec![0; length.div_ceil(2)];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut text = bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    text.truncate(length);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("network");
        let first = NetworkIds::load_or_create(&state).unwrap();
        assert!(first.is_valid());
        assert_ne!(first.bridge, first.host);
        assert_eq!(NetworkIds::load_or_create(&state).unwrap(), first);
        assert!(!state.join("networks.json.tmp").exists());
    }

    #[test]
    fn a_damaged_file_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("networks.json");
        for text in ["", "{", r#"{"version":1,"bridge":"../x","host":"","none":""}"#] {
            fs::write(&path, text).unwrap();
            let error = NetworkIds::load_or_create(directory.path()).unwrap_err();
            assert!(error.to_string().contains("damaged"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn random_digits_have_the_asked_length() {
        assert_eq!(random_hex(7).unwrap().len(), 7);
        assert_ne!(random_hex(64).unwrap(), random_hex(64).unwrap());
    }
}
