//! Whom a proxy believes: a control plane of another authority is refused, its workloads are refused,
//! and what nobody can read changes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use heddle_api::names;
use heddle_api::proto::v1::{RejectionReason, ResourceType};
use heddle_tests::faults::{
    Account, Cases, Plan, Rogue, Scripted, Traffic, Window, World, eventually,
};
use heddle_tests::lab::Options;

const MESH: &str = include_str!("../data/faults.yaml");
const ALL: &str = "http://all/";
const SOON: Duration = Duration::from_secs(5);

#[test]
fn only_the_meshs_own_authority_is_believed() {
    let world = World::up(&[("mesh.yaml", MESH)], Options::default()).unwrap();
    let mut cases = Cases::default();
    cases.run(&world, "two authorities", two_authorities);
    cases.run(&world, "another authority in its place", in_its_place);
    cases.run(&world, "malformed resources", malformed);
    cases.finish();
}

/// A pod of the same directory whose proxy was told to follow the other control plane.
fn stray(rogue: &Rogue) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: stray }}\n\
         spec: {{ selector: {{ app: stray }}, ports: [{{ name: http, port: 80, targetPort: 8080 }}] }}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {{ name: stray, labels: {{ app: stray }} }}\nspec:\n  \
         initContainers:\n    - name: heddle-proxy\n      env:\n        \
         - {{ name: HEDDLE_CONTROL_PLANE, value: \"{}\" }}\n        \
         - {{ name: HEDDLE_TRUST_BUNDLE_FILE, value: \"{}\" }}\n  \
         containers:\n    - name: app\n      \
         command: [heddle-app, serve, --name, stray, --pod, stray, --ledger, \"-\"]\n      \
         readinessProbe: {{ httpGet: {{ path: /, port: 8080 }} }}\n",
        rogue.address,
        rogue.trust_bundle().display(),
    )
}

fn refused(world: &World, from: &str, url: &str) -> anyhow::Result<()> {
    let called = world.call(from, url, &[])?;
    let reason = called.headers.get(names::header::ERROR).map_or("", String::as_str);
    let refused = ["peer-certificate-refused", "handshake-failed"].contains(&reason);
    ensure!(called.status == 503 && refused, "{from} to {url}: {called:?}");
    eprintln!("  {from} to {url}: {reason}");
    Ok(())
}

fn two_authorities(world: &World) -> anyhow::Result<()> {
    let traffic = Traffic::start(world, &Plan::steady("client", ALL))?;
    let rogue = Rogue::start(world, 25112)?;
    world.write("stray.yaml", &stray(&rogue))?;
    eventually("the stray pod is ready", SOON * 2, || {
        let pod = world.lab().pod("stray")?;
        ensure!(pod.ready, "{:?}", pod.message);
        Ok(())
    })?;
    eventually("the stray pod is called and refused", SOON, || {
        refused(world, "client", "http://stray/?id=forbidden")
    })?;
    refused(world, "stray", "http://all/?id=forbidden")?;
    for result in ["ok", "peer-certificate-refused"] {
        let series =
            format!("heddle_mesh_connections_total{{direction=\"outbound\",result=\"{result}\"}}");
        let counted = world.metric("client", &series)?;
        ensure!(counted > 0.0, "{series}: {counted}");
    }
    let ledger = world.ledger()?;
    let account = Account::new(traffic.finish()?, world.ledger()?);
    world.remove("stray.yaml");
    eventually("the stray pod is gone", SOON * 2, || {
        ensure!(world.lab().pod("stray").is_err(), "it is there");
        Ok(())
    })?;
    ensure!(
        ledger.iter().all(|entry| entry.server != "stray" || entry.id == "-"),
        "it was reached"
    );
    account.expect_clean()
}

/// Proxies that run hold on to what they have; one that starts stays unready and says why.
fn in_its_place(world: &World) -> anyhow::Result<()> {
    let traffic = Traffic::start(world, &Plan::steady("client", ALL))?;
    world.kill("control-plane")?;
    let rogue = Rogue::start(world, names::CONTROL_PLANE_PORT)?;
    // It would deny everything, if anybody listened.
    world.write(
        "deny.yaml",
        "apiVersion: heddle.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: { name: deny }\n\
         spec:\n  targetRef: { kind: Pods, selector: { app: web } }\n  \
         rules: [{ action: Deny, from: [{ namespace: default }] }]\n",
    )?;
    traffic.more(900)?;
    let burst = Plan::burst("client", "http://all/delay?ms=20");
    let records = Traffic::run(world, &burst)?;
    let window = Window::open();
    world.kill("web-2:proxy")?;
    let window = window.close();
    let start = world.start_in_background("web-2:proxy");
    let (_, why) = eventually("a proxy that starts says whom it refuses", SOON, || {
        let ready = world.readyz("web-2")?;
        ensure!(ready.status == 503 && ready.body.contains("chains to no root"), "{ready:?}");
        Ok(ready.body)
    })?;
    eprintln!("  {}", why.trim().replace('\n', "; "));
    let away = world.metric("client", "heddle_config_age_seconds")?;
    ensure!(away > 1.0, "the proxy follows it: {away}");
    world.remove("deny.yaml");
    drop(rogue);
    world.lab().start("control-plane")?;
    let _ = start.join();
    world.await_streams()?;
    Account::new(records, world.ledger()?).expect_clean()?;
    Account::new(traffic.finish()?, world.ledger()?).expect_only_within(window, 12)
}

/// Every Service and every set of endpoints that the proxies hold comes again, as noise.
fn malformed(world: &World) -> anyhow::Result<()> {
    const SPOILT: &[ResourceType] = &[ResourceType::Service, ResourceType::Endpoints];
    let traffic = Traffic::start(world, &Plan::steady("client", ALL))?;
    let before = world.metric("client", "heddle_resource_rejections_total")?;
    world.kill("control-plane")?;
    let scripted = Scripted::start(world, SPOILT)?;
    let mut rejected = BTreeSet::new();
    eventually("the noise is rejected", SOON * 2, || {
        for (pod, report) in scripted.verdicts.try_iter() {
            let Some(why) = &report.rejection else { continue };
            ensure!(why.reason() == RejectionReason::Malformed, "{pod}: {report:?}");
            rejected.insert((pod, report.r#type, report.name));
        }
        let is_whole =
            |kind| rejected.iter().any(|(pod, found, _)| pod == "client" && *found == kind);
        ensure!(SPOILT.iter().all(|kind| is_whole(*kind as i32)), "{rejected:?}");
        Ok(())
    })?;
    eprintln!("  {} rejections", rejected.len());
    let counted = world.metric("client", "heddle_resource_rejections_total")? - before;
    ensure!(counted >= 2.0, "{counted} counted");
    traffic.more(300)?;
    let mut records = Traffic::run(world, &Plan::burst("client", "http://all/delay?ms=20"))?;
    drop(scripted);
    world.lab().start("control-plane")?;
    world.await_streams()?;
    traffic.more(100)?;
    records.extend(traffic.finish()?);
    Account::new(records, world.ledger()?).expect_clean()
}
