//! Does FUSE work here? Tried with a real mount in the data root, because no version number says it: the answer depends
//! on the kernel, on who may open `/dev/fuse`, on the file system below, and on the program.

use std::path::Path;

use super::NAME;
use super::options::Options;
use crate::FuseMount;
use crate::backing::{self, kernel, version};
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
    exercise
        .run()
        .map_err(|error| explain(error, skiff_sys::fsio::in_user_namespace(), &kernel()))?;
    mounter::detach(&merged)?;
    exercise.check_upper("user.overlay.opaque", Some(".wh..wh..opq"))?;
    Ok(Works {
        volatile,
        backing: backing::name(place),
    })
}

/// What to go on with where a full disk leaves no room for a trial.
pub(super) fn untried(data_root: &Path, options: &Options) -> Works {
    Works {
        // Our own program has it; others may be too old.
        volatile: options.program.is_none(),
        backing: backing::name(data_root),
    }
}

/// Mounting works since Linux 4.18, but a deletion is a device 0:0, which users may make since 5.8.
fn explain(error: Error, in_user_namespace: bool, kernel: &str) -> Error {
    let old = version(kernel).is_some_and(|version| version < (5, 8));
    if error.kind() != ErrorKind::Unsupported || !in_user_namespace || !old {
        return error;
    }
    let text = "fuse-overlayfs: a deletion is recorded by a character device 0:0, which a user namespace may make since Linux \
                5.8 (another fuse-overlayfs.mount_program may do without)";
    Error::new(ErrorKind::Unsupported, text).caused_by(error)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_whiteouts_for_users_is_named() {
        let refused = || Error::new(ErrorKind::Unsupported, "fuse-overlayfs: cannot delete");
        let text = explain(refused(), true, "5.4.0-150-generic").to_string();
        assert!(
            text.contains("since Linux 5.8") && text.ends_with("cannot delete"),
            "{text}"
        );
        for (in_user_namespace, kernel) in [
            (false, "4.19.0"),
            (true, "5.8.0"),
            (true, "6.18.1"),
            (true, "odd"),
        ] {
            let text = explain(refused(), in_user_namespace, kernel).to_string();
            assert_eq!(text, refused().to_string(), "{kernel}");
        }
        let full = Error::new(ErrorKind::NoSpace, "full");
        assert_eq!(explain(full, true, "5.4.0").kind(), ErrorKind::NoSpace);
    }
}
