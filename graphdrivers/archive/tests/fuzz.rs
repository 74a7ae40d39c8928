//! The fuzz target `archive_apply` without a fuzzer: its committed seeds and reproducible mutations of them. What the
//! fuzzer finds is added to the seeds.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests talk, and stop at any error"
)]

#[path = "../../../fuzz/harness/layer.rs"]
mod layer;
#[expect(dead_code, reason = "each test binary uses a part of it")]
mod support;

use std::fs;
use std::path::Path;

use support::userns;

/// Mutations in one run: some seconds.
const MUTATIONS: u64 = 2_000;
const BLOCK: usize = 512;

fn seeds() -> Vec<Vec<u8>> {
    // A second run as another user cannot read the sources, so they are in the binary.
    macro_rules! seeds {
        ($($name:literal)*) => {
            vec![$(include_bytes!(concat!("../../../fuzz/seeds/archive_apply/", $name)).to_vec()),*]
        };
    }
    seeds!("devices.tar" "escape.tar" "global.tar" "gnu-long.tar" "gzip.tar.gz" "links.tar" "plain.tar" "replace.tar"
        "sparse-0.1.tar" "sparse-1.0.tar" "whiteouts.tar" "xattrs.tar" "zstd.tar.zst")
}

/// A cheap generator (xorshift): a failure can be run again by its number.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % limit.max(1)
    }
}

/// One of the seeds, changed here and there as a fuzzer would.
fn mutation(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..4 {
        random.below(1);
    }
    let mut data = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(data.len());
        match random.below(8) {
            0 => data[at] ^= 1 << random.below(8),
            1 => data[at] = b"\0\xff./0127x"[random.below(9)],
            2 => data.truncate(at),
            // Blocks are a tar's unit: left out, doubled, taken from elsewhere.
            3 => {
                let block = at / BLOCK * BLOCK;
                data.drain(block..(block + BLOCK).min(data.len()));
            }
            4 => {
                let block = at / BLOCK * BLOCK;
                let copy = data[block..(block + BLOCK).min(data.len())].to_vec();
                data.splice(block..block, copy);
            }
            5 => {
                let other = &seeds[random.below(seeds.len())];
                let block = random.below(other.len()) / BLOCK * BLOCK;
                let copy = other[block..(block + 3 * BLOCK).min(other.len())].to_vec();
                let into = at / BLOCK * BLOCK;
                data.splice(into..into, copy);
            }
            // The name, the type, the link's target.
            6 => {
                let block = at / BLOCK * BLOCK;
                let names: [&[u8]; 8] = [
                    b"..",
                    b"/",
                    b".wh.x\0",
                    b".wh..wh..opq\0",
                    b"a/../../b\0",
                    b"d/x\0",
                    b"l/x\0",
                    b"\0",
                ];
                let name = names[random.below(names.len())];
                let field = block + [0, 157][random.below(2)];
                if field + name.len() <= data.len() {
                    data[field..field + name.len()].copy_from_slice(name);
                }
            }
            _ => {
                let field = at / BLOCK * BLOCK + 156;
                if field < data.len() {
                    data[field] = b"0123456gxLKS\0"[random.below(13)];
                }
            }
        }
        if data.is_empty() {
            break;
        }
    }
    data
}

#[test]
fn in_a_user_namespace() {
    userns::rerun("in_a_user_namespace");
}

#[test]
fn all_seeds_are_replayed() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/archive_apply");
    if !userns::inside() {
        assert_eq!(
            fs::read_dir(directory).unwrap().count(),
            seeds().len(),
            "a seed is not in the list above"
        );
    }
    if userns::powers() {
        for seed in seeds() {
            layer::archive_apply(&seed);
            layer::tar_reader(&seed);
        }
    }
}

#[test]
fn mutations_do_no_harm() {
    if !userns::powers() {
        return;
    }
    let seeds = seeds();
    for number in 0..MUTATIONS {
        let data = mutation(&seeds, number);
        let caught = std::panic::catch_unwind(|| layer::archive_apply(&data));
        assert!(caught.is_ok(), "mutation {number}");
    }
}

#[test]
fn reading_ends_the_same_way_twice() {
    let seeds = seeds();
    for number in MUTATIONS..3 * MUTATIONS {
        let data = mutation(&seeds, number);
        let caught = std::panic::catch_unwind(|| layer::tar_reader(&data));
        assert!(caught.is_ok(), "mutation {number}");
    }
}
