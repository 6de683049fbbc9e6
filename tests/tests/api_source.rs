//! The source `kubernetes` against a real API server: it says what a directory of files with the same
//! objects says, and goes on doing so whatever happens to the API server meanwhile.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like a test")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use heddle_api::proto::v1::{Endpoints, InboundPolicy, ResourceType, Version};
use heddle_control_plane::catalog::Catalog;
use heddle_control_plane::version::{Counter, Versions};
use heddle_control_plane::{files, indexing};
use heddle_tests::cluster::api::ApiServer;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use prometheus::IntCounter;
use prost::Message as _;
use serde_json::json;
use tokio::sync::{mpsc, watch};

#[path = "api_source/line.rs"]
mod line;
#[path = "api_source/replica.rs"]
mod replica;

use line::Line;
use replica::{Replica, facts};

const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds");
/// Its addresses, families, ports and endpoints are the API server's and its controllers' to fill in.
const SHOP: &str = include_str!("api_source/shop.yaml");

async fn crds(api: &ApiServer) {
    api.kubectl(&["apply", "--server-side", "-f", CRDS]).await.unwrap().ok().unwrap();
    let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
    api.kubectl(&wait).await.unwrap().ok().unwrap();
}

async fn system(api: &ApiServer) {
    api.apply("{apiVersion: v1, kind: Namespace, metadata: {name: heddle-system}}").await.unwrap();
}

/// An API server with our kinds and the control plane's namespace.
async fn ready() -> ApiServer {
    let api = ApiServer::start().await.unwrap();
    crds(&api).await;
    system(&api).await;
    api
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: default }}\n\
         spec: {{ ports: [{{ port: 80 }}] }}\n---\n"
    )
}

/// What a kubelet would say of a pod.
async fn run_pod(api: &ApiServer, name: &str, status: serde_json::Value) {
    let pods: Api<Pod> = Api::namespaced(api.client().await.unwrap(), "shop");
    let patch = Patch::Merge(json!({ "status": status }));
    pods.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

fn running(ips: &[&str]) -> serde_json::Value {
    let all: Vec<_> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "phase": "Running", "podIP": ips[0], "podIPs": all,
        "hostIP": "10.9.0.1", "hostIPs": [{ "ip": "10.9.0.1" }],
        "conditions": [{ "type": "Ready", "status": "True" }],
    })
}

async fn yaml(api: &ApiServer, kinds: &str) -> String {
    let ran = api.kubectl(&["get", kinds, "-A", "-o", "yaml"]).await.unwrap();
    ran.ok().unwrap().out
}

/// What the source `files` makes of a directory.
async fn from_files(dir: &Path) -> Catalog {
    let (batches, read) = mpsc::channel(16);
    let (compiled, mut catalog) = watch::channel(None);
    let failures = IntCounter::new("failures", "x").unwrap();
    let counter = Counter::open(dir.join("version"), failures.clone()).unwrap();
    let source = tokio::spawn(files::run(dir.to_owned(), batches, failures));
    tokio::spawn(indexing::run(read, compiled, Versions::Counted(counter)));
    let found = catalog.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    source.abort();
    found
}

fn endpoints(catalog: &Catalog, name: &str) -> Vec<(String, u32, bool)> {
    let found = catalog.find(ResourceType::Endpoints, name);
    let Some(found) = found else { return Vec::new() };
    let endpoints = Endpoints::decode(found.body.clone()).unwrap().endpoints;
    endpoints.into_iter().map(|one| (one.address, one.port, one.ready)).collect()
}

