//! `skiffd bench storage`: which storage driver is the fastest here, measured on the user's own disk.
//!
//! Called by `tool` inside the user's namespaces, before any thread exists. The measuring is `skiff-storage-bench`'s; here are the
//! command line, a mount namespace of our own (so that no mount outlives this process, however it ends, and none is seen by a
//! running daemon), progress, the forms of the output, and what a signal means: stop at the next step, remove
//! everything, exit status 130.

mod progress;

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, Subcommand};
use skiff_graphdrivers::{FuseServer, Mounter};
use skiff_storage_bench::{ErrorKind, Options, Report, Scratch, Size, run, svg, table};
use skiff_sys::ns::{self, Kind};

use crate::tool::{Context, FAILED, Interrupt};
use crate::{complain, locks};
use progress::Display;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compare the storage drivers on the disk that holds the data root
    ///
    /// Unpacks a made-up image with each driver that works here, walks, reads and changes it, starts containers of it,
    /// and says which driver to use. Images and containers of the daemon are not touched, and everything is removed
    /// at the end, also after Ctrl-C. The last result is kept in bench/storage.json below the data root.
    Storage(Storage),
}

/// Arguments of `skiffd bench storage`.
#[derive(Debug, Args)]
pub(crate) struct Storage {
    /// Measure this driver only (may be repeated) [default: all that work here]
    #[arg(long = "driver", value_name = "NAME")]
    drivers: Vec<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Also draw the result
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// How often everything is measured [default: 5, or 3 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// How much: quick (seconds, noisy), normal (minutes) or large (98,304 files and 1 GiB)
    #[arg(long, value_name = "NAME", default_value = "normal", value_parser = ["quick", "normal", "large"])]
    size: String,
    /// The same as --size quick
    #[arg(long, conflicts_with = "size")]
    quick: bool,
}

/// A shell's code for what SIGINT ended.
const INTERRUPTED: u8 = 130;

/// `skiffd bench storage`.
pub(crate) fn storage(arguments: &Storage, context: &Context) -> ExitCode {
    match measure(arguments, context) {
        Ok(report) => show(arguments, &report),
        Err(Failure::Interrupted) => {
            complain("interrupted; what the benchmark had made is removed");
            ExitCode::from(INTERRUPTED)
        }
        Err(Failure::Text(text)) => {
            complain(&format!("skiffd bench storage: {text}"));
            ExitCode::from(FAILED)
        }
    }
}

enum Failure {
    Interrupted,
    Text(String),
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<skiff_storage_bench::Error> for Failure {
    fn from(error: skiff_storage_bench::Error) -> Self {
        match error.kind() {
            ErrorKind::Stopped => Self::Interrupted,
            _ => Self::Text(error.to_string()),
        }
    }
}

fn measure(arguments: &Storage, context: &Context) -> Result<Report, Failure> {
    if let Some(path) = &arguments.svg {
        can_write(path)?;
    }
    // A thread of its own could not do this for the others, so before there is one.
    ns::unshare(&[Kind::Mount])
        .and_then(|()| ns::receive_mounts_only())
        .map_err(|error| format!("cannot make a mount namespace: {error}"))?;
    let interrupt = Interrupt::install().map_err(|error| format!("signals: {error}"))?;
    let data_root = locks::make_directory("data root", &context.config.data_root)?;
    let scratch = Scratch::open(&data_root)?;
    let outcome = run_all(arguments, &data_root, &scratch, &interrupt.flag());
    if let Err(Failure::Interrupted) = &outcome {
        complain(
            "interrupted; removing what the benchmark made (a second signal leaves that to the next run)",
        );
    }
    // Also after an error, and before anything is printed: what is said at the end is true then.
    let closed = match &outcome {
        Ok(report) => scratch.store(report).and(scratch.close()),
        Err(_) => scratch.close(),
    };
    match (outcome, closed) {
        (Ok(report), Ok(())) => Ok(report),
        (Ok(report), Err(error)) => {
            complain(&format!("skiffd bench storage: {error}"));
            Ok(report)
        }
        (Err(Failure::Interrupted), Err(error)) => Err(Failure::Text(format!("interrupted; {error}"))),
        (Err(failure), _) => Err(failure),
    }
}

fn run_all(
    arguments: &Storage,
    data_root: &Path,
    scratch: &Scratch,
    stop: &Arc<AtomicBool>,
) -> Result<Report, Failure> {
    let name = if arguments.quick { "quick" } else { &arguments.size };
    let size = Size::named(name).ok_or_else(|| format!("unknown size {name:?}"))?;
    let usual = if size.name == "quick" { 3 } else { 5 };
    let options = Options {
        drivers: arguments.drivers.clone(),
        size,
        rounds: arguments.rounds.unwrap_or(usual),
        data_root: data_root.display().to_string(),
        program: format!("skiffd {}", crate::VERSION),
        now: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        // As in the daemon: a process for each container.
        mounter: Arc::new(Mounter::with_fuse_server(FuseServer::Program(
            crate::fuse::command(PathBuf::from("/proc/self/exe")),
        ))),
    };
    let mut display = Display::new(options.rounds);
    let report = run(&options, scratch, stop, &mut |progress| display.show(progress));
    display.end();
    Ok(report?)
}

fn show(arguments: &Storage, report: &Report) -> ExitCode {
    match tell(arguments, report, &mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("skiffd bench storage: {error}"));
            ExitCode::from(FAILED)
        }
    }
}

