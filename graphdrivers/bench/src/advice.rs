//! One sentence: which driver to use here, and by how much.
//!
//! Each driver's score is the geometric mean of its ratios to the fastest, weighted by how often people wait for that kind
//! of work (the weights are in [`WORKLOADS`](crate::WORKLOADS), the reasons in `docs/benchmarks.md`); a ratio beyond
//! [`HOPELESS`] counts as that, or the one line in which a copy is not needed at all would decide everything. The best
//! score wins. The sentence compares it with the second best where the difference weighs most: "use overlay2: 4.1× as
//! fast as fuse-overlayfs with small files here".

use serde::{Deserialize, Serialize};

use crate::report::{DriverResult, WorkloadResult};
use crate::stats::weighted_geometric_mean;
use crate::workload::Group;

/// Scores closer than this are called equal: less is within what two runs differ by.
const EQUAL: f64 = 1.05;

/// Slower than this is all the same.
pub(crate) const HOPELESS: f64 = 20.0;

/// A group in which the winner is further behind than this is mentioned.
const WORTH_SAYING: f64 = 0.8;

/// What to use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// The driver; absent when no driver did everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The sentence.
    pub sentence: String,
}

/// Chooses. Of drivers that are equally fast the earlier one in `drivers` wins: that is the engine's own order.
pub(crate) fn advise(drivers: &[DriverResult], workloads: &[WorkloadResult]) -> Advice {
    let mut ranked: Vec<(&DriverResult, f64)> = drivers
        .iter()
        .filter_map(|driver| Some((driver, driver.score?)))
        .collect();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
    let Some(&(fastest, best)) = ranked.first() else {
        return Advice {
            driver: None,
            sentence: "no driver did everything here, see the errors above".to_owned(),
        };
    };
    let equal: Vec<&DriverResult> = drivers
        .iter()
        .filter(|driver| driver.score.is_some_and(|score| score <= best * EQUAL))
        .collect();
    let winner = *equal.first().unwrap_or(&fastest);
    let second = ranked.iter().find(|(driver, _)| driver.name != winner.name);
    let sentence = match second {
        None => only(winner, drivers),
        Some(_) if equal.len() > 1 => {
            let names: Vec<_> = equal.iter().map(|driver| driver.name.as_str()).collect();
            format!(
                "use {}: {} are equally fast here",
                winner.name,
                names.join(" and ")
            )
        }
        Some((other, score)) => compare(&winner.name, &other.name, score / best, workloads),
    };
    Advice {
        driver: Some(winner.name.clone()),
        sentence,
    }
}

fn only(winner: &DriverResult, drivers: &[DriverResult]) -> String {
    match drivers.len() {
        1 => format!("{} was the only driver measured", winner.name),
        n => format!(
            "use {}: of the {n} drivers tried it is the only one that works here",
            winner.name
        ),
    }
}

/// Where the winner is most ahead of the second, counted by weight, and what it pays for that elsewhere.
fn compare(winner: &str, other: &str, overall: f64, workloads: &[WorkloadResult]) -> String {
    let groups = [
        Group::SmallFiles,
        Group::BigFiles,
        Group::Changes,
        Group::Start,
        Group::Disk,
    ];
    let leads: Vec<Lead> = groups
        .into_iter()
        .filter_map(|group| lead(group, winner, other, workloads))
        .collect();
    let most = leads.iter().max_by(|a, b| a.gain().total_cmp(&b.gain()));
    let least = leads.iter().min_by(|a, b| a.factor.total_cmp(&b.factor));
    let mut text = match most.map(|lead| (lead.group, lead.factor)) {
        Some((Group::Disk, factor)) => {
            format!("use {winner}: {other} takes {} as much disk here", times(factor))
        }
        Some((group, factor)) => {
            format!(
                "use {winner}: {} as fast as {other} {} here",
                times(factor),
                group.phrase()
            )
        }
        None => format!("use {winner}: {} as fast as {other} here", times(overall)),
    };
    match least
        .filter(|lead| lead.factor < WORTH_SAYING)
        .map(|lead| (lead.group, 1.0 / lead.factor))
    {
        Some((Group::Disk, factor)) => {
            text.push_str(&format!(", though it takes {} as much disk", times(factor)));
        }
        Some((group, factor)) => {
            text.push_str(&format!(
                ", though {other} is {} as fast {}",
                times(factor),
                group.phrase()
            ));
        }
        None => {}
    }
    text
}