#[tokio::test]
async fn it_says_what_files_with_the_same_objects_say() {
    let api = ApiServer::start().await.unwrap().with_controllers().await.unwrap();
    crds(&api).await;
    system(&api).await;
    api.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").await.unwrap();
    let account = ["wait", "--for=create", "serviceaccount/default", "-n", "shop"];
    api.kubectl(&account).await.unwrap().ok().unwrap();
    api.apply(SHOP).await.unwrap();
    run_pod(&api, "web-1", running(&["10.1.0.1", "fd00::1"])).await;
    run_pod(&api, "web-2", running(&["10.1.0.2", "fd00::2"])).await;
    run_pod(&api, "db-0", running(&["10.1.0.3"])).await;
    // Its address is another's by now.
    run_pod(&api, "once", json!({ "phase": "Succeeded", "podIPs": [{ "ip": "10.1.0.1" }] })).await;
    run_pod(&api, "agent", running(&["10.9.0.1"])).await;

    let replica = Replica::start(api.kubeconfig(), "one").await;
    let catalog = replica
        .until("the controllers have done their work", |catalog| {
            endpoints(catalog, "shop/web:80").len() == 4
                && endpoints(catalog, "shop/db:5432").len() == 1
                && endpoints(catalog, "shop/agent:9100").len() == 1
        })
        .await;
    // Named target ports are each pod's own; the manual slice names no pod at all.
    let web = endpoints(&catalog, "shop/web:80");
    assert!(web.contains(&("10.1.0.1".into(), 8080, true)), "{web:?}");
    assert!(web.contains(&("10.1.0.2".into(), 9090, true)), "{web:?}");
    assert!(web.contains(&("fd00::2".into(), 9090, true)), "{web:?}");
    let legacy = endpoints(&catalog, "shop/legacy:80");
    assert_eq!(legacy, [("203.0.113.7".to_owned(), 8000, true)]);

    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(".state")).unwrap();
    let written =
        "services,trafficsplits,trafficpolicies,authorizationpolicies,meshtlspolicies,meshes";
    std::fs::write(dir.path().join("objects.yaml"), yaml(&api, written).await).unwrap();
    let filled_in = yaml(&api, "pods,endpointslices").await;
    std::fs::write(dir.path().join(".state/state.yaml"), filled_in).unwrap();
    let same = from_files(dir.path()).await;

    let mut addresses: Vec<SocketAddr> = [
        "10.1.0.1:8080",
        "[fd00::1]:8080",
        "10.1.0.2:9090",
        "10.1.0.3:5432",
        "10.9.0.1:9100",
        "10.1.0.9:80",
    ]
    .map(|address| address.parse().unwrap())
    .into();
    let ips = api
        .kubectl(&["get", "svc", "-A", "-o=jsonpath={.items[*].spec.clusterIPs[*]}"])
        .await
        .unwrap()
        .ok()
        .unwrap()
        .out;
    let ips = ips.split_whitespace().filter_map(|ip| ip.parse().ok());
    addresses.extend(ips.map(|ip| SocketAddr::new(ip, 80)));
    assert!(addresses.len() > 8, "{addresses:?}");
    let messages = |catalog: &Catalog| -> Vec<_> {
        let issues = catalog.issues().iter();
        issues.map(|one| (one.kind.clone(), one.name.clone(), one.path.clone())).collect()
    };
    assert_eq!(messages(&catalog), messages(&same));
    let of = |name: &str| messages(&catalog).iter().any(|(_, one, _)| one == name);
    assert!(of("elsewhere") && of("agent"), "{:?}", messages(&catalog));
    // An address that nobody owns is numbered by its catalog; all else is the same everywhere.
    assert_eq!(facts(&catalog, &addresses), facts(&same, &addresses));
    for pod in ["web-1", "web-2", "db-0", "once", "agent"] {
        assert_eq!(catalog.pod("shop", pod), same.pod("shop", pod), "{pod}");
    }
}

