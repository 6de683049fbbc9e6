//! A real control plane and the control side of a real proxy in one process: certificates,
//! discovery, readiness, and what each does while the other is away. No traffic, no root.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle_control_plane::app::{App as ControlPlane, Handle};
use heddle_control_plane::authn::{Claims, mint_token};
use heddle_control_plane::config::RawConfig;
use heddle_proxy::app::App as Proxy;
use heddle_proxy::config::Config;
use heddle_proxy::control;
use heddle_proxy::snapshot::{Destination, Snapshot};
use tokio::sync::watch;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);
const WEB: &str = "10.96.0.1:80";
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: { name: web, namespace: shop }\n\
    spec: { clusterIP: 10.96.0.1, ports: [{ name: http, port: 80 }] }\n";
const TOKEN_KEY: &[u8] = b"a key of at least thirty-two bytes";

/// A directory of manifests with its state, and the bootstrap files of the pod `shop/web-1`, whose
/// address is this machine's own.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(world.state("")).unwrap();
        let key = world.state("token.key");
        std::fs::write(&key, TOKEN_KEY).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(world.dir.path().join("web.yaml"), SERVICE).unwrap();
        world.publish(&["10.0.0.1"]);
        world.write_token(TOKEN_KEY);
        world
    }

    fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join(".state").join(name)
    }

    /// One pod with a proxy, and the Service's endpoints.
    fn publish(&self, endpoints: &[&str]) {
        let endpoints: String = endpoints
            .iter()
            .map(|ip| format!("  - {{ addresses: [{ip}], conditions: {{ ready: true }} }}\n"))
            .collect();
        let text = format!(
            "apiVersion: v1\n\
             kind: Pod\n\
             metadata: {{ name: web-1, namespace: shop, uid: uid-1 }}\n\
             spec: {{ serviceAccountName: web, nodeName: n1, containers: [{{ name: app, image: x }}, \
             {{ name: heddle-proxy, image: x }}] }}\n\
             status: {{ phase: Running, podIPs: [{{ ip: 127.0.0.1 }}] }}\n\
             ---\n\
             apiVersion: discovery.k8s.io/v1\n\
             kind: EndpointSlice\n\
             metadata: {{ name: web-1, namespace: shop, labels: {{ kubernetes.io/service-name: web }} }}\n\
             addressType: IPv4\n\
             ports: [{{ name: http, port: 8080 }}]\n\
             endpoints:\n{endpoints}"
        );
        let staged = self.dir.path().join(".staged");
        std::fs::write(&staged, text).unwrap();
        std::fs::rename(staged, self.state("objects.yaml")).unwrap();
    }

    fn write_token(&self, key: &[u8]) {
        let hour = SystemTime::now() + Duration::from_secs(3600);
        let claims = Claims {
            namespace: "shop".into(),
            pod: "web-1".into(),
            uid: "uid-1".into(),
            exp: hour.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(),
        };
        std::fs::write(self.dir.path().join("token"), mint_token(key, &claims)).unwrap();
    }

    async fn control_plane(&self, listen: SocketAddr) -> Handle {
        let raw = RawConfig {
            source: "files".into(),
            dir: Some(self.dir.path().into()),
            listen: listen.to_string(),
            admin: "127.0.0.1:0".into(),
            leaf_lifetime: "24h".into(),
            stream_age: "30m".into(),
            csr_per_minute: Some("1000".into()),
            drain_timeout: "5s".into(),
            log_format: "plain".into(),
            log: "info".into(),
            ..RawConfig::default()
        };
        ControlPlane::start(raw.check().unwrap(), None).await.unwrap()
    }

    /// The proxy of `shop/web-1`; `roots` is where it finds the first roots to trust.
    async fn proxy(&self, control_plane: SocketAddr, roots: &Path) -> Proxy {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let any = "127.0.0.1:0".to_owned();
        let variables = [
            ("HEDDLE_CONTROL_PLANE", control_plane.to_string()),
            ("HEDDLE_TRUST_DOMAIN", "cluster.local".to_owned()),
            ("HEDDLE_NAMESPACE", "shop".to_owned()),
            ("HEDDLE_POD", "web-1".to_owned()),
            ("HEDDLE_TOKEN_FILE", path("token")),
            ("HEDDLE_TRUST_BUNDLE_FILE", roots.display().to_string()),
            ("HEDDLE_CONTROL_SOCKET", path("control.sock")),
            ("HEDDLE_OUTBOUND_LISTEN", any.clone()),
            ("HEDDLE_INBOUND_LISTEN", any.clone()),
            ("HEDDLE_METRICS_LISTEN", any),
            ("HEDDLE_CANARY", "off".to_owned()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value));
        Proxy::start(Config::parse(variables).unwrap(), None).await.unwrap()
    }

    /// Both, ready.
    async fn both(&self) -> (Handle, Proxy) {
        let control_plane = self.control_plane("127.0.0.1:0".parse().unwrap()).await;
        let roots = self.state("trust-bundle.pem");
        let proxy = self.proxy(control_plane.addresses.discovery, &roots).await;
        until_ready(&proxy).await;
        (control_plane, proxy)
    }

    async fn ask(&self, line: &str) -> Result<String, control::AskError> {
        control::ask(&self.dir.path().join("control.sock"), line, PATIENCE).await
    }
}

