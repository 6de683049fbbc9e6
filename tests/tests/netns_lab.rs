//! The lab itself: what pods see, what is published, and that nothing is ever left behind.
//!
//! Needs root and the mesh's programs (`make lab`), like everything in network namespaces.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like a test")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use heddle_resources::{Object, reader};
use heddle_tests::lab::{Lab, Layout, Options, PodStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const LAB: &str = env!("CARGO_BIN_EXE_heddle-lab");

/// Everything here is unmeshed unless it says otherwise.
const UNMESHED: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: default, labels: { heddle.io/inject: disabled } }
---
apiVersion: v1
kind: Pod
metadata: { name: client }
spec:
  containers:
    - name: shell
      command: [sleep, infinity]
      env:
        - { name: GREETING, value: hello }
        - { name: IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
";

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: { name: web }
spec:
  ipFamilyPolicy: RequireDualStack
  selector: { app: web }
  ports: [{ port: 80, targetPort: http }]
---
apiVersion: v1
kind: Pod
metadata: { name: web-1, labels: { app: web } }
spec:
  terminationGracePeriodSeconds: 10
  containers:
    - name: web
      command: [heddle-app, serve, --listen, '[::]:8080', --name, web-1]
      ports: [{ name: http, containerPort: 8080 }]
      readinessProbe: { tcpSocket: { port: http } }
";

fn manifests(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// A lab without a control plane: these tests are about the lab.
fn options() -> Options {
    let app = Path::new(LAB).with_file_name("heddle-app");
    Options { control_plane: false, programs: vec![app], ..Options::default() }
}

fn up(files: &[(&str, &str)]) -> (Lab, TempDir) {
    let dir = manifests(files);
    (Lab::up(dir.path(), &options()).unwrap(), dir)
}

fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut why = String::new();
        for _ in 0..1000 {
            match attempt() {
                Ok(value) => return value,
                Err(message) => why = message,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: {why}")
    })
}

fn shell(lab: &Lab, pod: &str, script: &str) -> String {
    let output = lab.exec(pod, &["sh", "-c", script]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if complaint.is_empty() { text } else { format!("{text}{complaint}") }
}

fn call(url: &str) -> String {
    format!("curl -sS -m 5 -o /dev/null -w '%{{http_code}} %{{remote_ip}}' {url}")
}

fn command(arguments: &[&str]) -> Output {
    Command::new(LAB).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Ready addresses of a Service, as published for the control plane.
fn ready_endpoints(dir: &Path) -> Vec<String> {
    let path = dir.join(".state/endpointslices.yaml");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let reading = reader::read("endpointslices.yaml", &text);
    assert_eq!(reading.errors, []);
    let mut ready = Vec::new();
    for located in reading.objects {
        let Object::EndpointSlice(slice) = located.object else { panic!("not a slice") };
        for endpoint in &slice.endpoints {
            if endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true)) {
                ready.extend(endpoint.addresses.iter().cloned());
            }
        }
    }
    ready
}

/// Processes, namespaces and files of a lab that should be gone.
fn leftovers(layout: &Layout) -> Vec<String> {
    let mut left = layout.existing_netns();
    for path in [layout.run(), layout.state(), layout.lock()] {
        if path.exists() {
            left.push(path.display().to_string());
        }
    }
    let run = layout.run().display().to_string();
    for process in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Ok(arguments) = fs::read(process.path().join("cmdline")) else { continue };
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        if arguments.contains(&run) || arguments.contains(&layout.netns_prefix()) {
            left.push(format!("process {:?}: {arguments}", process.file_name()));
        }
    }
    left
}

