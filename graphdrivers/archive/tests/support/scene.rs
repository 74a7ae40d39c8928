//! Layers written by hand, and a root to unpack them into with things around it that must not change.

use std::fs;
use std::path::PathBuf;

use skiff_archive::{Applied, ApplyOptions, ApplyTarget, Error, ErrorKind, WhiteoutFormat, apply};

use crate::support::{tree, userns};

/// One member of a layer, written without the checks that honest programs make.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) flag: u8,
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) ids: (u64, u64),
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

pub(crate) fn member(flag: u8, name: impl AsRef<[u8]>, link: &str, data: &[u8]) -> Member {
    Member {
        flag,
        name: name.as_ref().to_vec(),
        link: link.as_bytes().to_vec(),
        data: data.to_vec(),
        mode: if flag == b'5' { 0o755 } else { 0o644 },
        ids: (0, 0),
        xattrs: Vec::new(),
    }
}

pub(crate) fn file(name: impl AsRef<[u8]>, data: &str) -> Member {
    member(b'0', name, "", data.as_bytes())
}
pub(crate) fn dir(name: &str) -> Member {
    member(b'5', name, "", b"")
}
pub(crate) fn link(name: &str, target: &str) -> Member {
    member(b'2', name, target, b"")
}
pub(crate) fn hard(name: &str, target: &str) -> Member {
    member(b'1', name, target, b"")
}

pub(crate) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    data
}

pub(crate) fn push(
    out: &mut Vec<u8>,
    flag: u8,
    name: &[u8],
    data: &[u8],
    fill: impl FnOnce(&mut tar::Header),
) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::new(flag));
    let n = name.len().min(100);
    header.as_old_mut().name[..n].copy_from_slice(&name[..n]);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    fill(&mut header);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

pub(crate) fn archive(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::new();
    for m in members {
        let mut records: Vec<(String, Vec<u8>)> = m
            .xattrs
            .iter()
            .map(|(k, v)| (format!("SCHILY.xattr.{k}"), v.clone()))
            .collect();
        if m.name.len() > 100 {
            records.push(("path".to_owned(), m.name.clone()));
        }
        if m.link.len() > 100 {
            records.push(("linkpath".to_owned(), m.link.clone()));
        }
        if m.ids.0 > 0o7777777 {
            records.push(("uid".to_owned(), m.ids.0.to_string().into_bytes()));
        }
        if !records.is_empty() {
            let borrowed: Vec<(&str, &[u8])> = records.iter().map(|(k, v)| (&k[..], &v[..])).collect();
            push(&mut out, b'x', b"pax", &pax(&borrowed), |_| ());
        }
        push(&mut out, m.flag, &m.name, &m.data, |header| {
            header.set_mode(m.mode);
            header.set_uid(if m.ids.0 > 0o7777777 { 0 } else { m.ids.0 });
            header.set_gid(m.ids.1);
            let n = m.link.len().min(100);
            header.as_old_mut().linkname[..n].copy_from_slice(&m.link[..n]);
            if matches!(m.flag, b'3' | b'4') {
                header.set_device_major(1).unwrap();
                header.set_device_minor(3).unwrap();
            }
        });
    }
    out.extend_from_slice(&[0; 1024]);
    out
}

/// A root to unpack into, with things around it that must not change.
pub(crate) struct Scene {
    pub(crate) scratch: tempfile::TempDir,
    pub(crate) format: WhiteoutFormat,
    pub(crate) around: tree::Tree,
}

impl Scene {
    pub(crate) fn new(format: WhiteoutFormat) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let outside = scratch.path().join("outside");
        fs::create_dir_all(outside.join("dir")).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        fs::create_dir(scratch.path().join("root")).unwrap();
        let around = tree::read(&outside);
        Self {
            scratch,
            format,
            around,
        }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    pub(crate) fn apply_bytes(&self, bytes: &[u8]) -> Result<Applied, Error> {
        let target = ApplyTarget {
            directory: self.root(),
            whiteouts: self.format,
        };
        let outcome = apply(bytes, &target, &ApplyOptions::default());
        assert_eq!(
            tree::read(&self.scratch.path().join("outside")),
            self.around,
            "something outside the root changed"
        );
        let names: Vec<_> = fs::read_dir(self.scratch.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "something new beside the root: {names:?}");
        outcome
    }

    pub(crate) fn apply(&self, members: &[Member]) -> Result<Applied, Error> {
        self.apply_bytes(&archive(members))
    }

    pub(crate) fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    pub(crate) fn missing(&self, path: &str) -> bool {
        fs::symlink_metadata(self.root().join(path)).is_err()
    }
}

/// The overlay format that this process may write.
pub(crate) fn overlay() -> WhiteoutFormat {
    if userns::inside() {
        WhiteoutFormat::OverlayUser
    } else {
        WhiteoutFormat::OverlayTrusted
    }
}

pub(crate) fn formats() -> [WhiteoutFormat; 2] {
    [WhiteoutFormat::Delete, overlay()]
}

/// Runs `check` with a fresh scene in each whiteout format.
pub(crate) fn each(check: impl Fn(&Scene)) {
    if !userns::powers() {
        return;
    }
    for format in formats() {
        println!("{format:?}");
        check(&Scene::new(format));
    }
}

pub(crate) fn refused(outcome: Result<Applied, Error>, kind: ErrorKind, text: &str) {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(text), "{error:?}");
}
