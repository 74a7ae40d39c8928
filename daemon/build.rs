//! Tells the program which compiler built it, for `docker version`.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["SKIFF_GIT_COMMIT", "SKIFF_BUILD_TIME", "RUSTC"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(compiler).arg("--version").output().ok();
    let version = version
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_default();
    // "rustc 1.95.0 (…)": the first two words say it.
    let short = version.split(' ').take(2).collect::<Vec<_>>().join(" ");
    println!("cargo:rustc-env=SKIFF_COMPILER={short}");
}
