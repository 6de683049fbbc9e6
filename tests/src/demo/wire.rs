//! A watch on the wire between the pods, in the router that all of them are connected to.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, bail};

use crate::capture::Seen;

#[derive(Debug)]
pub(super) struct Wire {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Wire {
    /// Returns when the first packet would be seen.
    pub(super) fn watch(netns: &str, marker: &str) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("heddle-app");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns]).arg(program);
        command.args(["capture", "--marker", marker]);
        // It ends with its input: also when this process is killed.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start the capture")?;
        let mut output = BufReader::new(child.stdout.take().expect("piped above"));
        let mut line = String::new();
        output.read_line(&mut line)?;
        if line.is_empty() {
            let ended = child.wait_with_output()?;
            bail!("the capture did not start: {}", String::from_utf8_lossy(&ended.stderr).trim());
        }
        Ok(Self { child, output })
    }

    pub(super) fn finish(mut self) -> anyhow::Result<Seen> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        self.child.wait()?;
        serde_json::from_str(&text).context("the capture's counts")
    }
}
