//! Client of image registries: the Docker registry API v2 and the OCI distribution specification, reading side.
//!
//! Called by `skiff-core` (pull, login) and `skiff-store` (types only). This crate knows no disk layout: blobs come out as
//! streams, manifests as bytes; the only files it reads are the certificate folders and the credential file whose paths it is given.
//! It reads neither `$HOME` nor the environment, with one exception that is the platform's convention: the system's root certificates
//! are found by `rustls-native-certs`, which honours `SSL_CERT_FILE` and `SSL_CERT_DIR` as dockerd does.
//!
//! ```text
//!  Client ──▶ sources(reference) = mirrors of Docker Hub, then the origin          client.rs
//!    │             │
//!    │             └─ Endpoint: base URLs, TLS trust, remembered challenge         endpoint.rs  tls.rs  rules.rs
//!    ├─ document (manifest, config): whole, limited in size and time               client.rs
//!    ├─ blob: a stream that resumes and verifies                                   blob.rs      digest.rs
//!    ├─ login                                                                      login.rs
//!    └─ each request: redirects, time limits, authorisation                        transport.rs auth/
//! ```
//!
//! Invariants: bytes are handed out as complete only after their digest matched; an `Authorization` header is sent to the host
//! that asked for it and to no host it redirects to; credentials travel over TLS unless the registry is on loopback or was
//! declared insecure; nothing read from the network is unbounded.
//!
//! A push belongs in `push.rs` beside `blob.rs`: it needs `auth::Scope` with `pull,push` and a body in `transport.rs`.

mod auth;
mod blob;
mod client;
mod config;
mod credentials;
mod digest;
mod endpoint;
mod error;
mod login;
mod manifest;
mod platform;
mod reference;
mod response;
mod retry;
mod rules;
mod tls;
mod transport;

pub use blob::BlobStream;
pub use client::{Client, PlatformImage};
pub use config::{ClientConfig, Proxies, RetryPolicy, Timeouts};
pub use credentials::{AuthConfig, Credentials};
pub use digest::{Verifier, sha256};
pub use error::{Error, ErrorKind, Result};
pub use login::Login;
pub use manifest::{Body, Manifest, media_types};
pub use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest};
pub use platform::Platform;
pub use reference::Reference;
