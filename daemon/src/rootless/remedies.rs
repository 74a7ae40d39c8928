//! Why the kernel refused a namespace, in the words of the error texts people search for, and what to do about it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::messages::Stage;

/// The settings that decide whether an ordinary user gets a user namespace. `None`: the kernel has no such setting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SystemSettings {
    /// `kernel.unprivileged_userns_clone` (Debian, Arch linux-hardened).
    pub(crate) userns_clone: Option<i64>,
    /// `user.max_user_namespaces`.
    pub(crate) max_user_namespaces: Option<i64>,
    /// `kernel.apparmor_restrict_unprivileged_userns` (Ubuntu 23.10 and later).
    pub(crate) apparmor_restricts: Option<i64>,
    /// The kernel was built with CONFIG_USER_NS.
    pub(crate) supported: bool,
    /// Our program, for the AppArmor profile.
    pub(crate) program: PathBuf,
}

impl SystemSettings {
    /// Reads them.
    pub(crate) fn read() -> Self {
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse().ok();
        Self {
            userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            supported: Path::new("/proc/self/ns/user").exists(),
            program: std::env::current_exe().unwrap_or_else(|_| "/usr/bin/skiffd".into()),
        }
    }
}

/// A refusal and its explanation.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// What was refused.
    pub(crate) stage: Stage,
    /// The error number.
    pub(crate) errno: Errno,
    /// The settings at that time.
    pub(crate) settings: SystemSettings,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = go_text(self.errno);
        match self.stage {
            // The text of RootlessKit, where making the namespace and starting the child are one step.
            Stage::UserNamespace => write!(
                f,
                "[rootlesskit:parent] error: failed to start the child: fork/exec /proc/self/exe: {text}"
            )?,
            stage => write!(f, "failed to {stage}: {text}")?,
        }
        for remedy in self.remedies() {
            write!(f, "\n{remedy}")?;
        }
        Ok(())
    }
}

impl Refusal {
    fn remedies(&self) -> Vec<String> {
        let settings = &self.settings;
        let mut remedies = Vec::new();
        if !settings.supported {
            remedies.push(
                "This kernel has no user namespaces: it was built without CONFIG_USER_NS. \
                 Rootless containers need a kernel that has them."
                    .to_owned(),
            );
        }
        if settings.userns_clone == Some(0) {
            remedies.push(sysctl("kernel.unprivileged_userns_clone", 0, 1));
        }
        if let Some(max) = settings.max_user_namespaces
            && (max == 0 || self.errno == Errno::NOSPC)
        {
            remedies.push(sysctl("user.max_user_namespaces", max, 28_633));
        }
        if settings.apparmor_restricts.is_some_and(|value| value != 0) && self.errno != Errno::NOSPC {
            remedies.push(apparmor_profile(&settings.program));
        }
        if remedies.is_empty() && matches!(self.errno, Errno::PERM | Errno::ACCESS) {
            remedies.push(
                "No setting of this system explains it. In a container, its seccomp profile or a missing \
                 /proc may be the cause; under chroot, user namespaces are never allowed."
                    .to_owned(),
            );
        }
        remedies
    }
}

fn sysctl(name: &str, now: i64, wanted: i64) -> String {
    let path = name.replace('.', "/");
    format!(
        "{name} is {now}. As root (by echo, not with an editor):\n    \
         echo {wanted} > /proc/sys/{path}\n    \
         echo {name}={wanted} >> /etc/sysctl.d/99-rootless.conf"
    )
}

/// What Ubuntu's documentation asks for; the file name is the path with dots for slashes.
fn apparmor_profile(program: &Path) -> String {
    let path = program.display().to_string();
    let file = path.trim_start_matches('/').replace('/', ".");
    format!(
        "kernel.apparmor_restrict_unprivileged_userns is on, and no AppArmor profile allows user namespaces to {path}.\n\
         As root:\n    \
         cat > /etc/apparmor.d/{file} <<'EOF'\n    \
         abi <abi/4.0>,\n    \
         include <tunables/global>\n    \
         \"{path}\" flags=(unconfined) {{\n      \
         userns,\n      \
         include if exists <local/{file}>\n    \
         }}\n    \
         EOF\n    \
         systemctl restart apparmor.service"
    )
}

/// An error as Go prints it, which is what people search for.
fn go_text(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(errno: Errno, settings: SystemSettings) -> String {
        Refusal {
            stage: Stage::UserNamespace,
            errno,
            settings,
        }
        .to_string()
    }

    fn settings() -> SystemSettings {
        SystemSettings {
            supported: true,
            program: "/home/u/bin/skiffd".into(),
            ..SystemSettings::default()
        }
    }

    #[test]
    fn the_texts_people_search_for() {
        let text = refusal(
            Errno::PERM,
            SystemSettings {
                userns_clone: Some(0),
                ..settings()
            },
        );
        assert!(text.starts_with(
            "[rootlesskit:parent] error: failed to start the child: fork/exec /proc/self/exe: operation not permitted\n"
        ));
        assert!(
            text.contains("echo 1 > /proc/sys/kernel/unprivileged_userns_clone"),
            "{text}"
        );

        let text = refusal(
            Errno::NOSPC,
            SystemSettings {
                max_user_namespaces: Some(3),
                ..settings()
            },
        );
        assert!(text.starts_with(
            "[rootlesskit:parent] error: failed to start the child: fork/exec /proc/self/exe: no space left on device\n"
        ));
        assert!(
            text.contains("echo 28633 > /proc/sys/user/max_user_namespaces"),
            "{text}"
        );
    }

    #[test]
    fn the_profile_names_this_program() {
        let settings = SystemSettings {
            apparmor_restricts: Some(1),
            max_user_namespaces: Some(9),
            ..settings()
        };
        let refusal = Refusal {
            stage: Stage::Namespaces,
            errno: Errno::ACCESS,
            settings,
        };
        let text = refusal.to_string();
        assert!(text.contains("/etc/apparmor.d/home.u.bin.skiffd"), "{text}");
        assert!(
            text.contains("\"/home/u/bin/skiffd\" flags=(unconfined) {"),
            "{text}"
        );
        assert!(!text.contains("max_user_namespaces"));
    }

    #[test]
    fn each_refusal_says_something_more_than_the_number() {
        assert!(
            refusal(
                Errno::INVAL,
                SystemSettings {
                    supported: false,
                    ..settings()
                }
            )
            .contains("CONFIG_USER_NS")
        );
        assert!(refusal(Errno::PERM, settings()).contains("chroot"));
    }
}
