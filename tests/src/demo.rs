//! `make demo`: a mesh under live traffic, everything that can happen to it, and a count of what
//! its clients noticed.
//!
//! The story is told once, in [`story`]; what it promises is in [`judge`]. Every number is measured:
//! by the client's record of each request, the servers' ledgers, the peers' logs and the wire.
//! Nothing here knows how the mesh works.

mod clock;
mod judge;
mod ledgers;
mod leftovers;
mod report;
mod screen;
mod serials;
pub(crate) mod statistics;
mod story;
mod timeline;
mod traffic;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::lab::{Lab, Layout};
use leftovers::Machine;
use report::Report;
use screen::Screen;
use story::Story;

/// What to run, and where the results go.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The shop's manifests.
    #[arg(long, default_value = "examples/shop")]
    pub manifests: PathBuf,
    /// Where report, picture and the running copy of the manifests go.
    #[arg(long, default_value = "target/demo")]
    pub out: PathBuf,
    /// Requests per second.
    #[arg(long, default_value_t = 1000)]
    pub rate: u32,
    /// Requests to see under each of the two splits.
    #[arg(long, default_value_t = 11_000)]
    pub requests_per_split: u32,
}

/// Waits that end early when somebody asks the demo to end.
#[derive(Debug)]
pub struct Patience {
    interrupted: Receiver<()>,
}

impl Patience {
    pub fn new(interrupted: Receiver<()>) -> Self {
        Self { interrupted }
    }

    fn wait(&self, duration: Duration) -> anyhow::Result<()> {
        match self.interrupted.recv_timeout(duration) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => bail!("interrupted"),
        }
    }

    /// Asks every few milliseconds until `found`, and says what was awaited when it never is.
    fn wait_until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut found: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let end_us = clock::now_us() + clock::micros(limit);
        loop {
            if let Some(found) = found()? {
                return Ok(found);
            }
            if clock::now_us() > end_us {
                bail!("not within {} s: {what}", limit.as_secs());
            }
            self.wait(POLL)?;
        }
    }
}

const POLL: Duration = Duration::from_millis(5);

/// Runs the demo; true when everything was as promised. Nothing of it is left either way, but for
/// what it wrote to `out`.
pub fn run(options: &Options, patience: &Patience) -> anyhow::Result<bool> {
    let screen = Arc::new(Screen::new());
    let dir = prepare(options)?;
    let before = Machine::look();
    let told = with_lab(options, &dir, &screen, patience);
    let layout = Layout::of(&dir)?;
    let leftovers = before.leftovers(&layout, told.as_ref().map(|told| &told.namespaces).ok());
    fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    let told = told.inspect_err(|_| {
        leftovers.iter().for_each(|left| screen.say(&format!("left behind: {left}")));
    })?;

    let broken = judge::broken_promises(&told, &leftovers);
    let report = Report::new(&told, leftovers.len());
    report.write(&options.out.join("report.json"))?;
    timeline::draw(&told, &options.out.join("timeline.svg"))?;
    screen.say(&report.table());
    screen.say(&format!("report:   {}", options.out.join("report.json").display()));
    screen.say(&format!("timeline: {}", options.out.join("timeline.svg").display()));
    for promise in &broken {
        screen.say(&format!("BROKEN: {promise}"));
    }
    Ok(broken.is_empty())
}

/// Copies the manifests that are in force from the start: the demo edits its own copy.
fn prepare(options: &Options) -> anyhow::Result<PathBuf> {
    let dir = options.out.join("shop");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    remove_older_lab(&dir)?;
    fs::remove_dir_all(&dir)?;
    fs::create_dir(&dir)?;
    for file in ["shop.yaml", "split.yaml", "plain.yaml"] {
        let from = options.manifests.join(file);
        fs::copy(&from, dir.join(file)).with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(dir)
}

/// What a demo left that was killed with -9.
fn remove_older_lab(dir: &Path) -> anyhow::Result<()> {
    let layout = Layout::of(dir)?;
    if layout.run().exists() || !layout.existing_netns().is_empty() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(crate::lab::down::down(&layout))?;
    }
    Ok(())
}

fn with_lab(
    options: &Options,
    dir: &Path,
    screen: &Arc<Screen>,
    patience: &Patience,
) -> anyhow::Result<story::Told> {
    screen.tell("starting: control plane, 8 pods, 6 of them with a sidecar");
    let program = std::env::current_exe()?.with_file_name("heddle-app");
    let lab = Lab::up(
        dir,
        &crate::lab::Options {
            programs: vec![program],
            log: "info,heddle_proxy::peer=debug".to_owned(),
            proxy_env: vec![("HEDDLE_LOG_FORMAT".to_owned(), "json".to_owned())],
            ..crate::lab::Options::default()
        },
    )?;
    let story = Story { lab: &lab, options, dir, screen, patience };
    let told = story.tell();
    if told.is_err() {
        keep_logs(&lab, &options.out);
    }
    lab.down().context("take the lab down")?;
    told
}

/// When something went wrong the logs are worth more than a tidy directory.
fn keep_logs(lab: &Lab, out: &Path) {
    let (from, to) = (lab.layout().run().join("logs"), out.join("logs"));
    let _ = fs::remove_dir_all(&to);
    let _ = fs::create_dir_all(&to);
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let _ = fs::copy(entry.path(), to.join(entry.file_name()));
    }
}
