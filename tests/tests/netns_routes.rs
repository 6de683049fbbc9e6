//! Routes of the Gateway API through the directory of files, with real requests: what callers get of
//! each rule, who follows whose, and what changes while requests are on their way.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use heddle_tests::app::Called;
use heddle_tests::faults::{Account, Cases, Plan, Traffic, World, eventually};
use heddle_tests::lab::Options;
use serde_json::Value;

const MESH: &str = include_str!("../data/faults.yaml");
/// A Service that nobody is behind but whom its routes name, a backend without pods, and a caller of
/// another namespace.
const MORE: &str = "apiVersion: v1
kind: Service
metadata: { name: shop }
spec: { ports: [{ name: http, port: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { name: nobody }
spec: { ports: [{ name: http, port: 80 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: client, namespace: blog }
spec:
  containers: [{ name: app, command: [sleep, infinity] }]
";
const SOON: Duration = Duration::from_secs(5);

#[test]
fn callers_follow_routes() {
    let files = [("mesh.yaml", MESH), ("more.yaml", MORE)];
    let world = World::up(&files, Options::default()).unwrap();
    let mut cases = Cases::default();
    cases.run(&world, "rules", rules);
    cases.run(&world, "answers without a backend", answers_without_a_backend);
    cases.run(&world, "weights", weights);
    cases.run(&world, "consumers", consumers);
    cases.run(&world, "a split as a backend", split_as_a_backend);
    cases.run(&world, "not accepted", not_accepted);
    cases.finish();
}

/// A route of the Service `shop`, in a file of its own.
fn attach(world: &World, namespace: &str, rules: &str) -> anyhow::Result<()> {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{ name: shop, namespace: {namespace} }}\n\
         spec:\n  parentRefs: [{{ group: '', kind: Service, name: shop, namespace: default }}]\n  \
         rules:\n{rules}"
    );
    world.write(&format!("route-{namespace}.yaml"), &text)
}

/// What a request of `pod` comes to, told so that a failure explains itself.
fn ask(world: &World, pod: &str, path: &str, more: &[&str]) -> anyhow::Result<Called> {
    world.call(pod, &format!("http://shop.default{path}"), more)
}

/// Waits until `pod` gets `status` of `path`; a change is in force then, and everything said with it.
fn await_status(world: &World, pod: &str, path: &str, status: u16) -> anyhow::Result<Called> {
    let answered = || {
        let called = ask(world, pod, path, &[])?;
        ensure!(called.status == status, "{called:?}");
        Ok(called)
    };
    Ok(eventually(&format!("{path} answers {status}"), SOON, answered)?.1)
}

/// What the application saw.
fn seen(called: &Called) -> anyhow::Result<Value> {
    ensure!(called.status == 200, "{called:?}");
    serde_json::from_str(&called.body).context("the application's answer")
}

const RULES: &str = "    - matches: [{ path: { value: /v2 } }, { headers: [{ name: x-version, value: v2 }] }]
      backendRefs: [{ name: web-v2, port: 80 }]
    - matches: [{ path: { value: /v2/exact, type: Exact } }, { method: POST, queryParams: [{ name: q, value: a b }] }]
      backendRefs: [{ name: web-v1, port: 80 }]
    - name: edited
      matches: [{ path: { value: /edited } }]
      filters:
        - { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: X-Set, value: set }], add: [{ name: X-Add, value: more }], remove: [X-Gone] } }
        - { type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: X-Answer, value: 'yes' }] } }
        - { type: URLRewrite, urlRewrite: { hostname: inner.example, path: { type: ReplacePrefixMatch, replacePrefixMatch: /status } } }
      backendRefs: [{ name: web-v1, port: 80, filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: X-Backend, value: own }] } }] }]
    - matches: [{ path: { value: /old } }]
      filters: [{ type: RequestRedirect, requestRedirect: { scheme: https, hostname: new.example, statusCode: 301, path: { type: ReplacePrefixMatch, replacePrefixMatch: /new } } }]
";

