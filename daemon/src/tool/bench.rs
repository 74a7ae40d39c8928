//! `skiffd bench …`: measures the storage drivers where the user's data lie.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::Context;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Compare the storage drivers on the disk that holds the data root
    Storage(Storage),
}

/// Arguments of `skiffd bench storage`.
#[derive(Debug, Args)]
pub(super) struct Storage {}

/// `skiffd bench storage`.
pub(super) fn storage(_arguments: &Storage, _context: &Context) -> ExitCode {
    super::fail("skiffd bench storage is not part of this build yet")
}