/// Prints the result and then draws it: minutes of measuring are not lost with a picture that cannot be written.
fn tell(arguments: &Storage, report: &Report, out: &mut dyn Write) -> Result<(), String> {
    let text = if arguments.json {
        report.to_json().map_err(|error| error.to_string())?
    } else {
        let (bold, dim) = match io::stdout().is_terminal() {
            true => (("\u{1b}[1m", "\u{1b}[0m"), ("\u{1b}[2m", "\u{1b}[0m")),
            false => (("", ""), ("", "")),
        };
        table::render(report, bold, dim)
    };
    // Who has closed it does not want it.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match &arguments.svg {
        Some(path) => fs::write(path, svg::render(report)).map_err(|e| format!("{}: {e}", path.display())),
        None => Ok(()),
    }
}

/// Better now than after minutes of measuring. A file that was not there is not left behind empty.
fn can_write(path: &Path) -> Result<(), String> {
    let existed = path.exists();
    let tried = OpenOptions::new().append(true).create(true).open(path);
    tried.map_err(|error| format!("{}: {error}", path.display()))?;
    if !existed {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_that_cannot_be_drawn_is_said_at_once_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        assert!(can_write(&directory.path().join("no/such/x.svg")).is_err());
        let file = directory.path().join("x.svg");
        can_write(&file).unwrap();
        assert!(!file.exists());
        fs::write(&file, "kept").unwrap();
        can_write(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    }

    #[test]
    fn what_was_measured_is_printed_also_when_it_cannot_be_drawn() {
        let directory = tempfile::tempdir().unwrap();
        let text = r#"{"version": 1, "program": "skiffd", "measured_at": "", "rounds": 1, "cold": "",
            "machine": {"data_root": "", "file_system": "", "kernel": "", "cpus": 1, "user_namespace": true},
            "size": SIZE, "drivers": [], "workloads": [], "advice": {"sentence": ""}}"#;
        let size = serde_json::to_string(&Size::normal()).unwrap();
        let report = Report::from_json(&text.replace("SIZE", &size)).unwrap();
        for json in [true, false] {
            let arguments = Storage {
                drivers: Vec::new(),
                json,
                // Full, or gone, since it was tried.
                svg: Some(directory.path().join("gone/x.svg")),
                rounds: None,
                size: "normal".to_owned(),
                quick: false,
            };
            let mut out = Vec::new();
            let error = tell(&arguments, &report, &mut out).unwrap_err();
            assert!(error.contains("gone/x.svg"), "{error}");
            let text = String::from_utf8(out).unwrap();
            if json {
                assert_eq!(Report::from_json(&text).unwrap(), report);
            } else {
                assert!(!text.is_empty());
            }
        }
    }
}
