//! The certificates of a cluster: one authority, and whatever it has signed.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

/// Signs the certificates of one cluster.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    /// Makes a new one.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let certificate = params.self_signed(&key)?.pem();
        let key_pem = key.serialize_pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, key: key_pem })
    }

    /// Its own certificate.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its own certificate and key, for controllers that sign on its behalf.
    #[must_use]
    pub fn pair(&self) -> Pair {
        Pair { certificate: self.certificate.clone(), key: self.key.clone() }
    }

    /// A certificate with which `user`, a member of `groups`, is known to the API server.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn client(&self, user: &str, groups: &[&str]) -> anyhow::Result<Pair> {
        self.sign(CertificateParams::default(), user, groups, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A certificate of a server with these names and addresses.
    ///
    /// # Errors
    /// A name is not one.
    pub fn server(&self, name: &str, names: &[String]) -> anyhow::Result<Pair> {
        let params = CertificateParams::new(names)?;
        self.sign(params, name, &[], ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        name: &str,
        groups: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> anyhow::Result<Pair> {
        params.distinguished_name = subject(name, groups);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }
}

impl Pair {
    /// Writes `NAME.crt` and `NAME.key`.
    ///
    /// # Errors
    /// As the file system's.
    pub fn write(&self, dir: &Path, name: &str) -> anyhow::Result<()> {
        write_secret(&dir.join(format!("{name}.crt")), &self.certificate)?;
        write_secret(&dir.join(format!("{name}.key")), &self.key)
    }
}

/// Writes `service-account.key` and `service-account.pub`, which sign and verify the tokens of
/// service accounts.
///
/// # Errors
/// As the file system's.
pub fn write_service_account_keys(dir: &Path) -> anyhow::Result<()> {
    let key = KeyPair::generate()?;
    write_secret(&dir.join("service-account.key"), &key.serialize_pem())?;
    write_secret(&dir.join("service-account.pub"), &key.public_key_pem())
}

/// Writes a file for its owner alone.
pub(crate) fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    // Made anew, so that the mode is never that of a file that was there before.
    let _ = fs::remove_file(path);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("write {}", path.display()))
}

/// Kubernetes reads the user from the common name and the groups from the organizations.
fn subject(name: &str, groups: &[&str]) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    for group in groups {
        subject.push(DnType::OrganizationName, *group);
    }
    subject
}
