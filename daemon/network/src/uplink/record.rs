//! What is remembered of an uplink that runs on without its daemon.
//!
//! ```text
//! <exec_root>/uplink.json    which process, of which program, for which network namespace
//! <exec_root>/uplink.netns   the bridge's namespace, bound so that the program can enter it
//! <exec_root>/uplink.pid     pasta's own note
//! ```
//!
//! A record is trusted only if the process is the very same one and serves the namespace we have now.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use serde::{Deserialize, Serialize};
use skiff_core::{Error, Result};
use skiff_sys::identity::ProcessIdentity;
use skiff_sys::{netns, ns};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::program::{Program, last_lines, readable, remove_file};
use super::{INTERFACE, Settings};
use crate::netlink::{Socket, route};

/// How long a program may take to end when asked politely.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    program: Program,
    /// [`ProcessIdentity`] as text.
    process: String,
    /// Device and inode of the network namespace.
    namespace: (u64, u64),
}

/// A running uplink.
#[derive(Debug)]
pub(super) struct Uplinked {
    program: Program,
    pid: u32,
    pidfd: OwnedFd,
    /// Its error messages, if this daemon started it.
    output: Option<OwnedFd>,
}

impl Uplinked {
    pub(super) fn program(&self) -> Program {
        self.program
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// A pidfd to wait for its end with.
    pub(super) fn watch(&self) -> Result<AsyncFd<OwnedFd>> {
        let cannot_watch = cannot("watch it");
        let pidfd = self.pidfd.try_clone().map_err(&cannot_watch)?;
        #[expect(
            deprecated,
            reason = "the successor is unsafe; an OwnedFd is what it asks for: open, and closed last"
        )]
        AsyncFd::with_interest(pidfd, Interest::READABLE).map_err(cannot_watch)
    }

    /// The end of what it wrote to its standard error.
    pub(super) fn output(&self) -> String {
        let mut text = Vec::new();
        if let Some(file) = self
            .output
            .as_ref()
            .and_then(|output| output.try_clone().ok())
            .map(File::from)
        {
            // Reading stops with EAGAIN at the end of what is there.
            let _ = file.take(64 * 1024).read_to_end(&mut text);
        }
        last_lines(&text)
    }
}

/// Records a program that has just been started, before it is ready: from here on it is not lost.
pub(super) fn write(
    settings: &Settings,
    program: Program,
    process: &ProcessIdentity,
    output: Option<OwnedFd>,
) -> Result<Uplinked> {
    let died = || Error::system("it ended at once");
    let pidfd = process
        .open()
        .map_err(cannot("open its process"))?
        .ok_or_else(died)?;
    let namespace = ns::id(&settings.namespace).map_err(cannot("identify the network namespace"))?;
    let record = Record {
        version: 1,
        program,
        process: process.to_string(),
        namespace: (namespace.dev, namespace.ino),
    };
    let text = serde_json::to_vec(&record)
        .map_err(|error| Error::system("cannot encode its record").caused_by(error))?;
    let path = path(settings);
    let staged = path.with_extension("json.tmp");
    // Not synced: after a crash of the machine the process is gone, too.
    fs::write(&staged, text)
        .and_then(|()| fs::rename(&staged, &path))
        .map_err(cannot("write its record"))?;
    Ok(Uplinked {
        program,
        pid: process.pid,
        pidfd,
        output,
    })
}

/// Removes the record of a program that has ended.
pub(super) fn forget(settings: &Settings) -> Result<()> {
    remove_file(&path(settings))
}

/// The uplink of an earlier run, if it lives and serves our namespace; one that serves another is ended.
pub(super) fn adopt(settings: &Settings) -> Result<Option<Uplinked>> {
    let Some((record, uplinked)) = read(settings)? else {
        return Ok(None);
    };
    let namespace = ns::id(&settings.namespace).map_err(cannot("identify the network namespace"))?;
    if record.namespace == (namespace.dev, namespace.ino) {
        return Ok(Some(uplinked));
    }
    end(&uplinked)?;
    forget(settings)?;
    Ok(None)
}

/// Ends the `running` uplink, or that of an earlier run, and removes all files.
pub(super) fn stop(settings: &Settings, running: Option<Uplinked>) -> Result<()> {
    let running = match running {
        Some(uplinked) => Some(uplinked),
        None => read(settings)?.map(|(_, uplinked)| uplinked),
    };
    if let Some(uplinked) = running {
        end(&uplinked)?;
    }
    forget(settings)?;
    remove_file(&settings.exec_root.join("uplink.pid"))?;
    netns::unbind(&namespace_path(settings)).map_err(cannot("unbind the network namespace"))
}

