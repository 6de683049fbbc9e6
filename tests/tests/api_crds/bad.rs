//! Objects that must be refused: each is a good one with one thing changed, and has a piece of what
//! the API server says against it.

use serde_json::{Value, json};

use super::good::{AUTHORIZATION, MESH, POLICY, SPLIT, TLS};
use super::parse;

#[derive(Debug)]
pub(crate) struct Row {
    good: &'static str,
    from: &'static str,
    to: String,
    /// Of the message, with the field in front.
    pub(crate) piece: &'static str,
    what: What,
}

#[derive(Debug, PartialEq)]
enum What {
    /// It cannot be created.
    Object,
    /// The good one cannot be made into it.
    Change,
    /// The good one cannot get this status.
    Status(Value),
}

impl Row {
    pub(crate) fn object(&self) -> Value {
        assert!(self.good.contains(self.from), "nothing to change: {self:?}");
        let mut object = parse(&self.good.replacen(self.from, &self.to, 1));
        if let What::Status(status) = &self.what {
            object["status"] = status.clone();
        }
        object
    }

    pub(crate) fn kind(&self) -> String {
        parse(self.good)["kind"].as_str().expect("a kind").to_owned()
    }

    /// The good object, where it is the change that is refused.
    pub(crate) fn before(&self) -> Option<Value> {
        (self.what == What::Change).then(|| parse(self.good))
    }

    pub(crate) fn is_status(&self) -> bool {
        matches!(self.what, What::Status(_))
    }
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (good, bad) in [
        (SPLIT, split()),
        (POLICY, policy()),
        (AUTHORIZATION, authorization()),
        (TLS, tls()),
        (MESH, mesh()),
    ] {
        let row = |(from, to, piece): Bad| Row { good, from, to, piece, what: What::Object };
        rows.extend(bad.into_iter().map(row));
        let row = |(status, piece)| Row {
            good,
            from: "",
            to: String::new(),
            piece,
            what: What::Status(status),
        };
        rows.extend(statuses().into_iter().map(row));
    }
    let weights = |weights: String, piece| Row {
        good: SPLIT,
        from: "",
        to: String::new(),
        piece,
        what: What::Status(json!({ "weights": weights })),
    };
    rows.push(weights("95:5".into(), "status.weights: Invalid value: \"95:5\""));
    rows.push(weights("1/".repeat(128), "status.weights: Too long"));
    rows.push(Row {
        good: MESH,
        from: "trustDomain: cluster.local",
        to: "trustDomain: other.example".into(),
        piece: "spec.trustDomain: Invalid value: \"string\": cannot be changed: every certificate",
        what: What::Change,
    });
    rows
}

/// What to replace in the good object, by what, and a piece of the message.
type Bad = (&'static str, String, &'static str);

fn bad(from: &'static str, to: impl Into<String>, piece: &'static str) -> Bad {
    (from, to.into(), piece)
}

/// A list of `count` entries.
fn many(count: usize, entry: impl Fn(usize) -> String) -> String {
    (0..count).map(entry).collect::<Vec<_>>().join(", ")
}

/// Rows about a selector that is `app: NAME`.
fn selectors(selector: &'static str) -> Vec<Bad> {
    let labels = |text: &str| format!("selector: {{ {text} }}");
    vec![
        bad(selector, labels(""), "should have at least 1 properties"),
        bad(selector, labels(&many(9, |i| format!("a{i}: b"))), "must have at most 8 items"),
        bad(selector, labels("\"a b\": c"), "write a label's key"),
        bad(selector, labels(&format!("{}/a: b", "a".repeat(254))), "write a label's key"),
        bad(selector, labels("app: \"a b\""), "selector.app in body should match"),
        bad(selector, labels(&format!("app: {}", "a".repeat(64))), "selector.app: Too long"),
        bad(selector, labels("app: 5"), "selector.app in body must be of type string"),
        bad(selector, "selector: app", "selector in body must be of type object"),
    ]
}

