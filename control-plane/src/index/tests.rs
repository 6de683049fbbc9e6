//! Objects in YAML for the tests of index and compiler, and the property that order does not count.

use std::sync::LazyLock;

use heddle_api::proto::v1::{ResourceType, Version};
use heddle_resources::{Kind, ObjectKey, reader};
use proptest::prelude::*;

use super::*;
use crate::catalog::{Catalog, Owner};
use crate::compile::Compiler;

/// An index, a compiler and the catalog they last made.
pub(crate) struct World {
    pub(crate) index: Index,
    compiler: Compiler,
    pub(crate) catalog: Catalog,
    number: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        let catalog = Catalog::empty(Version::default());
        Self { index: Index::default(), compiler: Compiler::new(), catalog, number: 0 }
    }

    pub(crate) fn of(text: &str) -> Self {
        let mut world = Self::new();
        assert!(world.apply(text), "nothing compiled");
        world
    }

    /// True when there is a new catalog.
    pub(crate) fn apply(&mut self, text: &str) -> bool {
        self.events(objects(text).into_iter().map(Event::Apply).collect())
    }

    pub(crate) fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.events(vec![Event::Delete(ObjectKey::new(kind, namespace, name))])
    }

    pub(crate) fn events(&mut self, events: Vec<Event>) -> bool {
        let changed = self.index.apply(events);
        let mut next = || {
            self.number += 1;
            Version { epoch: 1, number: self.number }
        };
        let catalog = self.compiler.compile(&self.index, &changed, Vec::new(), &mut next);
        let is_new = catalog.is_some();
        self.catalog = catalog.unwrap_or_else(|| self.catalog.clone());
        is_new
    }

    pub(crate) fn decode<M: prost::Message + Default>(&self, kind: ResourceType, name: &str) -> M {
        let found = self.catalog.find(kind, name);
        let found = found.unwrap_or_else(|| panic!("no {kind:?} {name}"));
        M::decode(found.body.clone()).unwrap()
    }

    pub(crate) fn has(&self, kind: ResourceType, name: &str) -> bool {
        self.catalog.find(kind, name).is_some()
    }

    pub(crate) fn issues(&self) -> Vec<String> {
        let print =
            |i: &Issue| format!("{} {}/{}: {}: {}", i.kind, i.namespace, i.name, i.path, i.message);
        self.catalog.issues().iter().map(print).collect()
    }

    /// Everything a catalog says but when it began to say so.
    fn content(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let mut resources: Vec<_> =
            self.catalog.iter().map(|one| (one.key.clone(), one.hash, one.body.clone())).collect();
        resources.sort();
        let mut owners: Vec<_> = self.catalog.addresses.values().map(timeless).collect();
        owners.sort();
        let mut pods: Vec<_> = self.catalog.pods.values().map(|pod| format!("{pod:?}")).collect();
        pods.sort();
        let mut splits: Vec<_> =
            self.catalog.splits.values().map(|split| format!("{split:?}")).collect();
        splits.sort();
        let mut routed: Vec<_> = self.catalog.routed.iter().map(|one| format!("{one:?}")).collect();
        routed.sort();
        (
            resources,
            owners,
            pods,
            splits,
            self.catalog.issues().to_vec(),
            self.catalog.object_states(),
            self.catalog.route_statuses(),
            routed,
        )
    }
}

fn timeless(owner: &Owner) -> String {
    match owner {
        Owner::Pod(pod) => format!("{:?} {:?} {:?}", pod.endpoint, pod.skipped, pod.headless),
        Owner::Service(service) => {
            let ports = service.ports.iter().map(|(port, one)| (port, &one.body));
            format!("{} {:?}", service.service, ports.collect::<Vec<_>>())
        }
    }
}

pub(crate) fn objects(text: &str) -> Vec<Located> {
    let reading = reader::read("test.yaml", text);
    assert_eq!(reading.errors, [], "{text}");
    reading.objects
}

pub(crate) fn pod(name: &str, ip: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{ name: {name}, namespace: shop, uid: uid-{name}, labels: {{ {labels} }} }}\n\
         spec: {{ serviceAccountName: web, nodeName: n1, containers: [{{ name: app, image: x }}, \
         {{ name: heddle-proxy, image: x }}] }}\n\
         status: {{ phase: Running, podIPs: [{{ ip: {ip} }}] }}\n---\n"
    )
}

pub(crate) fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec: {{ clusterIP: {ip}, ports: [{{ name: http, port: 80 }}] }}\n---\n"
    )
}

pub(crate) fn slice(service: &str, endpoints: &[(&str, bool)]) -> String {
    let endpoint = |(ip, ready): &(&str, bool)| {
        format!("  - {{ addresses: [{ip}], conditions: {{ ready: {ready} }} }}\n")
    };
    let endpoints: String = endpoints.iter().map(endpoint).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{ name: {service}-1, \
         namespace: shop, labels: {{ kubernetes.io/service-name: {service} }} }}\n\
         addressType: IPv4\nports: [{{ name: http, port: 8080 }}]\nendpoints:\n{endpoints}---\n"
    )
}

