//! Certificates from a control plane that signs whatever it is asked to.

use std::net::SocketAddr;
use std::sync::Mutex;

use heddle_api::proto::v1::identity_server::{Identity, IdentityServer};
use heddle_api::proto::v1::{IssueRequest, IssueResponse};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};

use super::*;
use crate::config::{AccessLog, LogFormat};
use crate::tls::testing::{Ca, id, leaf};

/// Signs what it is asked to, and keeps what it was asked.
struct Issuer {
    ca: Ca,
    issues: SpiffeId,
    life: Duration,
    seen: Arc<Mutex<Vec<IssueRequest>>>,
}

#[tonic::async_trait]
impl Identity for Issuer {
    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        let request = request.into_inner();
        let chain = vec![self.ca.sign_csr(&request.csr, &self.issues, self.life)];
        self.seen.lock().unwrap().push(request);
        let roots = vec![self.ca.root().to_vec()];
        Ok(Response::new(IssueResponse { chain, roots, not_after: 0 }))
    }
}

struct Fixture {
    config: Arc<Config>,
    seen: Arc<Mutex<Vec<IssueRequest>>>,
    root: CertificateDer<'static>,
    _files: tempfile::TempDir,
}

/// A control plane that issues for `issues`, and a configuration that points to it.
async fn fixture(issues: SpiffeId, life: Duration) -> Fixture {
    let ca = Ca::new();
    let root = ca.root();
    let own = ca.credentials(&id("heddle-system", "heddle-control-plane"));
    let files = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(listener.local_addr().unwrap(), &files);
    std::fs::write(&config.token_file, "the-token\n").unwrap();
    std::fs::write(&config.trust_bundle_file, pem(&root)).unwrap();
    let seen = Arc::default();
    let issuer = Issuer { ca, issues, life, seen: Arc::clone(&seen) };
    tokio::spawn(serve(listener, own, issuer));
    Fixture { config, seen, root, _files: files }
}

async fn serve(listener: TcpListener, own: Credentials, issuer: Issuer) {
    let mut config = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        // The caller of Issue has no certificate yet.
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&own.server_config().unwrap().cert_resolver));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let incoming = futures::stream::unfold((listener, acceptor), |(listener, acceptor)| async {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            if let Ok(stream) = acceptor.accept(tcp).await {
                return Some((Ok::<_, std::io::Error>(stream), (listener, acceptor)));
            }
        }
    });
    let server = tonic::transport::Server::builder()
        .add_service(IdentityServer::new(issuer))
        .serve_with_incoming(incoming);
    Box::pin(server).await.unwrap();
}

fn config(control_plane: SocketAddr, files: &tempfile::TempDir) -> Arc<Config> {
    let any = "127.0.0.1:0".parse().unwrap();
    Arc::new(Config {
        control_plane: control_plane::Address::Ip(control_plane),
        trust_domain: "cluster.local".into(),
        namespace: "shop".into(),
        pod: "web-1".into(),
        node: None,
        token_file: files.path().join("token"),
        trust_bundle_file: files.path().join("bundle.pem"),
        control_socket: files.path().join("control.sock"),
        outbound_listen: any,
        inbound_listen: any,
        canary: false,
        metrics_listen: any,
        probes: None,
        probe_listen: any,
        threads: std::num::NonZeroUsize::MIN,
        log: "info".into(),
        log_format: LogFormat::Plain,
        access_log: AccessLog::Off,
        drain_timeout: Duration::from_secs(1),
    })
}

