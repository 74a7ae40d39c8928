//! The result for people: a table with ratios to the fastest, what was refused and why, and the sentence of advice.

use std::fmt::Write as _;

use crate::advice::times;
use crate::report::{DriverResult, Figures, Report};
use crate::workload::{Unit, bytes};

/// Samples that lie further apart than this share of their median are marked.
const NOISY: f64 = 0.4;

/// Renders it. `bold` surrounds the best cell of a line and the advice, `dim` the notes; both `("", "")` without a terminal.
pub fn render(report: &Report, bold: (&str, &str), dim: (&str, &str)) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "Storage drivers on {} ({}, Linux {}, {} processors{})\n{}Medians of {} rounds, and how many times the best; {} sizes.{}\n\n",
        machine.data_root,
        machine.file_system,
        machine.kernel,
        machine.cpus,
        if machine.user_namespace {
            ", in a user namespace"
        } else {
            ""
        },
        dim.0,
        report.rounds,
        report.size.name,
        dim.1,
    );
    let mut noisy = false;
    let mut errors = Vec::new();
    let names: Vec<&str> = report.measured().map(|driver| driver.name.as_str()).collect();
    let mut lines = vec![Line::head(&names)];
    for workload in &report.workloads {
        let mut line = Line::new(&workload.title);
        for name in &names {
            let cell = workload.of(name);
            noisy |= cell
                .and_then(|cell| cell.summary)
                .is_some_and(|s| s.spread() > NOISY);
            if let Some(error) = cell.and_then(|cell| cell.error.as_ref()) {
                errors.push(format!("{name}, {}: {error}", workload.title));
            }
            line.cells.push(cell_text(cell, workload.unit));
            line.best
                .push(cell.is_some_and(|cell| cell.ratio.is_some_and(|ratio| ratio < 1.005)));
        }
        lines.push(line);
    }
    lines.push(scores(report, &names));
    text.push_str(&align(&lines, bold));
    let mut note = |line: &str| {
        let _ = writeln!(text, "{}{line}{}", dim.0, dim.1);
    };
    note("");
    if noisy {
        note("~ the rounds differ by more than 40 % of the median");
    }
    note(&format!("{}.", report.cold));
    for error in errors {
        note(&format!("✗ {error}"));
    }
    for line in report.drivers.iter().filter_map(DriverResult::not_measured) {
        note(&line);
    }
    let _ = writeln!(text, "\n{}{}{}", bold.0, report.advice.sentence, bold.1);
    text
}

struct Line {
    title: String,
    /// Value and ratio.
    cells: Vec<(String, String)>,
    best: Vec<bool>,
}

impl Line {
    fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            cells: Vec::new(),
            best: Vec::new(),
        }
    }

    fn head(names: &[&str]) -> Self {
        Self {
            title: String::new(),
            cells: names
                .iter()
                .map(|name| ((*name).to_owned(), String::new()))
                .collect(),
            best: vec![false; names.len()],
        }
    }
}

fn scores(report: &Report, names: &[&str]) -> Line {
    let mut line = Line::new("weighted mean");
    for name in names {
        let score = report
            .measured()
            .find(|driver| driver.name == *name)
            .and_then(|driver| driver.score);
        line.cells
            .push((String::new(), score.map_or_else(|| "–".to_owned(), times)));
        line.best.push(report.advice.driver.as_deref() == Some(*name));
    }
    line
}

fn cell_text(cell: Option<&Figures>, unit: Unit) -> (String, String) {
    let Some((summary, ratio)) = cell.and_then(|cell| Some((cell.summary?, cell.ratio?))) else {
        return ("✗".to_owned(), String::new());
    };
    let mark = if summary.spread() > NOISY { "~" } else { "" };
    (format!("{mark}{}", value(summary.median, unit)), times(ratio))
}

/// `12.3 ms`, `1.24 s`, `430 MiB`.
pub(crate) fn value(value: f64, unit: Unit) -> String {
    if unit == Unit::Bytes {
        // Sizes are far below 2^53.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bytes on a disk"
        )]
        return bytes(value.round() as u64);
    }
    match value {
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 0.0995 => format!("{:.1} ms", s * 1e3),
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 99.5 => format!("{s:.2} s"),
        s => format!("{s:.0} s"),
    }
}

fn align(lines: &[Line], bold: (&str, &str)) -> String {
    let width = |text: &str| text.chars().count();
    let columns = lines.first().map_or(0, |line| line.cells.len());
    let title = lines.iter().map(|line| width(&line.title)).max().unwrap_or(0);
    let widest = |of: fn(&(String, String)) -> &String, column: usize| {
        lines
            .iter()
            .skip(1)
            .map(|line| width(of(&line.cells[column])))
            .max()
            .unwrap_or(0)
    };
    let mut text = String::new();
    for line in lines {
        let _ = write!(text, "  {}{}", line.title, " ".repeat(title - width(&line.title)));
        for column in 0..columns {
            let (value, ratio) = &line.cells[column];
            let (values, ratios) = (widest(|c| &c.0, column), widest(|c| &c.1, column));
            let whole = (values + 2 + ratios).max(width(&lines[0].cells[column].0));
            let cell = if ratio.is_empty() {
                value.clone()
            } else {
                format!("{value}  {ratio:>ratios$}")
            };
            let pad = " ".repeat(whole.saturating_sub(width(&cell)));
            let (open, close) = if line.best[column] { bold } else { ("", "") };
            let _ = write!(text, "   {pad}{open}{cell}{close}");
        }
        let kept = text.trim_end_matches(' ').len();
        text.truncate(kept);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::made_up;

    #[test]
    fn columns_are_aligned_and_everything_is_said() {
        let refusal = "btrfs: /home/a is on ext4; the driver needs a btrfs file system";
        let mut report = made_up(
            &[
                ("overlay2", |_| 1.0),
                ("fuse-overlayfs", |_| 4.1),
                ("vfs", |_| 130.0),
            ],
            &[("btrfs", refusal)],
        );
        report.workloads[2].results[2].error = Some("No space left on device".to_owned());
        report.workloads[2].results[2].samples.clear();
        report.workloads[4].results[0].samples = vec![0.01, 0.02, 0.05];
        report.evaluate();
        let text = render(&report, ("", ""), ("", ""));
        assert!(
            text.contains("not measured: btrfs: /home/a is on ext4;"),
            "{text}"
        );
        assert!(
            text.contains("✗ vfs, walk the image, first time: No space left"),
            "{text}"
        );
        assert!(
            text.contains("use overlay2: 4.0× as fast as fuse-overlayfs"),
            "{text}"
        );
        assert!(text.contains('~'), "{text}");
        let table: Vec<_> = text.lines().skip(3).take(report.workloads.len() + 2).collect();
        let widths: Vec<_> = table.iter().map(|line| line.chars().count()).collect();
        let full: Vec<_> = widths
            .iter()
            .zip(&table)
            .filter(|(_, line)| line.ends_with('×'))
            .collect();
        assert!(
            full.len() > 10 && full.iter().all(|(width, _)| *width == full[0].0),
            "{text}"
        );
    }

    #[test]
    fn values_have_three_digits_or_so() {
        let seconds = [0.000_123, 0.0123, 0.123, 1.234, 123.4].map(|s| value(s, Unit::Seconds));
        assert_eq!(seconds, ["123 µs", "12.3 ms", "123 ms", "1.23 s", "123 s"]);
        assert_eq!(value(3e8, Unit::Bytes), "286 MiB");
    }
}
