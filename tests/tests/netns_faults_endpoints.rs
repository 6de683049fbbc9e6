//! What clients see of servers that vanish, hang, or stop answering: an answer from another one, or
//! an error that says why. Never half an answer that looks whole, never a request done twice.

use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use heddle_tests::app::{Called, Entry};
use heddle_tests::faults::{Account, Cases, Plan, Traffic, Window, World, eventually, pause};
use heddle_tests::lab::Options;
use heddle_tests::load::Outcome;
use nix::sys::signal::Signal;

const MESH: &str = include_str!("../data/faults.yaml");
const FAULTY: &str = include_str!("../data/faults-endpoints.yaml");
/// A Service of two pods that are well.
const ALL: &str = "http://all/";
const SOON: Duration = Duration::from_secs(5);

#[test]
fn servers_that_fail_cost_nothing_that_could_be_saved() {
    let files = [("mesh.yaml", MESH), ("faulty.yaml", FAULTY)];
    let world = World::up(&files, Options::default()).unwrap();
    let mut cases = Cases::default();
    cases.run(&world, "churn of connections", churn);
    cases.run(&world, "vanishes at any moment", vanishes);
    cases.run(&world, "killed in the middle of an answer", killed_mid_answer);
    cases.run(&world, "retries never double a POST", retries_never_double);
    cases.run(&world, "accepts and never answers", never_answers);
    cases.run(&world, "proxy killed and restarted", proxy_killed);
    cases.run(&world, "stopped under load", stopped);
    cases.run(&world, "half-open", half_open);
    cases.run(&world, "what the churn leaves", after_churn);
    cases.finish();
}

fn reason(called: &Called) -> &str {
    called.headers.get(heddle_api::names::header::ERROR).map_or("", String::as_str)
}

/// Every moment a server can vanish at, either framing, either way to end a connection.
fn vanishes(world: &World) -> anyhow::Result<()> {
    let traffic = Traffic::start(world, &Plan::steady("client", ALL))?;
    let upload = "x".repeat(50_000);
    for moment in ["reading", "before", "head", "body"] {
        for framing in ["length", "chunked"] {
            for end in ["fin", "rst"] {
                let path = format!("/vanish/{moment}/{framing}/{end}");
                let url = format!("http://bad{path}");
                for more in [vec![], vec!["--method", "POST", "--body", &upload]] {
                    let seen = world.call("client", &url, &more);
                    let case = format!("{path} {more:.2?}");
                    if moment == "reading" || moment == "before" {
                        let called = seen.with_context(|| case.clone())?;
                        let told = (called.status, reason(&called));
                        ensure!(told == (502, "connection-lost"), "{case}: {called:?}");
                    } else {
                        let broken =
                            seen.as_ref().is_err_and(|e| e.to_string().contains("broke off"));
                        ensure!(broken, "{case}: {seen:.300?}");
                    }
                }
            }
        }
    }
    Account::new(traffic.finish()?, world.ledger()?).expect_clean()
}

/// A pod dies, application and proxy, or its application alone, while it is answering and while
/// answers are awaited.
fn killed_mid_answer(world: &World) -> anyhow::Result<()> {
    for target in ["web-2", "web-2:app"] {
        let traffic = Traffic::start(world, &Plan::steady("client", ALL))?;
        let begun = entered(world)?;
        let stream = spawn_call(world, "GET", "http://web-v2/stream?interval_ms=20&id=stream")?;
        let awaited = spawn_call(world, "POST", "http://web-v2/delay?ms=9000&id=awaited")?;
        eventually("the server has taken them", SOON, || {
            ensure!(entered(world)? >= begun + 2, "it has not");
            Ok(())
        })?;
        let window = Window::open();
        world.signal(target, Signal::SIGKILL)?;
        let stream = String::from_utf8(stream.wait_with_output()?.stderr)?;
        ensure!(stream.contains("broke off"), "{target}: a stream ended: {stream}");
        let awaited = String::from_utf8(awaited.wait_with_output()?.stdout)?;
        ensure!(awaited.contains("connection-lost"), "{target}: an answer: {awaited}");
        let window = window.close();
        traffic.more(150)?;
        world.mend()?;
        traffic.more(150)?;
        let account = Account::new(traffic.finish()?, world.ledger()?);
        eprintln!("  {target}: {:?}", account.failure_kinds());
        account.expect_only_within(window, 12)?;
    }
    Ok(())
}

