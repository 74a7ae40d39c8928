//! The way out of the bridge's namespace: slirp4netns or pasta, run beside the daemon and not below it.
//!
//! ```text
//!              first bridge container                     died: back-off, again if still needed
//!   stopped ─────────────────────────▶ running (tap0) ──────────────────────────▶ stopped
//!      ▲                                  │
//!      └── no bridge container for a minute, or shutdown
//! ```
//!
//! * It is started when the first container needs it: it takes memory (pasta 20 MiB) and 60 to 80 ms.
//! * It survives the daemon: nothing of it is tied to the daemon's life. A restarted daemon finds it by
//!   `<exec_root>/uplink.json` (record.rs) and goes on watching it through a pidfd.
//! * A container whose uplink cannot be started runs all the same; the log says why it has no way out.

mod program;
mod record;

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use skiff_core::{Error, Result};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use crate::config::{NetworkConfig, UplinkChoice};
use program::Program;
use record::Uplinked;

/// Address at which both programs answer DNS queries.
pub(crate) const FORWARDER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The interface they make.
pub(crate) const INTERFACE: &str = "tap0";
/// How long it runs on without a container, so that a loop of short containers starts it once.
const IDLE: Duration = Duration::from_secs(60);
/// Pause after the first failure; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// An uplink that ran this long had no problem at its start.
const HEALTHY: Duration = Duration::from_secs(60);

/// The uplink of one bridge namespace. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Uplink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    state: Mutex<State>,
}

/// What the programs are started with.
#[derive(Debug)]
struct Settings {
    exec_root: PathBuf,
    namespace: OwnedFd,
    lifeline: Option<OwnedFd>,
    /// In order of preference.
    programs: Vec<(Program, PathBuf)>,
    mtu: u32,
    host_loopback: bool,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    /// Containers that need it.
    users: usize,
    /// Failures in a row.
    failures: u32,
    /// No attempt before this time.
    pause_until: Option<Instant>,
    /// Serial number of the next one started or taken over.
    next_serial: u64,
    /// Counts changes of `users`, so that an old idle timer knows that it is old.
    generation: u64,
}

#[derive(Debug)]
struct Running {
    /// Tells it from earlier ones.
    serial: u64,
    uplinked: Uplinked,
    since: Instant,
}

/// A process to wait for.
#[derive(Debug)]
struct Watched {
    serial: u64,
    /// Readable when the process has ended.
    pidfd: AsyncFd<OwnedFd>,
}

impl Uplink {
    /// The uplink for `config`; `None` when the bridge needs none or no program is installed, which is logged.
    pub(crate) fn new(config: &NetworkConfig) -> Result<Option<Self>> {
        let Some(namespace) = &config.netns else {
            return Ok(None);
        };
        let programs = candidates(config);
        if programs.is_empty() {
            if config.uplink != UplinkChoice::Disabled {
                tracing::warn!(
                    "containers on the default bridge reach each other but not the outside: install slirp4netns \
                     (0.4.0 or newer, package slirp4netns) or pasta (package passt) and restart the daemon"
                );
            }
            return Ok(None);
        }
        let duplicate = |fd: &OwnedFd| {
            fd.try_clone()
                .map_err(|error| Error::system("cannot duplicate a descriptor").caused_by(error))
        };
        let settings = Settings {
            exec_root: config.exec_root.clone(),
            namespace: duplicate(namespace)?,
            lifeline: config.lifeline.as_ref().map(duplicate).transpose()?,
            programs,
            mtu: config.uplink_mtu,
            host_loopback: config.host_loopback,
        };
        Ok(Some(Self {
            shared: Arc::new(Shared {
                settings,
                state: Mutex::default(),
            }),
        }))
    }

    /// Counts a container that needs the uplink, and returns when the uplink is up or cannot be brought up.
    pub(crate) async fn acquire(&self) {
        let mut state = self.shared.state.lock().await;
        state.users += 1;
        state.generation += 1;
        self.shared.ensure_watched(&mut state).await;
    }

    /// Forgets a container. When it was the last one the uplink ends after a while.
    pub(crate) async fn release(&self) {
        let mut state = self.shared.state.lock().await;
        state.users = state.users.saturating_sub(1);
        state.generation += 1;
        if state.users == 0 {
            tokio::spawn(stop_when_idle(Arc::downgrade(&self.shared), state.generation));
        }
    }

    /// After a daemon restart: takes over the uplink of the earlier run if one of the `users` containers needs it,
    /// ends it otherwise.
    pub(crate) async fn recover(&self, users: usize) {
        let mut state = self.shared.state.lock().await;
        state.users = users;
        state.generation += 1;
        if users > 0 {
            self.shared.ensure_watched(&mut state).await;
        } else {
            self.shared.stop(&mut state).await;
        }
    }

    /// Ends the uplink, of this or an earlier run, and removes its files.
    pub(crate) async fn shut_down(&self) {
        let mut state = self.shared.state.lock().await;
        state.users = 0;
        state.generation += 1;
        self.shared.stop(&mut state).await;
    }
}

/// The programs to try, best first (requirement G1: slirp4netns before pasta).
fn candidates(config: &NetworkConfig) -> Vec<(Program, PathBuf)> {
    let slirp4netns = config
        .programs
        .slirp4netns
        .clone()
        .map(|path| (Program::Slirp4netns, path));
    let pasta = config.programs.pasta.clone().map(|path| (Program::Pasta, path));
    match config.uplink {
        UplinkChoice::Automatic => slirp4netns.into_iter().chain(pasta).collect(),
        UplinkChoice::Slirp4netns => slirp4netns.into_iter().collect(),
        UplinkChoice::Pasta => pasta.into_iter().collect(),
        UplinkChoice::Disabled => Vec::new(),
    }
}

