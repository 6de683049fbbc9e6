//! Certificates and clocks: what goes on, what is refused, and how soon it is well again.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use heddle_tests::faults::{Account, Cases, Plan, Traffic, Wire, World, eventually, now_us, pause};
use heddle_tests::lab::Options;
use heddle_tests::load::Outcome;

const MESH: &str = include_str!("../data/faults.yaml");
const ALL: &str = "http://all/";
const MARKER: &str = "heddle-faults-secret";
const SOON: Duration = Duration::from_secs(5);

#[test]
fn nothing_is_sent_with_an_expired_certificate_nor_in_plaintext() {
    let options = Options {
        control_plane_args: vec!["--leaf-lifetime=20s".to_owned()],
        ..Options::default()
    };
    let world = World::up(&[("mesh.yaml", MESH)], options).unwrap();
    let mut cases = Cases::default();
    cases.run(&world, "expired with the control plane down", expired);
    cases.finish();
}

fn microseconds(seconds: f64) -> u64 {
    Duration::from_secs_f64(seconds.max(0.0)).as_micros().try_into().unwrap_or(u64::MAX)
}

/// When the first and the last certificate of the three proxies end.
fn ends(world: &World) -> anyhow::Result<(u64, u64)> {
    let mut ends = Vec::new();
    for pod in ["client", "web-1", "web-2"] {
        ends.push(world.metric(pod, "heddle_certificate_expiry_timestamp_seconds")?);
    }
    let first = ends.iter().copied().fold(f64::MAX, f64::min);
    let last = ends.iter().copied().fold(0.0, f64::max);
    Ok((microseconds(first), microseconds(last)))
}

fn until(at_us: u64) {
    pause(Duration::from_micros(at_us.saturating_sub(now_us())));
}

fn expired(world: &World) -> anyhow::Result<()> {
    let wire = Wire::watch(world, MARKER)?;
    let plan = Plan { marker: MARKER, ..Plan::steady("client", ALL) };
    let burst = Plan {
        marker: MARKER,
        connections: 150,
        ..Plan::burst("client", "http://all/delay?ms=50")
    };
    let traffic = Traffic::start(world, &plan)?;
    world.kill("control-plane")?;
    let (first, last) = ends(world)?;
    // New connections go on to the last second before the end.
    until(first.saturating_sub(1_500_000));
    let before = Traffic::run(world, &Plan { connections: 60, ..burst.clone() })?;
    ensure!(now_us() < first, "the machine is too slow for this");
    Account::new(before, world.ledger()?).expect_clean()?;

    until(last + 1_000_000);
    let refused = Account::new(Traffic::run(world, &burst)?, world.ledger()?);
    let kinds = refused.failure_kinds();
    eprintln!(
        "  after the end: {kinds:?}, {} ok on connections that existed",
        refused.by_pod().values().sum::<u64>()
    );
    let expired = Outcome::Status { status: 503, reason: "certificate-expired".into() };
    ensure!(refused.failures().count() > 0, "new handshakes were made");
    ensure!(refused.failures().all(|r| r.outcome == expired), "{kinds:?}");
    refused.expect_nothing_impossible()?;
    for pod in ["client", "web-1"] {
        let ready = world.readyz(pod)?;
        ensure!(ready.status == 503 && ready.body.contains("certificate: expired"), "{ready:?}");
    }
    world.lab().start("control-plane")?;
    let (took, ()) = eventually("it is well again", SOON, || {
        let account = Account::new(Traffic::run(world, &burst)?, world.ledger()?);
        account.expect_clean()
    })?;
    eprintln!("  well {took:.1?} after the control plane");
    world.await_ready()?;
    eventually("endpoints are published again", SOON, || {
        ensure!(world.call("client", ALL, &[])?.status == 200, "not called");
        Ok(())
    })?;
    let well = now_us();
    traffic.more(100)?;
    let steady = Account::new(traffic.finish()?, world.ledger()?);
    eprintln!("  the load: {:?}", steady.failure_kinds());
    steady.expect_nothing_impossible()?;
    // An unready pod is no endpoint, as soon as there is somebody to say so.
    let unready = Outcome::Status { status: 503, reason: "no-endpoints".into() };
    let odd = steady.failures().find(|record| {
        let explained = record.outcome == expired || record.outcome == unready;
        !explained || record.started_us < first || record.started_us > well
    });
    ensure!(odd.is_none(), "{odd:?}, expiry {first}, well {well}");
    let seen = wire.finish()?;
    ensure!(seen.plaintext_markers == 0 && seen.tls_packets > 0, "{seen:?}");
    Ok(())
}

