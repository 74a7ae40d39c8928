//! A container's life as a value: states, events, and a pure transition function ([`step`]): no clock, no I/O.
//!
//! ```text
//!               ┌───────────────── LaunchFailed ──────────────┐
//!               ▼                                             │
//!  (new) ──▶ Created ──Start──▶ Starting ──Launched──▶ Running
//!               │                  ▲  │                  │ Exited
//!               │                  │  └─LaunchFailed─┐   ▼
//!               │                  └─────Start───── Exited (not cleaned ──CleanedUp──▶ cleaned)
//!               └──────Remove──────────┐             │ Remove
//!                                      ▼             ▼
//!                            (gone) ◀──Removed── Removing ──RemoveFailed──▶ Dead ──Remove──▶ Removing
//! ```
//!
//! The owner (`super::actor`) feeds events, carries out the effects, and asks again later when a command is
//! [`Denied::Later`].

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
        /// Why the last start failed, if that came after; before that, what befell the container while it ran.
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

/// What happens to a container: commands of clients and reports of effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client wants it to run.
    Start,
    /// The command runs.
    Launched {
        /// Host process id.
        pid: u32,
        /// Since when.
        at: Timestamp,
    },
    /// It could not be started; what the attempt had made is undone.
    LaunchFailed(Failure),
    /// The first process ended.
    Exited {
        /// Exit code.
        code: i32,
        /// When.
        at: Timestamp,
        /// The kernel's out-of-memory killer did it.
        oom_killed: bool,
        /// What befell its root file system, if anything did.
        trouble: Option<String>,
    },
    /// Mounts, network and task of the ended run are gone.
    CleanedUp,
    /// A client wants it to end.
    Stop,
    /// A client sends a signal.
    Kill,
    /// A client wants it gone.
    Remove {
        /// Kill it when it runs.
        force: bool,
    },
    /// It is gone.
    Removed,
    /// It could not be removed.
    RemoveFailed(String),
}

/// What the owner must do after a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Make network, mounts and task, and run the command; report `Launched` or `LaunchFailed`.
    Launch,
    /// Wait for the task's end; report `Exited`.
    Watch,
    /// Undo what `Launch` made; report `CleanedUp`.
    CleanUp,
    /// Send the stop signal, and SIGKILL when the time is over.
    Stop,
    /// Send the signal of the command.
    Signal,
    /// Send SIGKILL because it must be removed.
    KillForRemoval,
    /// Delete the writable layer and the record; report `Removed` or `RemoveFailed`.
    Delete,
}

/// Why an event changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// It is so already.
    NotModified,
    /// The command needs a running container.
    NotRunning,
    /// The command needs a container that does not run.
    Running,
    /// It is being removed.
    Removing,
    /// Only removal is possible.
    Dead,
    /// Not now: ask again after the next transition.
    Later,
    /// A report that does not fit the state: a fault of the owner.
    Impossible,
}

/// A container's next state and what to do to get there.
///
/// # Errors
/// See [`Denied`]; the state stays as it was.
pub fn step(state: &State, event: &Event) -> Result<(State, Vec<Effect>), Denied> {
    match event {
        Event::Start => start(state),
        Event::Stop => while_running(state, Effect::Stop, Denied::NotModified),
        Event::Kill => while_running(state, Effect::Signal, Denied::NotRunning),
        Event::Remove { force } => remove(state, *force),
        report => reported(state, report),
    }
}

fn start(state: &State) -> Result<(State, Vec<Effect>), Denied> {
    match state {
        State::Created { .. } | State::Exited { cleaned: true, .. } => Ok((
            State::Starting {
                previous: Box::new(state.clone()),
            },
            vec![Effect::Launch],
        )),
        State::Starting { .. } | State::Exited { cleaned: false, .. } => Err(Denied::Later),
        State::Running { .. } => Err(Denied::NotModified),
        State::Removing { .. } => Err(Denied::Removing),
        State::Dead { .. } => Err(Denied::Dead),
    }
}

fn while_running(state: &State, effect: Effect, otherwise: Denied) -> Result<(State, Vec<Effect>), Denied> {
    match state {
        State::Running { .. } => Ok((state.clone(), vec![effect])),
        State::Starting { .. } => Err(Denied::Later),
        _ => Err(otherwise),
    }
}

