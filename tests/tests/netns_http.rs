//! HTTP/1, HTTP/2, WebSocket and bare TCP between programs that nobody here wrote: curl, nginx,
//! openssl, nc, socat, h2load and `websockets`, and odd clients of our own where none is odd enough.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use heddle_tests::lab::Options;
use heddle_tests::real::{Background, Program, Side, Stage, Suite, eventually, require, sides};
use serde_json::Value;

const NEEDED: &[Program] = &[
    Program::Debian { name: "curl", package: "curl" },
    Program::Debian { name: "openssl", package: "openssl" },
    Program::Debian { name: "nginx", package: "nginx-light" },
    Program::Debian { name: "socat", package: "socat" },
    Program::Debian { name: "nc", package: "netcat-openbsd" },
    Program::Debian { name: "h2load", package: "nghttp2-client" },
    Program::Debian { name: "ip", package: "iproute2" },
    Program::Python("websockets"),
];

/// The ingress takes calls from outside the mesh.
const INGRESS: &str = "apiVersion: heddle.io/v1alpha1
kind: MeshTLSPolicy
metadata: { name: ingress, namespace: meshed }
spec:
  targetRef: { kind: Pods, selector: { app: ingress } }
  mode: Permissive
";

/// Large bodies: enough to fill every buffer on the way many times.
const LARGE: usize = 50 << 20;
const EVENTS: usize = 60;

#[test]
fn programs_that_know_nothing_of_the_mesh_speak_through_it() {
    require(NEEDED).unwrap();
    let mut manifests = sides(include_str!("../data/real/http.yaml"));
    manifests.push(INGRESS.to_owned());
    let stage = Stage::up(&manifests, Options::default()).unwrap();
    // A minute of events runs beside everything else.
    let events: Vec<_> = [Side::PLAIN, Side::MESHED]
        .iter()
        .map(|side| (*side, probe(&stage, side, "events", &[&EVENTS.to_string()])))
        .collect();
    let mut suite = Suite::default();
    curl_cases(&stage, &mut suite);
    odd_client_cases(&stage, &mut suite);
    program_cases(&stage, &mut suite);
    tcp_cases(&stage, &mut suite);
    address_cases(&stage, &mut suite);
    for (side, started) in events {
        // Started above: only its outcome belongs to the suite.
        let started = std::cell::Cell::new(Some(started));
        suite.on(&stage, "a minute of events", &[side], |_, _| {
            let seen: Value = started.take().context("run once")??.wait()?.json()?;
            ensure!(seen["events"] == EVENTS, "{seen}");
            ensure!(seen["latest"].as_f64().is_some_and(|late| late < 1.0), "{seen}");
            Ok(())
        });
    }
    suite.finish();
}

fn curl_cases(stage: &Stage, suite: &mut Suite) {
    suite.all(stage, "methods and statuses", methods_and_statuses);
    suite.all(stage, "keep-alive", keep_alive);
    suite.all(stage, "http2 with prior knowledge", http2);
    suite.both(stage, "an offer of h2c", |stage, side| {
        let url = format!("http://{}:8080/", side.host("web"));
        let ran = curl(stage, side, &["--http2", "-w", "\n%{http_version}", &url])?.ok()?;
        let offered = ran.out.contains("h2c") || ran.out.contains("http2-settings");
        ensure!(ran.out.ends_with("1.1") && offered != side.is_meshed(), "{}", ran.out);
        Ok(())
    });
    suite.all(stage, "100-continue", continue_100);
    suite.all(stage, "early hints", early_hints);
    suite.all(stage, "trailers of a response", |stage, side| {
        let url = format!("http://{}:8080/trailers?n=10000", side.host("web"));
        let ran = curl(stage, side, &["-H", "TE: trailers", "--raw", "-o", "-", &url])?;
        ran.expect_out("x-checksum: pattern").map(drop)
    });
    suite.all(stage, "chunked upload", |stage, side| {
        let body = stage.share("chunked", &pattern(3 << 20))?;
        upload(stage, side, &["-H", "Transfer-Encoding: chunked", "-T", &body], &body)
    });
    suite.both(stage, "large upload", |stage, side| {
        let body = stage.share("large", &pattern(LARGE))?;
        upload(stage, side, &["-T", &body], &body)?;
        upload(stage, side, &["--http2-prior-knowledge", "-T", &body], &body)
    });
    suite.both(stage, "large download", large_download);
    suite.all(stage, "http/1.0", http10);
    suite.all(stage, "refusal of an upload that is not read", |stage, side| {
        let body = stage.share("unread", &pattern(8 << 20))?;
        let url = format!("http://{}:8081/too-large", side.host("web"));
        for expect in ["Expect:", "Expect: 100-continue"] {
            let ran = curl(stage, side, &["-w", " %{http_code}", "-H", expect, "-T", &body, &url])?;
            ran.expect_out("too large 413")?;
        }
        Ok(())
    });
}

