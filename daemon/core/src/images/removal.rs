//! `DELETE /images/NAME`: Docker's rules about names, containers and force, as a pure plan that is then carried out, if
//! nothing has changed meanwhile; else there is another plan.

use std::collections::HashSet;
use std::sync::Arc;

use skiff_store::{Digest, ReferenceKey, RemovalPlan, Removed, SeenNames, Selector, Store};

use super::{Removal, Shared, convert, find};
use crate::error::{Error, Result};

/// Plans made for one removal: each further one means that somebody gave the image a name, or took one, in the blink of
/// an eye between plan and deed.
const ATTEMPTS: usize = 100;

/// What a removal is about.
struct Situation<'a> {
    image: Digest,
    /// All names of the image, in the order of the alphabet.
    names: Vec<ReferenceKey>,
    /// The name that was given; `None` for an id.
    name: Option<&'a ReferenceKey>,
    /// As the user typed it.
    typed: &'a str,
    /// Containers of the image, those that run marked.
    users: &'a [(String, bool)],
    force: bool,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Names to remove, in order.
    untag: Vec<ReferenceKey>,
    /// Remove the image as well.
    delete: bool,
}

/// Removes a name or an image.
pub(super) async fn remove(shared: &Arc<Shared>, typed: &str, force: bool) -> Result<Vec<Removal>> {
    for _ in 0..ATTEMPTS {
        if let Some(report) = attempt(shared, typed, force).await? {
            return Ok(report);
        }
        tracing::debug!(
            image = typed,
            "its names have changed; planning its removal again"
        );
    }
    Err(Error::conflict(format!(
        "conflict: the names of {typed} change all the time"
    )))
}

/// `None` when the image got or lost a name between plan and deed; then nothing was done.
async fn attempt(shared: &Arc<Shared>, typed: &str, force: bool) -> Result<Option<Vec<Removal>>> {
    let catalog = shared.store.catalog();
    let found = match find::find(&catalog, typed) {
        Err(error) => return remove_damaged(shared, typed, force, error).await.map(Some),
        found => found?,
    };
    let id = found.image.id;
    let names: Vec<ReferenceKey> = catalog.names_of(&id).map(|(name, _)| name.clone()).collect();
    let plan = plan(&Situation {
        image: id,
        names: names.clone(),
        name: found.name.as_ref(),
        typed,
        users: &shared.users(&id),
        force,
    })?;
    // The labels are part of the events and gone with the image.
    let mut attributes = shared.labels(&id);
    attributes.insert("name".to_owned(), id.to_string());
    let store = shared.store.clone();
    let in_store = RemovalPlan {
        names: plan.untag.clone(),
        image: plan.delete.then_some(id),
        seen: Some(SeenNames { image: id, names }),
    };
    let Some(removed) = super::pull::blocking(move || carry_out(&store, &in_store)).await? else {
        return Ok(None);
    };
    free_space(shared);
    let mut report = Vec::new();
    for name in &plan.untag {
        report.push(Removal::Untagged(convert::familiar(name)));
        shared
            .events
            .publish("image", "untag", id.to_string(), attributes.clone());
    }
    if plan.delete {
        report.push(Removal::Deleted(id.to_string()));
        report.extend(
            removed
                .layers
                .iter()
                .map(|layer| Removal::Deleted(layer.to_string())),
        );
        shared
            .events
            .publish("image", "delete", id.to_string(), attributes);
    }
    Ok(Some(report))
}

