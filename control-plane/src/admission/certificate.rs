//! The serving pair of the webhooks and its renewal, decided from what the Secret holds. Pure but for
//! the making of keys: the time is an argument.
//!
//! Each pair has a CA of its own, whose key is thrown away: what is stored can sign nothing. A new
//! pair is first kept beside the one that is served, with its CA among those the API server trusts;
//! it is served once the API server has been told. The old CA stays until it expires, so a replica
//! that is late serves what is still trusted.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::error::Error;

/// Key of the chain that is served.
pub const CERTIFICATE: &str = "tls.crt";
/// Key of its private key.
pub const KEY: &str = "tls.key";
/// Key of the CAs that the API server is to trust.
pub const ROOTS: &str = "ca.crt";
/// Key of the chain that is served next.
const NEXT_CERTIFICATE: &str = "next.crt";
/// Key of its private key.
const NEXT_KEY: &str = "next.key";

const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// A month is left when a new pair is made.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// API servers hear of a changed configuration within seconds.
const SETTLE: Duration = Duration::from_secs(30);
/// The API server's clock may be behind ours by this.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// A Secret's content, key by key.
pub type Data = BTreeMap<String, Vec<u8>>;

/// What is to be written, and why, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub data: Data,
    pub why: &'static str,
}

/// The names by which the API server calls a Service, and the one by which a person reaches it
/// through a port-forward.
#[must_use]
pub fn names(service: &str, namespace: &str) -> Vec<String> {
    let name = format!("{service}.{namespace}.svc");
    let names = [format!("{name}.cluster.local"), format!("{service}.{namespace}"), name];
    names.into_iter().chain(["localhost".to_owned()]).collect()
}

/// What the Secret should hold; `None` when it holds that. `is_told`: every webhook's configuration
/// names the CAs that the Secret holds now.
///
/// # Errors
/// When no key can be made.
pub fn plan(
    data: Option<&Data>,
    names: &[String],
    is_told: bool,
    now: SystemTime,
) -> Result<Option<Write>, Error> {
    let Some(data) = data else {
        return make(names, now).map(|pair| Some(pair.replace("there was none")));
    };
    let Some(served) = Life::read(data, CERTIFICATE, KEY, names, now) else {
        // Nobody can be served by it: there is nothing to wait for.
        return make(names, now).map(|pair| Some(pair.replace("it could not be used")));
    };
    if data.contains_key(NEXT_CERTIFICATE) || data.contains_key(NEXT_KEY) {
        return Ok(match Life::read(data, NEXT_CERTIFICATE, NEXT_KEY, names, now) {
            None => Some(drop_next(data)),
            Some(next) if is_told && next.made + SETTLE <= now => Some(promote(data, now)),
            Some(_) => None,
        });
    }
    if served.ends <= now + RENEW_BEFORE {
        let pair = make(names, now)?;
        let mut data = data.clone();
        let roots = data.entry(ROOTS.to_owned()).or_default();
        roots.extend_from_slice(pair.root.as_bytes());
        data.insert(NEXT_CERTIFICATE.to_owned(), pair.chain.into_bytes());
        data.insert(NEXT_KEY.to_owned(), pair.key.into_bytes());
        return Ok(Some(Write { data, why: "it ends within a month" }));
    }
    Ok(None)
}

/// The CAs for the configurations, in PEM.
#[must_use]
pub fn roots(data: &Data) -> &[u8] {
    data.get(ROOTS).map(Vec::as_slice).unwrap_or_default()
}

