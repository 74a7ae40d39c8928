//! Looking for damage: `skiffd storage verify`.
//!
//! ```text
//!   repositories.json ─▶ configurations, manifests there and whole? ─▶ their layers' blobs there?   (`documents`)
//!   blobs/            ─▶ hashed again, several at a time                                             (`documents`)
//!   layers            ─▶ inventory of the blob = inventory of the files?                             (`layers`)
//!   writable layers   ─▶ there, on layers that are there?                                            (`layers`)
//! ```
//!
//! The first two read only what never changes once it has its name, so they are safe beside a running daemon
//! ([`verify_blobs`]). The others open the storage driver and need the data root for themselves ([`Store::verify`]).
//! What is found is a [`Problem`] with its remedy; [`Store::repair`] does what can be done from the blobs that are good.

mod documents;
mod layers;
mod repair;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};

use serde::Serialize;
use skiff_graphdrivers::LayerId;

use crate::digest::Digest;

pub use documents::verify_blobs;

/// What was looked at and found.
#[derive(Debug, Default, Serialize)]
pub struct Verification {
    /// Blobs that were hashed.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Images whose documents were read.
    pub images: u64,
    /// Unpacked layers that were compared with their blobs.
    pub layers: u64,
    /// Files in them.
    pub files: u64,
    /// Containers whose writable layers were looked for.
    pub containers: u64,
    /// What is damaged.
    pub problems: Vec<Problem>,
    /// What is no damage and worth a word.
    pub notes: Vec<String>,
    /// Blobs known to be bad.
    #[serde(skip)]
    pub(crate) bad_blobs: HashSet<Digest>,
    /// Blobs that are whole.
    #[serde(skip)]
    pub(crate) good_blobs: HashSet<Digest>,
}

/// Something that is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What: `blob sha256:…`, `layer sha256:…`, `image …`, `container …`.
    pub subject: String,
    /// What is wrong with it.
    pub damage: String,
    /// Names (or ids) of the images that are affected.
    pub images: BTreeSet<String>,
    /// What helps.
    pub remedy: Remedy,
    /// It was repaired.
    pub repaired: bool,
    /// What the damage is in.
    #[serde(skip)]
    pub(crate) place: Place,
}

/// What helps against a problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "command")]
pub enum Remedy {
    /// `skiffd storage verify --repair`.
    Repair,
    /// `--repair` takes the damaged blob away, then any of these commands, with the daemon running, fetches it again.
    Pull(Vec<String>),
    /// This command, with the daemon running.
    Remove(String),
    /// Nothing that this program could do.
    None,
}

/// Where a problem is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A blob with wrong bytes.
    Blob(Digest),
    /// A layer whose files are not what they were. Each driver in use has layers of its own, under the same ids.
    Layer {
        /// Whose.
        driver: &'static str,
        /// Which.
        id: LayerId,
    },
    /// Anything else.
    Elsewhere,
}

/// What to look at.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions {
    /// Blobs hashed at the same time.
    pub threads: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            threads: threads.min(4),
        }
    }
}

impl Verification {
    /// Problems that are still there.
    pub fn unrepaired(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| !problem.repaired)
    }

    fn problem(&mut self, place: Place, subject: String, damage: impl Into<String>) -> &mut Problem {
        self.problems.push(Problem {
            subject,
            damage: damage.into(),
            images: BTreeSet::new(),
            remedy: Remedy::None,
            repaired: false,
            place,
        });
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }
}

impl Problem {
    fn of(&mut self, images: impl IntoIterator<Item = String>) -> &mut Self {
        self.images.extend(images);
        self
    }

    fn helped_by(&mut self, remedy: Remedy) {
        self.remedy = remedy;
    }
}

/// What brings back something that images with these names need. A tag may stand for another image by now, so only names
/// with a digest, which pulled images have, are worth a pull; what was committed or loaded here is in no registry.
fn pull(names: &BTreeSet<String>) -> Remedy {
    let pulled = names.iter().filter(|name| name.contains('@'));
    let commands: Vec<String> = pulled.map(|name| format!("docker pull {name}")).collect();
    if !commands.is_empty() {
        return Remedy::Pull(commands);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Remedy::Remove(format!("docker rmi {}", names.join(" ")))
}
