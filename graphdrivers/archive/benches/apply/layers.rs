//! Layers to unpack, the same in every run: many small files, one big file, a distribution's base.

use std::io::{self, Read, Write};

/// Time of every member.
pub(crate) const MTIME: u64 = 1_700_000_000;

/// A layer: members in the order of the archive, directories before what is in them.
pub(crate) struct Layer {
    pub(crate) name: &'static str,
    pub(crate) members: Vec<Member>,
}

pub(crate) struct Member {
    pub(crate) path: String,
    pub(crate) what: What,
}

pub(crate) enum What {
    Directory,
    File(Content),
    Symlink(&'static str),
    /// Another name of this member.
    HardLink(String),
}

/// What is in a file.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// Text that compresses as source code does, from this place of the common text on.
    Text { at: usize, size: u64 },
    /// A mebibyte of noise, a mebibyte of text, and so on.
    Half { size: u64 },
}

impl Content {
    pub(crate) fn size(self) -> u64 {
        match self {
            Self::Text { size, .. } | Self::Half { size } => size,
        }
    }
}

impl Layer {
    pub(crate) fn all(files: usize, big: u64) -> [Self; 3] {
        [Self::many(files), Self::big(big), Self::base()]
    }

    /// Small files, as in a directory of JavaScript modules: 5.8 KiB on average, ten in a directory.
    pub(crate) fn many(files: usize) -> Self {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut members = directories(&["usr", "usr/lib", "usr/lib/node_modules"]);
        for d in 0..files.div_ceil(10) {
            let package = format!("usr/lib/node_modules/package-{}", d / 50);
            if d % 50 == 0 {
                members.push(directory(&package));
            }
            let dist = format!("{package}/dist-{d}");
            members.push(directory(&dist));
            for f in 0..10.min(files - d * 10) {
                let size = match random.below(20) {
                    0 => 40_000 + random.below(30_000),
                    n => n * 150 + random.below(3_000),
                };
                members.push(random.file(format!("{dist}/module-{f}.js"), size));
            }
        }
        Self {
            name: "many",
            members,
        }
    }

    /// One file, half of it noise.
    pub(crate) fn big(size: u64) -> Self {
        let mut members = directories(&["data"]);
        members.push(Member {
            path: "data/blob".to_owned(),
            what: What::File(Content::Half { size }),
        });
        Self { name: "big", members }
    }

    /// What a minimal distribution looks like: 118 MiB, 7,000 files in 700 directories, links, a few big libraries.
    pub(crate) fn base() -> Self {
        let mut random = Random(42);
        let mut members = directories(&["etc", "usr", "usr/bin", "usr/lib", "usr/share"]);
        let link = |path: &str, target| Member {
            path: path.to_owned(),
            what: What::Symlink(target),
        };
        members.extend([link("bin", "usr/bin"), link("lib", "usr/lib")]);
        for n in 0..420 {
            let size = 8_000 + random.below(90_000);
            members.push(random.file(format!("usr/bin/program-{n}"), size));
            if n % 7 == 0 {
                members.push(link(&format!("usr/bin/alias-{n}"), "program-0"));
            }
            if n % 60 == 0 {
                members.push(Member {
                    path: format!("usr/bin/linked-{n}"),
                    what: What::HardLink(format!("usr/bin/program-{n}")),
                });
            }
        }
        for n in 0..130 {
            let size = if n < 6 {
                3_000_000 + random.below(4_000_000)
            } else {
                50_000 + random.below(400_000)
            };
            members.push(random.file(format!("usr/lib/lib{n}.so.1.{n}"), size));
            members.push(link(&format!("usr/lib/lib{n}.so.1"), "lib0.so.1.0"));
        }
        for d in 0..700 {
            let place = format!("usr/share/package-{d}");
            members.push(directory(&place));
            for f in 0..9 {
                let size = match random.below(15) {
                    0 => random.below(60_000),
                    n => n * 120 + random.below(1_500),
                };
                members.push(random.file(format!("{place}/file-{f}"), size));
            }
        }
        Self {
            name: "base",
            members,
        }
    }

