//! The certificate authority: one issuing key, leaves signed from CSRs.
//!
//! Of a CSR only the public key and the proof that the caller holds its private half are used; the
//! name, usages and life of a leaf are chosen here. Whether the caller may have the identity is not
//! decided here (see `authn`).

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_api::identity::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::AuthoritySource;
use crate::error::Error;
use crate::state;

pub mod bundle;
pub mod rotation;
pub mod secret;

/// Peers' clocks may be behind ours by this.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Largest CSR that is looked at.
pub const CSR_LIMIT: usize = 8 * 1024;

/// Signs leaves.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Sent after each leaf: what stands between it and a root.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
    leaf_lifetime: Duration,
    /// Of the issuing certificate: tells one authority from another, also over a restart.
    fingerprint: String,
    lifetime: Duration,
}

/// A signed leaf.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The leaf first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    pub not_after: SystemTime,
    /// Lower-case hexadecimal, for the audit log.
    pub serial: String,
}

/// Why a CSR is not signed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the CSR is larger than {CSR_LIMIT} bytes")]
    TooLarge,
    #[error("the CSR is not PKCS#10 in DER")]
    Malformed,
    #[error("the CSR's signature does not prove its key")]
    Unproven,
    #[error("the CSR's key is not ECDSA P-256")]
    KeyType,
    #[error("the issuing certificate has expired")]
    IssuerExpired,
    #[error("signing failed")]
    Signing(#[from] rcgen::Error),
}

impl Refusal {
    /// Label of the refusal in metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge => "csr_too_large",
            Self::Malformed => "csr_malformed",
            Self::Unproven => "csr_unproven",
            Self::KeyType => "csr_key_type",
            Self::IssuerExpired => "issuer_expired",
            Self::Signing(_) => "signing_failed",
        }
    }
}

