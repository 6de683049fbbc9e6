//! The scaffold that both daemons share. Knows nothing of proxies or control planes.

pub mod admin;
pub mod backoff;
pub mod drain;
pub mod process;
pub mod signal;
pub mod telemetry;
