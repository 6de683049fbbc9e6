//! `heddle.v1`, generated from `api/proto` at build time.

/// Messages, clients and servers of `heddle.v1`. What each field means is said in the proto files.
#[allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("heddle.v1");
}
