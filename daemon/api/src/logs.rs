//! `GET /containers/ID/logs`.

use axum::extract::{Path, State};
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::Timestamp;
use skiff_core::container::LogOptions;
use skiff_core::runtime::LogEntry;
use tokio_stream::wrappers::ReceiverStream;

use crate::answer::{self, MULTIPLEXED, RAW};
use crate::attach::FRAMING_IN_CONTENT_TYPE;
use crate::error::{Answer, ApiError};
use crate::extract::{ApiVersion, Gone, Params};
use crate::{App, time};

/// How entries are written.
#[derive(Debug, Clone, Copy)]
struct Style {
    framed: bool,
    timestamps: bool,
    details: bool,
}

impl Style {
    fn write(self, entry: &LogEntry) -> Bytes {
        if !self.timestamps && !self.details {
            return if self.framed {
                answer::frame(entry.stream, &entry.line)
            } else {
                entry.line.clone()
            };
        }
        let mut text = Vec::with_capacity(entry.line.len() + 32);
        if self.timestamps {
            text.extend_from_slice(time::rfc3339_fixed(entry.time).as_bytes());
            text.push(b' ');
        }
        if self.details {
            // The labels and variables chosen by log options come here; there are none, but the column stays.
            text.push(b' ');
        }
        text.extend_from_slice(&entry.line);
        if self.framed {
            answer::frame(entry.stream, &text)
        } else {
            text.into()
        }
    }

    fn write_error(self, error: &skiff_core::Error) -> Bytes {
        let text = format!("Error grabbing logs: {error}\n");
        if self.framed {
            answer::system_error_frame(&text)
        } else {
            text.into()
        }
    }
}

fn options(params: &Params, now: Timestamp) -> Result<LogOptions, ApiError> {
    let options = LogOptions {
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
        since: time::parse_bound(params.text("since"), now)?,
        until: time::parse_bound(params.text("until"), now)?,
        // `all`, nothing, and what is no number: everything, as Docker has it.
        tail: params.text("tail").parse().ok(),
        follow: params.flag("follow"),
    };
    if !options.stdout && !options.stderr {
        return Err(ApiError::invalid(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    Ok(options)
}

/// `docker logs`.
pub(crate) async fn logs(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
    version: ApiVersion,
    Gone(gone): Gone,
) -> Answer {
    // The container is looked for first: a missing one is a 404 whatever else is wrong.
    app.engine.containers.find(&id)?;
    let options = options(&params, Timestamp::now())?;
    let follow = options.follow;
    let log = app.engine.containers.logs(&id, options).await?;
    let style = Style {
        framed: !log.tty,
        timestamps: params.flag("timestamps"),
        details: params.flag("details"),
    };
    let content_type = if style.framed && version >= FRAMING_IN_CONTENT_TYPE {
        MULTIPLEXED
    } else {
        RAW
    };
    let lines = ReceiverStream::new(log.entries).map(move |entry| match entry {
        Ok(entry) => style.write(&entry),
        Err(error) => {
            tracing::error!(%error, "cannot read a container's log");
            style.write_error(&error)
        }
    });
    let end = async move {
        tokio::select! {
            () = gone.cancelled() => {}
            () = app.shutdown.cancelled(), if follow => {}
        }
    };
    Ok(answer::stream(content_type, lines.take_until(Box::pin(end))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_core::runtime::StdStream;

    fn written(framed: bool, timestamps: bool, details: bool) -> Vec<u8> {
        let entry = LogEntry {
            stream: StdStream::Stderr,
            time: "2026-11-21T10:00:00.25Z".parse().unwrap(),
            line: Bytes::from_static(b"hi\n"),
        };
        Style {
            framed,
            timestamps,
            details,
        }
        .write(&entry)
        .to_vec()
    }

    #[test]
    fn entries_in_every_style() {
        assert_eq!(written(false, false, false), b"hi\n");
        assert_eq!(written(true, false, false), b"\x02\0\0\0\0\0\0\x03hi\n");
        assert_eq!(
            written(false, true, false),
            b"2026-11-21T10:00:00.250000000Z hi\n"
        );
        assert_eq!(
            written(false, true, true),
            b"2026-11-21T10:00:00.250000000Z  hi\n"
        );
        assert_eq!(written(false, false, true), b" hi\n");
        let framed = written(true, true, false);
        assert_eq!(
            (framed[7] as usize, &framed[framed.len() - 3..]),
            (framed.len() - 8, &b"hi\n"[..])
        );
    }

    #[test]
    fn parameters() {
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let parsed = options(&Params::parse("stdout=1&tail=5&since=10m&follow=true"), now).unwrap();
        assert!(parsed.stdout && !parsed.stderr && parsed.follow);
        assert_eq!((parsed.tail, parsed.until), (Some(5), None));
        assert_eq!(parsed.since, Some("2026-11-21T11:50:00Z".parse().unwrap()));
        assert_eq!(
            options(&Params::parse("stderr=1&tail=all"), now).unwrap().tail,
            None
        );
        assert_eq!(
            options(&Params::parse("stderr=1&tail=0"), now).unwrap().tail,
            Some(0)
        );
        let error = options(&Params::parse("tail=5"), now).unwrap_err().into_inner();
        assert_eq!(
            error.to_string(),
            "Bad parameters: you must choose at least one stream"
        );
    }
}
