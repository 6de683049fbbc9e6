//! Routes through both proxies: what a rule does with a request in either version of HTTP.

use ::http::{Request, Response};
use bytes::Bytes;
use h2::{client, server};
use prometheus::TextEncoder;
use v1::path_rewrite::Path;
use v1::route_filter::Filter;

use super::*;

/// What the application behind `name` answers: its name, and the head that it was sent.
fn echo(name: &'static str, app: TcpListener) {
    spawn_local(async move {
        while let Ok((mut served, _)) = app.accept().await {
            spawn_local(async move {
                let mut seen = Vec::new();
                let mut chunk = [0; 4096];
                loop {
                    let n = served.read(&mut chunk).await.unwrap_or(0);
                    if n == 0 {
                        return;
                    }
                    seen.extend_from_slice(&chunk[..n]);
                    let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") else {
                        continue;
                    };
                    let head = String::from_utf8(seen.drain(..end + 4).collect()).unwrap();
                    let body = format!("{name} saw {}", head.to_lowercase());
                    let length = body.len();
                    let answer = format!(
                        "HTTP/1.1 103 Early Hints\r\nx-from: app\r\n\r\n\
                         HTTP/1.1 200 OK\r\nx-from: app\r\nx-old: app\r\n\
                         content-length: {length}\r\n\r\n{body}"
                    );
                    if served.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// The same over HTTP/2, with the head's parts as fields of the answer.
fn echo_h2(name: &'static str, app: TcpListener) {
    spawn_local(async move {
        while let Ok((tcp, _)) = app.accept().await {
            spawn_local(async move {
                let mut connection = server::handshake(tcp).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let seen = |name| request.headers().get(name).cloned();
                    let mut response = Response::builder()
                        .header("x-app", name)
                        .header("x-from", "app")
                        .header("x-target", request.uri().path_and_query().unwrap().as_str())
                        .header("x-host", request.uri().authority().unwrap().as_str());
                    for name in ["x-set", "x-gone"] {
                        if let Some(value) = seen(name) {
                            response = response.header(format!("seen-{name}"), value);
                        }
                    }
                    respond.send_response(response.body(()).unwrap(), true).unwrap();
                }
            });
        }
    });
}

impl Mesh {
    /// A mesh whose Service has nobody behind it but what routes name.
    async fn with_backends(protocol: v1::Protocol, names: &[&'static str]) -> Self {
        let mut mesh = Self::new(closed_port().await, protocol).await;
        for name in names {
            let (app, address) = listen().await;
            if protocol == v1::Protocol::Http1 {
                echo(name, app)
            } else {
                echo_h2(name, app)
            }
            mesh.backend(name, address).await;
        }
        mesh
    }

    /// Puts the application at `app` behind port 8080 of the Service `shop/<name>`.
    async fn backend(&mut self, name: &str, app: SocketAddr) {
        let endpoint = listen_inbound(&self.inbound.worker, app).await;
        let ports = vec![v1::Port { port: 8080, ..v1::Port::default() }];
        let service = v1::Service { ports, ..v1::Service::default() };
        self.outbound.put(v1::ResourceType::Service, &format!("shop/{name}"), &service);
        let name = format!("shop/{name}:8080");
        self.outbound.put(v1::ResourceType::Endpoints, &name, &endpoints(&[endpoint]));
    }

    fn route(&mut self, rules: Vec<v1::RouteRule>) {
        self.outbound.put(v1::ResourceType::Route, "shop/web:80", &v1::Route { rules });
    }

    /// The value of every series of `heddle_requests_total` that has all of these labels, added up.
    fn requests(&self, labels: &[&str]) -> u64 {
        let text = TextEncoder::new().encode_to_string(&self.outbound.registry.gather()).unwrap();
        text.lines()
            .filter(|line| line.starts_with("heddle_requests_total"))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }
}

fn backend(name: &str, weight: u32) -> v1::RouteBackend {
    let service = format!("shop/{name}");
    v1::RouteBackend { service, port: 8080, weight, ..v1::RouteBackend::default() }
}

fn rule(path: &str, backends: Vec<v1::RouteBackend>) -> v1::RouteRule {
    let path = v1::PathMatch { r#match: Some(v1::path_match::Match::Prefix(path.into())) };
    v1::RouteRule {
        source: "HTTPRoute/shop/web".into(),
        name: "r".into(),
        matches: vec![v1::RouteMatch { path: Some(path), ..v1::RouteMatch::default() }],
        backends,
        ..v1::RouteRule::default()
    }
}

fn with(filters: Vec<Filter>, rule: v1::RouteRule) -> v1::RouteRule {
    let filters = filters.into_iter().map(|filter| v1::RouteFilter { filter: Some(filter) });
    v1::RouteRule { filters: filters.collect(), ..rule }
}

fn pair(name: &str, value: &str) -> v1::NameValue {
    v1::NameValue { name: name.into(), value: value.into() }
}

fn modifier(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> v1::HeaderModifier {
    let pairs = |list: &[(&str, &str)]| list.iter().map(|(n, v)| pair(n, v)).collect();
    let remove = remove.iter().map(ToString::to_string).collect();
    v1::HeaderModifier { set: pairs(set), add: pairs(add), remove }
}

fn rewrite(hostname: &str, path: Path) -> Filter {
    let path = Some(v1::PathRewrite { path: Some(path) });
    Filter::Rewrite(v1::Rewrite { hostname: hostname.into(), path })
}

/// Sends a request and reads the whole of what comes back, interim heads included.
async fn ask(client: &mut TcpStream, request: &str) -> String {
    write(client, request).await;
    let mut got = String::new();
    loop {
        let mut chunk = [0; 4096];
        let n = timeout(PATIENCE, client.read(&mut chunk)).await.expect("in time").unwrap();
        assert!(n > 0, "closed after {got:?}");
        got.push_str(&String::from_utf8_lossy(&chunk[..n]).to_lowercase());
        if is_whole(&got) {
            return got;
        }
    }
}

fn is_whole(text: &str) -> bool {
    let Some((head, rest)) = text.split_once("\r\n\r\n") else { return false };
    if head.starts_with("http/1.1 1") {
        return is_whole(rest);
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    rest.len() >= length.expect("a length").parse().unwrap()
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: web\r\n\r\n")
}

fn policy_with(timeouts: v1::Timeouts, retries: Option<v1::Retries>) -> v1::Policy {
    let timeouts = Some(timeouts);
    v1::Policy { source: "shop/x".into(), timeouts, retries, ..v1::Policy::default() }
}

#[test]
fn each_request_follows_the_rule_that_matches_it_and_what_the_rule_becomes() {
    run(async {
        let mut mesh = Mesh::with_backends(v1::Protocol::Http1, &["v1", "v2"]).await;
        mesh.route(vec![rule("/", vec![backend("v1", 1)]), rule("/v2", vec![backend("v2", 1)])]);
        let mut client = mesh.dial().await;
        for (target, want) in [("/", "v1"), ("/v2", "v2"), ("/v2/x", "v2"), ("/v2x", "v1")] {
            let got = ask(&mut client, &get(target)).await;
            assert!(got.contains(&format!("{want} saw get {target} ")), "{target}: {got}");
        }
        // The connection is the same: routes are looked at per request.
        mesh.route(vec![rule("/", vec![backend("v2", 1)])]);
        let got = ask(&mut client, &get("/")).await;
        assert!(got.contains("v2 saw"), "{got}");
        let rule = r#"route="HTTPRoute/shop/web[r]""#;
        assert_eq!(mesh.requests(&[rule, r#"backend="shop/v2""#]), 3);
        assert_eq!(mesh.requests(&[rule, r#"service="shop/web""#, r#"status_class="2xx""#]), 5);
    });
}

#[test]
fn filters_change_both_heads_and_leave_the_meshs_alone() {
    run(async {
        let mut mesh = Mesh::with_backends(v1::Protocol::Http1, &["v1"]).await;
        let filters = vec![
            Filter::RequestHeaders(modifier(&[("x-set", "new")], &[("x-add", "2")], &["x-gone"])),
            Filter::ResponseHeaders(modifier(
                &[("x-from", "route")],
                &[("x-list", "rule")],
                &["x-old"],
            )),
            rewrite("inner.example", Path::Prefix("/new/".into())),
        ];
        let own = Filter::RequestHeaders(modifier(&[("x-own", "v1")], &[("x-add", "3")], &[]));
        let own = v1::RouteBackend {
            filters: vec![v1::RouteFilter { filter: Some(own) }],
            ..backend("v1", 1)
        };
        mesh.route(vec![with(filters, rule("/old", vec![own]))]);
        let mut client = mesh.dial().await;
        let request = "GET /old/a%2Fb?q=/old HTTP/1.1\r\nHost: web:80\r\nX-Set: old\r\nX-Add: 1\r\n\
                       X-Gone: y\r\nheddle-route: forged\r\n\r\n";
        let got = ask(&mut client, request).await;
        // What comes before the answer is the application's own.
        let (interim, answer) = got.split_once("http/1.1 200").unwrap();
        assert!(interim.contains("x-from: app\r\n"), "{interim}");
        let (head, seen) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("x-from: route") && head.contains("x-list: rule"), "{head}");
        assert!(!head.contains("x-old") && !head.contains("x-from: app"), "{head}");
        assert!(seen.starts_with("v1 saw get /new/a%2fb?q=/old http/1.1\r\n"), "{seen}");
        for line in ["host: inner.example", "x-set: new", "x-own: v1"] {
            assert_eq!(seen.matches(&format!("\r\n{line}\r\n")).count(), 1, "{line}: {seen}");
        }
        let added: Vec<_> = seen.lines().filter(|line| line.starts_with("x-add")).collect();
        assert_eq!(added, ["x-add: 1", "x-add: 2", "x-add: 3"]);
        for gone in ["x-gone", "x-set: old", "web:80", "heddle-route"] {
            assert!(!seen.contains(gone), "{gone}: {seen}");
        }
        assert!(seen.contains("heddle-client-id: spiffe://cluster.local/ns/shop/sa/frontend"));

        let walks = ask(&mut client, &get("/old/../x")).await;
        assert!(walks.starts_with("http/1.1 400"), "{walks}");
        assert!(walks.contains("heddle-error: ambiguous-path\r\n"), "{walks}");
    });
}

#[test]
fn a_redirect_is_answered_by_the_callers_own_proxy() {
    run(async {
        let mut mesh = Mesh::with_backends(v1::Protocol::Http1, &["v1"]).await;
        let to = v1::Redirect {
            hostname: "example.org".into(),
            path: Some(v1::PathRewrite { path: Some(Path::Prefix("/new".into())) }),
            port: 8083,
            status: 301,
            ..v1::Redirect::default()
        };
        let extra = Filter::ResponseHeaders(modifier(&[("x-extra", "y")], &[], &[]));
        mesh.route(vec![
            with(vec![Filter::Redirect(to), extra], rule("/old", vec![])),
            rule("/", vec![backend("v1", 1)]),
        ]);
        let mut client = mesh.dial().await;
        let got = ask(&mut client, &get("/old/x?y")).await;
        assert!(got.starts_with("http/1.1 301 moved permanently\r\n"), "{got}");
        assert!(got.contains("location: http://example.org:8083/new/x?y\r\n"), "{got}");
        assert!(got.contains("heddle-route: httproute/shop/web[r]\r\n"), "{got}");
        assert!(got.contains("x-extra: y\r\n") && !got.contains("heddle-error"), "{got}");
        // It is an answer like any other: the connection goes on.
        let got = ask(&mut client, &get("/")).await;
        assert!(got.contains("v1 saw"), "{got}");
        assert_eq!(mesh.requests(&[r#"status_class="3xx""#]), 1);

        // A body that nobody takes ends it.
        let upload = "PUT /old HTTP/1.1\r\nHost: web\r\nContent-Length: 9\r\n\r\n";
        let got = ask(&mut client, upload).await;
        assert!(got.contains("connection: close\r\n"), "{got}");
        assert_eq!(read_to_end(&mut client).await, "");
    });
}

#[test]
fn what_cannot_be_sent_is_answered_with_its_reason() {
    run(async {
        let mut mesh = Mesh::with_backends(v1::Protocol::Http1, &["v1"]).await;
        let invalid = v1::RouteBackend { invalid: true, weight: 1, ..v1::RouteBackend::default() };
        mesh.route(vec![
            rule("/none", vec![]),
            rule("/zero", vec![backend("v1", 0)]),
            rule("/invalid", vec![invalid]),
            rule("/empty", vec![backend("unknown", 1)]),
        ]);
        let mut client = mesh.dial().await;
        for (target, status, reason) in [
            ("/", 404, "no-route"),
            ("/none", 500, "no-backend"),
            ("/zero", 500, "no-backend"),
            ("/invalid", 500, "invalid-backend"),
            ("/empty", 503, "no-endpoints"),
        ] {
            let got = ask(&mut client, &get(target)).await;
            assert!(got.starts_with(&format!("http/1.1 {status} ")), "{target}: {got}");
            assert!(got.contains(&format!("heddle-error: {reason}\r\n")), "{target}: {got}");
            assert!(got.contains("heddle-error-proxy: outbound\r\n"), "{target}: {got}");
            assert!(mesh.requests(&[&format!(r#"flag="{reason}""#)]) > 0, "{reason}");
        }
        assert_eq!(mesh.requests(&[r#"route="HTTPRoute/shop/web[r]""#, "flag"]), 4);
    });
}

#[test]
fn shares_follow_the_weights_and_an_invalid_backend_answers_its_own() {
    run(async {
        let mut mesh = Mesh::with_backends(v1::Protocol::Http1, &["v1", "v2"]).await;
        let invalid = v1::RouteBackend { invalid: true, ..backend("gone", 25) };
        mesh.route(vec![rule("/", vec![backend("v1", 50), backend("v2", 25), invalid])]);
        let mut client = mesh.dial().await;
        let mut counts = [0_u32; 3];
        for _ in 0..400 {
            let got = ask(&mut client, &get("/")).await;
            let at = ["v1 saw", "v2 saw", "500"].iter().position(|mark| got.contains(mark));
            counts[at.expect("one of them")] += 1;
        }
        // Six standard deviations of a binomial: 60 and 52.
        assert!(counts[0].abs_diff(200) < 60, "{counts:?}");
        assert!(counts[1].abs_diff(100) < 52 && counts[2].abs_diff(100) < 52, "{counts:?}");
    });
}

#[test]
fn the_rules_timeouts_stand_over_the_policys() {
    run(async {
        let (silent, address) = listen().await;
        let mut mesh = Mesh::new(closed_port().await, v1::Protocol::Http1).await;
        mesh.backend("slow", address).await;
        let timeouts = v1::Timeouts { request_ms: 300, ..v1::Timeouts::default() };
        let policy = policy_with(timeouts, None);
        mesh.outbound.put(v1::ResourceType::Policy, "shop/slow", &policy);
        let limits = |path: &str, request, attempt| v1::RouteRule {
            request_timeout_ms: request,
            backend_timeout_ms: attempt,
            ..rule(path, vec![backend("slow", 1)])
        };
        mesh.route(vec![
            limits("/request", Some(50), None),
            limits("/attempt", Some(0), Some(50)),
            limits("/policy", None, None),
            limits("/never", Some(0), None),
        ]);
        for (target, reason) in [
            ("/request", "request-timeout"),
            ("/attempt", "per-try-timeout"),
            ("/policy", "request-timeout"),
        ] {
            let got = ask(&mut mesh.dial().await, &get(target)).await;
            assert!(got.starts_with("http/1.1 504"), "{target}: {got}");
            assert!(got.contains(&format!("heddle-error: {reason}\r\n")), "{target}: {got}");
        }
        // Longer than the policy alone would have waited.
        let mut client = mesh.dial().await;
        write(&mut client, &get("/never")).await;
        let answer = async {
            loop {
                let mut served = accept(&silent).await;
                let head = read_until(&mut served, "\r\n\r\n").await;
                if head.starts_with("GET /never") {
                    tokio::time::sleep(Duration::from_millis(400)).await;
                    write(&mut served, "HTTP/1.1 204 No Content\r\n\r\n").await;
                    return;
                }
            }
        };
        answer.await;
        assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 204"));
    });
}

#[test]
fn the_time_of_an_attempt_is_that_to_the_last_byte() {
    run(async {
        let (app, address) = listen().await;
        let mut mesh = Mesh::new(closed_port().await, v1::Protocol::Http1).await;
        mesh.backend("slow", address).await;
        mesh.route(vec![v1::RouteRule {
            backend_timeout_ms: Some(200),
            ..rule("/", vec![backend("slow", 1)])
        }]);
        let mut client = mesh.dial().await;
        write(&mut client, &get("/")).await;
        let mut served = accept(&app).await;
        read_until(&mut served, "\r\n\r\n").await;
        write(&mut served, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart").await;
        read_until(&mut client, "part").await;
        let mut rest = Vec::new();
        let end = timeout(PATIENCE, client.read_to_end(&mut rest)).await.unwrap();
        assert!(end.is_err() && rest.is_empty(), "a reset and not a second answer: {rest:?}");
        assert_eq!(mesh.requests(&[r#"status_class="2xx""#, r#"flag="per-try-timeout""#]), 1);
    });
}

#[test]
fn retries_stay_with_the_backend_that_was_drawn() {
    run(async {
        let mut mesh = Mesh::with_backends(v1::Protocol::Http1, &["good"]).await;
        let (failing, address) = listen().await;
        let busy = std::rc::Rc::new(std::cell::Cell::new(0));
        let count = busy.clone();
        spawn_local(async move {
            while let Ok((mut served, _)) = failing.accept().await {
                let count = count.clone();
                spawn_local(async move {
                    let mut chunk = [0; 4096];
                    while served.read(&mut chunk).await.is_ok_and(|n| n > 0) {
                        count.set(count.get() + 1);
                        let busy = "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";
                        write(&mut served, busy).await;
                    }
                });
            }
        });
        // Two ways to the same application: a retry has somewhere else to go.
        let ways = [
            listen_inbound(&mesh.inbound.worker, address).await,
            listen_inbound(&mesh.inbound.worker, address).await,
        ];
        mesh.backend("bad", address).await;
        mesh.outbound.put(v1::ResourceType::Endpoints, "shop/bad:8080", &endpoints(&ways));
        let retries = v1::Retries {
            attempts: 1,
            on_status: vec![503],
            budget_percent: 100,
            budget_min_per_second: 100,
            backoff_base_ms: 1,
            ..v1::Retries::default()
        };
        let policy = policy_with(v1::Timeouts::default(), Some(retries));
        mesh.outbound.put(v1::ResourceType::Policy, "shop/bad", &policy);
        mesh.route(vec![rule("/", vec![backend("good", 1), backend("bad", 1)])]);
        let mut client = mesh.dial().await;
        let mut failed = 0;
        for _ in 0..40 {
            let got = ask(&mut client, &get("/")).await;
            failed += u32::from(got.starts_with("http/1.1 503"));
        }
        assert!(failed > 0, "one of forty draws");
        assert_eq!(busy.get(), 2 * failed, "each was tried twice, at the backend drawn first");
        assert_eq!(mesh.requests(&[r#"backend="shop/good""#]), u64::from(40 - failed));
    });
}

#[test]
fn a_split_waits_while_a_route_stands_and_opaque_bytes_follow_neither() {
    run(async {
        let (app, address) = listen().await;
        let mut mesh = Mesh::new(address, v1::Protocol::Unspecified).await;
        let (first, at) = listen().await;
        echo("v1", first);
        mesh.backend("v1", at).await;
        let drawn = |name: &str| v1::Backend {
            service: format!("shop/{name}"),
            weight: 1,
            ports: vec![v1::PortMapping { from: 80, to: 8080 }],
            ..v1::Backend::default()
        };
        let split = v1::Split { backends: vec![drawn("gone")], source: "shop/split".into() };
        mesh.outbound.put(v1::ResourceType::Split, "shop/web", &split);
        let got = ask(&mut mesh.dial().await, &get("/")).await;
        assert!(got.contains("heddle-error: no-endpoints"), "{got}");

        mesh.route(vec![rule("/", vec![backend("v1", 1)])]);
        let got = ask(&mut mesh.dial().await, &get("/")).await;
        assert!(got.contains("v1 saw"), "{got}");
        let mut client = mesh.dial().await;
        write(&mut client, "\u{1}opaque").await;
        let mut served = accept(&app).await;
        read_until(&mut served, "opaque").await;
    });
}

#[test]
fn the_callers_own_namespace_has_the_last_word_and_a_pods_address_none() {
    run(async {
        let mut mesh = Mesh::with_backends(v1::Protocol::Http1, &["v1", "v2"]).await;
        mesh.route(vec![rule("/", vec![backend("v1", 1)])]);
        let consumer = v1::Route { rules: vec![rule("/", vec![backend("v2", 1)])] };
        mesh.outbound.put(v1::ResourceType::Route, "shop/web:80@shop", &consumer);
        let got = ask(&mut mesh.dial().await, &get("/")).await;
        assert!(got.contains("v2 saw"), "{got}");

        let (app, address) = listen().await;
        echo("pod", app);
        let endpoint = listen_inbound(&mesh.inbound.worker, address).await;
        let pod = v1::PodPort {
            endpoint: endpoints(&[endpoint]).endpoints.pop(),
            protocol: v1::Protocol::Http1.into(),
            service: "shop/web".into(),
        };
        let body = v1::Address { kind: Some(v1::address::Kind::Pod(pod)) };
        mesh.outbound.put(v1::ResourceType::Address, &dialled().to_string(), &body);
        let got = ask(&mut mesh.dial().await, &get("/")).await;
        assert!(got.contains("pod saw"), "{got}");
    });
}

async fn open(mesh: &Mesh) -> client::SendRequest<Bytes> {
    let (sender, connection) = client::handshake(mesh.dial().await).await.unwrap();
    spawn_local(async move { connection.await.ok() });
    sender.ready().await.unwrap()
}

async fn call(sender: &mut client::SendRequest<Bytes>, request: Request<()>) -> Response<()> {
    let (response, _) = sender.send_request(request, true).unwrap();
    timeout(PATIENCE, response).await.expect("an answer in time").unwrap().map(drop)
}

fn field<'r>(response: &'r Response<()>, name: &str) -> &'r str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[test]
fn rules_hold_for_http2() {
    run(async {
        let mut mesh = Mesh::with_backends(v1::Protocol::Http2, &["v1", "v2"]).await;
        let filters = vec![
            Filter::RequestHeaders(modifier(&[("x-set", "new")], &[], &["x-gone"])),
            Filter::ResponseHeaders(modifier(&[("x-from", "route")], &[], &[])),
            rewrite("inner.example", Path::Prefix("/new".into())),
        ];
        let to = v1::Redirect { scheme: "https".into(), status: 302, ..v1::Redirect::default() };
        let host =
            v1::RouteMatch { headers: vec![pair("host", "other")], ..v1::RouteMatch::default() };
        mesh.route(vec![
            with(filters, rule("/old", vec![backend("v1", 1)])),
            with(vec![Filter::Redirect(to)], rule("/secure", vec![])),
            v1::RouteRule { matches: vec![host], ..rule("/", vec![backend("v2", 1)]) },
        ]);
        let mut sender = open(&mesh).await;
        let request = Request::get("http://web/old/x?q=1")
            .header("x-set", "old")
            .header("x-gone", "y")
            .body(())
            .unwrap();
        let response = call(&mut sender, request).await;
        let seen = ["x-app", "x-target", "x-host", "seen-x-set", "seen-x-gone", "x-from"]
            .map(|name| field(&response, name).to_owned());
        assert_eq!(seen, ["v1", "/new/x?q=1", "inner.example", "new", "", "route"]);

        let request = Request::get("http://web/secure?a").body(()).unwrap();
        let response = call(&mut sender, request).await;
        assert_eq!(response.status(), 302);
        assert_eq!(field(&response, "location"), "https://web/secure?a");
        assert_eq!(field(&response, "heddle-route"), "HTTPRoute/shop/web[r]");

        let request = Request::get("http://other/").body(()).unwrap();
        assert_eq!(field(&call(&mut sender, request).await, "x-app"), "v2");
        let request = Request::get("http://web/").body(()).unwrap();
        let response = call(&mut sender, request).await;
        assert_eq!(
            (response.status().as_u16(), field(&response, "heddle-error")),
            (404, "no-route")
        );

        // The same connection follows a change.
        mesh.route(vec![rule("/", vec![backend("v2", 1)])]);
        let request = Request::get("http://web/").body(()).unwrap();
        assert_eq!(field(&call(&mut sender, request).await, "x-app"), "v2");
        let (rule, flag) = (r#"route="HTTPRoute/shop/web[r]""#, r#"flag="no-route""#);
        assert_eq!((mesh.requests(&[rule]), mesh.requests(&[flag])), (4, 1));
    });
}

#[test]
fn a_grpc_caller_gets_a_status_it_can_read() {
    run(async {
        let mut mesh = Mesh::with_backends(v1::Protocol::Grpc, &["v1"]).await;
        let invalid = v1::RouteBackend { invalid: true, weight: 1, ..v1::RouteBackend::default() };
        mesh.route(vec![
            rule("/echo.Good", vec![backend("v1", 1)]),
            rule("/echo.None", vec![]),
            rule("/echo.Invalid", vec![invalid]),
            rule("/echo.Empty", vec![backend("unknown", 1)]),
        ]);
        let mut sender = open(&mesh).await;
        for (method, status, reason) in [
            ("/echo.Other/Call", "12", "no-route"),
            ("/echo.None/Call", "14", "no-backend"),
            ("/echo.Invalid/Call", "14", "invalid-backend"),
            ("/echo.Empty/Call", "14", "no-endpoints"),
            ("/echo.Good/Call", "", ""),
        ] {
            let request = Request::post(format!("http://web{method}"))
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            let response = call(&mut sender, request).await;
            assert_eq!(response.status(), 200, "{method}");
            let seen = (field(&response, "grpc-status"), field(&response, "heddle-error"));
            assert_eq!(seen, (status, reason), "{method}");
        }
    });
}
