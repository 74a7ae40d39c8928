//! After a restart: what became of the containers while no daemon was watching.

use std::sync::Arc;

use jiff::Timestamp;

use super::Shared;
use super::actor::{self, Beginning, LOST};
use super::disk::{FORMAT, StateFile};
use super::launch;
use super::state::State;
use super::view::Record;
use crate::error::{Error, Result};
use crate::network::Sandbox;
use crate::runtime::Adopted;

/// Reads all containers, asks the runtime what became of each, keeps the networks that are still used and
/// removes all others, then starts the owners. Orphaned layers are the janitor's.
pub(super) async fn recover(shared: &Arc<Shared>) -> Result<()> {
    let reader = Arc::clone(shared);
    let found = tokio::task::spawn_blocking(move || reader.disk.load())
        .await
        .map_err(|e| Error::system("read the containers").caused_by(e))??;
    let mut beginnings = Vec::with_capacity(found.len());
    for (record, file) in found {
        beginnings.push(beginning(shared, record, file).await);
    }
    let live: Vec<(String, Sandbox)> = beginnings
        .iter()
        .filter(|b| matches!(b.state, State::Running { .. }))
        .filter_map(|b| Some((b.record.id.clone(), b.sandbox.clone()?)))
        .collect();
    shared.networks.recover(&live).await?;
    for beginning in beginnings {
        let (id, name) = (beginning.record.id.clone(), beginning.record.name.clone());
        if let Err(error) = shared.registry.reserve(Some(&name), &id) {
            tracing::error!(container = %id, %error, "container is reachable by its id only");
        }
        shared.registry.insert(id, actor::spawn(shared, beginning));
    }
    Ok(())
}

async fn beginning(shared: &Shared, record: Record, file: Option<StateFile>) -> Beginning {
    let file = file.filter(|file| file.version <= FORMAT).unwrap_or(StateFile {
        version: FORMAT,
        state: State::Created { last_failure: None },
        sandbox: None,
        restart_count: 0,
    });
    let adopted = shared.runtime.adopt(&record.id).await.unwrap_or_else(|error| {
        tracing::warn!(container = %record.id, %error, "cannot ask for the task");
        Adopted::Gone
    });
    if matches!(adopted, Adopted::Created(_)) {
        // A start that was cut off before the command ran: nobody else will end its task.
        launch::clean_up(shared, &record.id).await;
    }
    let state = resolve(file.state, &adopted);
    if matches!(state, State::Running { .. })
        && shared.require_own_driver(&record).is_ok()
        && let Err(error) = shared.filesystems.take_over(&record.id).await
    {
        tracing::warn!(container = %record.id, %error, "cannot take over the root file system");
    }
    tracing::debug!(container = %record.id, ?adopted, status = state.status().word, "recovered");
    Beginning {
        record: Arc::new(record),
        state,
        sandbox: file.sandbox,
        restart_count: file.restart_count,
    }
}

/// What the state on disk and the runtime's answer mean together.
fn resolve(recorded: State, adopted: &Adopted) -> State {
    let (previous, started_at) = match recorded {
        State::Removing { .. } | State::Dead { .. } => return recorded,
        State::Starting { previous } => (*previous, None),
        State::Running { started_at, .. } => (recorded, Some(started_at)),
        State::Created { .. } | State::Exited { .. } => (recorded, None),
    };
    let now = Timestamp::now();
    let ended = |code, finished_at, oom_killed| State::Exited {
        code,
        started_at: started_at.unwrap_or(finished_at),
        finished_at,
        oom_killed,
        last_failure: None,
        cleaned: false,
    };
    match adopted {
        Adopted::Running(pid) => State::Running {
            pid: *pid,
            started_at: started_at.unwrap_or(now),
        },
        Adopted::Exited(exit) => match previous {
            // Recorded already; only the clean-up was cut off.
            State::Exited { .. } => uncleaned(previous),
            _ => ended(exit.code, exit.finished_at, exit.oom_killed),
        },
        // A start that was cut off can be tried again.
        Adopted::Created(_) | Adopted::Gone => match previous {
            State::Running { .. } => ended(LOST, now, false),
            // A created container has nothing to clean but a cut-off start may have left its network and mounts;
            // `Networks::recover` and the next mount take care of these.
            State::Created { .. } => previous,
            other => uncleaned(other),
        },
    }
}

fn uncleaned(mut state: State) -> State {
    if let State::Exited { cleaned, .. } = &mut state {
        *cleaned = false;
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::TaskExit;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_runtime_knows_better_than_the_file() {
        let created = State::Created { last_failure: None };
        let starting = State::Starting {
            previous: Box::new(created.clone()),
        };
        let running = State::Running {
            pid: 5,
            started_at: at(1),
        };
        let exit = TaskExit {
            code: 3,
            finished_at: at(9),
            oom_killed: false,
        };
        // Killed between the start and its record.
        assert!(matches!(
            resolve(starting.clone(), &Adopted::Running(6)),
            State::Running { pid: 6, .. }
        ));
        assert_eq!(resolve(starting.clone(), &Adopted::Created(6)), created);
        assert_eq!(resolve(starting, &Adopted::Gone), created);
        // Ended while nobody watched.
        let ended = resolve(running.clone(), &Adopted::Exited(exit)).status();
        assert_eq!(
            (ended.exit_code, ended.started_at, ended.finished_at),
            (3, Some(at(1)), Some(at(9)))
        );
        // The shim was lost with it.
        assert_eq!(resolve(running, &Adopted::Gone).status().exit_code, LOST);
    }

    #[test]
    fn a_recorded_end_is_kept_and_cleaned_up_again() {
        let state = State::Exited {
            code: 7,
            started_at: at(1),
            finished_at: at(2),
            oom_killed: false,
            last_failure: None,
            cleaned: true,
        };
        let again = resolve(state, &Adopted::Gone);
        assert!(matches!(
            again,
            State::Exited {
                code: 7,
                cleaned: false,
                ..
            }
        ));
    }
}
