//! The client against registries: hostile ones on loopback sockets, and Debian's docker-registry.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod authorisation;
mod blobs;
mod documents;
mod fake;
mod image;
mod mirrors;
mod real;
mod redirects;
mod tls;
