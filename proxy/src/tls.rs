//! TLS between the proxies: TLS 1.3 with mutual authentication, no tickets, no resumption, no early
//! data. Owns the rustls configurations, built once for each certificate and trust bundle, and the
//! client's handshake.
//!
//! Refuses: a peer whose certificate does not prove exactly one identity of our trust domain, a peer
//! that is not the one expected, a peer that does not choose our protocol, and any handshake with an
//! expired certificate of our own. There is no fallback to plaintext here or anywhere else.

use std::fmt;
use std::io;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_api::identity::SpiffeId;
use heddle_api::names;
use rustls::NamedGroup;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::Error;
use crate::metrics::Direction;

#[cfg(test)]
pub(crate) mod testing;
mod verify;

pub use verify::{BundleError, Peer, PeerRefusal, Serial, TrustBundle, Usage};

/// From the first byte of the ClientHello to the end of the handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Sent by every client alike: which workload is called is nobody's business on the wire, and nothing
/// is ever decided by it.
const SERVER_NAME: &str = "proxy.heddle.internal";

/// What a mesh connection carries: a claim of its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// One HTTP/1 connection.
    Http1,
    /// One HTTP/2 connection.
    Http2,
    /// One opaque TCP connection.
    Tcp,
}

impl Alpn {
    const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Tcp];

    /// The protocol's name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "heddle-h1",
            Self::Http2 => "heddle-h2",
            Self::Tcp => "heddle-tcp",
        }
    }

    /// The protocol of that name on the wire.
    #[must_use]
    pub fn parse(wire: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.wire() == wire)
    }

    const fn wire(self) -> &'static [u8] {
        match self {
            Self::Http1 => names::alpn::HTTP1,
            Self::Http2 => names::alpn::HTTP2,
            Self::Tcp => names::alpn::TCP,
        }
    }
}

/// A certificate with its key, the roots peers must chain to, and the configurations made of them.
/// Immutable: a renewal or a new bundle makes another.
pub struct Credentials {
    id: SpiffeId,
    serial: Serial,
    not_before: SystemTime,
    not_after: SystemTime,
    key: Arc<CertifiedKey>,
    bundle: Arc<TrustBundle>,
    server: Arc<ServerConfig>,
    clients: [Arc<ClientConfig>; 3],
}

/// Why a certificate and a trust bundle do not make credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The private key is of a kind that is not used in the mesh, or broken.
    #[error("the private key cannot be used")]
    Key(#[source] rustls::Error),
    /// The certificate is somebody else's.
    #[error("the certificate is not for the key that was asked about")]
    OtherKey,
    /// Peers would refuse the certificate.
    #[error("the proxy's own certificate would be refused by its peers")]
    Refused(#[source] PeerRefusal),
    /// rustls refuses the configuration.
    #[error("TLS cannot be configured")]
    Config(#[source] rustls::Error),
}

impl Credentials {
    /// Checks that peers which hold `bundle` would accept `chain`, and builds the configurations.
    ///
    /// # Errors
    /// Says what is wrong with the certificate, the key or the bundle.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundle: Arc<TrustBundle>,
    ) -> Result<Self, CredentialsError> {
        let key = provider().key_provider.load_private_key(key).map_err(CredentialsError::Key)?;
        let key = Arc::new(CertifiedKey::new(chain, key));
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => return Err(CredentialsError::OtherKey),
        }
        Self::assemble(key, bundle)
    }

    /// The same certificate with other roots.
    ///
    /// # Errors
    /// The certificate does not chain to them: with such a bundle every peer would refuse us.
    pub fn with_bundle(&self, bundle: Arc<TrustBundle>) -> Result<Self, CredentialsError> {
        Self::assemble(Arc::clone(&self.key), bundle)
    }

    fn assemble(
        key: Arc<CertifiedKey>,
        bundle: Arc<TrustBundle>,
    ) -> Result<Self, CredentialsError> {
        let now = UnixTime::now();
        bundle.verify(&key.cert, Usage::Client, now).map_err(CredentialsError::Refused)?;
        let peer =
            bundle.verify(&key.cert, Usage::Server, now).map_err(CredentialsError::Refused)?;
        let (not_before, not_after) =
            verify::validity(&key.cert).map_err(CredentialsError::Refused)?;
        let resolver = Arc::new(SingleCertAndKey::from(Arc::clone(&key)));
        let client = |alpn: Alpn| {
            client_config(&bundle, Some(Arc::clone(&resolver)), alpn.wire())
                .map_err(CredentialsError::Config)
        };
        let clients = [client(Alpn::Http1)?, client(Alpn::Http2)?, client(Alpn::Tcp)?];
        let server = server_config(&bundle, Arc::clone(&resolver))?;
        let (id, serial) = (peer.id, peer.serial);
        Ok(Self { id, serial, not_before, not_after, key, bundle, server, clients })
    }

    /// The identity it proves.
    #[must_use]
    pub const fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The leaf's serial number.
    #[must_use]
    pub const fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Begin of the leaf's life. In the future only after our clock was set back.
    #[must_use]
    pub const fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of the leaf's life.
    #[must_use]
    pub const fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// True once no new handshake may use it.
    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now >= self.not_after
    }

    /// The roots that peers must chain to.
    #[must_use]
    pub const fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    /// For inbound: a client certificate is mandatory and verified, our three protocols are offered.
    ///
    /// # Errors
    /// The certificate has expired.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, Error> {
        if self.is_expired(SystemTime::now()) {
            return Err(Error::CertificateExpired);
        }
        Ok(Arc::clone(&self.server))
    }

    /// The identity that the certificates of a finished handshake prove: exactly one URI SAN, of our
    /// trust domain. The only place in the data path where an identity comes from.
    ///
    /// # Errors
    /// There is no certificate, or it proves no identity of this mesh.
    pub fn peer_identity(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<Peer, Error> {
        let leaf = chain.and_then(<[_]>::first);
        let leaf = leaf.ok_or(Error::PeerCertificateRefused(PeerRefusal::NoCertificate))?;
        self.bundle.peer_identity(leaf).map_err(Error::PeerCertificateRefused)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, serial, not_after, .. } = self;
        f.debug_struct("Credentials")
            .field("id", id)
            .field("serial", &format_args!("{serial}"))
            .field("not_after", not_after)
            .finish_non_exhaustive()
    }
}

