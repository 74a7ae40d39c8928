//! Does overlayfs work here? Tried with a real mount in the data root, because no version number says it: the answer
//! depends on the kernel, its patches, the file system below, and the security modules.

use std::fs;
use std::path::Path;

use super::NAME;
use crate::OverlayMount;
use crate::backing::{self, kernel, version};
use crate::error::{Error, ErrorKind, Result};
use crate::exercise::Exercise;
use crate::mounter::{self, MountFailure};
use crate::select::Evidence;
use crate::trial::Trial;

/// How it works.
#[derive(Debug)]
pub(super) struct Works {
    pub(super) userxattr: bool,
    pub(super) options: Vec<String>,
    pub(super) volatile: bool,
    pub(super) backing: String,
}

impl Works {
    pub(super) fn evidence(&self) -> Evidence {
        let place = if self.userxattr {
            " in a user namespace"
        } else {
            ""
        };
        let notes = if self.volatile {
            Vec::new()
        } else {
            vec![String::from(
                "each end of a container writes the whole file system to the disk, because this kernel cannot mount an \
                 overlay volatile; Linux 5.10 can",
            )]
        };
        Evidence {
            driver: NAME,
            finding: format!(
                "overlays can be mounted{place}, and changed as containers do, on {}, kernel {}",
                self.backing,
                kernel()
            ),
            notes,
        }
    }
}

