//! Meshed pods in the lab: who may do what in them, and what happens when parts of the mesh die.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like a test")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use heddle_api::names::PROXY_UID;
use heddle_tests::lab::{Lab, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const LAB: &str = env!("CARGO_BIN_EXE_heddle-lab");

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  selector: { app: web }
  ports: [{ name: http, port: 80, targetPort: 8080 }]
---
apiVersion: v1
kind: Pod
metadata: { name: web-1, namespace: shop, labels: { app: web } }
spec:
  serviceAccountName: web
  initContainers:
    - name: heddle-proxy
      env: [{ name: HEDDLE_ACCESS_LOG, value: json }]
    - name: heddle-init
      env: [{ name: HEDDLE_SKIP_INBOUND_PORTS, value: '8081' }]
  containers:
    - name: web
      command: [heddle-app, serve, --name, web-1]
      readinessProbe: { httpGet: { path: /, port: 8080 } }
---
apiVersion: v1
kind: Pod
metadata: { name: client, namespace: shop }
spec: { containers: [{ name: shell, command: [sleep, infinity] }] }
";

fn up() -> (Lab, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mesh.yaml"), MESH).unwrap();
    let app = Path::new(LAB).with_file_name("heddle-app");
    let options = Options { programs: vec![app], ..Options::default() };
    (Lab::up(dir.path(), &options).unwrap(), dir)
}

fn eventually(what: &str, mut attempt: impl FnMut() -> Result<(), String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut why = String::new();
        for _ in 0..1000 {
            match attempt() {
                Ok(()) => return,
                Err(message) => why = message,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: {why}")
    });
}

fn shell(lab: &Lab, script: &str) -> String {
    let output = lab.exec("shop/client", &["sh", "-c", script]).unwrap();
    let all = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&all).trim().to_owned()
}

const CALL: &str = "curl -sS -m 5 -o /dev/null -w '%{http_code}' http://web/";

#[test]
fn the_proxy_is_nobody_special_and_out_of_the_applications_reach() {
    let (lab, _dir) = up();
    assert_eq!(shell(&lab, CALL), "200");
    let proxy = lab.pod("shop/client").unwrap().proxy_pid().unwrap();
    let status = fs::read_to_string(format!("/proc/{proxy}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(field("Uid:"), PROXY_UID.to_string());
    assert_eq!(field("NoNewPrivs:"), "1");
    for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    let pod = lab.layout().run().join("pods/shop.client");
    for forbidden in [
        format!("cat {}/token", pod.display()),
        format!("ls {}/control", pod.display()),
        format!("cat /proc/{proxy}/environ"),
        format!("kill {proxy}"),
    ] {
        let answer = shell(&lab, &forbidden);
        assert!(
            answer.contains("ermission denied") || answer.contains("not permitted"),
            "{answer}"
        );
    }
}

#[test]
fn rules_and_sidecar_are_as_the_manifest_says() {
    let (lab, dir) = up();
    let init = Path::new(LAB).with_file_name("heddle-init");
    let check = |arguments: &[&str]| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &lab.netns("shop/web-1").unwrap()]).arg(&init);
        command.arg("--check").args(arguments).output().unwrap().status.success()
    };
    assert!(check(&["--skip-inbound-ports", "8081"]) && !check(&[]));
    assert_eq!(shell(&lab, CALL), "200");
    eventually("the access log is on", || {
        let log = lab.logs("shop/web-1", "proxy").unwrap();
        if log.contains("GET") { Ok(()) } else { Err(log) }
    });
    let published = fs::read_to_string(dir.path().join(".state/pods.yaml")).unwrap();
    assert_eq!(published.matches("name: heddle-proxy").count(), 2);
}

#[test]
fn parts_of_the_mesh_die_and_come_back() {
    let (lab, _dir) = up();
    let before = lab.pod("shop/client").unwrap();
    lab.kill("shop/client:proxy", Signal::SIGKILL).unwrap();
    eventually("the dead proxy is noticed", || {
        let pod = lab.pod("shop/client").unwrap();
        let message = pod.message.unwrap_or_default();
        if message.contains("proxy was ended by signal 9") { Ok(()) } else { Err(message) }
    });
    assert!(shell(&lab, CALL).contains("Failed to connect"), "never past the proxy");
    lab.start("shop/client:proxy").unwrap();
    assert_eq!(shell(&lab, CALL), "200");
    let after = lab.pod("shop/client").unwrap();
    assert_eq!(after.pids["shell"], before.pids["shell"], "the application goes on");

    lab.kill("control-plane", Signal::SIGKILL).unwrap();
    eventually("the dead control plane is noticed", || {
        let status = lab.status().unwrap().control_plane;
        if status.pid.is_none() && !status.ready { Ok(()) } else { Err(format!("{status:?}")) }
    });
    assert_eq!(shell(&lab, CALL), "200");
    lab.start("control-plane").unwrap();
    assert!(lab.status().unwrap().control_plane.ready);

    // Everything of a pod at once, proxy and application, and back in the right order.
    lab.kill("shop/web-1", Signal::SIGKILL).unwrap();
    eventually("all of the pod is gone", || {
        let pids = lab.pod("shop/web-1").unwrap().pids;
        if pids.is_empty() { Ok(()) } else { Err(format!("{pids:?}")) }
    });
    lab.start("shop/web-1").unwrap();
    eventually("it serves again", || {
        let answer = shell(&lab, CALL);
        if answer == "200" { Ok(()) } else { Err(answer) }
    });
    lab.stop("shop/web-1").unwrap();
    assert!(shell(&lab, CALL).starts_with("503"));
    lab.start("shop/web-1").unwrap();
    eventually("another pod of that name serves", || {
        let answer = shell(&lab, CALL);
        if answer == "200" { Ok(()) } else { Err(answer) }
    });
}

#[test]
fn nothing_is_left_of_a_mesh_whose_node_was_killed() {
    let (lab, _dir) = up();
    kill(Pid::from_raw(lab.status().unwrap().pid), Signal::SIGKILL).unwrap();
    let layout = lab.layout().clone();
    lab.down().unwrap();
    assert_eq!(layout.existing_netns(), [""; 0]);
    assert!(!layout.run().exists() && !layout.state().exists());
    for process in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        assert!(!arguments.contains(&*layout.run().to_string_lossy()), "{arguments}");
    }
}
