//! `skiffd storage migrate`: asks, says, and calls [`Migration`], which does it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;

use clap::{ArgGroup, Args};
use skiff_store::migrate::{Journal, Migration, MigrationPlan, Outcome, Stage, Way};

use super::place::Place;
use super::report::{Report, size};
use crate::config::Config;
use crate::tool::Context;

const HOW: &str = "\
What happens:
  1. Layers of images are unpacked for the new driver, from the blobs that are kept; where no blob is kept, the files
     are copied. Containers' own files are copied. Nothing is changed in the old place.
  2. The old state stays until you have seen that the new one is good: start the daemon and look.
  3. `skiffd storage migrate --confirm` deletes the old state, `skiffd storage migrate --rollback` goes back to it.

The daemon must not run meanwhile. Ctrl-C, a kill or a full disk do no harm: the same command goes on where it ended,
and --rollback works at any time before --confirm.

Examples:
  skiffd storage migrate --to overlay2 --dry-run    what would be done, and whether there is room
  skiffd storage migrate --to overlay2              do it
  skiffd storage migrate --confirm                  it is good: delete what the old driver holds
  skiffd storage migrate --rollback                 it is not: everything as before

Exit status: 0 done, 2 not done (the text says why), 130 interrupted.";

/// Arguments.
#[derive(Debug, Args)]
#[command(after_help = HOW, group = ArgGroup::new("action").args(["to", "confirm", "rollback"]).required(true).multiple(true))]
pub(in crate::tool) struct Arguments {
    /// The new storage driver, or go on with an interrupted migration to it
    #[arg(long, value_name = "DRIVER")]
    to: Option<String>,
    /// Delete the old state: alone, of a migration that is done; with --to, without asking
    #[arg(long)]
    confirm: bool,
    /// Give up the migration and return to the old state
    #[arg(long, conflicts_with_all = ["to", "confirm"])]
    rollback: bool,
    /// Only say what would be done, and whether there is room
    #[arg(long, requires = "to")]
    dry_run: bool,
    /// Try although there seems to be too little room
    #[arg(long, requires = "to")]
    no_space_check: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Runs the command.
///
/// # Errors
/// The text for the user.
pub(super) fn run(arguments: &Arguments, context: &Context) -> Result<ExitCode, String> {
    let place = Place::of(&context.config)?;
    let _lock = place.lock()?;
    let open = |root: &std::path::Path, name: &str| place.open_driver(root, name);
    let containers = place.containers();
    let migration = Migration::new(&place.data_root, &open, &containers, context.store_options());
    match &arguments.to {
        Some(to) => convert(arguments, to, &migration, &context.config),
        None if arguments.confirm => confirm(&migration, &context.config),
        None => roll_back(arguments, &migration),
    }
}

fn convert(
    arguments: &Arguments,
    to: &str,
    migration: &Migration<'_>,
    config: &Config,
) -> Result<ExitCode, String> {
    let journal = migration.journal().map_err(text)?;
    if let Some(journal) = &journal
        && journal.to == to
        && matches!(journal.stage, Stage::Converted | Stage::Confirming)
    {
        if arguments.confirm {
            return confirm(migration, config);
        }
        return Ok(crate::print(&format!(
            "Everything is in {to} already.\n{}",
            what_now(journal)
        )));
    }
    let plan = migration.plan(to).map_err(text)?;
    if plan.is_empty() && journal.is_none() {
        return Ok(crate::print(&format!(
            "Nothing to move: no other storage driver than {to} holds anything.\n"
        )));
    }
    if arguments.dry_run {
        return Ok(crate::print(&describe(&plan)));
    }
    for loss in &plan.losses {
        crate::complain(&format!("warning: {loss}"));
    }
    if !arguments.no_space_check {
        plan.check_space().map_err(|_| {
            format!(
                "too little room: the copies need about {} beside what is there, and {} are free; free some, or try all \
                 the same with --no-space-check",
                size(plan.needed),
                size(plan.free)
            )
        })?;
    }
    let report = Report::new(plan.work())?;
    let outcome = migration.convert(&plan, &report);
    report.finish();
    match outcome {
        Ok(Outcome::Converted) => {}
        Ok(Outcome::Interrupted) => {
            crate::complain(&unfinished("Interrupted.", to));
            return Ok(ExitCode::from(130));
        }
        Err(error) => return Err(unfinished(&error.to_string(), to)),
    }
    crate::print(&format!("Moved everything to {to}.\n"));
    if arguments.confirm || ask("Delete the old state now, without having tried the new one?") {
        return confirm(migration, config);
    }
    if let Some(journal) = migration.journal().map_err(text)? {
        crate::print(&what_now(&journal));
    }
    Ok(ExitCode::SUCCESS)
}

fn confirm(migration: &Migration<'_>, config: &Config) -> Result<ExitCode, String> {
    let journal = migration.journal().map_err(text)?;
    let report = Report::new(0)?;
    let freed = migration.confirm(&report);
    report.finish();
    let freed = freed.map_err(text)?;
    let to = journal.map_or_else(String::new, |journal| journal.to);
    crate::print(&format!(
        "Deleted the old state, {}. Everything is in {to}.\n",
        size(freed)
    ));
    if let Some(advice) = advice(&to, config) {
        crate::print(&advice);
    }
    Ok(ExitCode::SUCCESS)
}

fn roll_back(arguments: &Arguments, migration: &Migration<'_>) -> Result<ExitCode, String> {
    if let Some(Journal {
        to,
        used: Some(since),
        stage: Stage::Converted,
        ..
    }) = migration.journal().map_err(text)?
        && !arguments.yes
    {
        let question = format!(
            "A daemon has used {to} since {since:.0}; what containers wrote since then is lost. Go back?"
        );
        if !ask(&question) {
            return Err(format!(
                "{question}\nNothing was done; --yes says that it is meant"
            ));
        }
    }
    let report = Report::new(0)?;
    let done = migration.roll_back(&report);
    report.finish();
    let done = done.map_err(text)?;
    Ok(crate::print(&format!(
        "Everything is in {} again ({} containers).\n",
        done.drivers.join(", "),
        done.containers
    )))
}

/// Asks on the terminal; without one the answer is no.
fn ask(question: &str) -> bool {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return false;
    }
    let mut err = io::stderr();
    let _ = write!(err, "{question} [y/N] ").and_then(|()| err.flush());
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

fn text(error: skiff_store::Error) -> String {
    error.to_string()
}

fn unfinished(what: &str, to: &str) -> String {
    format!(
        "{what}\nThe old state is untouched. Go on with\n    skiffd storage migrate --to {to}\nor take back what was done \
         with\n    skiffd storage migrate --rollback"
    )
}

fn what_now(journal: &Journal) -> String {
    format!(
        "The old state ({}) is kept. Start the daemon, look whether all is well, then stop it and run\n    \
         skiffd storage migrate --confirm      to delete the old state, or\n    \
         skiffd storage migrate --rollback     to return to it.\n",
        journal.sources.join(", ")
    )
}

/// What the next start has to be told, so that it does not choose another driver.
fn advice(to: &str, config: &Config) -> Option<String> {
    match config.storage_driver.as_deref() {
        Some(configured) if configured != to => Some(format!(
            "The configuration ({} or $DOCKER_DRIVER) names {configured}: change it to {to}.\n",
            config.config_file.display()
        )),
        // The last resort is never chosen because of what is there.
        None if to == "vfs" => Some(format!(
            "From now on start the daemon with --storage-driver vfs, or write \"storage-driver\": \"vfs\" into {}.\n",
            config.config_file.display()
        )),
        _ => None,
    }
}

fn describe(plan: &MigrationPlan) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line(format!("From {} to {}:", plan.sources.join(", "), plan.to));
    for layer in &plan.layers {
        let (from, bytes) = match &layer.way {
            Way::Blob { blob, .. } if layer.size == 0 => ("unpacked from its blob of".to_owned(), blob.size),
            Way::Blob { .. } => ("unpacked from its blob,".to_owned(), layer.size),
            Way::Copy { from } => (format!("copied from {from},"), layer.size),
        };
        line(format!("  layer {:.12}  {from} {}", layer.id.hex(), size(bytes)));
    }
    for moved in &plan.containers {
        let container = &moved.container;
        line(format!(
            "  container {} ({:.12})  copied from {}, {}",
            container.name,
            container.id,
            container.driver,
            size(moved.size)
        ));
    }
    for loss in &plan.losses {
        line(format!("  left out: {loss}"));
    }
    line(format!(
        "{} layers and {} containers; about {} needed, {} free{}",
        plan.layers.len(),
        plan.containers.len(),
        size(plan.needed),
        size(plan.free),
        if plan.needed > plan.free {
            ": too little"
        } else {
            ""
        }
    ));
    out
}
