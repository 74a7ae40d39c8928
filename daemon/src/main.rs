//! skiffd: a Docker Engine for ordinary users, one binary with several roles.
//!
//! ```text
//! role.rs         which role: by argv[0] and the first argument, before any thread exists
//! config/         flags + daemon.json → Config
//! rootless/       parent and keeper: namespaces, id maps, supervision
//! server/         the daemon: sockets, signals, life cycle
//! wiring.rs       builds the engine out of the crates below; the only place that knows all of them
//! setuptool.rs    dockerd-rootless-setuptool.sh
//! fuse.rs         fuse-overlayfs, one overlay mount in user space
//! init.rs         docker-init, process 1 of containers started with --init
//! tool/           skiffd storage, skiffd bench: commands that do their work and end
//! bench/          skiffd bench storage: which storage driver is the fastest here
//! ```
//!
//! Later roles (doctor) are variants of [`role::Role`] with a module each.

mod bench;
mod config;
mod environment;
mod fuse;
mod init;
mod locks;
mod logging;
mod paths;
mod role;
mod rootless;
mod server;
mod setuptool;
mod tool;
mod wiring;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use environment::Environment;
use role::Role;

/// This program's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from, when the build says so.
pub(crate) const GIT_COMMIT: &str = match option_env!("SKIFF_GIT_COMMIT") {
    Some(commit) => commit,
    None => "",
};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match Role::of(&arguments) {
        Role::Keeper => rootless::keeper::run().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS),
        Role::Daemon => server::run_as_child(&role::program_name(&arguments)),
        Role::Shim(shim_arguments) => wiring::shim(shim_arguments),
        Role::Init(command) => init::run(&command),
        Role::FuseOverlayfs(words) => fuse::run(&words),
        Role::SetupTool(words) => setuptool::run(&words, &Environment::read()),
        Role::Tool(words) => tool::run(words, &Environment::read()),
        Role::Parent => start(&arguments),
    }
}

fn start(arguments: &[OsString]) -> ExitCode {
    let environment = Environment::read();
    let program = role::program_name(arguments);
    let config = match config::parse(&program, arguments.iter().skip(1).cloned(), &environment) {
        Ok(config::Outcome::Run(config)) => *config,
        Ok(config::Outcome::Print(text)) => return print(&text),
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    logging::init(config.effective_log_level());
    if environment.root {
        return server::run_as_root(config);
    }
    rootless::parent::run(config, &environment, arguments).unwrap_or_else(|text| {
        complain(&text);
        ExitCode::FAILURE
    })
}

/// Prints what was asked for; a reader that left is no failure of ours.
pub(crate) fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Says why nothing was started: plain text, not a log line, so that it reads the same for people and for scripts.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", text.trim_end());
}