/// Tries it out. `extra` are the options that writable mounts shall have besides.
pub(super) fn probe(data_root: &Path, extra: &[String]) -> Result<Works> {
    let userxattr = skiff_sys::fsio::in_user_namespace();
    if let Some(text) = refused_by_version(userxattr, selinux(), &kernel()) {
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let trial = Trial::begin(data_root, NAME)?;
    attempt(trial.path(), userxattr, extra)
}

/// What to go on with where a full disk leaves no room for a trial.
pub(super) fn untried(data_root: &Path) -> Works {
    let userxattr = skiff_sys::fsio::in_user_namespace();
    Works {
        userxattr,
        options: fixed_options(userxattr),
        volatile: false,
        backing: backing::name(data_root),
    }
}

/// What a trial would not show: such a kernel mounts, and files cannot be changed later.
fn refused_by_version(userxattr: bool, selinux: bool, kernel: &str) -> Option<String> {
    (userxattr && selinux && version(kernel)? < (5, 13)).then(|| {
        format!("overlay2: overlay is not supported for Rootless with SELinux, kernel {kernel}; needs 5.13")
    })
}

/// Whether SELinux is on. Its file system may not be mounted here; a process has a label with three colons all the same.
fn selinux() -> bool {
    let label = fs::read_to_string("/proc/thread-self/attr/current").unwrap_or_default();
    Path::new("/sys/fs/selinux/enforce").exists() || label.matches(':').count() >= 3
}

fn attempt(place: &Path, userxattr: bool, extra: &[String]) -> Result<Works> {
    let options = fixed_options(userxattr);
    let exercise = Exercise::lay_out(NAME, place)?;
    let mut overlay = OverlayMount {
        lower: exercise.lower(),
        upper: Some(exercise.upper()),
        userxattr,
        options: [&options[..], &["volatile".to_owned()]].concat(),
    };
    let backing = backing::name(place);
    let merged = exercise.mount_point();
    // Not only to know whether it works: unmounting without it would sync the whole file system below.
    let volatile = mounter::mount_overlay(&overlay, &merged).is_ok();
    if !volatile {
        overlay.options.clone_from(&options);
        mounter::mount_overlay(&overlay, &merged)
            .map_err(|failure| refusal(&failure, userxattr, &backing, &Surroundings::here()))?;
    }
    exercise.run()?;
    mounter::detach(&merged)?;
    let attribute = if userxattr {
        "user.overlay.opaque"
    } else {
        "trusted.overlay.opaque"
    };
    exercise.check_upper(attribute, None)?;
    try_extra(&overlay, extra, &merged)?;
    Ok(Works {
        userxattr,
        options,
        volatile,
        backing,
    })
}

/// Better an error now than at the start of each container.
fn try_extra(overlay: &OverlayMount, extra: &[String], merged: &Path) -> Result<()> {
    if extra.is_empty() {
        return Ok(());
    }
    let mut overlay = overlay.clone();
    overlay
        .options
        .extend(extra.iter().filter(|option| *option != "volatile").cloned());
    mounter::mount_overlay(&overlay, merged).map_err(|failure| {
        let log = if failure.log.is_empty() {
            String::new()
        } else {
            format!(" ({})", failure.log)
        };
        Error::invalid(format!(
            "overlay2.mountopt={}: {} {}{log}, kernel {}",
            extra.join(","),
            failure.call,
            failure.symbol(),
            kernel()
        ))
    })?;
    mounter::detach(merged)
}

/// Options that keep an upper directory a whole difference, as far as this kernel knows them.
fn fixed_options(userxattr: bool) -> Vec<String> {
    let mut options = Vec::new();
    let known = |name: &str| Path::new("/sys/module/overlay/parameters").join(name).exists();
    if known("index") {
        options.push("index=off".to_owned());
    }
    // With userxattr the kernel allows nothing else.
    if !userxattr {
        for name in ["redirect_dir", "metacopy"] {
            if known(name) {
                options.push(format!("{name}=off"));
            }
        }
    }
    options
}

/// What a refusal may come from, other than the file system below.
struct Surroundings {
    kernel: String,
    selinux: bool,
    /// What `kernel.apparmor_restrict_unprivileged_userns` says, where there is one.
    apparmor: Option<String>,
}

impl Surroundings {
    fn here() -> Self {
        let setting = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
        Self {
            kernel: kernel(),
            selinux: selinux(),
            apparmor: fs::read_to_string(setting)
                .ok()
                .map(|text| text.trim().to_owned()),
        }
    }

    /// Linux 5.11 was the first to let user namespaces mount overlays.
    fn is_too_old(&self) -> bool {
        version(&self.kernel).is_some_and(|version| version < (5, 11))
    }

    /// Who may have forbidden what this kernel can do.
    fn suspects(&self) -> String {
        let mut text = String::from(
            "this kernel allows it to a process with CAP_SYS_ADMIN in its user namespace, so that a security module or a \
             seccomp filter may be what forbids it",
        );
        if let Some(value) = &self.apparmor {
            text.push_str(&format!(
                " (AppArmor: kernel.apparmor_restrict_unprivileged_userns is {value})"
            ));
        }
        if self.selinux {
            text.push_str(" (SELinux is on: `ausearch -m avc` shows what it denied)");
        }
        text
    }
}

/// The sentence that says why not, with the evidence and the remedy.
fn refusal(failure: &MountFailure, userxattr: bool, backing: &str, here: &Surroundings) -> Error {
    use rustix::io::Errno;
    let kernel = &here.kernel;
    let place = if userxattr { " in a user namespace" } else { "" };
    let remedy = match failure.errno {
        // Says nothing about the driver.
        errno @ (Errno::NOSPC | Errno::DQUOT) => return Error::io("overlay2: trial mount", errno),
        Errno::PERM | Errno::ACCESS if userxattr && here.is_too_old() => "needs 5.11".to_owned(),
        Errno::PERM | Errno::ACCESS if userxattr => here.suspects(),
        Errno::PERM | Errno::ACCESS => "needs CAP_SYS_ADMIN".to_owned(),
        Errno::NODEV => "the kernel has no overlay file system (try `modprobe overlay` as root)".to_owned(),
        Errno::INVAL
            if matches!(
                backing,
                "overlayfs" | "nfs" | "fuse" | "ecryptfs" | "zfs" | "aufs"
            ) =>
        {
            format!("overlayfs cannot write to {backing}; choose a data root on ext4, XFS, btrfs or tmpfs")
        }
        Errno::INVAL if userxattr && here.is_too_old() => "userxattr needs 5.11".to_owned(),
        _ => format!("backing file system {backing}"),
    };
    let log = if failure.log.is_empty() {
        String::new()
    } else {
        format!(" ({})", failure.log)
    };
    let text = format!(
        "overlay2: {} {}{log}{place}, kernel {kernel}; {remedy}",
        failure.call,
        failure.symbol()
    );
    Error::new(ErrorKind::Unsupported, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn selinux_needs_a_newer_kernel_only_without_root() {
        let text = refused_by_version(true, true, "5.11.0-27-generic").unwrap();
        assert_eq!(
            text,
            "overlay2: overlay is not supported for Rootless with SELinux, kernel 5.11.0-27-generic; needs 5.13"
        );
        assert!(refused_by_version(true, true, "4.18.0-553.el8_10").is_some());
        for (userxattr, selinux, kernel) in [
            (true, true, "5.13.0"),
            (true, true, "6.1"),
            (true, false, "5.11.0"),
            (false, true, "5.11.0"),
            (true, true, "odd"),
        ] {
            assert_eq!(refused_by_version(userxattr, selinux, kernel), None);
        }
    }

    #[test]
    fn refusals_carry_evidence_and_remedy() {
        let say = |errno, log: &str, userxattr, backing, here: &Surroundings| {
            let failure = MountFailure {
                call: "mount(2)",
                errno,
                log: log.to_owned(),
            };
            refusal(&failure, userxattr, backing, here).to_string()
        };
        let on = |kernel: &str| Surroundings {
            kernel: kernel.to_owned(),
            selinux: false,
            apparmor: None,
        };
        for (errno, symbol, remedy) in [
            (Errno::PERM, "EPERM", "needs 5.11"),
            (Errno::ACCESS, "EACCES", "needs 5.11"),
            (Errno::INVAL, "EINVAL", "userxattr needs 5.11"),
        ] {
            assert_eq!(
                say(errno, "", true, "extfs", &on("5.10.0-30-amd64")),
                format!("overlay2: mount(2) {symbol} in a user namespace, kernel 5.10.0-30-amd64; {remedy}")
            );
        }
        // From then on the version is not what is missing.
        let ubuntu = Surroundings {
            apparmor: Some("1".to_owned()),
            ..on("6.8.0-45-generic")
        };
        let fedora = Surroundings {
            selinux: true,
            ..on("6.18.1")
        };
        for (here, part) in [
            (&on("5.11.0"), "a security module or a seccomp filter"),
            (
                &ubuntu,
                "(AppArmor: kernel.apparmor_restrict_unprivileged_userns is 1)",
            ),
            (&fedora, "(SELinux is on: "),
        ] {
            for errno in [Errno::PERM, Errno::ACCESS] {
                let text = say(errno, "", true, "extfs", here);
                assert!(text.contains(part) && !text.contains("needs 5.11"), "{text}");
            }
            let text = say(Errno::INVAL, "", true, "extfs", here);
            assert!(text.ends_with("; backing file system extfs"), "{text}");
        }
        let text = say(Errno::PERM, "", false, "extfs", &ubuntu);
        assert!(text.ends_with("; needs CAP_SYS_ADMIN"), "{text}");
        let text = say(Errno::INVAL, "upper fs", false, "nfs", &ubuntu);
        assert!(
            text.contains("EINVAL (upper fs), kernel") && text.contains("cannot write to nfs"),
            "{text}"
        );
        let failure = MountFailure {
            call: "mount(2)",
            errno: Errno::NOSPC,
            log: String::new(),
        };
        assert_eq!(
            refusal(&failure, true, "extfs", &ubuntu).kind(),
            ErrorKind::NoSpace
        );
    }
}
