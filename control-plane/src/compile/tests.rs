//! The rules of compilation, one by one, on small clusters.

use std::net::SocketAddr;

use heddle_api::proto::v1::address::Kind as AddressKind;
use heddle_api::proto::v1::{Protocol, TlsMode};

use super::*;
use crate::catalog::Subscriber;
use crate::index::tests::{World, objects, ours, pod, service, slice};

mod routes;
mod states;

fn endpoints(world: &World, name: &str) -> Vec<v1::Endpoint> {
    world.decode::<v1::Endpoints>(ResourceType::Endpoints, name).endpoints
}

fn inbound(world: &World, pod: &str) -> v1::InboundPolicy {
    world.decode(ResourceType::InboundPolicy, &format!("shop/{pod}"))
}

fn address(world: &World, address: &str) -> AddressKind {
    let address: SocketAddr = address.parse().unwrap();
    let closure = world.catalog.closure(address, "shop");
    let last = closure.last().unwrap();
    assert_eq!(&*last.key.name, address.to_string());
    <v1::Address as Message>::decode(last.body.clone()).unwrap().kind.unwrap()
}

fn closure(world: &World, address: &str) -> Vec<String> {
    let closure = world.catalog.closure(address.parse().unwrap(), "shop");
    closure.iter().map(|one| format!("{} {}", one.key.kind.as_str_name(), one.key.name)).collect()
}

/// A Service with two pods, one of them ready.
fn web() -> String {
    [
        service("web", "10.96.0.1"),
        slice("web", &[("10.0.0.1", true), ("10.0.0.2", false)]),
        pod("web-1", "10.0.0.1", "app: web, v: \"1\""),
        pod("web-2", "10.0.0.2", "app: web, v: \"2\""),
    ]
    .concat()
}

#[test]
fn endpoints_take_their_identity_from_the_pod_that_owns_the_address() {
    let mut world = World::of(&web());
    let found = endpoints(&world, "shop/web:80");
    assert_eq!(found.len(), 2);
    let first = v1::Endpoint {
        address: "10.0.0.1".to_owned(),
        port: 8080,
        identity: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
        ready: true,
        zone: String::new(),
        node: "n1".to_owned(),
        pod: "shop/web-1".to_owned(),
        workload: "web-1".to_owned(),
    };
    assert_eq!(found[0], first);
    assert_eq!((found[1].ready, found[1].pod.as_str()), (false, "shop/web-2"));

    // A finished pod owns nothing: what now answers there is an outsider.
    world.apply(&pod("web-1", "10.0.0.1", "app: web").replace("Running", "Succeeded"));
    let found = endpoints(&world, "shop/web:80");
    assert_eq!((found[0].identity.as_str(), found[0].pod.as_str()), ("", ""));
    assert!(!world.has(ResourceType::InboundPolicy, "shop/web-1"));
    assert!(world.catalog.pod("shop", "web-1").is_none());
}

#[test]
fn an_endpoint_whose_pod_is_gone_is_not_taken_for_a_plaintext_peer() {
    let targeted = slice("web", &[("10.0.0.1", true)]).replace(
        "conditions",
        "targetRef: { kind: Pod, namespace: shop, name: web-1 }, nodeName: n2, zone: z1, conditions",
    );
    let mut world = World::of(&(service("web", "10.96.0.1") + &targeted));
    assert_eq!(endpoints(&world, "shop/web:80"), []);
    world.apply(&pod("web-1", "10.0.0.1", "app: web"));
    let found = endpoints(&world, "shop/web:80");
    assert_eq!((found[0].zone.as_str(), found[0].node.as_str()), ("z1", "n2"));
    // The address went to another pod, and the slice does not know yet.
    world.delete(Kind::Pod, "shop", "web-1");
    world.apply(&pod("other", "10.0.0.1", "app: other"));
    assert_eq!(endpoints(&world, "shop/web:80"), []);
}

