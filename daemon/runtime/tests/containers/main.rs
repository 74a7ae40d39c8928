//! Containers, run for real: as an unprivileged user inside user, mount, network and control group namespaces.
//!
//! ```text
//! cargo test ── main (root: switches to a test user) ── unshare(1) with newuidmap ── main inside: one scenario
//!                                                                                     └─ main as `shim` …
//! ```
//!
//! Speaks enough of libtest's command line for `cargo test` and nextest. Needs busybox, unshare and newuidmap; what is
//! missing is said, and the scenario counts as skipped.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test program"
)]

mod basics;
mod external;
mod harness;
mod isolation;
mod lifetime;
mod measure;
mod streams;

use std::process::ExitCode;

/// A scenario: its name and what it does inside the namespaces.
pub(crate) type Scenario = (&'static str, fn(harness::Lab));

fn scenarios() -> Vec<Scenario> {
    [
        basics::ALL,
        streams::ALL,
        isolation::ALL,
        lifetime::ALL,
        external::ALL,
    ]
    .concat()
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|role| role.to_str()) {
        Some("shim") => return skiff_runtime::shim_main(args),
        // With `--init` the program's name is the role.
        Some("init") => return skiff_runtime::init_main(args),
        _ if std::env::args_os()
            .next()
            .is_some_and(|name| name == "/sbin/docker-init") =>
        {
            return skiff_runtime::init_main(std::env::args_os().skip(1));
        }
        _ => {}
    }
    if let Ok(name) = std::env::var(harness::INSIDE) {
        let scenario = scenarios()
            .into_iter()
            .chain(measure::ALL.iter().copied())
            .find(|(known, _)| *known == name);
        let (_, run) = scenario.expect("a known scenario");
        run(harness::Lab::new());
        return ExitCode::SUCCESS;
    }
    harness::run_all(&scenarios(), measure::ALL)
}