/// Reads a chain and its key, which must belong together.
///
/// # Errors
/// Says which of the two cannot be used.
pub fn parse(
    chain: &[u8],
    key: &[u8],
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let content = |path: &'static str, problem: &str| Error::content(Path::new(path), problem);
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| content(CERTIFICATE, &format!("is not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(content(CERTIFICATE, "holds no certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| content(KEY, &format!("holds no private key in PEM: {error}")))?;
    let provider = aws_lc_rs::default_provider();
    CertifiedKey::from_der(certificates.clone(), key.clone_key(), &provider)?;
    Ok((certificates, key))
}

/// When a pair begins and ends.
struct Life {
    made: SystemTime,
    ends: SystemTime,
}

impl Life {
    /// `None` when it cannot be served now, or not by all of `names`.
    fn read(
        data: &Data,
        chain: &str,
        key: &str,
        names: &[String],
        now: SystemTime,
    ) -> Option<Self> {
        let (chain, _) = parse(data.get(chain)?, data.get(key)?).ok()?;
        let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
        let seconds =
            |at: i64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(at.try_into().ok()?));
        let validity = leaf.validity();
        let life = Self {
            made: seconds(validity.not_before.timestamp())? + CLOCK_SKEW,
            ends: seconds(validity.not_after.timestamp())?,
        };
        let alternatives = leaf.subject_alternative_name().ok()??.value;
        let has = |name: &String| {
            let mut all = alternatives.general_names.iter();
            all.any(|one| matches!(one, GeneralName::DNSName(dns) if dns == name))
        };
        (life.ends > now && names.iter().all(has)).then_some(life)
    }
}

/// A new pair in PEM, and the CA it chains to.
struct Pair {
    chain: String,
    key: String,
    root: String,
}

impl Pair {
    fn replace(self, why: &'static str) -> Write {
        let data = BTreeMap::from([
            (CERTIFICATE.to_owned(), self.chain.into_bytes()),
            (KEY.to_owned(), self.key.into_bytes()),
            (ROOTS.to_owned(), self.root.into_bytes()),
        ]);
        Write { data, why }
    }
}

fn make(names: &[String], now: SystemTime) -> Result<Pair, Error> {
    let (not_before, not_after) = ((now - CLOCK_SKEW).into(), (now + LIFETIME).into());
    let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut root = CertificateParams::default();
    root.distinguished_name = DistinguishedName::new();
    // Unlike any other's, so that a chain is never tried against the wrong one.
    let name = format!("heddle webhook {:08x}", rand::random::<u32>());
    root.distinguished_name.push(DnType::CommonName, name);
    root.not_before = not_before;
    root.not_after = not_after;
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = root.self_signed(&root_key)?;
    let issuer = Issuer::new(root, root_key);

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    let name = |name: &String| Ok(SanType::DnsName(name.clone().try_into()?));
    leaf.subject_alt_names = names.iter().map(name).collect::<Result<_, rcgen::Error>>()?;
    leaf.not_before = not_before;
    leaf.not_after = not_after;
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let leaf = leaf.signed_by(&key, &issuer)?;
    Ok(Pair { chain: leaf.pem(), key: key.serialize_pem(), root: certificate.pem() })
}

fn drop_next(data: &Data) -> Write {
    let mut data = data.clone();
    data.remove(NEXT_CERTIFICATE);
    data.remove(NEXT_KEY);
    Write { data, why: "what was to be served next could not be used" }
}

fn promote(data: &Data, now: SystemTime) -> Write {
    let mut data = data.clone();
    for (next, served) in [(NEXT_CERTIFICATE, CERTIFICATE), (NEXT_KEY, KEY)] {
        let value = data.remove(next).unwrap_or_default();
        data.insert(served.to_owned(), value);
    }
    let kept = alive(roots(&data), now);
    data.insert(ROOTS.to_owned(), kept.into_bytes());
    Write { data, why: "the API server trusts the next one" }
}

