//! How slirp4netns and pasta are called, and how they say that they are ready.
//!
//! Both run as root of the keeper's user namespace with the host's network namespace as their own; they enter the
//! bridge's namespace through a bind mount of it, make tap0 there (10.0.2.100/24, default route 10.0.2.2, DNS
//! forwarder 10.0.2.3) and come back.

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use skiff_core::{Error, Result};
use skiff_sys::identity::ProcessIdentity;

use super::record::{self, Uplinked};
use super::{FORWARDER, INTERFACE, Settings};

/// How long a start may take; it usually takes less than a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// First version with everything we use (requirement G1).
const OLDEST_SLIRP4NETNS: (u32, u32, u32) = (0, 4, 0);

/// Numbers of the descriptors handed to slirp4netns.
const READY_FD: i32 = 3;
const EXIT_FD: i32 = 4;
const OUTPUT_FD: i32 = 5;

/// A program that connects a network namespace to the host's without privileges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Program {
    Slirp4netns,
    Pasta,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
        })
    }
}

/// Starts `program`, which lies at `path`, and waits until it is ready. After an error it does not run.
pub(super) fn start(program: Program, path: &Path, settings: &Settings) -> Result<Uplinked> {
    record::remove_strays(settings)?;
    let namespace = record::bind_namespace(settings)?;
    let started = match program {
        Program::Slirp4netns => slirp4netns(path, &namespace, settings),
        Program::Pasta => pasta(path, &namespace, settings),
    };
    started.map_err(|error| error.context(format!("cannot start {}", path.display())))
}

fn slirp4netns(path: &Path, namespace: &Path, settings: &Settings) -> Result<Uplinked> {
    let version = slirp4netns_version(path)?;
    if version < OLDEST_SLIRP4NETNS {
        let (major, minor, patch) = version;
        return Err(Error::unavailable(format!(
            "version {major}.{minor}.{patch} is older than 0.4.0"
        )));
    }
    let (ready, ready_writer) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe"))?;
    let (output, output_writer) = output_pipe().map_err(failed("make a pipe"))?;
    let mut command = Command::new(path);
    command
        .args(slirp4netns_arguments(settings))
        .arg(namespace)
        .arg(INTERFACE)
        .arg0(record::slirp4netns_mark(&settings.exec_root))
        .stderr(output_writer);
    let mut descriptors = vec![
        FdMapping {
            parent_fd: ready_writer,
            child_fd: READY_FD,
        },
        FdMapping {
            parent_fd: output.try_clone().map_err(failed("duplicate a descriptor"))?,
            child_fd: OUTPUT_FD,
        },
    ];
    if let Some(lifeline) = &settings.lifeline {
        let parent_fd = lifeline.try_clone().map_err(failed("duplicate a descriptor"))?;
        descriptors.push(FdMapping {
            parent_fd,
            child_fd: EXIT_FD,
        });
    }
    command
        .fd_mappings(descriptors)
        .map_err(|error| Error::system("cannot pass descriptors").caused_by(error))?;
    let child = spawn(&mut command)?;
    // Only the child may keep the pipe's other end, or its death would not be noticed.
    drop(command);

    let identity = identify(child.id());
    let recorded =
        identity.and_then(|identity| record::write(settings, Program::Slirp4netns, &identity, Some(output)));
    match recorded.and_then(|uplinked| wait_until_ready(&ready, &uplinked).map(|()| uplinked)) {
        Ok(uplinked) => Ok(uplinked),
        Err(error) => {
            abandon(child);
            record::forget(settings)?;
            Err(error)
        }
    }
}

fn slirp4netns_arguments(settings: &Settings) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--configure",
        "--enable-sandbox",
        "--enable-seccomp",
        "--netns-type=path",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(format!("--mtu={}", settings.mtu));
    arguments.push(format!("--ready-fd={READY_FD}"));
    if !settings.host_loopback {
        arguments.push("--disable-host-loopback".to_owned());
    }
    if settings.lifeline.is_some() {
        arguments.push(format!("--exit-fd={EXIT_FD}"));
    }
    arguments
}

/// A pipe for error messages of a process that outlives us: the process itself keeps the reading end open, so that
/// writing never kills it, and writing never blocks, so that a full pipe does not stop it. A file could grow for ever.
fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    for end in [&reader, &writer] {
        rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK)?;
    }
    Ok((reader, writer))
}

/// Waits for the byte that slirp4netns writes when tap0 is up.
fn wait_until_ready(ready: &OwnedFd, uplinked: &Uplinked) -> Result<()> {
    if !readable(ready.as_fd(), PATIENCE).map_err(failed("wait"))? {
        return Err(Error::system(format!(
            "not ready after {PATIENCE:?}: {}",
            uplinked.output()
        )));
    }
    let mut byte = [0; 1];
    match rustix::io::read(ready, &mut byte) {
        Ok(1) => Ok(()),
        Ok(_) => Err(Error::system(uplinked.output())),
        Err(errno) => Err(failed("wait")(errno)),
    }
}

