//! The sidecar: takes over a pod's TCP traffic, gives it identity, policy, routing and telemetry.

pub mod balance;
pub mod http;
pub mod snapshot;
