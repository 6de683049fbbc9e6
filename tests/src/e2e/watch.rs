//! Watches the wire of every node of a cluster of this harness: what pods say to each other passes
//! there, whatever node they are on.

use std::process::Stdio;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::capture::Seen;
use crate::cluster::layout::Layout;

/// A capture that runs.
#[derive(Debug)]
pub struct Watch(Vec<(Child, Lines<BufReader<ChildStdout>>)>);

impl Watch {
    /// Starts to look for `marker`; returns when the first packet could be seen.
    ///
    /// # Errors
    /// No packet socket can be opened.
    pub async fn start(layout: &Layout, marker: &str) -> anyhow::Result<Self> {
        let cluster = crate::cluster::own_program()?;
        let app = cluster.with_file_name("heddle-app");
        let mut watching = Vec::new();
        for node in layout.nodes()? {
            let mut command = Command::new(&cluster);
            command.args(["--name", layout.name(), "exec", &node.name(), "--"]).arg(&app);
            command.args(["capture", "--marker", marker]).kill_on_drop(true);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let out = child.stdout.take().context("it was asked for")?;
            let mut lines = BufReader::new(out).lines();
            let line = lines.next_line().await?;
            anyhow::ensure!(line.is_some_and(|line| line.contains("capturing")), "no capture");
            watching.push((child, lines));
        }
        Ok(Self(watching))
    }

    /// Ends it, and sums up what all nodes have seen.
    ///
    /// # Errors
    /// A capture was lost.
    pub async fn finish(self) -> anyhow::Result<Seen> {
        let mut sum = Seen::default();
        for (mut child, mut lines) in self.0 {
            drop(child.stdin.take());
            let line = lines.next_line().await?.context("the capture has said nothing")?;
            let seen: Seen = serde_json::from_str(&line)?;
            sum.packets += seen.packets;
            sum.bytes += seen.bytes;
            sum.tls_packets += seen.tls_packets;
            sum.plaintext_markers += seen.plaintext_markers;
            child.wait().await?;
        }
        Ok(sum)
    }
}