#[tokio::test]
async fn what_went_while_nobody_listened_is_gone() {
    let mut api = ready().await;
    api.apply(&(service("stays") + &service("goes"))).await.unwrap();
    let line = Line::new(&api.url(), api.kubeconfig()).await;
    let replica = Replica::start(&line.kubeconfig, "one").await;
    let has = |catalog: &Catalog, name: &str| {
        catalog.find(ResourceType::Service, &format!("default/{name}")).is_some()
    };
    replica.until("both are there", |catalog| has(catalog, "stays") && has(catalog, "goes")).await;

    // A restart of the API server costs no list: watching goes on where it was.
    let lists = replica.lists("Service");
    api.kill();
    api.restart().await.unwrap();
    api.apply(&service("after-restart")).await.unwrap();
    replica.until("the restart is over", |catalog| has(catalog, "after-restart")).await;
    assert_eq!(replica.lists("Service"), lists);

    // What is past cannot be resumed from when it was forgotten.
    line.cut();
    api.kubectl(&["delete", "service", "goes"]).await.unwrap().ok().unwrap();
    api.apply(&service("came")).await.unwrap();
    api.compact().await.unwrap();
    // The server's own memory of events would do instead of etcd's.
    api.kill();
    api.restart().await.unwrap();
    assert!(has(replica.catalog.borrow().as_ref().unwrap(), "goes"), "last good, meanwhile");
    line.mend();
    replica
        .until("listed again", |catalog| {
            !has(catalog, "goes") && has(catalog, "came") && has(catalog, "stays")
        })
        .await;
    assert!(replica.lists("Service") > lists);
    assert!(replica.ready.borrow().is_ready(), "{:?}", replica.ready.borrow());
}

