//! The cluster that a test runs in: one of its own, or one that was there before.

use std::ffi::OsStr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use kube::Client;
use tempfile::TempDir;

use super::api::client_of;
use super::layout::Layout;
use super::programs::{API, CLUSTER, Programs};
use super::tools::Tools;
use super::up::{self, Options};

/// A cluster in use by a test, with `kubectl` and `helm` for it.
#[derive(Debug)]
pub struct Cluster {
    tools: Tools,
    layout: Option<Layout>,
    is_ours: bool,
    _home: TempDir,
}

impl Cluster {
    /// Makes a cluster that is gone when this is dropped; `prefix` begins its name. What a killed
    /// test of the same prefix has left is removed first.
    ///
    /// # Errors
    /// What does not get ready.
    pub async fn make(prefix: &str, options: &Options) -> anyhow::Result<Self> {
        remove_left_over(prefix)?;
        let layout = Layout::new(&format!("{prefix}-{}", std::process::id()))?;
        let programs = Programs::find(&[&API[..], &CLUSTER].concat())?;
        let home = tempfile::tempdir()?;
        let tools = Tools::new(programs, layout.kubeconfig(), home.path().to_owned());
        // Before it is up, so that it is removed also when it does not come up.
        let this = Self { tools, layout: Some(layout.clone()), is_ours: true, _home: home };
        up::up(&layout, options).await?;
        Ok(this)
    }

    /// The cluster that the environment names: `HEDDLE_CLUSTER`, one of this harness's, or else
    /// `KUBECONFIG`, whoever made it.
    ///
    /// # Errors
    /// Neither is set, or there is no such cluster.
    pub fn given() -> anyhow::Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let (layout, kubeconfig) = match (set("HEDDLE_CLUSTER"), set("KUBECONFIG")) {
            (Some(name), _) => {
                let layout = Layout::new(name.to_str().context("HEDDLE_CLUSTER is not text")?)?;
                layout.nodes()?;
                (Some(layout.clone()), layout.kubeconfig())
            }
            (None, Some(path)) => (None, PathBuf::from(path)),
            (None, None) => bail!("no cluster is given: run `make e2e`, or set KUBECONFIG"),
        };
        let programs = Programs::find(&["kubectl", "helm"])?;
        let home = tempfile::tempdir()?;
        let tools = Tools::new(programs, kubeconfig, home.path().to_owned());
        Ok(Self { tools, layout, is_ours: false, _home: home })
    }

    /// An administrator's client.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self) -> anyhow::Result<Client> {
        client_of(self.tools.kubeconfig()).await
    }

    /// The nodes' and programs' names, when it is a cluster of this harness.
    #[must_use]
    pub fn layout(&self) -> Option<&Layout> {
        self.layout.as_ref()
    }
}

impl Deref for Cluster {
    type Target = Tools;

    fn deref(&self) -> &Tools {
        &self.tools
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let (true, Some(layout)) = (self.is_ours, &self.layout)
            && let Err(error) = run_down(layout)
        {
            eprintln!("cluster {} is still there: {error:#}", layout.name());
        }
    }
}

/// The archives of our own images, as `make image` leaves them.
///
/// # Errors
/// Names the command that makes them.
pub fn mesh_images() -> anyhow::Result<Vec<PathBuf>> {
    let dir = super::own_program()?;
    let dir = dir.parent().and_then(Path::parent).context("no build directory")?.join("image");
    let archives =
        ["proxy", "init", "control-plane", "app"].map(|name| dir.join(format!("{name}.tar")));
    if let Some(missing) = archives.iter().find(|archive| !archive.is_file()) {
        bail!("no {}: run `make image`", missing.display());
    }
    Ok(archives.into())
}

fn run_down(layout: &Layout) -> anyhow::Result<()> {
    let output = Command::new(super::own_program()?)
        .args([OsStr::new("--name"), layout.name().as_ref(), "down".as_ref()])
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn remove_left_over(prefix: &str) -> anyhow::Result<()> {
    for layout in Layout::all() {
        let rest = layout.name().strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
        let Some(pid) = rest.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            run_down(&layout)?;
        }
    }
    Ok(())
}
