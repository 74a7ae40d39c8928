//! The rootless start from outside: the built program, run as ordinary users made for this, is started, killed and
//! started again. Needs root (to be able to be somebody else), user namespaces and newuidmap; otherwise each test says
//! why it is skipped.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

mod harness;
mod refusals;
mod restarts;
mod services;
mod start;