#[test]
fn meshed_is_said_by_the_spec_alone() {
    let plain = pod("p", "10.0.0.1", "a: b").replace("heddle-proxy", "other");
    let native =
        plain.replace("containers:", "initContainers: [{ name: heddle-proxy }], containers:");
    let host =
        pod("p", "10.0.0.1", "a: b").replace("containers:", "hostNetwork: true, containers:");
    let skipping = |how: &str| {
        let init = format!("initContainers: [{{ name: heddle-init, {how} }}], containers:");
        pod("p", "10.0.0.1", "a: b").replace("containers:", &init)
    };
    for (pod, meshed, why) in [
        (pod("p", "10.0.0.1", "a: b"), true, "container"),
        (native, true, "init container"),
        (plain, false, "no proxy"),
        (host, false, "host network"),
        (skipping("args: [--skip-inbound-ports, \"9, 8080\"]"), false, "skipped, two words"),
        (skipping("command: [heddle-init, --skip-inbound-ports=8080]"), false, "skipped, one word"),
        (
            skipping("args: [--skip-inbound-ports, 22,8000-8090]")
                .replace("22,8000-8090", "\"22, 8000-8090\""),
            false,
            "skipped range",
        ),
        (
            skipping("env: [{ name: HEDDLE_SKIP_INBOUND_PORTS, value: \"8080\" }]"),
            false,
            "environment",
        ),
        (
            skipping(
                "args: [--skip-inbound-ports=1], env: [{ name: HEDDLE_SKIP_INBOUND_PORTS, value: \"8080\" }]",
            ),
            true,
            "the option beats the environment",
        ),
        (
            skipping("args: [--skip-inbound-ports=808, --skip-inbound-ports-not=8080]"),
            true,
            "another port skipped",
        ),
        (pod("p", "10.0.0.1", "a: b").replace("Running", "Pending"), true, "pending"),
    ] {
        let text = service("web", "10.96.0.1") + &slice("web", &[("10.0.0.1", true)]) + &pod;
        let found = endpoints(&World::of(&text), "shop/web:80");
        assert_eq!(!found[0].identity.is_empty(), meshed, "{why}");
    }
}

#[test]
fn the_proxy_s_own_metrics_port_is_called_in_plaintext() {
    let world = World::of(&web());
    let identity = |port| match address(&world, &format!("10.0.0.1:{port}")) {
        AddressKind::Pod(pod) => pod.endpoint.unwrap().identity,
        other @ (AddressKind::Service(_) | AddressKind::Unknown(_)) => panic!("{other:?}"),
    };
    assert_eq!(identity(15107), "");
    assert_eq!(identity(15109), "");
    assert_ne!(identity(8080), "");
}

#[test]
fn readiness_of_endpoints() {
    for (conditions, publish, ready) in [
        ("{ ready: true }", false, true),
        ("{}", false, true),
        ("{ ready: false }", false, false),
        ("{ ready: true, terminating: true }", false, false),
        ("{ ready: false, serving: true, terminating: true }", false, false),
        ("{ ready: false }", true, true),
    ] {
        let service = match publish {
            true => {
                service("web", "None").replace("ports", "publishNotReadyAddresses: true, ports")
            }
            false => service("web", "10.96.0.1"),
        };
        let slice = slice("web", &[("10.0.0.9", true)]).replace("{ ready: true }", conditions);
        let found = endpoints(&World::of(&(service + &slice)), "shop/web:80");
        assert_eq!(found[0].ready, ready, "{conditions} {publish}");
    }
}

#[test]
fn slices_overlap_ports_are_named_and_host_names_are_refused() {
    let one = slice("web", &[("10.0.0.1", false), ("10.0.0.2", false)]);
    let two = slice("web", &[("10.0.0.1", true)]).replace("name: web-1", "name: web-2");
    let three = slice("web", &[("10.0.0.3", true)])
        .replace("name: web-1", "name: web-3")
        .replace("8080", "9090");
    let other_port = slice("web", &[("10.0.0.4", true)])
        .replace("name: web-1", "name: web-4")
        .replace("name: http", "name: admin");
    let names = slice("web", &[("example.com", true)])
        .replace("name: web-1", "name: web-5")
        .replace("IPv4", "FQDN");
    let mut world =
        World::of(&[service("web", "10.96.0.1"), one, two, three, other_port, names].concat());
    let found: Vec<_> = endpoints(&world, "shop/web:80")
        .into_iter()
        .map(|one| (one.address, one.port, one.ready))
        .collect();
    let want = [("10.0.0.1", 8080, true), ("10.0.0.2", 8080, false), ("10.0.0.3", 9090, true)];
    assert_eq!(found, want.map(|(ip, port, ready)| (ip.to_owned(), port, ready)));
    assert!(world.issues()[0].starts_with("EndpointSlice shop/web-5: addressType"));
    world.delete(Kind::EndpointSlice, "shop", "web-5");
    assert_eq!(world.issues(), [""; 0]);
}

