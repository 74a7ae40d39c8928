//! Logs written by the writer, read back by the reader.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::writer::LogWriter;
use super::*;

fn target(path: &Path, max_size: Option<u64>, max_files: u32) -> LogTarget {
    LogTarget::JsonFile {
        path: path.to_owned(),
        max_size,
        max_files,
    }
}

fn request(path: &Path) -> LogRequest {
    LogRequest {
        target: target(path, None, 1),
        stdout: true,
        stderr: true,
        since: None,
        until: None,
        tail: None,
        follow: None,
    }
}

fn text(entry: &LogEntry) -> String {
    String::from_utf8(entry.line.to_vec()).unwrap()
}

async fn lines(request: LogRequest) -> Vec<String> {
    let mut receiver = read(request).unwrap();
    let mut lines = Vec::new();
    while let Some(entry) = receiver.recv().await {
        lines.push(text(&entry.unwrap()));
    }
    lines
}

struct Log {
    _dir: tempfile::TempDir,
    path: PathBuf,
    writer: LogWriter,
}

impl Log {
    fn new(max_size: Option<u64>, max_files: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-json.log");
        let writer = LogWriter::open(&target(&path, max_size, max_files))
            .unwrap()
            .unwrap();
        Self {
            _dir: dir,
            path,
            writer,
        }
    }

    fn out(&mut self, range: std::ops::Range<u32>) {
        for number in range {
            self.writer
                .write(StdStream::Stdout, format!("line {number}\n").as_bytes());
        }
    }
}

fn expected(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| format!("line {number}\n")).collect()
}

#[tokio::test]
async fn everything_the_tail_and_nothing() {
    let mut log = Log::new(None, 1);
    assert_eq!(lines(request(&log.path)).await, expected(0..0));
    log.out(0..3000);
    assert_eq!(lines(request(&log.path)).await, expected(0..3000));
    for (tail, from) in [(0, 3000), (1, 2999), (5, 2995), (2500, 500), (3000, 0), (9999, 0)] {
        assert_eq!(
            lines(LogRequest {
                tail: Some(tail),
                ..request(&log.path)
            })
            .await,
            expected(from..3000),
            "tail {tail}"
        );
    }
    assert_eq!(
        lines(request(Path::new("/nonexistent/log"))).await,
        expected(0..0)
    );
}

#[tokio::test]
async fn rotated_files_are_part_of_the_log() {
    let mut log = Log::new(Some(2000), 4);
    log.out(0..60);
    let all = lines(request(&log.path)).await;
    assert_eq!(all.last().map(String::as_str), Some("line 59\n"));
    assert!(all.len() > 50, "{}", all.len());
    assert_eq!(
        lines(LogRequest {
            tail: Some(45),
            ..request(&log.path)
        })
        .await,
        expected(15..60)
    );
}

#[tokio::test]
async fn streams_and_times_select() {
    let mut log = Log::new(None, 1);
    log.writer.write(StdStream::Stdout, b"one\n");
    log.writer.write(StdStream::Stderr, b"two\n");
    assert_eq!(
        lines(LogRequest {
            stderr: false,
            ..request(&log.path)
        })
        .await,
        ["one\n"]
    );
    assert_eq!(
        lines(LogRequest {
            stdout: false,
            ..request(&log.path)
        })
        .await,
        ["two\n"]
    );
    let times = {
        let mut receiver = read(request(&log.path)).unwrap();
        [
            receiver.recv().await.unwrap().unwrap().time,
            receiver.recv().await.unwrap().unwrap().time,
        ]
    };
    assert!(times[0] < times[1]);
    assert_eq!(
        lines(LogRequest {
            since: Some(times[1]),
            ..request(&log.path)
        })
        .await,
        ["two\n"],
        "since is inclusive"
    );
    assert_eq!(
        lines(LogRequest {
            until: Some(times[1]),
            ..request(&log.path)
        })
        .await,
        ["one\n", "two\n"],
        "until is inclusive"
    );
}

#[tokio::test]
async fn following_sees_what_is_written_through_rotations_and_drains_at_the_end() {
    let mut log = Log::new(Some(3000), 50);
    log.out(0..10);
    let token = CancellationToken::new();
    let mut receiver = read(LogRequest {
        follow: Some(token.clone()),
        tail: Some(2),
        ..request(&log.path)
    })
    .unwrap();
    for number in 8..10 {
        assert_eq!(
            text(&receiver.recv().await.unwrap().unwrap()),
            format!("line {number}\n")
        );
    }
    for round in 1..30 {
        log.out(round * 10..round * 10 + 10);
        for number in round * 10..round * 10 + 10 {
            let entry = tokio::time::timeout(Duration::from_secs(10), receiver.recv())
                .await
                .expect("it was written");
            assert_eq!(text(&entry.unwrap().unwrap()), format!("line {number}\n"));
        }
    }
    log.out(300..340);
    token.cancel();
    for number in 300..340 {
        assert_eq!(
            text(&receiver.recv().await.unwrap().unwrap()),
            format!("line {number}\n")
        );
    }
    assert!(receiver.recv().await.is_none());
}

#[tokio::test]
async fn following_starts_before_the_log_and_survives_its_emptying() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x-json.log");
    let token = CancellationToken::new();
    let mut receiver = read(LogRequest {
        follow: Some(token.clone()),
        ..request(&path)
    })
    .unwrap();
    let mut writer = LogWriter::open(&target(&path, Some(400), 1)).unwrap().unwrap();
    for number in 0..20 {
        writer.write(StdStream::Stdout, format!("line {number}\n").as_bytes());
        let entry = tokio::time::timeout(Duration::from_secs(10), receiver.recv())
            .await
            .expect("it was written");
        assert_eq!(text(&entry.unwrap().unwrap()), format!("line {number}\n"));
    }
    token.cancel();
    assert!(receiver.recv().await.is_none());
}

#[tokio::test]
async fn a_reader_that_leaves_ends_the_following() {
    let log = Log::new(None, 1);
    let receiver = read(LogRequest {
        follow: Some(CancellationToken::new()),
        ..request(&log.path)
    })
    .unwrap();
    let sending = tokio::runtime::Handle::current().metrics();
    assert_eq!(sending.num_alive_tasks(), 1);
    drop(receiver);
    let gone = async {
        while sending.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .expect("the task holds on");
}

#[tokio::test]
async fn a_torn_last_line_is_not_shown_and_garbage_is_passed_over() {
    let mut log = Log::new(None, 1);
    log.out(0..2);
    let mut bytes = std::fs::read(&log.path).unwrap();
    bytes.extend_from_slice(b"garbage\n");
    bytes.extend_from_slice(br#"{"log":"late\n","stream":"stdout","time":"2026-11-21T23:39:51Z"}"#);
    bytes.push(b'\n');
    bytes.extend_from_slice(br#"{"log":"torn"#);
    std::fs::write(&log.path, bytes).unwrap();
    assert_eq!(
        lines(request(&log.path)).await,
        ["line 0\n", "line 1\n", "late\n"]
    );
}

#[tokio::test]
async fn a_log_that_is_not_kept_cannot_be_read() {
    let error = read(LogRequest {
        target: LogTarget::None,
        ..request(Path::new("/x"))
    })
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "configured logging driver does not support reading"
    );
}
