//! What must be right before anything is started as an ordinary user, each failure with its remedy.

use std::path::Path;

use rustix::fs::{Access, FileType, access, stat};

use crate::environment::Environment;
use crate::paths::RUNTIME_DIR_ADVICE;

/// Checks `HOME` and `XDG_RUNTIME_DIR`.
///
/// # Errors
/// The text for the user.
pub(crate) fn check(environment: &Environment) -> Result<(), String> {
    if !environment.home.as_deref().is_some_and(is_directory) {
        return Err("could not get HOME: $HOME needs to be set and exist".to_owned());
    }
    let runtime_dir = environment.xdg_runtime_dir.as_deref().unwrap_or(Path::new(""));
    check_runtime_dir(runtime_dir)
        .map_err(|problem| format!("could not get XDG_RUNTIME_DIR: {problem}\n{RUNTIME_DIR_ADVICE}"))
}

fn is_directory(path: &Path) -> bool {
    stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}

fn check_runtime_dir(dir: &Path) -> Result<(), String> {
    let shown = dir.display();
    let stat = stat(dir).map_err(|error| format!("{shown}: {error}"))?;
    if !FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Err(format!("{shown} is not a directory"));
    }
    // Whoever owns the directory can replace the socket and what is said over it.
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(format!("{shown} belongs to user {}, not to you", stat.st_uid));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(format!(
            "{shown} is writable for others (mode {:o}); chmod 700 {shown}",
            stat.st_mode & 0o7777
        ));
    }
    access(dir, Access::WRITE_OK | Access::EXEC_OK).map_err(|_| format!("{shown} is not writable"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_runtime_directory_must_be_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut environment = Environment {
            home: Some(dir.path().to_owned()),
            xdg_runtime_dir: Some(dir.path().to_owned()),
            ..Environment::default()
        };
        check(&environment).unwrap();

        set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let text = check(&environment).unwrap_err();
        assert!(
            text.contains("writable for others") && text.contains("~/.docker/run"),
            "{text}"
        );

        environment.xdg_runtime_dir = Some(dir.path().join("missing"));
        assert!(
            check(&environment)
                .unwrap_err()
                .starts_with("could not get XDG_RUNTIME_DIR: ")
        );
        environment.home = Some(dir.path().join("missing"));
        assert!(check(&environment).unwrap_err().contains("HOME"));
    }
}
