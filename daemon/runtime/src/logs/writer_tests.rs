//! What the writer writes is read back with an ordinary JSON parser.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn target(path: &Path, max_size: Option<u64>, max_files: u32) -> LogTarget {
    LogTarget::JsonFile {
        path: path.to_owned(),
        max_size,
        max_files,
    }
}

/// The `log` members of all entries, and their streams.
fn read(path: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| {
            let entry: Value = serde_json::from_str(line).unwrap();
            entry["time"].as_str().unwrap().parse::<Timestamp>().unwrap();
            (
                entry["log"].as_str().unwrap().to_owned(),
                entry["stream"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

fn log(pieces: &[&[u8]]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut writer = LogWriter::open(&target(&path, None, 1)).unwrap().unwrap();
    for piece in pieces {
        writer.write(StdStream::Stdout, piece);
    }
    writer.end(StdStream::Stdout);
    read(&path).into_iter().map(|(log, _)| log).collect()
}

#[test]
fn lines_are_entries_whatever_the_reads() {
    assert_eq!(
        log(&[b"one\ntwo\nthr", b"ee\n", b"end"]),
        ["one\n", "two\n", "three\n", "end"]
    );
    assert_eq!(log(&[b"\n\n"]), ["\n", "\n"]);
    assert_eq!(log(&[b"a\"b\\c\td\x01\r\n"]), ["a\"b\\c\td\u{1}\r\n"]);
    assert_eq!(log(&[b"\xff\xfeok\n"]), ["\u{fffd}\u{fffd}ok\n"]);
    assert_eq!(log(&[]), Vec::<String>::new());
}

#[test]
fn a_character_across_two_reads_stays_whole() {
    let text = "schön\n".as_bytes();
    let at = text.iter().position(|&byte| byte == 0xc3).unwrap() + 1;
    assert_eq!(log(&[&text[..at], &text[at..]]), ["schön\n"]);
}

#[test]
fn long_lines_are_cut_at_16_kib_between_characters() {
    let line = "é".repeat(20_000) + "\n";
    let entries = log(&[line.as_bytes()]);
    assert_eq!(entries.concat(), line);
    assert_eq!(entries.len(), 3);
    assert!(
        entries
            .iter()
            .all(|entry| entry.len() <= MAX_ENTRY && !entry.contains('\u{fffd}'))
    );
    assert_eq!(
        log(&[&vec![b'x'; MAX_ENTRY], b"\n"]),
        ["x".repeat(MAX_ENTRY), "\n".to_owned()]
    );
}

#[test]
fn streams_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut writer = LogWriter::open(&target(&path, None, 1)).unwrap().unwrap();
    writer.write(StdStream::Stdout, b"out");
    writer.write(StdStream::Stderr, b"err\n");
    writer.write(StdStream::Stdout, b"put\n");
    let own = |log: &str, stream: &str| (log.to_owned(), stream.to_owned());
    assert_eq!(read(&path), [own("err\n", "stderr"), own("output\n", "stdout")]);
}

#[test]
fn rotation_keeps_the_newest_files_and_every_entry_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut writer = LogWriter::open(&target(&path, Some(1000), 3)).unwrap().unwrap();
    for number in 0..100 {
        writer.write(StdStream::Stdout, format!("line {number}\n").as_bytes());
    }
    let entries: Vec<String> = [rotated(&path, 2), rotated(&path, 1), path.clone()]
        .iter()
        .flat_map(|path| read(path))
        .map(|(log, _)| log)
        .collect();
    let first = 100 - entries.len();
    let expected: Vec<String> = (first..100).map(|number| format!("line {number}\n")).collect();
    assert_eq!(entries, expected);
    assert!(entries.len() > 20 && !rotated(&path, 3).exists());
    assert!(std::fs::metadata(rotated(&path, 1)).unwrap().len() < 1100);
}

#[test]
fn a_single_file_is_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut writer = LogWriter::open(&target(&path, Some(500), 1)).unwrap().unwrap();
    for number in 0..50 {
        writer.write(StdStream::Stdout, format!("line {number}\n").as_bytes());
    }
    assert!(std::fs::metadata(&path).unwrap().len() < 600);
    assert!(!rotated(&path, 1).exists());
}

#[test]
fn no_target_no_file() {
    assert!(LogWriter::open(&LogTarget::None).unwrap().is_none());
}

proptest! {
    #[test]
    fn nothing_is_lost_or_changed(text in "[ -~\n\t\u{e9}\u{20ac}\u{1f600}]{0,400}", cuts in prop::collection::vec(1..50usize, 1..20)) {
        let mut pieces = Vec::new();
        let (mut rest, mut cuts) = (text.as_bytes(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            pieces.push(piece);
            rest = tail;
        }
        let entries = log(&pieces);
        prop_assert_eq!(entries.concat(), text.clone());
        prop_assert!(entries.iter().rev().skip(1).all(|entry| entry.ends_with('\n')));
    }
}
