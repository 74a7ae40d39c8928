//! Rounds that alternate between the drivers, so that what else happens on the machine falls on all of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use skiff_graphdrivers::{GraphDriver, Mounter, select};

use crate::advice::Advice;
use crate::error::{Error, ErrorKind, Result};
use crate::report::{DriverResult, Figures, Machine, Report, VERSION, WorkloadResult};
use crate::scratch::Scratch;
use crate::size::{Room, Size};
use crate::subject::Subject;
use crate::workload::{Unit, WORKLOADS, Workload, bytes};
use crate::{COLD, disk};

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// Names of drivers; empty for all that work.
    pub drivers: Vec<String>,
    /// How much.
    pub size: Size,
    /// How often.
    pub rounds: u32,
    /// The data root, for the report.
    pub data_root: String,
    /// Program and version, for the report.
    pub program: String,
    /// The time, RFC 3339, for the report.
    pub now: String,
    /// Performs the mounts.
    pub mounter: Arc<Mounter>,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// The next one: the driver and what is done with it.
    pub driver: String,
    /// What is done next.
    pub what: String,
    /// The round, from 1; 0 while the images are unpacked.
    pub round: u32,
    /// How long the rest will take, once there is something to guess from.
    pub remaining: Option<Duration>,
}

/// Measures. `stop` ends it within moments; `observe` is called before each step.
///
/// # Errors
/// `InvalidArgument` for an unknown driver; `NoDriver` when none works, with the reasons; `NoSpace` before anything is
/// written when there is too little room, and later when somebody else took it; `Stopped`. A driver that fails at a workload is
/// no error of the run: the report says so.
pub fn run(
    options: &Options,
    scratch: &Scratch,
    stop: &Arc<AtomicBool>,
    observe: &mut dyn FnMut(&Progress),
) -> Result<Report> {
    let place = scratch.path();
    let (drivers, results) = open(options, scratch)?;
    let room = Room::needed(drivers.iter().map(|driver| {
        let shares = disk::file_system(&place).is_some_and(|fs| fs.shares_blocks());
        options.size.room(driver.capabilities().direct_path && !shares)
    }));
    check_room(room, disk::free(&place)?, &options.data_root)?;

    let subjects = drivers
        .into_iter()
        .map(|driver| {
            Subject::new(
                driver,
                Arc::clone(&options.mounter),
                &place,
                options.size.clone(),
                Arc::clone(stop),
            )
        })
        .collect();
    let mut run = Run::new(options, subjects, stop, observe);
    run.build()?;
    for round in 1..=options.rounds {
        run.round(round)?;
    }
    let lines = run.lines;
    let mut report = Report {
        version: VERSION,
        program: options.program.clone(),
        measured_at: options.now.clone(),
        machine: machine(options, &place),
        size: options.size.clone(),
        rounds: options.rounds,
        cold: COLD.to_owned(),
        drivers: results,
        workloads: lines,
        advice: Advice::default(),
    };
    report.evaluate();
    Ok(report)
}

type Opened = (Vec<Arc<dyn GraphDriver>>, Vec<DriverResult>);

/// Tries the drivers, as the engine does at its start.
fn open(options: &Options, scratch: &Scratch) -> Result<Opened> {
    // In the engine's order of preference: of two that are equally fast the first is recommended.
    let all: Vec<String> = match options.drivers.is_empty() {
        true => skiff_graphdrivers::drivers().map(str::to_owned).collect(),
        false => options.drivers.clone(),
    };
    let (mut drivers, mut results) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for name in all.into_iter().filter(|name| seen.insert(name.clone())) {
        let refused = match select(&scratch.path(), Some(&name), &[]) {
            Ok(selected) => {
                drivers.push(selected.driver);
                None
            }
            Err(error) if error.kind() == skiff_graphdrivers::ErrorKind::InvalidArgument => {
                return Err(Error::new(ErrorKind::InvalidArgument, error.to_string()));
            }
            // It is the data root that people know, and its file system that decides.
            Err(error) => {
                let place = scratch.path();
                Some(
                    error
                        .to_string()
                        .replace(&*place.to_string_lossy(), &options.data_root),
                )
            }
        };
        results.push(DriverResult {
            name,
            refused,
            score: None,
        });
    }
    if drivers.is_empty() {
        let reasons: Vec<_> = results.into_iter().filter_map(|driver| driver.refused).collect();
        let text = format!("no storage driver works here: {}", reasons.join("; "));
        return Err(Error::new(ErrorKind::NoDriver, text));
    }
    Ok((drivers, results))
}

