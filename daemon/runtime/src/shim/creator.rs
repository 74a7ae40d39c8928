//! The short-lived process that makes the container, forked from the shim.
//!
//! It builds the specification and runs the OCI runtime; the container's first process becomes the shim's child all the same
//! (clone with CLONE_PARENT, or by the shim being a subreaper). What is gained: the shim keeps the memory, working directory and
//! process attributes it had, and a fault in here is an error message, not a lost container.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::streams::ContainerEnds;
use super::{embedded, external};
use crate::paths;
use crate::protocol::{CreateRequest, Failure, FailureKind};
use crate::spec::{self, Host};

/// What the creator reports.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Outcome {
    Created { pid: u32 },
    Failed(Failure),
}

/// Makes the container and reports; the caller, a forked process, then ends.
pub(super) fn run(folder: &Path, request: &CreateRequest, ends: Option<ContainerEnds>, report: OwnedFd) {
    // Whoever kills the shim means the container, too.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let outcome = match create(folder, request, ends) {
        Ok(pid) => Outcome::Created { pid },
        Err(failure) => Outcome::Failed(failure),
    };
    let mut bytes = serde_json::to_vec(&outcome).unwrap_or_default();
    // The end of the report: the pipe's end would not do, for the container's process holds it, too, until it executes.
    bytes.push(b'\n');
    // When this fails the shim is gone or sees an incomplete report; it has a text for that.
    let _ = File::from(report).write_all(&bytes);
}

fn create(folder: &Path, request: &CreateRequest, ends: Option<ContainerEnds>) -> Result<u32, Failure> {
    let launch = &request.launch;
    if launch.init && !is_static(&request.init_program) {
        return Err(Failure::new(
            FailureKind::NotImplemented,
            "--init needs a statically linked build of this engine: its program runs inside the image, without our libraries",
        ));
    }
    let host = Host::current(launch.privileged, request.init_program.clone());
    // As with Docker, a container that cannot be expressed is a failure of the engine at start, whatever the reason.
    let spec = spec::build(launch, &host).map_err(|error| Failure::system(error.to_string()))?;
    match &request.runtime {
        None => embedded::create(folder, launch, spec, ends),
        Some(program) => {
            write_bundle(folder, &spec)
                .map_err(|error| Failure::system(format!("writing the bundle: {error}")))?;
            external::create(folder, launch, program, ends, request.rootless)
        }
    }
}

/// Writes `config.json`.
pub(super) fn write_bundle(folder: &Path, spec: &Spec) -> std::io::Result<()> {
    let bundle = folder.join(paths::BUNDLE);
    std::fs::create_dir_all(&bundle)?;
    std::fs::write(bundle.join("config.json"), serde_json::to_vec(spec)?)
}

/// Whether a program needs no dynamic loader, i.e. is an ELF file without an interpreter segment.
fn is_static(program: &Path) -> bool {
    use std::os::unix::fs::FileExt;
    const PT_INTERP: u32 = 3;
    let Ok(file) = File::open(program) else {
        return false;
    };
    let mut header = [0; 64];
    if file.read_exact_at(&mut header, 0).is_err() || !header.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let mut offset = header[32..40]
        .iter()
        .rev()
        .fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let (size, count) = (u64::from(u16_at(54)), u16_at(56));
    for _ in 0..count {
        let mut kind = [0; 4];
        if file.read_exact_at(&mut kind, offset).is_err() || u32::from_le_bytes(kind) == PT_INTERP {
            return false;
        }
        offset += size;
    }
    true
}

/// The text and exit code for a command that cannot be executed, in Docker's words.
pub(super) fn launch_failure(runtime: &str, detail: &str, exit_code: i32) -> Failure {
    Failure {
        kind: FailureKind::Invalid,
        message: format!(
            "{}: unable to start container process: {detail}: unknown",
            prefix(runtime)
        ),
        exit_code,
    }
}

/// The text for any other failure of a runtime.
pub(super) fn create_failure(runtime: &str, detail: &str) -> Failure {
    Failure::system(format!("{}: {detail}: unknown", prefix(runtime)))
}

fn prefix(runtime: &str) -> String {
    format!(
        "failed to create task for container: failed to create shim task: OCI runtime create failed: {runtime} create failed"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_and_dynamic_programs_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("script");
        std::fs::write(&text, "#!/bin/sh\n").unwrap();
        assert!(!is_static(&text));
        assert!(!is_static(Path::new("/nonexistent")));
        // Our own test program says what it is: on the gnu target it is dynamic unless built with crt-static.
        let own = std::env::current_exe().unwrap();
        assert_eq!(is_static(&own), cfg!(target_feature = "crt-static"));
    }

    #[test]
    fn clients_find_what_they_look_for_in_the_text() {
        let failure = launch_failure("skiff", "exec: \"x\": executable file not found in $PATH", 127);
        assert!(failure.message.contains("OCI runtime create failed"));
        assert!(
            failure
                .message
                .ends_with("exec: \"x\": executable file not found in $PATH: unknown")
        );
        assert_eq!((failure.kind, failure.exit_code), (FailureKind::Invalid, 127));
    }
}
