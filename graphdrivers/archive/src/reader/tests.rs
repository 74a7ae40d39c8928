//! The reader against archives made by the `tar` crate, and against damaged ones.

use super::*;
use crate::writer::{Writer, blank};

fn read_all(mut bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(&mut bytes);
    let mut found = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut data = Vec::new();
        loop {
            let piece = reader.data()?.to_vec();
            if piece.is_empty() {
                break;
            }
            reader.consume(piece.len());
            data.extend_from_slice(&piece);
        }
        found.push((entry, data));
    }
    Ok(found)
}

/// An archive with a long name, a long link, an attribute with a newline in it, and big numbers.
fn sample() -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out);
    let long = [b"d/".repeat(80), b"file".to_vec()].concat();
    let mut entry = Entry {
        path: long,
        size: 700,
        mode: 0o4755,
        uid: 3_000_000,
        gid: 7,
        ..blank()
    };
    entry.mtime = Time {
        seconds: -5,
        nanoseconds: 250_000_000,
    };
    entry
        .xattrs
        .push((b"security.capability".to_vec(), b"\x01\n=\0\n".to_vec()));
    writer.header(&entry).unwrap();
    writer.data(&[7; 700]).unwrap();
    writer
        .header(&Entry {
            path: b"link".to_vec(),
            link: vec![b'l'; 300],
            kind: Kind::Symlink,
            ..blank()
        })
        .unwrap();
    writer.finish().unwrap();
    out
}

#[test]
fn what_was_written_is_read() {
    let found = read_all(&sample()).unwrap();
    assert_eq!(found.len(), 2);
    let (file, data) = &found[0];
    assert_eq!(data, &[7; 700]);
    assert_eq!(
        (file.uid, file.gid, file.mode, file.size),
        (3_000_000, 7, 0o4755, 700)
    );
    assert_eq!(
        file.mtime,
        Time {
            seconds: -5,
            nanoseconds: 250_000_000
        }
    );
    assert_eq!(
        file.xattrs,
        [(b"security.capability".to_vec(), b"\x01\n=\0\n".to_vec())]
    );
    assert!(file.path.ends_with(b"d/file") && file.path.len() == 164);
    assert_eq!(found[1].0.link, vec![b'l'; 300]);
}

#[test]
fn every_truncation_is_an_error_or_a_shorter_archive() {
    let whole = sample();
    let members = read_all(&whole).unwrap().len();
    for length in 0..whole.len() - 1024 {
        // An archive without its final zeros is accepted, as by Go, but only at the end of a member.
        if let Ok(found) = read_all(&whole[..length]) {
            assert!(found.len() <= members && length % BLOCK == 0, "cut at {length}");
        }
    }
    assert!(read_all(&whole[..700]).is_err());
}

#[test]
fn the_tar_crate_agrees() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o640);
    header.set_uid(1 << 30);
    header.set_mtime(77);
    let long = "x/".repeat(120) + "name";
    builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Link);
    link.set_size(0);
    builder.append_link(&mut link, "hard", &long).unwrap();
    let bytes = builder.into_inner().unwrap();
    let found = read_all(&bytes).unwrap();
    assert_eq!(found[0].0.path, long.as_bytes());
    assert_eq!(
        (found[0].0.uid, found[0].0.mode, found[0].0.mtime.seconds),
        (1 << 30, 0o640, 77)
    );
    assert_eq!(found[0].1, b"abc");
    assert_eq!(
        (found[1].0.kind, &found[1].0.link[..]),
        (Kind::HardLink, long.as_bytes())
    );
}

/// A header whose fields are as given, with the right check sum.
fn raw(flag: u8, name: &[u8], size: &[u8; 12], gnu: bool) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[124..136].copy_from_slice(size);
    block[156] = flag;
    block[257..265].copy_from_slice(if gnu { b"ustar  \0" } else { b"ustar\x0000" });
    seal(&mut block);
    block
}

fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

#[test]
fn hostile_headers_are_refused() {
    let end = [0u8; 2 * BLOCK];
    let mut wrong_sum = raw(b'0', b"a", b"00000000000\0", false);
    wrong_sum[0] = b'b';
    assert_eq!(read_all(&wrong_sum).unwrap_err().kind(), ErrorKind::Corrupt);
    // A negative size, a size beyond 63 bits, an extension of a gigabyte, an unknown type.
    let negative = [0xff; 12];
    assert!(read_all(&[&raw(b'0', b"a", &negative, true)[..], &end].concat()).is_err());
    let mut huge = [0; 12];
    huge[0] = 0x80;
    huge[3] = 0xff;
    assert!(read_all(&[&raw(b'0', b"a", &huge, true)[..], &end].concat()).is_err());
    assert!(read_all(&[&raw(b'x', b"a", b"10000000000\0", false)[..], &end].concat()).is_err());
    let unknown = read_all(&[&raw(b'V', b"a", b"00000000000\0", true)[..], &end].concat()).unwrap_err();
    assert!(
        unknown.to_string().contains("unhandled tar header type 86"),
        "{unknown}"
    );
    // An extension header and then nothing.
    assert!(read_all(&[&raw(b'x', b"a", b"00000000000\0", false)[..], &end].concat()).is_err());
    // One block of zeros, then more.
    let zero = [0u8; BLOCK];
    assert!(read_all(&[&zero[..], &raw(b'0', b"a", b"00000000000\0", false)].concat()).is_err());
    assert!(read_all(&zero).unwrap().is_empty());
    assert!(read_all(b"").unwrap().is_empty());
}