fn rules(world: &World) -> anyhow::Result<()> {
    attach(world, "default", RULES)?;
    await_status(world, "client", "/v2", 200)?;
    let by = |path: &str, more: &[&str]| {
        let seen = seen(&ask(world, "client", path, more)?)?;
        Ok::<_, anyhow::Error>(seen["server"].as_str().unwrap_or_default().to_owned())
    };
    for (path, more, server) in [
        ("/v2", &[][..], "web-v2"),
        ("/v2/x?y=z", &[], "web-v2"),
        ("/v2/exact", &[], "web-v1"),
        ("/other", &["--header", "x-version: v2"], "web-v2"),
        ("/other?q=a+b", &["--method", "POST"], "web-v1"),
    ] {
        ensure!(by(path, more)? == server, "{path} {more:?}");
    }
    let edited = ask(
        world,
        "client",
        "/edited/200?n=1",
        &["--header", "x-gone: x", "--header", "x-add: one"],
    )?;
    ensure!(edited.headers.get("x-answer").is_some_and(|value| value == "yes"), "{edited:?}");
    let seen = seen(&edited)?;
    ensure!(seen["path"] == "/status/200", "{seen}");
    let headers = seen["headers"].to_string().to_lowercase();
    for piece in ["inner.example", "x-set", "x-backend", "one", "more"] {
        ensure!(headers.contains(piece), "{piece} is not in {headers}");
    }
    ensure!(!headers.contains("x-gone"), "{headers}");

    let redirect = ask(world, "client", "/old/page?q=1", &[])?;
    ensure!(redirect.status == 301, "{redirect:?}");
    ensure!(redirect.headers["location"] == "https://new.example/new/page?q=1", "{redirect:?}");
    let none = ask(world, "client", "/other", &[])?;
    ensure!(none.status == 404 && none.headers["heddle-error"] == "no-route", "{none:?}");
    // A call to a backend by its own name follows none of it.
    ensure!(world.call("client", "http://web-v1/other", &[])?.status == 200);
    Ok(())
}

/// 500 where the reference does not resolve, 503 where nobody is ready; and what appears is called.
fn answers_without_a_backend(world: &World) -> anyhow::Result<()> {
    let to = |path: &str, name: &str| {
        format!(
            "    - matches: [{{ path: {{ value: {path} }} }}]\n      backendRefs: [{{ name: {name}, port: 80 }}]\n"
        )
    };
    let none = "    - matches: [{ path: { value: /none } }]\n";
    attach(
        world,
        "default",
        &[to("/gone", "gone"), to("/nobody", "nobody"), none.to_owned()].concat(),
    )?;
    let gone = await_status(world, "client", "/gone", 500)?;
    ensure!(gone.headers["heddle-error"] == "invalid-backend", "{gone:?}");
    let none = await_status(world, "client", "/none", 500)?;
    ensure!(none.headers["heddle-error"] == "no-backend", "{none:?}");
    let nobody = await_status(world, "client", "/nobody", 503)?;
    ensure!(nobody.headers["heddle-error"] == "no-endpoints", "{nobody:?}");
    let service = "apiVersion: v1\nkind: Service\nmetadata: { name: gone }\n\
                   spec: { selector: { app: web }, ports: [{ name: http, port: 80, targetPort: 8080 }] }\n";
    world.write("gone.yaml", service)?;
    await_status(world, "client", "/gone", 200)?;
    world.remove("gone.yaml");
    await_status(world, "client", "/gone", 500).map(drop)
}

/// The share of the first of two backends over a few thousand requests, all of which are answered.
fn share(world: &World, change: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let plan = Plan { rate: 0, connections: 8, ..Plan::steady("client", "http://shop/") };
    let traffic = Traffic::start(world, &plan)?;
    change()?;
    traffic.more(4000)?;
    let account = Account::new(traffic.finish()?, world.ledger()?);
    account.expect_clean()?;
    let counts: BTreeMap<_, _> = account.by_pod();
    let count =
        |pod: &str| counts.get(pod).map_or(Ok(0.0), |count| u32::try_from(*count).map(f64::from));
    let (one, two) = (count("web-1")?, count("web-2")?);
    Ok(one / (one + two))
}

