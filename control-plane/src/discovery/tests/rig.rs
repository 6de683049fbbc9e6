//! A control plane with hand-made catalogs, and clients that come from loopback addresses of choice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1::discovery_client::DiscoveryClient;
use heddle_api::proto::v1::identity_client::IdentityClient;
use heddle_api::proto::v1::{
    Hello, IssueRequest, IssueResponse, Rejection, RejectionReason, Report, Resource,
    ResourceReport, ResourceType, Subscribe, ToControlPlane, Update, to_control_plane, to_proxy,
};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::STALL_LIMIT;
use crate::app::files::State;
use crate::app::{App, Handle};
use crate::authn::{Claims, mint_token, parse_identity};
use crate::catalog::{Catalog, PodIdentity};
use crate::config::{AuthoritySource, Config, Files, Source};
use crate::fixture;
use crate::state;

const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Rig {
    pub(super) handle: Handle,
    catalog: watch::Sender<Option<Catalog>>,
    dir: tempfile::TempDir,
}

/// A proxy's leaf with its key.
pub(super) type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Rig {
    pub(super) async fn start(pods: &[PodIdentity], endpoints: &[(&str, bool)]) -> Self {
        let rig = Self::start_unread().await;
        rig.publish(pods, endpoints);
        rig.wait_ready().await;
        rig
    }

    pub(super) async fn start_unread() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (catalog, compiled) = watch::channel(None);
        let app = App::new(config(&dir)).unwrap().with_stall_limit(STALL_LIMIT);
        let state = State::open(&app, settings(&dir)).unwrap();
        let handle = state.serve(app, compiled, None).await.unwrap();
        Self { handle, catalog, dir }
    }

    /// Over the files of a directory, as a whole.
    pub(super) async fn start_over(dir: tempfile::TempDir) -> Self {
        let handle = App::start(config(&dir), None).await.unwrap();
        let rig = Self { handle, catalog: watch::Sender::new(None), dir };
        rig.wait_ready().await;
        rig
    }

    /// Ends it and starts another on what it left.
    pub(super) async fn restart(self) -> Self {
        self.handle.shutdown(PATIENCE).await;
        Self::start_over(self.dir).await
    }

    pub(super) fn write(&self, name: &str, content: &str) {
        state::write_atomic(&self.dir.path().join(name), content.as_bytes(), 0o644).unwrap();
    }

    /// Publishes a catalog one version up.
    pub(super) fn publish(&self, pods: &[PodIdentity], endpoints: &[(&str, bool)]) {
        let before = self.catalog.borrow().as_ref().map(|catalog| catalog.version().number);
        // Above what the bundle took.
        let next = before.map_or(1_000, |number| number + 1);
        self.catalog.send_replace(Some(fixture::catalog(next, pods, endpoints)));
    }

    pub(super) async fn wait_ready(&self) {
        tokio::time::timeout(PATIENCE, async {
            while !self.get("/readyz").await.contains(" 200 ") {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("never ready");
    }

    pub(super) async fn eventually(&self, mut holds: impl FnMut() -> bool) {
        tokio::time::timeout(PATIENCE, async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("never so");
    }

    pub(super) fn token(&self, pod: &str) -> String {
        let (namespace, uid) = ("shop".to_owned(), format!("{pod}-uid"));
        mint_token(KEY, &Claims { namespace, pod: pod.to_owned(), uid, exp: u64::MAX })
    }

    pub(super) async fn issue(&self, from: &str, token: &str) -> Result<IssueResponse, Status> {
        self.issue_for(from, token, &KeyPair::generate().unwrap()).await
    }

    async fn issue_for(
        &self,
        from: &str,
        token: &str,
        key: &KeyPair,
    ) -> Result<IssueResponse, Status> {
        let csr = CertificateParams::default().serialize_request(key).unwrap().der().to_vec();
        let channel = self.channel(None, from).await?;
        let request = IssueRequest { token: token.to_owned(), csr };
        Ok(IdentityClient::new(channel).issue(request).await?.into_inner())
    }

    pub(super) async fn credentials(&self, pod: &str, from: &str) -> Option<Credentials> {
        let key = KeyPair::generate().unwrap();
        let issued = self.issue_for(from, &self.token(pod), &key).await.unwrap();
        let chain = issued.chain.into_iter().map(CertificateDer::from).collect();
        Some((chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }

    /// A stream of the pod's proxy; hello is not said yet.
    pub(super) async fn connect(&self, pod: &str, from: &str) -> Client {
        let credentials = self.credentials(pod, from).await;
        let client = self.connect_with(credentials, from).await.unwrap();
        Client { pod: pod.to_owned(), ..client }
    }

    pub(super) async fn connect_with(
        &self,
        credentials: Option<Credentials>,
        from: &str,
    ) -> Result<Client, Status> {
        let channel = self.channel(credentials, from).await?;
        let (sender, receiver) = mpsc::channel(16);
        let mut client = DiscoveryClient::new(channel);
        let inbound = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Client { pod: "web-1".to_owned(), outbound: sender, inbound })
    }

    async fn channel(
        &self,
        credentials: Option<Credentials>,
        from: &str,
    ) -> Result<Channel, Status> {
        let bundle = self.dir.path().join(".state/trust-bundle.pem");
        self.eventually(|| bundle.exists()).await;
        let connector = TlsConnector::from(Arc::new(self.client_config(credentials)));
        let (to, from) = (self.handle.addresses.discovery, format!("{from}:0"));
        let connect = move |_| {
            let (connector, from) = (connector.clone(), from.parse().unwrap());
            async move {
                let socket = TcpSocket::new_v4()?;
                socket.bind(from)?;
                let stream = socket.connect(to).await?;
                let name = ServerName::try_from("control-plane").unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        };
        let endpoint = Endpoint::from_static("http://control-plane");
        let channel = endpoint.connect_with_connector(tower::service_fn(connect)).await;
        channel.map_err(|error| Status::unavailable(error.to_string()))
    }

    fn client_config(&self, credentials: Option<Credentials>) -> ClientConfig {
        let pem = std::fs::read(self.dir.path().join(".state/trust-bundle.pem")).unwrap();
        let root = CertificateDer::from_pem_slice(&pem).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Arc::new(ProvesControlPlane { root, provider: provider.clone() });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match credentials {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    pub(super) async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.handle.addresses.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// The value of one series; 0 when it has none yet.
    pub(super) async fn metric(&self, series: &str) -> f64 {
        let page = self.get("/metrics").await;
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    pub(super) async fn refusals(&self, reason: &str) -> u64 {
        let series = format!("heddle_authentication_refused_total{{reason=\"{reason}\"}}");
        format!("{}", self.metric(&series).await).parse().unwrap()
    }

    pub(super) async fn ctl(&self, line: &str) -> String {
        let path = self.dir.path().join(".state/control.sock");
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

fn settings(dir: &tempfile::TempDir) -> Files {
    let state_dir = dir.path().join(".state");
    state::create_dir(&state_dir, 0o755).unwrap();
    state::write_atomic(&state_dir.join("token.key"), KEY, 0o600).unwrap();
    Files {
        dir: dir.path().to_owned(),
        token_key_file: state_dir.join("token.key"),
        trust_bundle_out: state_dir.join("trust-bundle.pem"),
        state_dir,
        authority: AuthoritySource::Own,
    }
}

fn config(dir: &tempfile::TempDir) -> Config {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Config {
        source: Source::Files(settings(dir)),
        listen: any,
        admin: any,
        leaf_lifetime: Duration::from_secs(3600),
        stream_age: Duration::from_secs(3600),
        csr_per_minute: 5,
        drain_timeout: Duration::from_secs(5),
        log_format: heddle_runtime::telemetry::Format::Plain,
        log: "info".to_owned(),
    }
}

/// A proxy's end of a stream.
#[derive(Debug)]
pub(super) struct Client {
    pod: String,
    outbound: mpsc::Sender<ToControlPlane>,
    inbound: Streaming<heddle_api::proto::v1::ToProxy>,
}

impl Client {
    pub(super) async fn hello(&self, change: impl FnOnce(&mut Hello)) {
        let mut hello = Hello {
            proxy_version: "test".to_owned(),
            level: heddle_api::names::LEVEL,
            namespace: "shop".to_owned(),
            pod: self.pod.clone(),
            ..Hello::default()
        };
        change(&mut hello);
        self.send(to_control_plane::Message::Hello(hello)).await;
    }

    pub(super) async fn subscribe(&self, add: &[&str], remove: &[&str]) {
        let owned = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
        let subscribe = Subscribe { add: owned(add), remove: owned(remove) };
        self.send(to_control_plane::Message::Subscribe(subscribe)).await;
    }

    pub(super) async fn report(&self, resource: &Resource, rejection: Option<RejectionReason>) {
        let rejection = rejection.map(|reason| Rejection {
            reason: reason.into(),
            path: "a.b".to_owned(),
            message: "out of range".to_owned(),
        });
        let report = ResourceReport {
            r#type: resource.r#type,
            name: resource.name.clone(),
            hash: resource.hash,
            rejection,
        };
        self.send(to_control_plane::Message::Report(Report { resources: vec![report] })).await;
    }

    async fn send(&self, message: to_control_plane::Message) {
        self.outbound.send(ToControlPlane { message: Some(message) }).await.unwrap();
    }

    /// The next message; `None` when the stream has ended well.
    pub(super) async fn next(&mut self) -> Result<Option<to_proxy::Message>, Status> {
        let message = tokio::time::timeout(PATIENCE, self.inbound.message()).await;
        Ok(message.expect("nothing comes")?.and_then(|message| message.message))
    }

    /// The next set, put together again.
    pub(super) async fn update(&mut self) -> Update {
        let mut all = Update { more: true, ..Update::default() };
        while all.more {
            let Some(to_proxy::Message::Update(part)) = self.next().await.unwrap() else {
                panic!("not an update");
            };
            all.resources.extend(part.resources);
            all.removed.extend(part.removed);
            all.resolved.extend(part.resolved);
            all.confirmed.extend(part.confirmed);
            (all.more, all.complete, all.version) = (part.more, part.complete, part.version);
        }
        all
    }
}

/// The types in a set, each resource once, in the order of their numbers.
pub(super) fn count(update: &Update) -> Vec<ResourceType> {
    let mut types: Vec<_> = update.resources.iter().map(|resource| resource.r#type()).collect();
    types.sort_by_key(|kind| *kind as i32);
    types
}

/// The code with which the stream was refused.
pub(super) fn refused(answer: Result<Option<to_proxy::Message>, Status>) -> Code {
    answer.expect_err("not refused").code()
}

/// What a proxy checks of the control plane: a chain to the bundle, and its identity.
#[derive(Debug)]
struct ProvesControlPlane {
    root: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ProvesControlPlane {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let wrong = |_| rustls::CertificateError::UnknownIssuer;
        let anchors = [webpki::anchor_from_trusted_cert(&self.root).map_err(wrong)?];
        let parsed = webpki::EndEntityCert::try_from(leaf).map_err(wrong)?;
        let (algorithms, usage) = (webpki::ALL_VERIFICATION_ALGS, webpki::KeyUsage::server_auth());
        parsed
            .verify_for_usage(algorithms, &anchors, intermediates, now, usage, None, None)
            .map_err(wrong)?;
        let wanted: SpiffeId =
            "spiffe://cluster.local/ns/heddle-system/sa/heddle-control-plane".parse().unwrap();
        assert_eq!(parse_identity(leaf), Ok(wanted));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
