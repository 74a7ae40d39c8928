//! The daemon: joins the keeper's namespaces, builds the engine and serves the API until it is asked to stop.
//!
//! Until the async runtime starts it is single-threaded: setns(2) into a user namespace needs that, and so does
//! binding sockets with a umask.

pub(crate) mod facts;
pub(crate) mod listen;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use skiff_sys::lock::FileLock;
use skiff_sys::ns::Namespaces;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config};
use crate::locks;
use crate::logging;
use crate::rootless::channel::Channel;
use crate::rootless::enter;
use crate::rootless::messages::{Boot, FromDaemon, HostFacts};
use crate::rootless::record;
use crate::wiring::{self, Networking, Wired};
use listen::{Bound, Passed};

/// Threads that run tasks; blocking work has threads of its own.
const WORKERS: usize = 2;
/// Enough for several pulls unpacking at once; more would only wait for the disk.
const MAX_BLOCKING_THREADS: usize = 48;
/// Idle threads go soon: each costs memory.
const IDLE_THREAD_LIFE: Duration = Duration::from_secs(2);
/// After this time a daemon that nobody uses has finished starting.
const SETTLING: Duration = Duration::from_secs(3);
/// The parent sends its message before anything else.
const PARENTS_PATIENCE: Duration = Duration::from_secs(30);
/// How long a shim may take to end after its container.
const SHIMS_LAST_MOMENT: Duration = Duration::from_secs(1);
/// Enough for a thread that waits and then logs one line.
const WATCHER_STACK: usize = 128 * 1024;
/// Name shown by ps for the process (15 bytes at most).
const COMM: &std::ffi::CStr = c"skiffd";

/// What the daemon runs with, from the parent or, as root, from itself.
struct Setup {
    config: Config,
    host: HostFacts,
    networking: Networking,
    /// Held until the process ends.
    _locks: Vec<FileLock>,
    passed: Passed,
    /// To the parent; `None` as root.
    parent: Option<Channel>,
}

/// The daemon of a rootless parent.
pub(crate) fn run_as_child(program: &str) -> ExitCode {
    let result = prepare_child(program).and_then(run);
    report(result)
}

/// The daemon as root, without parent and keeper.
pub(crate) fn run_as_root(config: Config) -> ExitCode {
    let result = prepare_root(config).and_then(run);
    report(result)
}

fn report(result: Result<ExitCode, String>) -> ExitCode {
    result.unwrap_or_else(|text| {
        crate::complain(&text);
        ExitCode::FAILURE
    })
}

fn prepare_child(program: &str) -> Result<Setup, String> {
    // Everything that is meant for us comes over the channel.
    skiff_sys::process::close_inherited_descriptors();
    // The parent holds signals back for itself, and the mask is inherited.
    let _ = SigSet::empty().thread_set_mask();
    let name = CString::new(program.chars().take(15).collect::<String>()).unwrap_or_else(|_| COMM.to_owned());
    let _ = rustix::thread::set_name(&name);
    let channel =
        Channel::from_stdin().map_err(|error| format!("this role is started by skiffd itself: {error}"))?;
    let (boot, fds) = channel
        .receive::<Boot>(Some(PARENTS_PATIENCE))
        .map_err(|error| error.to_string())?;
    logging::init(boot.config.effective_log_level());

    let mut fds = fds.into_iter();
    let mut next = || {
        fds.next()
            .ok_or_else(|| "the parent sent too few descriptors".to_owned())
    };
    let namespaces = Namespaces::from_fds([next()?, next()?, next()?, next()?]);
    let lifeline = next()?;
    let locks = (0..boot.locks)
        .map(|_| next().map(FileLock::from))
        .collect::<Result<Vec<_>, _>>()?;
    let passed = (0..boot.listeners)
        .map(|_| next())
        .collect::<Result<Vec<OwnedFd>, _>>()?;
    enter::join(&namespaces).map_err(|error| format!("cannot join the keeper's namespaces: {error}"))?;
    let networking = Networking {
        namespace: Some(namespaces.network),
        lifeline: Some(lifeline),
    };
    Ok(Setup {
        config: boot.config,
        host: boot.host,
        networking,
        _locks: locks,
        passed: passed.into(),
        parent: Some(channel),
    })
}

