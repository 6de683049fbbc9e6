//! Identity against a real API server: who is given a certificate, and how roots come and go. The
//! control planes run in this process, and so does the proxy; what a kubelet would do is written by
//! hand. No root, no traffic.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::time::{Duration, SystemTime};

use heddle_api::names::{
    TRUST_ANCHORS_SECRET, TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY, TRUST_ROOT_SECRET,
};
use heddle_api::proto::v1::identity_client::IdentityClient;
use heddle_api::proto::v1::{IssueRequest, IssueResponse};
use heddle_control_plane::app::Handle;
use heddle_control_plane::authn::parse_identity;
use heddle_control_plane::ca::secret;
use heddle_proxy::app::App as Proxy;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

use self::world::{AUDIENCE, Content, OWN_ADDRESS, PATIENCE, SYSTEM, World, eventually};

#[path = "api_identity/world.rs"]
mod world;

fn csr() -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

fn leaf_of(answer: &IssueResponse) -> CertificateDer<'static> {
    CertificateDer::from(answer.chain[0].clone())
}

/// Whether the root in `pem` signed `leaf`.
fn is_signed_by(leaf: &CertificateDer<'_>, pem: &[u8]) -> bool {
    use rustls::pki_types::pem::PemObject;
    let root = CertificateDer::from_pem_slice(pem).unwrap();
    let (_, root) = X509Certificate::from_der(&root).unwrap();
    let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
    leaf.verify_signature(Some(root.public_key())).is_ok()
}

/// The value of a series of a control plane; 0 when it has none yet.
async fn metric(of: &Handle, series: &str) -> f64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(of.addresses.admin).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
    line.map_or(0.0, |value| value.parse().unwrap())
}

async fn until_served(replica: &Handle) {
    let mut served = replica.served.clone();
    let is_read = tokio::time::timeout(PATIENCE, served.wait_for(Option::is_some)).await.is_ok();
    assert!(is_read, "the sources are not read");
}

