//! Container logs in Docker's json-file format: the shim writes them ([`writer`]), the daemon reads them.
//!
//! ```text
//! files, oldest first ──► cursor (64 KiB at a time, off the async threads) ──► filter ──► channel
//!  ID-json.log.2 .1 ""      ▲ tail: starts near the end                 since, until, stream
//!                           └─ follow: inotify wakes it; notices rotation and truncation
//! ```

mod cursor;
mod entry;
mod follow;
pub(crate) mod writer;

use jiff::Timestamp;
use skiff_core::runtime::{LogEntry, LogRequest, LogTarget, StdStream};
use skiff_core::{Error, Result};
use tokio::sync::mpsc;

use cursor::Cursor;
use follow::Watch;

/// How many entries may be on their way to a reader.
const QUEUE: usize = 256;

/// Reads a log. The work is done in a task that ends when the log does, or when the receiver is dropped.
///
/// # Errors
/// Docker's text when nothing was kept; later errors come through the channel.
pub(crate) fn read(request: LogRequest) -> Result<mpsc::Receiver<Result<LogEntry>>> {
    let LogTarget::JsonFile { path, .. } = request.target.clone() else {
        return Err(Error::not_implemented(
            "configured logging driver does not support reading",
        ));
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let reading = Reading {
            request,
            sender: sender.clone(),
        };
        let cursor = Cursor::new(path);
        if let Err(error) = reading.run(cursor).await {
            let _ = sender
                .send(Err(Error::system("reading the container's log").caused_by(error)))
                .await;
        }
    });
    Ok(receiver)
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
enum Flow {
    More,
    Enough,
}

struct Reading {
    request: LogRequest,
    sender: mpsc::Sender<Result<LogEntry>>,
}

impl Reading {
    async fn run(&self, mut cursor: Cursor) -> std::io::Result<()> {
        let follow = self.request.follow.clone();
        // Before the first look, so that nothing falls between look and wait.
        let watch = follow.as_ref().map(|_| Watch::new(cursor.path()));
        let (tail, endless) = (self.request.tail, follow.is_some());
        cursor = blocking(move || cursor.open(tail, endless).map(|()| cursor)).await?;
        let mut last_round = false;
        loop {
            let entries;
            (cursor, entries) =
                blocking(move || cursor.next_batch().map(|entries| (cursor, entries))).await?;
            if !entries.is_empty() {
                if self.pass_on(entries).await == Flow::Enough {
                    return Ok(());
                }
                continue;
            }
            let (Some(token), Some(watch)) = (&follow, &watch) else {
                return Ok(());
            };
            if last_round {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = self.sender.closed() => return Ok(()),
                () = token.cancelled() => last_round = true,
                () = until(self.request.until) => return Ok(()),
                () = watch.changed() => {}
            }
        }
    }

    async fn pass_on(&self, entries: Vec<LogEntry>) -> Flow {
        for entry in entries {
            let wanted = match entry.stream {
                StdStream::Stdout => self.request.stdout,
                StdStream::Stderr => self.request.stderr,
            };
            let late = self.request.until.is_some_and(|until| entry.time > until);
            if late && self.request.follow.is_some() {
                return Flow::Enough;
            }
            let early = self.request.since.is_some_and(|since| entry.time < since);
            if wanted && !early && !late && self.sender.send(Ok(entry)).await.is_err() {
                return Flow::Enough;
            }
        }
        Flow::More
    }
}

/// Waits until a moment, for ever when there is none.
async fn until(moment: Option<Timestamp>) {
    match moment {
        Some(moment) => {
            let left = moment.duration_since(Timestamp::now());
            tokio::time::sleep(std::time::Duration::try_from(left).unwrap_or_default()).await;
        }
        None => std::future::pending().await,
    }
}

/// Runs file system work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(std::io::Error::other)?
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
