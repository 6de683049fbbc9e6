//! Outbound and inbound against each other in one process, with real sockets, real mesh TLS and
//! applications scripted byte by byte; no redirection, no control plane.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::proto::v1;
use heddle_runtime::drain;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, timeout};

use crate::config::Config;
use crate::discovery::Destinations;
use crate::listener::Accepted;
use crate::metrics::Metrics;
use crate::snapshot::{Destination, Snapshot, Store};
use crate::tls::testing::{Ca, id};
use crate::worker::{Connections, Shared, Worker};
use crate::{inbound, outbound};

mod http1;
mod http2;
mod opaque;
mod plaintext;
mod routes;

const PATIENCE: Duration = Duration::from_secs(10);

/// The address that clients dial in these tests.
fn dialled() -> SocketAddr {
    "10.96.0.10:80".parse().unwrap()
}

/// One side of the mesh.
struct Side {
    worker: Rc<Worker>,
    store: Store,
    snapshots: watch::Sender<Arc<Snapshot>>,
    drain: drain::Signal,
    registry: prometheus::Registry,
}

impl Side {
    fn new(ca: &Ca, account: &str, store: Store) -> Self {
        let (snapshots, seen) = watch::channel(Arc::new(Snapshot::empty()));
        let credentials = Arc::new(ca.credentials(&id("shop", account)));
        let (drain, watch) = drain::channel();
        let registry = prometheus::Registry::new();
        let worker = Worker::new(Arc::new(Shared {
            config: Arc::new(config()),
            snapshots: seen,
            credentials: watch::channel(Some(credentials)).1,
            destinations: Destinations::detached(),
            metrics: Metrics::register(&registry).unwrap(),
            connections: Connections::new(100),
            inbound: Connections::new(100),
            drain: watch,
            started: Instant::now(),
        }));
        let mut side = Self { worker, store, snapshots, drain, registry };
        side.publish();
        side
    }

    fn publish(&mut self) {
        self.snapshots.send_replace(self.store.build());
    }

    fn put(&mut self, kind: v1::ResourceType, name: &str, body: &impl Message) {
        put(&mut self.store, kind, name, body);
        self.publish();
    }
}

fn config() -> Config {
    let variables = [
        ("HEDDLE_CONTROL_PLANE", "127.0.0.1:1"),
        ("HEDDLE_TRUST_DOMAIN", "cluster.local"),
        ("HEDDLE_NAMESPACE", "shop"),
        ("HEDDLE_POD", "test"),
        ("HEDDLE_TOKEN_FILE", "/nonexistent"),
        ("HEDDLE_TRUST_BUNDLE_FILE", "/nonexistent"),
    ];
    Config::parse(variables.map(|(name, value)| (name.to_owned(), value.to_owned()))).unwrap()
}

fn put(store: &mut Store, kind: v1::ResourceType, name: &str, body: &impl Message) {
    let resource = v1::Resource {
        r#type: kind.into(),
        name: name.into(),
        version: None,
        hash: 0,
        min_level: 1,
        body: body.encode_to_vec().into(),
    };
    let update = v1::Update { resources: vec![resource], complete: true, ..v1::Update::default() };
    let reports = store.apply(update);
    assert_eq!(reports[0].rejection, None, "{name}");
}

/// A client's side that knows one Service, and a server's side before one application.
struct Mesh {
    ca: Ca,
    outbound: Side,
    inbound: Side,
    /// Where the inbound side takes connections, as an endpoint.
    endpoint: SocketAddr,
}