fn odd_client_cases(stage: &Stage, suite: &mut Suite) {
    suite.all(stage, "pipelining", |stage, side| {
        let seen: Value = probe(stage, side, "pipeline", &["50"])?.wait()?.json()?;
        let paths: Vec<_> = (0..50).map(|i| format!("/pipelined/{i}")).collect();
        ensure!(seen["ok"] == 50 && seen["paths"] == serde_json::json!(paths), "{seen}");
        Ok(())
    });
    suite.all(stage, "client that half-closes", |stage, side| {
        let seen: Value = probe(stage, side, "half_close", &[])?.wait()?.json()?;
        let answer = seen["answer"].as_str().unwrap_or_default();
        ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("/half-closed"), "{seen}");
        Ok(())
    });
    for (case, status) in [("upgrade", "HTTP/1.1 101 "), ("connect", "HTTP/1.1 200 ")] {
        suite.all(stage, case, |stage, side| {
            let seen: Value = probe(stage, side, case, &[])?.wait()?.json()?;
            ensure!(seen["head"].as_str().unwrap_or_default().starts_with(status), "{seen}");
            ensure!(seen["first"] == "HELLO " && seen["rest"] == "AGAINbye", "{seen}");
            Ok(())
        });
    }
    suite.all(stage, "trailers of a request", |stage, side| {
        let seen: Value = probe(stage, side, "trailers", &[])?.wait()?.json()?;
        let answer = seen["answer"].as_str().unwrap_or_default();
        ensure!(answer.contains(r#""trailers": [["x-sum", "42"]]"#), "{seen}");
        ensure!(answer.contains(r#""length": 11"#), "{seen}");
        Ok(())
    });
}

fn program_cases(stage: &Stage, suite: &mut Suite) {
    suite.all(stage, "nginx as a server", nginx_server);
    suite.both(stage, "nginx as an ingress", nginx_ingress);
    suite.all(stage, "websockets", |stage, side| {
        let url = format!("ws://{}:8085/", side.host("web"));
        stage.python(&side.client("client"), "ws_client.py", &[&url])?.ok().map(drop)
    });
    suite.both(stage, "h2load", |stage, side| {
        let url = format!("http://{}:8080/", side.host("web"));
        let argv = ["h2load", "-n", "3000", "-c", "8", "-m", "25", &url];
        let ran = stage.run(&side.client("client"), &argv)?;
        ran.expect_out("3000 succeeded, 0 failed, 0 errored, 0 timeout").map(drop)
    });
}

fn tcp_cases(stage: &Stage, suite: &mut Suite) {
    suite.all(stage, "an application's own TLS", own_tls);
    suite.all(stage, "half-close by the client", |stage, side| {
        let body = stage.share("sent", &pattern(5 << 20))?;
        let host = side.host("web");
        for argv in [format!("nc -N -w 20 {host} 7001"), format!("socat -t20 - TCP:{host}:7001")] {
            let command = format!("{argv} < {body}");
            let ran = stage.run(&side.client("client"), &["sh", "-c", &command])?;
            ran.expect_out(&sha256_of(Path::new(&body))?)?;
        }
        Ok(())
    });
    suite.all(stage, "half-close by a silent client", |stage, side| {
        let command = format!("nc -N -w 20 {} 7001 < /dev/null", side.host("web"));
        let ran = stage.run(&side.client("client"), &["sh", "-c", &command])?;
        // What nothing hashes to.
        ran.expect_out("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855").map(drop)
    });
    suite.all(stage, "half-close by the server", |stage, side| {
        let said = stage.shared(&format!("{}.said", side.server));
        let _ = std::fs::remove_file(&said);
        let host = side.host("web");
        let command = format!("(sleep 1; echo afterwards) | socat -t20 - TCP:{host}:7002");
        let ran = stage.run(&side.client("client"), &["sh", "-c", &command])?;
        ran.expect_out("begun")?;
        eventually("what was said after the server's end arrives", Duration::from_secs(5), || {
            std::fs::read_to_string(&said).is_ok_and(|text| text == "afterwards\n")
        })
    });
}

fn address_cases(stage: &Stage, suite: &mut Suite) {
    suite.both(stage, "a pod that calls its own Service", own_service);
    suite.both(stage, "calls to pod addresses and to a headless Service", pod_addresses);
    suite.on(
        stage,
        "an unmeshed pod",
        &[Side { client: "meshed", server: "plain" }],
        |stage, side| {
            let answer = json_of(stage, side, &format!("http://{}:8080/", side.host("web")))?;
            ensure!(answer["server"] == "web" && answer["client"].is_null(), "{answer}");
            Ok(())
        },
    );
    suite.both(stage, "an address outside the mesh", outside);
    suite.on(
        stage,
        "plaintext to a Strict port",
        &[Side { client: "plain", server: "meshed" }],
        strict_refuses,
    );
}

fn methods_and_statuses(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let base = format!("http://{}:8080", side.host("web"));
    let answer = json_of(stage, side, &format!("{base}/some/path?id=7"))?;
    ensure!(answer["path"] == "/some/path" && answer["id"] == "7", "{answer}");
    let expected = match side.client {
        "meshed" => Value::from("spiffe://cluster.local/ns/meshed/sa/client"),
        _ => Value::Null,
    };
    ensure!(answer["client"] == expected, "{answer}");
    curl(stage, side, &["-I", &format!("{base}/")])?.expect_out("content-length: ")?;
    for status in ["204", "304", "404", "503"] {
        let url = format!("{base}/status/{status}");
        let ran = curl(stage, side, &["-o", "/dev/null", "-w", "%{http_code}", &url])?;
        ensure!(ran.ok()?.out == status, "{status}");
    }
    let posted = curl(stage, side, &["-d", "hello", &format!("{base}/post")])?.json::<Value>()?;
    ensure!(posted["method"] == "POST" && posted["body_bytes"] == 5, "{posted}");
    let spoofed = curl(stage, side, &["-H", "heddle-client-id: spiffe://forged", &base])?;
    let spoofed: Value = spoofed.json()?;
    ensure!(!side.is_meshed() || spoofed["client"] == expected, "{spoofed}");
    Ok(())
}

fn keep_alive(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let base = format!("http://{}:8080", side.host("web"));
    let urls = [0, 1, 2, 3].map(|i| format!("{base}/bytes?n={}", i * 1000));
    let mut args = vec!["-w", "%{num_connects}\n"];
    for url in &urls {
        args.extend(["-o", "/dev/null", url]);
    }
    let ran = curl(stage, side, &args)?.ok()?;
    ensure!(ran.out == "1\n0\n0\n0\n", "connections made: {}", ran.out);
    Ok(())
}

fn http2(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let url = format!("http://{}:8080/", side.host("web"));
    let args = ["--http2-prior-knowledge", "-w", "\n%{http_version}", "-d", "hello", &url];
    let ran = curl(stage, side, &args)?.ok()?;
    let (answer, version) = ran.out.rsplit_once('\n').context("two lines")?;
    let answer: Value = serde_json::from_str(answer)?;
    ensure!(version == "2" && answer["body_bytes"] == 5, "{version} {answer}");
    ensure!(answer["client"].is_string() == (side.client == "meshed"), "{answer}");
    Ok(())
}

/// The server says to go on only after 0.2 s: whoever says it earlier is not the server.
fn continue_100(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let body = stage.share("continued", &pattern(1 << 20))?;
    let url = format!("http://{}:8081/continue", side.host("web"));
    let args = ["-v", "--expect100-timeout", "20", "-H", "Expect: 100-continue", "-T", &body, &url];
    let ran = curl(stage, side, &args)?.expect_err("< HTTP/1.1 100 Continue")?;
    let answer: Value = ran.expect_err("< x-late: 1")?.json()?;
    ensure!(answer["length"] == 1 << 20, "{answer}");
    let url = format!("http://{}:8081/refuse", side.host("web"));
    let args = ["-v", "--expect100-timeout", "20", "-H", "Expect: 100-continue", "-T", &body, &url];
    let ran = curl(stage, side, &args)?.expect_err("< HTTP/1.1 417")?;
    ensure!(!ran.err.contains("100 Continue"), "{}", ran.excerpt());
    Ok(())
}

fn early_hints(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let url = format!("http://{}:8081/early", side.host("web"));
    let ran = curl(stage, side, &["-v", &url])?.expect_out("late")?;
    ran.expect_err("< HTTP/1.1 103")?.expect_err("< link: </a.css>; rel=preload").map(drop)
}

fn large_download(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let expected = sha256_of(Path::new(&stage.share("large", &pattern(LARGE))?))?;
    let host = side.host("web");
    let urls = [
        ("", format!("http://{host}:8080/bytes?n={LARGE}")),
        ("", format!("http://{host}:8080/chunked?n={LARGE}&chunk=70000")),
        ("--http2-prior-knowledge", format!("http://{host}:8080/bytes?n={LARGE}")),
    ];
    for (option, url) in urls {
        let command = format!("curl -sS -m 60 {option} '{url}' | sha256sum");
        let ran = stage.run(&side.client("client"), &["sh", "-c", &command])?;
        ran.expect_out(&expected).with_context(|| url.clone())?;
    }
    Ok(())
}

fn http10(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let host = side.host("web");
    let answer = curl(stage, side, &["-0", &format!("http://{host}:8080/ten")])?.json::<Value>()?;
    ensure!(answer["path"] == "/ten", "{answer}");
    // A server of old, whose answer ends with its connection, to clients of both ages.
    for version in ["--http1.0", "--http1.1"] {
        let url = format!("http://{host}:8081/old");
        curl(stage, side, &[version, &url])?.expect_out("no length, ended by the close")?;
    }
    // No length can be told to a client of 1.0: chunks must not reach it.
    let url = format!("http://{host}:8080/chunked?n=5000");
    let ran = curl(stage, side, &["-0", "-o", "/dev/null", "-w", "%{size_download}", &url])?;
    ensure!(ran.ok()?.out == "5000");
    Ok(())
}

fn nginx_server(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let base = format!("http://{}:8082", side.host("web"));
    let ran = curl(stage, side, &[&format!("{base}/connection"), "-o", "-"])?.ok()?;
    ensure!(ran.out.parse::<u32>().is_ok(), "{}", ran.out);
    let file = format!("{base}/files/raw_http.py");
    let script = std::fs::read_to_string(stage.file("raw_http.py"))?;
    ensure!(curl(stage, side, &[&file])?.ok()?.out == script);
    ensure!(curl(stage, side, &["--compressed", &file])?.ok()?.out == script);
    ensure!(curl(stage, side, &["-r", "10-29", &file])?.ok()?.out == script[10..30]);
    let head = curl(stage, side, &["-I", &file])?.expect_out("200 OK")?.out;
    let tag = head.lines().find_map(|line| line.strip_prefix("ETag: ")).context("an ETag")?;
    let condition = format!("If-None-Match: {}", tag.trim());
    let args = ["-w", "%{http_code}", "-H", &condition, &file];
    ensure!(curl(stage, side, &args)?.ok()?.out == "304");
    // Closed by the server between two requests: the next one must not notice.
    let args = ["-w", "%{http_code}", "-o", "/dev/null", "-H", "Connection: close", &file];
    ensure!(curl(stage, side, &args)?.ok()?.out == "200");
    Ok(())
}

/// A caller from outside the mesh, an ingress that is meshed, servers that are Strict.
fn nginx_ingress(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let side = &Side { client: Side::PLAIN.client, ..*side };
    let base = format!("http://{}", side.host("ingress"));
    for id in ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"] {
        let answer = json_of(stage, side, &format!("{base}/through?id={id}"))?;
        ensure!(answer["server"] == "web" && answer["id"] == id, "{answer}");
        let expected = match side.is_meshed() {
            true => Value::from("spiffe://cluster.local/ns/meshed/sa/ingress"),
            false => Value::Null,
        };
        ensure!(answer["client"] == expected, "{answer}");
    }
    let body = stage.share("ingress-upload", &pattern(5 << 20))?;
    let answer: Value = curl(stage, side, &["-T", &body, &format!("{base}/up")])?.json()?;
    ensure!(answer["body_sha256"] == sha256_of(Path::new(&body))?, "{answer}");
    let url = format!("ws://{}/socket", side.host("ingress"));
    stage.python(&side.client("client"), "ws_client.py", &[&url])?.ok().map(drop)
}

fn own_tls(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let host = side.host("web");
    // s_server answers each line reversed; the certificate seen must be the application's.
    let command = format!(
        "(echo stressed; sleep 1) | openssl s_client -connect {host}:8443 -servername own.example"
    );
    let ran = stage.run(&side.client("client"), &["sh", "-c", &command])?;
    ran.expect_out("CN = own.example")?.expect_out("desserts").map(drop)
}

/// The only endpoint of `web` is the pod itself.
fn own_service(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    for family in ["-4", "-6"] {
        let argv = ["curl", "-sS", "-m", "10", family, "http://web:8080/self"];
        let answer: Value = stage.run(&side.server("web"), &argv)?.json()?;
        ensure!(answer["path"] == "/self", "{family}: {answer}");
        let expected = match side.is_meshed() {
            true => Value::from("spiffe://cluster.local/ns/meshed/sa/web"),
            false => Value::Null,
        };
        ensure!(answer["client"] == expected, "{family}: {answer}");
        let argv =
            ["curl", "-sS", "-m", "10", "--http2-prior-knowledge", family, "http://web:8080/"];
        stage.run(&side.server("web"), &argv)?.expect_out("\"server\":\"web\"")?;
    }
    let ran = stage.run(&side.server("web"), &["sh", "-c", "echo me | nc -N -w 10 web 7001"])?;
    ran.expect_out("  -").map(drop)
}

fn pod_addresses(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let web = side.server("web");
    let (v4, v6) = (stage.address(&web, 0)?, stage.address(&web, 1)?);
    let headless = side.host("web-headless");
    for url in [
        format!("http://{v4}:8080/"),
        format!("http://[{v6}]:8080/"),
        format!("http://{headless}:8080/"),
    ] {
        let answer = json_of(stage, side, &url)?;
        let proved = answer["client"] == "spiffe://cluster.local/ns/meshed/sa/client";
        ensure!(proved == side.is_meshed(), "{url}: {answer}");
    }
    // A port of the pod that no Service names.
    let argv = format!("echo unnamed | nc -N -w 10 {v4} 7001");
    stage.run(&side.client("client"), &["sh", "-c", &argv])?.expect_out("  -").map(drop)
}

/// An address that the router knows and the control plane does not.
fn outside(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let (address, far) = ("198.51.100.7", "plain/ingress");
    let (node, pod) = (stage.lab().node_netns(), stage.lab().netns(far)?);
    let via = stage.address(far, 0)?.to_string();
    let add = |args: &[&str]| std::process::Command::new("ip").args(args).output();
    add(&["-n", &pod, "addr", "replace", &format!("{address}/32"), "dev", "lo"])?;
    add(&[
        "-n",
        &node,
        "route",
        "replace",
        address,
        "via",
        &via,
        "onlink",
        "dev",
        &link_to(&node, &via)?,
    ])?;
    let answer = json_of(stage, side, &format!("http://{address}:8080/outside"))?;
    ensure!(answer["server"] == "web" && answer["client"].is_null(), "{answer}");
    Ok(())
}

fn link_to(node: &str, address: &str) -> anyhow::Result<String> {
    let route =
        std::process::Command::new("ip").args(["-n", node, "route", "get", address]).output()?;
    let route = String::from_utf8_lossy(&route.stdout).into_owned();
    let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
    Ok(words.nth(1).context("a device")?.to_owned())
}

fn strict_refuses(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let ledger = stage.shared("meshed.ledger");
    let hits = || std::fs::read_to_string(&ledger).unwrap_or_default().matches("forbidden").count();
    let host = side.host("web");
    let v4 = stage.address(&side.server("web"), 0)?;
    for target in [host, v4.to_string()] {
        for option in ["--http1.1", "--http2-prior-knowledge"] {
            let url = format!("http://{target}:8080/?id=forbidden");
            let ran = curl(stage, side, &["-w", " %{http_code}", option, &url])?;
            ensure!(!ran.out.contains(" 200"), "{}", ran.excerpt());
            if option == "--http1.1" {
                ensure!(ran.out.ends_with(" 403"), "{}", ran.excerpt());
            }
        }
        let command = format!("echo x | nc -N -w 5 {target} 7001");
        let ran = stage.run(&side.client("client"), &["sh", "-c", &command])?;
        ensure!(ran.out.is_empty(), "{}", ran.excerpt());
    }
    ensure!(hits() == 0, "the application was hit {} times", hits());
    Ok(())
}

fn curl(stage: &Stage, side: &Side, args: &[&str]) -> anyhow::Result<heddle_tests::real::Ran> {
    let mut argv = vec!["curl", "-sS", "-m", "60"];
    argv.extend(args);
    stage.run(&side.client("client"), &argv)
}

fn json_of(stage: &Stage, side: &Side, url: &str) -> anyhow::Result<Value> {
    curl(stage, side, &[url])?.json()
}

fn upload(stage: &Stage, side: &Side, args: &[&str], file: &str) -> anyhow::Result<()> {
    let url = format!("http://{}:8080/upload", side.host("web"));
    let mut args = args.to_vec();
    args.push(&url);
    let answer: Value = curl(stage, side, &args)?.json()?;
    ensure!(answer["body_sha256"] == sha256_of(Path::new(file))?, "{answer}");
    Ok(())
}

fn probe(stage: &Stage, side: &Side, case: &str, args: &[&str]) -> anyhow::Result<Background> {
    let host = side.host("web");
    let mut all = vec![case, &host, "8081"];
    all.extend(args);
    stage.start_python(&side.client("client"), "probe.py", &all)
}

fn pattern(length: usize) -> Vec<u8> {
    heddle_tests::app::pattern(length).into()
}

fn sha256_of(file: &Path) -> anyhow::Result<String> {
    let ran = std::process::Command::new("sha256sum").arg(file).output()?;
    let text = String::from_utf8(ran.stdout)?;
    Ok(text.split_whitespace().next().context("a digest")?.to_owned())
}
