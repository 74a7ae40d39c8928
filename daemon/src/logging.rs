//! Logs to standard error in dockerd's form: `time="…" level=info msg="…" key=value`, or short and coloured on a terminal.
//!
//! The level can change while the daemon runs (SIGHUP): the filter asks an atomic.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU8, Ordering};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogLevel;

static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Info as u8);

/// Starts logging. Does nothing when it was started before.
pub(crate) fn init(level: LogLevel) {
    set_level(level);
    let format = DockerFormat {
        terminal: io::stderr().is_terminal(),
    };
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(format.terminal)
        .event_format(format)
        .with_writer(io::stderr)
        .with_filter(CurrentLevel);
    // An error only says that a subscriber is in place.
    let _ = tracing_subscriber::registry().with(layer).try_init();
}

/// Changes the level.
pub(crate) fn set_level(level: LogLevel) {
    LEVEL.store(level as u8, Ordering::Relaxed);
    tracing::callsite::rebuild_interest_cache();
}

fn current() -> LevelFilter {
    match LEVEL.load(Ordering::Relaxed) {
        n if n == LogLevel::Error as u8 => LevelFilter::ERROR,
        n if n == LogLevel::Warn as u8 => LevelFilter::WARN,
        n if n == LogLevel::Info as u8 => LevelFilter::INFO,
        n if n == LogLevel::Debug as u8 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// Our own code up to the level; libraries only from warnings on, unless everything is wanted.
struct CurrentLevel;

impl<S: Subscriber> Filter<S> for CurrentLevel {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        let level = current();
        let ours = metadata.target().starts_with("skiff") || level == LevelFilter::TRACE;
        *metadata.level() <= if ours { level } else { level.min(LevelFilter::WARN) }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(current())
    }
}

struct DockerFormat {
    terminal: bool,
}

impl<S, N> FormatEvent<S, N> for DockerFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line::default();
        event.record(&mut line);
        let time = jiff::Timestamp::now();
        let level = *event.metadata().level();
        if self.terminal {
            let (name, colour) = match level {
                Level::ERROR => ("ERRO", 31),
                Level::WARN => ("WARN", 33),
                Level::INFO => ("INFO", 36),
                _ => ("DEBU", 37),
            };
            write!(
                writer,
                "\u{1b}[{colour}m{name}\u{1b}[0m[{time:.3}] {:<44}",
                line.message
            )?;
        } else {
            let name = match level {
                Level::ERROR => "error",
                Level::WARN => "warning",
                Level::INFO => "info",
                Level::DEBUG => "debug",
                Level::TRACE => "trace",
            };
            write!(writer, "time=\"{time:.9}\" level={name} msg={:?}", line.message)?;
        }
        for (key, value) in &line.fields {
            write!(writer, " {key}={}", Quoted(value))?;
        }
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(fields) = span
                .extensions()
                .get::<tracing_subscriber::fmt::FormattedFields<N>>()
                && !fields.is_empty()
            {
                write!(writer, " {}", fields.fields)?;
            }
        }
        writeln!(writer)
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Line {
    fn put(&mut self, field: &Field, text: String) {
        match field.name() {
            "message" => self.message = text,
            name => self.fields.push((name, text)),
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }
}

/// A value, in quotes where a reader of `key=value` lines needs them.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '/' | '@' | '^' | '+');
        if !self.0.is_empty() && self.0.chars().all(plain) {
            f.write_str(self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_where_needed() {
        for (value, expected) in [
            ("overlay2", "overlay2"),
            ("a b", "\"a b\""),
            ("", "\"\""),
            ("sha256:1", "\"sha256:1\""),
        ] {
            assert_eq!(Quoted(value).to_string(), expected);
        }
    }
}
