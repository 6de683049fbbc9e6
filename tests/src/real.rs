//! Programs that nobody here wrote, as clients and servers in the pods of a lab.
//!
//! Every test runs twice: in a namespace without the mesh, where it must succeed, too, and in a
//! meshed one. A failure so says whether the mesh is to blame.

mod programs;
mod ran;
mod stage;
mod suite;

pub use programs::{Program, require};
pub use ran::Ran;
pub use stage::{Background, Stage};
pub use suite::{Side, Suite, eventually, sides};
