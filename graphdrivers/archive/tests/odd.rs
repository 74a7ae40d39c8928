//! Odd encodings, damaged streams, and the limits that stand against bombs: each with its stated outcome.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests talk, and stop at any error"
)]

#[path = "support/scene.rs"]
#[expect(dead_code, reason = "each test binary uses a part of it")]
mod scene;
#[expect(dead_code, reason = "each test binary uses a part of it")]
mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use scene::{Scene, archive, dir, each, file, pax, push, refused};
use skiff_archive::{ApplyOptions, ApplyTarget, ErrorKind, WhiteoutFormat, apply, copy_tree};
use support::userns;

/// The two zero blocks at the end.
const END: [u8; 1024] = [0; 1024];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn octal(field: &mut [u8], number: u64) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{number:0digits$o}").as_bytes());
}

#[test]
fn in_a_user_namespace() {
    userns::rerun("in_a_user_namespace");
}

/// 8 MiB with 512 bytes at the start and three in the middle, in all forms that GNU tar writes.
fn sparse_forms() -> Vec<(&'static str, Vec<u8>)> {
    const SIZE: u64 = 8 << 20;
    const MIDDLE: u64 = 4 << 20;
    let data = [vec![b'a'; 512], b"mid".to_vec()].concat();
    let mut forms = Vec::new();

    let mut old = Vec::new();
    push(&mut old, b'S', b"old", &data, |header| {
        let bytes = header.as_mut_bytes();
        bytes[257..265].copy_from_slice(b"ustar  \0");
        octal(&mut bytes[386..398], 0);
        octal(&mut bytes[398..410], 512);
        octal(&mut bytes[410..422], MIDDLE);
        octal(&mut bytes[422..434], 3);
        octal(&mut bytes[483..495], SIZE);
    });
    forms.push(("old", [&old[..], &END].concat()));

    let size = SIZE.to_string();
    let middle = MIDDLE.to_string();
    let mut pax_form = |name: &'static str, records: &[(&str, &str)], body: &[u8]| {
        let records: Vec<(&str, &[u8])> = records.iter().map(|(k, v)| (*k, v.as_bytes())).collect();
        let mut out = Vec::new();
        push(&mut out, b'x', b"pax", &pax(&records), |_| ());
        push(&mut out, b'0', name.as_bytes(), body, |_| ());
        forms.push((name, [&out[..], &END].concat()));
    };
    pax_form(
        "pax-0.0",
        &[
            ("GNU.sparse.size", &size),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.offset", "0"),
            ("GNU.sparse.numbytes", "512"),
            ("GNU.sparse.offset", &middle),
            ("GNU.sparse.numbytes", "3"),
        ],
        &data,
    );
    let map = format!("0,512,{middle},3");
    pax_form(
        "pax-0.1",
        &[
            ("GNU.sparse.size", &size),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.map", &map),
        ],
        &data,
    );
    let mut with_map = format!("2\n0\n512\n{middle}\n3\n").into_bytes();
    with_map.resize(512, 0);
    with_map.extend_from_slice(&data);
    pax_form(
        "pax-1.0",
        &[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.realsize", &size),
        ],
        &with_map,
    );
    forms
}

#[test]
fn sparse_files_of_all_forms_keep_their_holes() {
    each(|scene| {
        for (name, stream) in sparse_forms() {
            let applied = scene.apply_bytes(&stream).unwrap();
            assert_eq!(applied.size, 8 << 20, "{name}");
            let path = scene.root().join(name);
            let bytes = fs::read(&path).unwrap();
            assert_eq!(bytes.len(), 8 << 20);
            assert!(bytes[..512].iter().all(|b| *b == b'a') && bytes[512..4 << 20].iter().all(|b| *b == 0));
            assert_eq!(&bytes[4 << 20..][..4], b"mid\0");
            let blocks = fs::metadata(&path).unwrap().blocks();
            assert!(blocks * 512 < 1 << 20, "{name}: {blocks} blocks");
        }
    });
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    each(|scene| {
        for map in [
            "0,512,100,3",
            "0,512,18446744073709551615,3",
            "0,513",
            "0,512,8388608,3",
            "9223372036854775807,515",
        ] {
            let records: &[(&str, &[u8])] = &[
                ("GNU.sparse.size", b"8388608"),
                ("GNU.sparse.map", map.as_bytes()),
            ];
            let mut out = Vec::new();
            push(&mut out, b'x', b"pax", &pax(records), |_| ());
            push(&mut out, b'0', b"lies", &[1; 515], |_| ());
            refused(
                scene.apply_bytes(&[&out[..], &END].concat()),
                ErrorKind::Corrupt,
                "sparse map",
            );
        }
        // A size that no file system has is the kernel's to refuse.
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.size", b"9223372036854775807"),
            ("GNU.sparse.map", b"0,515"),
        ];
        let mut out = Vec::new();
        push(&mut out, b'x', b"pax", &pax(records), |_| ());
        push(&mut out, b'0', b"endless", &[1; 515], |_| ());
        let outcome = scene.apply_bytes(&[&out[..], &END].concat());
        if let Ok(applied) = &outcome {
            // tmpfs and btrfs take it: it is one hole.
            assert_eq!(applied.size, i64::MAX as u64);
        } else {
            refused(outcome, ErrorKind::Io, "file too large");
        }
    });
}

