//! `skiffd storage …`: what is done to a data root while no daemon uses it.
//!
//! ```text
//! migrate.rs    another storage driver for everything
//! verify.rs     what is damaged, and repairing it
//! place.rs      whose data root it is, and that nobody else works in it
//! report.rs     progress bar or plain lines
//! ```

mod migrate;
mod place;
mod report;
mod verify;

use std::process::ExitCode;

use clap::Subcommand;

use super::Context;

/// What can be done.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Move all images and containers to another storage driver
    Migrate(migrate::Arguments),
    /// Look for damage in images, layers and containers, and repair it
    Verify(verify::Arguments),
}

/// Does it.
pub(super) fn run(command: &Command, context: &Context) -> ExitCode {
    let result = match command {
        Command::Migrate(arguments) => migrate::run(arguments, context),
        Command::Verify(arguments) => verify::run(arguments, context),
    };
    result.unwrap_or_else(|text| super::fail(&text))
}