async fn until_ready(proxy: &Proxy) {
    let mut ready = proxy.ready.clone();
    let last = ready.clone();
    let waited = timeout(PATIENCE, ready.wait_for(|ready| ready.is_ready())).await.is_ok();
    assert!(waited, "{:?}", last.borrow());
}

/// Waits for a value that satisfies `accept`.
async fn until<T: Clone>(receiver: &watch::Receiver<T>, accept: impl Fn(&T) -> bool) -> T {
    let mut receiver = receiver.clone();
    let found = timeout(PATIENCE, receiver.wait_for(|value| accept(value))).await;
    found.expect("in time").unwrap().clone()
}

/// Addresses of the endpoints behind the Service; `None` before the proxy knows it.
fn endpoints(snapshot: &Snapshot) -> Option<Vec<String>> {
    let address: SocketAddr = WEB.parse().unwrap();
    let (_, entry) = snapshot.destinations().find(|(key, _)| **key == address)?;
    let Destination::Service(port) = &entry.destination else { return None };
    Some(port.backends[0].ready.iter().map(|e| e.address.ip().to_string()).collect())
}

async fn until_endpoints(proxy: &Proxy, want: &[&str]) {
    until(&proxy.shared.snapshots, |s: &Arc<Snapshot>| endpoints(s).is_some_and(|e| e == want))
        .await;
}

fn serial(proxy: &Proxy) -> String {
    let credentials = proxy.shared.credentials.borrow();
    credentials.as_ref().unwrap().serial().to_string()
}

async fn until_serial_changes(proxy: &Proxy, before: &str) {
    until(&proxy.shared.credentials, |own| {
        own.as_ref().is_some_and(|own| own.serial().to_string() != before)
    })
    .await;
}

#[tokio::test]
async fn a_proxy_learns_what_it_asks_for_and_hears_of_changes() {
    let world = World::new();
    let (_control_plane, proxy) = world.both().await;
    let own = proxy.shared.credentials.borrow().clone().unwrap();
    assert_eq!(own.id().to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    proxy.shared.destinations.request(WEB.parse().unwrap());
    until_endpoints(&proxy, &["10.0.0.1"]).await;
    world.publish(&["10.0.0.1", "10.0.0.2"]);
    until_endpoints(&proxy, &["10.0.0.1", "10.0.0.2"]).await;
    world.publish(&["10.0.0.2"]);
    until_endpoints(&proxy, &["10.0.0.2"]).await;
    let dump: serde_json::Value = serde_json::from_str(&world.ask("dump").await.unwrap()).unwrap();
    assert_eq!(dump["certificate"]["serial"], own.serial().to_string());
    assert_eq!(dump["control_plane"]["connected"], true);
    let backends = &dump["snapshot"]["destinations"][WEB]["backends"];
    assert_eq!(backends[0]["endpoints"][0]["address"], "10.0.0.2:8080");
    proxy.abort();
}

#[tokio::test]
async fn everything_stays_while_the_control_plane_is_away() {
    let world = World::new();
    let (control_plane, proxy) = world.both().await;
    let listen = control_plane.addresses.discovery;
    proxy.shared.destinations.request(WEB.parse().unwrap());
    until_endpoints(&proxy, &["10.0.0.1"]).await;
    control_plane.shutdown(Duration::from_secs(5)).await;
    world.publish(&["10.0.0.7"]);
    assert!(proxy.ready.borrow().is_ready());
    assert_eq!(endpoints(&proxy.shared.snapshots.borrow()), Some(vec!["10.0.0.1".to_owned()]));

    let before = serial(&proxy);
    let _control_plane = world.control_plane(listen).await;
    until_endpoints(&proxy, &["10.0.0.7"]).await;
    assert_eq!(serial(&proxy), before, "a new stream needs no new certificate");
    proxy.abort();
}

#[tokio::test]
async fn a_certificate_is_renewed_on_order_from_either_side() {
    let world = World::new();
    let (control_plane, proxy) = world.both().await;
    let first = serial(&proxy);
    assert_eq!(control_plane.fleet.renew(None), 1);
    until_serial_changes(&proxy, &first).await;
    let second = serial(&proxy);
    let third = world.ask("renew").await.unwrap();
    assert_ne!(third.trim(), second);
    assert_eq!(third.trim(), serial(&proxy));
    assert!(proxy.shared.destinations.is_connected(), "the stream went on");
    proxy.abort();
}

#[tokio::test]
async fn a_proxy_that_starts_alone_says_why_and_serves_when_the_control_plane_comes() {
    let world = World::new();
    let first = world.control_plane("127.0.0.1:0".parse().unwrap()).await;
    let listen = first.addresses.discovery;
    let roots = world.dir.path().join("roots.pem");
    until_exists(&world.state("trust-bundle.pem")).await;
    std::fs::copy(world.state("trust-bundle.pem"), &roots).unwrap();
    first.shutdown(Duration::from_secs(5)).await;

    let proxy = world.proxy(listen, &roots).await;
    let unready = world.ask("ready").await.unwrap_err().to_string();
    assert!(unready.contains("certificate: not obtained yet"), "{unready}");
    assert!(unready.contains("snapshot: not received yet"), "{unready}");
    let _second = world.control_plane(listen).await;
    until_ready(&proxy).await;
    proxy.abort();
}

async fn until_exists(path: &Path) {
    let appears = async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, appears).await.expect("the control plane writes its roots");
}