fn check_room(needed: Room, free: Room, data_root: &str) -> Result<()> {
    let text = if needed.bytes > free.bytes {
        format!(
            "needs {} in {data_root}, {} are free",
            bytes(needed.bytes),
            bytes(free.bytes)
        )
    } else if needed.inodes > free.inodes {
        format!(
            "needs {} inodes in {data_root}, {} are free",
            needed.inodes, free.inodes
        )
    } else {
        return Ok(());
    };
    let text = format!("the storage benchmark {text}; --quick needs less, and so does --driver NAME");
    Err(Error::new(ErrorKind::NoSpace, text))
}

fn machine(options: &Options, place: &std::path::Path) -> Machine {
    let system = rustix::system::uname();
    Machine {
        data_root: options.data_root.clone(),
        file_system: disk::file_system(place).map_or_else(|| "unknown".to_owned(), |fs| fs.kind),
        kernel: system.release().to_string_lossy().into_owned(),
        cpus: thread::available_parallelism().map_or(1, usize::from),
        user_namespace: skiff_sys::fsio::in_user_namespace(),
    }
}

struct Run<'a> {
    subjects: Vec<Subject>,
    lines: Vec<WorkloadResult>,
    stop: &'a AtomicBool,
    observe: &'a mut dyn FnMut(&Progress),
    clock: Clock,
}

impl<'a> Run<'a> {
    fn new(
        options: &Options,
        subjects: Vec<Subject>,
        stop: &'a AtomicBool,
        observe: &'a mut dyn FnMut(&Progress),
    ) -> Self {
        let lines = WORKLOADS
            .iter()
            .map(|workload| WorkloadResult {
                id: workload.id.to_owned(),
                title: workload.title(&options.size),
                group: workload.group,
                weight: workload.weight,
                unit: workload.unit,
                results: subjects
                    .iter()
                    .map(|subject| Figures {
                        driver: subject.name().to_owned(),
                        samples: Vec::new(),
                        summary: None,
                        ratio: None,
                        error: None,
                    })
                    .collect(),
            })
            .collect();
        let clock = Clock::new(subjects.len(), options.rounds);
        Self {
            subjects,
            lines,
            stop,
            observe,
            clock,
        }
    }

    fn build(&mut self) -> Result<()> {
        for n in 0..self.subjects.len() {
            self.step(n, BUILD, 0, "unpack the image")?;
            if let Err(error) = self.subjects[n].build() {
                self.fail(n, WORKLOADS.len(), error)?;
            }
            self.clock.done();
        }
        Ok(())
    }

    fn round(&mut self, round: u32) -> Result<()> {
        for (line, workload) in WORKLOADS.iter().enumerate() {
            for turn in 0..self.subjects.len() {
                // Whoever comes first finds other caches than who comes last: take turns in that, too.
                let n = (turn + round as usize) % self.subjects.len();
                let title = self.lines[line].title.clone();
                self.step(n, line + 1, round, &title)?;
                self.sample(n, line, workload)?;
                self.clock.done();
            }
        }
        Ok(())
    }

    fn sample(&mut self, n: usize, line: usize, workload: &Workload) -> Result<()> {
        let cell = &self.lines[line].results[n];
        let once = workload.unit == Unit::Bytes && !cell.samples.is_empty();
        if once || cell.error.is_some() {
            return Ok(());
        }
        match workload.sample(&mut self.subjects[n]) {
            // Nobody reads picoseconds, but somebody may read the JSON.
            Ok(value) => self.lines[line].results[n]
                .samples
                .push((value * 1e9).round() / 1e9),
            Err(error) => self.fail(n, line, error)?,
        }
        Ok(())
    }