#[test]
fn global_headers_are_read_over() {
    each(|scene| {
        let mut out = Vec::new();
        let records: &[(&str, &[u8])] = &[
            ("path", b"hijacked"),
            ("uid", b"4000000000"),
            ("mtime", b"5"),
            ("comment", b"git archive writes its commit here"),
        ];
        push(&mut out, b'g', b"pax_global_header", &pax(records), |_| ());
        push(&mut out, b'0', b"real", b"x", |_| ());
        scene.apply_bytes(&[&out[..], &END].concat()).unwrap();
        let metadata = fs::metadata(scene.root().join("real")).unwrap();
        assert_eq!((metadata.uid(), metadata.mtime()), (0, 1_000_000_000));
        assert!(scene.missing("hijacked"));
    });
}

#[test]
fn numbers_in_base_256_and_records_that_overrule_them() {
    each(|scene| {
        let mut out = Vec::new();
        push(&mut out, b'0', b"binary", &[7; 600], |header| {
            let bytes = header.as_mut_bytes();
            bytes[257..265].copy_from_slice(b"ustar  \0");
            for (range, number) in [(108..116, 1234u64), (116..124, 55), (124..136, 600)] {
                let field = &mut bytes[range];
                field.fill(0);
                field[0] = 0x80;
                let digits = (field.len() - 1).min(8);
                let at = field.len() - digits;
                field[at..].copy_from_slice(&number.to_be_bytes()[8 - digits..]);
            }
            // Half a second before 1970 has no seconds field; minus one has.
            bytes[136..148].fill(0xff);
        });
        // The record's size counts, whatever the header says.
        push(
            &mut out,
            b'x',
            b"pax",
            &pax(&[("size", b"3"), ("mtime", b"1234567890.987654321")]),
            |_| (),
        );
        let at = out.len();
        push(&mut out, b'0', b"recorded", b"abc", |_| ());
        octal(&mut out[at + 124..at + 136], 0);
        let sum = {
            out[at + 148..at + 156].fill(b' ');
            out[at..at + 512].iter().map(|b| u64::from(*b)).sum::<u64>()
        };
        octal(&mut out[at + 148..at + 155], sum);
        push(&mut out, b'0', b"after", b"z", |_| ());
        scene.apply_bytes(&[&out[..], &END].concat()).unwrap();
        let binary = fs::metadata(scene.root().join("binary")).unwrap();
        assert_eq!((binary.uid(), binary.gid(), binary.len()), (1234, 55, 600));
        // Before 1970 is 1970, as with Docker.
        assert_eq!((binary.mtime(), binary.mtime_nsec()), (0, 0));
        assert_eq!(
            (scene.text("recorded"), scene.text("after")),
            ("abc".into(), "z".into())
        );
        let recorded = fs::metadata(scene.root().join("recorded")).unwrap();
        assert_eq!(
            (recorded.mtime(), recorded.mtime_nsec()),
            (1_234_567_890, 987_654_321)
        );
    });
}

#[test]
fn times_before_1970_become_1970() {
    each(|scene| {
        let mut out = Vec::new();
        for (name, time) in [
            ("a", &b"-1"[..]),
            ("b", b"-62135596800"),
            ("c", b"-0.5"),
            ("d", b"9999999999"),
        ] {
            push(
                &mut out,
                b'x',
                b"pax",
                &pax(&[("mtime", time), ("atime", b"-9")]),
                |_| (),
            );
            push(&mut out, b'0', name.as_bytes(), b"", |_| ());
        }
        scene.apply_bytes(&[&out[..], &END].concat()).unwrap();
        let seen = |name: &str| {
            let metadata = fs::metadata(scene.root().join(name)).unwrap();
            (metadata.mtime(), metadata.mtime_nsec(), metadata.atime())
        };
        for name in ["a", "b", "c"] {
            assert_eq!(seen(name), (0, 0, 0), "{name}");
        }
        // The last access is never before the last change.
        assert_eq!(seen("d"), (9_999_999_999, 0, 9_999_999_999));
        for bad in [&b"now"[..], b"--1", b"1.2.3", b"99999999999999999999"] {
            let mut out = Vec::new();
            push(&mut out, b'x', b"pax", &pax(&[("mtime", bad)]), |_| ());
            push(&mut out, b'0', b"bad", b"", |_| ());
            refused(
                scene.apply_bytes(&[&out[..], &END].concat()),
                ErrorKind::Corrupt,
                "bad PAX record",
            );
        }
    });
}

