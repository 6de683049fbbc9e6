//! The process that keeps a node's namespaces: network, mounts and host name. It does nothing else.
//!
//! Nothing of them has a name on the host: when the last process in them ends, networks, mounts and
//! pods' own namespaces are gone with it, and there is nothing to clean up.

use std::convert::Infallible;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{pause, sethostname, setsid};

use super::cgroup;
use super::layout::{Layout, WIRE};

/// What it prints when others may enter.
pub(crate) const READY: &str = "ready";
/// Only those that a node cannot do without.
const SETTINGS: [(&str, &str); 6] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    // Nobody else can have these addresses, and looking for somebody takes a second.
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    // Without it an answer between two pods of one node misses its way back through the Service.
    ("net/bridge/bridge-nf-call-iptables", "1"),
    ("net/bridge/bridge-nf-call-ip6tables", "1"),
];

/// Makes the namespaces of a node, or of the wire between nodes, and keeps them.
///
/// Needs a process with one thread, made for this.
///
/// # Errors
/// Says which step failed.
pub fn hold(layout: &Layout, node: &str) -> anyhow::Result<Infallible> {
    cgroup::join(layout)?;
    setsid().context("leave the terminal")?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .context("make namespaces (are you root?)")?;
    sethostname(node).context("set the host name")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("detach the mount namespace from the host's")?;
    if node != WIRE {
        hide_host(layout, node)?;
        for (name, value) in SETTINGS {
            let path = Path::new("/proc/sys").join(name);
            fs::write(&path, value).with_context(|| format!("set {}", path.display()))?;
        }
    }
    let lo = Command::new("ip").args(["link", "set", "lo", "up"]).output().context("run ip")?;
    ensure!(lo.status.success(), "{}", String::from_utf8_lossy(&lo.stderr));
    let mut out = std::io::stdout();
    writeln!(out, "{READY}")?;
    out.flush()?;
    loop {
        pause();
    }
}

/// Puts the node's own directories over the host's, so that the programs of a node, which have such
/// paths built in, can neither see nor change what another node or the host has there.
fn hide_host(layout: &Layout, node: &str) -> anyhow::Result<()> {
    let (library, log) = (layout.node(node).join("lib"), layout.node(node).join("log"));
    // The cluster's directory is itself below what is hidden, and stays where it was.
    let within = library.join(layout.dir().strip_prefix("/var/lib")?);
    for dir in [&library, &log, &within] {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let none: Option<&str> = None;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755"))
        .context("mount /run")?;
    for dir in ["/run/netns", "/run/lock"] {
        fs::create_dir(dir).with_context(|| format!("make {dir}"))?;
    }
    let bind = |source: &Path, target: &Path| {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(source), target, none, flags, none)
            .with_context(|| format!("bind {} over {}", source.display(), target.display()))
    };
    bind(&layout.dir(), &within)?;
    bind(&log, Path::new("/var/log"))?;
    bind(&library, Path::new("/var/lib"))
}
