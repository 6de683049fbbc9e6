//! Turns this process into a process of a pod: enters its network namespace, gives it a mount
//! namespace with the pod's name resolution, drops every privilege, and executes the command.
//!
//! Runs in a process made for nothing else (`heddle-lab __enter`), which has one thread: that is
//! what makes the namespace calls take effect for the whole process, and what spares the lab any
//! `unsafe` between fork and exec.

use std::convert::Infallible;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, getppid, setgid, setgroups, sethostname, setuid};
use serde::{Deserialize, Serialize};

use super::layout::NETNS_ROOT;

/// Everything needed to become a process of a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Enter {
    pub netns: String,
    pub hostname: String,
    /// Bound over the host's files of the same names.
    pub etc: Vec<EtcFile>,
    pub uid: u32,
    pub gid: u32,
    /// Only `heddle-init` and the control plane keep any.
    pub capabilities: Capabilities,
    pub cwd: PathBuf,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(String, String)>,
    pub argv: Vec<String>,
    /// The process that started it, which must still be there when the namespace has been entered:
    /// otherwise `down` may have looked for the lab's processes a moment too early.
    pub parent: Option<i32>,
}

/// A file below /etc that the pod sees another version of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EtcFile {
    pub name: String,
    pub source: PathBuf,
}

/// What a process of the lab may do beyond its uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capabilities {
    None,
    /// `heddle-init` writes rules.
    NetAdmin,
    /// The control plane reads and writes a directory of somebody else's.
    ReadFiles,
}

impl Capabilities {
    fn setpriv_bounding_set(self) -> &'static str {
        match self {
            Self::None => "-all",
            Self::NetAdmin => "-all,+net_admin",
            Self::ReadFiles => "-all,+dac_override,+fowner",
        }
    }
}

impl Enter {
    /// Becomes the command. Returns only when that is impossible.
    ///
    /// # Errors
    /// Says which step failed.
    pub fn exec(self) -> anyhow::Result<Infallible> {
        if let Some(parent) = self.parent {
            prctl::set_pdeathsig(Signal::SIGKILL).context("prctl(PR_SET_PDEATHSIG)")?;
            if getppid().as_raw() != parent {
                bail!("the lab's node process is gone");
            }
        }
        let netns = Path::new(NETNS_ROOT).join(&self.netns);
        let netns = File::open(&netns).with_context(|| format!("open {}", netns.display()))?;
        setns(&netns, CloneFlags::CLONE_NEWNET).context("enter the pod's network namespace")?;
        drop(netns);
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
            .context("make a mount namespace")?;
        sethostname(&self.hostname).context("set the host name")?;
        self.bind_files()?;
        let argv = self.drop_privileges()?;
        std::env::set_current_dir(&self.cwd)
            .with_context(|| format!("enter the working directory {}", self.cwd.display()))?;
        let (program, args) =
            argv.split_first().ok_or_else(|| anyhow!("the command is empty: name a program"))?;
        if self.parent.is_some() {
            prctl::set_pdeathsig(None).context("prctl(PR_SET_PDEATHSIG)")?;
        }
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(self.env.iter().map(|(k, v)| (k, v)));
        Err(command.exec()).with_context(|| format!("cannot run {program:?} as uid {}", self.uid))
    }

    fn bind_files(&self) -> anyhow::Result<()> {
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
            .context("detach the mount namespace from the host's")?;
        for file in &self.etc {
            let target = Path::new("/etc").join(&file.name);
            // A machine without the file needs no other version of it either: the C library's
            // default asks /etc/hosts first.
            if !target.exists() {
                continue;
            }
            mount(Some(&file.source), &target, none, MsFlags::MS_BIND, none).with_context(
                || format!("bind {} over {}", file.source.display(), target.display()),
            )?;
        }
        Ok(())
    }

    /// A change from root to another uid clears every capability, and `no_new_privs` keeps set-uid
    /// programs from bringing any back. Root would keep them; `setpriv` takes them away.
    fn drop_privileges(&self) -> anyhow::Result<Vec<String>> {
        if self.uid == 0 {
            let setpriv = [
                "setpriv",
                "--no-new-privs",
                "--inh-caps=-all",
                &format!("--bounding-set={}", self.capabilities.setpriv_bounding_set()),
                "--",
            ];
            return Ok(setpriv.iter().map(|s| (*s).to_owned()).chain(self.argv.clone()).collect());
        }
        setgroups(&[]).context("drop supplementary groups")?;
        setgid(Gid::from_raw(self.gid)).with_context(|| format!("become gid {}", self.gid))?;
        setuid(Uid::from_raw(self.uid)).with_context(|| format!("become uid {}", self.uid))?;
        prctl::set_no_new_privs().context("prctl(PR_SET_NO_NEW_PRIVS)")?;
        Ok(self.argv.clone())
    }
}
