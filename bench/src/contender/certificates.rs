//! Certificates for the peers: a root and a P-256 leaf with a SPIFFE id for each side, as a mesh
//! would issue them.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};

const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Writes `root.pem`, and `client.pem` and `server.pem` with certificate and key in one file.
pub(super) fn write(dir: &Path) -> anyhow::Result<()> {
    let mut params = params()?;
    params.distinguished_name.push(DnType::CommonName, "heddle-bench");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = CertifiedIssuer::self_signed(params, key()?).context("make a root")?;
    std::fs::write(dir.join("root.pem"), root.pem())?;
    for side in ["client", "server"] {
        let id = format!("spiffe://cluster.local/ns/bench/sa/{side}");
        let mut params = self::params()?;
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = key()?;
        let leaf = params.signed_by(&key, &root).context("make a leaf")?;
        std::fs::write(dir.join(format!("{side}.pem")), leaf.pem() + &key.serialize_pem())?;
    }
    Ok(())
}

fn params() -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + LIFETIME).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params)
}

fn key() -> anyhow::Result<KeyPair> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}
