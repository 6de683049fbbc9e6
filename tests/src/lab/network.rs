//! Network namespaces, links, addresses and routes, through the `ip` program.
//!
//! The node's namespace is a router; every pod hangs on it by one veth pair that is made inside the
//! two namespaces, so the host's own namespace never sees an interface. All node-side ends share
//! one gateway address.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::oneshot;

use super::layout::NETNS_ROOT;

/// Pods have their addresses in 10.244.0.0/16 and fd00:244::/64.
pub(crate) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1);

/// The first pod's number; the ones below are the router's.
const FIRST_POD: u16 = 10;
/// The control plane's number: 10.244.255.2, fd00:244::ff02.
const CONTROL_PLANE: u16 = 0xff02;

/// The two addresses of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Addresses {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The control plane's.
    #[must_use]
    pub(crate) fn control_plane() -> Self {
        Self::numbered(CONTROL_PLANE)
    }

    fn numbered(number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        Self {
            v4: Ipv4Addr::new(10, 244, high, low),
            v6: Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, number),
        }
    }

    /// IPv4 first.
    #[must_use]
    pub(crate) fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    fn number(self) -> u16 {
        self.v6.segments()[7]
    }
}

/// Gives out pod addresses, each once: an address that comes back with another owner would hide
/// mistakes that a cluster punishes rarely and late.
#[derive(Debug)]
pub(crate) struct AddressPool {
    next: u16,
}

impl AddressPool {
    pub(crate) fn new() -> Self {
        Self { next: FIRST_POD }
    }

    pub(crate) fn allocate(&mut self) -> anyhow::Result<Addresses> {
        if self.next >= CONTROL_PLANE {
            bail!("all pod addresses have been used once; run `heddle-lab down` and `up` again");
        }
        self.next += 1;
        Ok(Addresses::numbered(self.next - 1))
    }
}

/// Makes the router.
pub(crate) async fn create_node(netns: &str) -> anyhow::Result<()> {
    run("ip", &["netns", "add", netns], "").await?;
    run("ip", &["-n", netns, "link", "set", "lo", "up"], "").await?;
    set_sysctls(
        netns,
        &[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            // A router would tell the pod to dial its neighbour directly, where there is no link.
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
        ],
    )
    .await
}

/// Makes a pod's namespace and wires it to the router.
pub(crate) async fn create_pod(
    node: &str,
    netns: &str,
    addresses: Addresses,
) -> anyhow::Result<()> {
    run("ip", &["netns", "add", netns], "").await?;
    set_sysctls(
        netns,
        &[
            // As container runtimes do: an application without capabilities may listen on port 80.
            ("net/ipv4/ip_unprivileged_port_start", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
        ],
    )
    .await?;
    let Addresses { v4, v6 } = addresses;
    let veth = format!("pod{}", addresses.number());
    let link = ["-n", node, "link", "add", &veth, "type", "veth", "peer", "eth0", "netns", netns];
    run("ip", &link, "").await?;
    let inside = format!(
        "link set lo up\n\
         addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         link set eth0 up\n\
         route add {GATEWAY_V4} dev eth0\n\
         route add 0.0.0.0/0 via {GATEWAY_V4} dev eth0\n\
         route add {GATEWAY_V6} dev eth0\n\
         route add ::/0 via {GATEWAY_V6} dev eth0\n"
    );
    run("ip", &["-n", netns, "-batch", "-"], &inside).await?;
    let outside = format!(
        "addr add {GATEWAY_V4}/32 dev {veth}\n\
         addr add {GATEWAY_V6}/128 dev {veth} nodad\n\
         link set {veth} up\n\
         route add {v4} dev {veth}\n\
         route add {v6} dev {veth}\n"
    );
    run("ip", &["-n", node, "-batch", "-"], &outside).await
}

/// Removes a pod's namespace; its link goes with it.
pub(crate) async fn delete_pod(node: &str, netns: &str, addresses: Addresses) {
    // The namespace lives on while a process or an unfinished connection holds it; its link is
    // taken away now, so that the address is free of it.
    let veth = format!("pod{}", addresses.number());
    let removed = [
        run("ip", &["-n", node, "link", "del", &veth], "").await,
        run("ip", &["netns", "del", netns], "").await,
    ];
    for error in removed.into_iter().filter_map(Result::err) {
        tracing::warn!("{error:#}");
    }
}

/// Settings are looked up in the namespace of the thread that opens them.
async fn set_sysctls(netns: &str, settings: &'static [(&str, &str)]) -> anyhow::Result<()> {
    let set = move || {
        for (name, value) in settings {
            let path = format!("/proc/sys/{name}");
            std::fs::write(&path, value).with_context(|| format!("write {value} to {path}"))?;
        }
        Ok(())
    };
    inside(netns, set).await
}

/// Runs `work` on a thread of its own in a network namespace. The namespace is the thread's, so it
/// must end with the work and not return to a pool.
pub(crate) async fn inside<T: Send + 'static>(
    netns: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let path = Path::new(NETNS_ROOT).join(netns);
    let netns = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let (sender, result) = oneshot::channel();
    std::thread::Builder::new().name("netns".into()).spawn(move || {
        let outcome = setns(netns, CloneFlags::CLONE_NEWNET)
            .context("enter a network namespace")
            .and_then(|()| work());
        // Nobody waits any more when the caller was cancelled.
        let _ = sender.send(outcome);
    })?;
    result.await.context("the thread ended without an answer")?
}

/// Runs a program to its end; its complaint becomes the error.
pub(crate) async fn run(program: &str, args: &[&str], input: &str) -> anyhow::Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| {
            format!("cannot run `{program}`: install it (Debian: iproute2, nftables)")
        })?;
    let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    bail!("`{program} {}` failed: {}", args.join(" "), complaint.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_and_never_the_control_planes() {
        let mut pool = AddressPool::new();
        let mut seen = std::collections::HashSet::new();
        while let Ok(addresses) = pool.allocate() {
            assert!(seen.insert(addresses.v4) && addresses != Addresses::control_plane());
        }
        assert_eq!(seen.len(), usize::from(CONTROL_PLANE - FIRST_POD));
    }

    #[test]
    fn the_control_planes_addresses_are_the_documented_ones() {
        let addresses = Addresses::control_plane();
        assert_eq!(addresses.v4.to_string(), "10.244.255.2");
        assert_eq!(addresses.v6.to_string(), "fd00:244::ff02");
    }
}
