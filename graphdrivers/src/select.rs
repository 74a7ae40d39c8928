//! Which driver a daemon uses (requirements I5): what was asked for, else what was used before, else the first in
//! order of priority that works here, found by trying.
//!
//! ```text
//!  --storage-driver / DOCKER_DRIVER ─▶ that one, or an error
//!  <data root>/<driver>/ not empty  ─▶ that one, or an error; two of them are an error; vfs never counts
//!  otherwise                        ─▶ overlay2, btrfs (data root on btrfs), fuse-overlayfs, vfs
//! ```
//!
//! Each refusal is a sentence with its evidence, and the choice of a lesser driver repeats the refusals of the better.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::btrfs::Btrfs;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse_overlayfs::FuseOverlayfs;
use crate::overlay2::Overlay2;
use crate::snapshots::is_ours;
use crate::vfs::Vfs;
use crate::{GraphDriver, btrfs, fuse_overlayfs, overlay2, vfs};

mod options;

use options::StorageOptions;

/// A driver that was chosen.
#[derive(Debug)]
pub struct Selected {
    /// The driver.
    pub driver: Arc<dyn GraphDriver>,
    /// Why, for the log.
    pub reason: String,
}

impl Selected {
    /// Rows for `docker info`: the driver's own, and for the last resort why it had to be that.
    pub fn status(&self) -> Vec<(String, String)> {
        let mut rows = self.driver.status();
        if self.driver.name() == vfs::NAME {
            rows.push((String::from("Selected Because"), self.reason.clone()));
        }
        rows
    }
}

/// What a trial of a driver found, when it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The driver.
    pub driver: &'static str,
    /// One sentence: what works, on which file system and kernel.
    pub finding: String,
    /// What could be better, each with its remedy.
    pub notes: Vec<String>,
}

/// A driver that there is. A new one is a line in [`DRIVERS`].
struct Driver {
    name: &'static str,
    /// Tries it out in a data root and leaves nothing behind.
    probe: fn(&Path) -> Result<Evidence>,
    /// Tries it out, then opens or makes its directory.
    open: Open,
}

/// Opens a driver in its directory with its options.
type Open = fn(&Path, &[(&str, &str)]) -> Result<Arc<dyn GraphDriver>>;

/// In order of priority.
const DRIVERS: [Driver; 4] = [
    Driver {
        name: overlay2::NAME,
        probe: overlay2::probe,
        open: |root, options| Ok(Arc::new(Overlay2::open(root, options)?)),
    },
    Driver {
        name: btrfs::NAME,
        probe: btrfs::probe,
        open: |root, options| Ok(Arc::new(Btrfs::open(root, options)?)),
    },
    Driver {
        name: fuse_overlayfs::NAME,
        probe: fuse_overlayfs::probe,
        open: |root, options| Ok(Arc::new(FuseOverlayfs::open(root, options)?)),
    },
    Driver {
        name: vfs::NAME,
        probe: vfs::probe,
        open: |root, options| Ok(Arc::new(Vfs::open(root, options)?)),
    },
];

/// Names whose directories show that some engine has used this data root. vfs never counts, as with Docker.
const PRIOR: [&str; 4] = [overlay2::NAME, fuse_overlayfs::NAME, btrfs::NAME, NOT_HERE];

/// Drivers that Docker has removed.
const REMOVED: [&str; 3] = ["aufs", "devicemapper", "overlay"];

/// A driver of Docker's that this engine does not have.
const NOT_HERE: &str = "zfs";

/// The drivers there are, in order of priority.
pub fn drivers() -> impl Iterator<Item = &'static str> {
    DRIVERS.iter().map(|driver| driver.name)
}

/// Tries one driver out on the file system of `data_root`, which need not exist yet, and leaves nothing behind: for those
/// who want to know without using it.
///
/// # Errors
/// `InvalidArgument` for an unknown or removed driver; `Unsupported` with the evidence when it does not work here; `Io`.
pub fn probe(data_root: &Path, name: &str) -> Result<Evidence> {
    (find(name)?.probe)(data_root)
}

