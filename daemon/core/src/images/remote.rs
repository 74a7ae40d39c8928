//! What a pull needs of registries, as a trait: the real one is `skiff-registry-client`, tests have hostile ones.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use skiff_registry_client::{
    Client, Credentials, Descriptor, ImageManifest, Manifest, Platform, Reference, Verifier,
};

use crate::error::Result;

/// What a reference stands for at a registry.
pub(super) struct Resolved {
    /// The manifest or index that the reference names.
    pub(super) target: Manifest,
    /// The platform's manifest; the same when the reference names no index.
    pub(super) manifest: Manifest,
    /// That manifest, read.
    pub(super) image: ImageManifest,
}

/// A registry.
#[async_trait]
pub(super) trait Remote: Send + Sync + 'static {
    /// Finds the manifest for a platform.
    async fn resolve(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        credentials: Option<&Credentials>,
    ) -> Result<Resolved>;

    /// Fetches a small blob whole, verified.
    async fn document(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        credentials: Option<&Credentials>,
    ) -> Result<Bytes>;

    /// Fetches a blob from where `verifier` has got to. The stream ends without an error only when the whole blob,
    /// with what the verifier had seen before, has its digest and size.
    async fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        verifier: Verifier,
        credentials: Option<&Credentials>,
    ) -> Result<BoxStream<'static, Result<Bytes>>>;
}

#[async_trait]
impl Remote for Client {
    async fn resolve(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        credentials: Option<&Credentials>,
    ) -> Result<Resolved> {
        let host = Platform::host();
        let found = self
            .fetch_image(reference, platform.unwrap_or(&host), credentials)
            .await?;
        Ok(Resolved {
            target: found.top,
            manifest: found.manifest,
            image: found.image,
        })
    }

    async fn document(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        credentials: Option<&Credentials>,
    ) -> Result<Bytes> {
        Ok(self.fetch_config(reference, descriptor, credentials).await?)
    }

    async fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        verifier: Verifier,
        credentials: Option<&Credentials>,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let stream = self
            .fetch_blob(reference, descriptor, verifier, credentials)
            .await?;
        Ok(stream.map(|piece| Ok(piece?)).boxed())
    }
}
