//! Network namespaces of the run: one pair of pods per contender, wired to each other alone, with
//! the same addresses in every pair. They are removed when dropped; what an earlier run left behind
//! after a kill -9 is swept at the next start. Nothing outside of the names of this module is touched.

use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;

use anyhow::{Context as _, bail};
use heddle_api::names;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Addresses in every pair of pods.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 2);
pub(crate) const CONTROL_PLANE: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 3);
/// The Service in front of the server's pod, for who knows Services.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

const PREFIX: &str = "heddle-bench-";
const ROOT: &str = "/run/netns";

/// One network namespace.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
    file: File,
}

impl Netns {
    pub(crate) fn create(name: &str) -> anyhow::Result<Self> {
        let name = format!("{PREFIX}{name}");
        ip(&["netns", "add", &name])?;
        let file = match File::open(Path::new(ROOT).join(&name)) {
            Ok(file) => file,
            Err(error) => {
                delete(&name);
                return Err(error).with_context(|| format!("open the network namespace {name}"));
            }
        };
        let netns = Self { name, file };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Moves this thread into the namespace until the guard is dropped. Sockets and processes made
    /// meanwhile stay there, so nothing else may run on the thread in between: no `.await`.
    pub(crate) fn enter(&self) -> anyhow::Result<Inside> {
        let home = File::open("/proc/thread-self/ns/net").context("open our network namespace")?;
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter the network namespace {}", self.name))?;
        Ok(Inside { home })
    }

    /// For a thread that is to live in the namespace.
    pub(crate) fn door(&self) -> anyhow::Result<Door> {
        Ok(Door { file: self.file.try_clone().context("duplicate a descriptor")? })
    }

    /// Replaces all rules of the namespace.
    pub(crate) fn set_rules(&self, ruleset: &str) -> anyhow::Result<()> {
        let _inside = self.enter()?;
        run("nft", &["-f", "-"], ruleset)
    }

    fn ip(&self, commands: &str) -> anyhow::Result<()> {
        run("ip", &["-n", &self.name, "-batch", "-"], commands)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// The way into a namespace; unlike [`Netns`], dropping it removes nothing.
#[derive(Debug)]
pub(crate) struct Door {
    file: File,
}

impl Door {
    /// Moves this thread into the namespace for good.
    pub(crate) fn pass(self) -> anyhow::Result<()> {
        setns(self.file, CloneFlags::CLONE_NEWNET).context("enter a network namespace")
    }
}

/// While it lives, this thread is in another network namespace.
#[derive(Debug)]
pub(crate) struct Inside {
    home: File,
}

impl Drop for Inside {
    fn drop(&mut self) {
        setns(self.home.as_fd(), CloneFlags::CLONE_NEWNET)
            .expect("a thread may return to the network namespace it came from");
    }
}

/// A client's and a server's pod.
#[derive(Debug)]
pub(crate) struct Pair {
    pub client: Rc<Netns>,
    pub server: Netns,
}

impl Pair {
    pub(crate) fn create(name: &str) -> anyhow::Result<Self> {
        let client = Rc::new(Netns::create(&format!("{name}-client"))?);
        let server = Netns::create(&format!("{name}-server"))?;
        connect((&client, "eth0"), (&server, "eth0"))?;
        for (netns, address, v6) in [(&*client, CLIENT, 1), (&server, SERVER, 2)] {
            // The default route makes the Service's address leave the pod, as in a cluster.
            netns.ip(&format!(
                "addr add {address}/29 dev eth0\n\
                 addr add fd00:90::{v6}/64 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add default dev eth0\n\
                 route add ::/0 dev eth0\n"
            ))?;
        }
        Ok(Self { client, server })
    }

    /// A third namespace that both pods reach at [`CONTROL_PLANE`], each with its own address.
    pub(crate) fn create_control_plane(&self, name: &str) -> anyhow::Result<Netns> {
        let netns = Netns::create(&format!("{name}-control-plane"))?;
        netns.ip(&format!("addr add {CONTROL_PLANE}/32 dev lo\n"))?;
        let pods = [(&*self.client, CLIENT, "client"), (&self.server, SERVER, "server")];
        for (pod, address, link) in pods {
            connect((pod, "control"), (&netns, link))?;
            pod.ip(&format!(
                "link set control up\n\
                 route add {CONTROL_PLANE}/32 dev control src {address}\n"
            ))?;
            netns.ip(&format!(
                "link set {link} up\n\
                 route add {address}/32 dev {link} src {CONTROL_PLANE}\n"
            ))?;
        }
        Ok(netns)
    }

    /// Transparent redirection as `heddle-init` would write it, for contenders without an own
    /// writer: everything to one port, or each port to another.
    pub(crate) fn redirect(&self, redirection: Redirection) -> anyhow::Result<()> {
        let (outbound, inbound) = match redirection {
            Redirection::OnePort => (
                format!("redirect to :{}", names::OUTBOUND_PORT),
                format!("redirect to :{}", names::INBOUND_PORT),
            ),
            Redirection::PortByPort(ports) => {
                let map: Vec<_> = ports.iter().map(|(from, to)| format!("{from} : {to}")).collect();
                let redirect = format!("redirect to :tcp dport map {{ {} }}", map.join(", "));
                (redirect.clone(), redirect)
            }
        };
        let ruleset = format!(
            "table ip bench {{\n\
               chain output {{\n\
                 type nat hook output priority -100;\n\
                 meta skuid {uid} return\n\
                 oifname lo return\n\
                 meta l4proto tcp {outbound}\n\
               }}\n\
               chain prerouting {{\n\
                 type nat hook prerouting priority -100;\n\
                 iifname lo return\n\
                 meta l4proto tcp {inbound}\n\
               }}\n\
             }}\n",
            uid = names::PROXY_UID,
        );
        self.client.set_rules(&ruleset)?;
        self.server.set_rules(&ruleset)
    }
}

/// Where redirected connections go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Redirection {
    /// To the ports Heddle uses, whatever their destination.
    OnePort,
    /// From each of these ports to the one beside it.
    PortByPort(&'static [(u16, u16)]),
}

/// Removes what a run left behind that could not clean up. The caller holds the lock that says
/// that no other run is alive.
pub(crate) fn sweep() -> anyhow::Result<()> {
    let Ok(entries) = std::fs::read_dir(ROOT) else { return Ok(()) };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with(PREFIX) {
            continue;
        }
        let output = Command::new("ip").args(["netns", "pids", &name]).output()?;
        for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL);
        }
        delete(&name);
    }
    Ok(())
}

fn connect((a, a_link): (&Netns, &str), (b, b_link): (&Netns, &str)) -> anyhow::Result<()> {
    // Both ends are made where they belong: the host's own namespace never sees an interface.
    ip(&[
        "-n", &a.name, "link", "add", a_link, "type", "veth", "peer", "name", b_link, "netns",
        &b.name,
    ])
}

fn delete(name: &str) {
    if let Err(error) = ip(&["netns", "del", name]) {
        eprintln!("heddle-bench: the network namespace {name} stays: {error:#}");
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    run("ip", args, "")
}

fn run(program: &str, args: &[&str], input: &str) -> anyhow::Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{program}`: run bench/prepare"))?;
    let written = child.stdin.take().expect("stdin is a pipe").write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` failed: {}", args.join(" "), complaint.trim());
    }
    written.with_context(|| format!("write to `{program}`"))
}