impl Authority {
    /// Reads the issuing certificate, or makes a root in `state_dir`/ca on first start.
    ///
    /// # Errors
    /// When a file is missing, readable by others, or does not belong to the rest.
    pub fn open(
        source: &AuthoritySource,
        state_dir: &Path,
        leaf_lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, Error> {
        match source {
            AuthoritySource::Own => Self::open_own(&state_dir.join("ca"), leaf_lifetime, now),
            AuthoritySource::Given { root, intermediate, key } => {
                Self::open_given(root, intermediate, key, leaf_lifetime, now)
            }
        }
    }

    fn open_own(dir: &Path, leaf_lifetime: Duration, now: SystemTime) -> Result<Self, Error> {
        state::create_dir(dir, 0o700)?;
        state::check_private_dir(dir)?;
        let (certificate_path, key_path) = (dir.join("root.pem"), dir.join("root.key"));
        let key = match state::read_secret(&key_path)? {
            Some(pem) => parse_key(&key_path, &pem)?,
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                let certificate = make_root(&key, now)?;
                // The certificate first: a key without one would look like a lost root.
                write(&certificate_path, certificate.pem().as_bytes(), 0o644)?;
                write(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
                tracing::info!(path = %certificate_path.display(), "made a new root");
                key
            }
        };
        let root = read_certificates(&certificate_path)?.remove(0);
        Self::assemble(&certificate_path, vec![root.clone()], vec![root], key, leaf_lifetime, now)
    }

    fn open_given(
        root_path: &Path,
        intermediate_path: &Path,
        key_path: &Path,
        leaf_lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let roots = read_certificates(root_path)?;
        let chain = read_certificates(intermediate_path)?;
        let Some(pem) = state::read_secret(key_path)? else {
            return Err(Error::content(key_path, "does not exist"));
        };
        let key = parse_key(key_path, &pem)?;
        for root in &roots {
            check_ca(root_path, root)?;
        }
        Self::assemble(intermediate_path, chain, roots, key, leaf_lifetime, now)
    }

    /// `chain` begins with the issuing certificate and leads to one of `roots`, which may be its end.
    fn assemble(
        path: &Path,
        mut chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        key: KeyPair,
        leaf_lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let first = chain[0].clone();
        let issuer = load_issuer(path, &first, key)?;
        // Nobody needs to be sent a root: who does not hold it would not believe it.
        if let Some(end) = chain.iter().position(|certificate| roots.contains(certificate)) {
            chain.truncate(end);
        }
        check_path(path, &chain, &roots)?;
        let not_after = check_life(path, std::iter::once(&first).chain(&chain), now)?;
        let began = time(check_ca(path, &first)?.validity().not_before.timestamp());
        let lifetime = not_after.duration_since(began).unwrap_or_default();
        let fingerprint = fingerprint(&first);
        let intermediates = chain;
        Ok(Self { issuer, intermediates, roots, not_after, leaf_lifetime, fingerprint, lifetime })
    }

    /// Signs a leaf for `identity` over the public key of `csr`.
    ///
    /// # Errors
    /// When the CSR is not acceptable or the issuer has expired.
    pub fn issue(
        &self,
        identity: &SpiffeId,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<Issued, Refusal> {
        let key = proven_key(csr)?;
        self.sign(identity, &key, now)
    }

    /// Signs a leaf over a key of our own.
    ///
    /// # Errors
    /// When the issuer has expired.
    pub fn issue_own(
        &self,
        identity: &SpiffeId,
        key: &KeyPair,
        now: SystemTime,
    ) -> Result<Issued, Refusal> {
        self.sign(identity, key, now)
    }

    /// The authority's own roots, at least one.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// End of life of the issuing certificate, or of what stands between it and the roots.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// SHA-256 of the issuing certificate in lower-case hexadecimal.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// How long it lives in all.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// How long the leaves it signs live.
    #[must_use]
    pub fn leaf_lifetime(&self) -> Duration {
        self.leaf_lifetime
    }

    fn sign(
        &self,
        identity: &SpiffeId,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Issued, Refusal> {
        if self.not_after <= now {
            return Err(Refusal::IssuerExpired);
        }
        let not_after = (now + self.leaf_lifetime).min(self.not_after);
        let serial = random_serial()?;
        let mut params = CertificateParams::default();
        // Nobody reads the subject; an empty one makes the SAN critical.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = not_after.into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let leaf = params.signed_by(key, &self.issuer)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        Ok(Issued { chain, not_after, serial: hex(&serial) })
    }
}

fn make_root(key: &KeyPair, now: SystemTime) -> Result<rcgen::Certificate, Error> {
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // Unlike any other root's, so that a chain is never tried against the wrong one.
    params
        .distinguished_name
        .push(DnType::CommonName, format!("heddle root {}", hex(&serial[..4])));
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params.self_signed(key)?)
}

fn load_issuer(
    path: &Path,
    certificate: &CertificateDer<'static>,
    key: KeyPair,
) -> Result<Issuer<'static, KeyPair>, Error> {
    let parsed = check_ca(path, certificate)?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(Error::content(path, "is not the certificate of the key beside it"));
    }
    Ok(Issuer::from_ca_cert_der(certificate, key)?)
}

/// The earliest end of life, which must lie ahead; none may begin later.
fn check_life<'a>(
    path: &Path,
    certificates: impl Iterator<Item = &'a CertificateDer<'static>>,
    now: SystemTime,
) -> Result<SystemTime, Error> {
    let mut end = None;
    for certificate in certificates {
        let validity = check_ca(path, certificate)?.validity().clone();
        if time(validity.not_before.timestamp()) > now + CLOCK_SKEW {
            return Err(Error::content(path, "is not valid yet; is the clock right?"));
        }
        let not_after = time(validity.not_after.timestamp());
        if not_after <= now {
            return Err(Error::content(path, "has expired; replace it"));
        }
        end = Some(end.map_or(not_after, |end: SystemTime| end.min(not_after)));
    }
    end.ok_or_else(|| Error::content(path, "holds no certificate"))
}

