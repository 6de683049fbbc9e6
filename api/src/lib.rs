//! The wire contract between control plane and proxy: protobuf messages, identities, and the names
//! and numbers both sides must agree on. Data only: no sockets, no clock, no tasks.

pub mod identity;
pub mod names;
pub mod probes;
#[cfg(feature = "proto")]
pub mod proto;
