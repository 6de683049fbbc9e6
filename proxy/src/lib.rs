//! The sidecar: takes over a pod's TCP traffic, gives it identity, policy, routing and telemetry.

pub mod app;
pub mod balance;
pub mod canary;
pub mod config;
pub mod control;
pub mod control_plane;
pub mod detect;
pub mod detect_memory;
pub mod discovery;
pub mod error;
pub mod exchange;
pub mod flood;
pub mod hop;
pub mod http;
pub mod http1;
pub mod http2;
pub mod identity;
pub mod inbound;
pub mod listener;
pub mod metrics;
pub mod outbound;
pub mod pool;
pub mod probe;
pub mod snapshot;
pub mod stream;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod worker;

#[cfg(test)]
mod direct;
