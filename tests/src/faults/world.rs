//! A lab with a few manifests, and the questions that tests ask of it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use heddle_api::names;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::eventually;
use crate::app::{Called, Entry, parse_ledger};
use crate::lab::protocol::Request;
use crate::lab::{Lab, Options, client};

/// How long the mesh may take for what it does by itself.
const LIMIT: Duration = Duration::from_secs(20);

/// A mesh and its manifests.
#[derive(Debug)]
pub struct World {
    lab: Lab,
    // After the lab: it goes down before its files go.
    dir: TempDir,
}

impl World {
    /// Starts a lab of these files; returns when everything is ready.
    ///
    /// # Errors
    /// What is not ready, and why.
    pub fn up(files: &[(&str, &str)], options: Options) -> anyhow::Result<Self> {
        Self::up_in(tempfile::Builder::new().prefix("heddle-faults-").tempdir()?, files, options)
    }

    /// The same in a directory that the test has prepared.
    ///
    /// # Errors
    /// What is not ready, and why.
    pub fn up_in(
        dir: TempDir,
        files: &[(&str, &str)],
        mut options: Options,
    ) -> anyhow::Result<Self> {
        for (name, text) in files {
            fs::write(dir.path().join(name), text)?;
        }
        options.programs.push(beside_tests("heddle-app")?);
        options.timeout = Duration::from_secs(90);
        let lab = Lab::up(dir.path(), &options)?;
        Ok(Self { lab, dir })
    }

    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes or replaces a manifest in one step, as a deployment tool does.
    ///
    /// # Errors
    /// As the file system's.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let staged = self.dir().join(format!(".{name}.new"));
        fs::write(&staged, text)?;
        fs::rename(&staged, self.dir().join(name)).with_context(|| format!("replace {name}"))
    }

    /// Removes a manifest, if it is there.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.dir().join(name));
    }

    /// Signals a process without another process between us and it: the moment matters. `target`
    /// is `control-plane`, a pod, or `pod:container`.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn signal(&self, target: &str, signal: Signal) -> anyhow::Result<()> {
        let target = target.parse()?;
        client::request(self.lab.layout(), &Request::Signal { target, signal: signal as i32 })?;
        Ok(())
    }

    /// Kills with SIGKILL, and returns when what was killed is known to be gone.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&self, target: &str) -> anyhow::Result<()> {
        self.signal(target, Signal::SIGKILL)?;
        let gone = || {
            let runs = match target.split_once(':') {
                Some((pod, container)) => self.lab.pod(pod)?.pids.contains_key(container),
                None if target == "control-plane" => self.lab.status()?.control_plane.pid.is_some(),
                None => !self.lab.pod(target)?.pids.is_empty(),
            };
            ensure!(!runs, "it runs");
            Ok(())
        };
        eventually(&format!("the end of {target}"), LIMIT, gone).map(drop)
    }

    /// Starts what will not be ready yet: waiting for that is the thread's business.
    #[must_use]
    pub fn start_in_background(&self, target: &str) -> JoinHandle<()> {
        let program = self.lab.layout().bin().join("heddle-lab");
        let (dir, target) = (self.dir().to_owned(), target.to_owned());
        std::thread::spawn(move || {
            let mut command = Command::new(program);
            // Its outcome is seen in the pod's.
            let _ = command.arg("--dir").arg(dir).args(["start", &target]).output();
        })
    }

    /// Makes the mesh whole: everything runs, is ready, and every proxy follows the control plane.
    ///
    /// # Errors
    /// What is not, and why.
    pub fn mend(&self) -> anyhow::Result<()> {
        // It may be stopped, not dead; then the rest is a start of what has ended.
        let _ = self.signal("control-plane", Signal::SIGCONT);
        if self.lab.status()?.control_plane.pid.is_none() {
            self.lab.start("control-plane")?;
        }
        for pod in self.lab.status()?.pods {
            if pod.pids.len() < pod.containers.len() {
                self.lab.start(&pod.key().to_string())?;
            }
        }
        self.await_ready()?;
        self.await_streams().map(drop)
    }

    /// Waits until every pod is ready.
    ///
    /// # Errors
    /// Which are not, and why.
    pub fn await_ready(&self) -> anyhow::Result<()> {
        let ready = || {
            let status = self.lab.status()?;
            ensure!(status.control_plane.ready, "{:?}", status.control_plane.message);
            for pod in status.pods {
                ensure!(pod.ready, "{}: {:?}", pod.key(), pod.message);
            }
            Ok(())
        };
        eventually("the mesh is whole", LIMIT, ready).map(drop)
    }

    /// Waits until every meshed pod has a discovery stream, and says how long that took.
    ///
    /// # Errors
    /// How many have.
    pub fn await_streams(&self) -> anyhow::Result<Duration> {
        let meshed = self.lab.status()?.pods.iter().filter(|pod| pod.meshed).count();
        let streams = || {
            let dump: serde_json::Value =
                serde_json::from_str(&self.ctl(&["dump", "subscribers"])?)?;
            let list = dump.as_array().or_else(|| dump["subscribers"].as_array());
            let open = list.context("a list of subscribers")?.len();
            ensure!(open == meshed, "{open} of {meshed}");
            Ok(())
        };
        Ok(eventually("every proxy has a stream", LIMIT, streams)?.0)
    }

    /// Gives the control plane an order.
    ///
    /// # Errors
    /// Its own.
    pub fn ctl(&self, verb: &[&str]) -> anyhow::Result<String> {
        let layout = self.lab.layout();
        let mut command = Command::new(layout.bin().join("heddle-control-plane"));
        command.args(["ctl", "--state-dir"]).arg(layout.state()).args(verb);
        let output = command.output().context("run heddle-control-plane ctl")?;
        if !output.status.success() {
            bail!("ctl {verb:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// One request from a pod. An error means that no whole answer came.
    ///
    /// # Errors
    /// Why none came.
    pub fn call(&self, pod: &str, url: &str, more: &[&str]) -> anyhow::Result<Called> {
        let mut argv = vec!["heddle-app", "call", url];
        argv.extend(more);
        let output = self.lab.exec(pod, &argv)?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("the answer")
    }

    /// What a pod's proxy says of its readiness.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn readyz(&self, pod: &str) -> anyhow::Result<Called> {
        self.call(pod, &format!("http://127.0.0.1:{}/readyz", names::METRICS_PORT), &[])
    }

    /// One number of a pod's proxy: the first series that begins with `series`.
    ///
    /// # Errors
    /// When there is none.
    pub fn metric(&self, pod: &str, series: &str) -> anyhow::Result<f64> {
        let url = format!("http://127.0.0.1:{}/metrics", names::METRICS_PORT);
        let text = self.call(pod, &url, &[])?.body;
        find_metric(&text, series).with_context(|| format!("{pod}: no {series}"))
    }

    /// One number of the control plane.
    ///
    /// # Errors
    /// When there is none.
    pub fn control_plane_metric(&self, series: &str) -> anyhow::Result<f64> {
        let url = format!("http://127.0.0.1:{}/metrics", names::CONTROL_PLANE_ADMIN_PORT);
        let netns = self.lab.layout().control_plane_netns();
        let output = Command::new("ip")
            .args(["netns", "exec", &netns, "curl", "-sS", "-m", "5", &url])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        find_metric(&text, series).with_context(|| format!("no {series} in {text}"))
    }

    /// What the servers entered: of every pod whose container `app` keeps a ledger.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn ledger(&self) -> anyhow::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for pod in self.lab.status()?.pods {
            let text = self.lab.logs(&pod.key().to_string(), "app")?;
            entries.extend(parse_ledger(&text));
        }
        Ok(entries)
    }

    /// Runs a program in a pod's network namespace as root: what a node's owner could do.
    ///
    /// # Errors
    /// What it complains about.
    pub fn in_netns(&self, netns: &str, argv: &[&str]) -> anyhow::Result<String> {
        let output = Command::new("ip").args(["netns", "exec", netns]).args(argv).output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{argv:?}: {}", complaint.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The last lines of every proxy and of the control plane, for whoever reads a failure.
    #[must_use]
    pub fn last_words(&self) -> String {
        let Ok(status) = self.lab.status() else { return "the lab is gone".into() };
        let mut words = String::new();
        for pod in status.pods.iter().filter(|pod| pod.meshed) {
            let name = pod.key().to_string();
            let log = self.lab.logs(&name, "proxy").unwrap_or_default();
            words.push_str(&format!("--- proxy of {name}\n{}", tail(&log)));
        }
        let log = fs::read_to_string(self.lab.layout().control_plane_log()).unwrap_or_default();
        words.push_str(&format!("--- control plane\n{}", tail(&log)));
        words
    }
}

fn find_metric(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(series))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(8)..];
    last.iter().map(|line| format!("{line}\n")).collect()
}

/// A program of this workspace: test programs lie one directory below it.
fn beside_tests(name: &str) -> anyhow::Result<std::path::PathBuf> {
    let program = std::env::current_exe()?;
    let dir = program.parent().and_then(Path::parent).context("no build directory")?;
    let path = dir.join(name);
    ensure!(path.is_file(), "{} is not built: run `make lab`", path.display());
    Ok(path)
}
