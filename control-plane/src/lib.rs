//! The control plane: reads the cluster, compiles it, and tells every proxy what it needs.

pub mod admin;
pub mod admission;
pub mod app;
pub mod authn;
pub mod ca;
pub mod catalog;
pub mod compile;
pub mod conditions;
pub mod config;
pub mod control;
pub mod discovery;
pub mod error;
pub mod files;
#[cfg(test)]
mod fixture;
pub mod index;
pub mod indexing;
pub mod kubernetes;
pub mod metrics;
pub mod replica;
pub mod served;
mod state;
mod traffic;
pub mod version;
