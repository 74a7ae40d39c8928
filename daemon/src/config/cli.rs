//! The command line: dockerd's flags, by clap.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde_json::Value;

use super::keys::{KEYS, Key, Shape, Verdict};
use super::settings::Settings;
use super::{Config, ConfigError, settle};
use crate::environment::Environment;

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Run the daemon.
    Run(Box<Config>),
    /// Print this to standard output and succeed (`--help`, `--version`, `--validate`).
    Print(String),
}

/// Why the command line was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Flags: clap's text, with usage and suggestion.
    #[error("{0}")]
    Usage(String),
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

const EXAMPLES: &str = "\
Commands (each has --help):
  skiffd storage migrate --to DRIVER    move images and containers to another storage driver
  skiffd storage verify                 check everything in the data root, say what is damaged, repair it
  skiffd bench storage                  measure the storage drivers on this machine

Examples:
  skiffd                                           start for this user, without root
  skiffd --storage-driver vfs --data-root /big/d   choose driver and place
  skiffd -H unix:///run/user/1000/docker.sock -H tcp://127.0.0.1:2375
  skiffd --add-runtime crun=/usr/bin/crun --default-runtime crun
  skiffd --validate --config-file ./daemon.json    check a configuration

The flags and the keys of daemon.json are dockerd's.
The file is ~/.config/docker/daemon.json, as root /etc/docker/daemon.json.
Environment: XDG_RUNTIME_DIR, XDG_DATA_HOME, XDG_CONFIG_HOME, DOCKER_DRIVER, HTTP_PROXY, HTTPS_PROXY,
NO_PROXY, and of dockerd-rootless.sh's variables DOCKERD_ROOTLESS_ROOTLESSKIT_NET, _MTU and
_DISABLE_HOST_LOOPBACK.";

