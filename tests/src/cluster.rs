//! Real Kubernetes for tests: an API server by itself, and whole clusters of one or two nodes.
//!
//! The programs are Kubernetes' own, built by `scripts/kubernetes`. Nothing here imitates any of
//! them, and nothing outlives the test or the command that asked for it.

pub mod api;
pub mod kubeconfig;
pub mod pki;
pub mod programs;

mod daemon;
mod etcd;
mod server_arguments;
