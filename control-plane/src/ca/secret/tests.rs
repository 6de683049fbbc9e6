//! Secrets as cert-manager and operators write them, and what may be wrong with one.

use heddle_api::identity::SpiffeId;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> SystemTime {
    SystemTime::now()
}

/// A root and an intermediate of it, as an issuer of the operator's would write them.
fn with_intermediate(change: impl FnOnce(&mut CertificateParams)) -> BTreeMap<String, Vec<u8>> {
    let root_key = KeyPair::generate().unwrap();
    let root = make_root(&root_key, now()).unwrap();
    let issuer = Issuer::from_ca_cert_der(root.der(), root_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "an intermediate");
    change(&mut params);
    let intermediate = params.signed_by(&key, &issuer).unwrap();
    BTreeMap::from([
        (CERTIFICATE.to_owned(), intermediate.pem().into_bytes()),
        (KEY.to_owned(), key.serialize_pem().into_bytes()),
        (ROOTS.to_owned(), root.pem().into_bytes()),
    ])
}

fn chain_length(data: &BTreeMap<String, Vec<u8>>) -> usize {
    let authority = read(data, DAY, now()).unwrap().authority;
    let identity: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let key = KeyPair::generate().unwrap();
    authority.issue_own(&identity, &key, now()).unwrap().chain.len()
}

#[test]
fn what_is_made_can_be_read() {
    let data = make(now()).unwrap();
    let given = read(&data, DAY, now()).unwrap();
    assert_eq!((given.authority.roots().len(), given.expired), (1, 0));
    assert_eq!(chain_length(&data), 1, "a root is not sent along");
    let again = read(&data, DAY, now()).unwrap();
    assert_eq!(again.authority.fingerprint(), given.authority.fingerprint());
    let other = read(&make(now()).unwrap(), DAY, now()).unwrap();
    assert_ne!(other.authority.fingerprint(), given.authority.fingerprint());
}

#[test]
fn an_intermediate_is_sent_along_and_its_root_never() {
    let mut data = with_intermediate(|_| {});
    assert_eq!(chain_length(&data), 2);
    let root = data[ROOTS].clone();
    data.get_mut(CERTIFICATE).unwrap().extend_from_slice(&root);
    assert_eq!(chain_length(&data), 2, "also when tls.crt goes up to it");
}

#[test]
fn a_root_that_signs_by_itself_needs_no_ca_crt() {
    let mut data = make(now()).unwrap();
    data.remove(ROOTS);
    assert_eq!(read(&data, DAY, now()).unwrap().authority.roots().len(), 1);
    let mut data = with_intermediate(|_| {});
    data.remove(ROOTS);
    let problem = read(&data, DAY, now()).unwrap_err().to_string();
    assert!(problem.contains("ca.crt: is missing or empty; write the roots"), "{problem}");
}

#[test]
fn several_roots_and_an_expired_one() {
    let mut data = make(now()).unwrap();
    let next = make(now()).unwrap();
    let long_ago = now() - Duration::from_secs(20 * 365 * 24 * 3600);
    let expired = make(long_ago).unwrap();
    for other in [&next, &expired] {
        data.get_mut(ROOTS).unwrap().extend_from_slice(&other[ROOTS]);
    }
    let given = read(&data, DAY, now()).unwrap();
    assert_eq!((given.authority.roots().len(), given.expired), (2, 1));
}

#[test]
fn a_secret_that_cannot_be_used_says_which_key_is_wrong_and_why() {
    let check = |name: &str, data: &BTreeMap<String, Vec<u8>>, want: &str| {
        let problem = crate::error::chain(&read(data, DAY, now()).unwrap_err());
        assert!(problem.contains(want), "{name}: {problem}");
    };
    let with = |key: &str, value: &[u8]| {
        let mut data = make(now()).unwrap();
        data.insert(key.to_owned(), value.to_vec());
        data
    };
    let another = make(now()).unwrap();
    check("no certificate", &with(CERTIFICATE, b""), "tls.crt: is missing or empty");
    check("no PEM", &with(CERTIFICATE, b"x"), "tls.crt: holds no certificate");
    check("no key", &with(KEY, b""), "tls.key: is missing or empty");
    check(
        "a broken key",
        &with(KEY, b"-----BEGIN PRIVATE KEY-----"),
        "tls.key: is not a private key",
    );
    check("another key", &with(KEY, &another[KEY]), "tls.crt: is not the certificate of the key");
    check("another root", &with(ROOTS, &another[ROOTS]), "tls.crt: certificate 1 is not signed by");
    check("roots that are none", &with(ROOTS, b"x"), "ca.crt: holds no certificate");
    let chain = another[CERTIFICATE].repeat(CHAIN_LIMIT + 1);
    check("a long chain", &with(CERTIFICATE, &chain), "tls.crt: holds 9 certificates");
    let roots = another[ROOTS].repeat(ROOT_LIMIT + 1);
    check("many roots", &with(ROOTS, &roots), "ca.crt: holds 17 certificates");

    let long_ago = now() - Duration::from_secs(20 * 365 * 24 * 3600);
    check("expired", &make(long_ago).unwrap(), "ca.crt: holds expired certificates only");
    let far = now() + Duration::from_secs(3600);
    check("of tomorrow", &make(far).unwrap(), "tls.crt: is not valid yet; is the clock right?");
    let past = |params: &mut CertificateParams| params.not_after = (now() - DAY).into();
    check("an expired issuer", &with_intermediate(past), "tls.crt: has expired");
    let leaf = |params: &mut CertificateParams| params.is_ca = IsCa::ExplicitNoCa;
    check("a leaf", &with_intermediate(leaf), "tls.crt: holds a certificate that is not a CA's");
    let usage = |params: &mut CertificateParams| {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    };
    check("a CA that may not sign", &with_intermediate(usage), "without the usage keyCertSign");
}