fn remove(state: &State, force: bool) -> Result<(State, Vec<Effect>), Denied> {
    match state {
        State::Created { .. } | State::Exited { cleaned: true, .. } | State::Dead { .. } => Ok((
            State::Removing {
                previous: Box::new(state.clone()),
            },
            vec![Effect::Delete],
        )),
        State::Starting { .. } | State::Exited { cleaned: false, .. } => Err(Denied::Later),
        // The owner asks again when it has ended.
        State::Running { .. } if force => Ok((state.clone(), vec![Effect::KillForRemoval])),
        State::Running { .. } => Err(Denied::Running),
        State::Removing { .. } => Err(Denied::Removing),
    }
}

fn reported(state: &State, report: &Event) -> Result<(State, Vec<Effect>), Denied> {
    match (state, report) {
        (State::Starting { .. }, Event::Launched { pid, at }) => Ok((
            State::Running {
                pid: *pid,
                started_at: *at,
            },
            vec![Effect::Watch],
        )),
        (State::Starting { previous }, Event::LaunchFailed(failure)) => {
            let mut state = (**previous).clone();
            if let State::Created { last_failure } | State::Exited { last_failure, .. } = &mut state {
                *last_failure = Some(failure.clone());
            }
            Ok((state, Vec::new()))
        }
        (
            State::Running { started_at, .. },
            Event::Exited {
                code,
                at,
                oom_killed,
                trouble,
            },
        ) => Ok((
            State::Exited {
                code: *code,
                started_at: *started_at,
                finished_at: *at,
                oom_killed: *oom_killed,
                last_failure: trouble.clone().map(|message| Failure { code: *code, message }),
                cleaned: false,
            },
            vec![Effect::CleanUp],
        )),
        (State::Exited { cleaned: false, .. }, Event::CleanedUp) => {
            let mut state = state.clone();
            if let State::Exited { cleaned, .. } = &mut state {
                *cleaned = true;
            }
            Ok((state, Vec::new()))
        }
        // The last transition: the owner ends after it.
        (State::Removing { .. }, Event::Removed) => Ok((state.clone(), Vec::new())),
        (State::Removing { .. }, Event::RemoveFailed(reason)) => Ok((
            State::Dead {
                reason: reason.clone(),
            },
            Vec::new(),
        )),
        _ => Err(Denied::Impossible),
    }
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
            Self::Exited {
                code,
                started_at,
                finished_at,
                oom_killed,
                last_failure,
                cleaned: _,
            } => {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn created() -> State {
        State::Created { last_failure: None }
    }

    fn exited(cleaned: bool) -> State {
        State::Exited {
            code: 3,
            started_at: at(1),
            finished_at: at(2),
            oom_killed: false,
            last_failure: None,
            cleaned,
        }
    }

    fn states() -> Vec<(&'static str, State)> {
        vec![
            ("created", created()),
            (
                "starting",
                State::Starting {
                    previous: Box::new(created()),
                },
            ),
            (
                "running",
                State::Running {
                    pid: 7,
                    started_at: at(1),
                },
            ),
            ("ended", exited(false)),
            ("exited", exited(true)),
            (
                "removing",
                State::Removing {
                    previous: Box::new(exited(true)),
                },
            ),
            (
                "dead",
                State::Dead {
                    reason: "disk".to_owned(),
                },
            ),
        ]
    }

    fn events() -> Vec<(&'static str, Event)> {
        vec![
            ("start", Event::Start),
            ("launched", Event::Launched { pid: 9, at: at(5) }),
            (
                "failed",
                Event::LaunchFailed(Failure {
                    code: 127,
                    message: "no".to_owned(),
                }),
            ),
            (
                "ended",
                Event::Exited {
                    code: 3,
                    at: at(2),
                    oom_killed: false,
                    trouble: None,
                },
            ),
            ("cleaned", Event::CleanedUp),
            ("stop", Event::Stop),
            ("kill", Event::Kill),
            ("remove", Event::Remove { force: false }),
            ("force", Event::Remove { force: true }),
            ("removed", Event::Removed),
            ("stuck", Event::RemoveFailed("busy".to_owned())),
        ]
    }

    fn outcome(state: &State, event: &Event) -> String {
        let name = |state: &State| match state {
            State::Exited { cleaned: false, .. } => "ended",
            State::Starting { .. } => "starting",
            other => other.status().word,
        };
        match step(state, event) {
            Ok((next, effects)) => format!("{}{effects:?}", name(&next)),
            Err(denied) => format!("-{denied:?}"),
        }
    }

    /// Each state against each event. A new state or event without a row here fails the count.
    #[test]
    fn full_table() {
        let table = "
            created:  starting[Launch] | -Impossible | -Impossible | -Impossible | -Impossible | -NotModified | -NotRunning | removing[Delete] | removing[Delete] | -Impossible | -Impossible
            starting: -Later | running[Watch] | created[] | -Impossible | -Impossible | -Later | -Later | -Later | -Later | -Impossible | -Impossible
            running:  -NotModified | -Impossible | -Impossible | ended[CleanUp] | -Impossible | running[Stop] | running[Signal] | -Running | running[KillForRemoval] | -Impossible | -Impossible
            ended:    -Later | -Impossible | -Impossible | -Impossible | exited[] | -NotModified | -NotRunning | -Later | -Later | -Impossible | -Impossible
            exited:   starting[Launch] | -Impossible | -Impossible | -Impossible | -Impossible | -NotModified | -NotRunning | removing[Delete] | removing[Delete] | -Impossible | -Impossible
            removing: -Removing | -Impossible | -Impossible | -Impossible | -Impossible | -NotModified | -NotRunning | -Removing | -Removing | removing[] | dead[]
            dead:     -Dead | -Impossible | -Impossible | -Impossible | -Impossible | -NotModified | -NotRunning | removing[Delete] | removing[Delete] | -Impossible | -Impossible
        ";
        let rows: Vec<&str> = table
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        assert_eq!(rows.len(), states().len());
        for ((state_name, state), row) in states().iter().zip(rows) {
            let (row_name, cells) = row.split_once(':').unwrap();
            assert_eq!(*state_name, row_name);
            let cells: Vec<&str> = cells.split('|').map(str::trim).collect();
            assert_eq!(cells.len(), events().len());
            for ((event_name, event), cell) in events().iter().zip(cells) {
                assert_eq!(outcome(state, event), cell, "{state_name} × {event_name}");
            }
        }
    }

    #[test]
    fn a_failed_start_shows_its_code_and_text_and_keeps_the_earlier_run() {
        let starting = State::Starting {
            previous: Box::new(exited(true)),
        };
        let failure = Failure {
            code: 126,
            message: "permission denied".to_owned(),
        };
        let (state, _) = step(&starting, &Event::LaunchFailed(failure)).unwrap();
        let status = state.status();
        assert_eq!(
            (status.word, status.exit_code, status.error.as_str()),
            ("exited", 126, "permission denied")
        );
        assert_eq!(status.finished_at, Some(at(2)));
    }

    proptest! {
        /// Whatever happens in whatever order: only reports of the matching effect change the state, a removed
        /// container never runs again, and at most one of launch, clean-up and delete is under way.
        #[test]
        fn any_sequence(choices in prop::collection::vec(0usize..11, 0..60)) {
            let events = events();
            let mut state = created();
            let mut under_way: Option<Effect> = None;
            for choice in choices {
                let event = &events[choice].1;
                let fits = match event {
                    Event::Launched { .. } | Event::LaunchFailed(_) => under_way == Some(Effect::Launch),
                    Event::Exited { .. } => under_way == Some(Effect::Watch),
                    Event::CleanedUp => under_way == Some(Effect::CleanUp),
                    Event::Removed | Event::RemoveFailed(_) => under_way == Some(Effect::Delete),
                    _ => true,
                };
                match step(&state, event) {
                    Ok((next, effects)) => {
                        prop_assert!(fits, "{event:?} was accepted in {state:?} without its effect");
                        if matches!(event, Event::Removed) {
                            break;
                        }
                        if !matches!(event, Event::Start | Event::Stop | Event::Kill | Event::Remove { .. }) {
                            under_way = None;
                        }
                        for effect in effects {
                            if matches!(effect, Effect::Launch | Effect::Watch | Effect::CleanUp | Effect::Delete) {
                                prop_assert_eq!(under_way, None);
                                under_way = Some(effect);
                            }
                        }
                        state = next;
                    }
                    Err(denied) => prop_assert_eq!(denied == Denied::Impossible, !fits),
                }
            }
        }
    }
}
