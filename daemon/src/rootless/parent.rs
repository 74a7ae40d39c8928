//! The parent: checks, locks, keeper, daemon; then supervision.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::process::{Signal, pidfd_send_signal};
use skiff_sys::identity::ProcessIdentity;
use skiff_sys::lock::FileLock;

use super::adopt;
use super::channel::Channel;
use super::messages::{Boot, HostFacts};
use super::preflight;
use super::record::Record;
use super::start::{self, Keeper, Lifeline, Seed};
use super::supervise::{Signals, Supervisor};
use crate::config::Config;
use crate::environment::Environment;
use crate::locks;
use crate::server::facts;
use crate::server::listen::Passed;

/// Starts everything and stays until the daemon ends.
///
/// # Errors
/// The text for the user when the start fails; nothing is left running then that was not running before.
pub(crate) fn run(
    mut config: Config,
    environment: &Environment,
    arguments: &[OsString],
) -> Result<ExitCode, String> {
    preflight::check(environment)?;
    let passed = Passed::from_environment().map_err(|error| format!("LISTEN_FDS: {error}"))?;
    config.exec_root = locks::make_directory("exec root", &config.exec_root)?;
    config.data_root = locks::make_directory("data root", &config.data_root)?;
    let locks = locks::acquire(&config.data_root, &config.exec_root)?;

    // From here on signals wait until the daemon can act on them.
    let signals = Signals::hold().map_err(|error| format!("signals: {error}"))?;
    let record = Record::new(&config.exec_root, &config.pidfile);
    let Started {
        keeper,
        lifeline,
        single_id,
        adopted,
    } = start_keeper(&record, &config)?;
    let mut cleanup = EndKeeper {
        keeper: Some(keeper),
        record: &record,
        fresh: !adopted,
    };
    let Some(keeper) = cleanup.keeper.as_ref() else {
        return Err("no keeper".to_owned());
    };
    record
        .write(&keeper.identity)
        .map_err(|error| format!("cannot record the keeper: {error}"))?;
    keeper.recorded();

    let host = HostFacts {
        cgroup_v2: facts::cgroup_v2(),
        single_id,
        keeper: Some(keeper.identity.pid),
        adopted,
    };
    let (daemon, channel) = start_daemon(&config, host, arguments, keeper, &lifeline, &locks, &passed)
        .map_err(|error| format!("cannot start the daemon: {error}"))?;
    drop(passed);

    let Some(keeper) = cleanup.keeper.take() else {
        return Err("no keeper".to_owned());
    };
    let supervisor = Supervisor::new(
        signals,
        daemon,
        channel,
        keeper,
        lifeline,
        record.clone(),
        !adopted,
    );
    // The locks are held until here, and by the daemon as long as it lives.
    let code = supervisor.run();
    drop(locks);
    Ok(code)
}

struct Started {
    keeper: Keeper,
    lifeline: Lifeline,
    single_id: bool,
    adopted: bool,
}

fn start_keeper(record: &Record, config: &Config) -> Result<Started, String> {
    if let Some(previous) = adopt::find(record, &config.exec_root) {
        tracing::info!("found the namespaces of an earlier run, joining them");
        let lifeline = previous
            .keeper
            .as_ref()
            .and_then(|keeper| Lifeline::of(keeper).ok());
        let lifeline = lifeline
            .map_or_else(Lifeline::new, Ok)
            .map_err(|error| error.to_string())?;
        match start::start(Seed::Existing(&previous.namespaces), &lifeline) {
            Ok(keeper) => {
                // Only now that another process holds the namespaces.
                if let Some(old) = &previous.keeper {
                    end(old);
                }
                let single_id = maps_one_id(keeper.identity.pid);
                return Ok(Started {
                    keeper,
                    lifeline,
                    single_id,
                    adopted: true,
                });
            }
            // Going on with new namespaces would lose sight of running containers.
            Err(error) => return Err(error.to_string()),
        }
    }
    let fresh = start::fresh().map_err(|error| error.to_string())?;
    for warning in &fresh.warnings {
        tracing::warn!("{warning}");
    }
    Ok(Started {
        keeper: fresh.keeper,
        lifeline: fresh.lifeline,
        single_id: fresh.single_id,
        adopted: false,
    })
}

/// Ends a process of an earlier run, if it is still that one.
fn end(process: &ProcessIdentity) {
    if let Ok(Some(pidfd)) = process.open()
        && let Err(error) = pidfd_send_signal(&pidfd, Signal::KILL)
    {
        tracing::warn!(pid = process.pid, %error, "cannot end the keeper of the earlier run");
    }
}

fn maps_one_id(pid: u32) -> bool {
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap_or_default();
    map.lines().count() == 1 && map.split_ascii_whitespace().nth(2) == Some("1")
}

/// Ends a keeper that nothing needs, when the start fails after it.
struct EndKeeper<'a> {
    keeper: Option<Keeper>,
    record: &'a Record,
    fresh: bool,
}

impl Drop for EndKeeper<'_> {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take()
            && self.fresh
        {
            let _ = keeper.child.kill();
            let _ = keeper.child.wait();
            self.record.remove();
        }
    }
}

fn start_daemon(
    config: &Config,
    host: HostFacts,
    arguments: &[OsString],
    keeper: &Keeper,
    lifeline: &Lifeline,
    locks: &[FileLock],
    passed: &Passed,
) -> std::io::Result<(Child, Channel)> {
    let (channel, theirs) = Channel::pair()?;
    let mut words = arguments.iter();
    let name = words.next().cloned().unwrap_or_else(|| OsString::from("skiffd"));
    let child = Command::new("/proc/self/exe")
        // People look for the name they started, `ps aux | grep dockerd`.
        .arg0(name)
        .arg(crate::role::DAEMON)
        .args(words)
        .stdin(Stdio::from(theirs))
        // Ctrl-C reaches it once, through us.
        .process_group(0)
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDNAMES")
        .env_remove("NOTIFY_SOCKET")
        .spawn()?;
    let boot = Boot {
        config: config.clone(),
        host,
        locks: locks.len(),
        listeners: passed.sockets().len(),
    };
    let mut fds: Vec<BorrowedFd<'_>> = keeper.namespaces.as_fds().to_vec();
    fds.push(lifeline.read.as_fd());
    fds.extend(locks.iter().map(AsFd::as_fd));
    fds.extend(passed.sockets().iter().map(OwnedFd::as_fd));
    match channel.send(&boot, &fds) {
        Ok(()) => Ok((child, channel)),
        Err(error) => {
            let mut child = child;
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}