/// Parses a command line (without the program's name), reads the file and settles everything.
///
/// # Errors
/// [`CliError::Usage`] for flags, [`CliError::Config`] for everything that was well-formed and cannot be.
pub(crate) fn parse(
    program: &str,
    arguments: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<Outcome, CliError> {
    let program_name = OsString::from(program);
    let matches = match command(program).try_get_matches_from(std::iter::once(program_name).chain(arguments))
    {
        Ok(matches) => matches,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => return Ok(Outcome::Print(error.to_string())),
        Err(error) if error.kind() == ErrorKind::DisplayVersion => return Ok(Outcome::Print(version_line())),
        Err(error) => return Err(CliError::Usage(error.to_string())),
    };
    let settings =
        Settings::from_arg_matches(&matches).map_err(|error| CliError::Usage(error.to_string()))?;
    let warnings = judge_other_flags(&matches)?;
    let config_file = matches.get_one::<std::path::PathBuf>("config-file").cloned();
    let config = settle::settle(
        settings,
        &given_flags(&matches),
        config_file,
        warnings,
        environment,
    )?;
    if matches.get_flag("validate") {
        return Ok(Outcome::Print("configuration OK\n".to_owned()));
    }
    Ok(Outcome::Run(Box::new(config)))
}

/// dockerd's line, with our name in the place of a build's.
pub(crate) fn version_line() -> String {
    let commit = crate::GIT_COMMIT;
    let build = if commit.is_empty() {
        "skiff".to_owned()
    } else {
        format!("skiff-{commit}")
    };
    format!(
        "Docker version {}, build {build} (skiff, a rootless Docker Engine)\n",
        crate::VERSION
    )
}

fn command(program: &str) -> Command {
    let command = Command::new(program.to_owned())
        .after_help(EXAMPLES)
        .version(crate::VERSION)
        .disable_version_flag(true)
        .args_override_self(true)
        .max_term_width(110)
        .arg(
            Arg::new("version")
                .short('v')
                .long("version")
                .action(ArgAction::Version)
                .help("Print the version"),
        )
        .arg(
            Arg::new("validate")
                .long("validate")
                .action(ArgAction::SetTrue)
                .help("Check flags and daemon.json, then end")
                .help_heading("Daemon"),
        )
        .arg(
            Arg::new("config-file")
                .long("config-file")
                .value_name("PATH")
                .value_parser(clap::value_parser!(std::path::PathBuf))
                .help("daemon.json [default: ~/.config/docker/daemon.json; as root /etc/docker/daemon.json]")
                .help_heading("Paths"),
        );
    // After the derived arguments, which bring a text of their own.
    let command = Settings::augment_args(command)
        .about("A Docker Engine for ordinary users: containers without root, through Docker's API.");
    other_keys().fold(command, |command, (_, flag, shape)| {
        command.arg(other_flag(flag, shape))
    })
}

/// The flags of dockerd that are not in [`Settings`]: known, so that they can be explained, but not shown in the help.
fn other_keys() -> impl Iterator<Item = (&'static Key, &'static str, Shape)> {
    KEYS.iter()
        .filter(|key| key.class != super::keys::Class::Supported)
        .filter_map(|key| Some((key, key.flag?, key.shape)))
}

fn other_flag(flag: &'static str, shape: Shape) -> Arg {
    let arg = Arg::new(flag).long(flag).hide(true).action(ArgAction::Append);
    let arg = match flag {
        "bridge" => arg.short('b'),
        "group" => arg.short('G'),
        _ => arg,
    };
    match shape {
        Shape::Text => arg.allow_hyphen_values(true),
        Shape::Flag => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    }
}

fn judge_other_flags(matches: &ArgMatches) -> Result<Vec<String>, ConfigError> {
    let mut warnings = Vec::new();
    for (key, flag, shape) in other_keys() {
        for text in matches.get_many::<String>(flag).into_iter().flatten() {
            let value = match (shape, text.as_str()) {
                (Shape::Flag, "false" | "0" | "f" | "F" | "FALSE" | "False") => Value::Bool(false),
                (Shape::Flag, _) => Value::Bool(true),
                (Shape::Text, text) => Value::from(text),
            };
            match key.class.judge(&value) {
                Verdict::Use | Verdict::Ignore => {}
                Verdict::Warn(reason) => warnings.push(format!("--{flag} has no effect: {reason}")),
                Verdict::Refuse(reason) => return Err(ConfigError::new(format!("--{flag}: {reason}"))),
            }
        }
    }
    Ok(warnings)
}

/// Flags that were given, by their name in the file, with the value as dockerd prints it.
fn given_flags(matches: &ArgMatches) -> BTreeMap<&'static str, String> {
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    KEYS.iter()
        .filter_map(|key| {
            // clap's id is the field's name for supported options, the flag's for the others.
            let ids = [
                key.file.replace('-', "_"),
                key.flag?.replace('-', "_"),
                key.flag?.to_owned(),
            ];
            let id = ids
                .iter()
                .find(|id| matches.try_contains_id(id).unwrap_or(false) && given(id))?;
            let values: Vec<_> = matches
                .get_raw(id)?
                .map(|value| value.to_string_lossy())
                .collect();
            let is_list = Some(key.file) != key.flag;
            let text = if is_list {
                format!("[{}]", values.join(" "))
            } else {
                values.last()?.to_string()
            };
            Some((key.file, text))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment {
            home: Some("/home/u".into()),
            xdg_runtime_dir: Some("/run/user/1000".into()),
            current_dir: "/work".into(),
            ..Environment::default()
        }
    }

    fn parse_words(words: &[&str]) -> Result<Outcome, CliError> {
        parse("skiffd", words.iter().map(OsString::from), &environment())
    }

    fn config(words: &[&str]) -> Config {
        match parse_words(words) {
            Ok(Outcome::Run(config)) => *config,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn the_command_is_consistent() {
        command("skiffd").debug_assert();
    }

    #[test]
    fn the_old_recipe() {
        let config = config(&["--experimental", "--storage-driver", "vfs"]);
        assert!(config.experimental && config.rootless);
        assert_eq!(config.storage_driver.as_deref(), Some("vfs"));
    }

    #[test]
    fn go_spellings_and_short_forms() {
        let config = config(&[
            "-D=true",
            "-H=unix:///a",
            "-H",
            "tcp://127.0.0.1:1",
            "-lwarn",
            "--experimental=0",
            "-s=vfs",
            "-s",
            "overlay2",
        ]);
        assert!(config.debug && !config.experimental);
        assert_eq!(config.hosts.len(), 2);
        assert_eq!(
            config.storage_driver.as_deref(),
            Some("overlay2"),
            "the last one counts"
        );
    }

    #[test]
    fn the_units_of_distributions_are_accepted() {
        let config = config(&[
            "-H",
            "fd://",
            "--containerd=/run/containerd/containerd.sock",
            "--iptables=false",
        ]);
        assert_eq!(
            config.warnings,
            ["--containerd has no effect: skiff does not use containerd"]
        );
    }

    #[test]
    fn refusals() {
        for (words, expected) in [
            (&["--user-remap", "default"][..], "--userns-remap"),
            (
                &["--userns-remap=default"],
                "--userns-remap: not supported by this version",
            ),
            (&["--storage-drivr", "vfs"], "--storage-driver"),
            (&["--tlsverify"], "TLS on the API socket"),
            (&["--icc=false"], "--icc: "),
            (&["--no-new-privileges"], "--no-new-privileges: "),
            (&["start"], "unexpected argument 'start'"),
            (&["--debug=maybe"], "expected true or false"),
            (&["-H", "ftp://x"], "ftp://x"),
            (&["-l", "loud"], "loud"),
        ] {
            let error = parse_words(words).expect_err(expected).to_string();
            assert!(error.contains(expected), "{words:?}: {error}");
        }
    }

    #[test]
    fn help_version_and_validate_print() {
        for (flag, expected) in [
            ("--help", "Examples:"),
            ("--version", "Docker version "),
            ("-v", "skiff"),
            ("--validate", "configuration OK"),
        ] {
            match parse_words(&[flag]).unwrap() {
                Outcome::Print(text) => assert!(text.contains(expected), "{flag}: {text}"),
                Outcome::Run(_) => panic!("{flag} must not run"),
            }
        }
    }

    #[test]
    fn conflicts_with_the_file_are_dockerds_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.json");
        std::fs::write(
            &path,
            r#"{"debug": true, "hosts": ["fd://"], "runtimes": {"a": {"path": "/a"}}}"#,
        )
        .unwrap();
        let file = path.to_str().unwrap();
        let error = parse_words(&["--config-file", file, "-D", "-H", "unix:///x"])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            format!(
                "unable to configure the Docker daemon with file {file}: the following directives are specified both \
                 as a flag and in the configuration file: debug: (from flag: true, from file: true), \
                 hosts: (from flag: [unix:///x], from file: [fd://])"
            )
        );
        let config = config(&["--config-file", file, "--add-runtime", "b=/b"]);
        assert_eq!(config.runtimes.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert!(config.debug);
    }
}