#[tokio::test]
async fn a_token_is_worth_its_own_pods_certificate_and_nothing_else() {
    let world = World::start().await;
    let replica = world.replica("a").await;
    let web = world.pod("web-1", "web", OWN_ADDRESS).await;
    let db = world.pod("db-1", "db", "127.0.0.2").await;
    until_served(&replica).await;
    let good = world.token("web", AUDIENCE, Some(&web)).await;

    // The name is ours to choose, whatever is asked for.
    let key = KeyPair::generate().unwrap();
    let mut wanted = CertificateParams::default();
    let other = "spiffe://cluster.local/ns/heddle-system/sa/heddle-control-plane";
    wanted.subject_alt_names = vec![SanType::URI(other.try_into().unwrap())];
    let wanted = wanted.serialize_request(&key).unwrap().der().to_vec();
    for csr in [csr(), wanted] {
        let answer = world.issue(&replica, &good, csr).await.unwrap();
        let identity = parse_identity(&leaf_of(&answer)).unwrap();
        assert_eq!(identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    }

    let gone = world.pod("web-2", "web", OWN_ADDRESS).await;
    let of_the_gone = world.token("web", AUDIENCE, Some(&gone)).await;
    let pods = Api::<Pod>::namespaced(world.client.clone(), "shop");
    pods.delete("web-2", &DeleteParams::default().grace_period(0)).await.unwrap();
    let mut forged = good.clone();
    forged.replace_range(good.len() - 8.., "AAAAAAAA");
    let other_audience = world.token("web", "vault", Some(&web)).await;
    let unbound = world.token("web", AUDIENCE, None).await;
    let anothers = world.token("db", AUDIENCE, Some(&db)).await;
    let legacy = legacy_token(&world).await;
    for (name, token, code, reason) in [
        ("no token", "", Code::Unauthenticated, "token_missing"),
        ("no service-account token", "x", Code::Unauthenticated, "token_unreadable"),
        ("another audience", &other_audience, Code::Unauthenticated, "token_audience"),
        ("a legacy token", &legacy, Code::Unauthenticated, "token_audience"),
        ("bound to no pod", &unbound, Code::Unauthenticated, "token_not_bound"),
        ("a forged signature", &forged, Code::Unauthenticated, "token_invalid"),
        ("a deleted pod's", &of_the_gone, Code::Unauthenticated, "token_revoked"),
        ("another pod's, carried here", &anothers, Code::PermissionDenied, "other_address"),
    ] {
        let series = format!("heddle_authentication_refused_total{{reason=\"{reason}\"}}");
        let before = metric(&replica, &series).await;
        let refused = world.issue(&replica, token, csr()).await.unwrap_err();
        assert_eq!(refused.code(), code, "{name}: {refused}");
        assert!(metric(&replica, &series).await > before, "{name} is not counted as {reason}");
    }
    replica.shutdown(Duration::ZERO).await;
}

/// Of the kind that has no audience and no end.
async fn legacy_token(world: &World) -> String {
    let manifest = "{apiVersion: v1, kind: Secret, type: kubernetes.io/service-account-token, \
        metadata: {name: old, namespace: shop, \
        annotations: {kubernetes.io/service-account.name: web}}}";
    world.api.apply(manifest).await.unwrap();
    let secrets = Api::<Secret>::namespaced(world.client.clone(), "shop");
    eventually("the token of a Secret", async || {
        let token = secrets.get("old").await.unwrap().data?.remove("token")?;
        String::from_utf8(token.0).ok()
    })
    .await
}

#[tokio::test]
async fn a_pod_may_ask_before_the_watch_has_told_of_it_but_not_while_nobody_can_be_asked() {
    let mut world = World::start().await;
    let replica = world.replica("a").await;
    until_served(&replica).await;
    for name in ["web-1", "web-2", "web-3"] {
        let pod = world.pod(name, "web", OWN_ADDRESS).await;
        let token = world.token("web", AUDIENCE, Some(&pod)).await;
        world.issue(&replica, &token, csr()).await.unwrap();
        let pods = Api::<Pod>::namespaced(world.client.clone(), "shop");
        pods.delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    }
    let pod = world.pod("web-4", "web", OWN_ADDRESS).await;
    let token = world.token("web", AUDIENCE, Some(&pod)).await;
    world.issue(&replica, &token, csr()).await.unwrap();
    let pem = world.until_bundle("shop", |roots| roots > 0).await;
    world.api.kill();
    let channel = world::connect(&replica, &pem).await.unwrap();
    let request = IssueRequest { token: token.clone(), csr: csr() };
    let refused = IdentityClient::new(channel).issue(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    world.api.restart().await.unwrap();
    world.issue(&replica, &token, csr()).await.unwrap();
    replica.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn replicas_that_start_together_make_one_root_and_keep_it_where_pods_start() {
    let world = World::start().await;
    let (a, b) = tokio::join!(world.replica("a"), world.replica("b"));
    until_served(&a).await;
    until_served(&b).await;
    let roots = |of: &Handle| of.served.borrow().as_ref().unwrap().bundle.roots.clone();
    assert_eq!(roots(&a), roots(&b));
    assert_eq!(roots(&a).len(), 1);
    let made = world.secret(TRUST_ROOT_SECRET).await.unwrap();
    assert_eq!(made[secret::ROOTS], made[secret::CERTIFICATE]);
    let pem = world.until_bundle("shop", |roots| roots == 1).await;
    assert_eq!(world.bundle(SYSTEM).await, None, "nothing is written where nobody asks");

    // A namespace that is labelled later, and a pod that asks by itself.
    world.namespace("late", Some("enabled")).await;
    world.until_bundle("late", |roots| roots == 1).await;
    world.namespace("single", None).await;
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: single, \
        labels: {heddle.io/inject: enabled}}, spec: {containers: [{name: a, image: a}]}}";
    eventually("a service account", async || world.api.apply(pod).await.ok()).await;
    world.until_bundle("single", |roots| roots == 1).await;

    // Deleted or changed by somebody: as it was. Kept where the label has gone.
    let maps = Api::<ConfigMap>::namespaced(world.client.clone(), "shop");
    maps.delete(TRUST_BUNDLE_CONFIG_MAP, &DeleteParams::default()).await.unwrap();
    assert_eq!(world.until_bundle("shop", |roots| roots == 1).await, pem);
    let evil = json!({ "data": { TRUST_BUNDLE_KEY: "evil" } });
    let patch = Patch::Merge(&evil);
    maps.patch(TRUST_BUNDLE_CONFIG_MAP, &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(world.until_bundle("shop", |roots| roots == 1).await, pem);
    let namespaces = Api::<Namespace>::all(world.client.clone());
    let unlabel = json!({ "metadata": { "labels": { "heddle.io/inject": null } } });
    let patch = Patch::Merge(&unlabel);
    namespaces.patch("late", &PatchParams::default(), &patch).await.unwrap();
    maps.delete(TRUST_BUNDLE_CONFIG_MAP, &DeleteParams::default()).await.unwrap();
    world.until_bundle("shop", |roots| roots == 1).await;
    assert_eq!(world.bundle("late").await, Some(pem));

    // The root itself is restored when somebody deletes it, and stays in force meanwhile.
    let secrets = Api::<Secret>::namespaced(world.client.clone(), SYSTEM);
    secrets.delete(TRUST_ROOT_SECRET, &DeleteParams::default()).await.unwrap();
    let restored = eventually("the root", async || world.secret(TRUST_ROOT_SECRET).await).await;
    assert_eq!(restored, made);
    assert_eq!(roots(&a), roots(&b));
    a.shutdown(Duration::ZERO).await;
    b.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_root_is_replaced_under_a_running_proxy() {
    let world = World::start().await;
    let (a, b) = tokio::join!(world.replica("a"), world.replica("b"));
    let web = world.pod("web-1", "web", OWN_ADDRESS).await;
    until_served(&a).await;
    until_served(&b).await;
    let token = world.token("web", AUDIENCE, Some(&web)).await;
    let proxy = world.proxy(a.addresses.discovery, "web-1", &token).await;
    let mut ready = proxy.ready.clone();
    // The guard that is returned would keep the proxy from saying more.
    let is_ready =
        tokio::time::timeout(PATIENCE, ready.wait_for(|ready| ready.is_ready())).await.is_ok();
    assert!(is_ready, "{:?}", proxy.ready.borrow());
    let own = |proxy: &Proxy| proxy.shared.credentials.borrow().clone().unwrap();
    let first = own(&proxy);
    let (old, new) =
        (world.secret(TRUST_ROOT_SECRET).await.unwrap(), secret::make(SystemTime::now()).unwrap());
    let both = [&old[secret::ROOTS][..], &new[secret::ROOTS][..]].concat();

    an_unusable_secret_changes_nothing(&world, [&a, &b], &token, (&old, &new)).await;

    // All at once, as cert-manager does: the new root is told of before anything is signed under it.
    let values: Vec<_> = new.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
    world.write_root(&values).await;
    world.until_bundle("shop", |roots| roots == 2).await;
    let states = states_until_renewed(&proxy, &first.serial().to_string()).await;
    assert_eq!(states, [(2, true), (2, false)], "roots first, then a certificate; both are kept");
    for replica in [&a, &b] {
        eventually("a leaf of the new issuer", async || {
            let answer = world.issue(replica, &token, csr()).await.ok()?;
            is_signed_by(&leaf_of(&answer), &new[secret::CERTIFICATE]).then_some(())
        })
        .await;
    }
    // What is told of outlives the processes, and the record of it a careless hand.
    let secrets = Api::<Secret>::namespaced(world.client.clone(), SYSTEM);
    for _ in 0..2 {
        let recorded = eventually("the date at which the old root goes", async || {
            let recorded = world.secret(TRUST_ANCHORS_SECRET).await?;
            String::from_utf8_lossy(&recorded["retiring.json"]).contains(':').then_some(recorded)
        })
        .await;
        let anchors = String::from_utf8_lossy(&recorded["anchors.pem"]).into_owned();
        assert_eq!(anchors.matches("BEGIN CERTIFICATE").count(), 2);
        secrets.delete(TRUST_ANCHORS_SECRET, &DeleteParams::default()).await.unwrap();
    }
    assert_eq!(own(&proxy).bundle().len(), 2);
    // And back again with both named: nothing is waited for, everybody knows the roots.
    let mut back = old.clone();
    back.insert(secret::ROOTS.to_owned(), both);
    let values: Vec<_> = back.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
    world.write_root(&values).await;
    eventually("a leaf of the old issuer", async || {
        let answer = world.issue(&b, &token, csr()).await.ok()?;
        is_signed_by(&leaf_of(&answer), &old[secret::CERTIFICATE]).then_some(())
    })
    .await;

    for reason in ["by_proxy", "stalled", "superseded", "pod_gone"] {
        let series = format!("heddle_control_plane_streams_ended_total{{reason=\"{reason}\"}}");
        assert_eq!(metric(&a, &series).await, 0.0, "the stream ended: {reason}");
    }
    assert!(proxy.ready.borrow().is_ready());
    proxy.abort();
    a.shutdown(Duration::ZERO).await;
    b.shutdown(Duration::ZERO).await;
}

async fn an_unusable_secret_changes_nothing(
    world: &World,
    replicas: [&Handle; 2],
    token: &str,
    (old, new): (&Content, &Content),
) {
    world.write_root(&[(secret::KEY, &new[secret::KEY])]).await;
    let errors = "heddle_control_plane_source_errors_total{source=\"trust_root\"}";
    for replica in replicas {
        eventually("the refusal", async || (metric(replica, errors).await > 0.0).then_some(()))
            .await;
        let answer = world.issue(replica, token, csr()).await.unwrap();
        assert!(is_signed_by(&leaf_of(&answer), &old[secret::CERTIFICATE]));
    }
    world.write_root(&[(secret::KEY, &old[secret::KEY])]).await;
}

/// How many roots the proxy trusts, and whether its certificate is still the one of `serial`: each
/// state after the first, until it is not.
async fn states_until_renewed(proxy: &Proxy, serial: &str) -> Vec<(usize, bool)> {
    let mut credentials = proxy.shared.credentials.clone();
    let mut states = Vec::new();
    let renewed = tokio::time::timeout(PATIENCE, async {
        loop {
            let now = credentials.borrow_and_update().clone().unwrap();
            let is_first = now.serial().to_string() == serial;
            states.push((now.bundle().len(), is_first));
            if !is_first {
                return;
            }
            credentials.changed().await.unwrap();
        }
    });
    assert!(renewed.await.is_ok(), "no renewal is ordered: {states:?}");
    states.dedup();
    states.retain(|state| *state != (1, true));
    states
}
