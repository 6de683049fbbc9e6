//! Routes as people write them: what is read, what is remembered of what is not, what is refused.

use super::*;
use crate::reader::read;

const GOOD: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 80 }]
  rules:
    - name: api
      matches: [{ path: { type: PathPrefix, value: /api }, method: GET, headers: [{ name: x, value: y }], queryParams: [{ name: q, value: "1" }] }]
      filters:
        - { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: a, value: b }], add: [{ name: c, value: d }], remove: [e] } }
        - { type: URLRewrite, urlRewrite: { hostname: v2, path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }
      backendRefs: [{ name: web-v1, port: 80, weight: 90 }, { name: web-v2, namespace: other, port: 80, weight: 10 }]
      timeouts: { request: 2s, backendRequest: 500ms }
    - matches: [{ path: { type: Exact, value: /old } }]
      filters: [{ type: RequestRedirect, requestRedirect: { scheme: https, statusCode: 301 } }]
status: { parents: [] }
"#;

const GRPC: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: web, namespace: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: web }]
  rules:
    - matches: [{ method: { service: shop.Cart, method: Add }, headers: [{ name: x, value: y }] }]
      filters: [{ type: ResponseHeaderModifier, responseHeaderModifier: { remove: [e] } }]
      backendRefs: [{ name: web, port: 80 }]
"#;

