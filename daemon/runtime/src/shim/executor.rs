//! The last steps inside a new container, between libcontainer's set-up and execve.
//!
//! Why not libcontainer's own: it ignores mount propagation, cannot make a missing working directory, refuses programs that
//! only their owner may execute, and builds its seccomp filter with a C library (ADR 0008). The specification it is
//! given therefore has neither capabilities nor seccomp; all are applied here, where every privilege is still held.
//!
//! ```text
//! validate  (create)  propagation · working directory · ownership of the streams · is the program executable?
//! exec      (start)   bounding set · filter · capabilities · [filter, with no-new-privileges] · execve
//! ```

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::fcntl::AtFlags;
use nix::unistd::AccessFlags;
use oci_spec::runtime::{Capabilities, Capability, Spec};
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, CapabilitySets};
use skiff_sys::process::{BpfInstruction, load_seccomp_filter, reset_signals};

/// Encloses what [`Payload::validate`] found in the error text that libcontainer passes on as one string.
const MARK: char = '\u{2}';

/// What to execute, and with which rights.
#[derive(Clone)]
pub(super) struct Payload {
    args: Vec<CString>,
    env: Vec<CString>,
    path: String,
    cwd: PathBuf,
    uid: u32,
    /// Bounding and permitted (= effective) capabilities.
    bounding: CapabilitySet,
    held: CapabilitySet,
    filter: Option<Vec<BpfInstruction>>,
    no_new_privileges: bool,
    propagations: Vec<(String, String)>,
    program: RefCell<Option<CString>>,
}

/// Why the command cannot be executed: Go's texts, which clients match on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotExecutable {
    pub(super) message: String,
    /// 127 when it does not exist, 126 when it may not be executed.
    pub(super) exit_code: i32,
}

impl Payload {
    /// Takes the process out of a specification: capabilities, working directory and filter are removed from it.
    pub(super) fn take(
        spec: &mut Spec,
        filter: Option<Vec<BpfInstruction>>,
        propagations: Vec<(String, String)>,
    ) -> Result<Self, String> {
        let process = spec
            .process_mut()
            .as_mut()
            .ok_or("the specification has no process")?;
        let strings = |list: &Option<Vec<String>>| -> Result<Vec<CString>, String> {
            let convert =
                |text: &String| CString::new(text.as_str()).map_err(|_| format!("a NUL byte in {text:?}"));
            list.iter().flatten().map(convert).collect()
        };
        let capabilities = process.capabilities().clone().unwrap_or_default();
        let payload = Self {
            args: strings(process.args())?,
            env: strings(process.env())?,
            path: process
                .env()
                .iter()
                .flatten()
                .rev()
                .find_map(|entry| entry.strip_prefix("PATH="))
                .unwrap_or_default()
                .to_owned(),
            cwd: process.cwd().clone(),
            uid: process.user().uid(),
            bounding: to_set(capabilities.bounding().as_ref()),
            held: to_set(capabilities.permitted().as_ref()),
            filter,
            no_new_privileges: process.no_new_privileges() == Some(true),
            propagations,
            program: RefCell::new(None),
        };
        if payload.args.is_empty() {
            return Err("no command specified".to_owned());
        }
        process.set_capabilities(None);
        process.set_cwd(PathBuf::from("/"));
        Ok(payload)
    }

    fn prepare(&self) -> Result<(), String> {
        die_with_the_shim().map_err(|error| format!("prctl: {error}"))?;
        for (target, propagation) in &self.propagations {
            let flags = propagation_flags(propagation)
                .ok_or_else(|| format!("unknown mount propagation {propagation:?}"))?;
            rustix::mount::mount_change(target.as_str(), flags)
                .map_err(|error| format!("making {target} {propagation}: {error}"))?;
        }
        self.enter_working_directory()?;
        self.own_streams();
        Ok(())
    }

