//! The tests, by subject.

#[path = "cases/attributes.rs"]
pub(crate) mod attributes;
#[path = "cases/copy_up.rs"]
pub(crate) mod copy_up;
#[path = "cases/handleless.rs"]
pub(crate) mod handleless;
#[path = "cases/kernel.rs"]
pub(crate) mod kernel;
#[path = "cases/layers.rs"]
pub(crate) mod layers;
#[path = "cases/listing.rs"]
pub(crate) mod listing;
#[path = "cases/load.rs"]
pub(crate) mod load;
#[path = "cases/model.rs"]
pub(crate) mod model;
#[path = "cases/names.rs"]
pub(crate) mod names;
