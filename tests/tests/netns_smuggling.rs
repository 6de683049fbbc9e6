//! Hostile framing end to end: every row of the table through both proxies to a server that believes
//! its caller; slow and flooding clients beside honest ones.

use anyhow::{Context as _, ensure};
use heddle_api::names::METRICS_PORT;
use heddle_tests::lab::Options;
use heddle_tests::real::{Background, Program, Side, Stage, Suite, require, sides};
use serde::Deserialize;
use serde_json::{Value, json};

const TABLE: &str = include_str!("../data/http1-hostile.txt");

/// Rows that are no HTTP/1 at all from the first byte: refused, in their own protocol or by the end
/// of the connection, so the codec's reason is not heard.
const OTHER_PROTOCOLS: &[&str] = &["tls-to-clear-port", "h2-preface-to-http1-port"];

/// More than a head may take, and the time an answer takes to arrive.
const HEAD_LIMIT: f64 = 12.0;

#[derive(Clone, Debug)]
struct Row {
    name: &'static str,
    status: &'static str,
    reason: &'static str,
    bytes: Vec<u8>,
}

/// What became of a row.
#[derive(Debug, Deserialize)]
struct Outcome {
    name: String,
    answer: String,
    end: String,
    /// Paths of the requests that the server found.
    seen: Vec<String>,
}

#[test]
fn no_framing_is_read_in_two_ways() {
    require(&[Program::Python("grpc"), Program::Debian { name: "curl", package: "curl" }]).unwrap();
    let manifests = sides(include_str!("../data/real/smuggling.yaml"));
    let stage = Stage::up(&manifests, Options::default()).unwrap();
    let rows = rows();
    let mut suite = Suite::default();
    suite.on(&stage, "the server is one that can be fooled", &[Side::PLAIN], |stage, side| {
        let holds = |row: &&Row| String::from_utf8_lossy(&row.bytes).contains("/smuggled");
        let rows: Vec<_> = rows.iter().filter(holds).take(6).cloned().collect();
        let outcomes = send(stage, side, &rows, 8080, "declared")?;
        let fooled = outcomes.iter().filter(|row| row.seen.contains(&"/smuggled".to_owned()));
        ensure!(fooled.count() >= 2, "the control shows nothing");
        Ok(())
    });
    suite.on(&stage, "a declared port", &[Side::MESHED, Side::PERMISSIVE], |stage, side| {
        let outcomes = send(stage, side, &rows, 8080, "declared")?;
        judge(&rows, &outcomes, |row| !OTHER_PROTOCOLS.contains(&row.name))
    });
    suite.on(&stage, "an undeclared port", &[Side::MESHED], |stage, side| {
        // Of rows that do not begin as HTTP nothing is read: they are one connection's bytes.
        let http: Vec<_> = rows.iter().filter(|row| begins_as_http(row)).cloned().collect();
        ensure!(http.len() >= 75, "only {} rows", http.len());
        let outcomes = send(stage, side, &http, 8081, "undeclared")?;
        judge(&http, &outcomes, |_| true)
    });
    let sides = [Side::MESHED, Side::PERMISSIVE];
    suite.on(&stage, "slow heads", &sides, slow_heads);
    suite.on(&stage, "slow bodies", &[Side::MESHED], slow_bodies);
    suite.on(&stage, "floods", &sides, floods);
    suite.finish();
}

/// Each row is refused for its reason, and whatever was answered before the refusal is what the
/// server has seen, no request more.
fn judge(rows: &[Row], outcomes: &[Outcome], told: impl Fn(&Row) -> bool) -> anyhow::Result<()> {
    ensure!(outcomes.len() == rows.len(), "{} of {} rows", outcomes.len(), rows.len());
    let mut wrong = Vec::new();
    for (row, outcome) in rows.iter().zip(outcomes) {
        ensure!(row.name == outcome.name, "rows in another order");
        let answered = outcome.answer.matches("x-raw: 1").count();
        let refusal = format!("heddle-error: {}\r\n", row.reason);
        let refused = outcome.answer.contains(&format!("HTTP/1.1 {} ", row.status))
            && outcome.answer.contains(&refusal);
        let smuggled = outcome.seen.iter().any(|path| path == "/smuggled");
        if smuggled || answered != outcome.seen.len() || (told(row) && outcome.end == "open") {
            wrong.push(format!("{outcome:?}"));
        } else if told(row) && !refused {
            wrong.push(format!("not {} {}: {outcome:?}", row.status, row.reason));
        }
    }
    ensure!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    Ok(())
}

fn send(
    stage: &Stage,
    side: &Side,
    rows: &[Row],
    port: u16,
    log: &str,
) -> anyhow::Result<Vec<Outcome>> {
    let list: Vec<_> = rows.iter().map(|row| json!([row.name, hex(&row.bytes)])).collect();
    let list = stage.share("rows", &serde_json::to_vec(&list)?)?;
    let log = stage.shared(&format!("{}.{log}", side.server)).display().to_string();
    let (host, port) = (side.host("web"), port.to_string());
    let args = [host.as_str(), &port, &list, &log];
    stage.python(&side.client("client"), "hostile.py", &args)?.json()
}