fn split() -> Vec<Bad> {
    let label = "should match '^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'";
    let mut rows = selectors("selector: { app.kubernetes.io/version: v2 }");
    rows.retain(|(_, to, _)| to != "selector: app");
    rows.extend([
        bad("  service: web\n", "  servise: web\n", "unknown field \"spec.servise\""),
        bad("weight: 95", "wieght: 95", "unknown field \"spec.backends[0].wieght\""),
        bad("spec:", "spec: {}\nspek:", "unknown field \"spek\""),
        bad("  service: web\n", "", "spec.service: Required value"),
        bad("  service: web\n", "  service: \"\"\n", "spec.service in body should be at least 1 chars"),
        bad("  service: web\n", "  service: Web\n", label),
        bad("  service: web\n", format!("  service: {}\n", "a".repeat(64)), "spec.service: Too long"),
        bad("  service: web\n", "  service: [web]\n", "spec.service in body must be of type string"),
        bad("{ service: web-v1, weight: 95 }", "{ weight: 95 }", "backends[0].service: Required value"),
        bad("service: web-v1", "service: \"\"", "backends[0].service in body should be at least 1"),
        bad("service: web-v1", "service: other/web", label),
        bad("service: web-v1", format!("service: {}", "a".repeat(64)), "backends[0].service: Too long"),
        bad("service: web-v1", "service: web", "spec.backends: Invalid value: \"object\": names the Service that is split, and splits do not nest; name another"),
        bad("service: web-v1, weight: 95", "service: web-v1", "backends[0].weight: Required value"),
        bad("weight: 95", "weight: -1", "greater than or equal to 0"),
        bad("weight: 95", "weight: 1000001", "less than or equal to 1000000"),
        bad("weight: 95", "weight: 9.5", "must be of type integer: \"number\""),
        bad("weight: 95", "weight: 95%", "must be of type integer: \"string\""),
        bad("weight: 95 }\n    - { service: web, weight: 5", "weight: 0 }\n    - { service: web, weight: 0", "the weights add up to 0; give at least one backend a weight above 0"),
        bad("- { service: web-v1, weight: 95 }", "- { service: a, weight: 1 }\n    - { service: a, weight: 2 }", "names a backend twice; keep one and add the weights"),
        bad("- { service: web-v1, weight: 95 }", "- { service: web, weight: 9, selector: { app.kubernetes.io/version: v2 } }", "names a backend twice"),
        bad("from: 80", "from: 0", "ports[0].from in body should be greater than or equal to 1"),
        bad("from: 80", "from: 65536", "ports[0].from in body should be less than or equal to 65535"),
        bad("from: 80, ", "", "ports[0].from: Required value"),
        bad("to: 8080", "to: 0", "ports[0].to in body should be greater than or equal to 1"),
        bad("to: 8080", "to: 65536", "ports[0].to in body should be less than or equal to 65535"),
        bad(", to: 8080", "", "ports[0].to: Required value"),
        bad("{ from: 80, to: 8080 }", "{ from: 80, to: 1 }, { from: 80, to: 2 }", "ports[1]: Duplicate value: {\"from\":80}"),
        bad("{ from: 80, to: 8080 }", many(17, |i| format!("{{ from: {}, to: 1 }}", i + 1)), "must have at most 16 items"),
    ]);
    let backends = "- { service: web-v1, weight: 95 }\n    - { service: web, weight: 5, selector: { app.kubernetes.io/version: v2 }, ports: [{ from: 80, to: 8080 }] }\n";
    let list = format!("[{}]\n", many(33, |i| format!("{{ service: s{i}, weight: 1 }}")));
    rows.extend([
        bad(backends, list, "spec.backends: Too many: 33: must have at most 32 items"),
        bad(backends, "[]\n", "spec.backends in body should have at least 1 items"),
        bad("  backends:\n", "  others:\n", "unknown field \"spec.others\""),
    ]);
    rows.push(bad(SPEC_OF_SPLIT, "", "spec: Required value"));
    rows.push(bad(BACKENDS_OF_SPLIT, "", "spec.backends: Required value"));
    rows
}

const SPEC_OF_SPLIT: &str = "spec:
  service: web
  backends:
    - { service: web-v1, weight: 95 }
    - { service: web, weight: 5, selector: { app.kubernetes.io/version: v2 }, ports: [{ from: 80, to: 8080 }] }
";

const BACKENDS_OF_SPLIT: &str = "  backends:
    - { service: web-v1, weight: 95 }
    - { service: web, weight: 5, selector: { app.kubernetes.io/version: v2 }, ports: [{ from: 80, to: 8080 }] }
