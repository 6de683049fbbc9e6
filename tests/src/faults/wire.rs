//! A watch on the wire between the pods, in the router that all of them are connected to.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, ensure};

use super::World;
use crate::capture::Seen;

/// Counts a marker until it is asked what it saw.
#[derive(Debug)]
pub struct Wire {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Wire {
    /// Returns when the first packet would be seen.
    ///
    /// # Errors
    /// When packets cannot be seen here.
    pub fn watch(world: &World, marker: &str) -> anyhow::Result<Self> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &world.lab().node_netns()]);
        command.arg(world.lab().layout().bin().join("heddle-app"));
        command.args(["capture", "--marker", marker]);
        // It ends with its input: also when this process is killed.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start the capture")?;
        let mut output = BufReader::new(child.stdout.take().expect("piped above"));
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the capture did not start");
        Ok(Self { child, output })
    }

    /// What was seen.
    ///
    /// # Errors
    /// When it ended before it was asked to.
    pub fn finish(mut self) -> anyhow::Result<Seen> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        self.child.wait()?;
        serde_json::from_str(&text).context("the capture's counts")
    }
}
