//! The listening side: every port answers with the request as the server saw it.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{GRPC_PATH, MESSAGE_LIMIT, Text, frame, unframe};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Ports to listen on; each option may be given several times.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// HTTP/1.1 and h2c, unless the port is also a --tls port.
    #[arg(long)]
    port: Vec<u16>,
    /// gRPC, h2c.
    #[arg(long)]
    grpc: Vec<u16>,
    /// Plain TCP: one line in, the facts out.
    #[arg(long)]
    tcp: Vec<u16>,
    /// Which of the ports speak TLS.
    #[arg(long)]
    tls: Vec<u16>,
    /// PEM certificate for --tls; made afresh when there is no such file.
    #[arg(long)]
    crt: Option<PathBuf>,
    /// Its key.
    #[arg(long)]
    key: Option<PathBuf>,
    /// Told as `ServiceVersion`.
    #[arg(long, default_value = "")]
    version: String,
}

#[derive(Debug)]
struct Facts {
    hostname: String,
    version: String,
    port: u16,
}

/// Serves every port until the process ends.
///
/// # Errors
/// A port that is taken, or an unusable certificate.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let hostname = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    let tls = match options.tls.is_empty() {
        true => None,
        false => Some(acceptor(options.crt.as_deref(), options.key.as_deref())?),
    };
    let http = options.port.iter().chain(&options.grpc).map(|port| (*port, false));
    let tcp = options.tcp.iter().map(|port| (*port, true));
    for (port, opaque) in http.chain(tcp) {
        let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
            .await
            .with_context(|| format!("cannot listen on port {port}"))?;
        let facts = Facts { hostname: hostname.clone(), version: options.version.clone(), port };
        let tls = tls.clone().filter(|_| options.tls.contains(&port));
        tokio::spawn(accept(listener, Arc::new(facts), tls, opaque));
    }
    std::future::pending().await
}

async fn accept(listener: TcpListener, facts: Arc<Facts>, tls: Option<TlsAcceptor>, opaque: bool) {
    loop {
        // An accept fails for the connection, not for the listener.
        let Ok((stream, peer)) = listener.accept().await else { continue };
        let (facts, tls) = (facts.clone(), tls.clone());
        tokio::spawn(async move {
            let served = match tls {
                _ if opaque => tell(stream, &facts, peer).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, facts, peer).await,
                    Err(error) => Err(error.into()),
                },
                None => serve(stream, facts, peer).await,
            };
            if let Err(error) = served {
                eprintln!("connection from {peer}: {error:#}");
            }
        });
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    facts: Arc<Facts>,
    peer: SocketAddr,
) -> anyhow::Result<()> {
    let respond = service_fn(move |request| {
        let facts = facts.clone();
        async move { respond(request, &facts, peer).await }
    });
    let served = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), respond)
        .await;
    served.map_err(|error| anyhow::anyhow!(error))
}

async fn tell(mut stream: TcpStream, facts: &Facts, peer: SocketAddr) -> anyhow::Result<()> {
    stream.readable().await?;
    stream.write_all(facts.tell(peer).as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

async fn respond(
    request: Request<Incoming>,
    facts: &Facts,
    peer: SocketAddr,
) -> anyhow::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let mut said = facts.tell(peer);
    let host = head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or(head.uri.authority().map(http::uri::Authority::as_str)).unwrap_or("");
    let url = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let proto = if head.version == Version::HTTP_2 { "HTTP/2.0" } else { "HTTP/1.1" };
    let _ = writeln!(said, "Host={host}\nURL={url}\nMethod={}\nProto={proto}", head.method);
    for (name, value) in &head.headers {
        let _ =
            writeln!(said, "RequestHeader={name}:{}", String::from_utf8_lossy(value.as_bytes()));
    }
    if head.uri.path() == GRPC_PATH {
        let body = Limited::new(body, MESSAGE_LIMIT).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        unframe(&body)?;
        return Ok(grpc(&Text { message: said })?);
    }
    let response = Response::builder().header(http::header::CONTENT_TYPE, "text/plain");
    Ok(response.body(Full::new(Bytes::from(said)).boxed_unsync())?)
}

fn grpc(text: &Text) -> http::Result<Response<Body>> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(frame(text))), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
    Response::builder().header(http::header::CONTENT_TYPE, "application/grpc").body(body)
}

impl Facts {
    fn tell(&self, peer: SocketAddr) -> String {
        let Self { hostname, version, port } = self;
        let ip = peer.ip().to_canonical();
        format!("ServiceVersion={version}\nServicePort={port}\nHostname={hostname}\nIP={ip}\n")
    }
}

fn acceptor(certificate: Option<&Path>, key: Option<&Path>) -> anyhow::Result<TlsAcceptor> {
    let (chain, key) = match (certificate, key) {
        (Some(certificate), Some(key)) if certificate.exists() => {
            let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
            (chain, PrivateKeyDer::from_pem_file(key)?)
        }
        _ => {
            let made = rcgen::generate_simple_self_signed(["echo".to_owned()])?;
            let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
            (vec![made.cert.der().clone()], key.into())
        }
    };
    let mut config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
