//! Discovery against a control plane whose streams the test plays by hand.

use heddle_api::proto::v1::discovery_server::{Discovery, DiscoveryServer};
use heddle_api::proto::v1::{
    Address, Mesh, Passthrough, Reconnect, RejectionReason, Resource, ResourceRef, TryAnother,
    Unknown, Version, address,
};
use prost::Message;
use rustls::server::NoServerSessionStorage;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response};

use super::*;
use crate::tls::testing::{Ca, id};

/// A control plane whose streams the test plays by hand.
struct Fake(mpsc::Sender<Stream>);

/// One stream, seen from the control plane.
struct Stream {
    incoming: Streaming<ToControlPlane>,
    outgoing: mpsc::Sender<Result<ToProxy, tonic::Status>>,
}

#[tonic::async_trait]
impl Discovery for Fake {
    type StreamStream = ReceiverStream<Result<ToProxy, tonic::Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<ToControlPlane>>,
    ) -> Result<Response<Self::StreamStream>, tonic::Status> {
        let (outgoing, sent) = mpsc::channel(8);
        let stream = Stream { incoming: request.into_inner(), outgoing };
        self.0.send(stream).await.map_err(|_| tonic::Status::unavailable("the test has ended"))?;
        Ok(Response::new(ReceiverStream::new(sent)))
    }
}

impl Stream {
    async fn receive(&mut self) -> to_control_plane::Message {
        let message = tokio::time::timeout(Duration::from_secs(10), self.incoming.message()).await;
        message.expect("in time").unwrap().unwrap().message.unwrap()
    }

    async fn hello(&mut self) -> Hello {
        let message = self.receive().await;
        let to_control_plane::Message::Hello(hello) = message else {
            panic!("{message:?} before hello");
        };
        hello
    }

    /// The next report, as (name, reason of the rejection).
    async fn report(&mut self) -> Vec<(String, Option<RejectionReason>)> {
        let message = self.receive().await;
        let to_control_plane::Message::Report(report) = message else {
            panic!("{message:?} instead of a report");
        };
        let one = |r: ResourceReport| (r.name, r.rejection.as_ref().map(|why| why.reason()));
        report.resources.into_iter().map(one).collect()
    }

    async fn send(&self, message: to_proxy::Message) {
        self.outgoing.send(Ok(ToProxy { message: Some(message) })).await.unwrap();
    }

    async fn update(&self, update: Update) {
        self.send(to_proxy::Message::Update(update)).await;
    }
}

struct Fixture {
    shared: Shared,
    streams: mpsc::Receiver<Stream>,
    _signal: drain::Signal,
}

async fn fixture() -> Fixture {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(listener.local_addr().unwrap());
    let (accepted, streams) = mpsc::channel(4);
    let own = ca.credentials(&id("heddle-system", "heddle-control-plane"));
    tokio::spawn(serve(listener, own, Fake(accepted)));

    let identity = identity::Handle::fixed(ca.credentials(&id("shop", "web")));
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let (client, shared) = Client::new(Arc::new(config), identity, metrics, Instant::now());
    let (signal, watch) = drain::channel();
    tokio::spawn(client.run(watch));
    Fixture { shared, streams, _signal: signal }
}

fn config(control_plane: SocketAddr) -> Config {
    let variables = [
        ("HEDDLE_CONTROL_PLANE", control_plane.to_string()),
        ("HEDDLE_TRUST_DOMAIN", "cluster.local".to_owned()),
        ("HEDDLE_NAMESPACE", "shop".to_owned()),
        ("HEDDLE_POD", "web-1".to_owned()),
    ];
    Config::parse(variables.map(|(name, value)| (name.to_owned(), value))).unwrap()
}

