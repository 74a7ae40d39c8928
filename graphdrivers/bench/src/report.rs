//! The result of a run, and its JSON form.
//!
//! The JSON is for programs and is kept stable: fields are only added; `version` grows when that is not enough.

use serde::{Deserialize, Serialize};

use crate::advice::{Advice, HOPELESS, advise};
use crate::error::{Error, ErrorKind, Result};
use crate::size::Size;
use crate::stats::{Summary, weighted_geometric_mean};
use crate::workload::{Group, Unit};

/// Form of the JSON.
pub const VERSION: u32 = 1;

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Form of the JSON, [`VERSION`].
    pub version: u32,
    /// Program and version that measured.
    pub program: String,
    /// When, RFC 3339.
    pub measured_at: String,
    /// Where.
    pub machine: Machine,
    /// How much.
    pub size: Size,
    /// Rounds asked for.
    pub rounds: u32,
    /// What "first" in some titles means.
    pub cold: String,
    /// The drivers, in the order they are shown, the refused ones too.
    pub drivers: Vec<DriverResult>,
    /// The table, line by line.
    pub workloads: Vec<WorkloadResult>,
    /// What to use.
    pub advice: Advice,
}

/// Where it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The data root.
    pub data_root: String,
    /// Type of its file system.
    pub file_system: String,
    /// Kernel release.
    pub kernel: String,
    /// Processors.
    pub cpus: usize,
    /// Whether the drivers ran in a user namespace.
    pub user_namespace: bool,
}

/// A driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriverResult {
    /// Its name.
    pub name: String,
    /// Why it was not measured; absent when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Weighted geometric mean of its ratios to the fastest, 1 is best, ratios beyond 20 counted as 20; absent without figures, or when it failed at a
    /// workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkloadResult {
    /// Stable name.
    pub id: String,
    /// For people.
    pub title: String,
    /// Which side of storage.
    pub group: Group,
    /// Weight in the score.
    pub weight: f64,
    /// What the samples are.
    pub unit: Unit,
    /// One for each measured driver, in the order of `drivers`.
    pub results: Vec<Figures>,
}

/// A cell of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The driver.
    pub driver: String,
    /// In the order of the rounds.
    pub samples: Vec<f64>,
    /// Absent without samples.
    #[serde(default, skip_serializing_if = "Option::is_none", flatten)]
    pub summary: Option<Summary>,
    /// Median divided by the best driver's median.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Why it was not measured to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl DriverResult {
    /// "not measured: NAME: why", for one that was refused.
    pub(crate) fn not_measured(&self) -> Option<String> {
        let why = self.refused.as_ref()?;
        let prefix = format!("{}: ", self.name);
        Some(format!(
            "not measured: {prefix}{}",
            why.strip_prefix(&prefix).unwrap_or(why)
        ))
    }
}

impl Report {
    /// Fills in what follows from the samples: summaries, ratios, scores, advice.
    pub(crate) fn evaluate(&mut self) {
        for line in &mut self.workloads {
            line.evaluate();
        }
        for driver in &mut self.drivers {
            let cells: Vec<_> = self
                .workloads
                .iter()
                .filter_map(|line| Some((line.of(&driver.name)?, line.weight)))
                .collect();
            let complete = !cells.is_empty()
                && cells
                    .iter()
                    .all(|(cell, _)| cell.ratio.is_some() && cell.error.is_none());
            driver.score = if complete {
                weighted_geometric_mean(
                    cells
                        .iter()
                        .filter_map(|(cell, weight)| Some((cell.ratio?.min(HOPELESS), *weight))),
                )
            } else {
                None
            };
        }
        self.advice = advise(&self.drivers, &self.workloads);
    }

    /// The drivers that have figures.
    pub fn measured(&self) -> impl Iterator<Item = &DriverResult> {
        self.drivers.iter().filter(|driver| driver.refused.is_none())
    }

    /// As JSON, with a newline at the end.
    ///
    /// # Errors
    /// None in practice; a number that JSON cannot have.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(|error| Error::new(ErrorKind::Failed, format!("write JSON: {error}")))
    }

    /// Reads what [`Report::to_json`] wrote.
    ///
    /// # Errors
    /// `InvalidArgument` for anything else, a newer form included.
    pub fn from_json(text: &str) -> Result<Self> {
        let bad = |why: String| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("not a storage benchmark: {why}"),
            )
        };
        let report: Self = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
        if report.version == VERSION {
            Ok(report)
        } else {
            Err(bad(format!("version {}", report.version)))
        }
    }
}

impl WorkloadResult {
    /// The cell of a driver.
    pub fn of(&self, driver: &str) -> Option<&Figures> {
        self.results.iter().find(|cell| cell.driver == driver)
    }

