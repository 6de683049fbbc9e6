//! The way to the control plane: one connection whose other side has proved to be the control plane
//! of this mesh, and gRPC over it. Never plaintext, never anybody else: a name is only looked up to
//! find it, and proves nothing.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::identity::is_subdomain;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::error;
use crate::tls::{self, Credentials, PeerRefusal, TrustBundle};

/// For all addresses of a name together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of a name that are tried; each has at least a second of the time there is.
const ADDRESS_LIMIT: usize = 5;
/// A silent peer is asked after the first and given up after the second.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));

/// Where the control plane listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// As it is dialled.
    Ip(SocketAddr),
    /// Looked up again for every connection: what stands behind a name may change.
    Name {
        /// A DNS name, or one of /etc/hosts.
        host: Arc<str>,
        /// Of every address.
        port: u16,
    },
}

impl FromStr for Address {
    type Err = &'static str;

    /// The error says what to write instead.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "HOST:PORT or IP:PORT, for instance \
            heddle-control-plane.heddle-system.svc:15112, 10.0.0.1:15112 or [fd00::1]:15112";
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Ip(address));
        }
        let (host, port) = text.rsplit_once(':').ok_or(WANTED)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(WANTED)?;
        // A dot at the end spares the resolver its list of suffixes.
        let name = host.strip_suffix('.').unwrap_or(host);
        // A mistyped IP address is no name.
        let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        if !is_subdomain(name) || name.rsplit('.').next().is_none_or(is_number) {
            return Err(WANTED);
        }
        Ok(Self::Name { host: host.into(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Address {
    /// Every address to try, in the resolver's order; at least one.
    async fn resolve(&self) -> Result<Vec<Target>, Error> {
        let (host, port) = match self {
            Self::Ip(address) => return Ok(vec![Target { name: None, address: *address }]),
            Self::Name { host, port } => (host, *port),
        };
        let lookup = tokio::net::lookup_host((&**host, port));
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await;
        let found = found.map_err(|_| Error::LookupTimeout(host.clone()))?;
        let found = found.map_err(|error| Error::Lookup(host.clone(), error))?;
        let name = Some(host.clone());
        let targets: Vec<_> = found
            .take(ADDRESS_LIMIT)
            .map(|address| Target { name: name.clone(), address })
            .collect();
        if targets.is_empty() {
            return Err(Error::Lookup(host.clone(), io::ErrorKind::NotFound.into()));
        }
        Ok(targets)
    }
}

/// One address that is dialled, and the name it was found under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    name: Option<Arc<str>>,
    address: SocketAddr,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.address),
            None => self.address.fmt(f),
        }
    }
}

