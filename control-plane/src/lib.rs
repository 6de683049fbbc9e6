//! The control plane: reads the cluster, compiles it, and tells every proxy what it needs.

pub mod catalog;
