//! Starts a lab and waits until it is as declared.
//!
//! Everything that can be wrong before anything is made is looked at before anything is made.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use heddle_api::names;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{FsFlags, statvfs};
use tokio::time::Instant;

use super::client;
use super::cluster_ip::ClusterIps;
use super::desired::Desired;
use super::down::down;
use super::launch::NodeOptions;
use super::layout::{Layout, RUN_ROOT};
use super::manifests::Manifests;
use super::protocol::Status;

/// How a lab is started.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// Where `heddle-lab`, `heddle-proxy`, `heddle-init` and `heddle-control-plane` are.
    pub bin_dir: PathBuf,
    /// More programs to copy to where every pod finds them on its search path.
    pub programs: Vec<PathBuf>,
    /// How long to wait for everything to be ready.
    pub timeout: Duration,
    pub node: NodeOptions,
}

/// How often the state is asked for while waiting.
const POLL: Duration = Duration::from_millis(50);

/// Starts the lab of `layout` and returns when everything declared is ready.
///
/// # Errors
/// Says what is not ready, and why; the lab then stands as it is, to be looked at.
pub async fn up(layout: &Layout, options: &UpOptions) -> anyhow::Result<Status> {
    check_machine()?;
    check_absent(layout)?;
    let desired = check_manifests(layout)?;
    let needs_mesh = desired.pods.values().any(|pod| pod.meshed);
    let started = make_run_dir(layout, options, needs_mesh).and_then(|()| start_node(layout));
    let mut node = match started {
        Ok(node) => node,
        Err(error) => {
            down(layout).await?;
            return Err(error);
        }
    };
    wait_ready(layout, &mut node, options.timeout).await
}

/// Keeps another `up` or `down` of the same lab away while it lives. Its file goes with the lab.
#[derive(Debug)]
pub struct Lock {
    layout: Layout,
    _file: Flock<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.layout.run().exists() {
            // Whoever opened the file meanwhile fails to lock it, or finds no lab.
            let _ = fs::remove_file(self.layout.lock());
            // Others' labs may be there.
            let _ = fs::remove_dir(RUN_ROOT);
        }
    }
}

/// Takes the lock of a lab.
///
/// # Errors
/// When one is at work.
pub fn lock(layout: &Layout) -> anyhow::Result<Lock> {
    check_root()?;
    fs::create_dir_all(RUN_ROOT).with_context(|| format!("make {RUN_ROOT}"))?;
    let file = File::create(layout.lock())?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        let dir = layout.dir().display();
        anyhow::anyhow!("another `heddle-lab up` or `down` of {dir} is at work; wait for it")
    });
    Ok(Lock { layout: layout.clone(), _file: locked? })
}

fn check_root() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the lab makes network namespaces and needs root: run it with sudo, or from inside \
             `heddle-lab userns -- bash` (that needs the package uidmap, and lines for you in \
             /etc/subuid and /etc/subgid)"
        );
    }
    Ok(())
}

fn check_machine() -> anyhow::Result<()> {
    for (program, package) in
        [("ip", "iproute2"), ("nft", "nftables"), ("sysctl", "procps"), ("setpriv", "util-linux")]
    {
        let mut command = Command::new(program);
        if command.arg("--version").output().is_err() {
            bail!("the program `{program}` is missing: install the package {package}");
        }
    }
    Ok(())
}

fn check_absent(layout: &Layout) -> anyhow::Result<()> {
    let is_left = layout.run().exists() || layout.state().exists();
    if is_left || !layout.existing_netns().is_empty() {
        let dir = layout.dir().display();
        bail!(
            "a lab of {dir} is up already, or what is left of one; `heddle-lab down --dir {dir}` removes it"
        );
    }
    Ok(())
}

fn check_manifests(layout: &Layout) -> anyhow::Result<Desired> {
    let mut manifests = Manifests::new(layout.dir());
    manifests.reload();
    let (objects, problems) = manifests.objects();
    if objects.is_empty() && problems.is_empty() {
        bail!("{}: no manifests (*.yaml) here", layout.dir().display());
    }
    let desired = Desired::new(&objects, problems, &mut ClusterIps::new());
    if !desired.problems.is_empty() {
        bail!("{}", desired.problems.join("\n"));
    }
    Ok(desired)
}

fn make_run_dir(layout: &Layout, options: &UpOptions, needs_mesh: bool) -> anyhow::Result<()> {
    let run = layout.run();
    fs::create_dir_all(layout.bin()).with_context(|| format!("make {}", run.display()))?;
    for dir in [Path::new(RUN_ROOT), &run, &layout.bin()] {
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    }
    let flags = statvfs(&run).with_context(|| format!("look at {}", run.display()))?.flags();
    if flags.contains(FsFlags::ST_NOEXEC) {
        bail!("{} is mounted noexec; remount it with exec", run.display());
    }
    fs::write(run.join("options.json"), serde_json::to_string(&options.node)?)?;
    let mut programs = vec!["heddle-lab"];
    if needs_mesh {
        programs.extend([names::PROXY_CONTAINER, names::INIT_CONTAINER]);
    }
    if options.node.control_plane {
        programs.push("heddle-control-plane");
    }
    let own = programs.into_iter().map(|name| options.bin_dir.join(name));
    for program in own.chain(options.programs.iter().cloned()) {
        copy_program(&program, &layout.bin())?;
    }
    // Last: by this file the directory is known to be a lab's.
    fs::write(run.join("dir"), layout.dir().as_os_str().as_encoded_bytes())?;
    Ok(())
}

/// The checkout may lie below a directory that only root may enter.
fn copy_program(program: &Path, bin: &Path) -> anyhow::Result<()> {
    let name = program.file_name().context("a program needs a file name")?;
    let target = bin.join(name);
    if fs::hard_link(program, &target).is_ok() {
        return Ok(());
    }
    fs::copy(program, &target).with_context(|| {
        format!("{}: not found; build it, or name its directory with --bin-dir", program.display())
    })?;
    fs::set_permissions(&target, Permissions::from_mode(0o755))?;
    Ok(())
}

fn start_node(layout: &Layout) -> anyhow::Result<Child> {
    let log = File::create(layout.node_log())?;
    Command::new(layout.bin().join("heddle-lab"))
        .arg("__node")
        .arg(layout.dir())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start the lab's node process")
}

async fn wait_ready(
    layout: &Layout,
    node: &mut Child,
    timeout: Duration,
) -> anyhow::Result<Status> {
    let deadline = Instant::now() + timeout;
    let mut last = None;
    loop {
        match client::status(layout) {
            Ok(status) if status.unready().is_empty() => return Ok(status),
            Ok(status) => last = Some(status),
            Err(_) => {
                // The socket is there when the first namespaces are.
                if node.try_wait()?.is_some() {
                    let log = fs::read_to_string(layout.node_log()).unwrap_or_default();
                    down(layout).await?;
                    bail!("the lab's node process ended: {}", log.trim());
                }
            }
        }
        if Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    let lines = last.map_or_else(|| vec!["the node process says nothing".into()], |s| s.unready());
    bail!(
        "not ready after {} s:\n  {}\nlook with `heddle-lab status` and `heddle-lab logs`; \
         `heddle-lab down` removes it",
        timeout.as_secs(),
        lines.join("\n  ")
    )
}
