//! The way to the control plane: one connection whose other side has proved to be the control plane
//! of this mesh, and gRPC over it. Never plaintext, never anybody else.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::error;
use crate::tls::{self, Credentials, PeerRefusal, TrustBundle};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent peer is asked after the first and given up after the second.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));

/// Why the control plane could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// TCP connect.
    #[error("{0} does not accept connections")]
    Connect(SocketAddr, #[source] io::Error),
    /// Neither yes nor no.
    #[error("{0} did not answer within {seconds} s", seconds = CONNECT_TIMEOUT.as_secs())]
    Timeout(SocketAddr),
    /// rustls refuses the configuration.
    #[error("TLS cannot be configured")]
    Config(#[source] rustls::Error),
    /// It is not the control plane that this proxy was told to trust.
    #[error("{0} does not prove to be the control plane of this mesh")]
    Untrusted(SocketAddr, #[source] error::Error),
    /// The peer does not speak HTTP/2.
    #[error("{0} does not speak gRPC")]
    Protocol(SocketAddr),
    /// gRPC could not be started.
    #[error("{0} does not answer as gRPC does")]
    Transport(SocketAddr, #[source] tonic::transport::Error),
}

/// Connects and checks that the other side is the control plane that `bundle` vouches for. With
/// `own` the proxy proves itself too. The channel ends with its connection: connecting again would
/// skip the checks.
///
/// # Errors
/// Says what failed; a certificate that was refused is named.
pub async fn connect(
    address: SocketAddr,
    bundle: &Arc<TrustBundle>,
    own: Option<&Credentials>,
) -> Result<Channel, Error> {
    let stream = connect_tls(address, bundle, own).await?;
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
        .map_err(|error| Error::Transport(address, error))
}

async fn connect_tls(
    address: SocketAddr,
    bundle: &Arc<TrustBundle>,
    own: Option<&Credentials>,
) -> Result<TlsStream<TcpStream>, Error> {
    let config = tls::control_plane_config(bundle, own).map_err(Error::Config)?;
    let tcp = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let tcp = tcp.map_err(|_| Error::Timeout(address))?;
    let tcp = tcp.map_err(|error| Error::Connect(address, error))?;
    // Small messages both ways: waiting to fill a segment would only delay them.
    tcp.set_nodelay(true).map_err(|error| Error::Connect(address, error))?;
    let untrusted = |error| Error::Untrusted(address, error);
    let stream = tls::handshake(tcp, config).await.map_err(untrusted)?;
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(b"h2") {
        return Err(Error::Protocol(address));
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
        tokio::join!(connect_tls(address, bundle, Some(&own)), accept).0
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
}
