//! The story, in order. Each step does one thing to the mesh and notes when; what it did to the
//! clients is worked out afterwards from their records.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::clock::now_us;
use super::leftovers::Namespaces;
use super::screen::Screen;
use super::traffic::{Plan, Traffic};
use super::wire::Wire;
use super::{Options, Patience, serials};
use crate::app::{Called, Entry, parse_ledger};
use crate::capture::Seen;
use crate::lab::protocol::{Request, Target};
use crate::lab::{Lab, client};
use crate::load::Record;

/// The stretch of time a step took, in microseconds since the epoch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) from_us: u64,
    pub(super) to_us: u64,
}

impl Span {
    fn since(from_us: u64) -> Self {
        Self { from_us, to_us: now_us() }
    }

    /// Requests that began in it.
    pub(super) fn began<'a>(self, records: &'a [Record]) -> impl Iterator<Item = &'a Record> + 'a {
        let within = self.from_us..self.to_us;
        records.iter().filter(move |record| within.contains(&record.started_us))
    }

    /// Requests that were on their way at any moment of it.
    pub(super) fn in_flight<'a>(
        self,
        records: &'a [Record],
    ) -> impl Iterator<Item = &'a Record> + 'a {
        records.iter().filter(move |r| r.started_us <= self.to_us && r.ended_us >= self.from_us)
    }
}

/// Everything that was noted; nothing of it is a judgement.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Requests per second that the frontend was to send.
    pub(super) rate: f64,
    /// The frontend's steady load, in the order the requests ended.
    pub(super) records: Vec<Record>,
    /// Short bursts beside it, to make proxies open new connections.
    pub(super) bursts: Vec<Record>,
    /// What the servers entered in their ledgers.
    pub(super) entries: Vec<Entry>,
    pub(super) marks: Vec<(u64, &'static str)>,
    pub(super) split_before: Span,
    pub(super) edited_us: u64,
    pub(super) split_after: Span,
    pub(super) control_plane_down: Span,
    pub(super) renewal: Span,
    pub(super) proxies: u64,
    pub(super) certificates_renewed: u64,
    pub(super) pod_stop: Span,
    pub(super) pod_kill: Span,
    /// From before the first process was killed until the last was gone.
    pub(super) dying: Span,
    pub(super) denial: Span,
    pub(super) allowed_status: u16,
    pub(super) denied: Option<Called>,
    pub(super) wire: Seen,
    pub(super) wire_without_mesh: Seen,
    pub(super) namespaces: Namespaces,
}

pub(super) struct Story<'a> {
    pub(super) lab: &'a Lab,
    pub(super) options: &'a Options,
    /// The manifests that the mesh runs from.
    pub(super) dir: &'a Path,
    pub(super) screen: &'a Arc<Screen>,
    pub(super) patience: &'a Patience,
}

const FRONTEND: &str = "shop/frontend";
const INTRUDER: &str = "shop/intruder";
const STOPPED: &str = "shop/web-v1-a";
const KILLED: &str = "shop/web-v2-b";
const SERVERS: [&str; 4] = ["shop/web-v1-a", "shop/web-v1-b", "shop/web-v2-a", "shop/web-v2-b"];
const SERVICE: &str = "http://web.shop/";
/// What the application sends in a header and in bodies, followed by a random number.
const MARKER: &str = "heddle-demo-secret-";
/// The promise: how soon an edit is in force everywhere. Requests after that must follow it.
pub(super) const EDIT_TO_EFFECT: Duration = Duration::from_secs(1);
/// Before anything is measured: connections are opened, caches filled.
const WARM_UP: Duration = Duration::from_millis(500);
/// After a change, to see what it leads to.
const AFTERMATH: Duration = Duration::from_millis(2500);
const CONTROL_PLANE_AWAY: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(20);

