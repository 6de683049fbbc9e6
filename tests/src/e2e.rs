//! The mesh on a real cluster: installed by its charts, in namespaces of a test's own, under load
//! that records every request, with the servers' ledgers to hold against it.
//!
//! Nothing here knows how the mesh works; what must hold is said by each test.

mod installed;
mod ledgers;
mod load;
mod space;
mod watch;

pub use installed::{CONTROL_PLANE, NAMESPACE, install};
pub use ledgers::Ledgers;
pub use load::{Load, Plan};
pub use space::{SHOP, SPLIT, Space};
pub use watch::Watch;

pub use crate::demo::statistics::binomial_range;
