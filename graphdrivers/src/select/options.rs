//! Which `--storage-opt` is whose: the part before the dot names the driver.
//!
//! With a configured driver an option of another one is an error, as with Docker. A driver that was chosen by itself gets
//! its own options only, and the others are named in a warning: one configuration file may serve machines on which
//! different drivers work.

use super::drivers;
use crate::error::{Error, Result};

/// Options that are not a driver's: they are settled before a driver is chosen.
const OF_THE_ENGINE: [&str; 1] = ["oversized-ids"];

/// Prefixes of Docker's other drivers. Their options are told from misspelt ones.
const OF_OTHERS: [(&str, &str); 3] = [("dm", "devicemapper"), ("zfs", "zfs"), ("aufs", "aufs")];

/// All options, with whom they are for.
#[derive(Debug)]
pub(super) struct StorageOptions<'a> {
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> StorageOptions<'a> {
    /// Checks the first part of each name.
    ///
    /// # Errors
    /// `InvalidArgument` for a prefix that is no driver's, with what was probably meant.
    pub(super) fn parse(pairs: &[(&'a str, &'a str)]) -> Result<Self> {
        let mut kept = Vec::new();
        for (key, value) in pairs {
            if OF_THE_ENGINE.contains(&key.to_ascii_lowercase().as_str()) {
                continue;
            }
            if let Some(prefix) = prefix(key)
                && !drivers().any(|name| name == prefix)
                && !OF_OTHERS.iter().any(|(other, _)| *other == prefix)
            {
                return Err(Error::invalid(unknown(key, &prefix)));
            }
            kept.push((*key, *value));
        }
        Ok(Self { pairs: kept })
    }

    /// For a configured driver.
    ///
    /// # Errors
    /// `InvalidArgument` for an option of another driver.
    pub(super) fn all_for(&self, driver: &str) -> Result<Vec<(&'a str, &'a str)>> {
        match self.pairs.iter().find(|(key, _)| !is_for(key, driver)) {
            None => Ok(self.pairs.clone()),
            Some((key, _)) => Err(Error::invalid(format!(
                "{driver}: unknown option {key} (it is for the storage driver {})",
                owner(key)
            ))),
        }
    }

    /// For a driver that nobody asked for.
    pub(super) fn own_of(&self, driver: &str) -> Vec<(&'a str, &'a str)> {
        self.pairs
            .iter()
            .filter(|(key, _)| is_for(key, driver))
            .copied()
            .collect()
    }

    /// Names what the chosen driver was not given.
    pub(super) fn warn_of_unused(&self, driver: &str) {
        for (key, _) in self.pairs.iter().filter(|(key, _)| !is_for(key, driver)) {
            tracing::warn!(
                "storage-opt {key} has no effect: it is for the storage driver {}, and {driver} is used",
                owner(key)
            );
        }
    }
}

fn prefix(key: &str) -> Option<String> {
    key.split_once('.').map(|(prefix, _)| prefix.to_ascii_lowercase())
}

/// What has no prefix is every driver's to judge.
fn is_for(key: &str, driver: &str) -> bool {
    prefix(key).is_none_or(|prefix| prefix == driver)
}

fn owner(key: &str) -> String {
    let prefix = prefix(key).unwrap_or_default();
    OF_OTHERS
        .iter()
        .find(|(other, _)| *other == prefix)
        .map_or(prefix, |(_, name)| (*name).to_owned())
}

fn unknown(key: &str, prefix: &str) -> String {
    let known: Vec<&str> = drivers().collect();
    let rest = key.split_once('.').map_or("", |(_, rest)| rest);
    // One name beginning with the other, or sharing most of its letters, is a slip.
    let similar = known
        .iter()
        .map(|name| (common_letters(name, prefix), name))
        .filter(|(common, name)| 2 * common >= name.len().max(prefix.len()))
        .max_by_key(|(common, _)| *common);
    match similar {
        Some((_, name)) => {
            format!(
                "unknown storage option {key}: no storage driver is called {prefix}; did you mean {name}.{rest}?"
            )
        }
        None => format!(
            "unknown storage option {key}: no storage driver is called {prefix}; there are: {}",
            known.join(", ")
        ),
    }
}

/// Length of the common beginning and the common end together.
fn common_letters(a: &str, b: &str) -> usize {
    let start = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let end = a
        .bytes()
        .rev()
        .zip(b.bytes().rev())
        .take_while(|(a, b)| a == b)
        .count();
    start + end.min(a.len().min(b.len()) - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<'a>(pairs: &[(&'a str, &'a str)]) -> StorageOptions<'a> {
        StorageOptions::parse(pairs).unwrap()
    }

    #[test]
    fn a_configured_driver_gets_its_own_options_and_refuses_others() {
        let options = parse(&[
            ("overlay2.mountopt", "x"),
            ("size", "1"),
            ("oversized-ids", "squash"),
        ]);
        let own = [("overlay2.mountopt", "x"), ("size", "1")];
        assert_eq!(options.all_for("overlay2").unwrap(), own);
        for (key, text) in [
            ("btrfs.min_space", "overlay2: unknown option btrfs.min_space"),
            ("dm.basesize", "for the storage driver devicemapper"),
            ("ZFS.fsname", "for the storage driver zfs"),
        ] {
            let error = parse(&[(key, "1")]).all_for("overlay2").unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_driver_chosen_by_itself_gets_its_own_options_only() {
        let options = parse(&[
            ("btrfs.min_space", "1"),
            ("Overlay2.mountopt", "x"),
            ("size", "1"),
        ]);
        assert_eq!(
            options.own_of("overlay2"),
            [("Overlay2.mountopt", "x"), ("size", "1")]
        );
        assert_eq!(options.own_of("vfs"), [("size", "1")]);
    }

    #[test]
    fn misspelt_prefixes_are_named_with_what_was_meant() {
        for (key, text) in [
            ("overlay3.mountopt", "did you mean overlay2.mountopt?"),
            ("overley2.mountopt", "did you mean overlay2.mountopt?"),
            ("overlay.mountopt", "did you mean overlay2.mountopt?"),
            ("btrf.min_space", "did you mean btrfs.min_space?"),
            ("something.else", "there are: overlay2, btrfs"),
        ] {
            let error = StorageOptions::parse(&[(key, "1")]).unwrap_err().to_string();
            assert!(
                error.contains(text) && error.contains(key),
                "{error} lacks {text}"
            );
        }
    }
}
