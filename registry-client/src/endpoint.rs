//! A registry as this client speaks to it: addresses, TLS trust, and what was learned about it.
//!
//! ```text
//!  new ── first request ──▶ https works ──────────────▶ remembered
//!                           https fails, plain allowed ─▶ http works ─▶ remembered
//!  remembered address refuses connections ─▶ forgotten, asked again
//!  certificate folder changed ─▶ the endpoint is built anew
//! ```
//!
//! Endpoints are shared by all pulls, so that connections, the working scheme and the registry's challenge are reused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use url::Url;

use crate::auth::Challenge;
use crate::config::{ClientConfig, Proxies, Timeouts};
use crate::error::{Error, ErrorKind, Result};
use crate::rules::{Rules, authority};
use crate::tls::{CertificateFiles, SystemRoots, client_config};

/// How long a mirror that failed is left out.
const PENALTY: Duration = Duration::from_secs(60);
/// Endpoints kept; more than anybody's pulls use at once.
const KEPT: usize = 64;
/// Idle connections are closed after this.
const POOL_IDLE: Duration = Duration::from_secs(30);
/// Where Docker Hub's registry answers.
const DOCKER_HUB: &str = "https://registry-1.docker.io";
/// What Docker Hub is called in credential files.
pub(crate) const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// A registry or mirror.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// `host[:port]`: the name of its certificate folder.
    pub(crate) authority: String,
    /// Its name in the credential file.
    pub(crate) server: String,
    pub(crate) is_mirror: bool,
    /// Whether plain HTTP is allowed, for it and for what it redirects to.
    pub(crate) plain_allowed: bool,
    pub(crate) client: reqwest::Client,
    /// Base addresses in the order of trial.
    bases: Vec<Url>,
    files: CertificateFiles,
    learned: Mutex<Learned>,
}

#[derive(Debug, Default)]
struct Learned {
    base: Option<Url>,
    challenges: Vec<Challenge>,
    failed: Option<Instant>,
}

impl Endpoint {
    /// The address that worked, or all to be tried.
    pub(crate) fn bases(&self) -> Vec<Url> {
        match &self.learned().base {
            Some(base) => vec![base.clone()],
            None => self.bases.clone(),
        }
    }

    /// The address to name in messages.
    pub(crate) fn base(&self) -> Option<Url> {
        self.bases().into_iter().next()
    }

    pub(crate) fn works_at(&self, base: &Url) {
        self.learned().base = Some(base.clone());
    }

    pub(crate) fn forget_base(&self) {
        self.learned().base = None;
    }

    pub(crate) fn challenges(&self) -> Vec<Challenge> {
        self.learned().challenges.clone()
    }

    pub(crate) fn asks_for(&self, challenges: Vec<Challenge>) {
        self.learned().challenges = challenges;
    }

    /// Leaves a mirror out for a while.
    pub(crate) fn penalise(&self) {
        self.learned().failed = Some(Instant::now());
    }

    pub(crate) fn is_penalised(&self) -> bool {
        self.learned().failed.is_some_and(|at| at.elapsed() < PENALTY)
    }

    fn learned(&self) -> MutexGuard<'_, Learned> {
        // Nothing panics while holding it, and each field is valid by itself.
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which registry to speak to.
#[derive(Debug, Clone)]
enum Target {
    /// A reference's domain: https, and http where allowed.
    Domain(String),
    /// A configured address, spoken to as it is written.
    Fixed {
        base: Url,
        is_mirror: bool,
        is_hub: bool,
    },
}

/// All endpoints in use.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    roots: Arc<SystemRoots>,
    known: Mutex<HashMap<String, Arc<Endpoint>>>,
}

impl Endpoints {
    /// The origin for a reference's domain.
    pub(crate) async fn origin(
        &self,
        domain: &str,
        config: &ClientConfig,
        rules: &Rules,
    ) -> Result<Arc<Endpoint>> {
        let target = match (domain, &config.docker_hub) {
            ("docker.io", Some(url)) => Target::Fixed {
                base: url.clone(),
                is_mirror: false,
                is_hub: true,
            },
            ("docker.io", None) => {
                let base = parse(DOCKER_HUB)?;
                Target::Fixed {
                    base,
                    is_mirror: false,
                    is_hub: true,
                }
            }
            _ => Target::Domain(domain.to_owned()),
        };
        self.get(target, config, rules).await
    }

    /// A configured mirror.
    pub(crate) async fn mirror(
        &self,
        url: &Url,
        config: &ClientConfig,
        rules: &Rules,
    ) -> Result<Arc<Endpoint>> {
        self.get(
            Target::Fixed {
                base: url.clone(),
                is_mirror: true,
                is_hub: false,
            },
            config,
            rules,
        )
        .await
    }