#[test]
fn an_unmeshed_pod_reaches_services_by_name_over_both_families() {
    let nobody = "{ apiVersion: v1, kind: Service, metadata: { name: nobody }, \
                  spec: { selector: { app: nobody }, ports: [{ port: 80 }] } }";
    let (lab, _dir) = up(&[("a.yaml", UNMESHED), ("web.yaml", WEB), ("nobody.yaml", nobody)]);
    for name in ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"] {
        assert!(
            shell(&lab, "client", &call(&format!("-4 http://{name}/"))).starts_with("200 10.96.")
        );
    }
    assert!(shell(&lab, "client", &call("-6 http://web/")).starts_with("200 fd00:96::"));
    // A pod of the Service reaches it, too, and may be sent to itself.
    assert!(shell(&lab, "web-1", &call("-4 http://web/")).starts_with("200 10.96."));
    assert!(shell(&lab, "web-1", &call("-6 http://web/")).starts_with("200 fd00:96::"));
    let address = lab.pod("web-1").unwrap().addresses[0];
    assert_eq!(
        shell(&lab, "client", &call(&format!("http://{address}:8080/"))),
        format!("200 {address}")
    );
    let refused = shell(&lab, "client", &call("http://nobody/"));
    assert!(refused.contains("Failed to connect"), "{refused}");
    let unknown = shell(&lab, "client", &call("http://nowhere.example/"));
    assert!(unknown.contains("Could not resolve host"), "{unknown}");
}

#[test]
fn a_command_in_a_pod_is_the_applications_and_has_no_privilege() {
    let (lab, _dir) = up(&[("a.yaml", UNMESHED)]);
    let output = lab.exec("client", &["sh", "-c", "id -u; id -G; hostname; exit 7"]).unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "65532\n65532\nclient\n");
    let address = lab.pod("client").unwrap().addresses[0].to_string();
    assert_eq!(shell(&lab, "client", "echo $GREETING $IP; pwd; touch here && echo writable"), {
        let work = lab.layout().run().join("pods/default.client/work/shell");
        format!("hello {address}\n{}\nwritable", work.display())
    });
    let status =
        shell(&lab, "client", "grep -E '^(CapEff|CapPrm|CapInh|NoNewPrivs)' /proc/self/status");
    for line in status.lines() {
        let value = line.split_whitespace().nth(1).unwrap();
        let want = if line.starts_with("NoNewPrivs") { "1" } else { "0000000000000000" };
        assert_eq!(value, want, "{line}");
    }
    // Standard input and output are the caller's.
    let mut child = lab.exec_command("client");
    let mut child = child.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"through").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"through");
    assert_eq!(lab.exec("client", &["no-such-program"]).unwrap().status.code(), Some(127));
    let error = lab.exec("nobody", &["true"]).unwrap();
    assert!(stderr(&error).contains("there are: default/client"), "{}", stderr(&error));
}

#[test]
fn an_endpoint_is_published_while_its_probe_passes() {
    let slow = WEB.replace(
        "readinessProbe: { tcpSocket: { port: http } }",
        "readinessProbe: { exec: { command: [test, -e, ready] }, failureThreshold: 1 }",
    );
    let dir = manifests(&[("a.yaml", UNMESHED), ("web.yaml", &slow)]);
    let short = Options { timeout: Duration::from_secs(1), ..options() };
    let error = Lab::up(dir.path(), &short).unwrap_err().to_string();
    assert!(error.contains("default/web-1: web is not ready"), "{error}");
    assert_eq!(leftovers(&Layout::of(dir.path()).unwrap()), [""; 0]);

    let command =
        slow.replace("[heddle-app,", "[sh, -c, 'touch ready; exec heddle-app \"$@\"', sh,");
    fs::write(dir.path().join("web.yaml"), command).unwrap();
    let lab = Lab::up(dir.path(), &options()).unwrap();
    assert_eq!(ready_endpoints(dir.path()).len(), 2);
    shell(&lab, "web-1", "rm ready");
    eventually("the endpoint goes", || match ready_endpoints(dir.path()).as_slice() {
        [] => Ok(()),
        some => Err(format!("{some:?}")),
    });
    eventually("the rules follow", || {
        let answer = shell(&lab, "client", &call("http://web/"));
        if answer.contains("Failed to connect") { Ok(()) } else { Err(answer) }
    });
    let message = lab.pod("web-1").unwrap().message.unwrap();
    assert!(message.contains("[\"test\", \"-e\", \"ready\"]"), "{message}");
}

