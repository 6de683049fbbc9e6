//! Routes: who follows which, what they become on the wire, and what their parents are told.

use heddle_resources::ObjectKey;
use heddle_resources::gateway::API_VERSION;

use super::*;
use crate::catalog::state::{Condition, ConditionType, RouteStatus};

/// A route; the spec is that of YAML.
fn route(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: {API_VERSION}\nkind: {kind}\n\
         metadata: {{ name: {name}, namespace: {namespace} }}\nspec: {spec}\n---\n"
    )
}

/// Rules for the callers of `web`.
fn of_web(rules: &str) -> String {
    format!(
        "{{ parentRefs: [{{ group: \"\", kind: Service, name: web, namespace: shop }}], \
         rules: [{rules}] }}"
    )
}

fn http(name: &str, rules: &str) -> String {
    route("HTTPRoute", "shop", name, &of_web(rules))
}

const TO_A: &str = "{ backendRefs: [{ name: a, port: 80 }] }";

/// `web` with ports 80 and 81, `a` and `b`, each with a pod of its own.
fn shop() -> String {
    let two_ports = service("web", "10.96.0.1").replace(
        "ports: [{ name: http, port: 80 }]",
        "ports: [{ name: http, port: 80 }, { name: alt, port: 81 }]",
    );
    let backend = |name: &str, at: u8| {
        let ip = format!("10.0.0.{at}");
        service(name, &format!("10.96.0.{at}"))
            + &slice(name, &[(&ip, true)])
            + &pod(&format!("{name}-1"), &ip, &format!("app: {name}"))
    };
    [two_ports, backend("a", 11), backend("b", 12)].concat()
}

fn world(texts: &[String]) -> World {
    World::of(&[&[shop()], texts].concat().concat())
}

fn rules(world: &World, name: &str) -> Vec<v1::RouteRule> {
    let route: v1::Route = world.decode(ResourceType::Route, name);
    heddle_policy::route::RouteTable::try_from(route.clone()).unwrap();
    route.rules
}

/// `source[name]` of every rule of a Route.
fn names(world: &World, name: &str) -> Vec<String> {
    rules(world, name).iter().map(|rule| format!("{}[{}]", rule.source, rule.name)).collect()
}

fn routes(world: &World) -> Vec<String> {
    let all = world.catalog.iter().filter(|one| one.key.kind == ResourceType::Route);
    let mut all: Vec<_> = all.map(|one| one.key.name.to_string()).collect();
    all.sort();
    all
}

fn status(world: &World, kind: Kind, namespace: &str, name: &str) -> RouteStatus {
    let key = ObjectKey::new(kind, namespace, name);
    let mut all = world.catalog.route_statuses();
    let at = all.iter().position(|one| one.key == key);
    all.swap_remove(at.unwrap_or_else(|| panic!("no status of {key}: {all:#?}")))
}

