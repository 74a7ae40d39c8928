//! `POST /images/create?fromSrc=-`: an image of one layer out of a tar stream (`docker import`).

use skiff_registry_client::Platform;
use skiff_store::StopToken;
use tokio::sync::mpsc;

use super::compose::{NewImage, new_name};
use super::load::Stoppable;
use super::pull::{StopOnDrop, blocking};
use super::{Images, Progress, instructions};
use crate::config::ContainerConfig;
use crate::error::{Error, Result};
use crate::pipe::{ByteSource, ByteStream};

/// `POST /images/create?fromSrc=…`.
#[derive(Debug, Clone, Default)]
pub struct ImportRequest {
    /// Where the archive is; only `-`, the body, is supported.
    pub source: String,
    /// Name to give; empty for none.
    pub repository: String,
    /// Tag to give; empty is `latest`, or what the repository has behind a colon.
    pub tag: String,
    /// Comment of the history's entry.
    pub message: String,
    /// Dockerfile instructions that make the configuration.
    pub changes: Vec<String>,
    /// `os[/arch[/variant]]`.
    pub platform: Option<String>,
}

/// Imports an image; its id is the only message.
pub(super) async fn import(
    images: &Images,
    request: ImportRequest,
    body: ByteStream,
    progress: &mpsc::Sender<Progress>,
) -> Result<()> {
    if request.source != "-" {
        return Err(Error::not_implemented(format!(
            "importing from {:?} is not supported by skiff: fetch it and import the file, or standard input",
            request.source
        )));
    }
    let name = new_name(&request.repository, &request.tag)?;
    let platform = request
        .platform
        .as_deref()
        .map(str::parse::<Platform>)
        .transpose()?;
    if let Some(platform) = &platform
        && platform.os != "linux"
    {
        return Err(Error::invalid("operating system is not supported"));
    }
    let mut config = ContainerConfig::default();
    instructions::apply(&mut config, &request.changes)?;
    let comment = if request.message.is_empty() {
        format!("Imported from {}", request.source)
    } else {
        request.message
    };
    let stop = StopOnDrop(StopToken::default());
    let source = Stoppable {
        source: ByteSource::new(body),
        stop: stop.0.clone(),
    };
    let store = images.shared.store.clone();
    let layer = blocking(move || Ok(store.add_layer(None, source)?)).await?;
    let id = images
        .compose(NewImage {
            parent: None,
            layer: Some(layer),
            container: None,
            config,
            author: String::new(),
            comment,
            name,
            platform,
        })
        .await?;
    images.shared.event("import", &id, &id.to_string());
    let done = Progress::Status {
        status: id.to_string(),
        id: None,
    };
    // The image is there, whether or not the client still wants to know.
    let _ = progress.send(done).await;
    Ok(())
}
