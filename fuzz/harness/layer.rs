//! What must hold for any layer, however it came about. Used by the fuzz targets and, with the committed seeds and
//! reproducible mutations of them, by the ordinary tests of `skiff-archive`.

use std::fs;
use std::io::{BufRead, Read};
use std::path::Path;

use skiff_archive::{
    ApplyOptions, ApplyTarget, DiffTree, Error, Member, WhiteoutFormat, apply, diff, read_bundle,
};

/// Streams that expand further are not worth a run.
const EXPANDED_MAX: u64 = 1 << 20;
/// Trees up to this size are packed again.
const PACKED_MAX: u64 = 256 << 10;
const BLOCK: usize = 512;

/// Unpacks `data` in both kinds of whiteouts. Nothing outside of the root changes, and what was unpacked survives being
/// packed, unpacked and packed again to the byte.
pub(crate) fn archive_apply(data: &[u8]) {
    let data = sealed(data);
    if !is_small(&data) {
        return;
    }
    for whiteouts in [WhiteoutFormat::Delete, WhiteoutFormat::OverlayUser] {
        let scratch = scratch();
        let (outside, root) = (scratch.path().join("outside"), scratch.path().join("root"));
        fs::create_dir_all(outside.join("directory")).expect("mkdir");
        fs::write(outside.join("secret"), "secret").expect("write");
        fs::create_dir(&root).expect("mkdir");
        let target = ApplyTarget {
            directory: root.clone(),
            whiteouts,
        };
        let outcome = apply(&data[..], &target, &ApplyOptions::default());
        assert_untouched(scratch.path());
        if let Ok(applied) = outcome {
            assert_eq!(applied.blob_size, data.len() as u64, "not read to the end");
            if applied.size <= PACKED_MAX {
                survives_packing(&root, &scratch.path().join("again"), whiteouts);
            }
        }
    }
}

/// In memory where that is possible: file systems that remember deleted files make this ten times slower.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary directory")
}

/// Reads `data` as an archive, twice: no panic, and the same both times.
pub(crate) fn tar_reader(data: &[u8]) {
    let data = sealed(data);
    if is_small(&data) {
        assert_eq!(read(&data), read(&data));
    }
}

fn read(data: &[u8]) -> (Vec<(Member, usize)>, Option<String>) {
    let mut seen = Vec::new();
    let outcome = read_bundle(data, |member: &Member, data: &mut dyn BufRead| {
        let mut bytes = Vec::new();
        data.take(EXPANDED_MAX)
            .read_to_end(&mut bytes)
            .map_err(Error::of_data)?;
        seen.push((member.clone(), bytes.len()));
        Ok::<(), Error>(())
    });
    (seen, outcome.err().map(|error| error.to_string()))
}

fn assert_untouched(scratch: &Path) {
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    };
    let outside = scratch.join("outside");
    assert_eq!(names(scratch), ["outside", "root"]);
    assert_eq!(names(&outside), ["directory", "secret"]);
    assert_eq!(names(&outside.join("directory")).len(), 0);
    assert_eq!(fs::read(outside.join("secret")).expect("the secret"), b"secret");
}

fn survives_packing(root: &Path, again: &Path, whiteouts: WhiteoutFormat) {
    // Nested too deep for an archive, for example.
    let Ok(packed) = pack(root, whiteouts) else { return };
    fs::create_dir(again).expect("mkdir");
    let target = ApplyTarget {
        directory: again.to_owned(),
        whiteouts,
    };
    apply(&packed[..], &target, &ApplyOptions::default()).expect("what was packed is a layer");
    let repacked = pack(again, whiteouts).expect("the same tree");
    assert!(packed == repacked, "packed again it is something else");
}

fn pack(root: &Path, whiteouts: WhiteoutFormat) -> Result<Vec<u8>, Error> {
    let tree = DiffTree::Native {
        directory: root,
        whiteouts,
    };
    let mut out = Vec::new();
    diff(&tree, &mut out)?;
    Ok(out)
}

/// Whether `data`, if it is compressed, stays within bounds.
fn is_small(data: &[u8]) -> bool {
    let expands = |decoder: &mut dyn Read| {
        let expanded = std::io::copy(&mut decoder.take(EXPANDED_MAX + 1), &mut std::io::sink());
        !expanded.is_ok_and(|n| n > EXPANDED_MAX)
    };
    match data {
        [0x1f, 0x8b, ..] => expands(&mut flate2::read::MultiGzDecoder::new(data)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            zstd::Decoder::new(data).is_ok_and(|mut decoder| expands(&mut decoder))
        }
        // The decoders of these are tested by those who wrote them.
        [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', ..] => false,
        _ => true,
    }
}

/// Puts the right check sum into everything that looks like a header: else no mutation would ever get further.
fn sealed(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for block in data.chunks_exact_mut(BLOCK) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    data
}
