//! From one replica to another: mutual TLS in which each side proves the control plane's own id.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use heddle_api::identity::SpiffeId;
use heddle_api::names::{CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_SERVICE_ACCOUNT};
use heddle_api::proto::v1::replica_client::ReplicaClient;
use hyper_util::rt::TokioIo;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme, version};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, TrustAnchor, UnixTime,
};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use webpki::{EndEntityCert, KeyUsage};

use crate::authn::parse_identity;
use crate::ca::Authority;
use crate::served::Served;

const TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));
/// Everything one replica says, many times over.
const MESSAGE_LIMIT: usize = 4 << 20;

/// What a connection is made with: a certificate signed for the occasion, and the roots of the time.
#[derive(Clone)]
pub struct Credentials {
    pub authority: watch::Receiver<Option<Arc<Authority>>>,
    pub served: watch::Receiver<Option<Served>>,
}

/// The control plane's identity in a trust domain.
pub(super) fn own_identity(trust_domain: &str) -> Option<SpiffeId> {
    SpiffeId::new(trust_domain, CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_SERVICE_ACCOUNT).ok()
}

/// One connection; it ends with its stream.
pub(super) async fn connect(
    address: SocketAddr,
    credentials: &Credentials,
) -> anyhow::Result<ReplicaClient<Channel>> {
    let config = Arc::new(credentials.client_config()?);
    let tcp = tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await;
    let tcp = tcp.context("connecting took too long")??;
    tcp.set_nodelay(true)?;
    let name = ServerName::IpAddress(address.ip().into());
    let handshake = TlsConnector::from(config).connect(name, tcp);
    let tls = tokio::time::timeout(TIMEOUT, handshake).await.context("no TLS in time")??;
    let mut once = Some(TokioIo::new(tls));
    // Connecting again would skip the checks: the next attempt begins anew.
    let connector = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| std::io::Error::other("used up"));
        std::future::ready(stream)
    });
    let channel = Endpoint::from_static("http://replica")
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .connect_with_connector(connector)
        .await?;
    Ok(ReplicaClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT))
}

impl Credentials {
    fn client_config(&self) -> anyhow::Result<ClientConfig> {
        let served = self.served.borrow().clone().context("the sources have not been read yet")?;
        let trust_domain = served.trust_domain().context("there is no Mesh yet")?;
        let identity = own_identity(&trust_domain).context("the trust domain is malformed")?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let authority = self.authority.borrow().clone().context("there is no authority yet")?;
        let issued = authority.issue_own(&identity, &key, SystemTime::now())?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Verifier {
            roots: served.bundle.roots.clone(),
            wanted: identity,
            provider: provider.clone(),
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(issued.chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }
}

/// Accepts a chain to one of the roots whose leaf proves the wanted identity, whatever the address.
#[derive(Debug)]
struct Verifier {
    roots: Arc<[CertificateDer<'static>]>,
    wanted: SpiffeId,
    provider: Arc<CryptoProvider>,
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
        let unknown = || rustls::Error::from(CertificateError::UnknownIssuer);
        let anchors: Vec<TrustAnchor<'_>> = self
            .roots
            .iter()
            .filter_map(|root| webpki::anchor_from_trusted_cert(root).ok())
            .collect();
        let certificate = EndEntityCert::try_from(leaf).map_err(|_| unknown())?;
        certificate
            .verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                &anchors,
                intermediates,
                now,
                KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(|_| unknown())?;
        match parse_identity(leaf) {
            Ok(identity) if identity == self.wanted => Ok(ServerCertVerified::assertion()),
            _ => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
