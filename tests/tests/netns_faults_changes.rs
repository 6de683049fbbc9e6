//! What clients notice of changes: all of one, or nothing of it; and what a proxy does when what it
//! stands on is taken away.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use heddle_tests::faults::{Account, Cases, Plan, Traffic, World, eventually};
use heddle_tests::lab::Options;

const MESH: &str = include_str!("../data/faults.yaml");
const MORE: &str = include_str!("../data/faults-changes.yaml");
const SPLIT: &str = "apiVersion: heddle.io/v1alpha1
kind: TrafficSplit
metadata: { name: web }
spec:
  service: web
  backends:
    - { service: web-v1, weight: 70 }
    - { service: web-v2, weight: 30 }
";
const SOON: Duration = Duration::from_secs(5);
/// The redirection is looked at every 10 s, and a second time before it is called lost.
const CANARY: Duration = Duration::from_secs(35);

#[test]
fn changes_are_seen_whole_or_not_at_all() {
    let files = [("mesh.yaml", MESH), ("more.yaml", MORE), ("split.yaml", SPLIT)];
    let world = World::up(&files, Options::default()).unwrap();
    let mut cases = Cases::default();
    cases.run(&world, "one file, one change", one_file_one_change);
    cases.run(&world, "split bound", split_bound);
    cases.run(&world, "pass-through denied", passthrough_denied);
    cases.run(&world, "rules lost", rules_lost);
    cases.finish();
}

/// A Service without a selector and its endpoints.
fn backend(name: &str, pod: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\n\
         spec: {{ ports: [{{ name: http, port: 80, targetPort: 8080 }}] }}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: {name}-1, labels: {{ kubernetes.io/service-name: {name} }} }}\n\
         addressType: IPv4\nports: [{{ name: http, port: 8080 }}]\nendpoints:\n  \
         - {{ addresses: [{address}], conditions: {{ ready: true }}, \
         targetRef: {{ kind: Pod, name: {pod}, namespace: default }} }}\n---\n"
    )
}

/// A split and its backends, with the file's number in their names every other time. Whatever the
/// number, the weights and the endpoints of one file together lead to `web-1` alone; those of two
/// files lead to `web-2`, or nowhere.
fn generation(number: usize, addresses: &[String; 2]) -> String {
    let suffix = number / 4;
    let (first, second) = (format!("a-{suffix}"), format!("b-{suffix}"));
    let (called, left) =
        if number.is_multiple_of(2) { (&first, &second) } else { (&second, &first) };
    backend(called, "web-1", &addresses[0])
        + &backend(left, "web-2", &addresses[1])
        + &format!(
            "apiVersion: heddle.io/v1alpha1\nkind: TrafficSplit\nmetadata: {{ name: moving }}\n\
             spec:\n  service: moving\n  backends:\n    - {{ service: {called}, weight: 100 }}\n    \
             - {{ service: {left}, weight: 0 }}\n"
        )
}

fn one_file_one_change(world: &World) -> anyhow::Result<()> {
    let address = |pod: &str| anyhow::Ok(world.lab().pod(pod)?.addresses[0].to_string());
    let addresses = [address("web-1")?, address("web-2")?];
    world.write("moving.yaml", &generation(0, &addresses))?;
    eventually("the split is in force", SOON, || {
        let called = world.call("client", "http://moving/", &[])?;
        ensure!(called.status == 200, "{called:?}");
        Ok(())
    })?;
    let plan = Plan { rate: 1000, connections: 8, ..Plan::steady("client", "http://moving/") };
    let traffic = Traffic::start(world, &plan)?;
    let mut versions = std::collections::BTreeSet::new();
    for number in 1..=24 {
        world.write("moving.yaml", &generation(number, &addresses))?;
        traffic.more(200)?;
        versions.insert(world.metric("client", "heddle_snapshot_version")?.to_string());
    }
    let account = Account::new(traffic.finish()?, world.ledger()?);
    world.remove("moving.yaml");
    account.expect_clean()?;
    ensure!(versions.len() > 12, "few of the changes were in force: {versions:?}");
    ensure!(account.by_pod().keys().eq([&"web-1"]), "{:?}", account.by_pod());
    Ok(())
}

