//! Which driver a daemon uses (requirements I5): what was asked for, else what was used before, else the first in
//! order of priority that works here, found by trying.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::overlay2::Overlay2;
use crate::vfs::Vfs;
use crate::{GraphDriver, overlay2, vfs};

/// A driver that was chosen.
#[derive(Debug)]
pub struct Selected {
    /// The driver.
    pub driver: Arc<dyn GraphDriver>,
    /// Why, for the log.
    pub reason: String,
}

type Open = fn(&Path, &[(&str, &str)]) -> Result<Arc<dyn GraphDriver>>;

/// The drivers there are, in order of priority. A new one is a line here.
const DRIVERS: [(&str, Open); 2] = [
    (overlay2::NAME, |root, options| {
        Ok(Arc::new(Overlay2::open(root, options)?))
    }),
    (vfs::NAME, |root, options| Ok(Arc::new(Vfs::open(root, options)?))),
];

/// Names whose directories show that some engine has used this data root. vfs never counts, as with Docker.
const PRIOR: [&str; 4] = [overlay2::NAME, "fuse-overlayfs", "btrfs", "zfs"];

/// Drivers that Docker has removed.
const REMOVED: [&str; 3] = ["aufs", "devicemapper", "overlay"];

/// Chooses and opens a driver in `<data_root>/<driver>/`. `options` are the `--storage-opt` pairs.
///
/// Lines for the log are written here (`[graphdriver] trying configured driver: …`).
///
/// # Errors
/// `InvalidArgument` for an unknown or removed driver or an unknown option, and when two drivers have left state;
/// `Unsupported` with the evidence when the driver does not work here; `Io`.
pub fn select(data_root: &Path, requested: Option<&str>, options: &[(&str, &str)]) -> Result<Selected> {
    if let Some(name) = requested.filter(|name| !name.is_empty()) {
        tracing::info!("[graphdriver] trying configured driver: {name}");
        let driver = open(data_root, name, options)?;
        return Ok(Selected {
            driver,
            reason: format!("{name} was configured"),
        });
    }
    match &prior_drivers(data_root)?[..] {
        [] => by_priority(data_root, options),
        [name] => {
            let driver = open(data_root, name, options).map_err(|error| {
                let kind = error.kind();
                Error::new(kind, format!("[graphdriver] prior storage driver {name} failed")).caused_by(error)
            })?;
            let reason = format!("[graphdriver] using prior storage driver: {name}");
            tracing::info!("{reason}");
            Ok(Selected { driver, reason })
        }
        several => Err(Error::invalid(format!(
            "{} contains several valid graphdrivers: {}; cleanup or explicitly choose storage driver (-s <DRIVER>)",
            data_root.display(),
            several.join(", ")
        ))),
    }
}

fn open(data_root: &Path, name: &str, options: &[(&str, &str)]) -> Result<Arc<dyn GraphDriver>> {
    if REMOVED.contains(&name) {
        return Err(Error::invalid(format!(
            "[graphdriver] ERROR: the {name} storage-driver has been deprecated and removed; visit \
             https://docs.docker.com/go/storage-driver/ for more information"
        )));
    }
    match DRIVERS.iter().find(|(known, _)| *known == name) {
        Some((_, open)) => open(&data_root.join(name), options),
        None => {
            let known: Vec<&str> = DRIVERS.iter().map(|(name, _)| *name).collect();
            Err(Error::invalid(format!(
                "unknown storage driver {name:?}; there are: {}",
                known.join(", ")
            )))
        }
    }
}

fn by_priority(data_root: &Path, options: &[(&str, &str)]) -> Result<Selected> {
    let mut refusals: Vec<String> = Vec::new();
    for (name, _) in DRIVERS {
        // An option for one driver must not keep another from being tried, so vfs, the last resort, gets none.
        let options = if name == vfs::NAME { &[] } else { options };
        match open(data_root, name, options) {
            Ok(driver) => {
                let reason = match refusals.is_empty() {
                    true => format!("{name} works here"),
                    false => format!("{name}, because others do not work here: {}", refusals.join("; ")),
                };
                tracing::info!("[graphdriver] using storage driver {reason}");
                return Ok(Selected { driver, reason });
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                tracing::info!("[graphdriver] {error}");
                refusals.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("no supported storage driver found: {}", refusals.join("; ")),
    ))
}

/// Drivers whose directory is there and not empty.
fn prior_drivers(data_root: &Path) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for name in PRIOR {
        let path = data_root.join(name);
        match fs::read_dir(&path).map(|mut entries| entries.next().is_some()) {
            Ok(true) => found.push(name),
            Ok(false) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(Error::io(format!("read directory {}", path.display()), error)),
        }
    }
    Ok(found)
}