/// `None` when the plan does not fit any more.
fn carry_out(store: &Store, plan: &RemovalPlan) -> Result<Option<Removed>> {
    match store.remove(plan) {
        Err(error) if error.kind() == skiff_store::ErrorKind::Conflict => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// Takes the name of an image away that cannot be read any more, or such an image by its id; `not_found` when there is
/// none.
async fn remove_damaged(
    shared: &Arc<Shared>,
    typed: &str,
    force: bool,
    not_found: Error,
) -> Result<Vec<Removal>> {
    let reference = skiff_registry_client::Reference::parse(typed);
    let name = reference.ok().and_then(|reference| convert::key(&reference).ok());
    let (store, typed) = (shared.store.clone(), typed.to_owned());
    super::pull::blocking(move || {
        if let Some(name) = name
            && store.forget_damaged(&name)?
        {
            return Ok(vec![Removal::Untagged(convert::familiar(&name))]);
        }
        let Some((id, names)) = store.forget_damaged_image(&typed, force)? else {
            return Err(not_found);
        };
        let untagged = names
            .iter()
            .map(|name| Removal::Untagged(convert::familiar(name)));
        Ok(untagged.chain([Removal::Deleted(id.to_string())]).collect())
    })
    .await
}

/// Frees the space in the background: a layer of a hundred thousand files takes its time.
pub(super) fn free_space(shared: &Shared) {
    let store = shared.store.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = store.purge() {
            tracing::warn!(%error, "cannot free the space of removed images");
        }
    });
}

fn plan(situation: &Situation<'_>) -> Result<Plan> {
    match situation.name {
        Some(name) => plan_by_name(situation, name),
        None => plan_by_id(situation),
    }
}

/// A name was given: it goes, with the digests that came with it, and the image when nothing else holds it.
fn plan_by_name(situation: &Situation<'_>, name: &ReferenceKey) -> Result<Plan> {
    let Situation {
        image,
        names,
        typed,
        users,
        force,
        ..
    } = situation;
    if let Some((container, _)) = users.first()
        && !force
        && is_single(names)
    {
        return Err(Error::conflict(format!(
            "conflict: unable to remove repository reference {typed:?} (must force) - container {} is using its \
             referenced image {}",
            short(container),
            image.short()
        )));
    }
    let mut untag = vec![name.clone()];
    let mut rest: Vec<&ReferenceKey> = names.iter().filter(|other| *other != name).collect();
    let is_tag = |name: &ReferenceKey| matches!(name.selector, Selector::Tag(_));
    let same_repository = |other: &ReferenceKey| other.repository == name.repository;
    if is_tag(name) && !rest.iter().any(|other| is_tag(other) && same_repository(other)) {
        untag.extend(
            rest.iter()
                .filter(|other| same_repository(other))
                .map(|other| (*other).clone()),
        );
        rest.retain(|other| !same_repository(other));
    }
    // With containers left, a forced removal of the last name leaves the image without one.
    let in_use = users.iter().any(|(_, running)| *running || !force);
    Ok(Plan {
        untag,
        delete: rest.is_empty() && !in_use,
    })
}

/// An id was given: the image goes with all its names.
fn plan_by_id(situation: &Situation<'_>) -> Result<Plan> {
    let Situation {
        image,
        names,
        users,
        force,
        ..
    } = situation;
    let conflict = |force: &str, why: String| {
        Err(Error::conflict(format!(
            "conflict: unable to delete {} ({force}) - {why}",
            image.short()
        )))
    };
    if let Some((container, _)) = users.iter().find(|(_, running)| *running) {
        let why = format!("image is being used by running container {}", short(container));
        return conflict("cannot be forced", why);
    }
    if !force {
        if !is_single(names) {
            return conflict(
                "must be forced",
                "image is referenced in multiple repositories".to_owned(),
            );
        }
        if let Some((container, _)) = users.first() {
            let why = format!("image is being used by stopped container {}", short(container));
            return conflict("must be forced", why);
        }
    }
    Ok(Plan {
        untag: names.clone(),
        delete: true,
    })
}