fn weighted(first: u32, second: u32) -> String {
    format!(
        "    - backendRefs: [{{ name: web-v1, port: 80, weight: {first} }}, {{ name: web-v2, port: 80, weight: {second} }}]\n"
    )
}

/// Binomial: six standard deviations of 4,000 draws and more.
const SLACK: f64 = 0.05;

fn weights(world: &World) -> anyhow::Result<()> {
    attach(world, "default", &weighted(90, 10))?;
    await_status(world, "client", "/", 200)?;
    let before = share(world, || Ok(()))?;
    ensure!((before - 0.9).abs() < SLACK, "{before}");
    // A change under load loses no request.
    let moved = share(world, || attach(world, "default", &weighted(0, 10)))?;
    ensure!(moved < 0.9, "{moved}");
    let after = share(world, || Ok(()))?;
    ensure!(after == 0.0, "{after}");
    Ok(())
}

fn consumers(world: &World) -> anyhow::Result<()> {
    let answer = |value: &str| {
        format!(
            "    - filters: [{{ type: ResponseHeaderModifier, responseHeaderModifier: {{ set: [{{ name: x-of, value: {value} }}] }} }}]\n      \
             backendRefs: [{{ name: web, namespace: default, port: 80 }}]\n"
        )
    };
    attach(world, "default", &answer("producer"))?;
    attach(world, "blog", &answer("consumer"))?;
    let of = |pod: &str, wanted: &str| {
        eventually(&format!("{pod} follows the {wanted}"), SOON, || {
            let called = ask(world, pod, "/", &[])?;
            let found = called.headers.get("x-of").map(String::as_str);
            ensure!(called.status == 200 && found == Some(wanted), "{called:?}");
            Ok(())
        })
    };
    of("blog/client", "consumer")?;
    of("client", "producer")?;
    world.remove("route-blog.yaml");
    of("blog/client", "producer").map(drop)
}

const SPLIT: &str = "apiVersion: heddle.io/v1alpha1
kind: TrafficSplit
metadata: { name: canary }
spec:
  service: shop
  backends: [{ service: web-v1, weight: 3 }, { service: web-v2, weight: 1 }]
";

fn split_as_a_backend(world: &World) -> anyhow::Result<()> {
    world.write("split.yaml", SPLIT)?;
    let rule = "    - backendRefs: [{ group: heddle.io, kind: TrafficSplit, name: canary }]\n";
    attach(world, "default", rule)?;
    await_status(world, "client", "/", 200)?;
    let found = share(world, || Ok(()))?;
    ensure!((found - 0.75).abs() < SLACK, "{found}");
    // Without the route the split is the Service's rule: nothing changes for callers.
    let found = share(world, || {
        world.remove("route-default.yaml");
        Ok(())
    })?;
    ensure!((found - 0.75).abs() < SLACK, "{found}");
    world.remove("split.yaml");
    Ok(())
}

/// A route that is not accepted changes nothing, and says why.
fn not_accepted(world: &World) -> anyhow::Result<()> {
    let rule = "    - matches: [{ path: { type: RegularExpression, value: '.*' } }]\n      \
                backendRefs: [{ name: web-v1, port: 80 }]\n";
    attach(world, "default", rule)?;
    let told = || {
        let dump: Value = serde_json::from_str(&world.ctl(&["dump", "catalog"])?)?;
        let issues = dump["issues"].as_array().context("issues")?;
        let found = issues.iter().find(|issue| issue["kind"] == "HTTPRoute").context("no issue")?;
        ensure!(found["reason"] == "UnsupportedValue", "{found}");
        ensure!(found["path"] == "spec.rules[0].matches[0].path.type", "{found}");
        Ok(())
    };
    eventually("the issue is told", SOON, told)?;
    // The Service by itself: it has no endpoints of its own.
    let called = await_status(world, "client", "/", 503)?;
    ensure!(called.headers["heddle-error"] == "no-endpoints", "{called:?}");
    world.remove("route-default.yaml");
    Ok(())
}