";

#[expect(clippy::too_many_lines, reason = "a table")]
fn policy() -> Vec<Bad> {
    let long = "1s".repeat(15);
    vec![
        bad(&POLICY[POLICY.find("spec:").expect("a spec")..], "", "spec: Required value"),
        bad("targetRef: { kind: Service, name: payments }", "", "spec.targetRef: Required value"),
        bad("kind: Service, ", "", "spec.targetRef.kind: Required value"),
        bad(
            "kind: Service, name",
            "kind: Deployment, name",
            "spec.targetRef.kind: Unsupported value: \"Deployment\": supported values: \"Service\"",
        ),
        bad(
            "{ kind: Service, name: payments }",
            "{ kind: Service }",
            "spec.targetRef.name: Required value",
        ),
        bad(
            "Service, name: payments",
            "Service, name: \"\"",
            "name in body should be at least 1 chars",
        ),
        bad(
            "Service, name: payments",
            "Service, name: Payments",
            "spec.targetRef.name in body should match",
        ),
        bad(
            "Service, name: payments",
            format!("Service, name: {}", "a".repeat(64)),
            "spec.targetRef.name: Too long",
        ),
        bad(
            "request: 2s",
            "request: 2",
            "spec.timeouts.request in body must be of type string: \"integer\"",
        ),
        bad(
            "request: 2s",
            "request: 2 seconds",
            "spec.timeouts.request: Invalid value: \"string\": write 1ms to 24h, as whole numbers with their units",
        ),
        bad("request: 2s", "request: 1.5s", "write 1ms to 24h"),
        bad("request: 2s", "request: 25h", "e.g. \"250ms\", \"2s\" or \"1h30m\""),
        bad("request: 2s", format!("request: {long}"), "spec.timeouts.request: Too long"),
        bad(
            "perTry: 500ms",
            "perTry: 0s",
            "spec.timeouts.perTry: Invalid value: \"string\": write 1ms to 24h",
        ),
        bad(
            "perTry: 500ms",
            "perTry: 3s",
            "spec.timeouts.perTry: Invalid value: \"object\": is longer than `request`; write less",
        ),
        bad("perTry: 500ms", format!("perTry: {long}"), "spec.timeouts.perTry: Too long"),
        bad(
            "connect: 1s",
            "connect: 2m",
            "spec.timeouts.connect: Invalid value: \"string\": write 1ms to 1m",
        ),
        bad("connect: 1s", format!("connect: {long}"), "spec.timeouts.connect: Too long"),
        bad(
            "idle: 1h",
            "idle: 10ms",
            "spec.timeouts.idle: Invalid value: \"string\": write 1s to 24h",
        ),
        bad("idle: 1h", format!("idle: {long}"), "spec.timeouts.idle: Too long"),
        bad("idle: 1h", "idel: 1h", "unknown field \"spec.timeouts.idel\""),
        bad("attempts: 2, ", "", "spec.retries.attempts: Required value"),
        bad("attempts: 2", "attempts: -1", "attempts in body should be greater than or equal to 0"),
        bad("attempts: 2", "attempts: 11", "attempts in body should be less than or equal to 10"),
        bad("when: [connect, \"503\"], ", "", "spec.retries.when: Required value"),
        bad("[connect, \"503\"]", "[]", "spec.retries.when in body should have at least 1 items"),
        bad(
            "[connect, \"503\"]",
            format!("[{}]", many(65, |i| format!("\"{}\"", 400 + i))),
            "spec.retries.when: Too many: 65: must have at most 64 items",
        ),
        bad(
            "[connect, \"503\"]",
            "[connect, 503]",
            "spec.retries.when[1] in body must be of type string",
        ),
        bad(
            "[connect, \"503\"]",
            "[connect, \"200\"]",
            "spec.retries.when[1] in body should match '^(connect|reset|gateway-error|5xx|[45][0-9][0-9])$'",
        ),
        bad("[connect, \"503\"]", "[connect, connection-lost]", "spec.retries.when[1]: Too long"),
        bad(
            "[connect, \"503\"]",
            "[connect, connect]",
            "spec.retries.when[1]: Duplicate value: \"connect\"",
        ),
        bad("percent: 20, ", "", "spec.retries.budget.percent: Required value"),
        bad("percent: 20", "percent: -1", "percent in body should be greater than or equal to 0"),
        bad("percent: 20", "percent: 101", "percent in body should be less than or equal to 100"),
        bad(", minPerSecond: 10", "", "spec.retries.budget.minPerSecond: Required value"),
        bad(
            "minPerSecond: 10",
            "minPerSecond: -1",
            "minPerSecond in body should be greater than or equal to 0",
        ),
        bad(
            "minPerSecond: 10",
            "minPerSecond: 1001",
            "minPerSecond in body should be less than or equal to 1000",
        ),
        bad(
            "percent: 20, minPerSecond: 10",
            "percent: 0, minPerSecond: 0",
            "spec.retries.budget: Invalid value: \"object\": allows no retry at all; raise percent or minPerSecond",
        ),
        bad("base: 25ms, ", "", "spec.retries.backoff.base: Required value"),
        bad("base: 25ms", "base: 25", "spec.retries.backoff.base in body must be of type string"),
        bad(
            "base: 25ms",
            "base: 0s",
            "spec.retries.backoff.base: Invalid value: \"string\": write 1ms to 10s",
        ),
        bad(
            "base: 25ms",
            "base: 2s",
            "spec.retries.backoff.base: Invalid value: \"object\": is longer than `max`; write less",
        ),
        bad("base: 25ms", format!("base: {long}"), "spec.retries.backoff.base: Too long"),
        bad(", max: 1s", "", "spec.retries.backoff.max: Required value"),
        bad(
            "max: 1s",
            "max: 61s",
            "spec.retries.backoff.max: Invalid value: \"string\": write 1ms to 1m",
        ),
        bad("max: 1s", format!("max: {long}"), "spec.retries.backoff.max: Too long"),
        bad(
            "consecutiveFailures: 5, ",
            "",
            "spec.circuitBreaker.consecutiveFailures: Required value",
        ),
        bad(
            "consecutiveFailures: 5",
            "consecutiveFailures: 0",
            "consecutiveFailures in body should be greater than or equal to 1",
        ),
        bad(
            "consecutiveFailures: 5",
            "consecutiveFailures: 1001",
            "consecutiveFailures in body should be less than or equal to 1000",
        ),
        bad(
            "openFor: 30s",
            "openFor: 2h",
            "spec.circuitBreaker.openFor: Invalid value: \"string\": write 100ms to 1h",
        ),
        bad("openFor: 30s", format!("openFor: {long}"), "spec.circuitBreaker.openFor: Too long"),
        bad(
            "maxEjectedPercent: 50",
            "maxEjectedPercent: 0",
            "maxEjectedPercent in body should be greater than or equal to 1",
        ),
        bad(
            "maxEjectedPercent: 50",
            "maxEjectedPercent: 51",
            "maxEjectedPercent in body should be less than or equal to 50",
        ),
        bad("{ algorithm: peakEwma }", "{}", "spec.loadBalancer.algorithm: Required value"),
        bad(
            "algorithm: peakEwma",
            "algorithm: ewma",
            "spec.loadBalancer.algorithm: Unsupported value: \"ewma\": supported values: \"peakEwma\"",
        ),
        bad(
            PARTS_OF_POLICY,
            "",
            "spec: Invalid value: \"object\": says nothing; write timeouts, retries, circuitBreaker or loadBalancer",
        ),
    ]
}