/// Two callers, each with a proxy of its own: the share of each is its weight, within what chance
/// allows in 9,999 of 10,000 runs.
fn split_bound(world: &World) -> anyhow::Result<()> {
    const Z: f64 = 3.89;
    const WEIGHT: f64 = 0.3;
    let plans = ["client", "other"].map(|pod| Plan {
        rate: 0,
        connections: 8,
        duration_ms: 3000,
        ..Plan::steady(pod, "http://web/")
    });
    let traffic = [Traffic::start(world, &plans[0])?, Traffic::start(world, &plans[1])?];
    for (traffic, plan) in traffic.into_iter().zip(plans) {
        let account = Account::new(traffic.finish()?, world.ledger()?);
        account.expect_clean()?;
        let count = |pod: &str| *account.by_pod().get(pod).unwrap_or(&0);
        let (one, two) =
            (f64::from(u32::try_from(count("web-1"))?), f64::from(u32::try_from(count("web-2"))?));
        let all = one + two;
        let bound = Z * (WEIGHT * (1.0 - WEIGHT) / all).sqrt();
        eprintln!("  {}: {:.4} of {all}, {WEIGHT} ± {bound:.4}", plan.pod, two / all);
        ensure!(all > 1000.0 && (two / all - WEIGHT).abs() <= bound, "{one} {two}");
    }
    Ok(())
}

/// A server that nobody in the mesh owns: it runs on the router.
struct Outside(Child);

impl Outside {
    fn start(world: &World, address: &str) -> anyhow::Result<Self> {
        let program = world.lab().layout().bin().join("heddle-app");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &world.lab().node_netns()]).arg(program);
        command.args(["serve", "--listen", address, "--name", "outside"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(command.spawn().context("start the server outside")?))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn passthrough_denied(world: &World) -> anyhow::Result<()> {
    let address = "10.244.0.1:9090";
    let _outside = Outside::start(world, address)?;
    let url = format!("http://{address}/");
    let answers = |status: u16, reason: &str| {
        let what = format!("{status} from outside");
        eventually(&what, SOON, || {
            let called = world.call("client", &url, &[])?;
            let why = called.headers.get(heddle_api::names::header::ERROR);
            ensure!(
                (called.status, why.map_or("", String::as_str)) == (status, reason),
                "{called:?}"
            );
            Ok(())
        })
    };
    answers(200, "")?;
    let traffic = Traffic::start(world, &Plan::steady("client", "http://all/"))?;
    world.write(
        "settings.yaml",
        "apiVersion: heddle.io/v1alpha1\nkind: Mesh\nmetadata: { name: default }\n\
         spec: { outboundPassthrough: Deny }\n",
    )?;
    answers(403, "passthrough-denied")?;
    traffic.more(100)?;
    world.remove("settings.yaml");
    answers(200, "")?;
    Account::new(traffic.finish()?, world.ledger()?).expect_clean()
}

/// Somebody removes the redirection of a running pod.
fn rules_lost(world: &World) -> anyhow::Result<()> {
    let traffic = Traffic::start(world, &Plan::steady("client", "http://all/"))?;
    let netns = world.lab().netns("spare")?;
    world.in_netns(&netns, &["nft", "delete table inet heddle"])?;
    let (took, why) = eventually("the proxy says that its rules are gone", CANARY, || {
        let ready = world.readyz("spare")?;
        ensure!(ready.status == 503, "{ready:?}");
        Ok(ready.body)
    })?;
    eprintln!("  {took:.1?}: {}", why.trim());
    ensure!(why.contains("redirection"), "{why}");
    eventually("its pod is not ready", SOON, || {
        ensure!(!world.lab().pod("spare")?.ready, "ready");
        Ok(())
    })?;
    let init = world.lab().layout().bin().join(heddle_api::names::INIT_CONTAINER);
    world.in_netns(&netns, &[&init.display().to_string()])?;
    let (took, ()) = eventually("it is ready again", CANARY, || {
        ensure!(world.lab().pod("spare")?.ready, "not ready");
        Ok(())
    })?;
    eprintln!("  ready {took:.1?} after the rules are back");
    Account::new(traffic.finish()?, world.ledger()?).expect_clean()
}