/// Calls when it is told to.
const OTHER: &str = "apiVersion: v1
kind: Pod
metadata: { name: other }
spec:
  containers: [{ name: app, command: [sleep, infinity] }]
";
/// Debian's `libfaketime`.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The proxy of `web-2` reads the wall clock through a library that adds what a file says; its
/// monotonic clock is the kernel's.
fn with_a_clock_of_its_own(clock: &Path) -> String {
    let variables = [
        ("LD_PRELOAD", FAKETIME.to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let env: String = variables
        .iter()
        .map(|(name, value)| format!("        - {{ name: {name}, value: \"{value}\" }}\n"))
        .collect();
    let init =
        format!("  initContainers:\n    - name: heddle-proxy\n      env:\n{env}  containers:\n");
    let (before, web_2) = MESH.rsplit_once("metadata: { name: web-2").unwrap_or_default();
    let web_2 = web_2.replacen("  containers:\n", &init, 1);
    format!("{before}metadata: {{ name: web-2{web_2}---\n{OTHER}")
}

#[test]
fn a_wrong_clock_costs_one_endpoint_and_no_request() {
    assert!(Path::new(FAKETIME).exists(), "missing: apt-get install -y libfaketime");
    // Everybody may pass: the proxy runs under a uid of its own.
    let dir = tempfile::Builder::new().prefix("heddle-clock-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let clock = dir.path().join("clock");
    std::fs::write(&clock, "+0\n").unwrap();
    let mesh = with_a_clock_of_its_own(&clock);
    let world = World::up(&[("mesh.yaml", &mesh)], Options::default()).unwrap();
    let mut cases = Cases::default();
    for (step, seen) in [
        ("+5m", (200, "")),
        // Its clock says that the caller's certificate, a moment old, is from the future.
        ("-5m", (503, "handshake-failed")),
        // Its own certificate has expired, and it is no endpoint while it is unready.
        ("+25h", (503, "no-endpoints")),
        ("-25h", (503, "handshake-failed")),
    ] {
        cases.run(&world, &format!("clock {step}"), |world| stepped(world, &clock, step, seen));
    }
    cases.finish();
}

/// The clock steps under load and comes back; `seen` is what a caller sees that makes its first
/// connection meanwhile and has no other endpoint. The load notices nothing.
fn stepped(world: &World, clock: &Path, step: &str, seen: (u16, &str)) -> anyhow::Result<()> {
    world.kill("other:proxy")?;
    world.lab().start("other:proxy")?;
    world.await_ready()?;
    let traffic = Traffic::start(world, &Plan::steady("client", ALL))?;
    let set = |text: &str| {
        // In one step: half an offset is another offset.
        let staged = clock.with_extension("new");
        std::fs::write(&staged, format!("{text}\n"))?;
        std::fs::rename(&staged, clock)
    };
    set(step)?;
    traffic.more(300)?;
    let burst = Plan { connections: 60, ..Plan::burst("client", "http://all/delay?ms=20") };
    let mut records = Traffic::run(world, &burst)?;
    let called = world.call("other", "http://web-v2/", &[]);
    set("+0")?;
    let called = called?;
    let reason = called.headers.get(heddle_api::names::header::ERROR).map_or("", String::as_str);
    ensure!((called.status, reason) == seen, "{called:?}");
    if reason == "handshake-failed" {
        // The side that refused knows why.
        world.metric(
            "web-2",
            "heddle_mesh_connections_total{direction=\"inbound\",\
                               result=\"peer-certificate-refused\"}",
        )?;
    }
    let (took, ()) = eventually("it is well again", Duration::from_secs(10), || {
        ensure!(world.readyz("web-2")?.status == 200, "not ready");
        ensure!(world.call("other", "http://web-v2/", &[])?.status == 200, "not called");
        Ok(())
    })?;
    eprintln!("  well {took:.1?} after the clock is right");
    records.extend(traffic.finish()?);
    Account::new(records, world.ledger()?).expect_clean()
}
