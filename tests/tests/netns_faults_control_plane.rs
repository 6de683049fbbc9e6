//! What clients notice when the control plane dies, hangs, forgets, or runs out of disk: nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use heddle_tests::faults::{Account, Cases, Plan, Traffic, Window, World, eventually};
use heddle_tests::lab::Options;
use nix::sys::signal::Signal;

const MESH: &str = include_str!("../data/faults.yaml");
/// Divided by a split over `web-v1` and `web-v2`.
const WEB: &str = "http://web/";
/// Of the same pods, undivided.
const ALL: &str = "http://all/";

/// How soon a change is in force once the control plane is there.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn clients_do_not_notice_what_happens_to_the_control_plane() {
    let world =
        World::up(&[("mesh.yaml", MESH), ("split.yaml", &split(50, 50))], Options::default())
            .unwrap();
    let mut cases = Cases::default();
    cases.run(&world, "killed", killed);
    cases.run(&world, "hung", hung);
    cases.run(&world, "returns with older state", returns_with_older_state);
    cases.run(&world, "proxy starts meanwhile", proxy_starts_meanwhile);
    cases.finish();
}

fn split(v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: heddle.io/v1alpha1\nkind: TrafficSplit\nmetadata: {{ name: web }}\n\
         spec:\n  service: web\n  backends:\n    - {{ service: web-v1, weight: {v1} }}\n    \
         - {{ service: web-v2, weight: {v2} }}\n"
    )
}

/// The split is changed and followed; afterwards it is as before.
fn follows_changes(world: &World) -> anyhow::Result<()> {
    for (v1, v2, pod) in [(100, 0, "web-1"), (0, 100, "web-2"), (50, 50, "")] {
        world.write("split.yaml", &split(v1, v2))?;
        eventually(&format!("{v1}/{v2} is in force"), SOON, || drawn_from(world, pod))?;
    }
    Ok(())
}

/// Some requests are all answered by that pod, or by more than one.
fn drawn_from(world: &World, pod: &str) -> anyhow::Result<()> {
    let plan = Plan { duration_ms: 100, ..Plan::steady("client", WEB) };
    let account = Account::new(Traffic::run(world, &plan)?, world.ledger()?);
    account.expect_clean()?;
    let pods = account.by_pod();
    let follows = if pod.is_empty() { pods.len() > 1 } else { pods.keys().eq([&pod]) };
    ensure!(follows, "{pods:?}");
    Ok(())
}

/// With load on: `fault`, new connections while it lasts, `heal`. Nobody notices any of it.
fn unnoticed(
    world: &World,
    fault: impl FnOnce() -> anyhow::Result<()>,
    heal: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let traffic = Traffic::start(world, &Plan::steady("client", WEB))?;
    fault()?;
    traffic.more(300)?;
    let burst = Plan::burst("client", "http://web/delay?ms=50");
    let mut records = Traffic::run(world, &burst)?;
    traffic.more(300)?;
    heal()?;
    traffic.more(100)?;
    records.extend(traffic.finish()?);
    let account = Account::new(records, world.ledger()?);
    account.expect_clean()
}

fn killed(world: &World) -> anyhow::Result<()> {
    let fault = || world.kill("control-plane");
    unnoticed(world, fault, || {
        world.lab().start("control-plane")?;
        world.await_streams().map(drop)
    })?;
    follows_changes(world)
}

fn hung(world: &World) -> anyhow::Result<()> {
    let fault = || world.signal("control-plane", Signal::SIGSTOP);
    unnoticed(world, fault, || world.signal("control-plane", Signal::SIGCONT))?;
    follows_changes(world)
}

/// A state directory from a backup: its versions are below what the proxies hold.
fn returns_with_older_state(world: &World) -> anyhow::Result<()> {
    let version = world.lab().layout().state().join("version");
    let backup = std::fs::read(&version)?;
    for _ in 0..2 {
        // Each restart begins far above the one before.
        restart(world, &[])?;
        world.await_streams()?;
    }
    let behind =
        || world.control_plane_metric("heddle_control_plane_streams_ended_total{reason=\"behind\"");
    let traffic = Traffic::start(world, &Plan::steady("client", WEB))?;
    restart(world, &[(&version, &backup)])?;
    eventually("proxies are told to try another", SOON, || {
        let told = behind()?;
        ensure!(told >= 3.0, "{told}");
        Ok(())
    })?;
    // What the older one says is not in force: the proxies keep what they hold.
    world.write("split.yaml", &split(100, 0))?;
    traffic.more(600)?;
    drawn_from(world, "")?;
    world.ctl(&["raise-epoch"])?;
    let (took, ()) = eventually("the split is in force", SOON * 3, || drawn_from(world, "web-1"))?;
    eprintln!("  in force {took:.1?} after raise-epoch");
    world.write("split.yaml", &split(50, 50))?;
    eventually("the split is as before", SOON, || drawn_from(world, ""))?;
    let account = Account::new(traffic.finish()?, world.ledger()?);
    account.expect_clean()
}

fn restart(world: &World, files: &[(&Path, &[u8])]) -> anyhow::Result<()> {
    world.kill("control-plane")?;
    for (path, content) in files {
        std::fs::write(path, content)?;
    }
    world.lab().start("control-plane")
}

/// A proxy that starts without a control plane is not ready, says why, and serves when it is back.
fn proxy_starts_meanwhile(world: &World) -> anyhow::Result<()> {
    let traffic = Traffic::start(world, &Plan::steady("client", ALL))?;
    world.kill("control-plane")?;
    let window = Window::open();
    world.kill("web-2:proxy")?;
    let window = window.close();
    let start = world.start_in_background("web-2:proxy");
    let why = eventually("it says what it waits for", SOON, || {
        let ready = world.readyz("web-2")?;
        let says_why = ready.body.contains("the control plane cannot be reached");
        ensure!(ready.status == 503 && says_why, "{ready:?}");
        Ok(ready.body)
    })?
    .1;
    eprintln!("  {}", why.trim().replace('\n', "; "));
    ensure!(why.contains("certificate") && why.contains("snapshot"), "{why}");
    traffic.more(300)?;
    world.lab().start("control-plane")?;
    let (took, ()) = eventually("it serves", SOON, || {
        ensure!(world.lab().pod("web-2")?.ready, "not ready");
        Ok(())
    })?;
    eprintln!("  ready {took:.1?} after the control plane");
    let _ = start.join();
    let answered_by = |pod: &str| -> anyhow::Result<()> {
        let plan = Plan { duration_ms: 100, ..Plan::steady("client", ALL) };
        let account = Account::new(Traffic::run(world, &plan)?, world.ledger()?);
        account.expect_clean()?;
        ensure!(account.by_pod().contains_key(pod), "{:?}", account.by_pod());
        Ok(())
    };
    eventually("it is called again", SOON, || answered_by("web-2"))?;
    let account = Account::new(traffic.finish()?, world.ledger()?);
    account.expect_only_within(window, 12)
}