#[test]
fn limits_say_what_they_are() {
    each(|scene| {
        // Extension headers.
        let mut out = Vec::new();
        push(&mut out, b'x', b"pax", &vec![b'x'; (1 << 20) + 1], |_| ());
        refused(
            scene.apply_bytes(&[&out[..], &END].concat()),
            ErrorKind::Corrupt,
            "an extension header of 1048577 bytes, more than 1048576",
        );
        // What fits into one is still too long for a name.
        let long = vec![b'n'; 1_000_000];
        refused(
            scene.apply(&[file(&long, "")]),
            ErrorKind::Corrupt,
            "file name too long",
        );
        // A zstd window, announced by nine bytes.
        refused(
            scene.apply_bytes(b"\x28\xb5\x2f\xfd\0\xa0\x01\0\0"),
            ErrorKind::Unsupported,
            "zstd: a window of 1073741824 bytes, more than 134217728",
        );
        // Pieces of a sparse file: a map in the data could be of any length.
        let mut map = format!("{}\n", (1 << 20) + 1).into_bytes();
        map.resize(512, 0);
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"8192"),
        ];
        let mut out = Vec::new();
        push(&mut out, b'x', b"pax", &pax(records), |_| ());
        push(&mut out, b'0', b"map", &map, |_| ());
        refused(
            scene.apply_bytes(&[&out[..], &END].concat()),
            ErrorKind::Corrupt,
            "a sparse map of more than 1048576 pieces",
        );
    });
}

#[test]
fn bombs_of_bytes_and_names_cost_the_disk_and_not_the_memory() {
    // What a file expands to is bounded by the disk alone, as with Docker. What is kept in memory for each directory is
    // not.
    if !userns::powers() {
        return;
    }
    let scene = Scene::new(WhiteoutFormat::Delete);
    let mut out = Vec::new();
    let name = |n: u32| format!("{}/{}/{n:0>200}", "x".repeat(250), n / 1000);
    for n in 0..6_000 {
        push(
            &mut out,
            b'x',
            b"pax",
            &pax(&[("path", name(n).as_bytes())]),
            |_| (),
        );
        push(&mut out, b'5', b"d", b"", |_| ());
    }
    let bytes = zstd::encode_all(&[&out[..], &END].concat()[..], 1).unwrap();
    assert!(out.len() / bytes.len() > 100);
    drop(out);
    let applied = scene.apply_bytes(&bytes).unwrap();
    assert_eq!(applied.entries, 6_000);
    // Their times are set all the same, the last as the first.
    for n in [0, 2_999, 5_999] {
        let metadata = fs::metadata(scene.root().join(name(n))).unwrap();
        assert_eq!(metadata.mtime(), 1_000_000_000, "{n}");
    }
}

/// A tmpfs of its own, where the mount namespace is ours.
struct Small {
    scratch: tempfile::TempDir,
}

impl Small {
    fn mount(options: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let done = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(scratch.path())
            .status()
            .unwrap();
        assert!(done.success(), "mount -t tmpfs -o {options}");
        Self { scratch }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let done = std::process::Command::new("umount")
            .arg(self.scratch.path())
            .status();
        assert!(done.is_ok_and(|status| status.success()));
    }
}