/// The certificates of `pem` that have not expired.
fn alive(pem: &[u8], now: SystemTime) -> String {
    let text = String::from_utf8_lossy(pem);
    let end = "-----END CERTIFICATE-----";
    let blocks = text.split_inclusive(end).filter(|block| block.contains(end));
    let lives = |block: &&str| {
        let der = CertificateDer::from_pem_slice(block.as_bytes()).ok();
        der.is_some_and(|der| {
            X509Certificate::from_der(&der).is_ok_and(|(_, certificate)| {
                let ends = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
                SystemTime::UNIX_EPOCH + Duration::from_secs(ends) > now
            })
        })
    };
    blocks.filter(lives).map(|block| format!("{}\n", block.trim_start())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn wanted() -> Vec<String> {
        names("heddle-control-plane", "heddle-system")
    }

    fn next(data: Option<&Data>, is_told: bool, now: SystemTime) -> Option<Write> {
        plan(data, &wanted(), is_told, now).unwrap()
    }

    fn count(data: &Data) -> usize {
        String::from_utf8_lossy(roots(data)).matches("BEGIN CERTIFICATE").count()
    }

    /// As the API server would: some CA of the bundle leads to what is served.
    fn is_trusted(data: &Data, now: SystemTime) -> bool {
        let mut store = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots(data)) {
            store.add(root.unwrap()).unwrap();
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider);
        let (chain, _) = parse(&data[CERTIFICATE], &data[KEY]).unwrap();
        let name = "heddle-control-plane.heddle-system.svc".try_into().unwrap();
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let now = rustls_pki_types::UnixTime::since_unix_epoch(since);
        let verifier = verifier.build().unwrap();
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now).is_ok()
    }

    use rustls::client::danger::ServerCertVerifier as _;
    use std::sync::Arc;

    #[test]
    fn a_new_pair_is_trusted_before_it_is_served_and_the_old_one_until_it_ends() {
        let now = SystemTime::now();
        let first = next(None, false, now).unwrap().data;
        assert!(is_trusted(&first, now));
        assert_eq!(next(Some(&first), true, now + DAY * 59), None);

        let due = now + DAY * 61;
        let staged = next(Some(&first), true, due).unwrap().data;
        assert_eq!((count(&staged), &staged[CERTIFICATE]), (2, &first[CERTIFICATE]));
        assert!(is_trusted(&staged, due));
        let later = due + SETTLE * 2;
        assert_eq!(next(Some(&staged), false, later), None, "the API server has not been told");
        assert_eq!(next(Some(&staged), true, due), None, "it may not have heard yet");

        let promoted = next(Some(&staged), true, later).unwrap().data;
        assert_ne!(promoted[CERTIFICATE], first[CERTIFICATE]);
        assert_eq!((count(&promoted), promoted.len()), (2, 3));
        assert!(is_trusted(&promoted, later));
        let late = Data::from([
            (CERTIFICATE.to_owned(), first[CERTIFICATE].clone()),
            (KEY.to_owned(), first[KEY].clone()),
            (ROOTS.to_owned(), promoted[ROOTS].clone()),
        ]);
        assert!(is_trusted(&late, later), "a replica that is late is trusted");

        // The first CA has expired by the time of the next change.
        let due = later + DAY * 61;
        let staged = next(Some(&promoted), true, due).unwrap().data;
        let promoted = next(Some(&staged), true, due + SETTLE * 2).unwrap().data;
        assert_eq!(count(&promoted), 2);
        assert!(is_trusted(&promoted, due));
    }

    #[test]
    fn what_nobody_can_be_served_by_is_replaced_at_once() {
        let now = SystemTime::now();
        let good = next(None, false, now).unwrap().data;
        let other = next(None, false, now).unwrap().data;
        let change = |key: &str, value: &[u8]| {
            let mut data = good.clone();
            data.insert(key.to_owned(), value.to_vec());
            data
        };
        for (data, at) in [
            (Data::new(), now),
            (good.clone(), now + DAY * 91),
            (change(CERTIFICATE, b"x"), now),
            (change(KEY, b""), now),
            (change(KEY, &other[KEY]), now),
            (plan(None, &["web.shop.svc".to_owned()], false, now).unwrap().unwrap().data, now),
        ] {
            let write = next(Some(&data), true, at).unwrap();
            assert!(is_trusted(&write.data, at), "{data:?}");
            assert_eq!(next(Some(&write.data), true, at), None);
        }
        let spoilt = change(NEXT_CERTIFICATE, b"x");
        assert_eq!(next(Some(&spoilt), true, now).unwrap().data, good);
    }
}
