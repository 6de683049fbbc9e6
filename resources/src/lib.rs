//! The YAML contract: our kinds, the Kubernetes kinds we read, reading and validation. Given text,
//! it answers objects or errors; it opens no file and knows no cluster.

pub mod crd;
pub mod gateway;
pub mod inject;
pub mod kinds;
pub mod path;
pub mod reader;
pub mod validate;

pub use kinds::{Kind, Object, ObjectKey};