    async fn get(&self, target: Target, config: &ClientConfig, rules: &Rules) -> Result<Arc<Endpoint>> {
        let (name, key) = match &target {
            Target::Domain(domain) => (domain.clone(), domain.clone()),
            Target::Fixed { base, is_mirror, .. } => (authority(base), format!("{is_mirror} {base}")),
        };
        let files = CertificateFiles::list(&config.certificate_directories, &name);
        if let Some(endpoint) = self.known().get(&key)
            && endpoint.files == files
        {
            return Ok(Arc::clone(endpoint));
        }
        let endpoint = Arc::new(self.build(target, name, files, config, rules).await?);
        let mut known = self.known();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(key, Arc::clone(&endpoint));
        Ok(endpoint)
    }

    async fn build(
        &self,
        target: Target,
        name: String,
        files: CertificateFiles,
        config: &ClientConfig,
        rules: &Rules,
    ) -> Result<Endpoint> {
        let insecure = rules.is_insecure(&name).await;
        let (bases, is_mirror, server) = match target {
            Target::Domain(domain) => {
                let mut bases = vec![parse(&format!("https://{domain}/"))?];
                if insecure {
                    bases.push(parse(&format!("http://{domain}/"))?);
                }
                (bases, false, domain)
            }
            Target::Fixed {
                mut base,
                is_mirror,
                is_hub,
            } => {
                if !base.path().ends_with('/') {
                    base.set_path(&format!("{}/", base.path()));
                }
                let server = if is_hub {
                    DOCKER_HUB_SERVER.to_owned()
                } else {
                    name.clone()
                };
                (vec![base], is_mirror, server)
            }
        };
        let plain_allowed = insecure || bases.iter().any(|base| base.scheme() == "http");
        let (roots, listed) = (Arc::clone(&self.roots), files.clone());
        let tls = tokio::task::spawn_blocking(move || client_config(&roots, &listed, !insecure))
            .await
            .map_err(|e| Error::new(ErrorKind::Tls, format!("TLS set-up for {name}: {e}")).caused_by(e))??;
        let client = http_client(config, tls)?;
        Ok(Endpoint {
            authority: bases.first().map(authority).unwrap_or_default(),
            server,
            is_mirror,
            plain_allowed,
            client,
            bases,
            files,
            learned: Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Endpoint>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(url: &str) -> Result<Url> {
    let invalid = |e: url::ParseError| {
        Error::new(
            ErrorKind::InvalidReference,
            format!("invalid registry host in {url}: {e}"),
        )
    };
    Url::parse(url).map_err(invalid)
}

/// Redirects and credentials are `transport.rs`'s business: reqwest follows nothing and reads no environment.
fn http_client(config: &ClientConfig, tls: rustls::ClientConfig) -> Result<reqwest::Client> {
    let Timeouts { connect, .. } = config.timeouts;
    let agent = match config.user_agent.as_str() {
        "" => concat!("skiff/", env!("CARGO_PKG_VERSION")),
        agent => agent,
    };
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .connect_timeout(connect)
        .pool_idle_timeout(POOL_IDLE)
        .http2_adaptive_window(true)
        .user_agent(agent);
    for proxy in proxies(&config.proxies)? {
        builder = builder.proxy(proxy);
    }
    builder
        .build()
        .map_err(|e| Error::new(ErrorKind::Configuration, format!("HTTP client: {e}")).caused_by(e))
}

fn proxies(proxies: &Proxies) -> Result<Vec<reqwest::Proxy>> {
    // Go never uses a proxy for loopback, and a registry on this machine is not behind one.
    let direct = reqwest::NoProxy::from_string(&format!("localhost,127.0.0.0/8,::1,{}", proxies.no_proxy));
    // The address may hold a password: leave it out of the message.
    let invalid = |e: reqwest::Error| {
        Error::new(
            ErrorKind::Configuration,
            format!("invalid proxy address: {}", e.without_url()),
        )
    };
    let http = proxies
        .http
        .as_deref()
        .filter(|p| !p.is_empty())
        .map(reqwest::Proxy::http);
    let https = proxies
        .https
        .as_deref()
        .filter(|p| !p.is_empty())
        .map(reqwest::Proxy::https);
    let all = [http, https].into_iter().flatten();
    all.map(|proxy| proxy.map(|p| p.no_proxy(direct.clone())).map_err(invalid))
        .collect()
}

/// Refuses a set-up whose parts could not be used later.
pub(crate) fn check(config: &ClientConfig) -> Result<()> {
    proxies(&config.proxies)?;
    for url in config.mirrors.iter().chain(&config.docker_hub) {
        let bare = url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if !matches!(url.scheme(), "http" | "https") || !bare || url.host().is_none() {
            let text = format!(
                "invalid mirror: {url}: expected http(s)://HOST[:PORT], without user, query and fragment"
            );
            return Err(Error::new(ErrorKind::Configuration, text));
        }
    }
    Ok(())
}