impl Shared {
    async fn ensure_watched(self: &Arc<Self>, state: &mut State) {
        if let Some(watched) = self.ensure(state).await {
            tokio::spawn(watch(Arc::downgrade(self), watched));
        }
    }

    /// Brings the uplink up unless it is, or the last attempt failed just now. The caller has to watch a new one.
    async fn ensure(self: &Arc<Self>, state: &mut State) -> Option<Watched> {
        let paused = state.pause_until.is_some_and(|until| Instant::now() < until);
        if state.running.is_some() || paused {
            return None;
        }
        let shared = Arc::clone(self);
        let start = tokio::task::spawn_blocking(move || shared.adopt_or_start());
        let result = start
            .await
            .unwrap_or_else(|error| Err(Error::system("the uplink's thread failed").caused_by(error)));
        let watched = result.and_then(|uplinked| {
            let pidfd = uplinked.watch()?;
            Ok((uplinked, pidfd))
        });
        match watched {
            Ok((uplinked, pidfd)) => {
                let serial = state.next_serial;
                state.next_serial += 1;
                state.running = Some(Running {
                    serial,
                    uplinked,
                    since: Instant::now(),
                });
                Some(Watched { serial, pidfd })
            }
            Err(error) => {
                let pause = self.pause(state);
                tracing::error!(%error, retry_in = ?pause, "containers on the default bridge have no way out");
                None
            }
        }
    }

    fn adopt_or_start(&self) -> Result<Uplinked> {
        if let Some(uplinked) = record::adopt(&self.settings)? {
            tracing::info!(program = %uplinked.program(), pid = uplinked.pid(), "took over the uplink of an earlier run");
            return Ok(uplinked);
        }
        let mut first_error = None;
        for (program, path) in &self.settings.programs {
            let start = Instant::now();
            match program::start(*program, path, &self.settings) {
                Ok(uplinked) => {
                    tracing::info!(program = %path.display(), pid = uplinked.pid(), took = ?start.elapsed(), "uplink started");
                    return Ok(uplinked);
                }
                Err(error) => {
                    tracing::debug!(%error, program = %path.display(), "uplink not started");
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| Error::unavailable("no uplink program")))
    }

    /// Notes a failure and returns how long to wait before the next attempt.
    fn pause(&self, state: &mut State) -> Duration {
        let pause = FIRST_PAUSE
            .saturating_mul(1 << state.failures.min(6))
            .min(LONGEST_PAUSE);
        state.failures += 1;
        state.pause_until = Some(Instant::now() + pause);
        pause
    }

    /// Tries after `pause`, and after ever longer pauses, until it runs or nobody needs it any more.
    async fn start_again(self: &Arc<Self>, mut pause: Duration) -> Option<Watched> {
        loop {
            tokio::time::sleep(pause).await;
            let mut state = self.state.lock().await;
            if state.users == 0 || state.running.is_some() {
                return None;
            }
            if let Some(watched) = self.ensure(&mut state).await {
                return Some(watched);
            }
            let until = state.pause_until?;
            pause = until.saturating_duration_since(Instant::now());
        }
    }

    async fn stop(self: &Arc<Self>, state: &mut State) {
        let running = state.running.take().map(|running| running.uplinked);
        let shared = Arc::clone(self);
        let stop = tokio::task::spawn_blocking(move || record::stop(&shared.settings, running));
        match stop.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot end the uplink"),
            Err(error) => tracing::warn!(%error, "cannot end the uplink"),
        }
        state.failures = 0;
        state.pause_until = None;
    }

    /// The watched process has ended. Returns how long to wait before it is started again; `None` when it was ended
    /// on purpose.
    async fn ended(&self, watched: &Watched) -> Option<Duration> {
        let status = record::reap(watched.pidfd.get_ref());
        let mut state = self.state.lock().await;
        let serial = watched.serial;
        let running = state.running.take_if(|running| running.serial == serial)?;
        if running.since.elapsed() >= HEALTHY {
            state.failures = 0;
        }
        let pause = self.pause(&mut state);
        let output = running.uplinked.output();
        tracing::warn!(program = %running.uplinked.program(), %status, output, restart_in = ?pause, "the uplink died");
        Some(pause)
    }
}

/// Waits for the end of the uplink and starts it again while containers need it.
async fn watch(shared: Weak<Shared>, mut watched: Watched) {
    loop {
        if let Err(error) = watched.pidfd.ready(Interest::READABLE).await {
            tracing::warn!(%error, "cannot watch the uplink");
            return;
        }
        let Some(shared) = shared.upgrade() else { return };
        let Some(pause) = shared.ended(&watched).await else {
            return;
        };
        match shared.start_again(pause).await {
            Some(next) => watched = next,
            None => return,
        }
    }
}

async fn stop_when_idle(shared: Weak<Shared>, generation: u64) {
    tokio::time::sleep(IDLE).await;
    let Some(shared) = shared.upgrade() else { return };
    let mut state = shared.state.lock().await;
    if state.users == 0 && state.generation == generation && state.running.is_some() {
        tracing::debug!("no container needs the uplink any more");
        shared.stop(&mut state).await;
    }
}