fn pem(root: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(root);
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

fn service(config: &Arc<Config>) -> (Service, Handle) {
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    Service::new(Arc::clone(config), metrics)
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn every_certificate_has_a_new_key_and_the_token_of_the_moment() {
    let fixture = fixture(id("shop", "web"), HOUR).await;
    let (service, handle) = service(&fixture.config);
    let (signal, watch) = drain::channel();
    let task = tokio::spawn(service.run(watch));
    let mut credentials = handle.credentials();
    let first = credentials.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(*first.id(), id("shop", "web"));
    std::fs::write(&fixture.config.token_file, "another-token").unwrap();
    handle.renew();
    credentials.changed().await.unwrap();
    let second = credentials.borrow_and_update().clone().unwrap();
    assert_ne!(first.serial(), second.serial());
    assert_eq!(handle.last_failure(), None);
    signal.abort();
    task.await.unwrap();
    let seen = fixture.seen.lock().unwrap();
    let tokens: Vec<_> = seen.iter().map(|request| request.token.as_str()).collect();
    assert_eq!(tokens, ["the-token", "another-token"]);
    assert_ne!(public_key(&seen[0].csr), public_key(&seen[1].csr));
}

fn public_key(csr: &[u8]) -> Vec<u8> {
    use x509_parser::prelude::{FromDer, X509CertificationRequest};
    let (_, csr) = X509CertificationRequest::from_der(csr).unwrap();
    csr.certification_request_info.subject_pki.raw.to_vec()
}

#[tokio::test]
async fn a_short_certificate_is_renewed_by_itself_before_its_end() {
    let fixture = fixture(id("shop", "web"), Duration::from_secs(3)).await;
    let (service, handle) = service(&fixture.config);
    let (_signal, watch) = drain::channel();
    tokio::spawn(service.run(watch));
    let mut credentials = handle.credentials();
    let first = credentials.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    credentials.changed().await.unwrap();
    let second = credentials.borrow_and_update().clone().unwrap();
    assert_ne!(first.serial(), second.serial());
    assert!(!first.is_expired(SystemTime::now()), "renewed before the end");
}

/// What `fetch` says, with all causes.
async fn failure(config: &Config) -> String {
    Chain(&fetch(config, None).await.unwrap_err()).to_string()
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let fixture = fixture(id("bank", "web"), HOUR).await;
    let config = &*fixture.config;
    let text = failure(config).await;
    assert!(text.contains("spiffe://cluster.local/ns/bank/sa/web, which is not of"), "{text}");
    std::fs::write(&config.token_file, " \n").unwrap();
    let text = failure(config).await;
    assert!(text.ends_with("token does not hold a token"), "{text}");
    std::fs::write(&config.token_file, "x".repeat(8193)).unwrap();
    let text = failure(config).await;
    assert!(text.ends_with("is larger than 8192 bytes"), "{text}");
    std::fs::write(&config.token_file, "good").unwrap();
    std::fs::write(&config.trust_bundle_file, "nothing").unwrap();
    let text = failure(config).await;
    assert!(text.contains("bundle.pem is not a trust bundle in PEM"), "{text}");
    std::fs::remove_file(&config.trust_bundle_file).unwrap();
    let text = failure(config).await;
    assert!(text.contains("bundle.pem cannot be read"), "{text}");
}

#[tokio::test]
async fn a_control_plane_with_another_ca_is_refused_and_the_certificate_kept() {
    let fixture = fixture(id("shop", "web"), HOUR).await;
    let stranger = Ca::new();
    std::fs::write(&fixture.config.trust_bundle_file, pem(&stranger.root())).unwrap();
    let text = failure(&fixture.config).await;
    assert!(text.contains("does not prove to be the control plane of this mesh"), "{text}");
    assert!(text.ends_with("chains to no root of the trust bundle"), "{text}");
    assert!(fixture.seen.lock().unwrap().is_empty(), "the token must not reach it");
}

#[tokio::test]
async fn a_bundle_that_our_own_certificate_does_not_chain_to_is_refused() {
    let fixture = fixture(id("shop", "web"), HOUR).await;
    let (service, handle) = service(&fixture.config);
    let (_signal, watch) = drain::channel();
    tokio::spawn(service.run(watch));
    let mut credentials = handle.credentials();
    credentials.wait_for(Option::is_some).await.unwrap();
    credentials.mark_unchanged();

    let stranger = Ca::new().root().to_vec();
    let refused = handle.offer_bundle(std::slice::from_ref(&stranger)).await.unwrap_err();
    assert!(matches!(refused, BundleRefused::Unusable(_)), "{refused:?}");
    let refused = handle.offer_bundle(&[]).await.unwrap_err();
    assert!(matches!(refused, BundleRefused::Invalid(BundleError::Empty)), "{refused:?}");
    assert!(!credentials.has_changed().unwrap());

    let own = fixture.root.to_vec();
    handle.offer_bundle(std::slice::from_ref(&own)).await.unwrap();
    assert!(!credentials.has_changed().unwrap(), "the same roots rebuild nothing");
    handle.offer_bundle(&[own, stranger]).await.unwrap();
    assert!(credentials.has_changed().unwrap());
    assert_eq!(credentials.borrow().as_ref().unwrap().bundle().len(), 2);
}

#[test]
fn the_pushed_bundle_wins_unless_the_new_certificate_is_newer() {
    let (old, new) = (Ca::new(), Ca::new());
    let pushed = Arc::new(old.bundle().union(&Ca::new().bundle()));
    let issue = |ca: &Ca| ca.sign(&leaf(&["spiffe://cluster.local/ns/shop/sa/web"]));
    let sent = |ca: &Ca| TrustBundle::new("cluster.local".into(), [ca.root()]).unwrap();

    let issued = issue(&old);
    let own = assemble(vec![issued.leaf], issued.key, Some(&pushed), sent(&old)).unwrap();
    assert!(own.bundle().same_roots(&pushed));

    let issued = issue(&new);
    let own = assemble(vec![issued.leaf], issued.key, Some(&pushed), sent(&new)).unwrap();
    assert!(own.bundle().same_roots(&new.bundle()));
}