#[test]
fn an_open_slice_port_is_the_service_s_target() {
    let open = slice("web", &[("10.0.0.1", true)]).replace("name: http, port: 8080", "name: http");
    let named = pod("p", "10.0.0.1", "a: b")
        .replace("name: app,", "name: app, ports: [{ name: web, containerPort: 7070 }],");
    for (target, port) in
        [("targetPort: 9090", 9090), ("targetPort: web", 7070), ("nodePort: 30000", 80)]
    {
        let service =
            service("web", "10.96.0.1").replace("port: 80", &format!("port: 80, {target}"));
        let world = World::of(&[service, open.clone(), named.clone()].concat());
        assert_eq!(endpoints(&world, "shop/web:80")[0].port, port, "{target}");
    }
}

#[test]
fn protocols_are_declared_by_app_protocol_then_by_name() {
    for (port, protocol) in [
        ("name: web", Protocol::Unspecified),
        ("name: http", Protocol::Http1),
        ("name: http-web", Protocol::Http1),
        ("name: httpweb", Protocol::Unspecified),
        ("name: http2", Protocol::Http2),
        ("name: h2c-x", Protocol::Http2),
        ("name: grpc", Protocol::Grpc),
        ("name: grpc-web", Protocol::Grpc),
        ("name: tcp", Protocol::Tcp),
        ("name: https", Protocol::Tcp),
        ("name: tls-x", Protocol::Tcp),
        ("name: mongo", Protocol::Tcp),
        ("name: x, appProtocol: http", Protocol::Http1),
        ("name: x, appProtocol: HTTP", Protocol::Http1),
        ("name: x, appProtocol: https", Protocol::Tcp),
        ("name: x, appProtocol: tls", Protocol::Tcp),
        ("name: x, appProtocol: tcp", Protocol::Tcp),
        ("name: x, appProtocol: grpc", Protocol::Grpc),
        ("name: x, appProtocol: kubernetes.io/h2c", Protocol::Http2),
        ("name: x, appProtocol: kubernetes.io/ws", Protocol::Http1),
        ("name: x, appProtocol: kubernetes.io/wss", Protocol::Tcp),
        ("name: http, appProtocol: example.com/own", Protocol::Unspecified),
    ] {
        let text = service("web", "10.96.0.1").replace("name: http,", &format!("{port},"));
        let service: v1::Service = World::of(&text).decode(ResourceType::Service, "shop/web");
        assert_eq!(service.ports[0].protocol(), protocol, "{port}");
    }
}

#[test]
fn services_say_affinity_and_locality_and_only_tcp() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: { name: web, namespace: shop }\n\
                spec: { clusterIP: 10.96.0.1, internalTrafficPolicy: Local, sessionAffinity: ClientIP, \
                ports: [{ name: b, port: 81 }, { name: a, port: 80 }, { name: u, port: 53, protocol: UDP }] }";
    let service: v1::Service = World::of(text).decode(ResourceType::Service, "shop/web");
    assert_eq!((service.affinity_seconds, service.local_only), (10_800, true));
    assert_eq!(service.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 81]);
    let timed = text.replace(
        "sessionAffinity: ClientIP",
        "sessionAffinity: ClientIP, sessionAffinityConfig: { clientIP: { timeoutSeconds: 5 } }",
    );
    let service: v1::Service = World::of(&timed).decode(ResourceType::Service, "shop/web");
    assert_eq!(service.affinity_seconds, 5);
}

#[test]
fn external_names_are_refused_and_ports_withdrawn() {
    let mut world = World::of(&web());
    world.apply(&service("web", "10.96.0.1").replace("port: 80", "port: 81"));
    assert!(!world.has(ResourceType::Endpoints, "shop/web:80"));
    assert!(world.has(ResourceType::Endpoints, "shop/web:81"));
    world.apply("apiVersion: v1\nkind: Service\nmetadata: { name: web, namespace: shop }\nspec: { type: ExternalName, externalName: example.com }");
    assert!(!world.has(ResourceType::Service, "shop/web"));
    assert!(!world.has(ResourceType::Endpoints, "shop/web:81"));
    assert!(world.issues()[0].contains("ExternalName is not supported"), "{:?}", world.issues());
    assert_eq!(address(&world, "10.96.0.1:80"), AddressKind::Unknown(v1::Unknown {}));
    world.delete(Kind::Service, "shop", "web");
    assert_eq!(world.issues(), [""; 0]);
}

