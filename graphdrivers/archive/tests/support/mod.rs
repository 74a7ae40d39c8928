//! Shared by the tests of the archive engine and of the drivers.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod tree;
pub(crate) mod userns;
