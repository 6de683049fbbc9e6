//! What statuses are written from: conditions with their reasons, and the resources that carry an
//! object.

use heddle_resources::ObjectKey;

use super::*;
use crate::catalog::state::ObjectState;

fn state(world: &World, kind: Kind, name: &str) -> ObjectState {
    let namespace = if kind.is_namespaced() { "shop" } else { "" };
    let key = ObjectKey::new(kind, namespace, name);
    let mut states = world.catalog.object_states();
    let at = states.iter().position(|state| state.key == key);
    states.swap_remove(at.unwrap_or_else(|| panic!("no state of {key}: {states:#?}")))
}

/// `Accepted ResolvedRefs carriers`: a condition is its reason.
fn summary(world: &World, kind: Kind, name: &str) -> String {
    let state = state(world, kind, name);
    let reasons: Vec<_> = state
        .conditions
        .iter()
        .inspect(|one| assert_eq!(one.status, one.reason == one.r#type.as_str()))
        .map(|one| one.reason)
        .collect();
    let carriers: Vec<_> = state
        .carriers
        .iter()
        .inspect(|one| {
            let found = world.catalog.find(one.key.kind, &one.key.name);
            assert_eq!(found.map(|found| found.hash), Some(one.hash));
        })
        .map(|one| &*one.key.name)
        .collect();
    format!("{} [{}]", reasons.join(" "), carriers.join(" "))
}

const SPLIT: &str =
    "{ service: web, backends: [{ service: a, weight: 1 }, { service: b, weight: 1 }] }";

#[test]
fn every_object_says_whether_it_is_accepted_and_what_carries_it() {
    let policy = |selector| {
        format!(
            "{{ targetRef: {{ kind: Pods, selector: {{ {selector} }} }}, \
             rules: [{{ action: Deny, from: [{{ namespace: x }}] }}] }}"
        )
    };
    let target = |name| {
        format!("{{ targetRef: {{ kind: Service, name: {name} }}, timeouts: {{ request: 1s }} }}")
    };
    let mut world = World::of(
        &[
            web(),
            service("a", "10.96.0.2"),
            ours("TrafficSplit", "s1", SPLIT),
            ours("TrafficSplit", "s2", SPLIT),
            ours("TrafficSplit", "s3", &SPLIT.replace("web", "gone").replace("b,", "a2,")),
            ours("TrafficPolicy", "p", &target("web")),
            ours("TrafficPolicy", "lost", &target("gone")),
            ours("AuthorizationPolicy", "one", &policy("v: \"1\"")),
            ours("AuthorizationPolicy", "both", &policy("app: web")),
            ours("AuthorizationPolicy", "none", &policy("app: x").replace("{ namespace: x }", "")),
            ours("MeshTLSPolicy", "t1", "{ mode: Permissive }"),
            ours("MeshTLSPolicy", "t2", "{ mode: Strict }"),
        ]
        .concat(),
    );
    for (kind, name, want) in [
        (Kind::TrafficSplit, "s1", "Accepted BackendNotFound [shop/web]"),
        (Kind::TrafficSplit, "s2", "Conflicted ResolvedRefs []"),
        (Kind::TrafficSplit, "s3", "TargetNotFound BackendNotFound [shop/gone]"),
        (Kind::TrafficPolicy, "p", "Accepted ResolvedRefs [shop/web]"),
        (Kind::TrafficPolicy, "lost", "TargetNotFound ResolvedRefs [shop/gone]"),
        (Kind::AuthorizationPolicy, "one", "Accepted ResolvedRefs [shop/web-1]"),
        (Kind::AuthorizationPolicy, "both", "Accepted ResolvedRefs [shop/web-1 shop/web-2]"),
        (Kind::AuthorizationPolicy, "none", "Accepted ResolvedRefs []"),
        (Kind::MeshTLSPolicy, "t1", "Accepted ResolvedRefs [shop/web-1 shop/web-2]"),
        (Kind::MeshTLSPolicy, "t2", "Conflicted ResolvedRefs [shop/web-1 shop/web-2]"),
    ] {
        assert_eq!(summary(&world, kind, name), want, "{kind} {name}");
    }
    let conditions = state(&world, Kind::TrafficSplit, "s1").conditions;
    assert!(conditions[1].message.starts_with("spec.backends[1].service: \"b\": there is no such"));
    let remark = &state(&world, Kind::AuthorizationPolicy, "none").conditions[0];
    assert!(remark.status && remark.message.contains("matches nobody"), "{remark:?}");

    // The Mesh that is in force for want of one is nobody's object.
    assert!(world.catalog.object_states().iter().all(|state| state.key.kind != Kind::Mesh));
    let mesh = "apiVersion: heddle.io/v1alpha1\nkind: Mesh\n\
                metadata: { name: default, generation: 3 }\nspec: {}\n";
    assert!(world.apply(mesh));
    assert_eq!(
        summary(&world, Kind::Mesh, "default"),
        "Accepted ResolvedRefs [default shop/web-1 shop/web-2]"
    );
    assert_eq!(state(&world, Kind::Mesh, "default").generation, Some(3));
}

#[test]
fn who_carries_an_object_is_told_even_when_no_proxy_sees_a_difference() {
    let mut world = World::of(
        &[web(), ours("TrafficSplit", "s1", SPLIT), ours("TrafficSplit", "s2", SPLIT)].concat(),
    );
    let split = |world: &World| world.catalog.find(ResourceType::Split, "shop/web").cloned();
    // A Split names its object, so take one whose body does not: what selects the same pods.
    let policy = |name| ours("MeshTLSPolicy", name, "{ mode: Strict }");
    world.apply(&policy("t1"));
    let before = world.catalog.find(ResourceType::InboundPolicy, "shop/web-1").cloned().unwrap();
    assert!(world.apply(&policy("t2")), "a catalog for whoever writes statuses");
    let after = world.catalog.find(ResourceType::InboundPolicy, "shop/web-1").cloned().unwrap();
    assert_eq!((before.hash, before.version), (after.hash, after.version));
    assert_eq!(
        summary(&world, Kind::MeshTLSPolicy, "t2"),
        "Accepted ResolvedRefs [shop/web-1 shop/web-2]"
    );

    let first = split(&world).unwrap();
    assert!(world.delete(Kind::TrafficSplit, "shop", "s1"));
    assert_ne!(split(&world).unwrap().hash, first.hash);
    assert_eq!(summary(&world, Kind::TrafficSplit, "s2").split(' ').next(), Some("Accepted"));
    assert!(world.catalog.object_states().iter().all(|state| &*state.key.name != "s1"));
}

#[test]
fn what_the_source_refuses_has_a_state_of_its_own() {
    let (mut compiler, mut index) = (Compiler::new(), crate::index::Index::default());
    let refused = |name: &str, generation| Issue {
        kind: "TrafficSplit".to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        location: String::new(),
        path: "spec.service".to_owned(),
        reason: Reason::Invalid,
        message: "x".repeat(1500),
        generation,
    };
    let changed = index.apply(
        objects(&ours("TrafficSplit", "s", SPLIT))
            .into_iter()
            .map(crate::index::Event::Apply)
            .collect(),
    );
    let issues = vec![refused("s", Some(7)), refused("new", None), refused("new", None)];
    let issues = [issues, vec![Issue { path: "y".to_owned(), ..refused("new", None) }]].concat();
    let catalog = compiler
        .compile(&index, &changed, issues, &mut || Version { epoch: 1, number: 1 })
        .unwrap();
    let states = catalog.object_states();
    let names: Vec<_> = states.iter().map(|state| (&*state.key.name, state.generation)).collect();
    assert_eq!(names, [("new", None), ("s", Some(7))]);
    for state in states {
        let accepted = &state.conditions[0];
        assert_eq!((accepted.status, accepted.reason), (false, "Invalid"));
        assert!(accepted.message.len() < 2_200);
        assert_eq!(accepted.message.ends_with("; and 1 more"), &*state.key.name == "new");
    }
}
