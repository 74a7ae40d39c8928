//! A container's life as a value: states, events, and a pure transition function.
//!
//! ```text
//!  Created ──Start──▶ Starting ──Launched──▶ Running ──Exited──▶ Exited ──Start──▶ Starting
//!     │                  └──LaunchFailed──▶ Created/Exited          │
//!     └──────────────────────────Remove─────────────────────────────┴──▶ Removing ──Removed──▶ (gone)
//! ```

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Never started, or the last start failed before the command ran.
    Created {
        /// Why the last start failed.
        last_failure: Option<Failure>,
    },
    /// Being started.
    Starting {
        /// What it was before, for the case that the start fails.
        previous: Box<State>,
    },
    /// The command runs.
    Running {
        /// Host process id of the first process.
        pid: u32,
        /// When it began.
        started_at: Timestamp,
    },
    /// The command ended.
    Exited {
        /// Exit code.
        code: i32,
        /// When the command had begun.
        started_at: Timestamp,
        /// When it ended.
        finished_at: Timestamp,
        /// The kernel's out-of-memory killer ended it.
        oom_killed: bool,
        /// Why the last start failed, if that came after.
        last_failure: Option<Failure>,
        /// Its mounts, network and task are gone, too.
        cleaned: bool,
    },
    /// Being removed.
    Removing {
        /// What it was before.
        previous: Box<State>,
    },
    /// Removal failed half-way; only another removal is possible.
    Dead {
        /// Why.
        reason: String,
    },
}

/// A start that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The exit code to show: 127, 126 or 128.
    pub code: i32,
    /// The error text.
    pub message: String,
}

/// Docker's view of a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited`, `dead`.
    pub word: &'static str,
    /// `State.Running`.
    pub running: bool,
    /// `State.Dead`.
    pub dead: bool,
    /// `State.Pid`, 0 when not running.
    pub pid: u32,
    /// `State.ExitCode`.
    pub exit_code: i32,
    /// `State.Error`.
    pub error: String,
    /// `State.OOMKilled`.
    pub oom_killed: bool,
    /// `State.StartedAt`; `None` is shown as year 1.
    pub started_at: Option<Timestamp>,
    /// `State.FinishedAt`.
    pub finished_at: Option<Timestamp>,
}

impl State {
    /// The one place where Docker's status words and booleans are derived.
    pub fn status(&self) -> Status {
        let mut status = Status {
            word: "created",
            running: false,
            dead: false,
            pid: 0,
            exit_code: 0,
            error: String::new(),
            oom_killed: false,
            started_at: None,
            finished_at: None,
        };
        match self {
            Self::Created { last_failure } => status.fail(last_failure.as_ref()),
            // A client that looks between `start` and the answer sees what was there before.
            Self::Starting { previous } => return previous.status(),
            Self::Running { pid, started_at } => {
                status.word = "running";
                status.running = true;
                status.pid = *pid;
                status.started_at = Some(*started_at);
            }
            Self::Exited { code, started_at, finished_at, oom_killed, last_failure, cleaned: _ } => {
                status.word = "exited";
                status.exit_code = *code;
                status.started_at = Some(*started_at);
                status.finished_at = Some(*finished_at);
                status.oom_killed = *oom_killed;
                status.fail(last_failure.as_ref());
            }
            Self::Removing { previous } => {
                status = previous.status();
                status.word = "removing";
            }
            Self::Dead { reason } => {
                status.word = "dead";
                status.dead = true;
                status.error.clone_from(reason);
            }
        }
        status
    }
}

impl Status {
    fn fail(&mut self, failure: Option<&Failure>) {
        if let Some(failure) = failure {
            self.exit_code = failure.code;
            self.error.clone_from(&failure.message);
        }
    }
}
