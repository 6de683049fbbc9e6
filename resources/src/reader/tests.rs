//! A table of spoilt objects: each must be refused with a message that helps.

use super::*;

/// A good object of each kind, to be spoilt by the table below.
const GOOD: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: web, namespace: shop }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  selector: { app: web }
  ports:
    - { name: http, port: 80, targetPort: 8080 }
    - { name: mysql, port: 3306, targetPort: db }
---
apiVersion: v1
kind: Pod
metadata: { name: web-1, namespace: shop, labels: { app.kubernetes.io/name: web } }
spec:
  serviceAccountName: web
  containers: [{ name: app, image: x, command: [sleep, "1"] }]
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: shop }
spec:
  selector: { matchLabels: { app: web } }
  template: { spec: { containers: [{ name: app, image: x }] } }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-abc, namespace: shop, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
endpoints: [{ addresses: [10.0.0.1], conditions: { ready: true } }]
ports: [{ name: http, port: 8080 }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: web }]
  rules: [{ backendRefs: [{ name: web-v2, port: 80 }] }]
status: { parents: [] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: cart, namespace: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: cart }]
  rules: [{ backendRefs: [{ name: cart-v2, port: 80 }] }]
---
apiVersion: heddle.io/v1alpha1
kind: TrafficSplit
metadata: { name: web, namespace: shop }
spec:
  service: web
  backends:
    - { service: web-v1, weight: 95 }
    - { service: web, weight: 5, selector: { version: v2 }, ports: [{ from: 80, to: 8080 }] }
status: { anything: [at, all] }
---
apiVersion: heddle.io/v1alpha1
kind: TrafficPolicy
metadata: { name: payments, namespace: shop }
spec:
  targetRef: { kind: Service, name: payments }
  timeouts: { request: 2s, perTry: 500ms, connect: 1s, idle: 1h }
  retries: { attempts: 2, when: [connect, "503", gateway-error], budget: { percent: 20, minPerSecond: 10 }, backoff: { base: 25ms, max: 1s } }
  circuitBreaker: { consecutiveFailures: 5, openFor: 30s, maxEjectedPercent: 50 }
  loadBalancer: { algorithm: peakEwma }
---
apiVersion: heddle.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: payments, namespace: shop }
spec:
  targetRef: { kind: Pods, selector: { app: payments } }
  rules:
    - action: Allow
      from: [{ serviceAccount: frontend }, { namespace: ops }]
      to: [{ ports: [8080], methods: [POST], paths: ["/charge", "/api/*", "/*", "/"] }]
    - { action: Deny, from: [{ anyone: true }] }
---
apiVersion: heddle.io/v1alpha1
kind: MeshTLSPolicy
metadata: { name: legacy, namespace: shop }
spec:
  targetRef: { kind: Pods, selector: { app: legacy } }
  mode: Strict
  ports: [{ port: 9090, mode: Permissive }]
---
apiVersion: heddle.io/v1alpha1
kind: Mesh
metadata: { name: default }
spec: { trustDomain: cluster.local, tls: Strict, authorization: Deny, outboundPassthrough: Deny, clusterRanges: ["10.0.0.0/8", "fd00::/64"] }
"#;

fn messages(text: &str) -> Vec<String> {
    read("a.yaml", text).errors.iter().map(ToString::to_string).collect()
}

fn good(kind: &str) -> &'static str {
    let wanted = format!("\nkind: {kind}\n");
    GOOD.split("---").find(|text| text.contains(&wanted)).unwrap()
}

#[test]
fn reads_every_kind() {
    let reading = read("all.yaml", GOOD);
    assert_eq!(reading.errors, []);
    let kinds: Vec<_> = reading.objects.iter().map(|located| located.object.kind()).collect();
    assert_eq!(kinds, Kind::ALL);
    assert_eq!(&*reading.objects[2].location, "all.yaml:10");
    assert_eq!(reading.objects[2].object.key(), ObjectKey::new(Kind::Service, "shop", "web"));
}

