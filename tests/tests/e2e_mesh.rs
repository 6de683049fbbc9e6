//! What an operator and an SRE see of the mesh on a real cluster: installed by its charts without a
//! value, the demo application in a labelled namespace, a split that holds its shares and changes
//! without a failed request, and pods that come and go as Kubernetes makes them.
//!
//! Runs under `make e2e`: it needs a cluster with our images, given by the environment.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use heddle_tests::cluster::Cluster;
use heddle_tests::e2e::{Ledgers, Load, Plan, SPLIT, Space, Watch, binomial_range, install};
use heddle_tests::faults::{Account, Window, now_us};
use heddle_tests::load::{Outcome, Record};
use tokio::time::sleep;

/// The shares of so many requests are judged.
const ENOUGH: usize = 20_000;
/// One run in a million is called wrong although it is not.
const CONFIDENCE: f64 = 1.0 - 1e-6;
/// How long a changed split may take to be what every request follows.
const EFFECTIVE: Duration = Duration::from_secs(2);
const CONTROL: &str = include_str!("../data/e2e/control.yaml");
const WORKLOADS: &str = include_str!("../data/e2e/workloads.yaml");

fn share_of_v2(records: &[&Record]) -> (u64, u64) {
    let count = |name: &str| {
        let is_it = |record: &&&Record| matches!(&record.outcome, Outcome::Ok { server, .. } if server == name);
        records.iter().filter(is_it).count() as u64
    };
    let (v1, v2) = (count("web-v1"), count("web-v2"));
    (v2, v1 + v2)
}

#[track_caller]
fn check_share(records: &[&Record], expected: f64) {
    let (v2, all) = share_of_v2(records);
    let (low, high) = binomial_range(all, expected, CONFIDENCE);
    eprintln!("{v2} of {all} went to v2; {expected} of them is {low} to {high}");
    assert!((low..=high).contains(&v2), "{v2} of {all}, not within {low} to {high}");
}

#[tokio::test]
async fn a_split_holds_its_shares_and_changes_without_a_failed_request() -> anyhow::Result<()> {
    let cluster = Cluster::given()?;
    install(&cluster).await?;
    let shop = Space::meshed(&cluster, "shop").await?;
    shop.deploy_shop().await?;
    let ledgers = Ledgers::follow(shop, "app=web");
    let plan = Plan { rate: 400, connections: 16, ..Plan::of("http://web/", 80) };
    // What passes in the clear anywhere is found only if it would be: the control.
    let watch = match cluster.layout() {
        Some(layout) => Some(Watch::start(layout, &plan.marker).await?),
        None => None,
    };
    let load = Load::start(shop, "load", &plan).await?;
    shop.apply(SPLIT).await?;
    shop.wait_until_programmed("web").await?;
    let programmed_us = now_us();
    let wanted_s = ENOUGH.div_ceil(plan.rate as usize) as u64 + 3;
    sleep(Duration::from_secs(wanted_s)).await;
    let before_edit_us = now_us();
    shop.set_weights(50, 50).await?;
    let edited_us = now_us();
    shop.wait_until_programmed("web").await?;
    let records = load.finish().await?;
    let entries = ledgers.finish(&records).await;
    let account = Account::new(records, entries);
    account.expect_clean()?;
    let effective_us = edited_us + u64::try_from(EFFECTIVE.as_micros())?;
    let records = || account.records.iter();
    let before: Vec<_> = records()
        .filter(|r| (programmed_us..before_edit_us).contains(&r.started_us))
        .filter(|r| r.ended_us < before_edit_us)
        .collect();
    ensure!(before.len() >= ENOUGH, "only {} requests before the edit", before.len());
    check_share(&before, 0.05);
    check_share(&records().filter(|r| r.started_us > effective_us).collect::<Vec<_>>(), 0.5);
    if let Some(watch) = watch {
        let seen = watch.finish().await?;
        ensure!(seen.plaintext_markers == 0, "in the clear between pods: {seen:?}");
        ensure!(seen.tls_packets > ENOUGH as u64, "that was not the traffic: {seen:?}");
    }
    shop.remove().await
}

