//! `skiffd storage verify`: says what is damaged and what helps, or repairs it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use skiff_store::migrate::{ContainerRecord, ContainerRecords, Journal};
use skiff_store::verify::{Problem, Remedy, Verification, VerifyOptions, verify_blobs};
use skiff_store::{Store, StoreOptions};

use super::place::{Locked, Place};
use super::report::{Report, size};
use crate::tool::Context;

const HOW: &str = "\
What is checked:
  blobs        hashed again, all of them
  images       configurations, manifests and blobs that images name are there
  layers       the files on the disk are those of the blob: names, kinds, permissions, owners, sizes, contents
  containers   their own files are there, and the layers below

While the daemon runs only blobs and images are checked, and nothing can be repaired: layers are its own business.

--repair unpacks damaged layers again from their blobs and takes away blobs whose bytes are wrong, so that the next pull
fetches them. What only a pull or the removal of a container can mend is named with its command.

Exit status: 0 nothing is damaged (any more), 1 something is, 2 the check could not be done.";

/// Arguments.
#[derive(Debug, Args)]
#[command(after_help = HOW)]
pub(in crate::tool) struct Arguments {
    /// Repair what can be repaired from here
    #[arg(long)]
    repair: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Hash so many blobs at the same time [default: processors, at most 4]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Exit status when something is damaged.
const DAMAGED: u8 = 1;

/// Runs the command.
///
/// # Errors
/// The text for the user.
pub(super) fn run(arguments: &Arguments, context: &Context) -> Result<ExitCode, String> {
    let place = Place::of(&context.config)?;
    let lock = place.try_lock()?;
    let report = Report::new(0)?;
    let options = VerifyOptions {
        threads: arguments.threads.unwrap_or(VerifyOptions::default().threads),
    };
    let mut found = verify_blobs(&place.image_root(), options, &report).map_err(|error| error.to_string())?;
    let mut drivers = Vec::new();
    match &lock {
        Locked::Ours(_) => {
            drivers = verify_drivers(arguments, &place, &context.store_options(), &mut found, &report)?;
        }
        Locked::InUse(_) if arguments.repair => {
            report.finish();
            return Err(lock.refusal(&place));
        }
        Locked::InUse(_) => found
            .notes
            .push("the daemon or a container runs: layers and containers were not checked".to_owned()),
    }
    report.finish();
    if arguments.json {
        let document = Document {
            data_root: place.data_root.display().to_string(),
            drivers: &drivers,
            found: &found,
        };
        let text = serde_json::to_string_pretty(&document).map_err(|error| error.to_string())?;
        crate::print(&format!("{text}\n"));
    } else {
        crate::print(&describe(&found, arguments.repair));
    }
    Ok(if found.unrepaired().next().is_none() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DAMAGED)
    })
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    data_root: String,
    drivers: &'a [String],
    #[serde(flatten)]
    found: &'a Verification,
}

/// Checks what every driver holds that has ever been used here.
fn verify_drivers(
    arguments: &Arguments,
    place: &Place,
    options: &StoreOptions,
    found: &mut Verification,
    report: &Report,
) -> Result<Vec<String>, String> {
    let image_root = place.image_root();
    let containers = place.containers().list().map_err(|error| error.to_string())?;
    let drivers = match Journal::read(&image_root).map_err(|error| error.to_string())? {
        Some(journal) => {
            let driver = journal
                .driver_for_daemon(None)
                .map_err(|error| error.to_string())?;
            found.notes.push(format!(
                "a migration to {driver} waits for `skiffd storage migrate --confirm`; only what {driver} holds was checked"
            ));
            vec![driver.to_owned()]
        }
        None => drivers_in_use(place, &containers)?,
    };
    for name in &drivers {
        let driver = place.open_driver(&place.data_root, name)?;
        let store = Store::open_for_checking(&image_root, driver, options.clone());
        let store = store.map_err(|error| error.to_string())?;
        store
            .verify(found, &containers, report)
            .map_err(|error| error.to_string())?;
        if arguments.repair {
            store
                .repair(found, report)
                .map_err(|error| format!("cannot repair: {error}"))?;
        }
    }
    Ok(drivers)
}

fn drivers_in_use(place: &Place, containers: &[ContainerRecord]) -> Result<Vec<String>, String> {
    let mut names: BTreeSet<String> =
        skiff_store::migrate::drivers_with_records(&place.image_root()).map_err(|error| error.to_string())?;
    names.extend(containers.iter().map(|container| container.driver.clone()));
    names.retain(|name| place.data_root.join(name).is_dir());
    Ok(names.into_iter().collect())
}

fn describe(found: &Verification, repair: bool) -> String {
    let mut out = String::new();
    for problem in &found.problems {
        describe_problem(&mut out, problem, repair);
    }
    for note in &found.notes {
        let _ = writeln!(out, "note: {note}");
    }
    let left = found.unrepaired().count();
    let verdict = match (found.problems.len(), left) {
        (0, _) => "nothing is damaged".to_owned(),
        (all, 0) => format!("{all} repaired, nothing else is damaged"),
        (all, left) if repair => format!("{} repaired, {left} left", all - left),
        (all, _) => format!("{all} problems"),
    };
    let _ = writeln!(
        out,
        "Checked {} blobs ({}), {} images, {} layers ({} files), {} containers: {verdict}.",
        found.blobs,
        size(found.blob_bytes),
        found.images,
        found.layers,
        found.files,
        found.containers
    );
    out
}

fn describe_problem(out: &mut String, problem: &Problem, repair: bool) {
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line(format!("DAMAGED {}", problem.subject));
    line(format!("  {}", problem.damage));
    if !problem.images.is_empty() {
        let images: Vec<&str> = problem.images.iter().map(String::as_str).collect();
        line(format!("  of {}", images.join(", ")));
    }
    if problem.repaired {
        return line("  repaired".to_owned());
    }
    match &problem.remedy {
        Remedy::Repair if repair => line("  could not be repaired".to_owned()),
        Remedy::Repair => line("  repair: skiffd storage verify --repair".to_owned()),
        Remedy::Pull(commands) => {
            let first = if repair {
                ""
            } else {
                "skiffd storage verify --repair, then start the daemon and "
            };
            line(format!("  repair: {first}{}", commands.join(" or ")));
        }
        Remedy::Remove(command) => line(format!("  nothing brings it back: {command}")),
        Remedy::None => {}
    }
}