    /// As Docker does, the working directory is made when it is missing; it belongs to root.
    fn enter_working_directory(&self) -> Result<(), String> {
        let failed = |error: io::Error| {
            format!(
                "chdir to cwd ({:?}) set in config.json failed: {error}",
                self.cwd.display().to_string()
            )
        };
        match std::env::set_current_dir(&self.cwd) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result.map_err(failed),
        }
        let mut path = PathBuf::from("/");
        for component in self.cwd.components() {
            path.push(component);
            match rustix::fs::mkdir(&path, Mode::from(0o755)) {
                Ok(()) => {
                    rustix::fs::chown(&path, Some(Uid::ROOT), Some(Gid::ROOT))
                        .map_err(|error| failed(error.into()))?;
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        std::env::set_current_dir(&self.cwd).map_err(failed)
    }

    /// Gives the user the streams, so that it can open `/dev/stdout` anew. Never `/dev/null`, which is shared.
    fn own_streams(&self) {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let streams: [BorrowedFd<'_>; 3] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        for stream in streams {
            let Ok(stat) = rustix::fs::fstat(stream) else {
                continue;
            };
            let is_null = rustix::fs::major(stat.st_rdev) == 1 && rustix::fs::minor(stat.st_rdev) == 3;
            if stat.st_uid != self.uid && !is_null {
                // Read-only file systems and the like: not worth a failure.
                let _ = rustix::fs::fchown(stream, Some(Uid::from_raw(self.uid)), None);
            }
        }
    }

    /// Finds the program the way a shell would, with the rights it will have.
    fn find_program(&self) -> Result<CString, NotExecutable> {
        let name = self.args[0].to_string_lossy().into_owned();
        with_capabilities(self.held, || look_up(&name, &self.path))
    }

    /// Does not return unless it fails.
    fn run(&self) -> io::Error {
        let program = self
            .program
            .borrow()
            .clone()
            .unwrap_or_else(|| self.args[0].clone());
        match self.drop_privileges() {
            Ok(()) => match nix::unistd::execve(&program, &self.args, &self.env) {
                Ok(never) => match never {},
                Err(error) => io::Error::from(error),
            },
            Err(error) => io::Error::new(error.kind(), format!("dropping privileges: {error}")),
        }
    }

    fn drop_privileges(&self) -> io::Result<()> {
        die_with_the_shim()?;
        reset_signals();
        for number in 0..=40 {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if !self.bounding.contains(capability) {
                match rustix::thread::remove_capability_from_bounding_set(capability) {
                    // EINVAL: an older kernel does not know it.
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        // Loading a filter takes CAP_SYS_ADMIN, or no-new-privileges; with the latter it comes last, so that the
        // filter sees as little as possible of what is ours.
        if !self.no_new_privileges {
            self.load_filter()?;
        }
        let _ = rustix::thread::clear_ambient_capability_set();
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: self.held,
                permitted: self.held,
                inheritable: CapabilitySet::empty(),
            },
        )?;
        if self.no_new_privileges {
            self.load_filter()?;
        }
        Ok(())
    }

    fn load_filter(&self) -> io::Result<()> {
        match &self.filter {
            Some(filter) => load_seccomp_filter(filter).map_err(|error| {
                io::Error::new(error.kind(), format!("loading the seccomp filter: {error}"))
            }),
            None => Ok(()),
        }
    }
}

impl Executor for Payload {
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        let marked = |code: i32, text: &str| {
            ExecutorValidationError::ArgValidationError(format!("{MARK}{code}{MARK}{text}{MARK}"))
        };
        self.prepare().map_err(|text| marked(128, &text))?;
        let program = self
            .find_program()
            .map_err(|error| marked(error.exit_code, &error.message))?;
        *self.program.borrow_mut() = Some(program);
        Ok(())
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is handed to execve; ours is not touched.
        Ok(())
    }

    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let error = self.run();
        // Start was already answered. Like runc, tell whoever reads the container's output.
        let text = match error.raw_os_error() {
            Some(code) => Errno::from_raw_os_error(code).to_string(),
            None => error.to_string(),
        };
        let text = if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) {
            "exec format error".to_owned()
        } else {
            text
        };
        let line = format!("exec {}: {text}\n", self.args[0].to_string_lossy());
        let _ = rustix::io::write(io::stderr(), line.as_bytes());
        skiff_sys::process::exit_now(255)
    }
}

/// A container whose shim was killed is nobody's: it ends, too. This survives execve, as no privilege is gained there, but
/// not every change of credentials; so it is said again after those.
fn die_with_the_shim() -> rustix::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
}

/// Finds what [`Payload::validate`] said in an error text of libcontainer's.
pub(super) fn find_marked(text: &str) -> Option<NotExecutable> {
    let mut parts = text.split(MARK).skip(1);
    let exit_code = parts.next()?.parse().ok()?;
    Some(NotExecutable {
        message: parts.next()?.to_owned(),
        exit_code,
    })
}