const PARTS_OF_POLICY: &str = r#"  timeouts: { request: 2s, perTry: 500ms, connect: 1s, idle: 1h }
  retries: { attempts: 2, when: [connect, "503"], budget: { percent: 20, minPerSecond: 10 }, backoff: { base: 25ms, max: 1s } }
  circuitBreaker: { consecutiveFailures: 5, openFor: 30s, maxEjectedPercent: 50 }
  loadBalancer: { algorithm: peakEwma }
"#;

fn authorization() -> Vec<Bad> {
    let from = "from: [{ serviceAccount: frontend, namespace: shop }, { anyone: true }]";
    let first = "{ serviceAccount: frontend, namespace: shop }";
    let to = "{ ports: [8080], methods: [POST], paths: [\"/charge\"] }";
    let path = "\"/charge\"";
    let mut rows = selectors("selector: { app: payments }");
    rows.extend([
        bad(&AUTHORIZATION[AUTHORIZATION.find("spec:").expect("a spec")..], "", "spec: Required value"),
        bad("targetRef: { kind: Pods, selector: { app: payments } }", "", "spec.targetRef: Required value"),
        bad("kind: Pods, ", "", "spec.targetRef.kind: Required value"),
        bad("kind: Pods", "kind: Service", "spec.targetRef.kind: Unsupported value: \"Service\": supported values: \"Pods\""),
        bad(", selector: { app: payments }", "", "spec.targetRef.selector: Required value"),
        bad("  rules", "  mode: DryRun\n  rules", "unknown field \"spec.mode\""),
        bad(&AUTHORIZATION[AUTHORIZATION.find("  rules:").expect("rules")..], "", "spec.rules: Required value"),
        bad(&AUTHORIZATION[AUTHORIZATION.find("  rules:").expect("rules")..], "  rules: []", "spec.rules in body should have at least 1 items"),
        bad(&AUTHORIZATION[AUTHORIZATION.find("  rules:").expect("rules")..], format!("  rules: [{}]", many(33, |_| "{ action: Deny }".into())), "spec.rules: Too many: 33: must have at most 32 items"),
        bad("- action: Allow\n      from", "- from", "spec.rules[0].action: Required value"),
        bad("action: Allow", "action: allow", "spec.rules[0].action: Unsupported value: \"allow\": supported values: \"Allow\", \"Deny\""),
        bad(from, format!("from: [{}]", many(33, |i| format!("{{ namespace: n{i} }}"))), "from: Too many: 33: must have at most 32 items"),
        bad(first, "{}", "spec.rules[0].from[0]: Invalid value: \"object\": names nobody; write `serviceAccount: NAME`"),
        bad(first, "{ anyone: false }", "spec.rules[0].from[0].anyone: Invalid value: \"object\": means nothing; remove it, and name"),
        bad(first, "{ namespace: shop, anyone: true }", "from[0].anyone: Invalid value: \"object\": excludes serviceAccount and namespace; remove it"),
        bad(first, "{ serviceAccount: a, anyone: true }", "excludes serviceAccount and namespace"),
        bad(first, "{ anyone: \"yes\" }", "from[0].anyone in body must be of type boolean"),
        bad(first, "{ user: frontend }", "unknown field \"spec.rules[0].from[0].user\""),
        bad("serviceAccount: frontend", "serviceAccount: \"*\"", "serviceAccount in body should match"),
        bad("serviceAccount: frontend", "serviceAccount: \"\"", "serviceAccount in body should be at least 1 chars"),
        bad("serviceAccount: frontend", format!("serviceAccount: {}", "a".repeat(254)), "serviceAccount: Too long"),
        bad("namespace: shop", "namespace: shop.eu", "namespace in body should match"),
        bad("namespace: shop", "namespace: \"\"", "namespace in body should be at least 1 chars"),
        bad("namespace: shop", format!("namespace: {}", "a".repeat(64)), "namespace: Too long"),
        bad(to, many(9, |_| "{ ports: [80] }".into()), "to: Too many: 9: must have at most 8 items"),
        bad(to, "{}", "spec.rules[0].to[0]: Invalid value: \"object\": names nothing; write ports, methods or paths, or remove `to`"),
        bad(to, "{ ports: [], paths: [] }", "names nothing; write ports"),
        bad(to, "{ hosts: [a] }", "unknown field \"spec.rules[0].to[0].hosts\""),
        bad("[8080]", "[0]", "ports[0] in body should be greater than or equal to 1"),
        bad("[8080]", "[65536]", "ports[0] in body should be less than or equal to 65535"),
        bad("[8080]", "[http]", "ports[0] in body must be of type integer"),
        bad("[8080]", "[80, 80]", "ports[1]: Duplicate value: 80"),
        bad("[8080]", format!("[{}]", many(33, |i| (i + 1).to_string())), "ports: Too many: 33: must have at most 32 items"),
        bad("[POST]", "[post]", "methods[0] in body should match"),
        bad("[POST]", format!("[{}]", "A".repeat(33)), "methods[0]: Too long"),
        bad("[POST]", "[GET, GET]", "methods[1]: Duplicate value: \"GET\""),
        bad("[POST]", format!("[{}]", many(17, |i| format!("A{i}"))), "methods: Too many: 17: must have at most 16 items"),
        bad(path, "\"/a\", \"/a\"", "paths[1]: Duplicate value: \"/a\""),
        bad(path, many(17, |i| format!("/a{i}")), "paths: Too many: 17: must have at most 16 items"),
        bad(path, format!("/{}", "a".repeat(512)), "paths[0]: Too long: may not be more than 512 bytes"),
        bad(path, "\"\"", "paths[0] in body should be at least 1 chars"),
        bad(path, "charge", "paths[0]: Invalid value: \"string\": write a path that begins with `/`"),
        bad(path, "/für", "write printable ASCII; percent-encode everything else"),
        bad(path, "\"/a b\"", "write printable ASCII"),
        bad(path, "/a?b=c", "write the path alone, without `?` query or `#` fragment"),
        bad(path, "\"/a#b\"", "write the path alone"),
        bad(path, r"'/a\b'", r"write `/` between segments, not `\`"),
        bad(path, "\"/100%\"", "write `%` only before two hexadecimal digits, e.g. %20"),
        bad(path, "\"/a%2Fb\"", "write the path without %2F, %5C and %00"),
        bad(path, "\"/%61\"", "write letters, digits, `-`, `.`, `_` and `~` plainly, without `%`"),
        bad(path, "\"/a/*/b\"", "write `*` only as the last segment: `/api/*` is /api and all below it"),
        bad(path, "\"/a*\"", "write `*` only as the last segment"),
        bad(path, "/a/../b", "write the path without `.` and `..` segments"),
        bad(path, "/a//b", "write one `/` between segments, not `//`"),
    ]);
    rows
}

