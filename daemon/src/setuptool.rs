//! `dockerd-rootless-setuptool.sh`: for now its `check`.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::environment::Environment;
use crate::rootless::preflight;
use crate::rootless::start;
use crate::{complain, print};

const USAGE: &str = "\
Usage: dockerd-rootless-setuptool.sh COMMAND

Commands:
  check      Check whether this user can run containers on this system
  install    not available in this version: start dockerd-rootless.sh by hand or from a service of your own
  uninstall  not available in this version
  nsenter    not available in this version: use
             nsenter -U --preserve-credentials -n -m -t $(cat $XDG_RUNTIME_DIR/docker.pid)
";

/// Runs a command of the tool.
pub(crate) fn run(words: &[OsString], environment: &Environment) -> ExitCode {
    let command = words
        .iter()
        .filter_map(|word| word.to_str())
        .find(|word| !word.starts_with('-'));
    match command {
        Some("check") if environment.root => {
            complain("[ERROR] Refusing to install rootless Docker as the root user");
            ExitCode::FAILURE
        }
        Some("check") => check(environment),
        Some(command @ ("install" | "uninstall" | "nsenter")) => {
            complain(&format!(
                "[ERROR] \"{command}\" is not available in this version of skiff.\n\n{USAGE}"
            ));
            ExitCode::FAILURE
        }
        Some(other) => {
            complain(&format!("[ERROR] Unknown command: {other}\n\n{USAGE}"));
            ExitCode::FAILURE
        }
        None if words.iter().any(|word| word == "-h" || word == "--help") => print(USAGE),
        None => {
            complain(USAGE);
            ExitCode::FAILURE
        }
    }
}

/// Does what a start does up to the namespaces, and takes it back: an attempt tells more than settings do.
fn check(environment: &Environment) -> ExitCode {
    let result = preflight::check(environment).and_then(|()| {
        let mut fresh = start::fresh().map_err(|error| error.to_string())?;
        let _ = fresh.keeper.child.kill();
        let _ = fresh.keeper.child.wait();
        Ok(fresh.warnings)
    });
    match result {
        Ok(warnings) => {
            for warning in warnings {
                complain(&format!("[WARNING] {warning}"));
            }
            print("[INFO] Requirements are satisfied\n")
        }
        Err(text) => {
            complain(&format!("[ERROR] {text}"));
            ExitCode::FAILURE
        }
    }
}