#[test]
fn edits_take_effect_and_spoilt_files_keep_what_they_said() {
    let (lab, dir) = up(&[("a.yaml", UNMESHED), ("web.yaml", WEB)]);
    let path = dir.path().join("web.yaml");
    let resolves = |name: &str, want: bool| {
        eventually(&format!("{name} resolves: {want}"), || {
            let answer = shell(&lab, "client", &format!("getent hosts {name}"));
            if answer.is_empty() == want { Err(answer) } else { Ok(()) }
        });
    };
    // A plain save, in two steps.
    let renamed = WEB.replace("metadata: { name: web }", "metadata: { name: shop }");
    fs::write(&path, &renamed[..60]).unwrap();
    eventually("the half-written file is reported", || {
        let problems = lab.status().unwrap().problems;
        let is_named = |problem: &String| problem.contains("web.yaml:");
        if problems.iter().any(is_named) { Ok(()) } else { Err(format!("{problems:?}")) }
    });
    assert!(lab.pod("web-1").unwrap().ready);
    resolves("web", true);
    fs::write(&path, &renamed).unwrap();
    resolves("shop", true);
    resolves("web", false);
    assert_eq!(lab.status().unwrap().problems, [""; 0]);
    // An atomic rename.
    fs::write(dir.path().join("staged"), WEB).unwrap();
    let before = lab.pod("web-1").unwrap();
    fs::rename(dir.path().join("staged"), &path).unwrap();
    resolves("web", true);
    assert_eq!(lab.pod("web-1").unwrap().pids, before.pids, "an unchanged pod goes on");
    // A pod that goes, and one that is refused while its predecessor runs on.
    fs::write(&path, WEB.replace("command: [heddle-app", "tty: true\n      command: [heddle-app"))
        .unwrap();
    eventually("the refusal is reported", || {
        let problems = lab.status().unwrap().problems.join("\n");
        let want = "Pod default/web-1: spec.containers[0].tty: use `heddle-lab exec`";
        if problems.contains(want) { Ok(()) } else { Err(problems) }
    });
    assert_eq!(lab.pod("web-1").unwrap().pids, before.pids);
    fs::remove_file(&path).unwrap();
    eventually("the pod goes", || lab.pod("web-1").map_or(Ok(()), |pod| Err(format!("{pod:?}"))));
}

#[test]
fn a_stopped_pod_is_withdrawn_first_and_comes_back_as_another() {
    let lingering = WEB
        .replace("--name, web-1]", "--name, web-1, --linger-ms, '300']")
        .replace("readinessProbe", "lifecycle: { preStop: { exec: { command: [sh, -c, 'echo hook'] } } }\n      readinessProbe");
    let (lab, dir) = up(&[("a.yaml", UNMESHED), ("web.yaml", &lingering)]);
    let before = lab.pod("web-1").unwrap();
    let mut stop = Command::new(LAB)
        .arg("--dir")
        .arg(dir.path())
        .args(["stop", "web-1"])
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    eventually("it is withdrawn while it still runs", || {
        let pod = lab.pod("web-1").map_err(|error| error.to_string())?;
        let is_withdrawn = pod.terminating && ready_endpoints(dir.path()).is_empty();
        if is_withdrawn && !pod.pids.is_empty() { Ok(()) } else { Err(format!("{pod:?}")) }
    });
    assert!(stop.wait().unwrap().success());
    assert!(lab.pod("web-1").is_err());
    assert!(lab.logs("web-1", "web").unwrap().contains("hook"));
    assert!(!lab.layout().existing_netns().contains(&before.netns));
    lab.start("web-1").unwrap();
    let after = lab.pod("web-1").unwrap();
    assert!(after.uid != before.uid && after.addresses != before.addresses, "{after:?}");
    assert!(shell(&lab, "client", &call("http://web/")).starts_with("200"));
}

#[test]
fn a_pod_that_takes_its_time_to_stop_can_be_killed() {
    let hook = "lifecycle: { preStop: { sleep: { seconds: 3600 } } }\n      readinessProbe";
    let patient = WEB
        .replace("readinessProbe", hook)
        .replace("GracePeriodSeconds: 10", "GracePeriodSeconds: 3600");
    let (lab, dir) = up(&[("a.yaml", UNMESHED), ("web.yaml", &patient)]);
    let mut stop =
        Command::new(LAB).arg("--dir").arg(dir.path()).args(["stop", "web-1"]).spawn().unwrap();
    eventually("it is stopping", || {
        let pod = lab.pod("web-1").map_err(|error| error.to_string())?;
        if pod.terminating { Ok(()) } else { Err(format!("{pod:?}")) }
    });
    lab.kill("web-1", Signal::SIGKILL).unwrap();
    assert!(stop.wait().unwrap().success());
    assert!(lab.pod("web-1").is_err());
}