fn tls() -> Vec<Bad> {
    let all = "  targetRef: { kind: Pods, selector: { app: legacy } }\n  mode: Strict\n  ports: [{ port: 9090, mode: Permissive }]\n";
    let mut rows = selectors("selector: { app: legacy }");
    rows.extend([
        bad(&TLS[TLS.find("spec:").expect("a spec")..], "", "spec: Required value"),
        bad(all, "  ports: []\n", "spec: Invalid value: \"object\": says nothing; write `mode: Strict` or `mode: Permissive`"),
        bad("kind: Pods, ", "", "spec.targetRef.kind: Required value"),
        bad("kind: Pods", "kind: Pod", "spec.targetRef.kind: Unsupported value: \"Pod\": supported values: \"Pods\""),
        bad(", selector: { app: legacy }", "", "spec.targetRef.selector: Required value"),
        bad("mode: Strict", "mode: strict", "spec.mode: Unsupported value: \"strict\": supported values: \"Strict\", \"Permissive\""),
        bad("port: 9090, ", "", "spec.ports[0].port: Required value"),
        bad("port: 9090", "port: 0", "spec.ports[0].port in body should be greater than or equal to 1"),
        bad("port: 9090", "port: 65536", "spec.ports[0].port in body should be less than or equal to 65535"),
        bad(", mode: Permissive", "", "spec.ports[0].mode: Required value"),
        bad("mode: Permissive", "mode: Lax", "spec.ports[0].mode: Unsupported value: \"Lax\""),
        bad("[{ port: 9090, mode: Permissive }]", "[{ port: 1, mode: Strict }, { port: 1, mode: Permissive }]", "spec.ports[1]: Duplicate value: {\"port\":1}"),
        bad("[{ port: 9090, mode: Permissive }]", format!("[{}]", many(65, |i| format!("{{ port: {}, mode: Strict }}", i + 1))), "spec.ports: Too many: 65: must have at most 64 items"),
        bad("mode: Strict", "mdoe: Strict", "unknown field \"spec.mdoe\""),
    ]);
    rows
}