/// Several clients whose heads never end, while another is served.
fn slow_heads(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let slow = start(stage, side, "web", "head", 20)?;
    serves_others(stage, side)?;
    for client in slow {
        let seen: Value = client.wait()?.json()?;
        let seconds = seen["seconds"].as_f64().context("a number")?;
        ensure!(seconds < HEAD_LIMIT, "{seen}");
        let answer = seen["answer"].as_str().unwrap_or_default();
        ensure!(answer.contains("HTTP/1.1 408") && answer.contains("head-timeout"), "{seen}");
    }
    Ok(())
}

/// The same with bodies, against a Service whose requests have a limit.
fn slow_bodies(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let slow = start(stage, side, "impatient", "body", 10)?;
    serves_others(stage, side)?;
    for client in slow {
        let seen: Value = client.wait()?.json()?;
        let seconds = seen["seconds"].as_f64().context("a number")?;
        ensure!((2.5..6.0).contains(&seconds), "{seen}");
        let answer = seen["answer"].as_str().unwrap_or_default();
        ensure!(answer.contains("HTTP/1.1 504") && answer.contains("request-timeout"), "{seen}");
    }
    Ok(())
}

/// Floods that cost the proxy more than the client end within seconds, others are served meanwhile,
/// and the proxy's memory stays where it is.
fn floods(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for case in ["rapid_reset", "ping", "settings", "continuation", "empty_data"] {
        let before = memory(stage, side)?;
        let host = side.host("web");
        let args = [case, &host, "8082", "6"];
        let flood = stage.start_python(&side.client("client"), "flood.py", &args)?;
        serves_others(stage, side).context(case)?;
        let seen: Value = flood.wait()?.json().context(case)?;
        let grown = memory(stage, side)?.saturating_sub(before);
        if grown > 16 * 1024 || seen["end"] == "endured" {
            wrong.push(format!("{case}: {seen}, {grown} KiB more"));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    let pod = if side.client == "meshed" { side.client("client") } else { side.server("web") };
    let metrics = format!("http://{}:{METRICS_PORT}/metrics", stage.address(&pod, 0)?);
    let ran = stage.run("plain/client", &["curl", "-sS", "-m", "10", &metrics])?.ok()?;
    let counted =
        ran.out.lines().find(|line| line.contains("proxy_errors") && line.contains("overload"));
    let counted = counted.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    ensure!(counted >= Some(2.0), "floods counted: {counted:?}");
    Ok(())
}

fn start(
    stage: &Stage,
    side: &Side,
    service: &str,
    part: &str,
    seconds: u32,
) -> anyhow::Result<Vec<Background>> {
    let (host, seconds) = (side.host(service), seconds.to_string());
    let args = ["drip", &host, "8080", part, &seconds];
    (0..5).map(|_| stage.start_python(&side.client("client"), "probe.py", &args)).collect()
}

/// Requests beside the attack, none of which may take long.
fn serves_others(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let url = format!("http://{}:8080/honest?n=[1-100]", side.host("web"));
    let argv = ["curl", "-sS", "-m", "20", "-w", "\n%{http_code} %{time_total}\n", &url];
    let ran = stage.run(&side.client("client"), &argv)?.ok()?;
    let times = ran.out.lines().filter_map(|line| line.strip_prefix("200 "));
    let times: Vec<f64> = times.filter_map(|time| time.parse().ok()).collect();
    let slowest = times.iter().copied().fold(0.0, f64::max);
    ensure!(times.len() == 100, "{} of 100 were served", times.len());
    ensure!(slowest < 2.0, "an honest request took {slowest} s");
    Ok(())
}

/// Resident memory of the proxies of this side, in KiB.
fn memory(stage: &Stage, side: &Side) -> anyhow::Result<u64> {
    let pods = [side.client("client"), side.server("web")];
    let proxies = pods.iter().filter_map(|pod| stage.lab().pod(pod).ok()?.proxy_pid());
    proxies
        .map(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("VmRSS")?;
            Ok(kib.trim().parse::<u64>()?)
        })
        .sum()
}

fn rows() -> Vec<Row> {
    let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let columns: Vec<_> = line.splitn(3, " | ").collect();
            let [name, answer, bytes] = columns[..] else { panic!("three columns: {line}") };
            let (status, reason) = answer.split_once(' ').expect("status and reason");
            Row { name, status, reason, bytes: unescape(bytes) }
        })
        .collect()
}

/// `\r \n \t \\ \xNN`, and `\{N:text}` for N times the text, as the table's head says.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        let (escape, after) = after.split_at(1);
        rest = after;
        match escape {
            "r" => bytes.push(b'\r'),
            "n" => bytes.push(b'\n'),
            "t" => bytes.push(b'\t'),
            "\\" => bytes.push(b'\\'),
            "x" => {
                bytes.push(u8::from_str_radix(&rest[..2], 16).expect("two hex digits"));
                rest = &rest[2..];
            }
            "{" => {
                let (repeat, after) = rest.split_once('}').expect("a closing brace");
                let (times, text) = repeat.split_once(':').expect("times and text");
                bytes.extend(unescape(text).repeat(times.parse().expect("a number")));
                rest = after;
            }
            other => panic!("unknown escape {other} in {text}"),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

fn begins_as_http(row: &Row) -> bool {
    heddle_proxy::detect::client_first(&row.bytes) == heddle_proxy::detect::Verdict::Http1
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
