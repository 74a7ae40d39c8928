//! Overlays that a process in user space serves: starting it, recognising a dead one, noticing its death.
//!
//! ```text
//!   daemon ─► program -o lowerdir=…,upperdir=…,workdir=… TARGET ─┬─ exits 0 once it is mounted, or says why not
//!                                                                └─► server: a session of its own, outlives the daemon,
//!                                                                    ends by itself when the mount is gone
//! ```
//!
//! Nothing is remembered of a server but who to watch: whether it lives is asked of the mount (a dead one answers
//! ENOTCONN), and after a restart of the daemon the process is found again by its command line, which ends with the target.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create, statvfs};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::FuseMount;
use crate::error::{Error, ErrorKind, Result};

/// Who serves overlays in user space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FuseServer {
    /// Threads of this process: the mounts end with it. For programs that do their work and end.
    #[default]
    ThisProcess,
    /// A process for each mount, which outlives this one: the words of the command before the options.
    Program(Vec<OsString>),
}

/// How long a program may take until its mount is there. The slowest part is looking at 128 layers on a cold disk.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is kept of a program's complaint.
const COMPLAINT: u64 = 4096;

/// Mounts on `target`; returns when the mount is there.
pub(crate) fn mount_fuse(server: &FuseServer, fuse: &FuseMount, target: &Path) -> Result<()> {
    let options = option_string(fuse);
    match (&fuse.program, server) {
        (Some(program), _) => run(&[program.clone().into_os_string()], &options, target),
        (None, FuseServer::Program(words)) => run(words, &options, target),
        (None, FuseServer::ThisProcess) => skiff_fuse_overlay::program::serve_here(&options, target)
            .map_err(|text| Error::new(ErrorKind::Io, text)),
    }
}

/// Whether a FUSE mount still has its server. Asked in a way that no cache answers.
pub(super) fn is_alive(target: &Path) -> bool {
    !matches!(
        statvfs(target),
        Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::IO)
    )
}

/// The process that serves `target`, if there is one in sight.
pub(super) fn server_of(target: &Path) -> Option<(u32, OwnedFd)> {
    let processes = fs::read_dir("/proc").ok()?;
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    // The youngest: an older one may be about to end.
    let mut serving: Vec<u32> = pids.filter(|pid| serves(*pid, target)).collect();
    serving.sort_unstable();
    serving.into_iter().rev().find_map(|pid| {
        let handle = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let handle = pidfd_open(handle, PidfdFlags::empty()).ok()?;
        // The number may have become another process's before the handle was open.
        serves(pid, target).then_some((pid, handle))
    })
}

fn serves(pid: u32, target: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let mut words = line.strip_suffix(b"\0").unwrap_or(&line).rsplit(|b| *b == 0);
    words.next() == Some(target.as_os_str().as_bytes())
        && words.any(|word| word.starts_with(b"lowerdir=") || word.windows(10).any(|w| w == b",lowerdir="))
}

fn run(words: &[OsString], options: &OsStr, target: &Path) -> Result<()> {
    let (program, rest) = words
        .split_first()
        .ok_or_else(|| Error::invalid("no program serves FUSE mounts"))?;
    let name = program.to_string_lossy();
    let failed = |what: &str, error: io::Error| Error::io(format!("{what} {name}"), error);
    // Not a pipe: a server that keeps its end open would keep the reader waiting.
    let complaints = memfd_create("complaints", MemfdFlags::CLOEXEC)
        .map_err(|errno| failed("memfd_create for", errno.into()))?;
    let mut complaints = File::from(complaints);
    let stderr = complaints.try_clone().map_err(|error| failed("dup for", error))?;
    let mut child = Command::new(program)
        .args(rest)
        .arg("-o")
        .arg(options)
        .arg(target)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        // Ctrl-C at the daemon's terminal is not meant for it.
        .process_group(0)
        .spawn()
        .map_err(|error| failed("start", error))?;
    let ended = wait_for(child.id()).map_err(|error| failed("wait for", error))?;
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| failed("wait for", error))?;
    let complaint = read_complaint(&mut complaints);
    let text = match (ended, status.success()) {
        (true, true) if super::mounted(target)?.is_some() => return Ok(()),
        (true, true) => format!("{name} ended without mounting anything on {}", target.display()),
        (true, false) => format!("{name}: {status}"),
        (false, _) => format!("{name} did not mount within {} seconds", PATIENCE.as_secs()),
    };
    super::detach(target)?;
    Err(Error::new(
        ErrorKind::Io,
        if complaint.is_empty() {
            text
        } else {
            format!("{text}: {complaint}")
        },
    ))
}

/// Waits until a child ends; `false` when patience ends first.
fn wait_for(pid: u32) -> io::Result<bool> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(Errno::SRCH)?;
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    let patience = Timespec {
        tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    loop {
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&patience)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn read_complaint(file: &mut File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read is not worth another error.
    let _ = file.rewind();
    let _ = file.take(COMPLAINT).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes)
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

/// All options in one word.
fn option_string(fuse: &FuseMount) -> OsString {
    let lower: Vec<Vec<u8>> = fuse.lower.iter().map(|path| super::escaped(path)).collect();
    let mut options = vec![[b"lowerdir=".to_vec(), lower.join(&b':')].concat()];
    if let Some((upper, work)) = &fuse.upper {
        options.push([b"upperdir=".to_vec(), super::escaped(upper)].concat());
        options.push([b"workdir=".to_vec(), super::escaped(work)].concat());
    }
    options.extend(fuse.options.iter().map(|option| option.as_bytes().to_vec()));
    OsString::from_vec(options.join(&b','))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fuse(options: &[&str]) -> FuseMount {
        FuseMount {
            lower: vec!["/l/A".into(), "/a:b,c".into()],
            upper: Some(("/u".into(), "/w".into())),
            program: None,
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        }
    }

    #[test]
    fn options_are_one_word() {
        assert_eq!(
            option_string(&fuse(&["volatile", "noatime"])),
            r"lowerdir=/l/A:/a\:b\,c,upperdir=/u,workdir=/w,volatile,noatime"
        );
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let target = tempfile::tempdir().unwrap();
        let shell = |script: &str| ["/bin/sh", "-c", script].map(OsString::from).to_vec();
        let error = run(
            &shell("echo ' no such layer ' >&2; exit 3"),
            OsStr::new("x"),
            target.path(),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("exit status: 3: no such layer"), "{error}");
        let error = run(&shell("exit 0"), OsStr::new("x"), target.path()).unwrap_err();
        assert!(error.to_string().contains("ended without mounting"), "{error}");
        let error = run(&["/no/such/program".into()], OsStr::new("x"), target.path()).unwrap_err();
        assert!(error.to_string().starts_with("start /no/such/program"), "{error}");
    }

    #[test]
    fn a_server_is_known_by_its_command_line() {
        let target = tempfile::tempdir().unwrap();
        // $0 is the target, the last word.
        let mut child = Command::new("/bin/sh")
            .args(["-c", "echo; read wait; exit", "lowerdir=/x"])
            .arg(target.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The kernel lets the caller of execve go on before the new command line can be read.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let found = server_of(target.path()).map(|(pid, _)| pid);
        assert_eq!(found, Some(child.id()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(server_of(target.path()).is_none());
    }
}
