//! The result as a picture: for every workload a line a driver, how many times the fastest it took, on a logarithmic axis
//! when the ratios need it. Plain SVG 1.1, readable on light and on dark ground, nothing fetched, no script.
//!
//! A dot is the median, the bar behind it reaches from the smallest to the largest sample. Dots and not bars from zero,
//! because a logarithmic axis has no zero.

use std::fmt::Write as _;

use crate::advice::times;
use crate::report::{DriverResult, Report, WorkloadResult};
use crate::table;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 330.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 112.0;
const ROW: f64 = 17.0;
const GAP: f64 = 13.0;
/// Ratios beyond this are drawn on a logarithmic axis.
const LINEAR_UP_TO: f64 = 4.0;

/// Colours that people with any colour vision tell apart (Okabe and Ito), on light and dark ground.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans','DejaVu Sans',sans-serif;fill:#1f2328}\
.ground{fill:#ffffff}.note{font-size:12px;fill:#59636e}.title{font-size:18px;font-weight:600}\
.advice{font-weight:600}.grid{stroke:#d1d9e0;stroke-width:1}.best{font-weight:600}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ground{fill:#0d1117}.note{fill:#9198a1}.grid{stroke:#3d444d}}";

/// Draws it.
pub fn render(report: &Report) -> String {
    let names: Vec<&str> = report.measured().map(|driver| driver.name.as_str()).collect();
    let rows = names.len().max(1) as f64;
    let group = rows * ROW + GAP;
    let bottom = TOP + group * report.workloads.len() as f64;
    let refused: Vec<String> = report
        .drivers
        .iter()
        .filter_map(DriverResult::not_measured)
        .collect();
    let height = bottom + 70.0 + 18.0 * refused.len() as f64;
    let axis = Axis::for_report(report);

    let mut svg = Svg::new(height);
    head(&mut svg, report);
    legend(&mut svg, &names);
    axis.draw(&mut svg, bottom);
    for (n, workload) in report.workloads.iter().enumerate() {
        lines(&mut svg, workload, &names, TOP + group * n as f64, &axis);
    }
    let mut y = bottom + 40.0;
    svg.text(LEFT, y, "note", axis.caption());
    for line in &refused {
        y += 18.0;
        svg.text(20.0, y, "note", &shortened(line, 150));
    }
    svg.finish()
}

fn head(svg: &mut Svg, report: &Report) {
    let machine = &report.machine;
    let day = report.measured_at.split('T').next().unwrap_or_default();
    svg.text(20.0, 32.0, "title", "Storage drivers: times the fastest");
    let place = format!(
        "{} · {} · Linux {} · {} processors{} · {} rounds, {} sizes · {day}",
        shortened(&machine.data_root, 50),
        machine.file_system,
        machine.kernel,
        machine.cpus,
        if machine.user_namespace {
            " · user namespace"
        } else {
            ""
        },
        report.rounds,
        report.size.name,
    );
    svg.text(20.0, 52.0, "note", &shortened(&place, 150));
    svg.text(20.0, 74.0, "advice", &shortened(&report.advice.sentence, 130));
}

fn legend(svg: &mut Svg, names: &[&str]) {
    let mut x = LEFT;
    for (n, name) in names.iter().enumerate() {
        svg.dot(x + 5.0, 92.0, colour(n));
        svg.text(x + 15.0, 96.0, "", name);
        x += 40.0 + 8.0 * name.chars().count() as f64;
    }
}

fn lines(svg: &mut Svg, workload: &WorkloadResult, names: &[&str], top: f64, axis: &Axis) {
    let middle = top + ROW * names.len() as f64 / 2.0;
    svg.text_end(LEFT - 14.0, middle + 4.0, "", &workload.title);
    for (n, name) in names.iter().enumerate() {
        let y = top + ROW * (n as f64 + 0.5);
        let Some(cell) = workload.of(name) else { continue };
        let Some((summary, ratio)) = cell.summary.zip(cell.ratio) else {
            svg.text(LEFT + 4.0, y + 4.0, "note", &format!("✗ {name} failed"));
            continue;
        };
        let scale = ratio / summary.median;
        let (from, to) = (axis.x(summary.min * scale), axis.x(summary.max * scale));
        svg.line((LEFT, y), (axis.x(ratio), y), colour(n), 1.0, 0.6);
        svg.line((from, y), (to, y), colour(n), 6.0, 0.45);
        svg.dot(axis.x(ratio), y, colour(n));
        let class = if ratio < 1.005 { "best" } else { "" };
        let label = format!(
            "{}  {}",
            table::value(summary.median, workload.unit),
            times(ratio)
        );
        svg.text(axis.x(ratio).max(to) + 10.0, y + 4.0, class, &label);
    }
}

fn colour(n: usize) -> &'static str {
    COLOURS[n % COLOURS.len()]
}

fn shortened(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars().take(limit - 1).chain(['…']).collect()
}

/// Ratios to places.
struct Axis {
    smallest: f64,
    largest: f64,
    logarithmic: bool,
}

impl Axis {
    fn for_report(report: &Report) -> Self {
        let cells = report.workloads.iter().flat_map(|workload| &workload.results);
        let (mut smallest, mut largest) = (1.0f64, 1.5f64);
        for cell in cells {
            if let Some((summary, ratio)) = cell.summary.zip(cell.ratio)
                && summary.median > 0.0
            {
                smallest = smallest.min(ratio * summary.min / summary.median);
                largest = largest.max(ratio);
            }
        }
        Self {
            smallest: smallest.max(0.3) * 0.95,
            largest: largest * 1.05,
            logarithmic: largest > LINEAR_UP_TO,
        }
    }

    fn x(&self, ratio: f64) -> f64 {
        let place = |value: f64| if self.logarithmic { value.ln() } else { value };
        let share = (place(ratio.max(self.smallest)) - place(self.smallest))
            / (place(self.largest) - place(self.smallest));
        LEFT + share.min(1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn caption(&self) -> &'static str {
        if self.logarithmic {
            "times the fastest (logarithmic; left is better); wide bars: smallest to largest sample"
        } else {
            "times the fastest (left is better); wide bars: smallest to largest sample"
        }
    }

    fn ticks(&self) -> Vec<f64> {
        let all: Vec<f64> = if self.logarithmic {
            (0..6)
                .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
                .collect()
        } else {
            (0..10).map(|n| 1.0 + 0.5 * f64::from(n)).collect()
        };
        let mut kept: Vec<f64> = Vec::new();
        for tick in all.into_iter().filter(|&tick| tick <= self.largest) {
            // Labels must not touch.
            if kept.last().is_none_or(|&last| self.x(tick) - self.x(last) > 34.0) {
                kept.push(tick);
            }
        }
        kept
    }

    fn draw(&self, svg: &mut Svg, bottom: f64) {
        for tick in self.ticks() {
            let x = self.x(tick);
            svg.grid(x, TOP - 4.0, bottom);
            svg.text_middle(x, bottom + 18.0, "note", &format!("{tick}×"));
        }
    }
}

/// Elements, one a line.
struct Svg {
    text: String,
}

impl Svg {
    fn new(height: f64) -> Self {
        let text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<style>{STYLE}</style>\n\
             <rect class=\"ground\" width=\"100%\" height=\"100%\"/>\n"
        );
        Self { text }
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        self.anchored(x, y, class, "start", text);
    }

    fn text_end(&mut self, x: f64, y: f64, class: &str, text: &str) {
        self.anchored(x, y, class, "end", text);
    }

    fn text_middle(&mut self, x: f64, y: f64, class: &str, text: &str) {
        self.anchored(x, y, class, "middle", text);
    }

    fn anchored(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let text = escaped(text);
        let _ = writeln!(
            self.text,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\" xml:space=\"preserve\">{text}</text>"
        );
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64, opacity: f64) {
        let _ = writeln!(
            self.text,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-opacity=\"{opacity}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    fn grid(&mut self, x: f64, top: f64, bottom: f64) {
        let _ = writeln!(
            self.text,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>"
        );
    }

    fn dot(&mut self, x: f64, y: f64, colour: &str) {
        let _ = writeln!(
            self.text,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\"/>"
        );
    }

    fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

/// Text as XML has it; characters that XML 1.0 cannot have at all become U+FFFD.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c if c < ' ' && !matches!(c, '\t' | '\n' | '\r') => out.push('\u{fffd}'),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::made_up;

    fn check(report: &Report) -> (usize, String) {
        let svg = render(report);
        let document = roxmltree::Document::parse(&svg).unwrap_or_else(|error| panic!("{error}\n{svg}"));
        let root = document.root_element();
        assert_eq!(root.tag_name().name(), "svg");
        let height: f64 = root.attribute("height").unwrap().parse().unwrap();
        let number =
            |node: roxmltree::Node<'_, '_>, name| node.attribute(name).unwrap().parse::<f64>().unwrap();
        let mut dots = 0;
        for node in document.descendants() {
            match node.tag_name().name() {
                "circle" => {
                    dots += 1;
                    let (x, y) = (number(node, "cx"), number(node, "cy"));
                    assert!(
                        (0.0..=WIDTH).contains(&x) && (0.0..=height).contains(&y),
                        "{x} {y}"
                    );
                }
                "text" => {
                    let (x, y) = (number(node, "x"), number(node, "y"));
                    assert!(
                        (0.0..=WIDTH).contains(&x) && (0.0..=height).contains(&y),
                        "{node:?}"
                    );
                }
                _ => {}
            }
        }
        let text = document
            .descendants()
            .filter_map(|node| node.text())
            .collect::<String>();
        (dots, text)
    }

    #[test]
    fn it_is_xml_with_a_dot_for_every_cell_inside_the_picture() {
        let mut report = made_up(
            &[
                ("overlay2", |_| 1.0),
                ("fuse-overlayfs", |_| 4.1),
                ("vfs", |_| 1300.0),
            ],
            &[("btrfs", "<not> \"btrfs\" & \u{1} no more")],
        );
        report.workloads[1].results[2].samples.clear();
        report.evaluate();
        let (dots, text) = check(&report);
        assert_eq!(dots, report.workloads.len() * 3 - 1 + 3);
        assert!(
            text.contains("/home/a & b/.local") && text.contains("<not> \"btrfs\" & \u{fffd}"),
            "{text}"
        );
        assert!(text.contains("logarithmic") && text.contains("1000×"));
    }

    #[test]
    fn close_ratios_have_a_linear_axis_and_nothing_is_drawn_without_figures() {
        let (_, text) = check(&made_up(&[("a", |_| 1.0), ("b", |_| 1.3)], &[]));
        assert!(!text.contains("logarithmic") && text.contains("1.5×"), "{text}");
        let (dots, _) = check(&made_up(&[], &[("a", "no")]));
        assert_eq!(dots, 0);
    }
}