/// Chooses and opens a driver in `<data_root>/<driver>/`. `options` are the `--storage-opt` pairs.
///
/// Lines for the log are written here (`[graphdriver] trying configured driver: …`).
///
/// # Errors
/// `InvalidArgument` for an unknown or removed driver or an unknown option, and when two drivers have left state;
/// `Unsupported` with the evidence when the driver does not work here; `Io`.
pub fn select(data_root: &Path, requested: Option<&str>, options: &[(&str, &str)]) -> Result<Selected> {
    let options = StorageOptions::parse(options)?;
    if let Some(name) = requested.filter(|name| !name.is_empty()) {
        tracing::info!("[graphdriver] trying configured driver: {name}");
        let driver = find(name)?;
        let driver = (driver.open)(&data_root.join(name), &options.all_for(driver.name)?)?;
        let reason = format!("{name} was configured");
        return Ok(chosen(driver, reason));
    }
    match &prior_drivers(data_root)?[..] {
        [] => by_priority(data_root, &options),
        [name] => {
            let failed = |error: Error| {
                let kind = error.kind();
                Error::new(kind, format!("[graphdriver] prior storage driver {name} failed")).caused_by(error)
            };
            let driver = find(name).map_err(failed)?;
            let driver =
                (driver.open)(&data_root.join(name), &options.own_of(driver.name)).map_err(failed)?;
            let reason = format!("[graphdriver] using prior storage driver: {name}");
            tracing::info!("{reason}");
            options.warn_of_unused(name);
            Ok(chosen(driver, reason))
        }
        several => Err(Error::invalid(format!(
            "{} contains several valid graphdrivers: {}; cleanup or explicitly choose storage driver (-s <DRIVER>); \
             `skiffd storage migrate --to DRIVER` moves everything to one",
            data_root.display(),
            several.join(", ")
        ))),
    }
}

fn find(name: &str) -> Result<&'static Driver> {
    if REMOVED.contains(&name) {
        return Err(Error::invalid(format!(
            "[graphdriver] ERROR: the {name} storage-driver has been deprecated and removed; visit \
             https://docs.docker.com/go/storage-driver/ for more information"
        )));
    }
    DRIVERS.iter().find(|driver| driver.name == name).ok_or_else(|| {
        let known: Vec<&str> = drivers().collect();
        let known = known.join(", ");
        Error::invalid(if name == NOT_HERE {
            format!(
                "the {name} storage driver is not part of this engine; there are: {known}. What Docker keeps in it stays \
                 untouched: docker save there and docker load here, in a data root of its own, take the images along"
            )
        } else {
            format!("unknown storage driver {name:?}; there are: {known}")
        })
    })
}

fn by_priority(data_root: &Path, options: &StorageOptions<'_>) -> Result<Selected> {
    let mut refusals: Vec<String> = Vec::new();
    for candidate in &DRIVERS {
        let name = candidate.name;
        match (candidate.open)(&data_root.join(name), &options.own_of(name)) {
            Ok(driver) => {
                let reason = match refusals.is_empty() {
                    true => format!("{name} works here"),
                    false => format!("{name}, because others do not work here: {}", refusals.join("; ")),
                };
                tracing::info!("[graphdriver] using storage driver: {reason}");
                options.warn_of_unused(name);
                return Ok(chosen(driver, reason));
            }
            // vfs is no prior driver, but where it is the only one that has ever been used a full disk shall not end that.
            Err(error)
                if error.kind() == ErrorKind::Unsupported
                    || (error.kind() == ErrorKind::NoSpace
                        && is_ours(vfs::NAME, &data_root.join(vfs::NAME))) =>
            {
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

fn chosen(driver: Arc<dyn GraphDriver>, reason: String) -> Selected {
    if driver.name() == vfs::NAME {
        let rows: Vec<String> = driver
            .status()
            .into_iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        tracing::warn!(
            "[graphdriver] vfs makes each layer and each container a whole copy ({}); it was chosen because: {reason}",
            rows.join(", ")
        );
    }
    Selected { driver, reason }
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