#[tokio::test]
async fn a_control_plane_with_another_ca_is_refused() {
    let world = World::new();
    let (control_plane, proxy) = world.both().await;
    let listen = control_plane.addresses.discovery;
    proxy.shared.destinations.request(WEB.parse().unwrap());
    until_endpoints(&proxy, &["10.0.0.1"]).await;
    let before = serial(&proxy);
    control_plane.shutdown(Duration::from_secs(5)).await;

    let other = World::new();
    other.publish(&["10.0.0.66"]);
    let _impostor = other.control_plane(listen).await;
    let refused = world.ask("renew").await.unwrap_err().to_string();
    assert!(refused.contains("does not prove to be the control plane of this mesh"), "{refused}");
    assert!(refused.contains("chains to no root of the trust bundle"), "{refused}");
    let status = proxy.shared.destinations.status();
    assert!(!status.connected);
    assert_eq!(endpoints(&proxy.shared.snapshots.borrow()), Some(vec!["10.0.0.1".to_owned()]));
    assert_eq!(serial(&proxy), before);
    proxy.abort();
}

#[tokio::test]
async fn a_forged_token_gets_no_certificate_and_the_reason_is_shown() {
    let world = World::new();
    world.write_token(b"another key of at least thirty-two bytes");
    let control_plane = world.control_plane("127.0.0.1:0".parse().unwrap()).await;
    until_exists(&world.state("trust-bundle.pem")).await;
    let roots = world.state("trust-bundle.pem");
    let proxy = world.proxy(control_plane.addresses.discovery, &roots).await;
    until(&proxy.ready, |ready| {
        ready.blockers().any(|(part, why)| part == "certificate" && why.contains("MAC is wrong"))
    })
    .await;
    assert!(proxy.shared.credentials.borrow().is_none());
    world.write_token(TOKEN_KEY);
    until_ready(&proxy).await;
    proxy.abort();
}

#[tokio::test]
async fn a_drain_makes_the_proxy_unready_and_ends_when_nothing_is_left() {
    let world = World::new();
    let (_control_plane, proxy) = world.both().await;
    assert_eq!(world.ask("ready").await.unwrap(), "ready\n");
    assert_eq!(world.ask("drain").await.unwrap(), "drained: no connection is left\n");
    until(&proxy.ready, |ready| ready.blockers().any(|(part, _)| part == "serving")).await;
    proxy.finish().await;
    proxy.join();
}

#[tokio::test]
async fn a_second_proxy_of_the_same_pod_does_not_start() {
    let world = World::new();
    let (control_plane, proxy) = world.both().await;
    let listen = control_plane.addresses.discovery.to_string();
    let variables = [
        ("HEDDLE_CONTROL_PLANE", listen),
        ("HEDDLE_TRUST_DOMAIN", "cluster.local".to_owned()),
        ("HEDDLE_NAMESPACE", "shop".to_owned()),
        ("HEDDLE_POD", "web-1".to_owned()),
        ("HEDDLE_CONTROL_SOCKET", world.dir.path().join("control.sock").display().to_string()),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value));
    let second = Proxy::start(Config::parse(variables).unwrap(), None).await;
    let error = second.err().expect("refused").to_string();
    assert!(error.starts_with("another proxy holds"), "{error}");
    proxy.abort();
}