fn prepare_root(mut config: Config) -> Result<Setup, String> {
    let passed = Passed::from_environment().map_err(|error| format!("LISTEN_FDS: {error}"))?;
    config.exec_root = locks::make_directory("exec root", &config.exec_root)?;
    config.data_root = locks::make_directory("data root", &config.data_root)?;
    let locks = locks::acquire(&config.data_root, &config.exec_root)?
        .into_iter()
        .collect();
    record::replace(&config.pidfile, &std::process::id().to_string()).map_err(|error| error.to_string())?;
    let host = HostFacts {
        cgroup_v2: facts::cgroup_v2(),
        ..HostFacts::default()
    };
    Ok(Setup {
        config,
        host,
        networking: Networking::default(),
        _locks: locks,
        passed,
        parent: None,
    })
}

fn run(mut setup: Setup) -> Result<ExitCode, String> {
    skiff_sys::heap::limit_arenas(2);
    for warning in &setup.config.warnings {
        tracing::warn!("{warning}");
    }
    let group = (!setup.config.rootless).then(docker_group).flatten();
    let mut bound = listen::bind_all(&setup.config.hosts, std::mem::take(&mut setup.passed), group)?;
    let files: Vec<_> = bound.iter_mut().filter_map(|bound| bound.file.take()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(IDLE_THREAD_LIFE)
        .thread_name("skiffd")
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the async runtime: {error}"))?;
    let result = runtime.block_on(serve(setup, bound));
    for file in files {
        file.remove();
    }
    // Whatever still blocks on the disk must not delay the end.
    runtime.shutdown_background();
    result
}

fn docker_group() -> Option<u32> {
    nix::unistd::Group::from_name("docker")
        .ok()
        .flatten()
        .map(|group| group.gid.as_raw())
}

async fn serve(setup: Setup, bound: Vec<Bound>) -> Result<ExitCode, String> {
    let Setup {
        config,
        host,
        networking,
        _locks,
        passed: _,
        parent,
    } = setup;
    let fail = |error: io::Error| format!("signals: {error}");
    let mut signals = StopSignals::install().map_err(fail)?;
    let hangup = signal(SignalKind::hangup()).map_err(fail)?;
    let parent = parent
        .map(Parent::watch)
        .transpose()
        .map_err(|error| format!("parent: {error}"))?;
    if let Some(parent) = &parent {
        parent.say(FromDaemon::SignalsHeld);
    }
    let names: Vec<String> = bound.iter().map(|bound| bound.name.clone()).collect();
    let shutdown = CancellationToken::new();
    let starting = wiring::start(&config, &host, networking);
    let wired = tokio::select! {
        wired = starting => wired?,
        signal = signals.stop() => return Ok(signal.interrupted()),
    };
    let servers = wired.serve(bound, &shutdown)?;
    tracing::info!("Daemon has completed initialization");
    match &parent {
        Some(parent) => parent.say(FromDaemon::Ready),
        None => drop(sd_notify::notify(&[sd_notify::NotifyState::Ready])),
    }
    // After the message: whoever reads this line may rely on what the parent does for a daemon that was ready.
    for name in names {
        tracing::info!("API listen on {name}");
    }
    tokio::spawn(settle());

    let asked = wait_for_stop(&mut signals, hangup, &config).await;
    tracing::info!("Processing signal '{}'", asked.name());
    let orderly = async {
        let containers_left = stop_engine(&wired, &config).await;
        shutdown.cancel();
        servers.wait().await;
        containers_left
    };
    tokio::select! {
        containers_left = orderly => {
            if !config.rootless {
                let _ = std::fs::remove_file(&config.pidfile);
            }
            if let Some(parent) = &parent {
                parent.say(FromDaemon::Stopped { containers_left });
            }
            tracing::info!("Daemon shutdown complete");
            Ok(ExitCode::SUCCESS)
        }
        signal = signals.stop() => {
            tracing::warn!("Forcing shutdown; containers that still run are taken over by the next start");
            Ok(signal.interrupted())
        }
    }
}

/// Gives back what only the start needed, once its late work (the bridge, threads that end for want of work) is done.
async fn settle() {
    tokio::time::sleep(SETTLING).await;
    skiff_sys::heap::trim();
    let _ = skiff_sys::heap::release_program_pages();
}

/// Stops the containers, unless they are to live on. Whether any is left.
async fn stop_engine(wired: &Wired, config: &Config) -> bool {
    // Asked of the processes, not of the engine: it is they who hold the namespaces.
    let shims = || !skiff_runtime::live_shims(&config.exec_root).is_empty();
    if !config.live_restore {
        wired.stop_containers(config.shutdown_timeout).await;
        // A shim ends a moment after its container.
        let end = tokio::time::Instant::now() + SHIMS_LAST_MOMENT;
        while shims() && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let containers_left = shims();
    if !containers_left {
        wired.shut_down_networks().await;
    }
    containers_left
}

/// SIGHUP is dealt with here; everything else ends the wait.
async fn wait_for_stop(signals: &mut StopSignals, mut hangup: Signal, config: &Config) -> Asked {
    loop {
        tokio::select! {
            asked = signals.stop() => return asked,
            Some(()) = hangup.recv() => reload(config),
        }
    }
}

/// What can change without a restart: how much is logged.
fn reload(config: &Config) {
    tracing::info!(
        "Got signal to reload configuration, reloading from: {}",
        config.config_file.display()
    );
    match config::reload(config) {
        Ok(Some(level)) => {
            logging::set_level(level);
            tracing::info!(
                "Reloaded configuration: the log level is {level:?}; other changes need a restart"
            );
        }
        Ok(None) => {
            tracing::info!(
                "Nothing to reload: only \"debug\" and \"log-level\" can change without a restart"
            );
        }
        Err(error) => tracing::error!("{error}"),
    }
}

struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

/// The signal that asked for the end.
struct Asked(SignalKind);

impl Asked {
    /// Its name in dockerd's log.
    fn name(&self) -> &'static str {
        match self.0 {
            kind if kind == SignalKind::interrupt() => "interrupt",
            kind if kind == SignalKind::quit() => "quit",
            _ => "terminated",
        }
    }

    /// A shell's convention for a process that a signal ended.
    fn interrupted(self) -> ExitCode {
        ExitCode::from(u8::try_from(128 + self.0.as_raw_value()).unwrap_or(1))
    }
}

impl StopSignals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    async fn stop(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked(SignalKind::terminate()),
            _ = self.interrupt.recv() => Asked(SignalKind::interrupt()),
            _ = self.quit.recv() => Asked(SignalKind::quit()),
        }
    }
}

/// The way to the parent, and its death as the end of ours.
struct Parent {
    channel: Channel,
}

impl Parent {
    /// A thread of its own: it must notice also when all workers are busy.
    fn watch(channel: Channel) -> io::Result<Self> {
        let watched = channel.as_fd().try_clone_to_owned()?;
        thread::Builder::new()
            .name("parent".to_owned())
            .stack_size(WATCHER_STACK)
            .spawn(move || {
                // The parent says nothing after its first message: readable means that it is gone.
                while poll(&mut [PollFd::new(&watched, PollFlags::IN)], None) == Err(Errno::INTR) {}
                tracing::error!(
                    "the parent process was killed; ending, containers go on until the next start"
                );
                std::process::exit(1);
            })?;
        Ok(Self { channel })
    }

    /// A parent that does not listen any more has ended, which is noticed elsewhere.
    fn say(&self, message: FromDaemon) {
        let _ = self.channel.send(&message, &[]);
    }
}
