//! TLS trust of one registry: the system's roots, and a folder of certificates per host.
//!
//! ```text
//!  certs.d/HOST[:PORT]/*.crt            certificate authorities, in addition to the system's
//!                      NAME.cert        our certificate for this registry …
//!                      NAME.key         … and its key, both PEM
//! ```
//!
//! Called by `endpoint.rs`. The system's roots are read once, when a registry that needs them is first spoken to: reading some 140
//! files takes longer than the rest of the daemon's start.
//!
//! A registry's own self-signed certificate may be put into the folder as it is, as Docker's documentation shows. webpki alone refuses
//! such a certificate (it is a certificate authority that acts as a server), so a server certificate found in the folder byte for byte is
//! accepted for the names it carries, within its validity.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::error::{Error, ErrorKind, Result};

mod validity;

/// The system's root certificates, read once.
#[derive(Debug, Default)]
pub(crate) struct SystemRoots(OnceLock<Arc<RootCertStore>>);

impl SystemRoots {
    /// Reads them if need be. Blocks on files.
    fn get(&self) -> Arc<RootCertStore> {
        let load = || {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "a system root certificate cannot be read");
            }
            let mut roots = RootCertStore::empty();
            let (valid, ignored) = roots.add_parsable_certificates(found.certs);
            if valid == 0 {
                tracing::warn!(
                    "no system root certificates found; install ca-certificates to reach public registries"
                );
            }
            tracing::debug!(valid, ignored, "system root certificates loaded");
            Arc::new(roots)
        };
        Arc::clone(self.0.get_or_init(load))
    }
}

/// The certificate files of one registry, with what tells a changed file from the one read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct CertificateFiles(Vec<(PathBuf, Option<SystemTime>, u64)>);

impl CertificateFiles {
    /// Lists the files for `authority` in all `directories`. Folders that do not exist count as empty.
    pub(crate) fn list(directories: &[PathBuf], authority: &str) -> Self {
        let mut files = Vec::new();
        // The name becomes one path component; a registry's name never has a slash, and this is where it would hurt.
        if authority.contains(['/', '\0']) || matches!(authority, "." | ".." | "") {
            return Self::default();
        }
        for directory in directories {
            let Ok(entries) = std::fs::read_dir(directory.join(authority)) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = entry.path();
                let metadata = std::fs::metadata(&path).ok();
                let modified = metadata.as_ref().and_then(|m| m.modified().ok());
                files.push((path, modified, metadata.map_or(0, |m| m.len())));
            }
        }
        files.sort();
        Self(files)
    }

    fn with_extension<'a>(&'a self, extension: &'a str) -> impl Iterator<Item = &'a Path> {
        let paths = self.0.iter().map(|(path, ..)| path.as_path());
        paths.filter(move |path| path.extension().is_some_and(|e| e == extension))
    }
}

/// The TLS configuration for one registry. Blocks on files.
///
/// # Errors
/// `Tls` when a file of the registry's folder is unreadable or malformed, or a key is missing.
pub(crate) fn client_config(
    system: &SystemRoots,
    files: &CertificateFiles,
    verify: bool,
) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |e: rustls::Error| Error::new(ErrorKind::Tls, format!("TLS set-up: {e}")).caused_by(e);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let verifier: Arc<dyn ServerCertVerifier> = if verify {
        registry_verifier(system, files, provider)?
    } else {
        Arc::new(Unverified(provider))
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match client_identity(files)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(unusable)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn registry_verifier(
    system: &SystemRoots,
    files: &CertificateFiles,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>> {
    let mut roots = system.get();
    let mut pinned = Vec::new();
    for path in files.with_extension("crt") {
        for certificate in read_certificates(path)? {
            Arc::make_mut(&mut roots)
                .add(certificate.clone())
                .map_err(|e| bad_file(path, &e))?;
            pinned.push(certificate);
        }
    }
    if roots.is_empty() {
        return Err(Error::new(
            ErrorKind::Tls,
            "tls: failed to verify certificate: x509: no root certificates on this system; install ca-certificates",
        ));
    }
    let chains = WebPkiServerVerifier::builder_with_provider(roots, provider)
        .build()
        .map_err(|e| Error::new(ErrorKind::Tls, format!("TLS set-up: {e}")).caused_by(e))?;
    Ok(Arc::new(RegistryVerifier { chains, pinned }))
}

/// Our certificate and key for a registry that wants one: the first complete pair.
fn client_identity(
    files: &CertificateFiles,
) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>> {
    for key in files.with_extension("key") {
        let certificate = key.with_extension("cert");
        if !files.with_extension("cert").any(|path| path == certificate) {
            let (key, certificate) = (file_name(key), file_name(&certificate));
            return Err(Error::new(
                ErrorKind::Tls,
                format!("missing client certificate {certificate} for key {key}"),
            ));
        }
    }
    let Some(path) = files.with_extension("cert").next() else {
        return Ok(None);
    };
    let key_path = path.with_extension("key");
    if !files.with_extension("key").any(|other| other == key_path) {
        let text = format!(
            "missing key {} for client certificate {}. CA certificates must use the extension .crt",
            file_name(&key_path),
            file_name(path)
        );
        return Err(Error::new(ErrorKind::Tls, text));
    }
    let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|e| bad_file(&key_path, &e))?;
    Ok(Some((read_certificates(path)?, key)))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| bad_file(path, &e))?;
    let certificates: Vec<_> = certificates
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| bad_file(path, &e))?;
    if certificates.is_empty() {
        return Err(bad_file(path, &"no PEM certificate in it"));
    }
    Ok(certificates)
}

fn bad_file(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Tls,
        format!("certificate file {}: {why}", path.display()),
    )
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// Chains to the roots, or a certificate of the registry's folder itself.
#[derive(Debug)]
struct RegistryVerifier {
    chains: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for RegistryVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if self.pinned.iter().any(|certificate| certificate == end_entity) {
            rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return match validity::contains(end_entity, now) {
                Some(true) => Ok(ServerCertVerified::assertion()),
                Some(false) => Err(CertificateError::Expired.into()),
                None => Err(CertificateError::BadEncoding.into()),
            };
        }
        self.chains
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.chains
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.chains
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// For registries declared insecure, and loopback: encrypts, and trusts any certificate.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The handshake's failure in the words of Go's crypto/tls, which Docker's users and their search engines know.
pub(crate) fn describe(error: &rustls::Error) -> String {
    let certificate = match error {
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            return "http: server gave HTTP response to HTTPS client".to_owned();
        }
        rustls::Error::InvalidCertificate(certificate) => certificate,
        other => return format!("tls: {other}"),
    };
    let why = match certificate {
        CertificateError::UnknownIssuer => "certificate signed by unknown authority".to_owned(),
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "certificate has expired or is not yet valid".to_owned()
        }
        other => other.to_string(),
    };
    format!("tls: failed to verify certificate: x509: {why}")
}