/// Whether the names are, for a user, one: at most one tag, and digests of the same repository only.
fn is_single(names: &[ReferenceKey]) -> bool {
    let tags = names
        .iter()
        .filter(|name| matches!(name.selector, Selector::Tag(_)))
        .count();
    let repositories: HashSet<&str> = names.iter().map(|name| name.repository.as_str()).collect();
    names.len() <= 1 || (tags <= 1 && repositories.len() == 1)
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:aaaaaaaaaaaa0000000000000000000000000000000000000000000000000000";
    const TAG: &str = "docker.io/library/busybox:latest";
    const DIGEST: &str =
        "docker.io/library/busybox@sha256:bbbbbbbbbbbb0000000000000000000000000000000000000000000000000000";
    const OTHER: &str = "docker.io/library/other:1";

    fn keys(names: &[&str]) -> Vec<ReferenceKey> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn decide(names: &[&str], by: Option<&str>, users: &[(&str, bool)], force: bool) -> Result<Plan, String> {
        let name = by.map(|name| name.parse().unwrap());
        let users: Vec<_> = users
            .iter()
            .map(|(id, running)| (id.repeat(64), *running))
            .collect();
        let situation = Situation {
            image: ID.parse().unwrap(),
            names: keys(names),
            name: name.as_ref(),
            typed: "busybox",
            users: &users,
            force,
        };
        plan(&situation).map_err(|error| error.to_string())
    }

    #[test]
    fn the_last_tag_takes_its_digest_and_the_image_along() {
        let plan = decide(&[TAG, DIGEST], Some(TAG), &[], false).unwrap();
        assert_eq!(
            plan,
            Plan {
                untag: keys(&[TAG, DIGEST]),
                delete: true
            }
        );
    }

    #[test]
    fn a_further_name_keeps_the_image() {
        let plan = decide(&[TAG, DIGEST, OTHER], Some(TAG), &[("c", true)], false).unwrap();
        assert_eq!(
            plan,
            Plan {
                untag: keys(&[TAG, DIGEST]),
                delete: false
            }
        );
        let plan = decide(&[TAG, DIGEST, OTHER], Some(OTHER), &[], false).unwrap();
        assert_eq!(
            plan,
            Plan {
                untag: keys(&[OTHER]),
                delete: false
            }
        );
    }

    #[test]
    fn a_container_holds_the_last_name_unless_forced() {
        let text = decide(&[TAG, DIGEST], Some(TAG), &[("c", false)], false).unwrap_err();
        assert_eq!(
            text,
            "conflict: unable to remove repository reference \"busybox\" (must force) - container cccccccccccc is using \
             its referenced image aaaaaaaaaaaa"
        );
        let forced = decide(&[TAG, DIGEST], Some(TAG), &[("c", false)], true).unwrap();
        assert!(forced.delete);
        // A running container keeps the image, but not its name.
        let forced = decide(&[TAG, DIGEST], Some(TAG), &[("c", true)], true).unwrap();
        assert_eq!(
            forced,
            Plan {
                untag: keys(&[TAG, DIGEST]),
                delete: false
            }
        );
    }

    #[test]
    fn by_id_all_names_go_or_none() {
        assert_eq!(
            decide(&[TAG, DIGEST], None, &[], false).unwrap(),
            Plan {
                untag: keys(&[TAG, DIGEST]),
                delete: true
            }
        );
        assert_eq!(
            decide(&[TAG, OTHER], None, &[], false).unwrap_err(),
            "conflict: unable to delete aaaaaaaaaaaa (must be forced) - image is referenced in multiple repositories"
        );
        assert!(decide(&[TAG, OTHER], None, &[], true).unwrap().delete);
        assert_eq!(
            decide(&[TAG], None, &[("c", true)], true).unwrap_err(),
            "conflict: unable to delete aaaaaaaaaaaa (cannot be forced) - image is being used by running container \
             cccccccccccc"
        );
        assert_eq!(
            decide(&[TAG], None, &[("c", false)], false).unwrap_err(),
            "conflict: unable to delete aaaaaaaaaaaa (must be forced) - image is being used by stopped container \
             cccccccccccc"
        );
        assert!(decide(&[], None, &[("c", false)], true).unwrap().delete);
    }
}
