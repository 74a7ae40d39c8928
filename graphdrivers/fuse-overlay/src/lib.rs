//! Our own overlay file system in user space, for kernels and places where the kernel's cannot be mounted without root.
//!
//! ```text
//!   overlay   the file system itself: layers, inodes, whiteouts, copy-up; knows no FUSE
//!   adapter   FUSE requests ⇄ calls of the overlay
//!   program   `skiffd fuse-overlayfs -o … MOUNTPOINT`: options, mounting, life and death
//! ```

mod adapter;
mod mount;
mod options;
pub mod overlay;
pub mod program;
