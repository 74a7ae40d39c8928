//! What the scenarios stand on: a daemon with a guard, the docker CLI, raw HTTP, registries (a real one and a hostile
//! one), images made to order, and a look at the processes, mounts and descriptors left over.

mod cli;
mod contents;
mod engine;
mod hostile_registry;
mod http;
mod image;
mod owner;
mod proc;
mod registry;

pub(crate) use cli::Docker;
pub(crate) use contents::{Writer, layered_image};
pub(crate) use engine::{Engine, Options};
pub(crate) use hostile_registry::{Behaviour, Gate, HostileRegistry};
pub(crate) use http::{Response, query};
pub(crate) use image::{Compression, Image, Layer, digest};
pub(crate) use owner::{Owner, is_root};
pub(crate) use proc::{Process, machine_address, mounts_of, open_descriptors, process, unix_time};
pub(crate) use registry::{PasswordRegistry, registry};

use std::time::{Duration, Instant};

/// One test a storage driver; `scenario` takes its name.
macro_rules! driver_tests {
    ($($test:ident: $driver:literal),+) => {$(
        #[test]
        fn $test() {
            scenario($driver);
        }
    )+};
}
pub(crate) use driver_tests;

/// Runs a scenario on both storage drivers that work everywhere, as two tests.
macro_rules! on_both_drivers {
    ($($(#[$meta:meta])* fn $name:ident($engine:ident) $body:block)+) => {$(
        $(#[$meta])*
        mod $name {
            use super::*;

            fn on($engine: &Engine) $body

            fn scenario(driver: &str) {
                on(&Engine::with_busybox(driver));
            }

            crate::harness::driver_tests!(vfs: "vfs", overlay2: "overlay2");
        }
    )+};
}
pub(crate) use on_both_drivers;

/// Runs a scenario on all four storage drivers, as four tests.
macro_rules! on_all_drivers {
    ($($(#[$meta:meta])* fn $name:ident($engine:ident) $body:block)+) => {$(
        $(#[$meta])*
        mod $name {
            use super::*;

            fn on($engine: &Engine) $body

            fn scenario(driver: &str) {
                let everywhere = ["vfs", "overlay2"].contains(&driver);
                crate::harness::require!(everywhere || Engine::own(), "chooses the storage driver");
                crate::harness::require!(driver != "btrfs" || crate::harness::is_root(), "only root can mount a btrfs");
                on(&Engine::with_busybox(driver));
            }

            crate::harness::driver_tests!(
                vfs: "vfs", overlay2: "overlay2", fuse_overlayfs: "fuse-overlayfs", btrfs: "btrfs"
            );
        }
    )+};
}
pub(crate) use on_all_drivers;

/// Runs a scenario on each of the four storage drivers; it may stop, kill and start the daemon.
macro_rules! on_every_driver {
    ($($(#[$meta:meta])* fn $name:ident($engine:ident) $body:block)+) => {$(
        $(#[$meta])*
        mod $name {
            use super::*;

            fn scenario(driver: &str) {
                require!(Engine::own(), "chooses the storage driver");
                require!(driver != "btrfs" || is_root(), "only root can mount a btrfs");
                let mut engine = Engine::with_busybox(driver);
                let $engine = &mut engine;
                $body
            }

            crate::harness::driver_tests!(
                vfs: "vfs", overlay2: "overlay2", fuse_overlayfs: "fuse-overlayfs", btrfs: "btrfs"
            );
        }
    )+};
}
pub(crate) use on_every_driver;

/// Ends the test when `$have` is false: a failure, unless `SKIFF_TEST_ALLOW_SKIP` is set (see [`skipped`]).
macro_rules! require {
    ($have:expr, $($why:tt)+) => {
        if !$have {
            crate::harness::skipped(&format!($($why)+));
            return;
        }
    };
}
pub(crate) use require;

/// Records a skip in the file `SKIFF_TEST_SKIPS` names, which `scripts/integration.sh` counts at the end.
///
/// # Panics
/// Unless `SKIFF_TEST_ALLOW_SKIP` is set: whatever the test needs, the machine that runs all tests has to have it.
pub(crate) fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    assert!(
        std::env::var_os("SKIFF_TEST_ALLOW_SKIP").is_some(),
        "{test} cannot run here: {why} (SKIFF_TEST_ALLOW_SKIP=1 turns this into a skip)"
    );
    eprintln!("SKIP {test}: {why}");
    if let Some(file) = std::env::var_os("SKIFF_TEST_SKIPS") {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .unwrap();
        writeln!(file, "{test}: {why}").unwrap();
    }
}

/// Waits for `what`: asks until `probe` gives a value. This is how a test waits for something that sends no event.
///
/// # Panics
/// After `limit`.
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Long enough for anything that should happen on a loaded machine, short enough to see a hang as one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A TCP port for a server that cannot be handed a listening socket. It lies below those that the kernel gives to
/// others by itself, so that nobody gets it between this look and the server's start; tests are processes of their own,
/// and each begins to look elsewhere.
pub(crate) fn unused_port() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first_given: u32 = range
        .split_whitespace()
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(32768);
    let (low, high) = if first_given > 12_000 {
        (10_000, first_given)
    } else {
        (61_000, 65_535)
    };
    let start = std::process::id().wrapping_mul(7) % (high - low);
    (0..high - low)
        .map(|n| u16::try_from(low + (start + n) % (high - low)).unwrap())
        .find(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok())
        .expect("a free port")
}

/// A number from the environment, for the length of the loops (`SKIFF_TEST_RUNS`, `SKIFF_TEST_ROUNDS`, …).
pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name}={text}"))
    })
}

/// This machine as the engine sees it: `localhost`, or what `SKIFF_TEST_HOST` says for an engine that lives in a network
/// namespace of its own (rootless dockerd calls it 10.0.2.2).
pub(crate) fn this_machine() -> String {
    std::env::var("SKIFF_TEST_HOST").unwrap_or_else(|_| "localhost".to_owned())
}
