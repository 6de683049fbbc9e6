//! Leaves as rustls verifies them, and authorities that do not fit together.

use std::os::unix::fs::PermissionsExt;

use rcgen::PKCS_ECDSA_P384_SHA384;
use rustls_pki_types::UnixTime;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::extensions::GeneralName;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn identity() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

fn open(dir: &Path) -> Authority {
    Authority::open(&AuthoritySource::Own, dir, DAY, SystemTime::now()).unwrap()
}

/// Verifies as rustls does on both sides of a connection.
fn verify(
    chain: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    at: SystemTime,
) -> Result<(), String> {
    let anchors = [anchor_from_trusted_cert(root).unwrap()];
    let (leaf, intermediates) = chain.split_first().unwrap();
    let leaf = EndEntityCert::try_from(leaf).unwrap();
    let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap());
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        leaf.verify_for_usage(algorithms, &anchors, intermediates, at, usage, None, None)
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[test]
fn a_leaf_verifies_and_has_exactly_the_name_that_was_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path());
    let key = KeyPair::generate().unwrap();
    let mut wanted = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    wanted
        .subject_alt_names
        .push(SanType::URI("spiffe://cluster.local/ns/shop/sa/admin".try_into().unwrap()));
    wanted.distinguished_name.push(DnType::CommonName, "admin");
    wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = wanted.serialize_request(&key).unwrap();
    let now = SystemTime::now();
    let issued = authority.issue(&identity(), csr.der(), now).unwrap();

    verify(&issued.chain, &authority.roots()[0], now).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    let uri = identity().to_string();
    assert_eq!(names.value.general_names, [GeneralName::URI(uri.as_str())]);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca());
    assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    assert_eq!(crate::authn::parse_identity(&issued.chain[0]), Ok(identity()));
}

#[test]
fn a_leaf_lives_from_a_minute_ago_to_the_end_chosen_and_no_longer_than_its_issuer() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path());
    let csr = csr(&KeyPair::generate().unwrap());
    let seconds = |time: SystemTime| {
        i64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
    };
    let now = SystemTime::now();
    let issued = authority.issue(&identity(), &csr, now).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    assert_eq!(leaf.validity().not_before.timestamp(), seconds(now - CLOCK_SKEW));
    assert_eq!(leaf.validity().not_after.timestamp(), seconds(now + DAY));
    assert_eq!(seconds(issued.not_after), seconds(now + DAY));

    let late = authority.not_after() - Duration::from_secs(3600);
    let issued = authority.issue(&identity(), &csr, late).unwrap();
    assert_eq!(issued.not_after, authority.not_after());
    let refused = authority.issue(&identity(), &csr, authority.not_after());
    assert!(matches!(refused, Err(Refusal::IssuerExpired)));
}

#[test]
fn serials_are_random_and_positive() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path());
    let csr = csr(&KeyPair::generate().unwrap());
    let mut serials: Vec<_> = (0..50)
        .map(|_| authority.issue(&identity(), &csr, SystemTime::now()).unwrap().serial)
        .collect();
    assert!(serials.iter().all(|serial| serial.len() == 32 && serial.as_str() < "8"));
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 50);
}

#[test]
fn a_csr_that_proves_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path());
    let key = KeyPair::generate().unwrap();
    let good = csr(&key);
    let check = |name: &str, csr: &[u8], want: &str| {
        let refused = authority.issue(&identity(), csr, SystemTime::now()).unwrap_err();
        assert_eq!(refused.reason(), want, "{name}");
    };
    let mut tampered = good.clone();
    *tampered.last_mut().unwrap() ^= 1;
    check("signature", &tampered, "csr_unproven");
    // The public key of somebody else under a signature by ours.
    let other = KeyPair::generate().unwrap();
    let spki = key.public_key_raw();
    let at = good.windows(spki.len()).position(|window| window == spki).unwrap();
    let mut stolen = good.clone();
    stolen[at..at + spki.len()].copy_from_slice(other.public_key_raw());
    check("another's key", &stolen, "csr_unproven");
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    check("P-384", &csr(&p384), "csr_key_type");
    check("nothing", &[], "csr_malformed");
    check("trailing bytes", &[good.as_slice(), &[0]].concat(), "csr_malformed");
    check("cut", &good[..good.len() - 1], "csr_malformed");
    check("too large", &vec![0; CSR_LIMIT + 1], "csr_too_large");
}

