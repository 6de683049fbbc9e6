//! Certificates for tests, good and bad.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle_api::identity::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Credentials, TrustBundle};

pub(crate) const TRUST_DOMAIN: &str = "cluster.local";

pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A leaf and its key.
pub(crate) struct Issued {
    pub(crate) leaf: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "test root");
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(crate) fn bundle(&self) -> Arc<TrustBundle> {
        Arc::new(TrustBundle::new(TRUST_DOMAIN.into(), [self.root()]).unwrap())
    }

    pub(crate) fn sign(&self, params: &CertificateParams) -> Issued {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        Issued { leaf: leaf.der().clone(), key: key_der(&key) }
    }

    /// A leaf for somebody else's key, as a control plane signs it.
    pub(crate) fn sign_csr(&self, csr: &[u8], id: &SpiffeId, life: Duration) -> Vec<u8> {
        let mut csr = rcgen::CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        csr.params = leaf(&[&id.to_string()]);
        csr.params.not_after = (SystemTime::now() + life).into();
        csr.signed_by(&self.0).unwrap().der().to_vec()
    }

    pub(crate) fn credentials(&self, id: &SpiffeId) -> Credentials {
        let issued = self.sign(&leaf(&[&id.to_string()]));
        Credentials::new(vec![issued.leaf], issued.key, self.bundle()).unwrap()
    }
}

pub(crate) fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new(TRUST_DOMAIN, namespace, account).unwrap()
}

/// Good for both purposes for an hour, with these URI SANs.
pub(crate) fn leaf(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
    params.subject_alt_names = uris.collect();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
    params
}

pub(crate) fn key_der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}