/// Reads the record and opens its process. A record of a process that has ended, or an unreadable one, is none.
fn read(settings: &Settings) -> Result<Option<(Record, Uplinked)>> {
    let bytes = match fs::read(path(settings)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(cannot("read its record"))?,
    };
    let Some(record) = serde_json::from_slice::<Record>(&bytes)
        .ok()
        .filter(|record| record.version == 1)
    else {
        return Ok(None);
    };
    let Ok(process) = record.process.parse::<ProcessIdentity>() else {
        return Ok(None);
    };
    let pidfd = process.open().map_err(cannot("open its process"))?;
    let (program, pid) = (record.program, process.pid);
    Ok(pidfd.map(|pidfd| {
        (
            record,
            Uplinked {
                program,
                pid,
                pidfd,
                output: None,
            },
        )
    }))
}

/// Ends a process: politely, then not.
fn end(uplinked: &Uplinked) -> Result<()> {
    for signal in [Signal::TERM, Signal::KILL] {
        match pidfd_send_signal(&uplinked.pidfd, signal) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => {}
            Err(errno) => return Err(cannot("end it")(errno.into())),
        }
        if readable(uplinked.pidfd.as_fd(), PATIENCE).map_err(cannot("wait for its end"))? {
            reap(&uplinked.pidfd);
            return Ok(());
        }
    }
    Err(Error::system(format!("process {} does not end", uplinked.pid)))
}

/// How the process ended, if it is our child; collects it, so that no zombie stays.
pub(super) fn reap(pidfd: &OwnedFd) -> String {
    match waitid(
        WaitId::PidFd(pidfd.as_fd()),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    ) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown".to_owned(),
        },
        // Not our child: started by an earlier daemon, or gone into the background.
        Ok(None) | Err(_) => "unknown".to_owned(),
    }
}

/// Removes what a daemon left that was killed between starting a program and recording it: tap0 would be taken.
pub(super) fn remove_strays(settings: &Settings) -> Result<()> {
    let taken = || -> Result<bool> { Ok(route::link(&mut Socket::route()?, INTERFACE)?.is_some()) };
    if !inside(settings, taken)? {
        return Ok(());
    }
    // Without its interface slirp4netns would go on for ever, complaining; pasta ends.
    for process in marked(&slirp4netns_mark(&settings.exec_root)) {
        if let Some(pidfd) = process.open().map_err(cannot("open a stray process"))? {
            end(&Uplinked {
                program: Program::Slirp4netns,
                pid: process.pid,
                pidfd,
                output: None,
            })?;
        }
    }
    inside(settings, || {
        match Socket::route()?.request(route::delete_link(INTERFACE)) {
            Err(error) if error.errno == rustix::io::Errno::NODEV => Ok(()),
            other => Ok(other?),
        }
    })
}

/// Runs `work` in the bridge's namespace.
fn inside<T: Send>(settings: &Settings, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    netns::run_in(Some(settings.namespace.as_fd()), work).map_err(cannot("enter the network namespace"))?
}

/// What slirp4netns finds as its own name, so that it can be told from those of other daemons and programs.
pub(super) fn slirp4netns_mark(exec_root: &Path) -> String {
    let mut mark = "slirp4netns".to_owned();
    // Writing to a string cannot fail.
    let _ = write!(mark, "[{}]", exec_root.display());
    mark
}

/// The processes that were started under the name `mark`.
fn marked(mark: &str) -> Vec<ProcessIdentity> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command_line.split(|&byte| byte == 0).next() == Some(mark.as_bytes())
    })
    .filter_map(|pid| ProcessIdentity::of(pid).ok())
    .collect()
}

/// Gives the bridge's namespace a path, unless it has one.
pub(super) fn bind_namespace(settings: &Settings) -> Result<PathBuf> {
    let path = namespace_path(settings);
    let bind = || -> io::Result<()> {
        let wanted = ns::id(&settings.namespace)?;
        if netns::is_bound(&path)? && ns::id(File::open(&path)?)? == wanted {
            return Ok(());
        }
        netns::unbind(&path)?;
        fs::create_dir_all(&settings.exec_root)?;
        netns::bind(settings.namespace.as_fd(), &path)
    };
    bind().map_err(cannot("bind the bridge's network namespace"))?;
    Ok(path)
}

fn namespace_path(settings: &Settings) -> PathBuf {
    settings.exec_root.join("uplink.netns")
}

fn path(settings: &Settings) -> PathBuf {
    settings.exec_root.join("uplink.json")
}

fn cannot(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::system(format!("cannot {what}")).caused_by(error)
}