#[tokio::test]
async fn replicas_agree_and_the_lease_passes_on() {
    let api = ready().await;
    let one = Replica::start(api.kubeconfig(), "one").await;
    let two = Replica::start(api.kubeconfig(), "two").await;
    for round in 0..5 {
        let services: String = (0..4).map(|n| service(&format!("s{round}-{n}"))).collect();
        api.apply(&services).await.unwrap();
        let gone = format!("s{round}-0");
        api.kubectl(&["delete", "service", &gone]).await.unwrap().ok().unwrap();
    }
    let settled = |catalog: &Catalog| {
        let services = catalog.iter().filter(|one| one.key.kind == ResourceType::Service);
        services.filter(|one| one.key.name.starts_with("default/s")).count() == 15
    };
    let first = one.until("all rounds are over", settled).await;
    let second = two.until("all rounds are over", settled).await;
    assert_eq!(facts(&first, &[]), facts(&second, &[]));
    // What either has told, the other knows; and so does one that has only just come.
    two.until_known(first.version()).await;
    one.until_known(second.version()).await;
    let three = Replica::start(api.kubeconfig(), "three").await;
    let third = three.until("it has read", |_| true).await;
    assert_eq!(facts(&third, &[]), facts(&first, &[]));
    three.until_known(first.version()).await;
    one.until_known(third.version()).await;

    // One leads; when it goes in order, another does at once.
    let mut leaders = [one, two, three];
    let held = |replica: &Replica| replica.context.leadership.is_held();
    for replica in &mut leaders {
        let mut leadership = replica.context.leadership.clone();
        tokio::select! {
            () = leadership.gained() => {}
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
    assert_eq!(leaders.iter().filter(|replica| held(replica)).count(), 1);
    leaders.sort_by_key(|replica| !held(replica));
    let [leader, other, another] = leaders;
    leader.end().await;
    let mut candidates = [other.context.leadership.clone(), another.context.leadership.clone()];
    let [a, b] = &mut candidates;
    let gained = async {
        tokio::select! { () = a.gained() => {}, () = b.gained() => {} }
    };
    tokio::time::timeout(Duration::from_secs(2), gained).await.expect("nobody leads");
}

#[test]
fn a_leader_that_is_killed_is_succeeded_within_the_lease() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let (main, doomed) = (runtime(), runtime());
    let (api, heir) = main.block_on(async {
        let api = ready().await;
        let kubeconfig = api.kubeconfig().to_owned();
        // In a runtime of its own, which ends as a process does that is killed.
        let leader = doomed.spawn(async move {
            let replica = Replica::start(&kubeconfig, "leader").await;
            replica.context.leadership.clone().gained().await;
            replica
        });
        let leader = leader.await.unwrap();
        // It lets nothing go when it is dropped, for nothing of it runs any more.
        let heir = Replica::start(api.kubeconfig(), "heir").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(leader.context.leadership.is_held() && !heir.context.leadership.is_held());
        std::mem::forget(leader);
        (api, heir)
    });
    doomed.shutdown_background();
    main.block_on(async {
        let killed = tokio::time::Instant::now();
        let mut leadership = heir.context.leadership.clone();
        let gained = tokio::time::timeout(Duration::from_secs(20), leadership.gained()).await;
        gained.expect("nobody leads");
        let took = killed.elapsed();
        assert!(took > Duration::from_secs(1), "taken from a living holder: {took:?}");
        drop((api, heir));
    });
}

#[tokio::test]
async fn an_object_of_a_newer_definition_is_refused_alone() {
    let api = ready().await;
    // As a newer release would have it: fields that this one has never heard of.
    for kind in ["authorizationpolicies", "trafficsplits"] {
        let patch = r#"[{"op":"add","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-preserve-unknown-fields","value":true}]"#;
        let name = format!("{kind}.heddle.io");
        api.kubectl(&["patch", "crd", &name, "--type=json", "-p", patch])
            .await
            .unwrap()
            .ok()
            .unwrap();
    }
    let account = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: default}}\n---\n";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: { name: web, labels: { app: web } }\n\
               spec: { containers: [{ name: app, image: app }, { name: heddle-proxy, image: p }] }\n---\n";
    let policy = |name: &str, extra: &str| {
        format!(
            "apiVersion: heddle.io/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{ name: {name} }}\nspec:\n  targetRef: {{ kind: Pods, selector: {{ app: web }} }}\n\
             {extra}  rules: [{{ action: Allow, from: [{{ serviceAccount: web }}] }}]\n---\n"
        )
    };
    let split = |name: &str, extra: &str| {
        format!(
            "apiVersion: heddle.io/v1alpha1\nkind: TrafficSplit\nmetadata: {{ name: {name} }}\n\
             spec: {{ service: {name}, backends: [{{ service: v1, weight: 1 }}]{extra} }}\n---\n"
        )
    };
    let objects = [
        account.to_owned(),
        pod.to_owned(),
        service("v1") + &service("good") + &service("bad"),
        policy("newer", "  quota: 7\n"),
        split("good", ""),
        split("bad", ", sticky: { header: x-user }"),
    ];
    // Definitions reach every part of the API server in their own time.
    let mut tries = 0;
    while let Err(error) = api.apply(&objects.concat()).await {
        tries += 1;
        assert!(tries < 50, "{error:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let replica = Replica::start(api.kubeconfig(), "one").await;
    let refused = |catalog: &Catalog| -> Vec<(String, String)> {
        let paths = ["spec.quota", "spec.sticky"];
        let issues = catalog.issues().iter().filter(|one| paths.contains(&one.path.as_str()));
        issues.map(|one| (one.name.clone(), one.path.clone())).collect()
    };
    let splits = |catalog: &Catalog| -> Vec<String> {
        let splits = catalog.iter().filter(|one| one.key.kind == ResourceType::Split);
        splits.map(|one| one.key.name.to_string()).collect()
    };
    let catalog = replica.until("both are refused", |catalog| refused(catalog).len() == 2).await;
    assert_eq!(splits(&catalog), ["default/good"]);
    let inbound = |catalog: &Catalog| {
        let found = catalog.find(ResourceType::InboundPolicy, "default/web").unwrap();
        InboundPolicy::decode(found.body.clone()).unwrap()
    };
    // In place of what is not understood: nobody comes in.
    let denying = inbound(&catalog);
    assert!(format!("{denying:?}").contains("Deny"), "{denying:?}");

    // Once good, the good version outlives a bad one.
    api.apply(&(policy("newer", "") + &split("bad", ""))).await.unwrap();
    let good = replica.until("both are good", |catalog| refused(catalog).is_empty()).await;
    assert_eq!(splits(&good).len(), 2);
    assert_ne!(inbound(&good), denying);
    api.apply(&(policy("newer", "  quota: 7\n") + &split("bad", ", sticky: {}"))).await.unwrap();
    let last = replica.until("both are refused", |catalog| refused(catalog).len() == 2).await;
    assert_eq!((splits(&last).len(), inbound(&last)), (2, inbound(&good)));
}

#[tokio::test]
async fn definitions_may_come_later_and_nothing_is_said_without_them() {
    let api = ApiServer::start().await.unwrap();
    system(&api).await;
    let replica = Replica::start(api.kubeconfig(), "one").await;
    replica
        .until_blocked(|blockers| {
            blockers.get("watches").is_some_and(|reason| {
                reason.contains("AuthorizationPolicy: is not installed")
                    && !reason.contains("Pod")
                    && !reason.contains("HTTPRoute")
            })
        })
        .await;
    assert!(replica.catalog.borrow().is_none());
    crds(&api).await;
    replica.until("the definitions are there", |_| true).await;
    replica.until_blocked(std::collections::BTreeMap::is_empty).await;

    // Those of the Gateway API may come later still.
    api.apply(&service("web")).await.unwrap();
    let definitions = api.programs().gateway_api("standard");
    let definitions = definitions.to_str().unwrap();
    api.kubectl(&["apply", "--server-side", "-f", definitions]).await.unwrap().ok().unwrap();
    let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
    api.kubectl(&wait).await.unwrap().ok().unwrap();
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: web }\n\
                 spec:\n  parentRefs: [{ group: '', kind: Service, name: web }]\n\
                 \x20 rules: [{ backendRefs: [{ name: web, port: 80 }] }]\n";
    api.apply(route).await.unwrap();
    let is_route = |kind: ResourceType| kind == ResourceType::Route;
    replica.until("the route", |catalog| catalog.iter().any(|one| is_route(one.key.kind))).await;

    let epochs: Api<ConfigMap> = Api::namespaced(api.client().await.unwrap(), "heddle-system");
    let epoch = epochs.get("heddle-epoch").await.unwrap().data.unwrap();
    assert!(epoch["epoch"].parse::<u64>().unwrap() > 1_700_000_000, "{epoch:?}");
}

