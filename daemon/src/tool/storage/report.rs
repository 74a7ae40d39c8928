//! What a long command shows while it works: a bar on a terminal, plain lines elsewhere. Both go to standard error;
//! standard output has the result.

use std::io::IsTerminal;

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use skiff_store::migrate::Progress;

use crate::tool::Interrupt;

/// A bar, or lines.
#[derive(Debug)]
pub(super) struct Report {
    bar: Option<ProgressBar>,
    interrupt: Interrupt,
}

impl Report {
    /// For work on so many bytes; 0 when nobody knows.
    ///
    /// # Errors
    /// When signals cannot be noted.
    pub(super) fn new(total: u64) -> Result<Self, String> {
        let interrupt = Interrupt::install().map_err(|error| format!("signals: {error}"))?;
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = if total > 0 {
                ProgressBar::new(total)
            } else {
                ProgressBar::new_spinner()
            };
            let template = if total > 0 {
                "{wide_bar} {bytes}/{total_bytes} {eta}  {msg}"
            } else {
                "{spinner} {msg}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Ok(Self { bar, interrupt })
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Report {
    fn begin(&self, what: &str, bytes: u64) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None if bytes > 0 => crate::complain(&format!("{what} ({})", size(bytes))),
            None => crate::complain(what),
        }
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn stop(&self) -> bool {
        self.interrupt.requested()
    }
}

/// Bytes as Docker's CLI writes them: decimal units.
pub(super) fn size(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}