#[test]
fn closures_hold_everything_an_address_refers_to() {
    let split = ours(
        "TrafficSplit",
        "web",
        "{ service: web, backends: [{ service: web-v1, weight: 9, ports: [{ from: 80, to: 81 }] }, { service: gone, weight: 1 }] }",
    );
    let policy = ours(
        "TrafficPolicy",
        "v1",
        "{ targetRef: { kind: Service, name: web-v1 }, timeouts: { request: 1s } }",
    );
    let v1 = service("web-v1", "10.96.0.2").replace("port: 80", "port: 81");
    let mut world = World::of(&[web(), v1, policy].concat());
    assert_eq!(
        closure(&world, "10.96.0.1:80"),
        [
            "RESOURCE_TYPE_ENDPOINTS shop/web:80",
            "RESOURCE_TYPE_SERVICE shop/web",
            "RESOURCE_TYPE_ADDRESS 10.96.0.1:80",
        ]
    );
    world.apply(&split);
    assert_eq!(
        closure(&world, "10.96.0.1:80"),
        [
            "RESOURCE_TYPE_ENDPOINTS shop/web:80",
            "RESOURCE_TYPE_SERVICE shop/web",
            "RESOURCE_TYPE_ENDPOINTS shop/web-v1:81",
            "RESOURCE_TYPE_POLICY shop/web-v1",
            "RESOURCE_TYPE_SERVICE shop/web-v1",
            "RESOURCE_TYPE_SPLIT shop/web",
            "RESOURCE_TYPE_ADDRESS 10.96.0.1:80",
        ]
    );
    assert_eq!(closure(&world, "10.96.0.1:99"), ["RESOURCE_TYPE_ADDRESS 10.96.0.1:99"]);
    assert_eq!(closure(&world, "10.0.0.1:80"), ["RESOURCE_TYPE_ADDRESS 10.0.0.1:80"]);
    assert_eq!(closure(&world, "192.0.2.1:80"), ["RESOURCE_TYPE_ADDRESS 192.0.2.1:80"]);
    let always = world.catalog.always(&Subscriber { namespace: "shop", pod: "web-1" });
    let always: Vec<_> = always.iter().map(|one| &*one.key.name).collect();
    assert_eq!(always, ["default", "shop/web-1"]);
}

#[test]
fn unknown_addresses_have_the_catalog_s_version_and_one_hash() {
    let mut world = World::of(&web());
    let ask =
        |world: &World| world.catalog.closure("192.0.2.1:80".parse().unwrap(), "shop")[0].clone();
    let before = ask(&world);
    assert_eq!(before.version, world.catalog.version());
    world.apply(&service("more", "10.96.0.9"));
    let after = ask(&world);
    assert_eq!((after.hash, after.version), (before.hash, world.catalog.version()));
    assert!(after.version.number > before.version.number);
}

#[test]
fn pods_are_addressed_with_the_oldest_headless_service_of_the_port() {
    let aged = |name: &str, year: u32, port: &str| {
        service(name, "None")
            .replace(
                "namespace",
                &format!("creationTimestamp: \"{year}-01-01T00:00:00Z\", namespace"),
            )
            .replace("name: http", port)
    };
    let young = aged("young", 2026, "name: http");
    let old = aged("old", 2020, "name: http, appProtocol: grpc");
    let slices = slice("young", &[("10.0.0.1", true)]) + &slice("old", &[("10.0.0.1", true)]);
    let mut world = World::of(&[young, old, slices, web()].concat());
    let ask = |world: &World, to: &str| match address(world, to) {
        AddressKind::Pod(pod) => (pod.protocol(), pod.service),
        other @ (AddressKind::Service(_) | AddressKind::Unknown(_)) => panic!("{other:?}"),
    };
    assert_eq!(ask(&world, "10.0.0.1:8080"), (Protocol::Grpc, "shop/old".to_owned()));
    assert_eq!(ask(&world, "10.0.0.1:9"), (Protocol::Unspecified, String::new()));
    world.delete(Kind::Service, "shop", "old");
    assert_eq!(ask(&world, "10.0.0.1:8080"), (Protocol::Http1, "shop/young".to_owned()));
    assert_eq!(closure(&world, "10.0.0.1:8080")[0], "RESOURCE_TYPE_SERVICE shop/young");
}

#[test]
fn addresses_claimed_twice_have_one_owner_and_an_issue() {
    let mut world = World::of(&(service("b", "10.96.0.1") + &service("a", "10.96.0.1")));
    assert!(
        matches!(address(&world, "10.96.0.1:80"), AddressKind::Service(s) if s.service == "shop/a")
    );
    assert!(
        world.issues()[0].starts_with("Service shop/b: spec.clusterIP"),
        "{:?}",
        world.issues()
    );
    // An address is reused: the pod that is going away yields.
    let leaving = pod("a", "10.0.0.1", "x: y")
        .replace("uid:", "deletionTimestamp: \"2026-01-01T00:00:00Z\", uid:");
    world.apply(&(leaving + &pod("b", "10.0.0.1", "x: y")));
    assert!(
        matches!(address(&world, "10.0.0.1:1"), AddressKind::Pod(p) if p.endpoint.as_ref().unwrap().pod == "shop/b")
    );
    assert_eq!(world.issues().len(), 1);
    world.apply(&pod("a", "10.0.0.1", "x: y"));
    assert!(world.issues().iter().any(|issue| issue.starts_with("Pod shop/b: status.podIPs")));
}