#[test]
fn a_full_disk_and_a_lack_of_inodes_are_told() {
    if !userns::inside() {
        println!("left to the run inside a user namespace, which has mounts of its own");
        return;
    }
    let big = archive(&[file("a", &"x".repeat(3 << 20)), file("b", "")]);
    let many = archive(&(0..200).map(|n| file(format!("f{n}"), "")).collect::<Vec<_>>());
    let directories = archive(&(0..200).map(|n| dir(&format!("d{n}"))).collect::<Vec<_>>());
    let below = archive(&(0..200).map(|n| file(format!("i{n}/f"), "")).collect::<Vec<_>>());
    for (options, stream, operation) in [
        ("size=1m", &big, "write /a"),
        ("nr_inodes=100", &many, "create /f"),
        ("nr_inodes=100", &directories, "mkdir /d"),
        // An odd number of inodes: the last one goes to a directory that the archive does not describe.
        ("nr_inodes=100", &below, "create /i"),
        ("nr_inodes=101", &below, "open directory"),
    ] {
        for compressed in [
            stream.clone(),
            gzip(stream),
            zstd::encode_all(&stream[..], 1).unwrap(),
        ] {
            let disk = Small::mount(options);
            let target = ApplyTarget {
                directory: disk.scratch.path().to_owned(),
                whiteouts: WhiteoutFormat::OverlayUser,
            };
            let error = apply(&compressed[..], &target, &ApplyOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
            let text = error.to_string();
            assert!(
                text.starts_with(operation) && text.ends_with(": no space left on device"),
                "{text}"
            );
        }
    }
    // Copies of a tree, too.
    let disk = Small::mount("size=1m");
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("a"), vec![b'x'; 3 << 20]).unwrap();
    let error = copy_tree(source.path(), disk.scratch.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
}

#[test]
fn damaged_streams_are_errors() {
    each(|scene| {
        let plain = archive(&[file("a", &"x".repeat(100_000)), file("b", "y")]);
        let gzip = gzip(&plain);
        let zstd = zstd::encode_all(&plain[..], 3).unwrap();
        for whole in [&plain, &gzip, &zstd] {
            assert!(scene.apply_bytes(whole).is_ok());
        }
        for (whole, cut) in [
            (&plain, 40_000),
            (&gzip, gzip.len() - 1),
            (&gzip, gzip.len() / 2),
            (&zstd, zstd.len() - 1),
        ] {
            refused(scene.apply_bytes(&whole[..cut]), ErrorKind::Corrupt, "");
        }
        for whole in [&gzip, &zstd] {
            let mut flipped = whole.clone();
            let middle = flipped.len() / 2;
            flipped[middle] ^= 0xff;
            refused(scene.apply_bytes(&flipped), ErrorKind::Corrupt, "");
            // Garbage after the end.
            refused(
                scene.apply_bytes(&[&whole[..], b"garbage"].concat()),
                ErrorKind::Corrupt,
                "",
            );
        }
        // Garbage after the archive inside the stream belongs to it: it is hashed, and ignored as Docker does.
        let tail = [&plain[..], b"garbage"].concat();
        let applied = scene.apply_bytes(&tail).unwrap();
        assert_eq!(applied.blob_size, tail.len() as u64);
        refused(scene.apply_bytes(b"BZh91AY&SY"), ErrorKind::Corrupt, "bzip2");
        refused(scene.apply_bytes(b"\xfd7zXZ\0\0"), ErrorKind::Corrupt, "xz");
        refused(
            scene.apply_bytes(&[b'#'; 2000]),
            ErrorKind::Corrupt,
            "invalid header",
        );
        // Docker takes an empty stream for an empty layer.
        assert_eq!(scene.apply_bytes(b"").unwrap().entries, 0);
    });
}

#[test]
fn several_members_and_skippable_frames_are_one_stream() {
    each(|scene| {
        let plain = archive(&[file("a", &"x".repeat(9_000)), file("b", "y")]);
        let (head, tail) = plain.split_at(5_000);
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let skippable = b"\x53\x2a\x4d\x18\x04\0\0\0skip".to_vec();
        let digest = format!(
            "sha256:{}",
            hex::encode(ring::digest::digest(&ring::digest::SHA256, &plain))
        );
        for stream in [
            [gzip(head), gzip(tail)].concat(),
            [frame(head), skippable.clone(), frame(tail)].concat(),
            [skippable.clone(), frame(&plain), skippable].concat(),
        ] {
            let applied = scene.apply_bytes(&stream).unwrap();
            assert_eq!(
                (&applied.diff_id, applied.entries, applied.size),
                (&digest, 2, 9_001)
            );
            assert_eq!(scene.text("b"), "y");
        }
    });
}

#[test]
fn an_error_of_the_source_is_told_as_such() {
    struct Breaks(usize);
    impl std::io::Read for Breaks {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::Error::other("connection reset by peer"));
            }
            let n = into.len().min(self.0);
            into[..n].fill(0);
            self.0 -= n;
            Ok(n)
        }
    }
    if !userns::powers() {
        return;
    }
    let scene = Scene::new(WhiteoutFormat::Delete);
    let target = ApplyTarget {
        directory: scene.root(),
        whiteouts: WhiteoutFormat::Delete,
    };
    for length in [0, 1024, 3_000_000] {
        // Also after the end of the archive: the digest would be wrong.
        let error = apply(Breaks(length), &target, &ApplyOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.to_string().contains("connection reset by peer"), "{error}");
    }
}
