//! The only crate with `unsafe` code: safe faces for what the kernel and the C library offer and `std`, `rustix` and
//! `nix` do not. Each block says in a SAFETY line why it is sound. No policy lives here.
//!
//! Called by every other crate; depends on none of them.

pub mod btrfs;
pub mod contents;
pub mod fsio;
pub mod fuse;
pub mod heap;
pub mod identity;
pub mod idmap;
pub mod lock;
pub mod netns;
pub mod ns;
pub mod process;
