//! The network between nodes: one bridge, one link per node, and a route to every node's pods.
//!
//! Nothing here translates a pod's address: a pod sees who calls it, on whatever node the caller
//! is. There is no way out of the cluster, so nothing needs translating for that either.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::layout::{Node, WIRE};
use super::process::Process;

/// Joins the nodes; `wire` and `holders` keep their namespaces.
///
/// # Errors
/// What `ip` says.
pub(crate) fn connect(wire: Process, holders: &[(Node, Process)]) -> anyhow::Result<()> {
    let mut between = String::from("link add bridge0 type bridge\nlink set bridge0 up\n");
    for (node, holder) in holders {
        let (name, pid) = (node.name(), holder.pid());
        let _ = writeln!(between, "link add dev {name} type veth peer name eth0 netns {pid}");
        let _ = writeln!(between, "link set {name} master bridge0 up");
    }
    ip(wire, WIRE, &between)?;
    for (node, holder) in holders {
        let others = holders.iter().map(|(other, _)| *other).filter(|other| other != node);
        ip(*holder, &node.name(), &node_commands(*node, others))?;
    }
    Ok(())
}

fn node_commands(node: Node, others: impl Iterator<Item = Node>) -> String {
    let mut text = String::from("link set eth0 up\n");
    let _ = writeln!(text, "addr add {}/24 dev eth0", node.address_v4());
    let _ = writeln!(text, "addr add {}/64 dev eth0 nodad", node.address_v6());
    for other in others {
        let (v4, v6) = (other.address_v4(), other.address_v6());
        let _ = writeln!(text, "route add {} via {v4}", other.pods_v4());
        let _ = writeln!(text, "-6 route add {} via {v6}", other.pods_v6());
    }
    // The kernel looks for a way before it looks at the Services' rules.
    text.push_str("route add 10.96.0.0/16 dev eth0\n-6 route add fd00:10:96::/112 dev eth0\n");
    text
}

fn ip(holder: Process, name: &str, commands: &str) -> anyhow::Result<()> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", holder.pid()));
    // A batch may not change the family from line to line otherwise.
    command.args([
        "sh",
        "-ec",
        "while read -r line; do ip $line || { echo \"$line\" >&2; exit 1; }; done",
    ]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("run nsenter")?;
    let mut stdin = child.stdin.take().context("it was asked for")?;
    // When nobody reads it, the exit status says why.
    let _ = stdin.write_all(commands.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the network of {name}: {}", error.trim());
    Ok(())
}
