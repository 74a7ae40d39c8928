//! What programs rely on, through a mount of ours: each function one promise. No kernel overlay beside it; POSIX and
//! the bare file system say what is right.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::mounts::{Layers, Mounted, Scratch};

mod directories;
mod handles;
mod life;
mod options;
mod owners;
mod pages;

pub(crate) use directories::*;
pub(crate) use handles::*;
pub(crate) use life::*;
pub(crate) use options::*;
pub(crate) use owners::*;
pub(crate) use pages::*;

/// Layers with a few files, and the mount over them.
struct Fixture {
    layers: Layers,
    mount: Option<Mounted>,
    // Last: unmounts what is left.
    _scratch: Scratch,
}

impl Fixture {
    /// Lower files are written by `fill` before the mount.
    fn new(fill: impl FnOnce(&Layers)) -> Self {
        let scratch = Scratch::new();
        let layers = scratch.layers("o");
        fill(&layers);
        let mount = Some(layers.ours());
        Self {
            layers,
            mount,
            _scratch: scratch,
        }
    }

    /// A lower file `f` of the given text.
    fn with_file(text: &str) -> Self {
        Self::new(|layers| fs::write(layers.bottom.join("f"), text).unwrap())
    }

    fn mount(&self) -> &Mounted {
        self.mount.as_ref().unwrap()
    }

    fn at(&self, path: impl AsRef<Path>) -> std::path::PathBuf {
        self.mount().join(path)
    }

    fn unmount(&mut self) {
        self.mount.take().unwrap().unmount();
    }

    /// Unmounts, checks that the server ends well, and mounts again.
    fn remount(&mut self) {
        self.unmount();
        self.mount = Some(self.layers.ours());
    }
}

/// Runs a Python program with arguments, for the calls that Rust allows only in unsafe code (mmap) or that need a
/// process of their own (locks).
fn python(program: &str, arguments: &[&Path]) -> Output {
    let output = Command::new("python3")
        .arg("-c")
        .arg(program)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
