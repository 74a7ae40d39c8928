//! External OCI runtimes: `runc`, `crun` and whatever else has their command line.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use skiff_core::runtime::LaunchSpec;

use super::creator::{create_failure, launch_failure};
use super::streams::ContainerEnds;
use crate::paths;
use crate::protocol::Failure;

const LOG: &str = "runtime.log";
const PID: &str = "runtime.pid";

/// Runs `create`. The container's process ends up as a child of the shim, which is a subreaper.
pub(super) fn create(
    folder: &Path,
    launch: &LaunchSpec,
    program: &Path,
    ends: Option<ContainerEnds>,
    rootless: bool,
) -> Result<u32, Failure> {
    let name = program
        .file_name()
        .unwrap_or(program.as_os_str())
        .to_string_lossy()
        .into_owned();
    let mut command = base(folder, program);
    if rootless && name == "crun" {
        // Nothing is delegated to us; crun insists on a control group unless told not to.
        command.arg("--cgroup-manager=disabled");
    }
    command
        .arg("create")
        .arg("--bundle")
        .arg(folder.join(paths::BUNDLE))
        .arg("--pid-file")
        .arg(folder.join(PID));
    if launch.process.tty {
        command.arg("--console-socket").arg(console_path(folder));
    }
    command
        .arg(&launch.id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(ends) = ends {
        command.stdout(ends.stdout).stderr(ends.stderr);
        if let Some(stdin) = ends.stdin {
            command.stdin(stdin);
        }
    }
    let status = command
        .status()
        .map_err(|error| create_failure(&name, &format!("{}: {error}", program.display())))?;
    drop(command);
    if !status.success() {
        let text = last_error(folder).unwrap_or_else(|| format!("{status}"));
        return Err(classify(&name, &launch.process.args[0], &text));
    }
    let pid = std::fs::read_to_string(folder.join(PID))
        .ok()
        .and_then(|text| text.trim().parse().ok());
    pid.ok_or_else(|| create_failure(&name, "it wrote no pid file"))
}

/// Runs `start`.
pub(super) fn start(folder: &Path, launch_args: &[String], id: &str, program: &Path) -> Result<(), Failure> {
    simple(folder, program, &["start", id]).map_err(|text| {
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        classify(&name, launch_args.first().map_or("", String::as_str), &text)
    })
}

/// Runs `delete --force`.
pub(super) fn delete(folder: &Path, id: &str, program: &Path) -> Result<(), Failure> {
    simple(folder, program, &["delete", "--force", id])
        .map_err(|text| Failure::system(format!("OCI runtime delete failed: {text}")))
}

/// The console socket, by a name short enough for a socket's address; our working directory is the folder.
fn console_path(folder: &Path) -> PathBuf {
    let path = folder.join(paths::CONSOLE);
    if path.as_os_str().len() < 100 {
        path
    } else {
        PathBuf::from(format!("/proc/{}/cwd/{}", std::process::id(), paths::CONSOLE))
    }
}

fn base(folder: &Path, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .arg("--root")
        .arg(folder.join(paths::OCI_STATE))
        .arg("--log")
        .arg(folder.join(LOG))
        .args(["--log-format", "json"]);
    command
}

fn simple(folder: &Path, program: &Path, args: &[&str]) -> Result<(), String> {
    // What an earlier command said must not be taken for this one's error.
    let _ = std::fs::remove_file(folder.join(LOG));
    let run = || -> io::Result<_> {
        base(folder, program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
    };
    match run() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(last_error(folder).unwrap_or_else(|| status.to_string())),
        Err(error) => Err(format!("{}: {error}", program.display())),
    }
}

/// A line of the runtimes' JSON log.
#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// The last error a runtime wrote to its log.
fn last_error(folder: &Path) -> Option<String> {
    let text = std::fs::read(folder.join(LOG)).ok()?;
    text.split(|&byte| byte == b'\n')
        .rev()
        .filter_map(|line| serde_json::from_slice::<LogLine>(line).ok())
        .find(|line| line.level.is_empty() || line.level == "error" || line.level == "fatal")
        .map(|line| line.msg)
}

/// Finds the exit code in a runtime's text, by the rules Docker uses. Clients look for runc's words; where another
/// runtime has its own (crun: "executable file `x` not found"), runc's take their place.
fn classify(runtime: &str, command: &str, text: &str) -> Failure {
    let lower = text.to_ascii_lowercase();
    let about =
        |needles: &[&str]| text.contains(command) && needles.iter().any(|needle| lower.contains(needle));
    if about(&[
        "executable file not found",
        "executable file `",
        "no such file or directory",
    ]) {
        let known = text.contains("executable file not found") || text.contains("no such file or directory");
        let detail = if known {
            text.to_owned()
        } else {
            format!("exec: {command:?}: executable file not found in $PATH")
        };
        launch_failure(runtime, &detail, 127)
    } else if about(&["permission denied", "is a directory"]) || lower.starts_with("open executable") {
        let known = text.contains("permission denied") || text.contains("is a directory");
        let detail = if known {
            text.to_owned()
        } else {
            format!("exec: {command:?}: permission denied")
        };
        launch_failure(runtime, &detail, 126)
    } else {
        create_failure(runtime, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::FailureKind;

    #[test]
    fn exit_codes_come_from_the_text() {
        let code = |text: &str| {
            let failure = classify("crun", "cmd", text);
            (failure.kind, failure.exit_code)
        };
        assert_eq!(
            code("exec: \"cmd\": executable file not found in $PATH"),
            (FailureKind::Invalid, 127)
        );
        assert_eq!(
            code("executable file `cmd` not found in $PATH: No such file or directory"),
            (FailureKind::Invalid, 127)
        );
        assert_eq!(
            code("open executable: cmd: Permission denied"),
            (FailureKind::Invalid, 126)
        );
        assert_eq!(
            code("mount `proc`: permission denied"),
            (FailureKind::System, 128),
            "not about the command"
        );
        assert!(
            classify("crun", "cmd", "executable file `cmd` not found")
                .message
                .contains("executable file not found in $PATH")
        );
    }

    #[test]
    fn the_last_error_of_the_log_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(last_error(dir.path()), None);
        let log = "{\"msg\":\"first\",\"level\":\"error\"}\n{\"msg\":\"second\",\"level\":\"error\"}\n{\"msg\":\"w\",\"level\":\"warning\"}\ngarbage\n";
        std::fs::write(dir.path().join(LOG), log).unwrap();
        assert_eq!(last_error(dir.path()).as_deref(), Some("second"));
    }
}
