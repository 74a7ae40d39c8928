//! How far the benchmark is: a bar on a terminal, elsewhere a line at the beginning of each round. Both on standard error,
//! so that standard output is the result alone.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use skiff_storage_bench::Progress;

/// Shows progress.
pub(super) struct Display {
    bar: Option<ProgressBar>,
    rounds: u32,
    /// The last round that was announced.
    announced: Option<u32>,
}

impl Display {
    pub(super) fn new(rounds: u32) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{bar:24.cyan/dim} {percent:>3} %  {wide_msg}") {
                bar.set_style(style.progress_chars("━━─"));
            }
            bar
        });
        Self {
            bar,
            rounds,
            announced: None,
        }
    }

    pub(super) fn show(&mut self, progress: &Progress) {
        let left = progress
            .remaining
            .map_or_else(String::new, |left| format!(", {}", duration(left)));
        if let Some(bar) = &self.bar {
            bar.set_length(progress.total as u64);
            bar.set_position(progress.done as u64);
            bar.set_message(match progress.round {
                0 => format!("{}: {}{left}", progress.driver, progress.what),
                n => format!(
                    "round {n} of {}, {}: {}{left}",
                    self.rounds, progress.driver, progress.what
                ),
            });
        } else if self.announced != Some(progress.round) {
            self.announced = Some(progress.round);
            crate::complain(&match progress.round {
                0 => "unpacking the image with each driver".to_owned(),
                n => format!("round {n} of {}{left}", self.rounds),
            });
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `about 2 min left`, rounded as a guess should be.
fn duration(left: Duration) -> String {
    match left.as_secs() {
        0..=4 => "a few seconds left".to_owned(),
        s @ 5..=59 => format!("about {} s left", s.next_multiple_of(5)),
        s => format!("about {} min left", s.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_round() {
        let text = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!(text(2), "a few seconds left");
        assert_eq!(text(41), "about 45 s left");
        assert_eq!(text(59), "about 60 s left");
        assert_eq!(text(61), "about 2 min left");
    }
}