    fn evaluate(&mut self) {
        for cell in &mut self.results {
            cell.summary = Summary::of(&cell.samples);
        }
        let medians = self
            .results
            .iter()
            .filter_map(|cell| cell.summary)
            .map(|summary| summary.median);
        let best = medians.fold(f64::INFINITY, f64::min);
        for cell in &mut self.results {
            cell.ratio = cell
                .summary
                .filter(|_| best > 0.0)
                .map(|summary| summary.median / best);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::workload::WORKLOADS;

    /// A driver, and how many times what the first needs it needs.
    pub(crate) type Made<'a> = (&'a str, fn(Group) -> f64);

    /// A report in which driver `n` needs `factors[n](group)` times what the first needs.
    pub(crate) fn made_up(drivers: &[Made<'_>], refused: &[(&str, &str)]) -> Report {
        let size = Size::normal();
        let workloads = WORKLOADS
            .iter()
            .enumerate()
            .map(|(n, workload)| WorkloadResult {
                id: workload.id.to_owned(),
                title: workload.title(&size),
                group: workload.group,
                weight: workload.weight,
                unit: workload.unit,
                results: drivers
                    .iter()
                    .map(|(name, factor)| {
                        let base = if workload.unit == Unit::Bytes {
                            5e8
                        } else {
                            0.003 * (n + 1) as f64
                        };
                        let value = base * factor(workload.group);
                        Figures {
                            driver: (*name).to_owned(),
                            samples: vec![value * 0.95, value, value * 1.2],
                            summary: None,
                            ratio: None,
                            error: None,
                        }
                    })
                    .collect(),
            })
            .collect();
        let result = |name: &str, refused: Option<&str>| DriverResult {
            name: name.to_owned(),
            refused: refused.map(str::to_owned),
            score: None,
        };
        let mut report = Report {
            version: VERSION,
            program: "skiffd 0.1.0".to_owned(),
            measured_at: "2026-11-22T02:00:00Z".to_owned(),
            machine: Machine {
                data_root: "/home/a & b/.local/share/docker".to_owned(),
                file_system: "ext4".to_owned(),
                kernel: "6.18.0".to_owned(),
                cpus: 2,
                user_namespace: true,
            },
            size,
            rounds: 3,
            cold: crate::COLD.to_owned(),
            drivers: drivers
                .iter()
                .map(|(name, _)| result(name, None))
                .chain(refused.iter().map(|(name, why)| result(name, Some(why))))
                .collect(),
            workloads,
            advice: Advice::default(),
        };
        report.evaluate();
        report
    }

    #[test]
    fn json_round_trips_and_knows_its_version() {
        let report = made_up(
            &[("overlay2", |_| 1.0), ("vfs", |_| 3.0)],
            &[("btrfs", "not btrfs")],
        );
        let text = report.to_json().unwrap();
        let again = Report::from_json(&text).unwrap();
        assert_eq!(
            (&again.advice, &again.machine, &again.size),
            (&report.advice, &report.machine, &report.size)
        );
        for (line, expected) in again.workloads.iter().zip(&report.workloads) {
            assert_eq!(
                (&line.id, line.unit, line.group),
                (&expected.id, expected.unit, expected.group)
            );
            for (cell, expected) in line.results.iter().zip(&expected.results) {
                assert_eq!(&cell.driver, &expected.driver);
                assert!((cell.summary.unwrap().median - expected.summary.unwrap().median).abs() < 1e-9);
                assert!((cell.ratio.unwrap() - expected.ratio.unwrap()).abs() < 1e-9);
            }
        }
        assert!(Report::from_json(&text.replace("\"version\": 1,", "\"version\": 2,")).is_err());
        assert!(Report::from_json("{}").is_err());
    }

    #[test]
    fn ratios_and_scores_follow_from_the_medians() {
        let report = made_up(&[("a", |_| 2.0), ("b", |_| 1.0)], &[]);
        let cell = report.workloads[0].of("a").unwrap();
        assert!((cell.ratio.unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(report.workloads[0].of("b").unwrap().ratio, Some(1.0));
        assert!((report.drivers[0].score.unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(report.drivers[1].score, Some(1.0));
    }

    #[test]
    fn a_driver_that_failed_somewhere_has_no_score() {
        let mut report = made_up(&[("a", |_| 1.0), ("b", |_| 2.0)], &[]);
        report.workloads[3].results[0].error = Some("EIO".to_owned());
        report.evaluate();
        assert!(report.drivers[0].score.is_none() && report.drivers[1].score.is_some());
    }
}
