//! The command tree. A command's own arguments are declared beside the command; here is what all of them share.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::storage;
use crate::bench;

/// What the command line says.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The command.
    pub(super) command: Command,
    /// The daemon's flags that were given, for its own parser: there is one place that knows what they mean.
    pub(super) daemon_flags: Vec<OsString>,
}

/// skiffd's commands. Without one, skiffd is the daemon: see `skiffd --help`.
#[derive(Debug, Parser)]
#[command(name = "skiffd", version = crate::VERSION, max_term_width = 110, propagate_version = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    place: Place,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Measure this machine
    #[command(subcommand, arg_required_else_help = true)]
    Bench(bench::Command),
    /// Look after images' and containers' files
    #[command(subcommand, arg_required_else_help = true)]
    Storage(storage::Command),
}

/// Which daemon's files; the flags are the daemon's, and so are the defaults.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which daemon's storage (as given to the daemon)")]
struct Place {
    /// Images and containers [default: daemon.json's, else ~/.local/share/docker; as root /var/lib/docker]
    #[arg(long, global = true, value_name = "PATH")]
    data_root: Option<PathBuf>,
    /// The daemon's run-time state [default: daemon.json's, else $XDG_RUNTIME_DIR/docker; as root /var/run/docker]
    #[arg(long, global = true, value_name = "PATH")]
    exec_root: Option<PathBuf>,
    /// daemon.json [default: ~/.config/docker/daemon.json; as root /etc/docker/daemon.json]
    #[arg(long, global = true, value_name = "PATH")]
    config_file: Option<PathBuf>,
    /// Option of a storage driver, NAME=VALUE (may be repeated)
    #[arg(long = "storage-opt", global = true, value_name = "NAME=VALUE")]
    storage_opts: Vec<OsString>,
    /// Say what is being done
    #[arg(short = 'D', long, global = true)]
    debug: bool,
}

impl Place {
    fn daemon_flags(self) -> Vec<OsString> {
        let mut words = Vec::new();
        let mut flag = |name: &str, value: OsString| {
            let mut word = OsString::from(format!("--{name}="));
            word.push(value);
            words.push(word);
        };
        for (name, path) in [
            ("data-root", self.data_root),
            ("exec-root", self.exec_root),
            ("config-file", self.config_file),
        ] {
            if let Some(path) = path {
                flag(name, path.into());
            }
        }
        for option in self.storage_opts {
            flag("storage-opt", option);
        }
        if self.debug {
            flag("debug", "true".into());
        }
        words
    }
}

/// Parses what follows the program's name.
///
/// # Errors
/// clap's, also for `--help`: it prints itself and knows its exit status.
pub(super) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Parsed, clap::Error> {
    let program = std::iter::once(OsString::from("skiffd"));
    let matches = Cli::command().try_get_matches_from(program.chain(words))?;
    let cli = Cli::from_arg_matches(&matches)?;
    Ok(Parsed {
        command: cli.command,
        daemon_flags: cli.place.daemon_flags(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Parsed, clap::Error> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_tool_has_help_with_the_shared_flags() {
        for tool in crate::role::TOOLS {
            for words in [&[tool, "--help"][..], &[tool]] {
                let error = parse_words(words).unwrap_err();
                assert!(error.to_string().contains("Usage: skiffd"), "{words:?}: {error}");
            }
        }
        let help = parse_words(&["bench", "storage", "--help"])
            .unwrap_err()
            .to_string();
        assert!(help.contains("--data-root"), "{help}");
    }

    #[test]
    fn shared_flags_are_handed_to_the_daemons_parser() {
        let parsed = parse_words(&[
            "bench",
            "storage",
            "--data-root",
            "/d",
            "-D",
            "--storage-opt",
            "a=b",
            "--storage-opt=c=d",
        ])
        .unwrap();
        assert_eq!(
            parsed.daemon_flags,
            [
                "--data-root=/d",
                "--storage-opt=a=b",
                "--storage-opt=c=d",
                "--debug=true"
            ]
        );
    }
}
