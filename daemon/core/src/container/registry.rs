//! All containers by id and by name. A name is taken from the moment a creation begins, so that two creations
//! with one name cannot both succeed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};

use super::actor::Command;
use super::attach::Waiting;
use super::names;
use super::view::ContainerView;
use crate::error::{Error, Result};

/// How to reach a container's owner.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) view: watch::Receiver<Arc<ContainerView>>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) waiting: Arc<Waiting>,
}

impl Handle {
    /// The newest view.
    pub(super) fn snapshot(&self) -> Arc<ContainerView> {
        Arc::clone(&self.view.borrow())
    }
}

#[derive(Default)]
pub(super) struct Registry(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    by_id: BTreeMap<String, Handle>,
    by_name: HashMap<String, String>,
}

impl Registry {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `name` (or a generated one) for container `id`.
    pub(super) fn reserve(&self, name: Option<&str>, id: &str) -> Result<String> {
        let mut tables = self.tables();
        let name = match name {
            Some(name) => names::check(name)?.to_owned(),
            None => {
                let mut attempt = 0;
                loop {
                    let name = names::generate(attempt)?;
                    if !tables.by_name.contains_key(&name) {
                        break name;
                    }
                    attempt += 1;
                }
            }
        };
        take(&mut tables, &name, id)?;
        Ok(name)
    }

    /// Gives a reserved name back.
    pub(super) fn release(&self, name: &str) {
        self.tables().by_name.remove(name);
    }

    /// Takes `new` and gives `old` back, in one step.
    pub(super) fn rename(&self, id: &str, old: &str, new: &str) -> Result<()> {
        let mut tables = self.tables();
        take(&mut tables, new, id)?;
        tables.by_name.remove(old);
        Ok(())
    }

    /// Makes a container visible.
    pub(super) fn insert(&self, id: String, handle: Handle) {
        self.tables().by_id.insert(id, handle);
    }

    /// Forgets a container.
    pub(super) fn remove(&self, id: &str, name: &str) {
        let mut tables = self.tables();
        tables.by_id.remove(id);
        if tables.by_name.get(name).is_some_and(|owner| owner == id) {
            tables.by_name.remove(name);
        }
    }

    /// Finds by full id, name, or unambiguous beginning of an id, in this order (as Docker does).
    pub(super) fn find(&self, reference: &str) -> Result<Handle> {
        let tables = self.tables();
        let missing = || Error::not_found(format!("No such container: {reference}"));
        if let Some(handle) = tables.by_id.get(reference) {
            return Ok(handle.clone());
        }
        let name = reference.strip_prefix('/').unwrap_or(reference);
        if let Some(id) = tables.by_name.get(name) {
            // A name without a container belongs to a creation that is not done.
            return tables.by_id.get(id).cloned().ok_or_else(missing);
        }
        if reference.is_empty() {
            return Err(missing());
        }
        let mut candidates = tables
            .by_id
            .range(reference.to_owned()..)
            .take_while(|(id, _)| id.starts_with(reference));
        match (candidates.next(), candidates.next()) {
            (Some((_, handle)), None) => Ok(handle.clone()),
            (Some(_), Some(_)) => Err(Error::invalid(format!(
                "Multiple IDs found with provided prefix: {reference}"
            ))),
            (None, _) => Err(missing()),
        }
    }

    /// All containers.
    pub(super) fn all(&self) -> Vec<Handle> {
        self.tables().by_id.values().cloned().collect()
    }
}

fn take(tables: &mut Tables, name: &str, id: &str) -> Result<()> {
    match tables.by_name.get(name) {
        Some(owner) => Err(Error::conflict(format!(
            "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have to \
             remove (or rename) that container to be able to reuse that name."
        ))),
        None => {
            tables.by_name.insert(name.to_owned(), id.to_owned());
            Ok(())
        }
    }
}