#[test]
fn splits_keep_missing_backends_take_subsets_and_report() {
    let split = ours(
        "TrafficSplit",
        "s",
        "{ service: web, backends: [{ service: web, selector: { v: \"2\" }, weight: 1 }, { service: gone, weight: 2 }, { service: other, weight: 3 }] }",
    );
    let other = service("other", "10.96.0.3").replace("port: 80", "port: 90");
    let nested =
        ours("TrafficSplit", "o", "{ service: other, backends: [{ service: web, weight: 1 }] }");
    let mut world = World::of(&[web(), split, other, nested].concat());
    let split: v1::Split = world.decode(ResourceType::Split, "shop/web");
    assert_eq!(split.source, "shop/s");
    assert_eq!(split.backends[0].subset, ["shop/web-2"]);
    assert!(split.backends[0].has_subset && !split.backends[1].has_subset);
    assert_eq!((split.backends[1].service.as_str(), split.backends[1].weight), ("shop/gone", 2));
    heddle_policy::split::Split::try_from(split).unwrap();
    let issues = world.issues().join("\n");
    for piece in [
        "TrafficSplit shop/s: spec.backends[1].service: \"gone\": there is no such Service",
        "TrafficSplit shop/s: spec.backends[2].service: \"other\" is itself split",
        "TrafficSplit shop/s: spec.backends[2].ports: Service shop/other has no port 80",
    ] {
        assert!(issues.contains(piece), "{piece}\n{issues}");
    }
    // The subset follows the pods' labels.
    world.apply(&pod("web-1", "10.0.0.1", "app: web, v: \"2\""));
    let split: v1::Split = world.decode(ResourceType::Split, "shop/web");
    assert_eq!(split.backends[0].subset, ["shop/web-1", "shop/web-2"]);
    // A subset nobody is in is empty, not the whole.
    world.delete(Kind::Pod, "shop", "web-1");
    world.delete(Kind::Pod, "shop", "web-2");
    let split: v1::Split = world.decode(ResourceType::Split, "shop/web");
    assert!(split.backends[0].subset.is_empty() && split.backends[0].has_subset);
    // The backend appears.
    world.apply(&service("gone", "10.96.0.4"));
    assert!(!world.issues().join("\n").contains("\"gone\""));
    world.delete(Kind::TrafficSplit, "shop", "s");
    assert!(!world.has(ResourceType::Split, "shop/web"));
    assert!(!closure(&world, "10.96.0.1:80").join(" ").contains("gone"));
}

#[test]
fn the_oldest_split_and_policy_of_a_service_win() {
    let aged = |text: String, year: u32| {
        text.replace(
            "namespace",
            &format!("creationTimestamp: \"{year}-01-01T00:00:00Z\", namespace"),
        )
    };
    let split = |name, weight| {
        ours(
            "TrafficSplit",
            name,
            &format!("{{ service: web, backends: [{{ service: v1, weight: {weight} }}] }}"),
        )
    };
    let policy = |name| {
        ours(
            "TrafficPolicy",
            name,
            "{ targetRef: { kind: Service, name: web }, timeouts: { request: 1s } }",
        )
    };
    let text = [
        aged(split("a", 1), 2026),
        aged(split("b", 2), 2020),
        policy("y"),
        policy("x"),
        service("web", "10.96.0.1"),
    ];
    let mut world = World::of(&text.concat());
    let source = |world: &World| world.decode::<v1::Split>(ResourceType::Split, "shop/web").source;
    assert_eq!(source(&world), "shop/b");
    let winner: v1::Policy = world.decode(ResourceType::Policy, "shop/web");
    assert_eq!(winner.source, "shop/x");
    let issues = world.issues().join("\n");
    assert!(
        issues.contains("TrafficSplit shop/a: : Service shop/web has an older one, shop/b"),
        "{issues}"
    );
    assert!(
        issues.contains("TrafficPolicy shop/y: : Service shop/web has an older one, shop/x"),
        "{issues}"
    );
    world.delete(Kind::TrafficSplit, "shop", "b");
    assert_eq!(source(&world), "shop/a");
}

