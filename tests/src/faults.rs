//! Faults under load: a small mesh in a lab, clients that record every request, servers that keep
//! a ledger, and the account of both.
//!
//! What a fault is, and what clients may notice of it, is said by each test. Here is only what all
//! of them need: nothing here knows how the mesh works.

mod account;
mod cases;
mod rogue;
mod scripted;
mod time;
mod traffic;
mod wire;
mod world;

pub use account::{Account, Window};
pub use cases::Cases;
pub use rogue::Rogue;
pub use scripted::Scripted;
pub use time::{eventually, now_us, pause};
pub use traffic::{Plan, Traffic};
pub use wire::Wire;
pub use world::World;