/// pasta goes into the background by itself when it is ready; its first process then ends.
fn pasta(path: &Path, namespace: &Path, settings: &Settings) -> Result<Uplinked> {
    let pid_file = settings.exec_root.join("uplink.pid");
    remove_file(&pid_file)?;
    let mut command = Command::new(path);
    command
        .args(pasta_arguments(settings))
        .arg("--pid")
        .arg(&pid_file)
        .arg("--netns")
        .arg(namespace);
    let (mut output, output_writer) = io::pipe().map_err(failed("make a pipe"))?;
    command.stderr(output_writer);
    let mut child = spawn(&mut command)?;
    drop(command);

    // The end of its output is the end of the first process, whether it failed or went into the background.
    let mut text = Vec::new();
    let finished =
        read_to_end_within(&mut output, &mut text, PATIENCE).map_err(failed("read its messages"))?;
    if !finished {
        abandon(child);
        return Err(Error::system(format!(
            "not ready after {PATIENCE:?}: {}",
            last_lines(&text)
        )));
    }
    let status = child.wait().map_err(failed("wait for it"))?;
    if !status.success() {
        return Err(Error::system(format!("{status}: {}", last_lines(&text))));
    }
    let pid = fs::read_to_string(&pid_file)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let pid = pid.ok_or_else(|| Error::system(format!("no process id in {}", pid_file.display())))?;
    record::write(settings, Program::Pasta, &identify(pid)?, None)
}

fn pasta_arguments(settings: &Settings) -> Vec<String> {
    let mtu = settings.mtu.to_string();
    let forwarder = FORWARDER.to_string();
    let mut arguments: Vec<&str> = vec![
        "--quiet",
        "--config-net",
        "--ipv4-only",
        "--ns-ifname",
        INTERFACE,
        "--mtu",
        &mtu,
    ];
    // slirp4netns's addresses: never one of the host's, which would then lead to the namespace itself.
    arguments.extend([
        "--address",
        "10.0.2.100",
        "--netmask",
        "24",
        "--gateway",
        "10.0.2.2",
    ]);
    arguments.extend(["--dns-forward", &forwarder]);
    // No port is forwarded in either direction; by default pasta offers the host's loopback services inside.
    arguments.extend(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    if !settings.host_loopback {
        arguments.push("--no-map-gw");
    }
    arguments.into_iter().map(str::to_owned).collect()
}

/// Starts `command` with nothing of ours but what was mapped, and in a process group of its own: a Ctrl-C for
/// the daemon is not meant for it.
fn spawn(command: &mut Command) -> Result<Child> {
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    command.spawn().map_err(failed("execute it"))
}

fn identify(pid: u32) -> Result<ProcessIdentity> {
    ProcessIdentity::of(pid).map_err(failed("identify its process"))
}

fn abandon(mut child: Child) {
    // It may have ended already.
    let _ = child.kill();
    let _ = child.wait();
}

/// The version in `slirp4netns version 1.2.0` (possibly `0.4.0-beta.1+dev`).
fn slirp4netns_version(path: &Path) -> Result<(u32, u32, u32)> {
    let output = Command::new(path)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(failed("execute it"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    parse_version(&text).ok_or_else(|| {
        Error::system(format!(
            "unknown version: {}",
            text.lines().next().unwrap_or_default()
        ))
    })
}

fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut words = text.lines().next()?.split_ascii_whitespace();
    let version = words.find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    let mut numbers = version
        .split(['.', '-', '+'])
        .map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?, numbers.next().unwrap_or(0)))
}

/// Reads all of `source`; false when it is not at its end after `patience`.
fn read_to_end_within(
    source: &mut io::PipeReader,
    into: &mut Vec<u8>,
    patience: Duration,
) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 4096];
    loop {
        if !readable(source.as_fd(), deadline.saturating_duration_since(Instant::now()))? {
            return Ok(false);
        }
        match source.read(&mut buffer)? {
            0 => return Ok(true),
            length => into.extend_from_slice(&buffer[..length]),
        }
    }
}

/// Whether there is something to read, or the other side hung up, within `patience`.
pub(super) fn readable(fd: BorrowedFd<'_>, patience: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))? > 0)
}

/// The end of a program's messages, on one line.
pub(super) fn last_lines(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    // pasta complains of a missing system log on every message.
    let said = |line: &&str| !line.trim().is_empty() && !line.starts_with("Failed to send");
    let lines: Vec<&str> = text.lines().filter(said).collect();
    match lines.as_slice() {
        [] => "it gave no reason".to_owned(),
        lines => lines[lines.len().saturating_sub(4)..].join("; "),
    }
}

/// Removes a file that may be missing.
pub(super) fn remove_file(path: &PathBuf) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::system(format!("cannot remove {}", path.display())).caused_by(error))
        }
        _ => Ok(()),
    }
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::system(format!("cannot {what}")).caused_by(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(
            parse_version("slirp4netns version 1.2.0\ncommit: 656041d\n"),
            Some((1, 2, 0))
        );
        assert_eq!(
            parse_version("slirp4netns version 0.4.0-beta.1+dev\n"),
            Some((0, 4, 0))
        );
        assert_eq!(parse_version("slirp4netns version 0.3.2"), Some((0, 3, 2)));
        assert_eq!(parse_version("slirp4netns version unknown"), None);
        assert_eq!(parse_version(""), None);
        assert!((0, 3, 9) < OLDEST_SLIRP4NETNS && (0, 10, 0) > OLDEST_SLIRP4NETNS);
    }

    #[test]
    fn the_last_messages_are_told() {
        assert_eq!(last_lines(b""), "it gave no reason");
        assert_eq!(
            last_lines(b"one\nFailed to send 45 bytes to syslog\n\ntwo\n"),
            "one; two"
        );
        assert_eq!(last_lines(b"1\n2\n3\n4\n5\n6"), "3; 4; 5; 6");
    }

    #[test]
    fn a_full_output_pipe_neither_blocks_nor_kills() {
        let (reader, writer) = output_pipe().unwrap();
        let mut written = 0;
        let error = loop {
            match rustix::io::write(&writer, &[b'x'; 4096]) {
                Ok(length) => written += length,
                Err(errno) => break errno,
            }
        };
        assert_eq!(error, rustix::io::Errno::AGAIN);
        assert!(written >= 4096);
        drop(reader);
    }
}
