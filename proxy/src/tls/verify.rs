//! Who a certificate proves: chain, validity, purpose, and exactly one SPIFFE id in the URI SAN.
//!
//! The roots and the trust domain stand in one immutable [`TrustBundle`], so that no caller can check
//! the one and forget the other. Names, common names and DNS SANs are never looked at.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_api::identity::{ParseError, SpiffeId};
use heddle_api::names;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError};
use rustls::{PeerIncompatible, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longer chains are refused before a signature of them is checked: ours have one or two.
const MAX_CHAIN: usize = 5;
/// More roots than any rotation needs.
const MAX_ROOTS: usize = 64;
/// RFC 5280, 4.2.1.12: the purpose must be stated, unlike webpki's own default.
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// What a verified certificate proves. Made here only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its identity.
    pub id: SpiffeId,
    /// The leaf's serial number.
    pub serial: Serial,
}

/// A certificate's serial number, printed in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serial(Box<[u8]>);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a certificate is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Proves who accepts a connection.
    Server,
    /// Proves who opens one.
    Client,
}

/// Why a certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefusal {
    /// None was presented.
    #[error("no certificate was presented")]
    NoCertificate,
    /// The chain has more certificates than are looked at.
    #[error("the chain has more than {MAX_CHAIN} certificates")]
    ChainTooLong,
    /// Signed by somebody else, for instance by the control plane of another mesh, or altered.
    #[error("the certificate chains to no root of the trust bundle")]
    UnknownIssuer,
    /// By our clock.
    #[error("the certificate has expired")]
    Expired,
    /// By our clock.
    #[error("the certificate is not valid yet: compare the clocks of the two nodes")]
    NotYetValid,
    /// `extendedKeyUsage` lacks client or server authentication.
    #[error("the certificate is not for this use")]
    WrongUsage,
    /// Everything else that webpki or rustls refuse.
    #[error("the certificate is not acceptable: {0}")]
    Malformed(Arc<str>),
    /// There is no URI SAN, more than one, or a SAN that cannot be read.
    #[error("the certificate must hold exactly one URI SAN, it holds {0}")]
    NotOneUri(usize),
    /// The URI SAN is not a SPIFFE id of the form used here.
    #[error("the certificate's URI SAN is no identity")]
    NotSpiffe(#[source] ParseError),
    /// Another mesh's.
    #[error("{0} is not of this trust domain")]
    ForeignTrustDomain(SpiffeId),
}

impl PeerRefusal {
    /// The refusal inside of a handshake's error.
    #[must_use]
    #[expect(clippy::wildcard_enum_match_arm, reason = "the library adds kinds at will")]
    pub(super) fn find(error: &rustls::Error) -> Option<Self> {
        let error = match error {
            rustls::Error::InvalidCertificate(error) => error,
            rustls::Error::NoCertificatesPresented => return Some(Self::NoCertificate),
            _ => return None,
        };
        Some(match error {
            CertificateError::Expired => Self::Expired,
            CertificateError::NotValidYet => Self::NotYetValid,
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::Other(OtherError(inner)) if inner.is::<Self>() => {
                inner.downcast_ref::<Self>()?.clone()
            }
            other => Self::Malformed(format!("{other:?}").into()),
        })
    }

    /// For rustls, which tells the peer with the fitting alert.
    fn into_rustls(self) -> rustls::Error {
        let error = match self {
            Self::Expired => CertificateError::Expired,
            Self::NotYetValid => CertificateError::NotValidYet,
            Self::UnknownIssuer => CertificateError::UnknownIssuer,
            Self::NoCertificate => return rustls::Error::NoCertificatesPresented,
            Self::ChainTooLong
            | Self::WrongUsage
            | Self::Malformed(_)
            | Self::NotOneUri(_)
            | Self::NotSpiffe(_)
            | Self::ForeignTrustDomain(_) => CertificateError::Other(OtherError(Arc::new(self))),
        };
        rustls::Error::InvalidCertificate(error)
    }
}

impl From<webpki::Error> for PeerRefusal {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the library adds kinds at will")]
    fn from(error: webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { .. } => Self::Expired,
            E::CertNotValidYet { .. } => Self::NotYetValid,
            // Two meshes' roots may bear the same name: then it is the signature that gives away the
            // stranger.
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => Self::UnknownIssuer,
            E::RequiredEkuNotFoundContext(_) => Self::WrongUsage,
            other => Self::Malformed(format!("{other:?}").into()),
        }
    }
}

/// The roots of one trust domain. Never empty.
pub struct TrustBundle {
    trust_domain: Arc<str>,
    control_plane: SpiffeId,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

/// Why some bytes are not a trust bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// No certificate in it.
    #[error("the trust bundle holds no certificate")]
    Empty,
    /// Too many.
    #[error("the trust bundle holds more than {MAX_ROOTS} certificates")]
    TooMany,
    /// One of them cannot be read; counted from 0.
    #[error("certificate {index} of the trust bundle cannot be used: {message}")]
    Certificate {
        /// Position in the bundle.
        index: usize,
        /// What is wrong with it.
        message: Arc<str>,
    },
    /// The trust domain cannot be one.
    #[error("the trust domain cannot be used")]
    TrustDomain(#[source] ParseError),
}

impl TrustBundle {
    /// Takes DER certificates; the same one twice counts once.
    ///
    /// # Errors
    /// Names the certificate that cannot be used.
    pub fn new(
        trust_domain: Arc<str>,
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let control_plane = SpiffeId::new(
            &trust_domain,
            names::CONTROL_PLANE_NAMESPACE,
            names::CONTROL_PLANE_SERVICE_ACCOUNT,
        )
        .map_err(BundleError::TrustDomain)?;
        let (mut roots, mut anchors) = (Vec::new(), Vec::new());
        for (index, root) in certificates.into_iter().enumerate() {
            if roots.contains(&root) {
                continue;
            }
            if roots.len() == MAX_ROOTS {
                return Err(BundleError::TooMany);
            }
            let anchor = webpki::anchor_from_trusted_cert(&root).map_err(|error| {
                BundleError::Certificate { index, message: format!("{error:?}").into() }
            })?;
            anchors.push(anchor.to_owned());
            roots.push(root);
        }
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        Ok(Self { trust_domain, control_plane, roots, anchors })
    }

