//! From what a user typed to an image: a name, an id, or the beginning of an id, in Docker's order.

use std::sync::Arc;

use skiff_registry_client::Reference;
use skiff_store::{Catalog, Digest, Image, ReferenceKey};

use super::convert;
use crate::error::{Error, Result};

/// An image and how it was found.
pub(super) struct Found {
    pub(super) image: Arc<Image>,
    /// The name; `None` when it was found by its id.
    pub(super) name: Option<ReferenceKey>,
}

/// Finds an image.
pub(super) fn find(catalog: &Catalog, typed: &str) -> Result<Found> {
    if let Some(id) = whole_id(typed) {
        let image = catalog.images.get(&id).cloned();
        return image
            .map(|image| Found { image, name: None })
            .ok_or_else(|| no_such_image(&id.to_string()));
    }
    let reference = Reference::parse(typed)?;
    let name = convert::key(&reference).ok();
    let named = name.as_ref().and_then(|name| catalog.references.get(name));
    if let Some(image) = named.and_then(|reference| catalog.images.get(&reference.image)) {
        // `cafe` may be both a name and the beginning of this very image's id; then it is the id, as in Docker.
        let is_id = image.id.hex().starts_with(typed);
        return Ok(Found {
            image: Arc::clone(image),
            name: name.filter(|_| !is_id),
        });
    }
    match catalog.by_prefix(typed).as_slice() {
        [image] => Ok(Found {
            image: Arc::clone(image),
            name: None,
        }),
        // Docker does not tell an ambiguous beginning from an unknown one.
        _ => Err(no_such_image(&reference.familiar())),
    }
}

/// `sha256:` and 64 digits, or the digits alone.
pub(super) fn whole_id(typed: &str) -> Option<Digest> {
    let digits = typed.strip_prefix("sha256:").unwrap_or(typed);
    if digits.len() == 64 {
        format!("sha256:{digits}").parse().ok()
    } else {
        None
    }
}

fn no_such_image(what: &str) -> Error {
    Error::not_found(format!("No such image: {what}"))
}