/// Runs `work` with other effective capabilities.
fn with_capabilities<T>(effective: CapabilitySet, work: impl FnOnce() -> T) -> T {
    let Ok(before) = rustix::thread::capabilities(None) else {
        return work();
    };
    let _ = rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: effective & before.permitted,
            ..before
        },
    );
    let result = work();
    let _ = rustix::thread::set_capabilities(None, before);
    result
}

/// Resolves a command by the rules of Go's `exec.LookPath`, whose texts Docker's clients know.
fn look_up(name: &str, path: &str) -> Result<CString, NotExecutable> {
    let fail = |text: &str, exit_code| {
        Err(NotExecutable {
            message: format!("exec: {name:?}: {text}"),
            exit_code,
        })
    };
    let to_c = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    if name.contains('/') {
        return match check(Path::new(name)) {
            Ok(()) => Ok(to_c(Path::new(name))),
            Err(Errno::NOENT) => fail(&format!("stat {name}: no such file or directory"), 127),
            Err(Errno::NOTDIR) => fail(&format!("stat {name}: not a directory"), 127),
            Err(Errno::ISDIR) => fail("is a directory", 126),
            Err(Errno::ACCESS) => fail("permission denied", 126),
            Err(error) => fail(&error.to_string(), 126),
        };
    }
    for folder in path.split(':') {
        let candidate = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        if !name.is_empty() && check(&candidate).is_ok() {
            return Ok(to_c(&candidate));
        }
    }
    fail("executable file not found in $PATH", 127)
}

fn check(path: &Path) -> rustix::io::Result<()> {
    let stat = rustix::fs::stat(path)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Err(Errno::ISDIR);
    }
    nix::unistd::faccessat(rustix::fs::CWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)
        .map_err(|error| Errno::from_raw_os_error(error as i32))
}

fn propagation_flags(name: &str) -> Option<MountPropagationFlags> {
    let (recursive, kind) = match name.strip_prefix('r') {
        Some(rest) => (MountPropagationFlags::REC, rest),
        None => (MountPropagationFlags::empty(), name),
    };
    let kind = match kind {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        _ => return None,
    };
    Some(kind | recursive)
}

/// The set as the kernel's bits.
fn to_set(capabilities: Option<&Capabilities>) -> CapabilitySet {
    let bit = |capability: &Capability| {
        use libcontainer::capabilities::CapabilityExt;
        CapabilitySet::from_bits_retain(1 << capability.to_cap().index())
    };
    capabilities
        .into_iter()
        .flatten()
        .map(bit)
        .fold(CapabilitySet::empty(), CapabilitySet::union)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn programs_are_found_as_go_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        for (name, mode) in [("run", 0o700), ("data", 0o644)] {
            let file = dir.path().join(name);
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let text = |name: &str, path: &str| look_up(name, path).unwrap_err();
        assert!(
            look_up("run", &format!("/nonexistent:{folder}")).is_ok(),
            "executable for its owner only"
        );
        let missing = text("nosuchcmd", folder);
        assert_eq!(
            (missing.message.as_str(), missing.exit_code),
            (r#"exec: "nosuchcmd": executable file not found in $PATH"#, 127)
        );
        assert_eq!(
            text("data", folder).exit_code,
            127,
            "in $PATH what is not executable is passed over"
        );
        let data = format!("{folder}/data");
        assert_eq!(
            text(&data, ""),
            NotExecutable {
                message: format!("exec: {data:?}: permission denied"),
                exit_code: 126
            }
        );
        assert_eq!(
            text(folder, ""),
            NotExecutable {
                message: format!("exec: {folder:?}: is a directory"),
                exit_code: 126
            }
        );
        assert!(
            text("/nonexistent/x", "")
                .message
                .ends_with("no such file or directory")
        );
        assert_eq!(text("", folder).exit_code, 127);
    }

    #[test]
    fn the_mark_is_found_in_whatever_surrounds_it() {
        let wrapped = format!(
            "failed to create: exec process failed with error {MARK}127{MARK}exec: \"x\": no{MARK} etc"
        );
        assert_eq!(
            find_marked(&wrapped),
            Some(NotExecutable {
                message: "exec: \"x\": no".to_owned(),
                exit_code: 127
            })
        );
        assert_eq!(find_marked("nothing"), None);
        assert_eq!(find_marked(&format!("{MARK}x{MARK}y")), None);
    }

    #[test]
    fn propagation_names() {
        assert_eq!(
            propagation_flags("rslave"),
            Some(MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        );
        assert_eq!(propagation_flags("private"), Some(MountPropagationFlags::PRIVATE));
        assert_eq!(propagation_flags("rr"), None);
    }
}
