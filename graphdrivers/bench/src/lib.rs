//! Measures storage drivers on a user's own disk: `skiffd bench storage`, and the same workloads under criterion.
//!
//! ```text
//!  seed       the data: tar streams made while they are read, the same bytes for every driver and every run
//!  subject    one driver under test: its layers, its containers, its mounts, below the scratch directory
//!  workload   the table of what is measured, and the code that does it
//!  runner     rounds that alternate between drivers → report; progress; stop on a signal
//!  stats, advice       medians, ratios, the weighted score, the sentence
//!  report → table, svg, JSON
//!  scratch    makes the directory, and sweeps it: at the end, on an error, and what an earlier run left that was killed
//! ```
//!
//! Called by the `bench` role of the program (inside the user's namespaces, in a mount namespace of its own) and by
//! `benches/drivers.rs`. Everything goes through [`GraphDriver`](skiff_graphdrivers::GraphDriver), the
//! [`Mounter`](skiff_graphdrivers::Mounter) and `skiff-archive`, as in the engine; no driver is known by name here.
//!
//! Invariants: nothing outside the scratch directory is touched; the timed part of a workload does what the engine does and
//! nothing else; what is written is synced between measurements, outside the clock.

pub mod advice;
mod cold;
mod disk;
mod error;
pub mod report;
mod runner;
mod scratch;
mod seed;
mod size;
pub mod stats;
mod subject;
pub mod svg;
pub mod table;
mod workload;

pub use cold::COLD;
pub use error::{Error, ErrorKind, Result};
pub use report::Report;
pub use runner::{Options, Progress, run};
pub use scratch::{RESULT, Scratch};
pub use size::Size;
pub use subject::Subject;
pub use workload::{Group, Unit, WORKLOADS, Workload};