/// How many of the calls below the servers have entered.
fn entered(world: &World) -> anyhow::Result<usize> {
    let named = |entry: &Entry| ["stream", "awaited"].contains(&entry.id.as_str());
    Ok(world.ledger()?.iter().filter(|entry| named(entry)).count())
}

fn spawn_call(world: &World, method: &str, url: &str) -> anyhow::Result<Child> {
    world.lab().spawn("client", &["heddle-app", "call", "--method", method, url])
}

fn retries_never_double(world: &World) -> anyhow::Result<()> {
    let url = "http://mixed/vanish/before/length/rst";
    let plan = Plan { duration_ms: 2000, ..Plan::steady("client", url) };
    let records = Traffic::run(world, &plan)?;
    let account = Account::new(records, world.ledger()?).with_repeats();
    account.expect_nothing_impossible()?;
    let mut failed = 0;
    for record in account.failures() {
        let entries = account.entries(&record.id);
        ensure!(record.method == "POST" && entries.len() == 1, "{record:?} {entries:?}");
        let lost = Outcome::Status { status: 502, reason: "connection-lost".into() };
        ensure!(record.outcome == lost, "{record:?}");
        failed += 1;
    }
    let repeated = account.records.iter().filter(|r| account.entries(&r.id).len() > 1).count();
    eprintln!("  {failed} POSTs failed, {repeated} GETs were repeated");
    ensure!(failed > 20 && repeated > 20, "{failed} {repeated}");
    Ok(())
}

/// Timeouts of a policy end the wait; GETs are answered by the other server.
fn never_answers(world: &World) -> anyhow::Result<()> {
    let called = world.call("client", "http://bad/vanish/never/length/fin", &[])?;
    ensure!((called.status, reason(&called)) == (504, "request-timeout"), "{called:?}");

    let url = "http://hasty/vanish/never/length/fin";
    let plan = Plan { duration_ms: 2000, rate: 60, connections: 32, ..Plan::steady("client", url) };
    let account = Account::new(Traffic::run(world, &plan)?, world.ledger()?).with_repeats();
    account.expect_nothing_impossible()?;
    for record in account.failures() {
        let entries = account.entries(&record.id);
        let slow = Outcome::Status { status: 504, reason: "per-try-timeout".into() };
        ensure!(record.method == "POST" && record.outcome == slow, "{record:?}");
        ensure!(entries.len() <= 1, "{record:?} {entries:?}");
    }
    let slowest = account.records.iter().map(|r| r.ended_us - r.started_us).max().unwrap_or(0);
    ensure!(slowest < 1_500_000, "{slowest} us");
    let repeated = account.records.iter().filter(|r| account.entries(&r.id).len() > 1).count();
    ensure!(repeated > 5, "{repeated} GETs met the silent server");
    Ok(())
}

/// The server's proxy, then the client's own.
fn proxy_killed(world: &World) -> anyhow::Result<()> {
    let plan = Plan::steady("client", ALL);
    let traffic = Traffic::start(world, &plan)?;
    let window = Window::open();
    world.kill("web-2:proxy")?;
    let window = window.close();
    // The rules stand and nobody listens: nothing gets past the missing proxy.
    let address = world.lab().pod("web-2")?.addresses[0];
    let past = world.call("web-1", &format!("http://{address}:8080/"), &[]);
    ensure!(past.as_ref().map_or(true, |called| called.status >= 500), "{past:?}");
    traffic.more(150)?;
    let (took, ()) = eventually("it is ready again", SOON, || world.lab().start("web-2:proxy"))?;
    eprintln!("  ready again after {took:.1?}");
    traffic.more(150)?;
    let account = Account::new(traffic.finish()?, world.ledger()?);
    eprintln!("  server's: {:?}", account.failure_kinds());
    account.expect_only_within(window, 12)?;

    let traffic = Traffic::start(world, &plan)?;
    let window = Window::open();
    world.kill("client:proxy")?;
    world.lab().start("client:proxy")?;
    let window = window.close();
    traffic.more(300)?;
    let account = Account::new(traffic.finish()?, world.ledger()?);
    eprintln!("  client's: {:?}", account.failure_kinds().len());
    account.expect_only_within(window, usize::MAX)
}