#[test]
fn reads_lists_json_empty_documents_and_anchors() {
    let list = "apiVersion: v1\nkind: List\nitems:\n\
                - { apiVersion: v1, kind: Namespace, metadata: { name: a } }\n\
                - { apiVersion: v1, kind: Namespace, metadata: { name: b } }\n---\n---\n# nothing\n";
    let json = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}"#;
    let anchors = "apiVersion: v1\nkind: Service\nmetadata: { name: web, labels: &l { app: web } }\n\
                   spec: { selector: *l, ports: [{ port: 80 }] }\n";
    let null = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: { name: a, labels: { kubernetes.io/service-name: b } }\n\
                addressType: IPv4\nendpoints: null\nports: null\n";
    for (text, count) in
        [(null, 1), (list, 2), (json, 1), (anchors, 1), ("", 0), ("# only this\n", 0)]
    {
        let reading = read("a.yaml", text);
        assert_eq!((reading.objects.len(), reading.errors), (count, vec![]), "{text}");
    }
}

/// Each row: a kind, what to replace in its good object, by what, and a piece of the message.
#[test]
fn every_mistake_says_where_and_what_to_write() {
    let mut failures = Vec::new();
    for (kind, from, to, piece) in SPOILT {
        let good = good(kind);
        assert!(good.contains(from), "{kind} has no {from:?}");
        let messages = messages(&good.replacen(from, to, 1));
        let found = messages.iter().any(|message| message.contains(piece));
        let placed = messages.iter().all(|message| {
            let place = message.strip_prefix("a.yaml:").unwrap_or_default();
            place.starts_with(|c: char| ('1'..='9').contains(&c))
        });
        if !found || !placed {
            failures.push(format!("{kind}: {to}\n  wanted {piece}\n  said {messages:#?}"));
        }
    }
    assert!(SPOILT.len() >= 80, "{}", SPOILT.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

const SPOILT: &[(&str, &str, &str, &str)] = &[
    // Heads
    (
        "Service",
        "kind: Service",
        "kind: Servise",
        "Servise shop/web: kind: \"Servise\": unknown kind; write one of Namespace, ",
    ),
    ("Service", "kind: Service", "kind: [Service]", "kind: unknown kind; write one of"),
    (
        "Service",
        "apiVersion: v1",
        "apiVersion: v2",
        "Service shop/web: apiVersion: \"v2\": a Service is of `v1`",
    ),
    ("Deployment", "apps/v1", "v1", "a Deployment is of `apps/v1`; write that"),
    ("TrafficSplit", "heddle.io/v1alpha1", "heddle.io/v1", "is of `heddle.io/v1alpha1`"),
    ("Service", "name: web, namespace", "namespace", "metadata.name: is required"),
    ("Service", "name: web, n", "name: Web, n", "metadata.name: \"Web\": write an RFC 1123 label"),
    (
        "Service",
        "name: web, n",
        "name: web.v1, n",
        "metadata.name: \"web.v1\": write an RFC 1123 label",
    ),
    (
        "Service",
        "namespace: shop",
        "namespace: shop_1",
        "metadata.namespace: \"shop_1\": write an RFC 1123 label",
    ),
    ("Pod", "name: web-1", "name: -web", "metadata.name: \"-web\": write an RFC 1123 subdomain"),
    (
        "Namespace",
        "name: shop",
        "name: shop, namespace: x",
        "belongs to no namespace; remove the field",
    ),
    (
        "Mesh",
        "name: default",
        "name: other",
        "metadata.name: \"other\": there is one Mesh; name it `default`",
    ),
    ("Mesh", "name: default", "name: default, namespace: shop", "a Mesh belongs to no namespace"),
    ("Service", "metadata: {", "metadata: [] #", "metadata: write "),
    ("Service", "name: web, n", "name: 5, n", "metadata.name: 5: write a string; in quotes"),
    // Unknown fields
    (
        "Service",
        "selector:",
        "selectr:",
        "a.yaml:6:3: Service shop/web: spec.selectr: no such field",
    ),
    ("Pod", "image: x", "imag: x", "spec.containers[0].imag: \"x\": no such field"),
    (
        "Pod",
        "serviceAccountName",
        "serviceAccountname",
        "spec.serviceAccountname: \"web\": no such field",
    ),
    (
        "Deployment",
        "image: x",
        "imgae: x",
        "spec.template.spec.containers[0].imgae: \"x\": no such field",
    ),
    (
        "EndpointSlice",
        "addressType: IPv4",
        "addressType: IPv4\nextra: 1",
        "extra: 1: no such field",
    ),
    (
        "TrafficSplit",
        "service: web\n",
        "service: web\n  sticky: x\n",
        "spec.sticky: \"x\": no such field; write `service` or `backends`",
    ),
    ("TrafficSplit", "weight: 95", "wieght: 95", "spec.backends[0].wieght: 95: no such field"),
    (
        "TrafficSplit",
        "from: 80",
        "form: 80",
        "spec.backends[1].ports[0].form: 80: no such field; write `from` or `to`",
    ),
    ("TrafficPolicy", "idle: 1h", "idel: 1h", "spec.timeouts.idel: \"1h\": no such field"),
    (
        "AuthorizationPolicy",
        "methods: [POST]",
        "method: POST",
        "spec.rules[0].to[0].method: \"POST\": no such field",
    ),
    (
        "AuthorizationPolicy",
        "  rules",
        "  mode: DryRun\n  rules",
        "spec.mode: \"DryRun\": no such field",
    ),
    ("Mesh", "tls: Strict", "skipPorts: []", "spec.skipPorts: no such field"),
    ("MeshTLSPolicy", "mode: Strict", "mdoe: Strict", "spec.mdoe: \"Strict\": no such field"),
    ("TrafficSplit", "spec:", "extra: 1\nspec:", "extra: 1: no such field"),
    // Service
    ("Service", "port: 80,", "port: 0,", "spec.ports[0].port: 0: write 1 to 65535"),
    ("Service", "port: 80,", "port: 70000,", "spec.ports[0].port: 70000: write 1 to 65535"),
    ("Service", "port: 80,", "port: http,", "spec.ports[0].port: \"http\": write a whole number"),
    ("Service", "port: 80,", "port: \"80\",", "spec.ports[0].port: \"80\": write a whole number"),
    ("Service", "port: 3306", "port: 80", "spec.ports[1].port: 80: is listed twice"),
    ("Service", "name: mysql,", "name: http,", "spec.ports[1].name: \"http\": is another port's"),
    ("Service", "name: mysql,", "", "spec.ports[1].name: is required when there are several"),
    (
        "Service",
        "targetPort: db",
        "targetPort: much_too_long_a_name",
        "spec.ports[1].targetPort: \"much_too_long_a_name\": write a port number",
    ),
    ("Service", "targetPort: db", "targetPort: 0", "spec.ports[1].targetPort: 0: write 1 to 65535"),
    (
        "Service",
        "targetPort: db",
        "targetPort: [1]",
        "spec.ports[1].targetPort: write a port number, or a port's name",
    ),
    (
        "Service",
        "port: 80,",
        "port: 80, protocol: HTTP,",
        "spec.ports[0].protocol: \"HTTP\": write one of TCP, UDP, SCTP",
    ),
    (
        "Service",
        "spec:\n",
        "spec:\n  type: Cluster\n",
        "spec.type: \"Cluster\": write ClusterIP, NodePort",
    ),
    (
        "Service",
        "spec:\n",
        "spec:\n  clusterIP: 10.0.0\n",
        "spec.clusterIP: \"10.0.0\": write an IP address, or None",
    ),
    (
        "Service",
        "spec:\n",
        "spec:\n  sessionAffinity: Cookie\n",
        "spec.sessionAffinity: \"Cookie\": write one of None, ClientIP",
    ),
    ("Service", "spec:\n", "spec:\n  internalTrafficPolicy: Node\n", "write one of Cluster, Local"),
    (
        "Service",
        "spec:\n",
        "spec:\n  sessionAffinityConfig: { clientIP: { timeoutSeconds: 0 } }\n",
        "timeoutSeconds: 0: write 1 to 86400",
    ),
    (
        "Service",
        "spec:\n",
        "spec:\n  publishNotReadyAddresses: \"yes\"\n",
        "publishNotReadyAddresses: \"yes\": write true or false",
    ),
    // Pod
    (
        "Pod",
        "containers: [{ name: app, image: x, command: [sleep, \"1\"] }]",
        "containers: []",
        "spec.containers: is required",
    ),
    (
        "Pod",
        "image: x",
        "image: x, securityContext: { runAsUser: 2715 }",
        "runAsUser: 2715: is the proxy's uid",
    ),
    (
        "Pod",
        "serviceAccountName: web",
        "securityContext: { runAsUser: 2715 }",
        "spec.securityContext.runAsUser: 2715: is the proxy's uid",
    ),
    (
        "Pod",
        "serviceAccountName: web",
        "serviceAccountName: Web",
        "spec.serviceAccountName: \"Web\": write an RFC 1123 subdomain",
    ),
    (
        "Pod",
        "image: x",
        "image: x, ports: [{ containerPort: 0 }]",
        "ports[0].containerPort: 0: write 1 to 65535",
    ),
    (
        "Pod",
        "command: [sleep, \"1\"]",
        "command: [sleep, 1]",
        "spec.containers[0].command[1]: 1: write a string; in quotes",
    ),
    (
        "Pod",
        "command: [sleep, \"1\"]",
        "command: sleep",
        "spec.containers[0].command: \"sleep\": write a list",
    ),
    // EndpointSlice
    ("EndpointSlice", "IPv4", "ipv4", "addressType: \"ipv4\": write one of IPv4, IPv6, FQDN"),
    (
        "EndpointSlice",
        "[10.0.0.1]",
        "[\"fd00::1\"]",
        "endpoints[0].addresses[0]: \"fd00::1\": write an IPv4 address",
    ),
    ("EndpointSlice", "[10.0.0.1]", "[10.0.0.256]", "\"10.0.0.256\": write an IPv4 address"),
    ("EndpointSlice", "[10.0.0.1]", "[]", "endpoints[0].addresses: has 0 entries; write 1 to 100"),
    ("EndpointSlice", "port: 8080", "port: 65536", "ports[0].port: 65536: write 1 to 65535"),
    (
        "EndpointSlice",
        ", labels: { kubernetes.io/service-name: web }",
        "",
        "metadata.labels[\"kubernetes.io/service-name\"]: is required; name the Service",
    ),
    // TrafficSplit
    (
        "TrafficSplit",
        "weight: 95",
        "weight: -1",
        "spec.backends[0].weight: -1: write a whole number",
    ),
    (
        "TrafficSplit",
        "weight: 95",
        "weight: 1000001",
        "spec.backends[0].weight: 1000001: write 0 to 1000000",
    ),
    (
        "TrafficSplit",
        "weight: 95",
        "weight: 9.5",
        "spec.backends[0].weight: 9.5: write a whole number",
    ),
    (
        "TrafficSplit",
        "weight: 95",
        "weight: 95%",
        "spec.backends[0].weight: \"95%\": write a whole number",
    ),
    (
        "TrafficSplit",
        "weight: 95",
        "weight: ",
        "spec.backends[0].weight: null: write a whole number",
    ),
    (
        "TrafficSplit",
        ", weight: 95",
        "",
        "a.yaml:8:7: TrafficSplit shop/web: spec.backends[0].weight: is required",
    ),
    (
        "TrafficSplit",
        "service: web\n",
        "service: Web\n",
        "spec.service: \"Web\": write an RFC 1123 label",
    ),
    (
        "TrafficSplit",
        "service: web-v1",
        "service: other/web",
        "spec.backends[0].service: \"other/web\": write an RFC 1123 label",
    ),
    (
        "TrafficSplit",
        "service: web-v1",
        "service: web",
        "spec.backends[0].service: \"web\": is the Service that is split, and splits do not nest",
    ),
    (
        "TrafficSplit",
        "- { service: web-v1, weight: 95 }",
        "- { service: a, weight: 1 }\n    - { service: a, weight: 2 }",
        "spec.backends[1]: \"a\": is a backend already; keep one",
    ),
    (
        "TrafficSplit",
        "selector: { version: v2 }",
        "selector: {}",
        "spec.backends[1].selector: {}: is empty; name at least one label",
    ),
    (
        "TrafficSplit",
        "version: v2",
        "\"a b\": v2",
        "spec.backends[1].selector[\"a b\"]: \"a b\": write a label's key",
    ),
    (
        "TrafficSplit",
        "version: v2",
        "version: \"v 2\"",
        "spec.backends[1].selector.version: \"v 2\": write a label's value",
    ),
    (
        "TrafficSplit",
        "version: v2",
        "version: 2",
        "spec.backends[1].selector.version: 2: write a string; in quotes",
    ),
    (
        "TrafficSplit",
        "version: v2",
        "matchLabels: { a: b }",
        "spec.backends[1].selector.matchLabels: write a string",
    ),
    ("TrafficSplit", "from: 80", "from: 0", "spec.backends[1].ports[0].from: 0: write 1 to 65535"),
    (
        "TrafficSplit",
        "to: 8080",
        "to: 65536",
        "spec.backends[1].ports[0].to: 65536: write a port number from 1 to 65535",
    ),
    (
        "TrafficSplit",
        "{ from: 80, to: 8080 }",
        "{ from: 80, to: 1 }, { from: 80, to: 2 }",
        "ports[1].from: 80: is mapped already",
    ),
    (
        "TrafficSplit",
        "weight: 95 }\n    - { service: web, weight: 5",
        "weight: 0 }\n    - { service: web, weight: 0",
        "spec.backends: the weights add up to 0",
    ),
    // TrafficPolicy
    (
        "TrafficPolicy",
        "kind: Service, name",
        "kind: Deployment, name",
        "spec.targetRef.kind: \"Deployment\": write `Service`",
    ),
    (
        "TrafficPolicy",
        "name: payments }",
        "name: Payments }",
        "spec.targetRef.name: \"Payments\": write an RFC 1123 label",
    ),
    (
        "TrafficPolicy",
        "request: 2s",
        "request: 2",
        "spec.timeouts.request: 2: write a duration such as \"250ms\"",
    ),
    (
        "TrafficPolicy",
        "request: 2s",
        "request: 2 seconds",
        "spec.timeouts.request: \"2 seconds\": write a duration such as",
    ),
    (
        "TrafficPolicy",
        "request: 2s",
        "request: 1.5s",
        "spec.timeouts.request: \"1.5s\": write a duration such as",
    ),
    ("TrafficPolicy", "request: 2s", "request: 0s", "spec.timeouts.request: 0s: write 1ms to 24h"),
    (
        "TrafficPolicy",
        "request: 2s",
        "request: 25h",
        "spec.timeouts.request: 25h: write 1ms to 24h",
    ),
    (
        "TrafficPolicy",
        "perTry: 500ms",
        "perTry: 3s",
        "spec.timeouts.perTry: 3s: is longer than `request`, which is 2s",
    ),
    ("TrafficPolicy", "connect: 1s", "connect: 2m", "spec.timeouts.connect: 2m: write 1ms to 1m"),
    ("TrafficPolicy", "idle: 1h", "idle: 10ms", "spec.timeouts.idle: 10ms: write 1s to 24h"),
    ("TrafficPolicy", "attempts: 2", "attempts: 11", "spec.retries.attempts: 11: write 0 to 10"),
    ("TrafficPolicy", "\"503\"", "503", "spec.retries.when[1]: 503: write a string; in quotes"),
    ("TrafficPolicy", "\"503\"", "\"200\"", "spec.retries.when[1]: \"200\": write connect, reset"),
    (
        "TrafficPolicy",
        "\"503\"",
        "\"+503\"",
        "spec.retries.when[1]: \"+503\": write connect, reset",
    ),
    ("TrafficPolicy", "\"503\"", "connect", "spec.retries.when[1]: \"connect\": is listed twice"),
    (
        "TrafficPolicy",
        "[connect, \"503\", gateway-error]",
        "[]",
        "spec.retries.when: has 0 entries; write 1 to 64",
    ),
    (
        "TrafficPolicy",
        "percent: 20",
        "percent: 101",
        "spec.retries.budget.percent: 101: write 0 to 100",
    ),
    (
        "TrafficPolicy",
        "percent: 20, minPerSecond: 10",
        "percent: 0, minPerSecond: 0",
        "spec.retries.budget: allows no retry at all",
    ),
    (
        "TrafficPolicy",
        "base: 25ms",
        "base: 2s",
        "spec.retries.backoff.base: 2s: is longer than `max`, which is 1s",
    ),
    (
        "TrafficPolicy",
        "consecutiveFailures: 5",
        "consecutiveFailures: 0",
        "consecutiveFailures: 0: write 1 to 1000",
    ),
    (
        "TrafficPolicy",
        "openFor: 30s",
        "openFor: 2h",
        "spec.circuitBreaker.openFor: 2h: write 100ms to 1h",
    ),
    (
        "TrafficPolicy",
        "maxEjectedPercent: 50",
        "maxEjectedPercent: 51",
        "maxEjectedPercent: 51: write 1 to 50",
    ),
    (
        "TrafficPolicy",
        "algorithm: peakEwma",
        "algorithm: ewma",
        "spec.loadBalancer.algorithm: \"ewma\": write one of `peakEwma`",
    ),
    (
        "TrafficPolicy",
        "{ request: 2s, perTry: 500ms, connect: 1s, idle: 1h }",
        "[]",
        "spec.timeouts: write a mapping of fields to values",
    ),
    // AuthorizationPolicy
    (
        "AuthorizationPolicy",
        "{ serviceAccount: frontend }",
        "[frontend]",
        "spec.rules[0].from[0]: write a mapping of fields to values",
    ),
    (
        "AuthorizationPolicy",
        "kind: Pods",
        "kind: Service",
        "spec.targetRef.kind: \"Service\": write `Pods`",
    ),
    (
        "AuthorizationPolicy",
        "selector: { app: payments }",
        "selector: {}",
        "spec.targetRef.selector: {}: is empty",
    ),
    (
        "AuthorizationPolicy",
        "action: Allow",
        "action: allow",
        "spec.rules[0].action: \"allow\": write `Allow` or `Deny`",
    ),
    ("AuthorizationPolicy", "action: Allow\n      ", "", "spec.rules[0].action: is required"),
    (
        "AuthorizationPolicy",
        "{ serviceAccount: frontend }",
        "{}",
        "spec.rules[0].from[0]: {}: names nobody",
    ),
    (
        "AuthorizationPolicy",
        "serviceAccount: frontend",
        "serviceAccount: frontend, anyone: true",
        "from[0].anyone: true: excludes serviceAccount",
    ),
    (
        "AuthorizationPolicy",
        "serviceAccount: frontend",
        "anyone: false",
        "from[0].anyone: false: means nothing",
    ),
    (
        "AuthorizationPolicy",
        "serviceAccount: frontend",
        "serviceAccount: \"*\"",
        "from[0].serviceAccount: \"*\": write an RFC 1123 subdomain",
    ),
    (
        "AuthorizationPolicy",
        "namespace: ops",
        "namespace: ops.x",
        "from[1].namespace: \"ops.x\": write an RFC 1123 label",
    ),
    ("AuthorizationPolicy", "ports: [8080]", "ports: [0]", "to[0].ports[0]: 0: write 1 to 65535"),
    (
        "AuthorizationPolicy",
        "ports: [8080]",
        "ports: [8080, 8080]",
        "to[0].ports[1]: 8080: is listed twice",
    ),
    (
        "AuthorizationPolicy",
        "[POST]",
        "[post]",
        "to[0].methods[0]: \"post\": write an HTTP method in upper case",
    ),
    (
        "AuthorizationPolicy",
        "\"/charge\"",
        "charge",
        "paths[0]: \"charge\": write a path that begins with `/`",
    ),
    (
        "AuthorizationPolicy",
        "\"/charge\"",
        "\"/a//b\"",
        "paths[0]: \"/a//b\": write one `/` between segments",
    ),
    ("AuthorizationPolicy", "\"/charge\"", "\"/a/./b\"", "write the path without `.` and `..`"),
    ("AuthorizationPolicy", "\"/charge\"", "\"/a/%2e%2E\"", "`~` plainly, without `%`"),
    ("AuthorizationPolicy", "\"/charge\"", "\"/a%2Fb\"", "write the path without %2F"),
    ("AuthorizationPolicy", "\"/charge\"", "\"/%61b\"", "`~` plainly, without `%`"),
    (
        "AuthorizationPolicy",
        "\"/charge\"",
        "\"/a%zz\"",
        "write `%` only before two hexadecimal digits",
    ),
    ("AuthorizationPolicy", "\"/charge\"", "\"/a?b=c\"", "write the path alone, without `?`"),
    ("AuthorizationPolicy", "\"/charge\"", "\"/a#b\"", "write the path alone, without `?`"),
    ("AuthorizationPolicy", "\"/charge\"", "\"/*/a\"", "write `*` only as the last segment"),
    ("AuthorizationPolicy", "\"/charge\"", "\"/a*\"", "write `*` only as the last segment"),
    ("AuthorizationPolicy", "\"/charge\"", "'/a\\b'", "write `/` between segments, not `\\`"),
    ("AuthorizationPolicy", "\"/charge\"", "\"/ä\"", "write printable ASCII"),
    ("AuthorizationPolicy", "\"/charge\"", "\"/a//*\"", "write one `/` between segments"),
    // MeshTLSPolicy and Mesh
    (
        "MeshTLSPolicy",
        "mode: Strict",
        "mode: strict",
        "spec.mode: \"strict\": write `Strict` or `Permissive`",
    ),
    (
        "MeshTLSPolicy",
        "  mode: Strict\n  ports: [{ port: 9090, mode: Permissive }]",
        "",
        "spec: says nothing; write `mode: Strict`",
    ),
    ("MeshTLSPolicy", "port: 9090", "port: 0", "spec.ports[0].port: 0: write 1 to 65535"),
    (
        "MeshTLSPolicy",
        "{ port: 9090, mode: Permissive }",
        "{ port: 1, mode: Strict }, { port: 1, mode: Strict }",
        "spec.ports[1].port: 1: is listed twice",
    ),
    (
        "MeshTLSPolicy",
        "selector: { app: legacy }",
        "selector: {}",
        "spec.targetRef.selector: {}: is empty",
    ),
    (
        "Mesh",
        "trustDomain: cluster.local",
        "trustDomain: Cluster.local",
        "spec.trustDomain: \"Cluster.local\": write a trust domain",
    ),
    ("Mesh", "\"10.0.0.0/8\"", "\"10.0.0.1\"", "spec.clusterRanges[0]: \"10.0.0.1\": write a CIDR"),
    (
        "Mesh",
        "\"10.0.0.0/8\"",
        "\"10.1.0.0/8\"",
        "has bits set after its prefix; write \"10.0.0.0/8\"",
    ),
    (
        "Mesh",
        "\"fd00::/64\"",
        "\"10.0.0.0/8\"",
        "spec.clusterRanges[1]: \"10.0.0.0/8\": is listed twice",
    ),
    (
        "Mesh",
        "authorization: Deny",
        "authorization: Allow",
        "spec.authorization: \"Allow\": write `AllowAuthenticated` or `Deny`",
    ),
    (
        "Mesh",
        "outboundPassthrough: Deny",
        "outboundPassthrough: false",
        "spec.outboundPassthrough: false: write",
    ),
];

#[test]
fn whole_files_are_refused_with_a_place() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n\
                c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n\
                e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
    let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    let twice = format!("{}\n---\n{}", good("Mesh"), good("Mesh"));
    for (text, piece) in [
        ("a: [1, 2", "a.yaml:"),
        ("a: b: c", "a.yaml:1:"),
        ("kind: Service\n  metadata: {}", "a.yaml:2:"),
        ("\tkind: x", "a.yaml:1:"),
        ("a: 1\na: 2\n", "a.yaml:2:1"),
        ("5", "write an object with apiVersion, kind, metadata and spec"),
        ("- a", "write an object with apiVersion, kind, metadata and spec"),
        ("80: x", "a key is not a string; write it in quotes"),
        ("a: .inf", "a.yaml:1:4"),
        ("a: *nowhere", "a.yaml:1:"),
        ("kind: List\nitems: []", "apiVersion: write `v1` for a List"),
        ("apiVersion: v1\nkind: List", "items: write a list of objects"),
        (
            "apiVersion: v1\nkind: List\nitem: []\nitems: []",
            "a.yaml:3:1: List: item: no such field",
        ),
        ("{}", "kind: unknown kind; write one of"),
        (bomb, "a.yaml"),
        (deep.as_str(), "a.yaml"),
        (
            twice.as_str(),
            "Mesh default: metadata.name: \"default\": is in this file already, at line 2",
        ),
        ("a: 1\n...\n@@ not yaml", "a.yaml"),
        ("apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n...\n@@ not yaml", "a.yaml:5"),
        ("a: !!binary x", "a.yaml"),
    ] {
        let messages = messages(text);
        let found = messages.iter().any(|message| message.contains(piece));
        assert!(found, "{text:.60}\n  wanted {piece}\n  said {messages:#?}");
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let text = GOOD.replace("weight: 95", "weight: x").replace("percent: 20", "percent: 200");
    let reading = read("a.yaml", &text);
    assert_eq!(reading.errors.len(), 2, "{:#?}", reading.errors);
    assert_eq!(reading.objects.len(), Kind::ALL.len() - 2);
    assert!(reading.stand_ins.is_empty());
}

#[test]
fn what_restricts_and_cannot_be_read_denies_what_it_selects() {
    let stand_in = |kind: &str, from: &str, to: &str| {
        let mut reading = read("a.yaml", &good(kind).replacen(from, to, 1));
        assert_eq!((reading.errors.is_empty(), reading.objects.len()), (false, 0));
        reading.stand_ins.pop().unwrap().object
    };
    let Object::AuthorizationPolicy(policy) = stand_in("AuthorizationPolicy", "POST", "post")
    else {
        panic!("not a policy")
    };
    assert_eq!(policy.spec.target_ref.selector.0["app"], "payments");
    assert_eq!(policy.spec.rules.len(), 1);
    assert_eq!(policy.spec.rules[0].from[0].anyone, Some(true));

    let Object::AuthorizationPolicy(policy) =
        stand_in("AuthorizationPolicy", "{ app: payments }", "[app]")
    else {
        panic!("not a policy")
    };
    assert!(policy.spec.target_ref.selector.0.is_empty(), "selects the whole namespace");

    let Object::Mesh(mesh) = stand_in("Mesh", "\"10.0.0.0/8\"", "x") else { panic!("not a Mesh") };
    assert_eq!(mesh.spec.authorization, crate::crd::mesh::DefaultAuthorization::Deny);
    assert!(matches!(
        stand_in("MeshTLSPolicy", "mode: Strict", "mode: Off"),
        Object::MeshTLSPolicy(_)
    ));
}

/// A file cut short anywhere, as an editor leaves it for a moment, is read without a panic, and what
/// is said of it has a place.
#[test]
fn a_file_cut_short_anywhere_is_an_error_or_less() {
    for end in (0..GOOD.len()).step_by(13) {
        let reading = read("a.yaml", &GOOD[..end]);
        assert!(reading.objects.len() < Kind::ALL.len(), "{end}");
        assert!(reading.errors.iter().all(|error| error.line > 0), "{end}: {:?}", reading.errors);
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(
        at in 0..GOOD.len(),
        len in 0..40_usize,
        noise in "[-a-z0-9:{}\\[\\]&*!|>'\"%@` \t\n#,?~.<é\u{0}]{0,12}",
    ) {
        let text = format!("{}{noise}{}", &GOOD[..at], &GOOD[(at + len).min(GOOD.len())..]);
        let reading = read("a.yaml", &text);
        for error in &reading.errors {
            proptest::prop_assert!(!error.message.is_empty() && error.file == "a.yaml");
        }
    }
}

#[test]
fn an_object_of_an_api_server_is_read_by_the_same_rules_without_a_place() {
    let split = |weight: i64| {
        serde_json::json!({
            "apiVersion": "heddle.io/v1alpha1",
            "kind": "TrafficSplit",
            "metadata": { "name": "web", "namespace": "shop", "uid": "u", "generation": 3 },
            "spec": { "service": "web", "backends": [{ "service": "v1", "weight": weight }] },
        })
    };
    let reading = read_value(split(1));
    assert_eq!(reading.errors, []);
    let [Located { object: Object::TrafficSplit(split_read), location }] = &*reading.objects else {
        panic!("{:?}", reading.objects);
    };
    assert_eq!((split_read.metadata.generation, &**location), (Some(3), ""));

    let mut wrong = split(1);
    wrong["spec"]["sticky"] = "cookie".into();
    let errors: Vec<_> = read_value(wrong).errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].starts_with("TrafficSplit shop/web: spec.sticky: "), "{errors:?}");
}