    /// Notes what a driver could not do; `line` beyond the table means all of it. A stop and a full disk end the run.
    fn fail(&mut self, n: usize, line: usize, error: Error) -> Result<()> {
        if matches!(error.kind(), ErrorKind::Stopped | ErrorKind::NoSpace) {
            return Err(error);
        }
        tracing::debug!(driver = self.subjects[n].name(), %error, "a workload failed");
        let lines = match line < self.lines.len() {
            true => &mut self.lines[line..=line],
            false => &mut self.lines[..],
        };
        for line in lines {
            line.results[n].error = Some(error.to_string());
        }
        // What the failed workload left of the container is of unknown state.
        if let Err(error) = self.subjects[n].drop_container() {
            tracing::debug!(%error, "drop the container of a failed workload");
        }
        Ok(())
    }

    fn step(&mut self, n: usize, kind: usize, round: u32, what: &str) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::stopped());
        }
        let remaining = self.clock.begin((n, kind));
        (self.observe)(&Progress {
            done: self.clock.steps,
            total: self.clock.total,
            driver: self.subjects[n].name().to_owned(),
            what: what.to_owned(),
            round,
            remaining,
        });
        Ok(())
    }
}

/// A step's kind: 0 for building, then the lines of the table.
const BUILD: usize = 0;

/// Knows how long each step took last time, and so how long the rest will take.
struct Clock {
    subjects: usize,
    rounds: u32,
    steps: usize,
    total: usize,
    took: HashMap<(usize, usize), Duration>,
    /// How often each step was done.
    times: HashMap<(usize, usize), u32>,
    current: Option<((usize, usize), Instant)>,
}

impl Clock {
    fn new(subjects: usize, rounds: u32) -> Self {
        Self {
            subjects,
            rounds,
            steps: 0,
            total: subjects * (1 + WORKLOADS.len() * rounds as usize),
            took: HashMap::new(),
            times: HashMap::new(),
            current: None,
        }
    }

    fn begin(&mut self, step: (usize, usize)) -> Option<Duration> {
        self.current = Some((step, Instant::now()));
        self.remaining()
    }

    fn done(&mut self) {
        if let Some((step, begin)) = self.current.take() {
            // What is measured once takes no time later.
            let once = step.1 > 0 && WORKLOADS[step.1 - 1].unit == Unit::Bytes;
            self.took
                .insert(step, if once { Duration::ZERO } else { begin.elapsed() });
            *self.times.entry(step).or_default() += 1;
            self.steps += 1;
        }
    }

    /// Steps that nobody has done yet are taken to last as long as the same one with other drivers, or as the mean.
    fn remaining(&self) -> Option<Duration> {
        let known = u32::try_from(self.took.len()).ok().filter(|&n| n > 0)?;
        let mean = self.took.values().sum::<Duration>() / known;
        let mut sum = Duration::ZERO;
        for kind in 0..=WORKLOADS.len() {
            let wanted = if kind == BUILD { 1 } else { self.rounds };
            let others: Vec<_> = (0..self.subjects)
                .filter_map(|n| self.took.get(&(n, kind)))
                .collect();
            let typical = match u32::try_from(others.len()) {
                Ok(n) if n > 0 => others.into_iter().sum::<Duration>() / n,
                _ => mean,
            };
            for n in 0..self.subjects {
                let left = wanted - self.times.get(&(n, kind)).copied().unwrap_or(0);
                sum += self.took.get(&(n, kind)).copied().unwrap_or(typical) * left;
            }
        }
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_is_said_before_anything_is_written() {
        let room = |bytes, inodes| Room { bytes, inodes };
        assert!(check_room(room(10, 10), room(10, 10), "/d").is_ok());
        let error = check_room(room(3 << 30, 10), room(1 << 30, 10), "/d").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(
            error.to_string(),
            "the storage benchmark needs 3 GiB in /d, 1 GiB are free; --quick needs less, and so does --driver NAME"
        );
        let error = check_room(room(1, 5_000), room(10, 4_999), "/d").unwrap_err();
        assert!(error.to_string().contains("5000 inodes"), "{error}");
    }

    #[test]
    fn the_rest_is_guessed_from_what_was_done() {
        let mut clock = Clock::new(2, 3);
        assert_eq!(clock.begin((0, BUILD)), None);
        clock.done();
        clock.took.insert((0, BUILD), Duration::from_secs(10));
        // One more to build, and 2 × 3 × 14 of unknown length.
        let rest = clock.begin((1, BUILD)).unwrap();
        assert_eq!(rest, Duration::from_secs(10 + 10 * 84));
        clock.done();
        assert_eq!((clock.steps, clock.total), (2, 86));
    }
}
