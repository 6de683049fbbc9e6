//! What can go wrong with a connection or a request, and the one table that says what follows from
//! it: who is to blame, what the caller is told, what metrics and logs call it, whether the policy may
//! try again.
//!
//! Only what a caller may meet is here. Failures of the control side (configuration, certificates,
//! discovery) never become an answer: they live in their modules, and the caller meets their effect,
//! such as [`Reason::NotReady`].

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use heddle_api::identity::SpiffeId;
use heddle_policy::retry::Failure;

use crate::http1::{BadResponse, Refusal};
use crate::tls::PeerRefusal;

/// Whose fault it is, as far as the proxy that says so can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The caller: repeating the same request will not help.
    Source,
    /// The called workload, or the way to it.
    Destination,
    /// The mesh itself.
    Us,
}

/// Which proxy makes the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MadeBy {
    /// The caller's.
    Outbound,
    /// The called workload's.
    Inbound,
    /// Either; the header `heddle-error-proxy` says which.
    Both,
}

/// A gRPC status code that the mesh answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Grpc {
    /// The deadline that a policy sets has passed.
    DeadlineExceeded = 4,
    /// The caller may not.
    PermissionDenied = 7,
    /// A limit was reached.
    ResourceExhausted = 8,
    /// Not spoken here.
    Unimplemented = 12,
    /// An invariant is broken on one of the sides.
    Internal = 13,
    /// Worth trying again later.
    Unavailable = 14,
}

/// What follows from a [`Reason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Value of `heddle-error`, metric label, log field.
    pub name: &'static str,
    /// HTTP status of the answer.
    pub status: u16,
    /// gRPC status of the answer.
    pub grpc: Grpc,
    /// Whose fault.
    pub blame: Blame,
    /// Who answers so.
    pub made_by: MadeBy,
}

/// Writes the enum, the list of its values and the match over them from one table, so that a reason
/// cannot be in one and not in the others.
macro_rules! reasons {
    ($($variant:ident => $name:literal $status:literal $grpc:ident $blame:ident $made_by:ident,)*) => {
        /// Why the proxy answered, refused or reset by itself. A closed set: docs/errors.md explains
        /// every one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $(#[doc = concat!("`", $name, "`")] $variant,)* }

        impl Reason {
            /// Every reason, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// What follows from it.
            #[must_use]
            pub const fn facts(self) -> Facts {
                match self {
                    $(Self::$variant => Facts {
                        name: $name,
                        status: $status,
                        grpc: Grpc::$grpc,
                        blame: Blame::$blame,
                        made_by: MadeBy::$made_by,
                    },)*
                }
            }
        }
    };
}

reasons! {
    // The way to the destination.
    NoEndpoints => "no-endpoints" 503 Unavailable Destination Outbound,
    ConnectFailed => "connect-failed" 503 Unavailable Destination Both,
    ConnectTimeout => "connect-timeout" 504 Unavailable Destination Both,
    HandshakeFailed => "handshake-failed" 503 Unavailable Destination Both,
    HandshakeTimeout => "handshake-timeout" 504 Unavailable Destination Both,
    PeerCertificateRefused => "peer-certificate-refused" 503 Unavailable Destination Both,
    PeerIdentityMismatch => "peer-identity-mismatch" 503 Unavailable Destination Outbound,
    MeshProtocolRefused => "mesh-protocol-refused" 503 Unavailable Destination Outbound,
    NotDelivered => "not-delivered" 503 Unavailable Destination Both,
    ConnectionLost => "connection-lost" 502 Unavailable Destination Both,
    ResponseMalformed => "response-malformed" 502 Internal Destination Both,
    NoRoute => "no-route" 404 Unimplemented Source Outbound,
    NoBackend => "no-backend" 500 Unavailable Destination Outbound,
    InvalidBackend => "invalid-backend" 500 Unavailable Destination Outbound,
    RequestTimeout => "request-timeout" 504 DeadlineExceeded Destination Outbound,
    PerTryTimeout => "per-try-timeout" 504 DeadlineExceeded Destination Outbound,
    IdleTimeout => "idle-timeout" 504 DeadlineExceeded Destination Both,
    // The proxy's own state.
    CertificateExpired => "certificate-expired" 503 Unavailable Us Both,
    NotReady => "not-ready" 503 Unavailable Us Both,
    DestinationUnknownYet => "destination-unknown-yet" 503 Unavailable Us Outbound,
    ControlPlaneUnreachable => "control-plane-unreachable" 503 Unavailable Us Outbound,
    Draining => "draining" 503 Unavailable Us Both,
    Overload => "overload" 503 Unavailable Us Both,
    Internal => "internal" 500 Internal Us Both,
    // What policy forbids.
    PassthroughDenied => "passthrough-denied" 403 PermissionDenied Source Outbound,
    AuthorizationDenied => "authorization-denied" 403 PermissionDenied Source Inbound,
    PlaintextRefused => "plaintext-refused" 403 PermissionDenied Source Inbound,
    LoopRefused => "loop-refused" 403 PermissionDenied Source Both,
    // What the caller sent.
    ProtocolMismatch => "protocol-mismatch" 502 Internal Source Both,
    MalformedRequest => "malformed-request" 400 Internal Source Both,
    AmbiguousPath => "ambiguous-path" 400 Internal Source Both,
    HeaderLimit => "header-limit" 431 ResourceExhausted Source Both,
    HeadTimeout => "head-timeout" 408 DeadlineExceeded Source Both,
    UpgradeRefused => "upgrade-refused" 501 Unimplemented Source Both,
}