    /// Bytes of all files.
    pub(crate) fn size(&self) -> u64 {
        let size = |member: &Member| match &member.what {
            What::File(content) => content.size(),
            _ => 0,
        };
        self.members.iter().map(size).sum()
    }

    /// Writes the layer as a tar stream.
    pub(crate) fn pack(&self, out: impl Write) {
        let text = text();
        let mut builder = tar::Builder::new(out);
        for member in &self.members {
            let mut header = tar::Header::new_ustar();
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(MTIME);
            header.set_size(0);
            header.set_mode(0o644);
            match &member.what {
                What::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(0o755);
                    let path = format!("{}/", member.path);
                    builder.append_data(&mut header, path, io::empty()).unwrap();
                }
                What::File(content) => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_size(content.size());
                    let data = Data {
                        content: *content,
                        text: &text,
                        done: 0,
                        random: Random(7),
                    };
                    builder.append_data(&mut header, &member.path, data).unwrap();
                }
                What::Symlink(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    builder.append_link(&mut header, &member.path, target).unwrap();
                }
                What::HardLink(target) => {
                    header.set_entry_type(tar::EntryType::Link);
                    builder.append_link(&mut header, &member.path, target).unwrap();
                }
            }
        }
        builder.finish().unwrap();
    }
}

fn directory(path: &str) -> Member {
    Member {
        path: path.to_owned(),
        what: What::Directory,
    }
}

fn directories(paths: &[&str]) -> Vec<Member> {
    paths.iter().map(|path| directory(path)).collect()
}

/// A cheap generator (xorshift), so that every run unpacks the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn file(&mut self, path: String, size: u64) -> Member {
        let at = usize::try_from(self.below(TEXT as u64)).unwrap();
        Member {
            path,
            what: What::File(Content::Text { at, size }),
        }
    }
}

const TEXT: usize = 1 << 20;

/// Text that compresses about as well as source code.
fn text() -> Vec<u8> {
    let mut random = Random(42);
    let words: Vec<String> = (0..3000)
        .map(|_| format!("{:x}", random.below(0xf_ffff_ffff)))
        .collect();
    let mut text = Vec::with_capacity(TEXT + 100);
    while text.len() < TEXT {
        text.extend_from_slice(words[usize::try_from(random.below(3000)).unwrap()].as_bytes());
        let space: &[u8] = if random.below(8) == 0 { b"();\n  " } else { b" " };
        text.extend_from_slice(space);
    }
    text.truncate(TEXT);
    text
}

/// A file's content as a stream.
struct Data<'t> {
    content: Content,
    text: &'t [u8],
    done: u64,
    random: Random,
}

impl Read for Data<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.content.size() - self.done;
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        let into = &mut into[..wanted];
        let n = match self.content {
            Content::Text { at, .. } => self.copy_text(at, into),
            Content::Half { .. } if self.done >> 20 & 1 == 1 => self.copy_text(0, into),
            Content::Half { .. } => {
                // To the end of this mebibyte of noise.
                let end = usize::try_from((1 << 20) - (self.done & 0xf_ffff)).unwrap();
                let n = end.min(into.len());
                for piece in into[..n].chunks_mut(8) {
                    let noise = self.random.next().to_le_bytes();
                    piece.copy_from_slice(&noise[..piece.len()]);
                }
                n
            }
        };
        self.done += n as u64;
        Ok(n)
    }
}

impl Data<'_> {
    fn copy_text(&self, at: usize, into: &mut [u8]) -> usize {
        let from = (at + usize::try_from(self.done).unwrap()) % TEXT;
        let n = into.len().min(TEXT - from);
        into[..n].copy_from_slice(&self.text[from..from + n]);
        n
    }
}
