//! Does FUSE work here? Tried with a real mount in the data root, because no version number says it: the answer depends
//! on the kernel, on who may open `/dev/fuse`, on the file system below, and on the program.

use std::path::Path;

use super::NAME;
use super::options::Options;
use crate::FuseMount;
use crate::backing::{self, kernel};
use crate::error::{Error, ErrorKind, Result};
use crate::exercise::Exercise;
use crate::mounter::{self, FuseServer};
use crate::select::Evidence;
use crate::trial::Trial;

/// How it works.
#[derive(Debug)]
pub(super) struct Works {
    /// Whether the program has `volatile`.
    pub(super) volatile: bool,
    pub(super) backing: String,
}

impl Works {
    pub(super) fn evidence(&self) -> Evidence {
        Evidence {
            driver: NAME,
            finding: format!(
                "overlays in user space can be mounted, and changed as containers do, on {}, kernel {}",
                self.backing,
                kernel()
            ),
            notes: Vec::new(),
        }
    }
}

pub(super) fn probe(data_root: &Path, options: &Options) -> Result<Works> {
    let trial = Trial::begin(data_root, NAME)?;
    let place = trial.path();
    let exercise = Exercise::lay_out(NAME, place)?;
    let merged = exercise.mount_point();
    let mut fuse = FuseMount {
        lower: exercise.lower(),
        upper: Some(exercise.upper()),
        program: options.program.clone(),
        options: options.mount_options.clone(),
    };
    let wishes = fuse.options.clone();
    if !wishes.iter().any(|option| option == "volatile") {
        fuse.options.push("volatile".to_owned());
    }
    // A trial is no container: it is served by this very process, and is over before the daemon begins.
    let server = FuseServer::ThisProcess;
    let mut volatile = true;
    if let Err(error) = mounter::mount_fuse(&server, &fuse, &merged) {
        // Programs of long ago do not have it.
        if fuse.program.is_none() || fuse.options == wishes {
            return Err(refusal(error));
        }
        volatile = false;
        fuse.options = wishes;
        mounter::mount_fuse(&server, &fuse, &merged).map_err(refusal)?;
    }
    exercise.run()?;
    mounter::detach(&merged)?;
    exercise.check_upper("user.overlay.opaque", Some(".wh..wh..opq"))?;
    Ok(Works {
        volatile,
        backing: backing::name(place),
    })
}

/// The sentence that says why not; the evidence is in the error already.
fn refusal(error: Error) -> Error {
    if error.kind() == ErrorKind::NoSpace {
        return error;
    }
    Error::new(
        ErrorKind::Unsupported,
        format!("fuse-overlayfs: {error}, kernel {}", kernel()),
    )
}