#[test]
fn policies_say_defaults_in_full() {
    let policy = ours(
        "TrafficPolicy",
        "p",
        "{ targetRef: { kind: Service, name: web }, retries: { attempts: 2, when: [connect, \"429\", gateway-error] }, circuitBreaker: { consecutiveFailures: 5 } }",
    );
    let mut world = World::of(&(web() + &policy));
    let policy: v1::Policy = world.decode(ResourceType::Policy, "shop/web");
    let retries = policy.retries.unwrap();
    assert_eq!(retries.on_status, [429, 502, 503, 504]);
    assert!(!retries.on_connection_failure);
    assert_eq!((retries.budget_percent, retries.budget_min_per_second), (20, 10));
    assert_eq!((retries.backoff_base_ms, retries.backoff_max_ms), (25, 1_000));
    let breaker = policy.circuit_breaker.unwrap();
    assert_eq!((breaker.open_for_ms, breaker.max_ejected_percent), (30_000, 50));
    assert_eq!((policy.timeouts, policy.balance), (None, 0));

    world.apply(&ours("TrafficPolicy", "p", "{ targetRef: { kind: Service, name: web }, timeouts: { request: 2s, perTry: 500ms, connect: 1s, idle: 1h }, retries: { attempts: 1, when: [reset, \"5xx\"] }, loadBalancer: { algorithm: roundRobin } }"));
    let policy: v1::Policy = world.decode(ResourceType::Policy, "shop/web");
    let want =
        v1::Timeouts { request_ms: 2_000, per_try_ms: 500, connect_ms: 1_000, idle_ms: 3_600_000 };
    assert_eq!((policy.timeouts, policy.balance()), (Some(want), v1::Balance::RoundRobin));
    let retries = policy.retries.clone().unwrap();
    assert!(retries.on_connection_failure && retries.on_status == (500..=599).collect::<Vec<_>>());
    heddle_policy::retry::TrafficPolicy::try_from(policy).unwrap();
}