impl Mesh {
    /// `app` is where the application listens, or does not.
    async fn new(app: SocketAddr, protocol: v1::Protocol) -> Self {
        let ca = Ca::new();
        let inbound = inbound_side(&ca);
        let endpoint = listen_inbound(&inbound.worker, app).await;

        let mut store = Store::new(None);
        let service = v1::Service {
            ports: vec![v1::Port { port: 80, protocol: protocol.into(), ..v1::Port::default() }],
            ..v1::Service::default()
        };
        put(&mut store, v1::ResourceType::Service, "shop/web", &service);
        let address = v1::Address {
            kind: Some(v1::address::Kind::Service(v1::ServicePort {
                service: "shop/web".into(),
                port: 80,
            })),
        };
        put(&mut store, v1::ResourceType::Address, &dialled().to_string(), &address);
        let mut outbound = Side::new(&ca, "frontend", store);
        outbound.put(v1::ResourceType::Endpoints, "shop/web:80", &endpoints(&[endpoint]));
        Self { ca, outbound, inbound, endpoint }
    }

    /// Another proxy of the same workload.
    fn inbound_side(&self) -> Side {
        inbound_side(&self.ca)
    }

    fn endpoints(&mut self, addresses: &[SocketAddr]) {
        let body = endpoints(addresses);
        self.outbound.put(v1::ResourceType::Endpoints, "shop/web:80", &body);
    }

    fn policy(&mut self, rules: Vec<v1::Authorization>) {
        self.inbound.put(v1::ResourceType::InboundPolicy, "shop/web", &policy(rules));
    }

    /// A connection of the client's application, as redirected to its proxy.
    async fn dial(&self) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, peer) = listener.accept().await.unwrap();
        // As the listener does.
        tcp.set_nodelay(true).unwrap();
        let worker = self.outbound.worker.clone();
        spawn_local(async move {
            outbound::serve(Accepted { tcp, peer, original: dialled() }, &worker).await;
        });
        client
    }
}

fn inbound_side(ca: &Ca) -> Side {
    let mut store = Store::new(None);
    put(&mut store, v1::ResourceType::InboundPolicy, "shop/web", &policy(vec![]));
    Side::new(ca, "web", store)
}

/// Takes connections as if the kernel had redirected them from `app`.
async fn listen_inbound(worker: &Rc<Worker>, app: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let worker = worker.clone();
    spawn_local(async move {
        while let Ok((tcp, peer)) = listener.accept().await {
            tcp.set_nodelay(true).unwrap();
            let worker = worker.clone();
            spawn_local(async move {
                inbound::serve(Accepted { tcp, peer, original: app }, &worker).await;
            });
        }
    });
    address
}

fn endpoints(addresses: &[SocketAddr]) -> v1::Endpoints {
    let endpoints = addresses
        .iter()
        .map(|address| v1::Endpoint {
            address: address.ip().to_string(),
            port: address.port().into(),
            identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
            ready: true,
            pod: "shop/web".into(),
            ..v1::Endpoint::default()
        })
        .collect();
    v1::Endpoints { endpoints }
}

fn policy(authorizations: Vec<v1::Authorization>) -> v1::InboundPolicy {
    v1::InboundPolicy {
        namespace: "shop".into(),
        pod: "web".into(),
        addresses: vec!["127.0.0.1".into()],
        default_tls: v1::TlsMode::Strict.into(),
        default_authorization: v1::DefaultAuthorization::AllowAuthenticated.into(),
        authorizations,
        ..v1::InboundPolicy::default()
    }
}

/// An application: what it is sent on its n-th connection, it answers as scripted.
async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address where nobody listens.
async fn closed_port() -> SocketAddr {
    listen().await.1
}

/// Reads until `end` has been seen.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut got = Vec::new();
    let read = async {
        loop {
            let text = String::from_utf8_lossy(&got);
            if text.contains(end) {
                return text.into_owned();
            }
            let mut chunk = [0; 4096];
            let n = stream.read(&mut chunk).await.unwrap();
            assert!(n > 0, "closed after {text:?}");
            got.extend_from_slice(&chunk[..n]);
        }
    };
    timeout(PATIENCE, read).await.expect("the bytes come in time")
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut got = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut got)).await.expect("an end in time").unwrap();
    got
}

async fn write(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn accept(listener: &TcpListener) -> TcpStream {
    timeout(PATIENCE, listener.accept()).await.expect("a connection in time").unwrap().0
}

/// Runs a test on the one thread that a data thread is.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}
