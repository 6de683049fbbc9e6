//! One short pass of a real cluster: it comes up, runs pods in both address families on both nodes,
//! survives the loss of its parts, and leaves nothing, also when it is killed in the middle.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use heddle_tests::cluster::layout::Layout;
use heddle_tests::cluster::up::Options;
use heddle_tests::cluster::{Cluster, compact, mesh_images, process};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

const WEB: &str = include_str!("../data/cluster/web.yaml");

/// What is left of a cluster, found by looking at the machine.
fn left_over(layout: &Layout) -> Vec<String> {
    let mut left = Vec::new();
    let dir = layout.dir();
    if dir.exists() || layout.lock().exists() {
        left.push(format!("files in {}", dir.display()));
    }
    let groups = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let groups = groups.map(|entry| entry.path()).chain([Path::new("/sys/fs/cgroup").into()]);
    left.extend(
        groups
            .map(|hierarchy| hierarchy.join(layout.cgroup()))
            .filter(|group| group.exists())
            .map(|group| format!("control group {}", group.display())),
    );
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines =
        processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    let dir = dir.display().to_string();
    left.extend(lines.filter(|line| line.contains(&dir)).map(|line| format!("process {line}")));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| line.contains(&dir)).map(str::to_owned));
    left
}

fn host_rules() -> String {
    let look = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        String::from_utf8_lossy(&output.map(|it| it.stdout).unwrap_or_default()).into_owned()
    };
    // Links of other tests come and go; the rules and routes of the host do not.
    [look("nft", &["list", "ruleset"]), look("ip", &["route"]), look("ip", &["rule"])].concat()
}

async fn call(cluster: &Cluster, url: &str) -> anyhow::Result<String> {
    let exec = ["exec", "deploy/web", "--", "heddle-app", "call", url];
    cluster.ask(&exec).await
}

#[tokio::test]
async fn a_cluster_runs_and_leaves_nothing() -> anyhow::Result<()> {
    let rules = host_rules();
    let options = Options { nodes: 2, images: mesh_images()?, patience: PATIENCE };
    let cluster = Cluster::make("short", &options).await?;
    let layout = cluster.layout().expect("it is one of ours").clone();
    cluster.apply(WEB).await?;
    cluster.ask(&["rollout", "status", "deploy/web", "--timeout=60s"]).await?;
    let nodes = cluster.ask(&["get", "pods", "-o=jsonpath={.items[*].spec.nodeName}"]).await?;
    assert!(nodes.contains("node1") && nodes.contains("node2"), "{nodes}");
    // By name, and through both addresses of the Service.
    let addresses = ["get", "service", "web", "-o=jsonpath={.spec.clusterIPs[*]}"];
    let addresses = cluster.ask(&addresses).await?;
    let (v4, v6) = addresses.split_once(' ').context("one address")?;
    for host in ["web.default", v4, &format!("[{v6}]")] {
        let answer = call(&cluster, &format!("http://{host}/")).await?;
        assert!(answer.contains("\"status\":200"), "{host}: {answer}");
    }
    assert_no_translation(&cluster).await?;
    // Parts are lost and come back; etcd forgets.
    compact(&layout).await?;
    for program in ["kube-apiserver", "kubelet-node1"] {
        process::stop(&layout, program, Signal::SIGKILL).await?;
        process::restart(&layout, program)?;
    }
    let begun = Instant::now();
    while call(&cluster, "http://web/").await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "the cluster did not recover");
        sleep(Duration::from_millis(200)).await;
    }
    drop(cluster);
    assert_eq!(left_over(&layout), [""; 0]);
    assert_eq!(host_rules(), rules);
    Ok(())
}

/// Pods see each other's own addresses, whatever node they are on.
async fn assert_no_translation(cluster: &Cluster) -> anyhow::Result<()> {
    let pods = "-o=jsonpath={range .items[*]}{.metadata.name} {.status.podIPs[*].ip}{\"\\n\"}{end}";
    let pods = cluster.ask(&["get", "pods", "-l", "app=web", pods]).await?;
    let pods: Vec<Vec<_>> = pods.lines().map(|line| line.split(' ').collect()).collect();
    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        for (family, host) in [(1, to[1].to_owned()), (2, format!("[{}]", to[2]))] {
            let url = format!("http://{host}:8080/");
            let answer = cluster.ask(&["exec", from[0], "--", "heddle-app", "call", &url]).await?;
            assert!(answer.contains(from[family]), "{} from {from:?}: {answer}", to[0]);
        }
    }
    Ok(())
}

#[tokio::test]
async fn killed_in_the_middle_it_is_removed_all_the_same() {
    let layout = Layout::new(&format!("killed-{}", std::process::id())).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_heddle-cluster"));
    let cluster = |command: &str| {
        let mut built = Command::new(program);
        built.args(["--name", layout.name(), command]).stderr(Stdio::null()).stdout(Stdio::null());
        built
    };
    // At different stages: before the first process, with the API server, with the kubelet.
    for awaited in ["processes", "logs/kube-apiserver.log", "processes/kubelet-node1.pid"] {
        let mut up = cluster("up").spawn().unwrap();
        let begun = Instant::now();
        while !layout.dir().join(awaited).exists() {
            assert!(begun.elapsed() < PATIENCE, "no {awaited}");
            sleep(Duration::from_millis(5)).await;
        }
        up.kill().unwrap();
        up.wait().unwrap();
        assert!(cluster("down").status().unwrap().success());
        assert_eq!(left_over(&layout), [""; 0], "killed at {awaited}");
    }
}

const PATIENCE: Duration = Duration::from_secs(180);
