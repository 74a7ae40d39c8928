//! Black-box tests of the engine: scenarios through the real docker CLI, through `bollard` and through raw sockets.
//!
//! There is nothing to import here, and this package imports none of our libraries either, so that it cannot agree
//! with our bugs. The scenarios are in `tests/it`, what they stand on in `tests/it/harness`; `make integration` runs
//! them (it starts a registry and makes the users they need). `bench/bench.py` measures.
//!
//! The same scenarios run against any engine: `SKIFF_TEST_SOCKET=/run/docker.sock SKIFF_TEST_ALLOW_SKIP=1 make
//! integration` takes a throw-away dockerd and skips only what needs a daemon of the test's own.
