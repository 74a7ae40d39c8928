//! placeholder; replaced by its owner

/// Credentials for a registry.
#[derive(Clone, Default)]
pub struct Credentials {
    /// User name, may be empty when `identity_token` or `registry_token` is set.
    pub username: String,
    /// Password.
    pub password: String,
    /// OAuth2 refresh token (`identitytoken`).
    pub identity_token: Option<String>,
    /// Bearer token to use as it is (`registrytoken`).
    pub registry_token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}
