//! Book-keeping of names as a property: whatever is tagged, untagged and removed in whatever order, also across
//! restarts, the store agrees with a plain map and its invariants hold.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::support::{Fixture, TestImage};
use crate::{ErrorKind, ReferenceKey, RemovalPlan};

const NAMES: [&str; 5] = [
    "docker.io/library/a:1",
    "docker.io/library/a:2",
    "docker.io/b/c:1",
    "r:5000/x:1",
    "r:5000/x/y:latest",
];

#[derive(Debug, Clone)]
enum Action {
    Pull(usize, usize),
    Tag(usize, usize),
    Untag(usize),
    Remove(usize),
    Reopen,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        3 => (0..3usize, 0..NAMES.len()).prop_map(|(image, name)| Action::Pull(image, name)),
        3 => (0..3usize, 0..NAMES.len()).prop_map(|(image, name)| Action::Tag(image, name)),
        2 => (0..NAMES.len()).prop_map(Action::Untag),
        1 => (0..3usize).prop_map(Action::Remove),
        1 => Just(Action::Reopen),
    ];
    proptest::collection::vec(action, 1..20)
}

fn key(name: usize) -> ReferenceKey {
    NAMES[name].parse().unwrap()
}

/// Applies an action to store and model; both must agree on whether it is possible.
fn apply(
    action: &Action,
    fixture: &mut Fixture,
    images: &[TestImage],
    model: &mut (BTreeSet<usize>, BTreeMap<usize, usize>),
) {
    let (known, names) = model;
    match *action {
        Action::Pull(image, name) => {
            images[image].pull(&fixture.store, NAMES[name]);
            known.insert(image);
            names.insert(name, image);
        }
        Action::Tag(image, name) => {
            let done = fixture
                .store
                .tag(&images[image].id, key(name))
                .map_err(|e| e.kind());
            if known.contains(&image) {
                done.unwrap();
                names.insert(name, image);
            } else {
                assert_eq!(done, Err(ErrorKind::NotFound));
            }
        }
        Action::Untag(name) => {
            let done = fixture.store.remove(&RemovalPlan {
                names: vec![key(name)],
                image: None,
                seen: None,
            });
            assert_eq!(done.is_ok(), names.remove(&name).is_some());
        }
        Action::Remove(image) => {
            let done = fixture.store.remove(&RemovalPlan {
                names: vec![],
                image: Some(images[image].id),
                seen: None,
            });
            assert_eq!(done.is_ok(), known.remove(&image));
            names.retain(|_, named| *named != image);
        }
        Action::Reopen => fixture.reopen(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn names_agree_with_a_map(actions in actions()) {
        let images = [TestImage::new(&["base", "0"]), TestImage::new(&["base", "1"]), TestImage::new(&["2"])];
        let mut fixture = Fixture::new();
        let mut model = (BTreeSet::new(), BTreeMap::new());
        for action in &actions {
            apply(action, &mut fixture, &images, &mut model);
            let catalog = fixture.store.catalog();
            let stored: BTreeMap<ReferenceKey, _> =
                catalog.references.iter().map(|(name, reference)| (name.clone(), reference.image)).collect();
            let expected: BTreeMap<ReferenceKey, _> =
                model.1.iter().map(|(name, image)| (key(*name), images[*image].id)).collect();
            prop_assert_eq!(stored, expected);
            prop_assert_eq!(catalog.images.len(), model.0.len());
            prop_assert_eq!(fixture.store.check(false).unwrap(), Vec::<String>::new());
        }
        // What no image needs is gone without a collection.
        let needed = fixture.store.catalog().needed_layers().len();
        prop_assert_eq!(fixture.store.driver().list().unwrap().len(), needed);
    }
}