#[tokio::test]
async fn the_unmeshed_are_refused_and_their_words_can_be_read() -> anyhow::Result<()> {
    let cluster = Cluster::given()?;
    install(&cluster).await?;
    let strict = Space::meshed(&cluster, "strict").await?;
    strict.deploy_shop().await?;
    let plain = Space::plain(&cluster, "plain").await?;
    plain.apply(CONTROL).await?;
    plain.rolled_out(&["deploy/web", "deploy/client"]).await?;
    let call = |url: &str| {
        let url = url.to_owned();
        async move {
            let exec = ["exec", "deploy/client", "--", "heddle-app", "call", &url];
            plain.ask(&[&exec[..], &["--header", "x: heddle-plain-marker"]].concat()).await
        }
    };
    // The control: a call between two pods outside the mesh succeeds, and is read by the capture
    // that finds nothing between meshed ones.
    let watch = match cluster.layout() {
        Some(layout) => Some(Watch::start(layout, "heddle-plain-marker").await?),
        None => None,
    };
    call("http://web/").await?;
    if let Some(watch) = watch {
        let seen = watch.finish().await?;
        ensure!(seen.plaintext_markers > 0, "the capture sees nothing: {seen:?}");
    }
    for host in ["web.strict", "web-v1.strict"] {
        let answer = call(&format!("http://{host}/")).await;
        ensure!(answer.is_err(), "{host} has answered somebody without an identity: {answer:?}");
    }
    // By a pod's own address, past every Service.
    let path = "-o=jsonpath={.items[*].status.podIP}";
    let addresses = strict.ask(&["get", "pods", "-l", "app=web", path]).await?;
    for address in addresses.split_whitespace() {
        let answer = call(&format!("http://{address}:8080/")).await;
        ensure!(answer.is_err(), "{address} has answered: {answer:?}");
    }
    // What the kubelet and an operator do goes on working.
    let pod = strict.ask(&["exec", "deploy/frontend", "--", "heddle-app", "call", "http://web/"]);
    ensure!(pod.await?.contains("\"status\":200"), "a meshed caller is refused");
    strict.ask(&["logs", "deploy/web-v1", "-c", "app", "--tail=1"]).await?;
    plain.remove().await?;
    strict.remove().await
}

#[tokio::test]
async fn pods_come_and_go_without_a_failed_request() -> anyhow::Result<()> {
    let cluster = Cluster::given()?;
    install(&cluster).await?;
    let space = Space::meshed(&cluster, "comings").await?;
    space.deploy_shop().await?;
    space.ask(&["scale", "deploy/web-v1", "--replicas=3"]).await?;
    space.rolled_out(&["deploy/web-v1"]).await?;
    let ledgers = Ledgers::follow(space, "app=web");
    let load = Load::start(space, "load", &Plan::of("http://web-v1/", 60)).await?;
    space.ask(&["rollout", "restart", "deploy/web-v1"]).await?;
    space.rolled_out(&["deploy/web-v1"]).await?;
    for replicas in ["1", "5", "1"] {
        let replicas = format!("--replicas={replicas}");
        space.ask(&["scale", "deploy/web-v1", &replicas]).await?;
        space.rolled_out(&["deploy/web-v1"]).await?;
    }
    let changed_us = now_us();
    let records = load.finish().await?;
    let last_us = records.iter().map(|record| record.started_us).max().unwrap_or(0);
    ensure!(last_us > changed_us, "the load ended before the changes did");
    let entries = ledgers.finish(&records).await;
    Account::new(records, entries).expect_clean()?;
    space.remove().await
}