#[test]
fn links_and_directories_have_no_data_whatever_they_claim() {
    let stream = [
        &raw(b'5', b"dir", b"00000001000\0", false)[..],
        &raw(b'0', b"file", b"00000000000\0", false),
        &[0; 2 * BLOCK],
    ]
    .concat();
    assert_eq!(read_all(&stream).unwrap().len(), 2);
}

#[test]
fn sparse_files_of_all_formats() {
    let expected = [
        Extent {
            offset: 0,
            length: 512,
        },
        Extent {
            offset: 4096,
            length: 3,
        },
    ];
    // Old GNU.
    let mut old = raw(b'S', b"old", b"00000001003\0", true);
    old[386..410].copy_from_slice(b"00000000000\x0000000001000\0");
    old[410..434].copy_from_slice(b"00000010000\x0000000000003\0");
    old[483..495].copy_from_slice(b"00000020000\0");
    seal(&mut old);
    let mut data = vec![1u8; 515];
    data.resize(1024, 0);
    let check = |stream: Vec<u8>, name: &[u8]| {
        let found = read_all(&stream).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0.path, name);
        assert_eq!(found[0].0.size, 8192);
        assert_eq!(found[0].0.sparse.as_deref(), Some(&expected[..]));
        assert_eq!(found[0].1, vec![1u8; 515]);
    };
    check([&old[..], &data, &[0; 1024]].concat(), b"old");

    let pax = |records: &[(&str, &str)], body: &[u8]| {
        let mut extension = Vec::new();
        for (key, value) in records {
            pax::push_record(&mut extension, key.as_bytes(), value.as_bytes());
        }
        let mut header = [0; 12];
        header[..11].copy_from_slice(format!("{:011o}", extension.len()).as_bytes());
        let mut stream = raw(b'x', b"pax", &header, false).to_vec();
        stream.extend_from_slice(&extension);
        stream.resize(stream.len().next_multiple_of(BLOCK), 0);
        header[..11].copy_from_slice(format!("{:011o}", body.len()).as_bytes());
        stream.extend_from_slice(&raw(b'0', b"GNUSparseFile.0/x", &header, false));
        stream.extend_from_slice(body);
        stream.resize(stream.len().next_multiple_of(BLOCK) + 1024, 0);
        stream
    };
    let body = vec![1u8; 515];
    check(
        pax(
            &[
                ("GNU.sparse.size", "8192"),
                ("GNU.sparse.numblocks", "2"),
                ("GNU.sparse.offset", "0"),
                ("GNU.sparse.numbytes", "512"),
                ("GNU.sparse.offset", "4096"),
                ("GNU.sparse.numbytes", "3"),
            ],
            &body,
        ),
        b"GNUSparseFile.0/x",
    );
    check(
        pax(
            &[
                ("GNU.sparse.name", "real"),
                ("path", "not/this"),
                ("GNU.sparse.size", "8192"),
                ("GNU.sparse.numblocks", "2"),
                ("GNU.sparse.map", "0,512,4096,3"),
            ],
            &body,
        ),
        b"real",
    );
    let mut with_map = b"2\n0\n512\n4096\n3\n".to_vec();
    with_map.resize(BLOCK, 0);
    with_map.extend_from_slice(&body);
    let new = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "real"),
        ("GNU.sparse.realsize", "8192"),
    ];
    check(pax(&new, &with_map), b"real");
    // A map that lies: overlap, beyond the end, not as long as the data.
    for bad in ["0,512,100,3", "0,512,8190,3", "0,512", "0"] {
        let stream = pax(&[("GNU.sparse.size", "8192"), ("GNU.sparse.map", bad)], &body);
        assert_eq!(read_all(&stream).unwrap_err().kind(), ErrorKind::Corrupt, "{bad}");
    }
}

/// A member with attributes as its records name them.
fn with_attributes(names: impl Iterator<Item = (String, String)>) -> Vec<u8> {
    let mut records = Vec::new();
    for (name, value) in names {
        let key = [pax::XATTR_PREFIX, name.as_bytes()].concat();
        pax::push_record(&mut records, &key, value.as_bytes());
    }
    let size = format!("{:011o}\0", records.len()).into_bytes();
    let mut stream = raw(b'x', b"pax", &size.try_into().unwrap(), false).to_vec();
    stream.extend_from_slice(&records);
    stream.resize(stream.len().next_multiple_of(BLOCK), 0);
    stream.extend_from_slice(&raw(b'0', b"a", b"00000000000\0", false));
    stream.extend_from_slice(&[0; 2 * BLOCK]);
    stream
}

#[test]
fn attributes_are_in_order_and_the_last_of_a_name_counts() {
    let records = [("user.b", "1"), ("user.a", "2"), ("user.b", "3"), ("user.a", "")];
    let stream = with_attributes(records.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    let found = read_all(&stream).unwrap();
    assert_eq!(
        found[0].0.xattrs,
        [
            (b"user.a".to_vec(), Vec::new()),
            (b"user.b".to_vec(), b"3".to_vec())
        ]
    );
}

#[test]
fn the_number_of_attributes_is_limited() {
    let many = |count: usize| with_attributes((0..count).map(|n| (format!("user.{n:05}"), String::new())));
    let found = read_all(&many(ATTRIBUTES_MAX)).unwrap();
    assert_eq!(found[0].0.xattrs.len(), ATTRIBUTES_MAX);
    // As many as fit into an extension header: this must not take longer than reading them.
    let error = read_all(&many(37_000)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(
        error.to_string(),
        "tar: a member with 37000 extended attributes, more than 4096"
    );
    // One name again and again is one attribute.
    let again = with_attributes((0..30_000).map(|n| ("user.x".to_owned(), n.to_string())));
    assert_eq!(
        read_all(&again).unwrap()[0].0.xattrs,
        [(b"user.x".to_vec(), b"29999".to_vec())]
    );
}
