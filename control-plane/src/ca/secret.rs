//! The trust root as a Secret holds it, in the layout of cert-manager: `tls.crt` the issuing
//! certificate and what stands between it and a root, `tls.key` its key, `ca.crt` the roots. Reads
//! and makes the content; knows nothing of the API server.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;

use super::bundle::{ROOT_LIMIT, parse_roots};
use super::{Authority, check_ca, end_of_life, make_root, parse_certificates, parse_key};
use crate::error::Error;

/// Key of the issuing certificate.
pub const CERTIFICATE: &str = "tls.crt";
/// Key of its private key.
pub const KEY: &str = "tls.key";
/// Key of the roots.
pub const ROOTS: &str = "ca.crt";
/// Longest chain from the issuer to a root.
const CHAIN_LIMIT: usize = 8;

/// What a Secret says.
#[derive(Debug)]
pub struct Given {
    pub authority: Authority,
    /// Roots in it that have expired, which are left out.
    pub expired: usize,
}

/// Reads the three keys.
///
/// # Errors
/// When one is missing or does not belong to the rest; says what to write.
pub fn read<V: AsRef<[u8]>>(
    data: &BTreeMap<String, V>,
    leaf_lifetime: Duration,
    now: SystemTime,
) -> Result<Given, Error> {
    let value = |key: &str| data.get(key).map(AsRef::as_ref).filter(|value| !value.is_empty());
    let required =
        |key: &str| value(key).ok_or_else(|| Error::content(Path::new(key), "is missing or empty"));
    let [certificate, key, roots] = [CERTIFICATE, KEY, ROOTS].map(Path::new);
    let chain = parse_certificates(required(CERTIFICATE)?)
        .map_err(|problem| Error::content(certificate, problem))?;
    if chain.len() > CHAIN_LIMIT {
        let problem = format!("holds {} certificates; at most {CHAIN_LIMIT} are used", chain.len());
        return Err(Error::content(certificate, problem));
    }
    let given = match value(ROOTS) {
        Some(pem) => parse_roots(pem).map_err(|problem| Error::content(roots, problem))?,
        // A root that signs by itself needs no second copy.
        None => Vec::new(),
    };
    let given = if given.is_empty() { self_signed(&chain) } else { given };
    if given.is_empty() {
        let problem = "is missing or empty; write the roots that tls.crt leads to";
        return Err(Error::content(roots, problem));
    }
    let (kept, expired): (Vec<_>, Vec<_>) =
        given.into_iter().partition(|root| is_alive(roots, root, now));
    if kept.is_empty() {
        return Err(Error::content(roots, "holds expired certificates only; replace them"));
    }
    let signer = parse_key(key, required(KEY)?)?;
    let authority = Authority::assemble(certificate, chain, kept, signer, leaf_lifetime, now)?;
    Ok(Given { authority, expired: expired.len() })
}

/// The content of a new Secret: a root that signs by itself.
///
/// # Errors
/// When no key can be made.
pub fn make(now: SystemTime) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = make_root(&key, now)?.pem().into_bytes();
    Ok(BTreeMap::from([
        (CERTIFICATE.to_owned(), certificate.clone()),
        (KEY.to_owned(), key.serialize_pem().into_bytes()),
        (ROOTS.to_owned(), certificate),
    ]))
}

/// Whether a root has not expired. TLS libraries do not look at this date, so it is looked at here.
pub(crate) fn is_alive(path: &Path, root: &CertificateDer<'static>, now: SystemTime) -> bool {
    end_of_life(path, root).is_some_and(|end| end > now)
}

fn self_signed(chain: &[CertificateDer<'static>]) -> Vec<CertificateDer<'static>> {
    let is_root = |certificate: &&CertificateDer<'static>| {
        check_ca(Path::new(CERTIFICATE), certificate)
            .is_ok_and(|parsed| parsed.verify_signature(None).is_ok())
    };
    chain.iter().filter(is_root).take(ROOT_LIMIT).cloned().collect()
}

#[cfg(test)]
mod tests;
