//! The embedded OCI runtime: libcontainer, called in processes with one thread only.

use std::path::Path;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::Spec;
use skiff_core::runtime::LaunchSpec;
use skiff_sys::process::BpfInstruction;

use super::creator::{create_failure, launch_failure, write_bundle};
use super::executor::{Payload, find_marked};
use super::streams::ContainerEnds;
use crate::protocol::Failure;
use crate::{paths, seccomp, spec};

/// How the embedded runtime is called in messages.
const NAME: &str = "skiff";

/// Creates the container up to its execve. The new process is a sibling of the caller, i.e. a child of the shim.
pub(super) fn create(
    folder: &Path,
    launch: &LaunchSpec,
    mut spec: Spec,
    ends: Option<ContainerEnds>,
) -> Result<u32, Failure> {
    let filter = take_filter(&mut spec)?;
    let payload = Payload::take(&mut spec, filter, spec::propagations(launch))
        .map_err(|text| create_failure(NAME, &text))?;
    write_bundle(folder, &spec)
        .map_err(|error| create_failure(NAME, &format!("writing the bundle: {error}")))?;
    let state = folder.join(paths::OCI_STATE);
    std::fs::create_dir_all(&state)
        .map_err(|error| create_failure(NAME, &format!("{}: {error}", state.display())))?;
    build(folder, launch, payload, ends).map_err(|error| describe(&error))
}

/// The filter is ours to compile and to load; libcontainer does not see it.
fn take_filter(spec: &mut Spec) -> Result<Option<Vec<BpfInstruction>>, Failure> {
    let Some(linux) = spec.linux_mut() else {
        return Ok(None);
    };
    let profile = linux.seccomp().clone();
    linux.set_seccomp(None);
    profile
        .map(|profile| seccomp::compile(&profile))
        .transpose()
        .map_err(|error| create_failure(NAME, &error.to_string()))
}

fn build(
    folder: &Path,
    launch: &LaunchSpec,
    payload: Payload,
    ends: Option<ContainerEnds>,
) -> Result<u32, LibcontainerError> {
    let mut builder = ContainerBuilder::new(launch.id.clone(), SyscallType::default())
        .with_root_path(folder.join(paths::OCI_STATE))?
        .with_executor(payload)
        .with_console_socket(launch.process.tty.then(|| folder.join(paths::CONSOLE)));
    if let Some(ends) = ends {
        builder = builder.with_stdout(ends.stdout).with_stderr(ends.stderr);
        if let Some(stdin) = ends.stdin {
            builder = builder.with_stdin(stdin);
        }
    }
    let container = builder
        .validate_id()?
        .as_init(folder.join(paths::BUNDLE))
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()?;
    let pid = container
        .pid()
        .ok_or_else(|| LibcontainerError::Other("no process id".to_owned()))?;
    u32::try_from(pid.as_raw()).map_err(|_| LibcontainerError::Other("no process id".to_owned()))
}

fn describe(error: &LibcontainerError) -> Failure {
    let text = chain(error);
    match find_marked(&text) {
        Some(found) if found.exit_code != 128 => launch_failure(NAME, &found.message, found.exit_code),
        Some(found) => create_failure(NAME, &found.message),
        None => create_failure(NAME, &text),
    }
}

/// The error with its causes; many of libcontainer's say only "failed syscall" themselves.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Lets the container's process execute its command.
pub(super) fn start(folder: &Path, id: &str) -> Result<(), Failure> {
    let load = || -> Result<(), LibcontainerError> {
        Container::load(folder.join(paths::OCI_STATE).join(id))?.start()
    };
    load().map_err(|error| Failure::system(format!("OCI runtime start failed: {}", chain(&error))))
}

/// Forgets an ended container: control group and state.
pub(super) fn delete(folder: &Path, id: &str) -> Result<(), Failure> {
    let state = folder.join(paths::OCI_STATE).join(id);
    if !state.exists() {
        return Ok(());
    }
    let delete = || -> Result<(), LibcontainerError> { Container::load(state)?.delete(true) };
    delete().map_err(|error| Failure::system(format!("OCI runtime delete failed: {}", chain(&error))))
}
