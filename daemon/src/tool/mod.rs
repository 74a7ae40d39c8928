//! Commands that do their work and end: `skiffd storage …`, `skiffd bench …`.
//!
//! ```text
//! cli.rs        the command tree; which data root, resolved as the daemon resolves it
//! interrupt.rs  Ctrl-C as a question one can ask
//! ```
//!
//! All of them work on files that belong to ids of the user's id map, so before any thread exists the process moves
//! into the user's namespaces ([`Stay`]): those of the running daemon, or some of its own. As root it stays where it is.

mod cli;
mod interrupt;
mod storage;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::bench;
use crate::config::{self, Config};
use crate::environment::Environment;
use crate::rootless::enter::Stay;
use cli::{Command, Parsed};
use skiff_store::StoreOptions;

pub(crate) use interrupt::Interrupt;

/// Where a command works.
#[derive(Debug)]
pub(crate) struct Context {
    /// What the daemon would be started with: `--data-root`, `daemon.json`, the environment and the defaults.
    pub(crate) config: Config,
}

impl Context {
    /// How the daemon would unpack layers.
    pub(crate) fn store_options(&self) -> StoreOptions {
        crate::wiring::store_options(&self.config)
    }
}

/// Runs a command; `words` follow the program's name.
pub(crate) fn run(words: Vec<OsString>, environment: &Environment) -> ExitCode {
    let Parsed {
        command,
        daemon_flags,
    } = match cli::parse(words) {
        Ok(parsed) => parsed,
        Err(error) => {
            // clap knows whether it is help, which was asked for, or a complaint; its status for those is 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let config = match config::parse("skiffd", daemon_flags, environment) {
        Ok(config::Outcome::Run(config)) => *config,
        Ok(config::Outcome::Print(text)) => return crate::print(&text),
        Err(error) => return fail(&error.to_string()),
    };
    // Commands, not a service: they say themselves what matters, and drivers' warnings are for those who start a daemon.
    crate::logging::init(if config.debug {
        config.effective_log_level()
    } else {
        config.effective_log_level().min(config::LogLevel::Error)
    });
    let stay = match Stay::enter(&config, environment) {
        Ok(stay) => stay,
        Err(text) => return fail(&text),
    };
    let context = Context { config };
    let code = match command {
        Command::Bench(bench::Command::Storage(arguments)) => bench::storage(&arguments, &context),
        Command::Storage(command) => storage::run(&command, &context),
    };
    drop(stay);
    code
}

/// Exit status of a command that could not do its work; 1 is for what a check found.
pub(crate) const FAILED: u8 = 2;

fn fail(text: &str) -> ExitCode {
    crate::complain(text);
    ExitCode::from(FAILED)
}