#[test]
fn inbound_policies_name_the_pod_its_ports_and_workload() {
    let owned = pod("web-7d9f8-abcde", "10.0.0.1", "app: web, pod-template-hash: 7d9f8").replace(
        "namespace: shop,",
        "namespace: shop, ownerReferences: [{ apiVersion: apps/v1, kind: ReplicaSet, name: web-7d9f8, uid: x, controller: true }],",
    );
    let world = World::of(
        &[service("web", "10.96.0.1"), slice("web", &[("10.0.0.1", true)]), owned].concat(),
    );
    let policy = inbound(&world, "web-7d9f8-abcde");
    assert_eq!((policy.workload.as_str(), policy.service_account.as_str()), ("web", "web"));
    assert_eq!(policy.addresses, ["10.0.0.1"]);
    let port = v1::InboundPort { port: 8080, protocol: Protocol::Http1.into(), tls: 0 };
    assert_eq!(policy.ports, [port]);
    assert_eq!(policy.default_tls(), TlsMode::Strict);
    assert_eq!(policy.default_authorization(), v1::DefaultAuthorization::AllowAuthenticated);

    let identity = world.catalog.pod("shop", "web-7d9f8-abcde").unwrap();
    assert_eq!(identity.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(&*identity.uid, "uid-web-7d9f8-abcde");
    assert_eq!(identity.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn pods_without_a_service_account_are_default_and_without_a_proxy_have_no_policy() {
    let plain = pod("p", "10.0.0.1", "a: b")
        .replace("serviceAccountName: web, ", "")
        .replace("heddle-proxy", "x");
    let world = World::of(&plain);
    assert_eq!(&*world.catalog.pod("shop", "p").unwrap().service_account, "default");
    assert!(!world.catalog.pod("shop", "p").unwrap().meshed);
    assert!(!world.has(ResourceType::InboundPolicy, "shop/p"));
}

#[test]
fn workloads() {
    let owner = |owner: &str| {
        let owner = format!("namespace: shop, ownerReferences: [{owner}],");
        pod("p-1", "10.0.0.1", "a: b").replace("namespace: shop,", &owner)
    };
    for (text, workload) in [
        (pod("p-1", "10.0.0.1", "a: b"), "p-1"),
        (
            owner("{ apiVersion: v1, kind: ReplicaSet, name: web-abc, uid: x, controller: true }"),
            "web",
        ),
        (
            owner("{ apiVersion: v1, kind: StatefulSet, name: db-x, uid: x, controller: true }"),
            "db-x",
        ),
        (
            owner("{ apiVersion: v1, kind: ReplicaSet, name: alone, uid: x, controller: true }"),
            "alone",
        ),
        (owner("{ apiVersion: v1, kind: ReplicaSet, name: web-abc, uid: x }"), "p-1"),
        (
            owner("{ apiVersion: v1, kind: DaemonSet, name: agent, uid: x, controller: true }"),
            "agent",
        ),
        (
            owner("{ apiVersion: v1, kind: Job, name: night-29321405, uid: x, controller: true }"),
            "night",
        ),
        (
            owner("{ apiVersion: v1, kind: Job, name: once-2026, uid: x, controller: true }"),
            "once-2026",
        ),
    ] {
        assert_eq!(inbound(&World::of(&text), "p-1").workload, workload);
    }
}

#[test]
fn the_nearest_tls_policy_counts() {
    let tls = |name: &str, spec: &str| ours("MeshTLSPolicy", name, spec);
    let pods = |app| format!("targetRef: {{ kind: Pods, selector: {{ app: {app} }} }}");
    let mesh = "apiVersion: heddle.io/v1alpha1\nkind: Mesh\nmetadata: { name: default }\nspec: { tls: Permissive }\n---\n";
    let namespace = tls("ns", "{ mode: Strict }");
    let pod_level = tls("pod", &format!("{{ {}, mode: Permissive }}", pods("web")));
    let port_level =
        tls("port", &format!("{{ {}, ports: [{{ port: 9, mode: Strict }}] }}", pods("web")));
    let elsewhere = tls("other", &format!("{{ {}, mode: Strict }}", pods("else")));
    let mut world = World::of(&pod("p", "10.0.0.1", "app: web"));
    let mut check = |text: &str, default: TlsMode, port: Option<TlsMode>| {
        world.apply(text);
        let policy = inbound(&world, "p");
        assert_eq!(policy.default_tls(), default, "{text}");
        assert_eq!(policy.ports.first().map(v1::InboundPort::tls), port, "{text}");
        world.issues()
    };
    check("", TlsMode::Strict, None);
    check(mesh, TlsMode::Permissive, None);
    check(&elsewhere, TlsMode::Permissive, None);
    check(&namespace, TlsMode::Strict, None);
    check(&pod_level, TlsMode::Permissive, None);
    assert_eq!(check(&port_level, TlsMode::Permissive, Some(TlsMode::Strict)), [""; 0]);
    let later = tls("z", &format!("{{ {}, mode: Strict }}", pods("web")));
    let issues = check(&later, TlsMode::Permissive, Some(TlsMode::Strict));
    assert!(
        issues[0].starts_with("MeshTLSPolicy shop/z: spec: an older policy selects"),
        "{issues:?}"
    );
}

#[test]
fn authorizations_are_compiled_rule_by_rule_and_the_proxy_takes_them() {
    let policy = |name: &str, rules: &str| {
        ours(
            "AuthorizationPolicy",
            name,
            &format!("{{ targetRef: {{ kind: Pods, selector: {{ app: web }} }}, rules: {rules} }}"),
        )
    };
    let text = [
        pod("p", "10.0.0.1", "app: web"),
        pod("q", "10.0.0.2", "app: else"),
        policy(
            "b",
            "[{ action: Allow, from: [{ serviceAccount: a }, { namespace: ops }, { anyone: true }], to: [{ ports: [80], methods: [GET], paths: [/a, /b/*, /*] }] }]",
        ),
        policy(
            "a",
            "[{ action: Deny }, { action: Deny, from: [{ serviceAccount: x, namespace: y }] }]",
        ),
    ];
    let world = World::of(&text.concat());
    assert!(inbound(&world, "q").authorizations.is_empty());
    let policy = inbound(&world, "p");
    let rules = &policy.authorizations;
    assert_eq!(
        rules.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
        ["shop/a[0]", "shop/a[1]", "shop/b[0]"]
    );
    let source = |namespace: &str, account: &str| v1::Source {
        anyone: false,
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
    };
    assert_eq!(rules[1].from, [source("y", "x")]);
    let anyone = v1::Source { anyone: true, ..v1::Source::default() };
    assert_eq!(rules[2].from, [source("shop", "a"), source("ops", ""), anyone]);
    let paths: Vec<_> =
        rules[2].to[0].paths.iter().filter_map(|path| path.r#match.clone()).collect();
    use v1::path_match::Match;
    assert_eq!(
        paths,
        [Match::Exact("/a".into()), Match::Prefix("/b".into()), Match::Prefix("/".into())]
    );
    assert!(
        world.issues()[0].contains("AuthorizationPolicy shop/a: spec.rules[0].from: "),
        "{:?}",
        world.issues()
    );
    heddle_policy::authorize::InboundPolicy::try_from(policy).unwrap();
}

proptest::proptest! {
    /// What we accept from people, proxies accept from us: else a policy would deny everything.
    #[test]
    fn every_path_that_is_accepted_is_accepted_by_the_proxy(path in "/[/a.;%25eEfFcC0*~-]{0,12}") {
        let rule = format!("[{{ action: Deny, from: [{{ anyone: true }}], to: [{{ paths: [\"{path}\"] }}] }}]");
        let text = ours("AuthorizationPolicy", "p", &format!("{{ targetRef: {{ kind: Pods, selector: {{ app: web }} }}, rules: {rule} }}"));
        if heddle_resources::reader::read("p.yaml", &text).errors.is_empty() {
            let world = World::of(&(text + &pod("p", "10.0.0.1", "app: web")));
            heddle_policy::authorize::InboundPolicy::try_from(inbound(&world, "p")).unwrap();
        }
    }
}

#[test]
fn the_mesh_is_explicit_and_its_trust_domain_fixed() {
    let mesh = |spec: &str| {
        format!(
            "apiVersion: heddle.io/v1alpha1\nkind: Mesh\nmetadata: {{ name: default }}\nspec: {spec}\n---\n"
        )
    };
    let read = |world: &World| world.decode::<v1::Mesh>(ResourceType::Mesh, "default");
    let mut world = World::of(&pod("p", "10.0.0.1", "a: b"));
    assert_eq!(read(&world).trust_domain, "cluster.local");
    assert_eq!(read(&world).outbound_passthrough(), v1::Passthrough::Allow);
    world.apply(&mesh(
        "{ authorization: Deny, outboundPassthrough: Deny, clusterRanges: [10.0.0.0/8] }",
    ));
    assert_eq!(read(&world).outbound_passthrough(), v1::Passthrough::Deny);
    assert_eq!(read(&world).cluster_ranges, ["10.0.0.0/8"]);
    assert_eq!(inbound(&world, "p").default_authorization(), v1::DefaultAuthorization::Deny);
    world.apply(&mesh("{ trustDomain: other }"));
    assert_eq!(read(&world).trust_domain, "cluster.local");
    assert!(world.issues()[0].contains("spec.trustDomain: is immutable, and `cluster.local`"));

    let other = World::of(&(mesh("{ trustDomain: example.org }") + &pod("p", "10.0.0.1", "a: b")));
    assert_eq!(other.catalog.pod("shop", "p").unwrap().identity.trust_domain(), "example.org");
}

#[test]
fn only_what_changed_has_a_new_version() {
    let mut world = World::of(&web());
    let version = |world: &World, kind, name: &str| world.catalog.find(kind, name).unwrap().version;
    let before = world.catalog.version();
    assert!(!world.apply(&web()), "the same again is no change");
    assert_eq!(world.catalog.version(), before);
    let old = world.catalog.clone();
    assert!(world.apply(&slice("web", &[("10.0.0.1", true), ("10.0.0.2", true)])));
    assert_eq!(world.catalog.version().number, before.number + 1);
    assert_eq!(version(&world, ResourceType::Endpoints, "shop/web:80"), world.catalog.version());
    for (kind, name) in [
        (ResourceType::Service, "shop/web"),
        (ResourceType::Mesh, "default"),
        (ResourceType::InboundPolicy, "shop/web-1"),
    ] {
        assert_eq!(version(&world, kind, name), before, "{name}");
    }
    let address =
        |catalog: &Catalog, to: &str| catalog.closure(to.parse().unwrap(), "shop").pop().unwrap();
    for to in ["10.96.0.1:80", "10.0.0.1:8080"] {
        assert_eq!(address(&world.catalog, to).version, before, "{to}");
        assert_eq!(address(&world.catalog, to), address(&old, to));
    }
}

#[test]
fn an_object_s_age_counts_only_in_conflicts() {
    let ids = [Id::from("s/b"), Id::from("s/a")];
    let old = objects(
        &service("web", "None")
            .replace("namespace", "creationTimestamp: \"2020-01-01T00:00:00Z\", namespace"),
    );
    let young = objects(&service("web", "None"));
    let meta = |id: &Id| {
        if **id == *"s/b" { old[0].object.metadata() } else { young[0].object.metadata() }
    };
    assert_eq!(facts::oldest_first(ids.iter(), meta), [&ids[0], &ids[1]]);
    assert_eq!(facts::oldest_first(ids.iter(), |_| young[0].object.metadata()), [&ids[1], &ids[0]]);
}