impl Story<'_> {
    pub(super) fn tell(&self) -> anyhow::Result<Told> {
        let namespaces = Namespaces::of(self.lab)?;
        let rate = f64::from(self.options.rate);
        let mut told = Told { namespaces, rate, ..Told::default() };
        let marker = format!("{MARKER}{:016x}", rand::random::<u64>());
        let wire = Wire::watch(&self.lab.node_netns(), &marker)?;
        let plan = Plan {
            pod: FRONTEND,
            url: SERVICE.to_owned(),
            rate: self.options.rate,
            connections: 16,
            duration_ms: 0,
            marker: &marker,
        };
        self.say("frontend calls web: GET and POST, every request with its own id, no retries");
        let load = Traffic::start(self.lab, &plan, Some(Arc::clone(self.screen)))?;
        self.patience.wait(WARM_UP)?;
        self.edit_split(&mut told)?;
        self.lose_control_plane(&mut told)?;
        self.renew_certificates(&mut told, &marker)?;
        self.stop_pod(&mut told)?;
        self.kill_pod(&mut told)?;
        self.deny_intruder(&mut told)?;
        told.records = load.finish()?;
        told.wire = wire.finish()?;
        self.screen.settle();
        told.wire_without_mesh = self.watch_without_mesh(&marker)?;
        told.entries = self.read_ledgers()?;
        Ok(told)
    }

    fn edit_split(&self, told: &mut Told) -> anyhow::Result<()> {
        let stretch = self.options.requests_per_split.div_ceil(self.options.rate.max(1));
        let stretch = Duration::from_secs(stretch.into());
        self.say("split 90/10");
        let from_us = now_us();
        self.patience.wait(stretch)?;
        let path = self.dir.join("split.yaml");
        let edited = fs::read_to_string(&path)?
            .replace("weight: 90", "weight: 50")
            .replace("weight: 10", "weight: 50");
        told.split_before = Span::since(from_us);
        told.edited_us = self.mark(told, "split 50/50", "split.yaml is edited to 50/50");
        replace_file(&path, &edited)?;
        self.patience.wait(EDIT_TO_EFFECT)?;
        let from_us = now_us();
        self.patience.wait(stretch)?;
        told.split_after = Span::since(from_us);
        Ok(())
    }

    fn lose_control_plane(&self, told: &mut Told) -> anyhow::Result<()> {
        let from_us = self.mark(told, "control plane killed", "control plane: kill -9");
        self.signal(Target::ControlPlane, nix::libc::SIGKILL)?;
        self.patience.wait(CONTROL_PLANE_AWAY)?;
        self.lab.start("control-plane")?;
        self.patience.wait_until("the control plane ready again", LIMIT, || {
            Ok(self.lab.status()?.control_plane.ready.then_some(()))
        })?;
        told.control_plane_down = Span::since(from_us);
        self.mark(told, "control plane back", "control plane: back and ready");
        self.patience.wait(AFTERMATH)
    }

    /// A renewed certificate shows at the next new connection, so bursts ask for more connections
    /// than there are, and for twice as many each time.
    fn renew_certificates(&self, told: &mut Told, marker: &str) -> anyhow::Result<()> {
        let pods = self.lab.status()?.pods;
        let meshed = pods.iter().filter(|pod| pod.meshed).map(|pod| pod.key().to_string());
        let meshed: Vec<_> = meshed.collect();
        told.proxies = u64::try_from(meshed.len())?;
        let old = self.seen_with_bursts(told, marker, 8, &BTreeSet::new())?;
        let from_us = self.mark(told, "certificates renewed", "every proxy renews its certificate");
        self.order_renewals(&meshed)?;
        self.patience.wait(AFTERMATH)?;
        let mut connections = 24;
        loop {
            let seen = self.seen_with_bursts(told, marker, connections, &old)?;
            told.certificates_renewed = u64::try_from(seen.len())?;
            connections *= 2;
            if told.certificates_renewed >= told.proxies || connections > 400 {
                break;
            }
        }
        told.renewal = Span::since(from_us);
        Ok(())
    }

    /// The serials that peers have seen and that are not in `known`, after a burst from each client.
    fn seen_with_bursts(
        &self,
        told: &mut Told,
        marker: &str,
        connections: u32,
        known: &BTreeSet<String>,
    ) -> anyhow::Result<BTreeSet<String>> {
        for pod in [FRONTEND, INTRUDER] {
            let url = format!("{SERVICE}delay?ms=50");
            let plan = Plan { pod, url, rate: 0, connections, duration_ms: 100, marker };
            told.bursts.extend(Traffic::run(self.lab, &plan)?);
            self.patience.wait(Duration::ZERO)?;
        }
        Ok(serials::seen_by_peers(self.lab)?.difference(known).cloned().collect())
    }

    /// Orders each once: who asks for certificates too often is refused for a while. A proxy that has
    /// not found the restarted control plane yet cannot be told.
    fn order_renewals(&self, pods: &[String]) -> anyhow::Result<()> {
        let state = self.lab.layout().state();
        let program = self.lab.layout().bin().join("heddle-control-plane");
        for pod in pods {
            self.patience.wait_until(&format!("{pod} connected"), LIMIT, || {
                let mut command = std::process::Command::new(&program);
                command.args(["ctl", "--state-dir"]).arg(&state).args(["renew", "--pod", pod]);
                let output = command.output().context("run heddle-control-plane ctl renew")?;
                let complaint = String::from_utf8_lossy(&output.stderr);
                if !output.status.success() && !complaint.contains("no proxy") {
                    bail!("ctl renew {pod}: {}", complaint.trim());
                }
                Ok(output.status.success().then_some(()))
            })?;
        }
        Ok(())
    }

    fn stop_pod(&self, told: &mut Told) -> anyhow::Result<()> {
        let from_us = self.mark(told, "pod stopped", "web-v1-a is deleted, gracefully");
        self.lab.stop(STOPPED)?;
        self.patience.wait(AFTERMATH)?;
        self.lab.start(STOPPED)?;
        self.await_pod(STOPPED)?;
        self.mark(told, "pod back", "web-v1-a is back");
        self.patience.wait(AFTERMATH)?;
        told.pod_stop = Span::since(from_us);
        Ok(())
    }

    fn kill_pod(&self, told: &mut Told) -> anyhow::Result<()> {
        let pids: Vec<i32> = self.lab.pod(KILLED)?.pids.into_values().collect();
        let from_us = self.mark(told, "pod killed", "web-v2-b: kill -9, application and proxy");
        self.signal(Target::Pod(KILLED.parse()?), nix::libc::SIGKILL)?;
        self.patience.wait_until("the killed processes gone", LIMIT, || {
            Ok(pids.iter().all(|pid| is_gone(*pid)).then_some(()))
        })?;
        told.dying = Span::since(from_us);
        self.patience.wait(AFTERMATH)?;
        self.lab.start(KILLED)?;
        self.await_pod(KILLED)?;
        self.mark(told, "pod back", "web-v2-b is back");
        self.patience.wait(AFTERMATH)?;
        told.pod_kill = Span::since(from_us);
        Ok(())
    }

    fn deny_intruder(&self, told: &mut Told) -> anyhow::Result<()> {
        told.allowed_status = self.call_as_intruder()?.status;
        self.say(&format!("intruder calls web: {}", told.allowed_status));
        let from_us = self.mark(told, "policy", "AuthorizationPolicy: only the frontend may call");
        let policy = self.options.manifests.join("policies/only-frontend.yaml");
        let text =
            fs::read_to_string(&policy).with_context(|| format!("read {}", policy.display()))?;
        replace_file(&self.dir.join("only-frontend.yaml"), &text)?;
        let denied = self.patience.wait_until("the intruder denied", LIMIT, || {
            let called = self.call_as_intruder()?;
            Ok((called.status != told.allowed_status).then_some(called))
        })?;
        let reason = denied.headers.get(heddle_api::names::header::ERROR);
        let reason = reason.map_or("no reason", String::as_str);
        self.say(&format!("intruder calls web: {} ({reason})", denied.status));
        told.denied = Some(denied);
        self.patience.wait(AFTERMATH)?;
        told.denial = Span::since(from_us);
        Ok(())
    }

    /// The same client, server and marker outside the mesh: proof that the capture can see it.
    fn watch_without_mesh(&self, marker: &str) -> anyhow::Result<Seen> {
        self.say("the same outside the mesh, to see that the capture works");
        let wire = Wire::watch(&self.lab.node_netns(), marker)?;
        let plan = Plan {
            pod: "shop/plain-client",
            url: "http://plain-web.shop/".to_owned(),
            rate: 200,
            connections: 4,
            duration_ms: 1000,
            marker,
        };
        Traffic::run(self.lab, &plan)?;
        wire.finish()
    }

    fn call_as_intruder(&self) -> anyhow::Result<Called> {
        let output = self.lab.exec(INTRUDER, &["heddle-app", "call", SERVICE])?;
        if !output.status.success() {
            bail!("the intruder: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("the intruder's answer")
    }

    fn read_ledgers(&self) -> anyhow::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for pod in SERVERS {
            entries.extend(parse_ledger(&self.lab.logs(pod, "app")?));
        }
        Ok(entries)
    }

    fn await_pod(&self, pod: &str) -> anyhow::Result<()> {
        self.patience.wait_until(&format!("{pod} ready"), LIMIT, || {
            // Between its end and its new beginning there is no such pod.
            Ok(self.lab.pod(pod).is_ok_and(|pod| pod.ready).then_some(()))
        })
    }

    /// Without a process between us and the signal: the moment matters.
    fn signal(&self, target: Target, signal: i32) -> anyhow::Result<()> {
        client::request(self.lab.layout(), &Request::Signal { target, signal })?;
        Ok(())
    }

    /// Notes the moment before a step, for the picture and for whoever is watching.
    fn mark(&self, told: &mut Told, label: &'static str, text: &str) -> u64 {
        self.say(text);
        let at_us = now_us();
        told.marks.push((at_us, label));
        at_us
    }

    fn say(&self, text: &str) {
        self.screen.tell(text);
    }
}

/// As an editor or a deployment tool does: written beside it, then renamed over it.
fn replace_file(path: &Path, text: &str) -> anyhow::Result<()> {
    let name = path.file_name().context("a file has a name")?.to_string_lossy();
    let staged = path.with_file_name(format!(".{name}.new"));
    fs::write(&staged, text)?;
    fs::rename(&staged, path).with_context(|| format!("replace {}", path.display()))
}

/// Gone, or a zombie: its sockets are closed either way.
fn is_gone(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    // The state follows the name, which may itself hold parentheses.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}