    /// Takes PEM; other sections than certificates are passed over.
    ///
    /// # Errors
    /// Names the certificate that cannot be used.
    pub fn from_pem(trust_domain: Arc<str>, pem: &[u8]) -> Result<Self, BundleError> {
        let sections = CertificateDer::pem_slice_iter(pem).enumerate().map(|(index, section)| {
            section.map_err(|error| BundleError::Certificate {
                index,
                message: error.to_string().into(),
            })
        });
        Self::new(trust_domain, sections.collect::<Result<Vec<_>, _>>()?)
    }

    /// Both sets of roots.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut all = Self {
            trust_domain: Arc::clone(&self.trust_domain),
            control_plane: self.control_plane.clone(),
            roots: self.roots.clone(),
            anchors: self.anchors.clone(),
        };
        for (root, anchor) in other.roots.iter().zip(&other.anchors) {
            if !all.roots.contains(root) {
                all.roots.push(root.clone());
                all.anchors.push(anchor.clone());
            }
        }
        all
    }

    /// True when both hold the same roots, in whatever order.
    #[must_use]
    pub fn same_roots(&self, other: &Self) -> bool {
        self.roots.len() == other.roots.len()
            && self.roots.iter().all(|root| other.roots.contains(root))
    }

    /// How many roots.
    #[must_use]
    pub fn len(&self) -> usize {
        self.roots.len()
    }

    /// Never; a bundle without roots cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// What the control plane's certificate must prove.
    #[must_use]
    pub const fn control_plane(&self) -> &SpiffeId {
        &self.control_plane
    }

    /// Checks a chain, leaf first: signatures up to a root, validity at `now`, purpose, identity.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<Peer, PeerRefusal> {
        let (leaf, intermediates) = chain.split_first().ok_or(PeerRefusal::NoCertificate)?;
        if intermediates.len() >= MAX_CHAIN {
            return Err(PeerRefusal::ChainTooLong);
        }
        let purpose = match usage {
            Usage::Server => SERVER_AUTH,
            Usage::Client => CLIENT_AUTH,
        };
        EndEntityCert::try_from(leaf)?.verify_for_usage(
            super::provider().signature_verification_algorithms.all,
            &self.anchors,
            intermediates,
            now,
            KeyUsage::required(purpose),
            None,
            None,
        )?;
        self.peer_identity(leaf)
    }

    /// The identity in a certificate. Checks no signature: call it on what [`Self::verify`] or a
    /// handshake has accepted.
    ///
    /// # Errors
    /// The certificate does not hold exactly one identity of our trust domain.
    pub(crate) fn peer_identity(&self, leaf: &CertificateDer<'_>) -> Result<Peer, PeerRefusal> {
        let certificate = parse(leaf)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| PeerRefusal::Malformed(error.to_string().into()))?
            .map_or(&[][..], |extension| &extension.value.general_names);
        // What the parser could not read might be a URI to somebody else, so it counts.
        let is_uri = |name: &&GeneralName<'_>| {
            matches!(name, GeneralName::URI(_) | GeneralName::Invalid(..))
        };
        let uris: Vec<_> = names.iter().filter(is_uri).collect();
        let [GeneralName::URI(uri)] = uris[..] else {
            return Err(PeerRefusal::NotOneUri(uris.len()));
        };
        let id: SpiffeId = uri.parse().map_err(PeerRefusal::NotSpiffe)?;
        if id.trust_domain() != &*self.trust_domain {
            return Err(PeerRefusal::ForeignTrustDomain(id));
        }
        Ok(Peer { id, serial: Serial(certificate.raw_serial().into()) })
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({}, {} roots)", self.trust_domain, self.roots.len())
    }
}

/// Begin and end of life of a chain's leaf.
pub(super) fn validity(
    chain: &[CertificateDer<'_>],
) -> Result<(SystemTime, SystemTime), PeerRefusal> {
    let certificate = parse(chain.first().ok_or(PeerRefusal::NoCertificate)?)?;
    let validity = certificate.validity();
    Ok((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

fn time(seconds: i64) -> Result<SystemTime, PeerRefusal> {
    let seconds = u64::try_from(seconds);
    let seconds = seconds.map_err(|_| PeerRefusal::Malformed("dated before 1970".into()))?;
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PeerRefusal> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err(PeerRefusal::Malformed("bytes after the certificate".into())),
        Err(error) => Err(PeerRefusal::Malformed(error.to_string().into())),
    }
}

/// Joins a bundle to rustls, for both directions.
#[derive(Debug)]
pub(super) struct Verifier(pub(super) Arc<TrustBundle>);

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        self.0.verify(&chain, usage, now).map_err(PeerRefusal::into_rustls)?;
        Ok(())
    }
}

/// Both traits ask the same of signatures.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let algorithms = &super::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            super::provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, Usage::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, Usage::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}
