//! `kubectl` and `helm` as administrator of one cluster.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::programs::Programs;
use crate::real::Ran;

/// Runs Kubernetes' tools against one API server.
#[derive(Clone, Debug)]
pub struct Tools {
    programs: Programs,
    kubeconfig: PathBuf,
    /// Where they keep what they remember; not the person's own.
    home: PathBuf,
}

impl Tools {
    #[must_use]
    pub fn new(programs: Programs, kubeconfig: PathBuf, home: PathBuf) -> Self {
        Self { programs, kubeconfig, home }
    }

    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Where the programs are, and the Gateway API's definitions.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// A program of the cluster's, ready to be run with arguments of the caller's.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.path(name));
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.home).kill_on_drop(true);
        command
    }

    /// Runs `kubectl`. What it says and how it ends is the caller's to judge.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        self.run("kubectl", arguments, "").await
    }

    /// Runs `kubectl` and returns what it prints.
    ///
    /// # Errors
    /// It failed, and what it said then.
    pub async fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let ran = self.kubectl(arguments).await?.ok();
        Ok(ran.with_context(|| format!("kubectl {}", arguments.join(" ")))?.out)
    }

    /// The same with a text on its standard input, for `-f -`.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<Ran> {
        self.run("kubectl", arguments, input).await
    }

    /// Runs `helm`.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub async fn helm(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        self.run("helm", arguments, "").await
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// What kubectl says against them.
    pub async fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        self.kubectl_with(&["apply", "-f", "-"], manifests).await?.ok().map(drop)
    }

    async fn run(&self, name: &str, arguments: &[&str], input: &str) -> anyhow::Result<Ran> {
        let mut command = self.command(name);
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("run {name}"))?;
        let mut stdin = child.stdin.take().context("it was asked for")?;
        // Whatever does not read its input says why on its own.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        Ok(child.wait_with_output().await?.into())
    }
}