/// How far the winner is ahead in a group.
struct Lead {
    group: Group,
    factor: f64,
    weight: f64,
}

impl Lead {
    fn gain(&self) -> f64 {
        self.factor.clamp(1.0 / HOPELESS, HOPELESS).ln() * self.weight
    }
}

fn lead(group: Group, winner: &str, other: &str, workloads: &[WorkloadResult]) -> Option<Lead> {
    let lines = workloads.iter().filter(|line| line.group == group);
    let pairs: Vec<(f64, f64)> = lines
        .filter_map(|line| Some((line.of(other)?.ratio? / line.of(winner)?.ratio?, line.weight)))
        .collect();
    let weight = pairs.iter().map(|(_, weight)| weight).sum();
    weighted_geometric_mean(pairs).map(|factor| Lead {
        group,
        factor,
        weight,
    })
}

/// `4.1×`, `130×`.
pub(crate) fn times(factor: f64) -> String {
    if factor >= 9.95 {
        format!("{factor:.0}×")
    } else {
        format!("{factor:.1}×")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{Made, made_up};

    fn sentence(drivers: &[Made<'_>], refused: &[(&str, &str)]) -> String {
        made_up(drivers, refused).advice.sentence
    }

    #[test]
    fn the_winner_is_compared_with_the_second_where_it_matters_most() {
        let slow_on_small_files = |group| match group {
            Group::SmallFiles => 4.1,
            _ => 1.2,
        };
        assert_eq!(
            sentence(
                &[
                    ("overlay2", |_| 1.0),
                    ("fuse-overlayfs", slow_on_small_files),
                    ("vfs", |_| 9.0)
                ],
                &[]
            ),
            "use overlay2: 4.1× as fast as fuse-overlayfs with small files here"
        );
    }

    #[test]
    fn what_the_winner_pays_is_said() {
        let vfs = |group| match group {
            Group::Disk => 11.0,
            Group::Start => 100.0,
            Group::SmallFiles => 0.5,
            _ => 1.0,
        };
        assert_eq!(
            sentence(&[("overlay2", |_| 1.0), ("vfs", vfs)], &[]),
            "use overlay2: 100× as fast as vfs at starting containers here, though vfs is 2.0× as fast with small files"
        );
        let lavish = |group| if group == Group::Disk { 2.0 } else { 0.5 };
        assert_eq!(
            sentence(&[("a", lavish), ("b", |_| 1.0)], &[]),
            "use a: 2.0× as fast as b with small files here, though it takes 2.0× as much disk"
        );
    }

    #[test]
    fn equals_are_called_equal_and_the_first_is_taken() {
        assert_eq!(
            sentence(
                &[("overlay2", |_| 1.02), ("btrfs", |_| 1.0), ("vfs", |_| 3.0)],
                &[]
            ),
            "use overlay2: overlay2 and btrfs are equally fast here"
        );
    }

    #[test]
    fn a_single_driver_is_no_choice() {
        assert_eq!(
            sentence(&[("vfs", |_| 1.0)], &[]),
            "vfs was the only driver measured"
        );
        assert_eq!(
            sentence(&[("vfs", |_| 1.0)], &[("overlay2", "kernel 4.18")]),
            "use vfs: of the 2 drivers tried it is the only one that works here"
        );
    }

    #[test]
    fn without_a_complete_driver_there_is_no_advice() {
        let mut report = made_up(&[("a", |_| 1.0)], &[]);
        report.workloads[0].results[0].error = Some("EIO".to_owned());
        report.evaluate();
        assert_eq!(report.advice.driver, None);
        assert!(report.advice.sentence.starts_with("no driver did everything"));
    }
}