#[tokio::test]
async fn a_restored_etcd_begins_a_new_epoch() {
    let mut api = ready().await;
    api.apply(&service("before")).await.unwrap();
    let one = Replica::start(api.kubeconfig(), "one").await;
    let two = Replica::start(api.kubeconfig(), "two").await;
    let has = |catalog: &Catalog, name: &str| {
        catalog.find(ResourceType::Service, &format!("default/{name}")).is_some()
    };
    one.until("it has read", |catalog| has(catalog, "before")).await;
    api.back_up().await.unwrap();
    let lost: String = (0..20).map(|n| service(&format!("lost-{n}"))).collect();
    api.apply(&lost).await.unwrap();
    let before = one.until("the last is there", |catalog| has(catalog, "lost-19")).await.version();
    two.until_known(before).await;

    api.restore().await.unwrap();
    api.apply(&service("after")).await.unwrap();
    let begun = Version { epoch: before.epoch + 1, number: 1 };
    for replica in [&one, &two] {
        replica.until_known(begun).await;
        let catalog = replica
            .until("what was restored", |catalog| has(catalog, "after") && !has(catalog, "lost-19"))
            .await;
        assert!(has(&catalog, "before") && !has(&catalog, "lost-0"));
        assert!(catalog.version().epoch > before.epoch, "{:?}", catalog.version());
        assert!(catalog.version().number < before.number, "numbered afresh: {before:?}");
    }
    let rewinds = |replica: &Replica| replica.context.metrics.watches.rewinds.get();
    assert!(rewinds(&one) + rewinds(&two) > 0);
}

#[tokio::test]
async fn a_new_epoch_is_followed_by_every_replica() {
    let api = ready().await;
    api.apply(&service("web")).await.unwrap();
    let one = Replica::start(api.kubeconfig(), "one").await;
    let two = Replica::start(api.kubeconfig(), "two").await;
    let before = one.until("it has read", |_| true).await.version();
    two.until_known(before).await;
    let next = before.epoch + 1;
    let patch = format!("{{\"data\":{{\"epoch\":\"{next}\"}}}}");
    let map = ["patch", "configmap", "heddle-epoch", "-n", "heddle-system", "-p", &patch];
    api.kubectl(&map).await.unwrap().ok().unwrap();
    let begun = Version { epoch: next, number: 1 };
    one.until_known(begun).await;
    two.until_known(begun).await;
    assert!(one.lists("Service") >= 2, "an epoch begins with a list of everything");
    assert!(one.ready.borrow().is_ready(), "{:?}", one.ready.borrow());
}
