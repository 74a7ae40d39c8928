//! Shared by the tests of the archive engine and of the drivers.

pub(crate) mod tree;
pub(crate) mod userns;
