//! Why a resource from the wire is not acceptable: the field, and what it should hold.

use heddle_api::proto::v1::RejectionReason;

/// A resource that cannot be used. `path` names the field within the resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Invalid {
    /// Machine-readable class, reported to the control plane.
    pub reason: RejectionReason,
    /// Field, for instance `backends[2].weight`.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl Invalid {
    /// A value outside its range.
    #[must_use]
    pub fn value(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: RejectionReason::InvalidValue, path: path.into(), message: message.into() }
    }

    /// The same, seen from the message that holds the field.
    #[must_use]
    pub(crate) fn within(mut self, parent: &str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.path = format!("{parent}{dot}{}", self.path);
        self
    }
}
