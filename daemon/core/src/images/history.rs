//! `GET /images/NAME/history`: the configuration's history joined with the layers' sizes.

use serde_json::Value;
use skiff_store::{Catalog, Image, Selector, Store};

use super::{HistoryEntry, convert, view};

/// The history, newest first.
pub(super) fn history(store: &Store, catalog: &Catalog, image: &Image) -> Vec<HistoryEntry> {
    let mut sizes = store.layer_sizes(image).into_iter();
    let steps = image.config["history"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let mut entries: Vec<HistoryEntry> = steps.iter().map(|step| entry(step, &mut sizes)).collect();
    entries.reverse();
    let mut current = Some(image);
    for line in &mut entries {
        let Some(known) = current else { break };
        line.id = known.id.to_string();
        line.tags = catalog
            .names_of(&known.id)
            .filter(|(name, _)| matches!(name.selector, Selector::Tag(_)))
            .map(|(name, _)| convert::familiar(name))
            .collect();
        current = view::parent(catalog, known);
    }
    entries
}

/// One step; a step that made a layer takes the next size.
fn entry(step: &Value, sizes: &mut impl Iterator<Item = u64>) -> HistoryEntry {
    let empty = step["empty_layer"].as_bool().unwrap_or(false);
    HistoryEntry {
        id: "<missing>".to_owned(),
        created: view::timestamp(&step["created"]).map_or(0, |time| time.as_second()),
        created_by: view::text(&step["created_by"]),
        tags: Vec::new(),
        size: if empty { 0 } else { sizes.next().unwrap_or(0) },
        comment: view::text(&step["comment"]),
    }
}