/// An application that exits at once on SIGTERM, with requests in it at that moment; GETs and POSTs;
/// no request is lost.
fn stopped(world: &World) -> anyhow::Result<()> {
    let slow = "http://all/delay?ms=150";
    let slow = Plan { rate: 150, connections: 40, ..Plan::steady("client", slow) };
    let slow = Traffic::start(world, &slow)?;
    let traffic = Traffic::start(world, &Plan { rate: 500, ..Plan::steady("client", ALL) })?;
    for pod in ["web-2", "web-1"] {
        world.lab().stop(pod)?;
        traffic.more(200)?;
        world.lab().start(pod)?;
        traffic.more(200)?;
    }
    let mut records = traffic.finish()?;
    records.extend(slow.finish()?);
    Account::new(records, world.ledger()?).expect_clean()
}

/// Packets from and to a pod vanish, without a word from anybody. What was sent on connections that
/// existed ends when the kernel has tried for 20 s; everything else goes to the other pod.
fn half_open(world: &World) -> anyhow::Result<()> {
    let node = world.lab().node_netns();
    let address = world.lab().pod("web-2")?.addresses[0];
    let plan = Plan { connections: 40, timeout_ms: 40_000, ..Plan::steady("client", ALL) };
    let traffic = Traffic::start(world, &plan)?;
    let rules = format!(
        "add table inet faults; add chain inet faults cut \
         {{ type filter hook forward priority -50; policy accept; }}; \
         add rule inet faults cut ip daddr {address} drop; \
         add rule inet faults cut ip saddr {address} drop"
    );
    let window = Window::open();
    world.in_netns(&node, &["nft", &rules])?;
    pause(Duration::from_secs(21));
    let window = window.close();
    world.in_netns(&node, &["nft", "delete table inet faults"])?;
    traffic.more(300)?;
    let account = Account::new(traffic.finish()?, world.ledger()?);
    eprintln!("  {:?}", account.failure_kinds());
    account.expect_only_within(window, 40)?;
    let slowest = account.records.iter().map(|r| r.ended_us - r.started_us).max().unwrap_or(0);
    ensure!(slowest < 23_000_000, "a request hung for {slowest} us");
    Ok(())
}

/// What a thousand connections took, and what a thousand more add to it.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: f64,
    resident: f64,
}

const CHURNED: [&str; 2] = ["other", "good-1"];

fn held(world: &World, pod: &str) -> anyhow::Result<Held> {
    Ok(Held {
        descriptors: world.metric(pod, "process_open_fds")?,
        resident: world.metric(pod, "process_resident_memory_bytes")?,
    })
}

/// A thousand connections at once, again and again: all served, and the later ones find room where
/// the first were.
fn churn(world: &World) -> anyhow::Result<()> {
    let many = Plan { connections: 1000, duration_ms: 500, ..Plan::burst("other", "http://good/") };
    let mut first = None;
    for _ in 0..4 {
        Account::new(Traffic::run(world, &many)?, world.ledger()?).expect_clean()?;
        let now = [held(world, CHURNED[0])?, held(world, CHURNED[1])?];
        eprintln!("  {now:?}");
        for (now, first) in now.iter().zip(first.get_or_insert(now)) {
            ensure!(now.resident < first.resident * 1.1, "grown: {first:?} {now:?}");
        }
    }
    Ok(())
}

/// Idle connections are kept for a minute; then the descriptors of the thousand are free.
fn after_churn(world: &World) -> anyhow::Result<()> {
    for pod in CHURNED {
        eventually("descriptors are free again", Duration::from_secs(70), || {
            let held = held(world, pod)?;
            ensure!(held.descriptors < 60.0, "{pod}: {held:?}");
            let open = world.metric(pod, "heddle_connections_open")?;
            ensure!(open <= 20.0, "{pod}: {open} connections");
            Ok(())
        })?;
    }
    Ok(())
}