/// The reasons of the first parent's conditions; `!` before one that is False.
fn reasons(status: &RouteStatus) -> String {
    let word = |one: &Condition| {
        let not = if one.status { "" } else { "!" };
        match one.r#type {
            ConditionType::PartiallyInvalid => format!("{not}Partially{}", one.reason),
            ConditionType::Accepted | ConditionType::ResolvedRefs => format!("{not}{}", one.reason),
        }
    };
    status.parents[0].conditions.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn message(status: &RouteStatus, of: ConditionType) -> String {
    let mut all = status.parents[0].conditions.iter();
    all.find(|one| one.r#type == of).unwrap().message.clone()
}

#[test]
fn a_route_becomes_the_rules_of_every_port_of_its_parent() {
    let world = world(&[http("r", TO_A)]);
    assert_eq!(routes(&world), ["shop/web:80", "shop/web:81"]);
    let rule = rules(&world, "shop/web:80").remove(0);
    let backend = v1::RouteBackend {
        service: "shop/a".to_owned(),
        port: 80,
        weight: 1,
        ..v1::RouteBackend::default()
    };
    let want = v1::RouteRule {
        source: "HTTPRoute/shop/r".to_owned(),
        name: "0".to_owned(),
        backends: vec![backend],
        ..v1::RouteRule::default()
    };
    assert_eq!(rule, want);
    let encoded = world.catalog.find(ResourceType::Route, "shop/web:80").unwrap();
    assert_eq!(encoded.min_level, 2);
    assert!(
        world.catalog.iter().all(|one| one.min_level == 1 || one.key.kind == ResourceType::Route)
    );

    let status = status(&world, Kind::HTTPRoute, "shop", "r");
    assert_eq!(reasons(&status), "Accepted ResolvedRefs");
    let carriers: Vec<_> = status.carriers.iter().map(|one| &*one.key.name).collect();
    assert_eq!(carriers, ["shop/web:80", "shop/web:81"]);
    assert_eq!(world.issues(), [""; 0]);
}

#[test]
fn matches_filters_and_timeouts_are_translated() {
    let rule = "{ name: api, matches: [
          { path: { type: PathPrefix, value: /api/ }, method: GET, headers: [{ name: X-A, value: V }, { name: x-a, value: w }], queryParams: [{ name: Q, value: q }] },
          { path: { type: Exact, value: /x } }, { path: { value: / } } ],
        filters: [
          { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: A, value: b }], add: [{ name: C, value: d }], remove: [E] } },
          { type: ResponseHeaderModifier, responseHeaderModifier: { remove: [F] } },
          { type: URLRewrite, urlRewrite: { hostname: h.example, path: { type: ReplaceFullPath, replaceFullPath: /y } } } ],
        backendRefs: [{ name: a, port: 80, weight: 3, filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { remove: [g] } }] }],
        timeouts: { request: 1s, backendRequest: 0s } }";
    let redirect = "{ matches: [{ path: { value: /old } }], filters: [{ type: RequestRedirect, requestRedirect: { scheme: https, hostname: h.example, port: 8443, path: { type: ReplacePrefixMatch, replacePrefixMatch: /new } } }] }";
    let world = world(&[http("r", &format!("{rule}, {redirect}"))]);
    let [rule, redirect] = &rules(&world, "shop/web:80")[..] else { panic!("two rules") };
    let pair = |name: &str, value: &str| v1::NameValue { name: name.into(), value: value.into() };
    let prefix =
        |path: &str| v1::PathMatch { r#match: Some(v1::path_match::Match::Prefix(path.into())) };
    let exact =
        |path: &str| v1::PathMatch { r#match: Some(v1::path_match::Match::Exact(path.into())) };
    assert_eq!(rule.name, "api");
    assert_eq!(
        rule.matches,
        [
            v1::RouteMatch {
                path: Some(prefix("/api/")),
                method: "GET".into(),
                headers: vec![pair("x-a", "V")],
                query: vec![pair("Q", "q")],
            },
            v1::RouteMatch { path: Some(exact("/x")), ..v1::RouteMatch::default() },
            v1::RouteMatch::default(),
        ]
    );
    use v1::route_filter::Filter;
    let filters: Vec<_> = rule.filters.iter().map(|one| one.filter.clone().unwrap()).collect();
    let removes =
        |name: &str| v1::HeaderModifier { remove: vec![name.into()], ..Default::default() };
    let full = v1::PathRewrite { path: Some(v1::path_rewrite::Path::Full("/y".into())) };
    let rewrite = v1::Rewrite { hostname: "h.example".into(), path: Some(full) };
    let request = v1::HeaderModifier {
        set: vec![pair("a", "b")],
        add: vec![pair("c", "d")],
        remove: vec!["e".into()],
    };
    assert_eq!(
        filters,
        [
            Filter::RequestHeaders(request),
            Filter::ResponseHeaders(removes("f")),
            Filter::Rewrite(rewrite),
        ]
    );
    let backend = &rule.backends[0];
    assert_eq!(
        (backend.weight, backend.filters[0].filter.clone().unwrap()),
        (3, Filter::RequestHeaders(removes("g")))
    );
    assert_eq!((rule.request_timeout_ms, rule.backend_timeout_ms), (Some(1000), Some(0)));

    let path = Some(v1::PathRewrite { path: Some(v1::path_rewrite::Path::Prefix("/new".into())) });
    let want = v1::Redirect {
        scheme: "https".into(),
        hostname: "h.example".into(),
        path,
        port: 8443,
        status: 302,
    };
    assert_eq!(redirect.filters[0].filter, Some(Filter::Redirect(want)));
    assert_eq!((redirect.request_timeout_ms, redirect.backends.len()), (None, 0));
}

#[test]
fn grpc_methods_are_paths() {
    let rules_text = "{ matches: [{ method: { service: shop.Cart, method: Add } }, { method: { service: shop.Cart } }, { headers: [{ name: X, value: y }] }], backendRefs: [{ name: a, port: 80 }] }";
    let world = world(&[route("GRPCRoute", "shop", "g", &of_web(rules_text))]);
    let rule = rules(&world, "shop/web:80").remove(0);
    assert_eq!(rule.source, "GRPCRoute/shop/g");
    let paths: Vec<_> =
        rule.matches.iter().map(|one| one.path.clone().and_then(|path| path.r#match)).collect();
    use v1::path_match::Match;
    assert_eq!(
        paths,
        [
            Some(Match::Exact("/shop.Cart/Add".into())),
            Some(Match::Prefix("/shop.Cart".into())),
            None
        ]
    );
    assert_eq!(rule.matches[2].headers[0].name, "x");
}

#[test]
fn routes_of_one_port_are_merged_oldest_first() {
    let aged = |name: &str, time: &str| {
        http(name, &format!("{TO_A}, {TO_A}")).replace(
            "namespace: shop }\nspec",
            &format!("namespace: shop, creationTimestamp: \"{time}\" }}\nspec"),
        )
    };
    let world = world(&[
        aged("c", "2026-01-01T00:00:00Z"),
        aged("b", "2026-01-02T00:00:00Z"),
        aged("a", "2026-01-02T00:00:00Z"),
    ]);
    let want = ["c[0]", "c[1]", "a[0]", "a[1]", "b[0]", "b[1]"];
    assert_eq!(names(&world, "shop/web:80"), want.map(|name| format!("HTTPRoute/shop/{name}")));
}

#[test]
fn a_consumer_s_routes_take_the_place_of_the_producer_s_for_its_callers() {
    let consumer = route(
        "HTTPRoute",
        "blog",
        "mine",
        &of_web("{ backendRefs: [{ name: b, namespace: shop, port: 80 }] }"),
    );
    let mut world = world(&[http("r", TO_A), consumer]);
    assert_eq!(
        routes(&world),
        ["shop/web:80", "shop/web:80@blog", "shop/web:81", "shop/web:81@blog"]
    );
    let names = |world: &World, namespace: &str| {
        let closure = world.catalog.closure("10.96.0.1:80".parse().unwrap(), namespace);
        closure.iter().map(|one| one.key.name.to_string()).collect::<Vec<_>>()
    };
    let shop = names(&world, "shop");
    assert!(shop.contains(&"shop/web:80".into()) && shop.contains(&"shop/a:80".into()), "{shop:?}");
    assert!(!shop.iter().any(|name| name.contains("@blog") || name == "shop/b:80"), "{shop:?}");
    let blog = names(&world, "blog");
    assert!(
        blog.contains(&"shop/web:80@blog".into()) && blog.contains(&"shop/b:80".into()),
        "{blog:?}"
    );
    assert_eq!(
        blog.iter().filter(|name| name.starts_with("shop/web:80")).count(),
        2,
        "with its Endpoints"
    );
    assert!(!blog.contains(&"shop/a:80".into()), "{blog:?}");
    assert_eq!(reasons(&status(&world, Kind::HTTPRoute, "blog", "mine")), "Accepted ResolvedRefs");

    world.delete(Kind::HTTPRoute, "blog", "mine");
    assert_eq!(names(&world, "blog"), names(&world, "shop"));
    assert_eq!(world.catalog.route_statuses().len(), 1);
}

#[test]
fn a_closure_refers_to_everything_before_what_refers_to_it() {
    let world = world(&[
        http(
            "r",
            "{ backendRefs: [{ name: a, port: 80 }, { name: b, port: 80 }, { name: gone, port: 80 }] }",
        ),
        ours(
            "TrafficPolicy",
            "p",
            "{ targetRef: { kind: Service, name: a }, timeouts: { request: 1s } }",
        ),
    ]);
    let found = closure(&world, "10.96.0.1:80");
    let found: Vec<_> =
        found.iter().map(|name| name.trim_start_matches("RESOURCE_TYPE_")).collect();
    assert_eq!(
        found,
        [
            "ENDPOINTS shop/web:80",
            "SERVICE shop/web",
            "ENDPOINTS shop/a:80",
            "POLICY shop/a",
            "SERVICE shop/a",
            "ENDPOINTS shop/b:80",
            "SERVICE shop/b",
            "ROUTE shop/web:80",
            "ADDRESS 10.96.0.1:80",
        ]
    );
}

#[test]
fn a_grpc_route_wins_the_port_it_shares() {
    let grpc = |parent: &str| {
        let spec = format!(
            "{{ parentRefs: [{{ group: \"\", kind: Service, name: web{parent} }}], rules: [{TO_A}] }}"
        );
        route("GRPCRoute", "shop", "g", &spec)
    };
    let mut world = world(&[http("h", TO_A), grpc("")]);
    assert_eq!(names(&world, "shop/web:80"), ["GRPCRoute/shop/g[0]"]);
    let loser = status(&world, Kind::HTTPRoute, "shop", "h");
    assert_eq!(reasons(&loser), "!Conflicted ResolvedRefs");
    assert!(message(&loser, ConditionType::Accepted).contains("on port 80, 81: a GRPCRoute"));
    assert!(loser.carriers.is_empty());
    assert_eq!(world.issues().len(), 1);

    // On one port of two: accepted, and the message says where it is not.
    world.apply(&grpc(", port: 81"));
    assert_eq!(names(&world, "shop/web:80"), ["HTTPRoute/shop/h[0]"]);
    assert_eq!(names(&world, "shop/web:81"), ["GRPCRoute/shop/g[0]"]);
    let partly = status(&world, Kind::HTTPRoute, "shop", "h");
    assert_eq!(reasons(&partly), "Accepted ResolvedRefs");
    assert!(message(&partly, ConditionType::Accepted).contains("not in force on port 81"));

    // A refused GRPCRoute takes nothing away.
    world.apply(
        &grpc("")
            .replace("[{ backendRefs", "[{ retry: {}, backendRefs")
            .replace("retry", "sessionPersistence"),
    );
    assert_eq!(
        reasons(&status(&world, Kind::GRPCRoute, "shop", "g")),
        "!UnsupportedValue ResolvedRefs"
    );
    assert_eq!(names(&world, "shop/web:81"), ["HTTPRoute/shop/h[0]"]);
    // Nor does one that is another namespace's.
    let other = grpc("")
        .replace("namespace: shop }", "namespace: blog }")
        .replace("name: web }", "name: web, namespace: shop }");
    world.apply(&other);
    assert_eq!(names(&world, "shop/web:80@blog"), ["GRPCRoute/blog/g[0]"]);
    assert_eq!(names(&world, "shop/web:80"), ["HTTPRoute/shop/h[0]"]);
}

#[test]
fn parents_that_cannot_be_are_told_why() {
    let parent = |text: &str| {
        let spec = format!(
            "{{ parentRefs: [{{ group: \"\", kind: Service, {text} }}], rules: [{TO_A}] }}"
        );
        route("HTTPRoute", "shop", "r", &spec)
    };
    let services = [
        service("headless", "None"),
        service("external", "10.96.0.9")
            .replace("clusterIP: 10.96.0.9", "type: ExternalName, externalName: x.example"),
        service("db", "10.96.0.8").replace("name: http", "name: mysql"),
    ]
    .concat();
    for (text, want, ports) in [
        ("name: web", "", "80 81"),
        ("name: web, port: 81", "", "81"),
        ("name: web, sectionName: alt", "", "81"),
        ("name: web, port: 81, sectionName: alt", "", "81"),
        ("name: gone", "spec.parentRefs[0].name: there is no Service shop/gone", ""),
        ("name: web, namespace: x", "spec.parentRefs[0].name: there is no Service x/web", ""),
        ("name: headless", "spec.parentRefs[0].name: Service shop/headless is headless", ""),
        (
            "name: external",
            "spec.parentRefs[0].name: Service shop/external is of type ExternalName",
            "",
        ),
        (
            "name: web, port: 82",
            "spec.parentRefs[0].port: Service shop/web has no such port; write one of 80 (http), 81 (alt)",
            "",
        ),
        (
            "name: web, sectionName: x",
            "spec.parentRefs[0].sectionName: Service shop/web has no such port",
            "",
        ),
        ("name: web, port: 80, sectionName: alt", "spec.parentRefs[0].sectionName: Service", ""),
        (
            "name: db",
            "spec.parentRefs[0].port: port 80 of Service shop/db is declared to carry",
            "",
        ),
    ] {
        let world = world(&[services.clone(), parent(text)]);
        let status = status(&world, Kind::HTTPRoute, "shop", "r");
        let verdict = if want.is_empty() {
            "Accepted ResolvedRefs"
        } else {
            "!NoMatchingParent ResolvedRefs"
        };
        assert_eq!(reasons(&status), verdict, "{text}");
        let said = message(&status, ConditionType::Accepted);
        assert!(said.starts_with(want), "{text}: {said}");
        let found: Vec<_> = routes(&world)
            .iter()
            .filter_map(|name| Some(name.rsplit_once(':')?.1.to_owned()))
            .collect();
        assert_eq!(found.join(" "), ports, "{text}");
    }
    // Parents of other kinds are other controllers'.
    let gateway = parent("name: web")
        .replace("group: \"\", kind: Service", "name: x")
        .replace("name: x, name", "name");
    let world = world(&[gateway]);
    assert_eq!((world.catalog.route_statuses().len(), world.issues().len()), (0, 0));
    assert_eq!(routes(&world), [""; 0]);
}

#[test]
fn a_port_that_is_not_http_is_left_alone() {
    let text = shop().replace("name: alt", "name: tcp-alt");
    let world = World::of(&(text + &http("r", TO_A)));
    assert_eq!(routes(&world), ["shop/web:80"]);
}

#[test]
fn references_that_do_not_resolve_keep_their_share() {
    for (backend, reason, want) in [
        (
            "{ name: gone, port: 80 }",
            "BackendNotFound",
            "spec.rules[0].backendRefs[1].name: there is no Service shop/gone",
        ),
        (
            "{ name: a, port: 99 }",
            "BackendNotFound",
            "spec.rules[0].backendRefs[1].port: Service shop/a has no port 99: its share is answered with 500; write one of 80",
        ),
        ("{ name: a, namespace: x, port: 80 }", "BackendNotFound", "there is no Service x/a"),
        (
            "{ name: a, kind: Pod, port: 80 }",
            "InvalidKind",
            "spec.rules[0].backendRefs[1].kind: /Pod cannot be a backend",
        ),
        ("{ name: a, group: x.io, kind: TrafficSplit }", "InvalidKind", "x.io/TrafficSplit cannot"),
        ("{ name: external, port: 80 }", "InvalidKind", "is of type ExternalName"),
        (
            "{ name: s, group: heddle.io, kind: TrafficSplit }",
            "BackendNotFound",
            "there is no TrafficSplit shop/s",
        ),
    ] {
        let external = service("external", "10.96.0.9")
            .replace("clusterIP: 10.96.0.9", "type: ExternalName, externalName: x.example");
        let rule = format!("{{ backendRefs: [{{ name: a, port: 80, weight: 3 }}, {backend}] }}");
        let world = world(&[external, http("r", &rule)]);
        let found = &rules(&world, "shop/web:80")[0].backends;
        let shares: Vec<_> = found.iter().map(|one| (one.weight, one.invalid)).collect();
        assert_eq!(shares, [(3, false), (1, true)], "{backend}");
        let status = status(&world, Kind::HTTPRoute, "shop", "r");
        assert_eq!(reasons(&status), format!("Accepted !{reason}"), "{backend}");
        let said = message(&status, ConditionType::ResolvedRefs);
        assert!(said.contains(want), "{backend}: {said}");
    }
}

#[test]
fn backends_come_and_go() {
    let mut world = world(&[http("r", "{ backendRefs: [{ name: late, port: 80 }] }")]);
    assert!(rules(&world, "shop/web:80")[0].backends[0].invalid);
    world.apply(&service("late", "10.96.0.20"));
    assert!(!rules(&world, "shop/web:80")[0].backends[0].invalid);
    assert_eq!(reasons(&status(&world, Kind::HTTPRoute, "shop", "r")), "Accepted ResolvedRefs");
    world.delete(Kind::Service, "shop", "late");
    assert_eq!(reasons(&status(&world, Kind::HTTPRoute, "shop", "r")), "Accepted !BackendNotFound");
    world.delete(Kind::Service, "shop", "web");
    assert_eq!(routes(&world), [""; 0]);
    assert_eq!(
        reasons(&status(&world, Kind::HTTPRoute, "shop", "r")),
        "!NoMatchingParent !BackendNotFound"
    );
}

#[test]
fn a_rule_that_cannot_be_done_as_written_is_left_out() {
    let header = |name: &str, value: &str| {
        format!(
            "{{ filters: [{{ type: RequestHeaderModifier, requestHeaderModifier: {{ set: [{{ name: {name}, value: \"{value}\" }}] }} }}], backendRefs: [{{ name: a, port: 80 }}] }}"
        )
    };
    for (rule, want) in [
        ("{ retry: { attempts: 1 } }".to_owned(), "spec.rules[1].retry: is not supported"),
        ("{ matches: [{ path: { type: RegularExpression, value: .* } }] }".to_owned(), "spec.rules[1].matches[0].path.type: regular"),
        ("{ matches: [{ path: { type: Exact, value: /a/../b } }] }".to_owned(), "spec.rules[1].matches[0].path"),
        ("{ matches: [{ headers: [{ name: heddle-x, value: y }] }] }".to_owned(), "spec.rules[1].matches[0].headers[0].name"),
        ("{ matches: [{ queryParams: [{ name: \"\", value: y }] }] }".to_owned(), "spec.rules[1].matches[0].queryParams[0].name"),
        (header("content-length", "1"), "spec.rules[1].filters[0].requestHeaderModifier.set[0].name"),
        (header("x", "a\\r\\nb"), "spec.rules[1].filters[0].requestHeaderModifier.set[0].value"),
        ("{ filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /x } } }], matches: [{ path: { type: Exact, value: /a } }] }".to_owned(), "spec.rules[1].matches"),
        ("{ filters: [{ type: RequestRedirect, requestRedirect: { hostname: \"A B\" } }] }".to_owned(), "spec.rules[1].filters[0].requestRedirect.hostname"),
        ("{ backendRefs: [{ name: a, port: 80, filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { remove: [te] } }] }] }".to_owned(), "spec.rules[1].backendRefs[0].filters[0].requestHeaderModifier.remove[0]"),
    ] {
        let both = world(&[http("r", &format!("{TO_A}, {rule}"))]);
        assert_eq!(names(&both, "shop/web:80"), ["HTTPRoute/shop/r[0]"], "{rule}");
        let found = status(&both, Kind::HTTPRoute, "shop", "r");
        assert_eq!(reasons(&found), "Accepted ResolvedRefs PartiallyUnsupportedValue", "{rule}");
        let said = message(&found, ConditionType::PartiallyInvalid);
        assert!(said.starts_with(&format!("Dropped Rule 1: {want}")), "{rule}\n wanted {want}\n said {said}");

        let alone = world(&[http("r", &rule)]);
        let found = status(&alone, Kind::HTTPRoute, "shop", "r");
        assert_eq!(reasons(&found), "!UnsupportedValue ResolvedRefs", "{rule}");
        assert!(message(&found, ConditionType::Accepted).starts_with(&want.replace("[1]", "[0]")[..13]), "{rule}");
        assert_eq!(routes(&alone), [""; 0], "{rule}");
    }
}

#[test]
fn host_names_are_reported_and_take_nothing_away() {
    let text = http("r", TO_A).replace("rules:", "hostnames: [a.example], rules:");
    let world = world(&[text]);
    let status = status(&world, Kind::HTTPRoute, "shop", "r");
    assert_eq!(reasons(&status), "Accepted ResolvedRefs");
    assert!(
        message(&status, ConditionType::Accepted).starts_with("spec.hostnames: have no effect")
    );
    assert_eq!(world.issues().len(), 1);
}

#[test]
fn a_route_may_send_requests_to_a_split() {
    let split = ours(
        "TrafficSplit",
        "s",
        "{ service: web, backends: [{ service: a, weight: 95 }, { service: b, selector: { app: b }, weight: 5, ports: [{ from: 80, to: 80 }] }] }",
    );
    let rule = "{ backendRefs: [{ group: heddle.io, kind: TrafficSplit, name: s, weight: 1 }, { name: a, port: 80, weight: 1 }] }";
    let parent = of_web(rule).replace("namespace: shop }]", "namespace: shop, port: 80 }]");
    let mut world = world(&[split.clone(), route("HTTPRoute", "shop", "r", &parent)]);
    let backends = &rules(&world, "shop/web:80")[0].backends;
    let found: Vec<_> = backends
        .iter()
        .map(|one| (one.service.as_str(), one.port, one.weight, one.subset.join(" ")))
        .collect();
    assert_eq!(
        found,
        [
            ("shop/a", 80, 19, String::new()),
            ("shop/b", 80, 1, "shop/b-1".into()),
            ("shop/a", 80, 20, String::new())
        ]
    );
    assert!(backends[1].has_subset && !backends[0].has_subset);
    let issues = world.issues();
    assert!(!issues.iter().any(|issue| issue.contains("decides there")), "{issues:?}");
    let states = world.catalog.object_states();
    let carriers: Vec<_> =
        states[0].carriers.iter().map(|one| (one.key.kind, &*one.key.name)).collect();
    assert_eq!(carriers, [(ResourceType::Split, "shop/web"), (ResourceType::Route, "shop/web:80")]);

    // The split moves, and so does the Route; its subset follows the pods.
    world.apply(&split.replace("95", "5"));
    assert_eq!(rules(&world, "shop/web:80")[0].backends[0].weight, 1);
    world.apply(&pod("b-1", "10.0.0.12", "app: x"));
    assert_eq!(rules(&world, "shop/web:80")[0].backends[1].subset, [""; 0]);
    world.delete(Kind::Service, "shop", "b");
    assert!(rules(&world, "shop/web:80")[0].backends[1].invalid);
    assert_eq!(reasons(&status(&world, Kind::HTTPRoute, "shop", "r")), "Accepted !BackendNotFound");
    world.delete(Kind::TrafficSplit, "shop", "s");
    let left: Vec<_> =
        rules(&world, "shop/web:80")[0].backends.iter().map(|one| one.invalid).collect();
    assert_eq!(left, [true, false]);
}

#[test]
fn a_split_in_the_place_of_which_routes_decide_is_told() {
    let split = ours(
        "TrafficSplit",
        "s",
        "{ service: web, backends: [{ service: a, weight: 1 }, { service: b, weight: 1 }] }",
    );
    let spec = |world: &World| world.catalog.object_states()[0].conditions[0].clone();
    let mut world = world(&[split]);
    assert!(spec(&world).status);
    assert!(closure(&world, "10.96.0.1:80").contains(&"RESOURCE_TYPE_SPLIT shop/web".to_owned()));

    world.apply(&http("r", TO_A));
    assert_eq!((spec(&world).status, spec(&world).reason), (false, "Conflicted"));
    assert!(
        spec(&world).message.contains("HTTPRoute shop/r decides there"),
        "{}",
        spec(&world).message
    );
    assert!(!closure(&world, "10.96.0.1:80").contains(&"RESOURCE_TYPE_SPLIT shop/web".to_owned()));

    // On one port of two.
    world.apply(&http("r", TO_A).replace("namespace: shop }]", "namespace: shop, port: 81 }]"));
    assert!(spec(&world).status && spec(&world).message.contains("has no effect on port 81"));
    assert!(closure(&world, "10.96.0.1:80").contains(&"RESOURCE_TYPE_SPLIT shop/web".to_owned()));
    assert!(!closure(&world, "10.96.0.1:81").contains(&"RESOURCE_TYPE_SPLIT shop/web".to_owned()));

    // A consumer's route is nothing to other callers; a refused route to nobody.
    world.apply(&route("HTTPRoute", "blog", "r", &of_web("{ }")));
    world.apply(&http("r", "{ retry: {} }"));
    assert!(spec(&world).status && spec(&world).message.is_empty(), "{}", spec(&world).message);
    world.delete(Kind::HTTPRoute, "shop", "r");
    assert!(spec(&world).status);
}
