//! What is only ever written: the JSON of objects as clients see them, derived from the domain's views.
//! Field names, order and emptiness (`null`, `[]`, absent) are the Engine API's; clients compare them.

pub(crate) mod container;
pub(crate) mod image;
pub(crate) mod network;