fn mesh() -> Vec<Bad> {
    let ranges = "[\"10.0.0.0/8\", \"fd00::/64\"]";
    vec![
        bad("name: default", "name: other", "there is one Mesh; name it `default`"),
        bad(&MESH[MESH.find("spec:").expect("a spec")..], "", "spec: Required value"),
        bad("cluster.local", "\"\"", "spec.trustDomain in body should be at least 1 chars"),
        bad("cluster.local", "Cluster.Local", "spec.trustDomain in body should match"),
        bad(
            "cluster.local",
            "a".repeat(256),
            "spec.trustDomain: Too long: may not be more than 255 bytes",
        ),
        bad(
            "tls: Strict",
            "tls: strict",
            "spec.tls: Unsupported value: \"strict\": supported values: \"Strict\", \"Permissive\"",
        ),
        bad(
            "authorization: Deny",
            "authorization: Allow",
            "spec.authorization: Unsupported value: \"Allow\": supported values: \"AllowAuthenticated\", \"Deny\"",
        ),
        bad(
            "outboundPassthrough: Deny",
            "outboundPassthrough: Refuse",
            "spec.outboundPassthrough: Unsupported value: \"Refuse\"",
        ),
        bad("tls: Strict", "skipPorts: []", "unknown field \"spec.skipPorts\""),
        bad(
            ranges,
            "[\"10.0.0.0\"]",
            "spec.clusterRanges[0]: Invalid value: \"string\": write a CIDR, e.g. \"10.96.0.0/12\"",
        ),
        bad(
            ranges,
            "[\"10.96.0.1/12\"]",
            "has bits set after its prefix; write the range's first address",
        ),
        bad(
            ranges,
            "[\"10.0.0.0/8\", \"10.0.0.0/8\"]",
            "spec.clusterRanges[1]: Duplicate value: \"10.0.0.0/8\"",
        ),
        bad(
            ranges,
            format!("[{}]", many(257, |i| format!("\"10.{}.{}.0/24\"", i / 256, i % 256))),
            "spec.clusterRanges: Too many: 257: must have at most 256 items",
        ),
        bad(
            ranges,
            format!("[\"{}/0\"]", "0".repeat(42)),
            "spec.clusterRanges[0]: Too long: may not be more than 43 bytes",
        ),
        bad(ranges, "\"10.0.0.0/8\"", "spec.clusterRanges in body must be of type array"),
    ]
}