#[tokio::test]
async fn jobs_complete_and_stateful_sets_are_called_by_name() -> anyhow::Result<()> {
    let cluster = Cluster::given()?;
    install(&cluster).await?;
    let space = Space::meshed(&cluster, "kinds").await?;
    space.deploy_shop().await?;
    space.apply(WORKLOADS).await?;
    space.rolled_out(&["statefulset/store"]).await?;
    // The job's calls are to pods by name; it succeeds only when each was answered.
    space.ask(&["wait", "--for=condition=Complete", "job/once", "--timeout=60s"]).await?;
    let name = "-o=jsonpath={.items[*].metadata.ownerReferences[0].name}";
    let selector = ["get", "jobs", "-l", "app=each-minute", name];
    let made = space.until("a job of the CronJob", &selector, |jobs| !jobs.is_empty()).await?;
    ensure!(made.contains("each-minute"), "made by {made}");
    let wait = ["wait", "--for=condition=Complete", "job", "-l", "app=each-minute"];
    space.ask(&[&wait[..], &["--timeout=60s"]].concat()).await?;
    // Every container of theirs has ended, the sidecar too.
    let phases = "-o=jsonpath={.items[*].status.phase}";
    let phases = space.ask(&["get", "pods", "-l", "kind=job", phases]).await?;
    ensure!(phases.split_whitespace().all(|phase| phase == "Succeeded"), "{phases}");
    let running = "-o=jsonpath={.items[*].status.initContainerStatuses[*].state.running}";
    let running = space.ask(&["get", "pods", "-l", "kind=job", running]).await?;
    ensure!(running.trim().is_empty(), "still running: {running}");
    for url in ["http://store-0.store:8080/", "http://store-1.store:8080/"] {
        let exec = ["exec", "deploy/frontend", "--", "heddle-app", "call", url];
        let answer = space.ask(&exec).await?;
        ensure!(answer.contains("\"status\":200"), "{url}: {answer}");
    }
    space.remove().await
}

#[tokio::test]
async fn what_is_torn_away_costs_at_most_what_was_in_flight() -> anyhow::Result<()> {
    let cluster = Cluster::given()?;
    install(&cluster).await?;
    let space = Space::meshed(&cluster, "torn").await?;
    space.deploy_shop().await?;
    let ledgers = Ledgers::follow(space, "app=web");
    let plan = Plan::of("http://web-v1/", 45);
    let load = Load::start(space, "load", &plan).await?;
    let victims = ["get", "pods", "-l", "version=v1", "-o=jsonpath={.items[*].metadata.name}"];
    let pods = space.ask(&victims).await?;
    let mut pods = pods.split_whitespace();
    let window = Window::open();
    let forced = pods.next().context("no pod")?;
    space.ask(&["delete", "pod", forced, "--force", "--grace-period=0"]).await?;
    space.rolled_out(&["deploy/web-v1"]).await?;
    if let Some(layout) = cluster.layout() {
        let killed = pods.next().context("no second pod")?;
        kill_proxy(layout, &space, killed)?;
        let restarts = "-o=jsonpath={.status.initContainerStatuses[?(@.name==\"heddle-proxy\")]\
                        .restartCount}";
        let restarted = ["get", "pod", killed, restarts];
        space.until("a new proxy", &restarted, |count| count == "1").await?;
        space.rolled_out(&["deploy/web-v1"]).await?;
    }
    let window = window.close();
    let records = load.finish().await?;
    let entries = ledgers.finish(&records).await;
    let account = Account::new(records, entries);
    // Twice, what its connections carried.
    account.expect_only_within(window, 2 * plan.connections as usize)?;
    space.remove().await
}

/// Kills the proxy of one pod, which is found among all processes by its pod's host name.
fn kill_proxy(
    layout: &heddle_tests::cluster::layout::Layout,
    space: &Space<'_>,
    pod: &str,
) -> anyhow::Result<()> {
    use heddle_tests::cluster::process::members;
    let is_it = |pid: &i32| {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&read("environ")).into_owned();
        let is_in = environment.split('\0').any(|one| one == format!("HOSTNAME={pod}"));
        is_in && String::from_utf8_lossy(&read("cmdline")).contains("heddle-proxy")
    };
    let found: Vec<_> = members(layout)?.into_iter().filter(is_it).collect();
    let [pid] = found[..] else {
        anyhow::bail!("the proxy of {}/{pod}: {found:?}", space.name());
    };
    let pid = nix::unistd::Pid::from_raw(pid);
    Ok(nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?)
}