impl Reason {
    /// Value of `heddle-error`, metric label, log field.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.facts().name
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a connection or a request did not go as asked. `Display` says its own level; the cause is the
/// source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The backend drawn has nobody to answer.
    #[error("{0} has no ready endpoint")]
    NoEndpoints(Arc<str>),
    /// TCP connect failed.
    #[error("{0} does not accept connections")]
    ConnectFailed(SocketAddr, #[source] io::Error),
    /// TCP connect took too long.
    #[error("{0} did not accept a connection in time")]
    ConnectTimeout(SocketAddr),
    /// TLS between the proxies failed for another reason than the ones below.
    #[error("mesh TLS failed")]
    HandshakeFailed(#[source] io::Error),
    /// See [`crate::tls::HANDSHAKE_TIMEOUT`].
    #[error("mesh TLS took longer than {} s", crate::tls::HANDSHAKE_TIMEOUT.as_secs())]
    HandshakeTimeout,
    /// The peer's certificate proves no identity of this mesh.
    #[error("the peer's certificate is refused")]
    PeerCertificateRefused(#[source] PeerRefusal),
    /// The peer proved another identity than the control plane says the endpoint has.
    #[error("the endpoint belongs to {expected}, but its certificate proves {found}")]
    PeerIdentityMismatch {
        /// From the control plane.
        expected: Box<SpiffeId>,
        /// From the certificate.
        found: Box<SpiffeId>,
    },
    /// The peer chose no or another application protocol than was offered.
    #[error("the peer does not speak {offered} of the mesh")]
    MeshProtocolRefused {
        /// The protocol that was asked for.
        offered: &'static str,
    },
    /// The inbound proxy proved that the application never saw the request.
    #[error("the request was not delivered to the application")]
    NotDelivered,
    /// The connection ended before the answer did.
    #[error("the connection was lost before the answer was complete")]
    ConnectionLost(#[source] io::Error),
    /// The destination's answer is not one.
    #[error("{0}")]
    ResponseMalformed(BadResponse),
    /// Routes are attached to the port, and no rule matches.
    #[error("no rule of the routes of {0} matches the request")]
    NoRoute(Arc<str>),
    /// The rule has nobody to send to.
    #[error("{0} names no backend with a weight above 0")]
    NoBackend(Arc<str>),
    /// The rule's backend is a reference that leads nowhere.
    #[error("{0} names a backend that does not exist")]
    InvalidBackend(Arc<str>),
    /// `timeouts.request` of the policy or of the route.
    #[error("the request took longer than its policy allows")]
    RequestTimeout,
    /// `timeouts.perTry` of the policy, `timeouts.backendRequest` of the route.
    #[error("the attempt took longer than its policy allows")]
    PerTryTimeout,
    /// Nothing moved for too long.
    #[error("nothing moved on the connection for too long")]
    IdleTimeout,
    /// Our own certificate is no longer valid: no handshake, and never plaintext instead.
    #[error("the proxy's own certificate has expired")]
    CertificateExpired,
    /// No certificate or no configuration yet.
    #[error("the proxy is not ready: {0}")]
    NotReady(&'static str),
    /// The control plane has not said yet who owns the address.
    #[error("the control plane has not said in time what {0} is")]
    DestinationUnknownYet(SocketAddr),
    /// The control plane is away and has never said who owns the address.
    #[error("the control plane is unreachable and has never said what {0} is")]
    ControlPlaneUnreachable(SocketAddr),
    /// The proxy is on its way out.
    #[error("the proxy is stopping")]
    Draining,
    /// A limit of the proxy is reached.
    #[error("the proxy is at its limit of {0}")]
    Overload(&'static str),
    /// An invariant is broken.
    #[error("broken invariant: {0}")]
    Internal(&'static str),
    /// `Mesh.outboundPassthrough` is `Deny` and nobody in the mesh owns the address.
    #[error("{0} is outside the mesh, and outboundPassthrough denies that")]
    PassthroughDenied(SocketAddr),
    /// The decision of the inbound policy, with the rule that made it.
    #[error("denied by {0}")]
    AuthorizationDenied(Arc<str>),
    /// Strict, and not mesh TLS.
    #[error("the port takes mesh TLS only")]
    PlaintextRefused,
    /// A dial to one of the proxy's own ports.
    #[error("{0} is a port of the proxy itself")]
    LoopRefused(SocketAddr),
    /// The port's declared protocol is not what was spoken.
    #[error("the port is declared {declared}, and something else was spoken")]
    ProtocolMismatch {
        /// What the Service declares.
        declared: &'static str,
    },
    /// The request's framing is refused. Answered with the refusal's own status and name.
    #[error("malformed request: {0}")]
    MalformedRequest(Refusal),
    /// The path could mean two things on a port with path rules.
    #[error("the path could mean two things, and a policy judges paths here")]
    AmbiguousPath,
    /// The path would walk out of the prefix that the rule puts it under.
    #[error("the path has a dot segment, and {0} puts it under another prefix")]
    DotSegment(Arc<str>),
    /// Too many or too long header fields.
    #[error("the header fields exceed a limit: {0}")]
    HeaderLimit(&'static str),
    /// The request's head did not arrive in time.
    #[error("the head of the request did not arrive in time")]
    HeadTimeout,
    /// The upgrade asked for is not done.
    #[error("the upgrade is refused: {0}")]
    UpgradeRefused(&'static str),
}

impl Error {
    /// The closed-table reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NoEndpoints(_) => Reason::NoEndpoints,
            Self::ConnectFailed(..) => Reason::ConnectFailed,
            Self::ConnectTimeout(_) => Reason::ConnectTimeout,
            Self::HandshakeFailed(_) => Reason::HandshakeFailed,
            Self::HandshakeTimeout => Reason::HandshakeTimeout,
            Self::PeerCertificateRefused(_) => Reason::PeerCertificateRefused,
            Self::PeerIdentityMismatch { .. } => Reason::PeerIdentityMismatch,
            Self::MeshProtocolRefused { .. } => Reason::MeshProtocolRefused,
            Self::NotDelivered => Reason::NotDelivered,
            Self::ConnectionLost(_) => Reason::ConnectionLost,
            Self::ResponseMalformed(_) => Reason::ResponseMalformed,
            Self::NoRoute(_) => Reason::NoRoute,
            Self::NoBackend(_) => Reason::NoBackend,
            Self::InvalidBackend(_) => Reason::InvalidBackend,
            Self::RequestTimeout => Reason::RequestTimeout,
            Self::PerTryTimeout => Reason::PerTryTimeout,
            Self::IdleTimeout => Reason::IdleTimeout,
            Self::CertificateExpired => Reason::CertificateExpired,
            Self::NotReady(_) => Reason::NotReady,
            Self::DestinationUnknownYet(_) => Reason::DestinationUnknownYet,
            Self::ControlPlaneUnreachable(_) => Reason::ControlPlaneUnreachable,
            Self::Draining => Reason::Draining,
            Self::Overload(_) => Reason::Overload,
            Self::Internal(_) => Reason::Internal,
            Self::PassthroughDenied(_) => Reason::PassthroughDenied,
            Self::AuthorizationDenied(_) => Reason::AuthorizationDenied,
            Self::PlaintextRefused => Reason::PlaintextRefused,
            Self::LoopRefused(_) => Reason::LoopRefused,
            Self::ProtocolMismatch { .. } => Reason::ProtocolMismatch,
            Self::MalformedRequest(_) => Reason::MalformedRequest,
            Self::AmbiguousPath | Self::DotSegment(_) => Reason::AmbiguousPath,
            Self::HeaderLimit(_) => Reason::HeaderLimit,
            Self::HeadTimeout => Reason::HeadTimeout,
            Self::UpgradeRefused(_) => Reason::UpgradeRefused,
        }
    }

    /// Value of `heddle-error`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        if let Self::MalformedRequest(refusal) = self {
            return refusal.reason();
        }
        self.reason().name()
    }

    /// HTTP status of the answer.
    #[must_use]
    pub fn status(&self) -> u16 {
        if let Self::MalformedRequest(refusal) = self {
            return refusal.status();
        }
        self.reason().facts().status
    }

    /// What the retry policy needs to know; `None` when trying again cannot help or may not be done.
    #[must_use]
    pub const fn failure(&self) -> Option<Failure> {
        match self.reason() {
            // No byte of the request has left.
            Reason::ConnectFailed
            | Reason::ConnectTimeout
            | Reason::HandshakeFailed
            | Reason::HandshakeTimeout
            | Reason::PeerCertificateRefused
            | Reason::PeerIdentityMismatch
            | Reason::MeshProtocolRefused => Some(Failure::NotConnected),
            Reason::NotDelivered => Some(Failure::NotProcessed),
            Reason::ConnectionLost | Reason::ResponseMalformed | Reason::PerTryTimeout => {
                Some(Failure::Unknown)
            }
            Reason::NoEndpoints
            | Reason::NoRoute
            | Reason::NoBackend
            | Reason::InvalidBackend
            | Reason::RequestTimeout
            | Reason::IdleTimeout
            | Reason::CertificateExpired
            | Reason::NotReady
            | Reason::DestinationUnknownYet
            | Reason::ControlPlaneUnreachable
            | Reason::Draining
            | Reason::Overload
            | Reason::Internal
            | Reason::PassthroughDenied
            | Reason::AuthorizationDenied
            | Reason::PlaintextRefused
            | Reason::LoopRefused
            | Reason::ProtocolMismatch
            | Reason::MalformedRequest
            | Reason::AmbiguousPath
            | Reason::HeaderLimit
            | Reason::HeadTimeout
            | Reason::UpgradeRefused => None,
        }
    }
}

impl Reason {
    /// The reason a peer's proxy gave in its `heddle-error` field.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name().as_bytes() == value)
    }
}

/// Writes an error and all its causes on one line, for logs.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_kebab_case_and_unique() {
        let mut seen = BTreeSet::new();
        for (index, reason) in Reason::ALL.iter().enumerate() {
            let name = reason.name();
            assert_eq!(*reason as usize, index);
            assert!(seen.insert(name), "{name} twice");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
        }
    }

    const PAGE: &str = include_str!("../../docs/errors.md");

    /// The first `columns` of the table rows between two headings of the page.
    fn rows(from: &str, to: &str, columns: usize) -> BTreeSet<String> {
        let section = PAGE.split(from).nth(1).expect("the heading is there");
        let section = section.split(to).next().expect("the first part of a split");
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        rows.map(|line| line.split('|').take(columns + 1).collect::<Vec<_>>().join("|")).collect()
    }

    #[test]
    fn the_page_lists_every_framing_refusal() {
        let want: BTreeSet<String> = Refusal::ALL
            .iter()
            .map(|refusal| format!("| `{}` | {} ", refusal.reason(), refusal.status()))
            .collect();
        assert_eq!(rows("## Refused framing", "\n## ", 2), want);
    }

    /// docs/errors.md holds one row for each reason with exactly these facts.
    #[test]
    fn the_page_says_the_same() {
        let want: BTreeSet<String> = Reason::ALL
            .iter()
            .map(|reason| {
                let facts = reason.facts();
                format!(
                    "| `{}` | {} | {} {:?} | {} | {} ",
                    facts.name,
                    facts.status,
                    facts.grpc as u8,
                    facts.grpc,
                    format!("{:?}", facts.blame).to_lowercase(),
                    format!("{:?}", facts.made_by).to_lowercase(),
                )
            })
            .collect();
        assert_eq!(rows("## Reasons", "\n## ", 5), want);
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        let cause = io::Error::other("reset by peer");
        let error = Error::ConnectionLost(cause);
        assert_eq!(
            Chain(&error).to_string(),
            "the connection was lost before the answer was complete: reset by peer"
        );
    }

    #[test]
    fn only_what_provably_was_not_sent_counts_as_not_connected() {
        let address: SocketAddr = "10.0.0.1:80".parse().expect("an address");
        for (error, want) in [
            (Error::ConnectTimeout(address), Some(Failure::NotConnected)),
            (Error::NotDelivered, Some(Failure::NotProcessed)),
            (Error::PerTryTimeout, Some(Failure::Unknown)),
            (Error::ConnectionLost(io::Error::other("x")), Some(Failure::Unknown)),
            (Error::RequestTimeout, None),
            (Error::CertificateExpired, None),
            (Error::AuthorizationDenied("p".into()), None),
        ] {
            assert_eq!(error.failure(), want, "{error}");
        }
    }
}
