//! What a [`Client`](crate::Client) is given by the daemon; filled from the daemon's flags, `daemon.json` and the environment.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

/// Set-up of a [`Client`](crate::Client).
#[derive(Debug, Clone, Default)]
pub struct ClientConfig {
    /// `--insecure-registry`: `host`, `host:port` (compared exactly, as dockerd does) or a CIDR. TLS is tried first and not verified,
    /// plain HTTP is the fallback. Loopback addresses need no entry.
    pub insecure_registries: Vec<String>,
    /// `--registry-mirror`: pull-through caches of Docker Hub, tried in order before it.
    pub mirrors: Vec<Url>,
    /// Folders like `/etc/docker/certs.d`, each with `HOST[:PORT]/{*.crt,*.cert,*.key}`. Those that do not exist are skipped.
    pub certificate_directories: Vec<PathBuf>,
    /// A file of `~/.docker/config.json`'s shape, read when a registry wants credentials and the request came without.
    pub credential_file: Option<PathBuf>,
    /// Proxies for outgoing requests.
    pub proxies: Proxies,
    /// `User-Agent`; empty sends `skiff/VERSION`.
    pub user_agent: String,
    /// How failures are repeated.
    pub retry: RetryPolicy,
    /// Limits on waiting.
    pub timeouts: Timeouts,
    /// Where the registry behind `docker.io` answers; `None` is `https://registry-1.docker.io`. For closed networks and tests.
    pub docker_hub: Option<Url>,
}

/// Proxies, in the forms of the usual environment variables (which this crate does not read).
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// For `http:` requests.
    pub http: Option<String>,
    /// For `https:` requests.
    pub https: Option<String>,
    /// Comma-separated hosts, domains and CIDRs that are reached directly. Loopback always is.
    pub no_proxy: String,
}

/// When and how often a failed request is repeated. Only failures that can pass are: cut connections, time-outs, 429 and 5xx.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Attempts in all; a download that moves forward starts counting again.
    pub attempts: u32,
    /// Pause before the second attempt; doubled for each further one, with up to half of it random.
    pub initial_pause: Duration,
    /// The longest pause. A `Retry-After` beyond it ends the attempts.
    pub longest_pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 5,
            initial_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(15),
        }
    }
}

/// Limits on waiting. There is none on a whole blob: a slow registry may take its time as long as bytes arrive.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For a TCP connection.
    pub connect: Duration,
    /// From sending a request (connection and TLS handshake included) to the end of the answer's headers.
    pub headers: Duration,
    /// Between two reads of a body.
    pub idle: Duration,
    /// For the whole body of a small document: manifest, configuration, token.
    pub document: Duration,
    /// For a credential helper program.
    pub helper: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            headers: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            document: Duration::from_secs(120),
            helper: Duration::from_secs(30),
        }
    }
}