/// Each intermediate must be signed by the next, the last by a root.
fn check_path(
    path: &Path,
    intermediates: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
) -> Result<(), Error> {
    for (position, certificate) in intermediates.iter().enumerate() {
        let signed = check_ca(path, certificate)?;
        let signers = match intermediates.get(position + 1) {
            Some(next) => std::slice::from_ref(next),
            None => roots,
        };
        let proven = signers.iter().any(|signer| {
            X509Certificate::from_der(signer).is_ok_and(|(_, signer)| {
                signed.issuer().as_raw() == signer.subject().as_raw()
                    && signed.verify_signature(Some(signer.public_key())).is_ok()
            })
        });
        if !proven {
            return Err(Error::content(
                path,
                format!(
                    "certificate {} is not signed by the one after it, or by a root that was given",
                    position + 1
                ),
            ));
        }
    }
    Ok(())
}

fn check_ca<'a>(
    path: &Path,
    certificate: &'a CertificateDer<'static>,
) -> Result<X509Certificate<'a>, Error> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| Error::content(path, format!("holds no X.509 certificate: {error}")))?;
    if !parsed.is_ca() {
        return Err(Error::content(path, "holds a certificate that is not a CA's"));
    }
    if let Ok(Some(usage)) = parsed.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err(Error::content(path, "holds a CA's certificate without the usage keyCertSign"));
    }
    Ok(parsed)
}

/// The key of a CSR whose signature proves that the caller holds the private half.
fn proven_key(csr: &[u8]) -> Result<SubjectPublicKeyInfo, Refusal> {
    if csr.len() > CSR_LIMIT {
        return Err(Refusal::TooLarge);
    }
    let (rest, parsed) = X509CertificationRequest::from_der(csr).map_err(|_| Refusal::Malformed)?;
    if !rest.is_empty() {
        return Err(Refusal::Malformed);
    }
    let raw = parsed.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(raw).map_err(|_| Refusal::KeyType)?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(Refusal::KeyType);
    }
    parsed.verify_signature().map_err(|_| Refusal::Unproven)?;
    Ok(key)
}

/// 128 random bits, the first cleared: serial numbers are positive.
fn random_serial() -> Result<[u8; 16], rcgen::Error> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| rcgen::Error::RingUnspecified)?;
    serial[0] &= 0x7f;
    Ok(serial)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let Some(pem) = state::read_public(path)? else {
        return Err(Error::content(path, "does not exist"));
    };
    parse_certificates(&pem).map_err(|problem| Error::content(path, problem))
}

fn parse_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("is not PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("holds no certificate; write PEM, BEGIN CERTIFICATE".to_owned());
    }
    Ok(certificates)
}

fn parse_key(path: &Path, pem: &[u8]) -> Result<KeyPair, Error> {
    // Not the parsers' messages: they might quote the key.
    let der = PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| Error::content(path, "is not a private key in PEM; write PKCS#8"))?;
    KeyPair::try_from(&der).map_err(|_| {
        Error::content(path, "holds a key of no usable kind; write ECDSA P-256 in PKCS#8")
    })
}

/// When the first of these ends.
pub(crate) fn ends_first(roots: &[CertificateDer<'static>]) -> Option<SystemTime> {
    roots.iter().filter_map(|root| end_of_life(Path::new("root"), root)).min()
}

/// When a CA's certificate ends.
pub(crate) fn end_of_life(
    path: &Path,
    certificate: &CertificateDer<'static>,
) -> Option<SystemTime> {
    let parsed = check_ca(path, certificate).ok()?;
    Some(time(parsed.validity().not_after.timestamp()))
}

/// SHA-256 in lower-case hexadecimal.
#[must_use]
pub(crate) fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate).as_ref())
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    state::write_atomic(path, content, mode).map_err(Error::file("write", path))
}

fn time(unix: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