/// Every kind has the same status.
fn statuses() -> Vec<(Value, &'static str)> {
    let condition = |field: &str, value: Value| {
        let mut condition = json!({
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "lastTransitionTime": "2026-11-21T10:00:00Z",
        });
        if value.is_null() {
            condition.as_object_mut().expect("a condition").remove(field);
        } else {
            condition[field] = value;
        }
        json!({ "conditions": [condition] })
    };
    let named = |name: String| {
        let mut status = condition("type", json!(name));
        status["conditions"][0].take()
    };
    let twice = json!({ "conditions": [named("Accepted".into()), named("Accepted".into())] });
    let names: Vec<_> = ('A'..='I').map(|name| named(name.to_string())).collect();
    vec![
        (json!({ "observedGeneration": -1 }), "status.observedGeneration: Invalid value: -1: "),
        (json!({ "programmed": "all" }), "programmed in body should match '^[0-9]+/[0-9]+$'"),
        (json!({ "programmed": format!("1/{}", "1".repeat(20)) }), "status.programmed: Too long"),
        (json!({ "conditions": names }), "must have at most 8 items"),
        (twice, "status.conditions[1]: Duplicate value: {\"type\":\"Accepted\"}"),
        (condition("type", Value::Null), "status.conditions[0].type: Required value"),
        (condition("type", json!("Not Accepted")), "conditions[0].type in body should match"),
        (condition("type", json!("a".repeat(64))), "conditions[0].type: Too long"),
        (condition("status", Value::Null), "conditions[0].status: Required value"),
        (condition("status", json!("Yes")), "conditions[0].status: Unsupported value: \"Yes\""),
        (condition("reason", Value::Null), "conditions[0].reason: Required value"),
        (condition("reason", json!("")), "reason in body should be at least 1 chars"),
        (condition("reason", json!("two words")), "reason in body should match"),
        (condition("reason", json!("a".repeat(1025))), "conditions[0].reason: Too long"),
        (condition("message", Value::Null), "conditions[0].message: Required value"),
        (condition("message", json!("a".repeat(32_769))), "conditions[0].message: Too long"),
        (condition("lastTransitionTime", Value::Null), "lastTransitionTime: Required value"),
        (condition("lastTransitionTime", json!("now")), "must be of type date-time"),
        (
            condition("observedGeneration", json!(-1)),
            "observedGeneration in body should be greater",
        ),
    ]
}