#[test]
fn reads_routes_of_both_kinds() {
    let reading = read("a.yaml", &[GOOD, GRPC].join("---"));
    assert_eq!(reading.errors, []);
    let [http, grpc] = [0, 1].map(|at| reading.objects[at].object.as_route().unwrap());
    assert_eq!((http.kind, http.rules.len(), http.unknown), (Kind::HTTPRoute, 2, [].as_slice()));
    assert!(http.parent_refs[0].is_service());
    assert_eq!(http.rules[0].backend_refs[1].weight(), 10);
    assert_eq!(http.rules[0].timeouts.unwrap().request.unwrap().as_millis(), 2000);
    assert_eq!((grpc.kind, grpc.rules.len()), (Kind::GRPCRoute, 1));
    assert_eq!(grpc.rules[0].backend_refs[0].weight(), 1);
    assert_eq!(problems(&http), []);
    assert_eq!(problems(&grpc), []);

    // As the API server fills it in.
    let bare: HTTPRoute = serde_json::from_str(r#"{"metadata":{"name":"a"},"spec":{}}"#).unwrap();
    assert_eq!(bare.spec.rules, [HttpRule::default()]);
}

/// Every problem of the good route with `from` replaced: `rule path: message`.
fn spoilt(good: &str, from: &str, to: &str) -> Vec<String> {
    assert!(good.contains(from), "{from}");
    let reading = read("a.yaml", &good.replacen(from, to, 1));
    let (errors, objects) = (reading.errors, reading.objects);
    let mut all: Vec<_> =
        errors.iter().map(|e| format!("refused {}: {}", e.path, e.message)).collect();
    for located in &objects {
        let route = located.object.as_route().unwrap();
        all.extend(problems(&route).iter().map(|problem| {
            let rule = problem.rule.map_or("route".to_owned(), |rule| format!("rule {rule}"));
            format!("{rule} {}: {}", problem.path, problem.message)
        }));
    }
    all
}

const REDIRECT: &str =
    "filters: [{ type: RequestRedirect, requestRedirect: { scheme: https, statusCode: 301 } }]";

/// A good route, what is replaced in it by what, and what is said of that.
const UNDONE: &[(&str, &str, &str, &str)] = &[
    (
        GOOD,
        "    - name: api",
        "    - retry: { attempts: 2 }\n      name: api",
        "rule 0 spec.rules[0].retry: is not supported; remove it, and write a TrafficPolicy",
    ),
    (
        GOOD,
        "    - name: api",
        "    - sessionPersistence: { type: Cookie }\n      name: api",
        "rule 0 spec.rules[0].sessionPersistence: is not",
    ),
    (
        GOOD,
        REDIRECT,
        "filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: x, port: 1 } } }]",
        "rule 1 spec.rules[1].filters[0].requestMirror: mirroring",
    ),
    (
        GOOD,
        REDIRECT,
        "filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: x, port: 1 } } }]",
        "rule 1 spec.rules[1].filters[0].type: is not supported; write one of RequestHeaderModifier",
    ),
    (
        GOOD,
        REDIRECT,
        "filters: [{ type: CORS, cors: {} }]",
        "rule 1 spec.rules[1].filters[0].cors: is not",
    ),
    (
        GOOD,
        REDIRECT,
        "filters: [{ type: ExtensionRef, extensionRef: { group: a, kind: B, name: c } }]",
        "filters[0].extensionRef: there are no",
    ),
    (
        GOOD,
        REDIRECT,
        "filters: [{ type: ExternalAuth, externalAuth: { protocol: HTTP } }]",
        "filters[0].externalAuth: is not",
    ),
    (
        GOOD,
        "type: PathPrefix",
        "type: RegularExpression",
        "rule 0 spec.rules[0].matches[0].path.type: regular",
    ),
    (
        GOOD,
        "{ name: x, value: y }",
        "{ name: x, value: y, type: RegularExpression }",
        "matches[0].headers[0].type: only Exact",
    ),
    (
        GOOD,
        "{ name: q, value: \"1\" }",
        "{ name: q, value: \"1\", type: RegularExpression }",
        "matches[0].queryParams[0].type: only Exact",
    ),
    (
        GOOD,
        "  parentRefs",
        "  useDefaultGateways: All\n  parentRefs",
        "route spec.useDefaultGateways: is for Gateways",
    ),
    (
        GRPC,
        "service: shop.Cart, ",
        "",
        "rule 0 spec.rules[0].matches[0].method.service: is required",
    ),
    (GRPC, "method: Add", "method: Add, type: RegularExpression", "method.type: only Exact"),
    (
        GRPC,
        "      backendRefs",
        "      timeouts: { request: 1s }\n      backendRefs",
        "rule 0 spec.rules[0].timeouts: is not a field of a GRPCRoute",
    ),
    (
        GOOD,
        "    - matches: [{ path: { type: Exact",
        "    - name: api\n      matches: [{ path: { type: Exact",
        "rule 1 spec.rules[1].name: is the name of an earlier rule",
    ),
];

#[test]
fn what_we_do_not_do_is_told_with_what_to_write_instead() {
    for (good, from, to, want) in UNDONE {
        let said = spoilt(good, from, to);
        assert!(said.iter().any(|one| one.contains(want)), "{to}\n wanted {want}\n said {said:#?}");
        assert!(!said.iter().any(|one| one.starts_with("refused")), "{to}: {said:#?}");
    }
}

/// As [`UNDONE`], of what the API server would refuse.
const REFUSED: &[(&str, &str, &str, &str)] = &[
    (GOOD, "name: api", "nmae: api", "refused spec.rules[0].nmae: no such field"),
    (
        GOOD,
        "port: 80 }]\n",
        "port: 80, prot: 1 }]\n",
        "refused spec.parentRefs[0].prot: no such field",
    ),
    (
        GOOD,
        "port: 80, weight: 90",
        "port: 80, weight: 1000001",
        "backendRefs[0].weight: write 0 to 1000000",
    ),
    (GOOD, "port: 80, weight: 90", "weight: 90", "backendRefs[0].port: is required"),
    (
        GOOD,
        "port: 80, weight: 90",
        "port: 70000, weight: 90",
        "backendRefs[0].port: write a port number",
    ),
    (GOOD, "request: 2s", "request: 2 s", "timeouts.request: write a duration"),
    (
        GOOD,
        "backendRequest: 500ms",
        "backendRequest: 3s",
        "timeouts.backendRequest: is longer than `request`, which is 2s",
    ),
    (
        GOOD,
        "type: URLRewrite",
        "type: RequestHeaderModifier",
        "filters[1].type: a RequestHeaderModifier stands before",
    ),
    (
        GOOD,
        "type: URLRewrite",
        "type: ResponseHeaderModifier",
        "filters[1].responseHeaderModifier: is required",
    ),
    (
        GOOD,
        "type: URLRewrite",
        "type: ResponseHeaderModifier",
        "filters[1].urlRewrite: belongs to a filter of type URLRewrite",
    ),
    (
        GOOD,
        "replacePrefixMatch: /",
        "replaceFullPath: /",
        "urlRewrite.path: write `replacePrefixMatch`",
    ),
    (GRPC, "service: shop.Cart, method: Add", "", "matches[0].method: names nothing"),
    (GRPC, "shop.Cart", "shop/Cart", "matches[0].method.service: write letters"),
    (
        GRPC,
        "type: ResponseHeaderModifier, responseHeaderModifier: { remove: [e] }",
        "type: URLRewrite, urlRewrite: {}",
        "filters[0].type: is not for a GRPCRoute",
    ),
];

#[test]
fn what_the_gateway_api_refuses_is_refused_in_files_too() {
    for (good, from, to, want) in REFUSED {
        let said = spoilt(good, from, to);
        let refused = said.iter().any(|one| {
            one.starts_with("refused") && one.contains(want.trim_start_matches("refused "))
        });
        assert!(refused, "{to}\n wanted {want}\n said {said:#?}");
    }
    let many = format!("rules: [{}]", vec!["{}"; 17].join(", "));
    let said =
        spoilt(&GOOD.replace("  rules:\n", "  old:\n"), "  old:", &format!("  {many}\n  old:"));
    assert!(
        said.iter().any(|one| one.contains("spec.rules: has 17 entries; write at most 16")),
        "{said:#?}"
    );
}

#[test]
fn what_takes_nothing_away_is_a_remark() {
    for (from, field) in [
        ("  hostnames: [a.example]\n  parentRefs", "spec.hostnames"),
        ("  useDefaultGateways: All\n  parentRefs", "spec.useDefaultGateways"),
    ] {
        let reading = read("a.yaml", &GOOD.replacen("  parentRefs", from, 1));
        let [found] = &problems(&reading.objects[0].object.as_route().unwrap())[..] else {
            panic!("{field}")
        };
        assert_eq!((found.degree, found.rule), (Degree::Remark, None));
        assert_eq!(found.path.to_string(), field);
    }
}

#[test]
fn a_field_that_only_the_cluster_knows_is_for_the_status_to_tell() {
    let value = serde_json::json!({
        "apiVersion": API_VERSION, "kind": "HTTPRoute", "metadata": { "name": "a", "namespace": "b" },
        "spec": { "rules": [{}, { "newer": { "than": "us" } }] },
        "status": { "parents": [] },
    });
    let reading = crate::reader::read_value(value);
    assert_eq!(reading.errors, []);
    let [found] = &problems(&reading.objects[0].object.as_route().unwrap())[..] else { panic!() };
    assert_eq!((found.degree, found.rule), (Degree::Unsupported, Some(1)));
    assert_eq!(found.path.to_string(), "spec.rules[1].newer");
}