pub(crate) fn ours(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: heddle.io/v1alpha1\nkind: {kind}\n\
         metadata: {{ name: {name}, namespace: shop }}\nspec: {spec}\n---\n"
    )
}

/// States that each object may be in.
static STATES: LazyLock<Vec<Vec<Located>>> = LazyLock::new(|| {
    let parse = |text: &String| objects(text).remove(0);
    states().iter().map(|states| states.iter().map(parse).collect()).collect()
});

fn states() -> Vec<Vec<String>> {
    [policies_and_what_they_speak_of(), routes()].concat()
}

fn routes() -> Vec<Vec<String>> {
    let route = |kind: &str, namespace, name, port: &str, rules: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
             metadata: {{ name: {name}, namespace: {namespace} }}\n\
             spec: {{ parentRefs: [{{ group: \"\", kind: Service, name: web, namespace: shop{port} }}], rules: [{rules}] }}\n---\n"
        )
    };
    let to = |name| format!("{{ backendRefs: [{{ name: {name}, namespace: shop, port: 80 }}] }}");
    let to_split =
        "{ backendRefs: [{ group: heddle.io, kind: TrafficSplit, name: s1, namespace: shop }] }";
    vec![
        vec![
            route("HTTPRoute", "shop", "r1", "", &to("a")),
            route("HTTPRoute", "shop", "r1", "", to_split),
            route("HTTPRoute", "shop", "r1", ", port: 80", "{ retry: {} }"),
        ],
        vec![
            route("HTTPRoute", "blog", "r2", "", to_split),
            route("HTTPRoute", "blog", "r2", ", port: 81", &to("web")),
        ],
        vec![
            route("GRPCRoute", "shop", "r3", "", &to("gone")),
            route("GRPCRoute", "shop", "r3", "", to_split).replace("name: web, ", "name: a, "),
        ],
    ]
}

fn policies_and_what_they_speak_of() -> Vec<Vec<String>> {
    let split = |name, service: &str, a, b| {
        let first = if service == "a" { "gone" } else { "a" };
        let spec = format!(
            "{{ service: {service}, backends: [{{ service: {first}, weight: {a} }}, {{ service: web, selector: {{ v: \"2\" }}, weight: {b} }}] }}"
        );
        ours("TrafficSplit", name, &spec)
    };
    let policy = |name, service| {
        ours(
            "TrafficPolicy",
            name,
            &format!(
                "{{ targetRef: {{ kind: Service, name: {service} }}, timeouts: {{ request: 1s }} }}"
            ),
        )
    };
    let allow = |port| {
        ours(
            "AuthorizationPolicy",
            "allow",
            &format!(
                "{{ targetRef: {{ kind: Pods, selector: {{ app: web }} }}, rules: [{{ action: Allow, from: [{{ serviceAccount: a }}], to: [{{ ports: [{port}] }}] }}] }}"
            ),
        )
    };
    let tls = |name, spec| ours("MeshTLSPolicy", name, spec);
    let mesh = |authorization| {
        format!(
            "apiVersion: heddle.io/v1alpha1\nkind: Mesh\nmetadata: {{ name: default }}\nspec: {{ authorization: {authorization} }}\n"
        )
    };
    vec![
        vec![
            pod("p1", "10.0.0.1", "app: web"),
            pod("p1", "10.0.0.1", "app: web, v: \"2\""),
            pod("p1", "10.0.0.2", "app: web"),
        ],
        vec![pod("p2", "10.0.0.2", "app: web, v: \"2\""), pod("p2", "10.0.0.2", "app: other")],
        vec![
            pod("p3", "10.0.0.3", "app: a").replace("Running", "Failed"),
            pod("p3", "10.0.0.1", "app: a"),
        ],
        vec![service("web", "10.96.0.1"), service("web", "None"), service("web", "10.96.0.2")],
        vec![
            service("a", "10.96.0.2"),
            service("a", "10.96.0.3").replace("name: http", "name: grpc"),
        ],
        vec![
            slice("web", &[("10.0.0.1", true), ("10.0.0.2", false)]),
            slice("web", &[("10.0.0.2", true)]),
            slice("web", &[]),
        ],
        vec![
            slice("a", &[("10.0.0.3", true), ("10.0.0.9", true)]),
            slice("a", &[("10.0.0.1", true)]),
        ],
        vec![split("s1", "web", 1, 2), split("s1", "a", 3, 4), split("s1", "web", 5, 6)],
        vec![split("s2", "web", 7, 8)],
        vec![policy("p1", "web"), policy("p1", "a")],
        vec![policy("p2", "web")],
        vec![allow(8080), allow(9090)],
        vec![
            tls("t1", "{ mode: Permissive }"),
            tls("t1", "{ ports: [{ port: 8080, mode: Permissive }] }"),
        ],
        vec![tls("t2", "{ targetRef: { kind: Pods, selector: { app: web } }, mode: Strict }")],
        vec![mesh("Deny"), mesh("AllowAuthenticated")],
    ]
}

/// For each object the history it goes through; `None` is its deletion.
fn histories() -> impl Strategy<Value = Vec<Vec<Option<usize>>>> {
    let history =
        |count: usize| proptest::collection::vec(proptest::option::weighted(0.8, 0..count), 0..4);
    STATES.iter().map(|states| history(states.len())).collect::<Vec<_>>()
}

/// Plays every history, interleaved and cut into batches as `order` says.
fn play(histories: &[Vec<Option<usize>>], order: &mut impl FnMut(usize) -> usize) -> World {
    let mut left: Vec<_> = histories.iter().map(|history| history.iter()).collect();
    let mut open: Vec<usize> = (0..left.len()).collect();
    let (mut world, mut batch) = (World::new(), Vec::new());
    while !open.is_empty() {
        let at = order(open.len()) % open.len();
        let object = open[at];
        let Some(step) = left[object].next() else {
            open.swap_remove(at);
            continue;
        };
        batch.push(match step {
            Some(state) => Event::Apply(STATES[object][*state].clone()),
            None => Event::Delete(STATES[object][0].object.key()),
        });
        if order(3) == 0 {
            world.events(std::mem::take(&mut batch));
        }
    }
    world.events(batch);
    world
}

proptest! {
    #[test]
    fn the_order_of_events_does_not_count(histories in histories(), seed in any::<[u64; 2]>()) {
        let [one, other] = seed.map(|seed| {
            let mut state = seed | 1;
            play(&histories, &mut move |bound| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                usize::try_from(state >> 33).unwrap() % bound
            })
        });
        prop_assert_eq!(one.content(), other.content());

        // Nor does the path: an index that only ever saw the outcome says the same.
        let last = |history: &Vec<Option<usize>>| history.last().copied().flatten();
        let outcome = histories
            .iter()
            .zip(STATES.iter())
            .filter_map(|(history, states)| Some(Event::Apply(states[last(history)?].clone())));
        let mut direct = World::new();
        direct.events(outcome.collect());
        prop_assert_eq!(one.content(), direct.content());
    }
}

/// 5,000 Services with ten pods each.
fn large() -> Vec<Event> {
    let ip =
        |service: usize, pod: usize| format!("10.{}.{}.{}", pod + 1, service / 250, service % 250);
    let (pod, service, slice) = (
        objects(&pod("p", "10.0.0.1", "app: web")).remove(0),
        objects(&service("web", "10.96.0.1")).remove(0),
        objects(&slice("web", &[("10.0.0.1", true)])).remove(0),
    );
    let mut events = Vec::new();
    let mut push = |object: Object| {
        events.push(Event::Apply(Located { object, location: "large.yaml:1".into() }));
    };
    for at in 0..5_000 {
        let Object::Service(mut one) = service.object.clone() else { unreachable!() };
        let spec = Arc::make_mut(&mut one);
        spec.metadata.name = Some(format!("s{at}"));
        spec.spec.as_mut().unwrap().cluster_ip = Some(format!("10.96.{}.{}", at / 250, at % 250));
        push(Object::Service(one));
        let Object::EndpointSlice(mut one) = slice.object.clone() else { unreachable!() };
        let spec = Arc::make_mut(&mut one);
        spec.metadata.name = Some(format!("s{at}-1"));
        let labels = spec.metadata.labels.as_mut().unwrap();
        labels.insert("kubernetes.io/service-name".to_owned(), format!("s{at}"));
        let endpoint = spec.endpoints.remove(0);
        for number in 0..10 {
            let mut endpoint = endpoint.clone();
            endpoint.addresses = vec![ip(at, number)];
            spec.endpoints.push(endpoint);
            let Object::Pod(mut one) = pod.object.clone() else { unreachable!() };
            let spec = Arc::make_mut(&mut one);
            spec.metadata.name = Some(format!("s{at}-{number}"));
            spec.status.as_mut().unwrap().pod_ips.as_mut().unwrap()[0].ip = ip(at, number);
            push(Object::Pod(one));
        }
        push(Object::EndpointSlice(one));
    }
    events
}

#[test]
fn a_change_in_a_large_cluster_is_small() {
    let mut world = World::new();
    let began = tokio::time::Instant::now();
    world.events(large());
    println!("all: {:?}, {} resources", began.elapsed(), world.catalog.iter().count());
    let before = world.catalog.clone();
    let one = slice("s77", &[("10.1.0.77", false)]);
    let began = tokio::time::Instant::now();
    world.apply(&one);
    println!("one endpoint unready: {:?}", began.elapsed());
    let changed = world.catalog.iter().filter(|one| one.version == world.catalog.version());
    assert!(changed.count() <= 11, "the Endpoints, and the policies of pods that lost a port");
    drop(before);
}