#[test]
fn the_root_is_made_once_and_kept_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).roots()[0].clone();
    assert_eq!(open(dir.path()).roots()[0], first);
    let mode = |path: &str| {
        let metadata = std::fs::metadata(dir.path().join(path)).unwrap();
        metadata.permissions().mode() & 0o7777
    };
    assert_eq!((mode("ca"), mode("ca/root.key")), (0o700, 0o600));

    let key = dir.path().join("ca/root.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let opened = Authority::open(&AuthoritySource::Own, dir.path(), DAY, SystemTime::now());
    let problem = opened.unwrap_err().to_string();
    assert!(problem.contains("0644") && problem.contains("chmod 600"), "{problem}");
    std::fs::remove_file(&key).unwrap();
    assert_ne!(open(dir.path()).roots()[0], first, "a lost key is a new root");
}

struct Given {
    dir: tempfile::TempDir,
    source: AuthoritySource,
}

/// An operator's root and intermediate, and whatever `spoil` makes of the files.
fn given(spoil: impl FnOnce(&Path)) -> Given {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let root_key = KeyPair::generate().unwrap();
    let root = make_root(&root_key, now).unwrap();
    let issuer = Issuer::from_ca_cert_der(root.der(), root_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "an intermediate");
    let intermediate = params.signed_by(&key, &issuer).unwrap();
    let path = |name: &str| dir.path().join(name);
    write(&path("root.pem"), root.pem().as_bytes(), 0o644).unwrap();
    write(&path("intermediate.pem"), intermediate.pem().as_bytes(), 0o644).unwrap();
    write(&path("key.pem"), key.serialize_pem().as_bytes(), 0o600).unwrap();
    spoil(dir.path());
    let source = AuthoritySource::Given {
        root: path("root.pem"),
        intermediate: path("intermediate.pem"),
        key: path("key.pem"),
    };
    Given { dir, source }
}

#[test]
fn an_operators_intermediate_signs_and_is_sent_along() {
    let given = given(|_| {});
    let now = SystemTime::now();
    let authority = Authority::open(&given.source, given.dir.path(), DAY, now).unwrap();
    let csr = csr(&KeyPair::generate().unwrap());
    let issued = authority.issue(&identity(), &csr, now).unwrap();
    assert_eq!(issued.chain.len(), 2);
    verify(&issued.chain, &authority.roots()[0], now).unwrap();
    assert!(verify(&issued.chain[..1], &authority.roots()[0], now).is_err());
    assert!(!given.dir.path().join("ca").exists(), "no root of our own is made");
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let check = |spoil: &dyn Fn(&Path), want: &str| {
        let given = given(|dir| spoil(dir));
        let opened = Authority::open(&given.source, given.dir.path(), DAY, SystemTime::now());
        let problem = crate::error::chain(&opened.unwrap_err());
        assert!(problem.contains(want), "{problem}");
    };
    let other_key = || KeyPair::generate().unwrap().serialize_pem();
    check(
        &|dir| write(&dir.join("key.pem"), other_key().as_bytes(), 0o600).unwrap(),
        "not the certificate of the key",
    );
    check(&|dir| write(&dir.join("key.pem"), b"-----", 0o600).unwrap(), "PKCS#8");
    check(&|dir| std::fs::remove_file(dir.join("key.pem")).unwrap(), "does not exist");
    check(
        &|dir| {
            let root = make_root(&KeyPair::generate().unwrap(), SystemTime::now()).unwrap();
            write(&dir.join("root.pem"), root.pem().as_bytes(), 0o644).unwrap();
        },
        "is not signed by",
    );
    check(
        &|dir| {
            let leaf = CertificateParams::default();
            let leaf = leaf.self_signed(&KeyPair::generate().unwrap()).unwrap();
            write(&dir.join("intermediate.pem"), leaf.pem().as_bytes(), 0o644).unwrap();
        },
        "not a CA's",
    );
    check(&|dir| write(&dir.join("root.pem"), b"", 0o644).unwrap(), "holds no certificate");
}