/// Why the control plane could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The resolver says no, or cannot be asked.
    #[error("no address is found for {0}")]
    Lookup(Arc<str>, #[source] io::Error),
    /// The resolver says nothing.
    #[error("no address was found for {0} within {seconds} s", seconds = LOOKUP_TIMEOUT.as_secs())]
    LookupTimeout(Arc<str>),
    /// TCP connect.
    #[error("{0} does not accept connections")]
    Connect(Target, #[source] io::Error),
    /// Neither yes nor no.
    #[error("{0} did not answer within {seconds} s", seconds = .1.as_secs())]
    Timeout(Target, Duration),
    /// rustls refuses the configuration.
    #[error("TLS cannot be configured")]
    Config(#[source] rustls::Error),
    /// It is not the control plane that this proxy was told to trust.
    #[error("{0} does not prove to be the control plane of this mesh")]
    Untrusted(Target, #[source] error::Error),
    /// The peer does not speak HTTP/2.
    #[error("{0} does not speak gRPC")]
    Protocol(Target),
    /// gRPC could not be started.
    #[error("{0} does not answer as gRPC does")]
    Transport(Target, #[source] tonic::transport::Error),
}

/// Connects and checks that the other side is the control plane that `bundle` vouches for; of
/// several addresses the first that is. With `own` the proxy proves itself too. The channel ends
/// with its connection: connecting again would skip the checks.
///
/// # Errors
/// Says what failed at the last address; a certificate that was refused is named.
pub async fn connect(
    address: &Address,
    bundle: &Arc<TrustBundle>,
    own: Option<&Credentials>,
) -> Result<Channel, Error> {
    let targets = address.resolve().await?;
    let patience = CONNECT_TIMEOUT / u32::try_from(targets.len()).unwrap_or(u32::MAX);
    let mut failure = None;
    for target in targets {
        // Boxed: what a handshake holds is large, and there is one of them at a time.
        match Box::pin(connect_once(&target, patience, bundle, own)).await {
            Ok(channel) => return Ok(channel),
            Err(error) => {
                if let Some(earlier) = failure.replace(error) {
                    let error = error::Chain(&earlier);
                    tracing::debug!(%error, "another address of the control plane is tried");
                }
            }
        }
    }
    Err(failure.expect("there is at least one address, and none of them answered well"))
}

async fn connect_once(
    target: &Target,
    patience: Duration,
    bundle: &Arc<TrustBundle>,
    own: Option<&Credentials>,
) -> Result<Channel, Error> {
    let stream = connect_tls(target, patience, bundle, own).await?;
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        std::future::ready(stream)
    });
    Endpoint::from_static("http://control-plane.heddle.internal")
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| Error::Transport(target.clone(), error))
}

async fn connect_tls(
    target: &Target,
    patience: Duration,
    bundle: &Arc<TrustBundle>,
    own: Option<&Credentials>,
) -> Result<TlsStream<TcpStream>, Error> {
    let config = tls::control_plane_config(bundle, own).map_err(Error::Config)?;
    let tcp = tokio::time::timeout(patience, TcpStream::connect(target.address)).await;
    let tcp = tcp.map_err(|_| Error::Timeout(target.clone(), patience))?;
    let refused = |error| Error::Connect(target.clone(), error);
    let tcp = tcp.map_err(refused)?;
    // Small messages both ways: waiting to fill a segment would only delay them.
    tcp.set_nodelay(true).map_err(refused)?;
    let untrusted = |error| Error::Untrusted(target.clone(), error);
    let stream = tls::handshake(tcp, config).await.map_err(untrusted)?;
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(b"h2") {
        return Err(Error::Protocol(target.clone()));
    }
    let leaf = connection.peer_certificates().and_then(<[_]>::first);
    let peer = leaf
        .ok_or(PeerRefusal::NoCertificate)
        .and_then(|leaf| bundle.peer_identity(leaf))
        .map_err(|refusal| untrusted(error::Error::PeerCertificateRefused(refusal)))?;
    let expected = bundle.control_plane();
    if peer.id != *expected {
        let (expected, found) = (Box::new(expected.clone()), Box::new(peer.id));
        return Err(untrusted(error::Error::PeerIdentityMismatch { expected, found }));
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::tls::testing::{Ca, id};

    /// Connects to a server with `server`'s certificate.
    async fn connect_to(
        server: &Credentials,
        bundle: &Arc<TrustBundle>,
        alpn: &[u8],
    ) -> Result<TlsStream<TcpStream>, Error> {
        let mut config = (*server.server_config().unwrap()).clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let own = Ca::new();
        let own = own.credentials(&id("shop", "web"));
        let own = own.with_bundle(Arc::new(own.bundle().union(server.bundle()))).unwrap();
        let accept = async {
            let (tcp, _) = listener.accept().await.unwrap();
            TlsAcceptor::from(Arc::new(config)).accept(tcp).await
        };
        let target = Target { name: None, address };
        tokio::join!(connect_tls(&target, CONNECT_TIMEOUT, bundle, Some(&own)), accept).0
    }

    #[tokio::test]
    async fn the_control_plane_is_known_by_its_identity_alone() {
        let ca = Ca::new();
        for (namespace, account, trusted) in [
            ("heddle-system", "heddle-control-plane", true),
            ("heddle-system", "default", false),
            ("shop", "heddle-control-plane", false),
        ] {
            let server = ca.credentials(&id(namespace, account));
            let result = connect_to(&server, &ca.bundle(), b"h2").await;
            // Which of its clients it believes is the server's own affair: it is asked for nothing.
            assert_eq!(result.is_ok(), trusted, "{namespace} {account}: {result:?}");
        }
    }

    #[tokio::test]
    async fn another_mesh_with_the_right_name_is_refused_and_named() {
        let impostor = Ca::new().credentials(&id("heddle-system", "heddle-control-plane"));
        let error = connect_to(&impostor, &Ca::new().bundle(), b"h2").await.unwrap_err();
        let text = error::Chain(&error).to_string();
        assert!(text.ends_with("the certificate chains to no root of the trust bundle"), "{text}");
        assert!(text.contains("does not prove to be the control plane"), "{text}");
    }

    #[test]
    fn an_address_is_an_ip_or_a_name_with_a_port() {
        let name = |host: &str, port| Address::Name { host: host.into(), port };
        for (text, want) in [
            ("10.0.0.1:15112", Address::Ip("10.0.0.1:15112".parse().unwrap())),
            ("[fd00::1]:15112", Address::Ip("[fd00::1]:15112".parse().unwrap())),
            ("localhost:1", name("localhost", 1)),
            ("heddle.mesh.svc:15112", name("heddle.mesh.svc", 15112)),
            ("heddle.mesh.svc.cluster.local.:15112", name("heddle.mesh.svc.cluster.local.", 15112)),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address, want);
            assert_eq!(address.to_string(), text);
        }
        let long = format!("{}:1", "a".repeat(254));
        for text in [
            "",
            ":1",
            "a",
            "a:",
            "a:0",
            "a:x",
            "a:65536",
            "a b:1",
            "A:1",
            "-a:1",
            "a..b:1",
            ".:1",
            "10.0.0.256:1",
            "10.0.0:1",
            "fd00::1:15112",
            "http://a:1",
            "a:1:1",
            &long,
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn the_addresses_of_a_name_are_tried_in_turn() {
        let ca = Ca::new();
        let server = ca.credentials(&id("heddle-system", "heddle-control-plane"));
        let mut config = (*server.server_config().unwrap()).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Of the two addresses of this name only one accepts connections.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let name = Address::Name { host: "localhost".into(), port };
        let accept = async {
            let (tcp, _) = listener.accept().await.unwrap();
            TlsAcceptor::from(Arc::new(config)).accept(tcp).await
        };
        let (bundle, own) = (ca.bundle(), ca.credentials(&id("shop", "web")));
        let (connected, _) = tokio::join!(connect(&name, &bundle, Some(&own)), accept);
        connected.unwrap();
    }

    #[tokio::test]
    async fn a_failure_says_which_name_and_which_address() {
        let bundle = Ca::new().bundle();
        // No resolver is asked about a label this long.
        let host: Arc<str> = "a".repeat(64).into();
        let error = connect(&Address::Name { host: host.clone(), port: 1 }, &bundle, None).await;
        let text = error::Chain(&error.unwrap_err()).to_string();
        assert!(text.starts_with(&format!("no address is found for {host}: ")), "{text}");

        let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let name = Address::Name { host: "localhost".into(), port: unused.port() };
        let text = connect(&name, &bundle, None).await.unwrap_err().to_string();
        assert!(text.starts_with("localhost ("), "{text}");
        assert!(text.ends_with(") does not accept connections"), "{text}");
    }
}
