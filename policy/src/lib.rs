//! The decisions of the mesh, pure and synchronous: which backend, whether allowed, whether to try
//! again. Each returns its reason.
//!
//! No I/O, no clock, no randomness of its own: time and random numbers are arguments. The same code
//! runs in the proxy, in admission and in explanations, which is what makes them agree.

pub mod authorize;
pub mod invalid;
pub mod path;
pub mod retry;
pub mod route;
pub mod split;

pub use invalid::Invalid;
