//! SPIFFE identities: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! A [`SpiffeId`] is made from configuration the control plane vouches for, or from the one URI SAN
//! of a verified certificate; nothing else in the mesh builds one. There is no `Default`: no identity
//! is `None`, and `None` is denied.

use std::fmt;
use std::str::FromStr;

/// Longest accepted SPIFFE id in bytes (SPIFFE-ID specification, section 2.3).
pub const MAX_LEN: usize = 2048;

/// A workload's identity. Compared as a tuple of parts, never as a pattern.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: Box<str>,
    namespace: Box<str>,
    service_account: Box<str>,
}

/// Why a string is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Longer than [`MAX_LEN`] or holds a byte outside printable ASCII.
    #[error("not printable ASCII of at most {MAX_LEN} bytes")]
    NotAscii,
    /// The scheme, the path's shape, or the number of its segments is another.
    #[error("not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Shape,
    /// See the SPIFFE-ID specification, section 2.1.
    #[error("trust domain must be 1 to 255 of a-z, 0-9, '.', '-', '_'")]
    TrustDomain,
    /// Not an RFC 1123 label.
    #[error("namespace must be an RFC 1123 label: 1 to 63 of a-z, 0-9, '-', not at either end")]
    Namespace,
    /// Not an RFC 1123 subdomain.
    #[error(
        "service account must be an RFC 1123 subdomain: 1 to 253 of a-z, 0-9, '-', '.', \
         each part beginning and ending with a letter or digit"
    )]
    ServiceAccount,
}

impl SpiffeId {
    /// Builds an identity from its parts, checking each.
    ///
    /// # Errors
    /// Names the part that is not acceptable.
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, ParseError> {
        if !is_trust_domain(trust_domain) {
            return Err(ParseError::TrustDomain);
        }
        if !is_label(namespace) {
            return Err(ParseError::Namespace);
        }
        if !is_subdomain(service_account) {
            return Err(ParseError::ServiceAccount);
        }
        Ok(Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }

    /// The authority that vouches for the identity.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Kubernetes namespace of the workload.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Kubernetes service account of the workload.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl FromStr for SpiffeId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.len() > MAX_LEN || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ParseError::NotAscii);
        }
        let rest = text.strip_prefix("spiffe://").ok_or(ParseError::Shape)?;
        let mut parts = rest.split('/');
        let (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseError::Shape);
        };
        Self::new(trust_domain, namespace, account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// True for an acceptable SPIFFE trust domain name.
#[must_use]
pub fn is_trust_domain(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

/// True for an RFC 1123 label, what Kubernetes asks of a namespace's or Service's name.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| alphanumeric(b) || b == b'-')
        && text.bytes().next().is_some_and(alphanumeric)
        && text.bytes().next_back().is_some_and(alphanumeric)
}

/// True for an RFC 1123 subdomain, what Kubernetes asks of most objects' names.
#[must_use]
pub fn is_subdomain(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=253).contains(&text.len())
        && text.split('.').all(|part| {
            part.bytes().all(|b| alphanumeric(b) || b == b'-')
                && part.bytes().next().is_some_and(alphanumeric)
                && part.bytes().next_back().is_some_and(alphanumeric)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints_the_same_text() {
        for text in
            ["spiffe://cluster.local/ns/shop/sa/web", "spiffe://a_b.c-d/ns/x/sa/team.a.runner-1"]
        {
            assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_everything_else() {
        let long = format!("spiffe://td/ns/a/sa/{}", "a".repeat(MAX_LEN));
        for (text, want) in [
            ("", ParseError::Shape),
            ("http://td/ns/a/sa/b", ParseError::Shape),
            ("SPIFFE://td/ns/a/sa/b", ParseError::Shape),
            ("spiffe://td/ns/a/sa", ParseError::Shape),
            ("spiffe://td/ns/a/sa/b/", ParseError::Shape),
            ("spiffe://td/ns/a/sa/b/c", ParseError::Shape),
            ("spiffe://td/sa/a/ns/b", ParseError::Shape),
            ("spiffe://td:8080/ns/a/sa/b", ParseError::TrustDomain),
            ("spiffe://u@td/ns/a/sa/b", ParseError::TrustDomain),
            ("spiffe://TD/ns/a/sa/b", ParseError::TrustDomain),
            ("spiffe:///ns/a/sa/b", ParseError::TrustDomain),
            ("spiffe://td/ns//sa/b", ParseError::Namespace),
            ("spiffe://td/ns/a.b/sa/b", ParseError::Namespace),
            ("spiffe://td/ns/../sa/b", ParseError::Namespace),
            ("spiffe://td/ns/a/sa/", ParseError::ServiceAccount),
            ("spiffe://td/ns/a/sa/b?x", ParseError::ServiceAccount),
            ("spiffe://td/ns/a/sa/b%2f", ParseError::ServiceAccount),
            ("spiffe://td/ns/a/sa/-b", ParseError::ServiceAccount),
            ("spiffe://td/ns/a/sa/b.", ParseError::ServiceAccount),
            ("spiffe://td/ns/a/sa/b\0", ParseError::NotAscii),
            ("spiffe://td/ns/a/sa/b c", ParseError::NotAscii),
            ("spiffe://td/ns/ä/sa/b", ParseError::NotAscii),
            (long.as_str(), ParseError::NotAscii),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(want), "{text:?}");
        }
    }
}