async fn serve(listener: TcpListener, own: Credentials, fake: Fake) {
    let mut tls = (*own.server_config().unwrap()).clone();
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let incoming = futures::stream::unfold((listener, acceptor), |(listener, acceptor)| async {
        let (tcp, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(tcp).await;
        Some((stream, (listener, acceptor)))
    });
    let server = tonic::transport::Server::builder()
        .add_service(DiscoveryServer::new(fake))
        .serve_with_incoming(incoming);
    Box::pin(server).await.unwrap();
}

impl Fixture {
    async fn next_stream(&mut self) -> Stream {
        tokio::time::timeout(Duration::from_secs(10), self.streams.recv())
            .await
            .expect("in time")
            .unwrap()
    }

    /// A first stream that holds a mesh and one address nobody knows.
    async fn filled(&mut self) -> Stream {
        self.shared.destinations.request(ADDRESS.parse().unwrap());
        let mut stream = self.next_stream().await;
        stream.hello().await;
        let resources = vec![mesh(1, true), unknown(ADDRESS)];
        stream.update(Update { resources, complete: true, ..update() }).await;
        stream.report().await;
        stream
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshots.borrow().clone()
    }

    fn knows(&self, address: &str) -> bool {
        self.snapshot().find_destination(address.parse().unwrap(), 0).is_some()
    }
}

const ADDRESS: &str = "10.0.0.1:80";

fn update() -> Update {
    Update { version: Some(Version { epoch: 1, number: 7 }), ..Update::default() }
}

fn resource(kind: ResourceType, name: &str, hash: u64, body: Vec<u8>) -> Resource {
    Resource {
        r#type: kind.into(),
        name: name.into(),
        hash,
        body: body.into(),
        ..Resource::default()
    }
}

fn mesh(hash: u64, good: bool) -> Resource {
    let mesh = Mesh {
        trust_domain: if good { "cluster.local" } else { "NOT/A/DOMAIN" }.into(),
        outbound_passthrough: Passthrough::Allow.into(),
        cluster_ranges: vec![],
    };
    resource(ResourceType::Mesh, "default", hash, mesh.encode_to_vec())
}

fn unknown(address: &str) -> Resource {
    let body = Address { kind: Some(address::Kind::Unknown(Unknown {})) };
    resource(ResourceType::Address, address, 1, body.encode_to_vec())
}

#[tokio::test]
async fn only_a_whole_set_becomes_a_snapshot_and_is_reported() {
    let mut fixture = fixture().await;
    let mut snapshots = fixture.shared.snapshots.clone();
    let mut stream = fixture.next_stream().await;
    let hello = stream.hello().await;
    assert_eq!((hello.namespace.as_str(), hello.pod.as_str()), ("shop", "web-1"));
    assert_eq!((hello.level, hello.high_water, hello.held.len()), (LEVEL, None, 0));
    assert!(!fixture.shared.destinations.is_connected(), "nothing was heard yet");

    stream.update(Update { resources: vec![mesh(1, true)], more: true, ..update() }).await;
    let last = Update { resources: vec![unknown(ADDRESS)], complete: true, ..update() };
    stream.update(last).await;
    snapshots.changed().await.unwrap();
    let first = snapshots.borrow_and_update().clone();
    assert!(first.complete && first.mesh.is_some() && first.destinations().count() == 1);
    assert_eq!(stream.report().await, [("default".into(), None), (ADDRESS.into(), None)]);
    assert!(fixture.shared.destinations.is_connected());
}

#[tokio::test]
async fn a_bad_resource_is_rejected_and_the_last_good_one_kept() {
    let mut fixture = fixture().await;
    let mut stream = fixture.filled().await;
    let broken = resource(ResourceType::Address, "10.0.0.2:80", 9, vec![0xff; 3]);
    stream.update(Update { resources: vec![mesh(2, false), broken], ..update() }).await;
    assert_eq!(
        stream.report().await,
        [
            ("default".into(), Some(RejectionReason::InvalidValue)),
            ("10.0.0.2:80".into(), Some(RejectionReason::Malformed)),
        ]
    );
    let mesh = fixture.snapshot().mesh.clone().unwrap();
    assert_eq!(&*mesh.trust_domain, "cluster.local");
    assert!(fixture.knows(ADDRESS));
    let status = fixture.shared.destinations.status();
    assert!(status.last_rejection.is_some_and(|text| text.contains("10.0.0.2:80")));
}

#[tokio::test]
async fn a_destination_is_asked_for_once() {
    let mut fixture = fixture().await;
    let mut stream = fixture.filled().await;
    let wanted: SocketAddr = "[fd00::1]:443".parse().unwrap();
    for address in [wanted, wanted, ADDRESS.parse().unwrap(), wanted] {
        fixture.shared.destinations.request(address);
    }
    let to_control_plane::Message::Subscribe(subscribe) = stream.receive().await else {
        panic!("no subscription");
    };
    assert_eq!((subscribe.add, subscribe.remove), (vec!["[fd00::1]:443".to_owned()], vec![]));
    assert_eq!(fixture.shared.destinations.status().subscriptions, 2);
}

#[tokio::test]
async fn what_is_held_outlives_the_stream_and_goes_only_at_complete() {
    let mut fixture = fixture().await;
    let stream = fixture.filled().await;
    drop(stream);
    let mut stream = fixture.next_stream().await;
    let hello = stream.hello().await;
    assert!(fixture.knows(ADDRESS), "kept while the control plane was away");
    let mut held: Vec<_> = hello.held.iter().map(|held| (held.name.as_str(), held.hash)).collect();
    held.sort_unstable();
    assert_eq!(held, [(ADDRESS, 1), ("default", 1)]);
    assert_eq!(hello.addresses, [ADDRESS]);
    assert_eq!(hello.high_water, Some(Version { epoch: 1, number: 7 }));

    let confirmed = vec![ResourceRef { r#type: ResourceType::Mesh.into(), name: "default".into() }];
    let other = unknown("10.0.0.9:80");
    stream.update(Update { confirmed, resources: vec![other], more: true, ..update() }).await;
    let mut snapshots = fixture.shared.snapshots.clone();
    assert!(fixture.knows(ADDRESS), "not complete yet");
    snapshots.mark_unchanged();
    stream.update(Update { complete: true, ..update() }).await;
    snapshots.changed().await.unwrap();
    assert!(!fixture.knows(ADDRESS) && fixture.knows("10.0.0.9:80"));
    assert!(fixture.snapshot().mesh.is_some());
}

#[tokio::test]
async fn an_order_to_go_elsewhere_costs_nothing() {
    let mut fixture = fixture().await;
    let stream = fixture.filled().await;
    stream.send(to_proxy::Message::Reconnect(Reconnect {})).await;
    let mut stream = fixture.next_stream().await;
    stream.hello().await;
    let behind = TryAnother { server_version: Some(Version { epoch: 1, number: 1 }) };
    stream.send(to_proxy::Message::TryAnother(behind)).await;
    let mut stream = fixture.next_stream().await;
    assert_eq!(stream.hello().await.held.len(), 2);
    assert!(fixture.knows(ADDRESS));
    let failure = fixture.shared.destinations.status().last_failure;
    assert!(failure.is_some_and(|text| text.contains("is behind what the proxy holds")));
}

#[tokio::test]
async fn an_unchanged_answer_publishes_nothing() {
    let mut fixture = fixture().await;
    drop(fixture.filled().await);
    let mut stream = fixture.next_stream().await;
    stream.hello().await;
    let mut snapshots = fixture.shared.snapshots.clone();
    snapshots.mark_unchanged();
    let confirmed = [(ResourceType::Mesh, "default"), (ResourceType::Address, ADDRESS)];
    let confirmed =
        confirmed.map(|(kind, name)| ResourceRef { r#type: kind.into(), name: name.into() });
    stream.update(Update { confirmed: confirmed.into(), complete: true, ..update() }).await;
    // A second set is applied after the first, so once it shows, the first was judged.
    let resources = vec![mesh(2, true)];
    stream.update(Update { resources, ..update() }).await;
    snapshots.changed().await.unwrap();
    assert!(!snapshots.has_changed().unwrap());
    assert_eq!(stream.report().await.len(), 1);
}