#[test]
fn a_killed_pod_is_noticed_and_keeps_its_place() {
    let (lab, dir) = up(&[("a.yaml", UNMESHED), ("web.yaml", WEB)]);
    let before = lab.pod("web-1").unwrap();
    lab.kill("web-1", Signal::SIGKILL).unwrap();
    let dead = eventually("it is noticed", || {
        let pod = lab.pod("web-1").unwrap();
        if pod.ready || !pod.pids.is_empty() { Err(format!("{pod:?}")) } else { Ok(pod) }
    });
    let message = dead.message.unwrap();
    assert!(message.contains("web was ended by signal 9"), "{message}");
    eventually("it is published", || match ready_endpoints(dir.path()).as_slice() {
        [] => Ok(()),
        some => Err(format!("{some:?}")),
    });
    lab.start("web-1").unwrap();
    let after = lab.pod("web-1").unwrap();
    assert_eq!((&after.uid, &after.addresses), (&before.uid, &before.addresses));
    assert_ne!(after.pids, before.pids);
    let error = lab.kill("web-1:proxy", Signal::SIGKILL).unwrap_err().to_string();
    assert!(error.contains("(containers: web)"), "{error}");
}

#[test]
fn a_deployments_new_pods_are_ready_before_its_old_ones_go() {
    let deployment = "
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      containers:
        - name: web
          command: [heddle-app, serve, --listen, '[::]:8080', --name, v1]
          readinessProbe: { tcpSocket: { port: 8080 } }
";
    let service = WEB.split("---").next().unwrap().replace("targetPort: http", "targetPort: 8080");
    let (lab, dir) =
        up(&[("a.yaml", UNMESHED), ("web.yaml", &service), ("deployment.yaml", deployment)]);
    let replicas = |lab: &Lab| {
        let pods = lab.status().unwrap().pods.into_iter();
        pods.filter(|pod| pod.name.starts_with("web-")).collect::<Vec<PodStatus>>()
    };
    let before: Vec<_> = replicas(&lab).into_iter().map(|pod| pod.name).collect();
    assert_eq!(before.len(), 2);
    fs::write(dir.path().join("deployment.yaml"), deployment.replace("v1]", "v2]")).unwrap();
    eventually("only new pods are left", || {
        assert!(!ready_endpoints(dir.path()).is_empty(), "never without an endpoint");
        let pods = replicas(&lab);
        let new = pods.iter().filter(|pod| pod.ready && !before.contains(&pod.name)).count();
        if pods.len() == 2 && new == 2 { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    fs::write(dir.path().join("deployment.yaml"), deployment.replace("replicas: 2", "replicas: 0"))
        .unwrap();
    eventually("scaled to nothing", || {
        let pods = replicas(&lab);
        if pods.is_empty() { Ok(()) } else { Err(format!("{pods:?}")) }
    });
}

#[test]
fn bad_manifests_are_refused_before_anything_is_made() {
    let dir = manifests(&[
        ("a.yaml", UNMESHED),
        (
            "bad.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: { name: bad }\nspec:\n  volumes: [{ name: v, emptyDir: {} }]\n  containers:\n    - { name: proxy, command: [x] }\n",
        ),
    ]);
    let error = Lab::up(dir.path(), &options()).unwrap_err().to_string();
    for part in ["bad.yaml:1: Pod default/bad: spec.volumes:", "spec.containers[0].name:"] {
        assert!(error.contains(part), "{error}");
    }
    fs::write(dir.path().join("bad.yaml"), "apiVersion: v1\nkind: Pood\n").unwrap();
    let error = Lab::up(dir.path(), &options()).unwrap_err().to_string();
    assert!(error.contains("bad.yaml:2") && error.contains("unknown kind"), "{error}");
    let refused = command(&["up", dir.path().to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(leftovers(&Layout::of(dir.path()).unwrap()), [""; 0]);
}

#[test]
fn an_up_that_cannot_begin_leaves_nothing_and_one_over_remains_is_refused() {
    let dir = manifests(&[("a.yaml", UNMESHED)]);
    let path = dir.path().to_str().unwrap();
    let nowhere = command(&["up", path, "--bin-dir", "/nonexistent"]);
    let want = "/nonexistent/heddle-lab: not found; build it";
    assert!(stderr(&nowhere).contains(want), "{}", stderr(&nowhere));
    assert_eq!(leftovers(&Layout::of(dir.path()).unwrap()), [""; 0]);
    // As after a restart of the machine, which empties /run.
    fs::create_dir(dir.path().join(".state")).unwrap();
    let over = command(&["up", path, "--no-control-plane"]);
    assert!(stderr(&over).contains("`heddle-lab down --dir"), "{}", stderr(&over));
    assert!(command(&["down", path]).status.success());
    let again = command(&["up", path, "--no-control-plane"]);
    assert!(again.status.success(), "{}", stderr(&again));
    assert!(command(&["down", path]).status.success());
    assert_eq!(leftovers(&Layout::of(dir.path()).unwrap()), [""; 0]);
}

#[test]
fn a_second_up_is_refused_and_harms_nothing() {
    let (lab, dir) = up(&[("a.yaml", UNMESHED)]);
    let before = lab.status().unwrap();
    let path = dir.path().to_str().unwrap();
    let second = command(&["up", path, "--no-control-plane"]);
    assert!(!second.status.success());
    assert!(stderr(&second).contains("`heddle-lab down --dir"), "{}", stderr(&second));
    assert!(Lab::up(dir.path(), &options()).is_err());
    assert_eq!(lab.status().unwrap(), before);
    lab.down().unwrap();
    assert_eq!(leftovers(&Layout::of(dir.path()).unwrap()), [""; 0]);
    // A second time there is nothing to do, which is no mistake.
    assert!(command(&["down", path]).status.success());
}

#[test]
fn down_leaves_nothing_after_the_node_process_was_killed() {
    let (lab, dir) = up(&[("a.yaml", UNMESHED), ("web.yaml", WEB)]);
    // A process that left its group, and one that a person runs there.
    shell(&lab, "client", "setsid -f sleep 1000 >/dev/null 2>&1");
    let mut guest = lab.spawn("client", &["sleep", "1000"]).unwrap();
    let node = Pid::from_raw(lab.status().unwrap().pid);
    kill(node, Signal::SIGKILL).unwrap();
    let layout = lab.layout().clone();
    let silent = lab.status().unwrap_err().to_string();
    assert!(silent.contains("`heddle-lab down --dir"), "{silent}");
    lab.down().unwrap();
    assert_eq!(leftovers(&layout), [""; 0]);
    assert!(!guest.wait().unwrap().success());
    drop(dir);
}

/// Starts `up` in the background, for a lab that never becomes ready.
fn start_up(dir: &Path) -> Child {
    let mut command = Command::new(LAB);
    command.arg("up").arg(dir).args(["--no-control-plane", "--timeout", "60s"]);
    command.stderr(Stdio::piped()).spawn().unwrap()
}

fn await_namespaces(layout: &Layout) {
    eventually("something has been made", || {
        if layout.existing_netns().is_empty() { Err("no namespace".into()) } else { Ok(()) }
    });
}

#[test]
fn down_leaves_nothing_after_up_was_killed_in_the_middle() {
    let never = UNMESHED.replace("env:", "readinessProbe: { tcpSocket: { port: 1 } }\n      env:");
    let dir = manifests(&[("a.yaml", &never)]);
    let layout = Layout::of(dir.path()).unwrap();
    let mut up = start_up(dir.path());
    await_namespaces(&layout);
    up.kill().unwrap();
    up.wait().unwrap();
    let down = command(&["down", dir.path().to_str().unwrap()]);
    assert!(down.status.success(), "{}", stderr(&down));
    assert_eq!(leftovers(&layout), [""; 0]);
}

#[test]
fn an_interrupted_up_removes_what_it_made() {
    let never = UNMESHED.replace("env:", "readinessProbe: { tcpSocket: { port: 1 } }\n      env:");
    let dir = manifests(&[("a.yaml", &never)]);
    let layout = Layout::of(dir.path()).unwrap();
    let up = start_up(dir.path());
    await_namespaces(&layout);
    let second = command(&["down", dir.path().to_str().unwrap()]);
    assert!(stderr(&second).contains("is at work"), "{}", stderr(&second));
    kill(Pid::from_raw(up.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = up.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(leftovers(&layout), [""; 0]);
}
