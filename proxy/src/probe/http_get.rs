//! HTTP checks as the kubelet makes them: one GET, any certificate, redirects only within the pod.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use heddle_api::probes::HttpGet;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION};
use http::header::{InvalidHeaderName, InvalidHeaderValue, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::redirect::{Next, Target, follow};
use super::{Failure, connect};

/// As much of an answer as the kubelet reads.
const MAX_BODY: usize = 10 * 1024;
/// Requests of one check, the redirected ones included.
const MAX_REQUESTS: usize = 10;
/// The largest head of an answer.
const MAX_HEAD: usize = 64 * 1024;
const H2: &[u8] = b"h2";

pub(super) struct Client {
    tls: Arc<ClientConfig>,
}

impl Client {
    pub(super) fn new() -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for every version")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        tls.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
        tls.resumption = rustls::client::Resumption::disabled();
        Self { tls: Arc::new(tls) }
    }

    /// Good is a status from 200 to 399, and a redirect out of the pod.
    pub(super) async fn check(
        &self,
        get: &HttpGet,
        address: IpAddr,
        user_agent: Option<HeaderValue>,
    ) -> Result<(), Failure> {
        let headers = headers(get, user_agent)
            .map_err(|_| Failure::none("a declared header cannot be written as HTTP"))?;
        let mut target = Target::new(get, &headers);
        for _ in 0..MAX_REQUESTS {
            let response = self.fetch(&target, address, &headers).await?;
            let (status, location) = (response.0, response.1);
            let location = location.filter(|_| is_redirect(status));
            match location.map(|location| follow(&target, address, &location)) {
                None | Some(Next::Elsewhere) => return judge(status),
                Some(Next::Here(next)) => target = next,
                Some(Next::Nowhere) => {
                    return Err(Failure::none("is redirected to what is no http or https URL"));
                }
            }
        }
        Err(Failure::none(format!("is still redirected after {MAX_REQUESTS} requests")))
    }

    /// One request, on a connection of its own.
    async fn fetch(
        &self,
        target: &Target,
        address: IpAddr,
        headers: &HeaderMap,
    ) -> Result<(StatusCode, Option<String>), Failure> {
        let to = SocketAddr::new(address, target.port);
        let tcp = connect(to).await?;
        let _ = tcp.set_nodelay(true);
        if !target.tls {
            return Box::pin(exchange(tcp, target, to, headers, false)).await;
        }
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let tls = connector.connect(ServerName::IpAddress(address.into()), tcp).await;
        let tls = tls.map_err(|error| Failure::none(format!("TLS with {to}: {error}")))?;
        let is_http2 = tls.get_ref().1.alpn_protocol() == Some(H2);
        Box::pin(exchange(tls, target, to, headers, is_http2)).await
    }
}

async fn exchange(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    target: &Target,
    to: SocketAddr,
    headers: &HeaderMap,
    is_http2: bool,
) -> Result<(StatusCode, Option<String>), Failure> {
    let failed = |error: hyper::Error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
        Failure::none(format!("GET {} on {to}: {error}{cause}", target.path))
    };
    let request = request(target, to, headers, is_http2)?;
    // Ends with this function.
    let mut connection = JoinSet::new();
    let response = if is_http2 {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(io));
        let (mut sender, driver) = handshake.await.map_err(failed)?;
        connection.spawn(async move { drop(driver.await) });
        sender.send_request(request).await.map_err(failed)?
    } else {
        let builder = http1::Builder::new().max_buf_size(MAX_HEAD).to_owned();
        let (mut sender, driver) = builder.handshake(TokioIo::new(io)).await.map_err(failed)?;
        connection.spawn(async move { drop(driver.await) });
        sender.send_request(request).await.map_err(failed)?
    };
    let status = response.status();
    let location = response.headers().get(LOCATION);
    let location = location.and_then(|value| Some(value.to_str().ok()?.to_owned()));
    read_some(response).await.map_err(failed)?;
    Ok((status, location))
}

/// An answer counts when it has come in full, or as much of it as the kubelet would read.
async fn read_some(response: Response<Incoming>) -> hyper::Result<()> {
    let mut body = response.into_body();
    let mut read = 0;
    while read < MAX_BODY {
        match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(frame) => read += frame?.data_ref().map_or(0, bytes::Bytes::len),
            None => break,
        }
    }
    Ok(())
}

/// The declared headers, and those that the kubelet adds to them.
fn headers(get: &HttpGet, user_agent: Option<HeaderValue>) -> Result<HeaderMap, Unwritable> {
    let mut headers = HeaderMap::new();
    for (name, value) in &get.headers {
        let name = HeaderName::from_bytes(name.as_bytes())?;
        headers.append(name, HeaderValue::from_bytes(value.as_bytes())?);
    }
    if let (None, Some(agent)) = (headers.get(USER_AGENT), user_agent) {
        headers.insert(USER_AGENT, agent);
    }
    match headers.get(ACCEPT) {
        None => drop(headers.insert(ACCEPT, HeaderValue::from_static("*/*"))),
        Some(value) if value.is_empty() => drop(headers.remove(ACCEPT)),
        Some(_) => {}
    }
    Ok(headers)
}

#[derive(Debug)]
struct Unwritable;

impl From<InvalidHeaderName> for Unwritable {
    fn from(_: InvalidHeaderName) -> Self {
        Self
    }
}

impl From<InvalidHeaderValue> for Unwritable {
    fn from(_: InvalidHeaderValue) -> Self {
        Self
    }
}

fn request(
    target: &Target,
    to: SocketAddr,
    headers: &HeaderMap,
    is_http2: bool,
) -> Result<Request<Body>, Failure> {
    let unwritable = |_| Failure::none("the path or the host cannot be written as HTTP");
    let host = target.host.clone().unwrap_or_else(|| to.to_string());
    let mut request = Request::get(if is_http2 {
        format!("https://{host}{}", target.path)
    } else {
        target.path.clone()
    });
    if let Some(all) = request.headers_mut() {
        all.extend(headers.clone());
        all.remove(HOST);
    }
    if !is_http2 {
        request = request.header(HOST, host).header(CONNECTION, "close");
    }
    request.body(Body::empty()).map_err(unwritable)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn judge(status: StatusCode) -> Result<(), Failure> {
    if (200..400).contains(&status.as_u16()) {
        return Ok(());
    }
    // A 1xx cannot be passed on as an answer.
    let passed = if status.as_u16() < 400 { StatusCode::SERVICE_UNAVAILABLE } else { status };
    let reason = format!("the application answers {}", status.as_u16());
    Err(Failure { status: passed, answered: true, reason })
}

/// The check asks whether the application answers, not who it is, as the kubelet's does.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