/// Makes a mesh connection of a TCP connection: handshake, protocol, identity. Sends no byte of an
/// application.
///
/// # Errors
/// Our certificate has expired, the handshake fails or takes longer than [`HANDSHAKE_TIMEOUT`], the
/// peer chooses no or another protocol, or it is not `expected`.
pub async fn connect(
    tcp: TcpStream,
    credentials: &Credentials,
    alpn: Alpn,
    expected: &SpiffeId,
) -> Result<TlsStream<TcpStream>, Error> {
    if credentials.is_expired(SystemTime::now()) {
        return Err(Error::CertificateExpired);
    }
    let config = Arc::clone(&credentials.clients[alpn as usize]);
    let stream = handshake(tcp, config).await?;
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(alpn.wire()) {
        return Err(Error::MeshProtocolRefused { offered: alpn.name() });
    }
    let peer = credentials.peer_identity(connection.peer_certificates())?;
    if peer.id != *expected {
        let (expected, found) = (Box::new(expected.clone()), Box::new(peer.id));
        return Err(Error::PeerIdentityMismatch { expected, found });
    }
    let group = connection.negotiated_key_exchange_group().map(SupportedKxGroup::name);
    log_peer(Direction::Outbound, &peer, group);
    Ok(stream)
}

/// The one event for each new mesh connection, for both directions.
pub fn log_peer(direction: Direction, peer: &Peer, group: Option<NamedGroup>) {
    tracing::debug!(
        target: "heddle_proxy::peer",
        direction = direction.name(),
        id = %peer.id,
        serial = %peer.serial,
        group = ?group,
        "mesh connection"
    );
}

/// The client's side of any handshake of ours.
pub(crate) async fn handshake(
    tcp: TcpStream,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, Error> {
    let name = ServerName::try_from(SERVER_NAME).expect("the constant is a DNS name");
    let connect = TlsConnector::from(config).connect(name, tcp);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(handshake_error(error)),
        Err(_) => Err(Error::HandshakeTimeout),
    }
}

/// A refused certificate has a reason of its own; inbound uses it for its handshakes too.
#[must_use]
pub fn handshake_error(error: io::Error) -> Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls.and_then(PeerRefusal::find) {
        Some(refusal) => Error::PeerCertificateRefused(refusal),
        None => Error::HandshakeFailed(error),
    }
}

/// The algorithms of the mesh: fewer than the library's, in our order of preference.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
            ..aws_lc_rs::default_provider()
        })
    });
    Arc::clone(&PROVIDER)
}

/// For one connection to the control plane; with `own` the proxy proves itself too.
pub(crate) fn control_plane_config(
    bundle: &Arc<TrustBundle>,
    own: Option<&Credentials>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let resolver = own.map(|own| Arc::new(SingleCertAndKey::from(Arc::clone(&own.key))));
    client_config(bundle, resolver, b"h2")
}

fn client_config(
    bundle: &Arc<TrustBundle>,
    own: Option<Arc<SingleCertAndKey>>,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verify::Verifier(Arc::clone(bundle))));
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

fn server_config(
    bundle: &Arc<TrustBundle>,
    own: Arc<SingleCertAndKey>,
) -> Result<Arc<ServerConfig>, CredentialsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(CredentialsError::Config)?
        .with_client_cert_verifier(Arc::new(verify::Verifier(Arc::clone(bundle))))
        .with_cert_resolver(own);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = Alpn::ALL.iter().map(|alpn| alpn.wire().to_vec()).collect();
    Ok(Arc::new(config))
}

/// Seconds since the Unix epoch; 0 before it.
#[must_use]
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
