//! What the demo leaves behind, found by looking at the machine and not by asking the lab.
//!
//! Other labs may come and go meanwhile; what counts is what bears this lab's name, what runs in
//! its namespaces, and what changed about the host's own rules.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use crate::lab::layout::{NETNS_ROOT, RUN_ROOT};
use crate::lab::{Lab, Layout};

/// The lab's network namespaces by inode: they outlive their names while a process is in them.
#[derive(Clone, Debug, Default)]
pub(super) struct Namespaces(BTreeSet<u64>);

impl Namespaces {
    pub(super) fn of(lab: &Lab) -> anyhow::Result<Self> {
        let inode = |name: &String| {
            let path = Path::new(NETNS_ROOT).join(name);
            let metadata = fs::metadata(&path);
            Ok(metadata.with_context(|| format!("look at {}", path.display()))?.ino())
        };
        let names = lab.layout().existing_netns();
        Ok(Self(names.iter().map(inode).collect::<anyhow::Result<_>>()?))
    }

    /// Those that nobody else has by now: the kernel gives the number of a namespace that is gone
    /// to a new one, and that one has a name.
    fn without_reused(&self) -> BTreeSet<u64> {
        let named = fs::read_dir(NETNS_ROOT).into_iter().flatten().flatten();
        let named = named.filter_map(|entry| Some(fs::metadata(entry.path()).ok()?.ino()));
        self.0.difference(&named.collect()).copied().collect()
    }
}

/// The parts of the host that a lab has no business with.
#[derive(Debug)]
pub(super) struct Machine {
    rules: BTreeSet<String>,
}

impl Machine {
    pub(super) fn look() -> Self {
        let commands: [&[&str]; 4] = [
            &["nft", "list", "ruleset"],
            &["ip", "rule"],
            &["ip", "-6", "rule"],
            &["ip", "-o", "-br", "link"],
        ];
        let rules = commands.into_iter().flat_map(|command| {
            let output = Command::new(command[0]).args(&command[1..]).output();
            // A machine without the tool has none of its rules.
            let text = output.map(|output| output.stdout).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            text.lines().map(|line| format!("{}: {line}", command.join(" "))).collect::<Vec<_>>()
        });
        Self { rules: rules.collect() }
    }

    /// One line for everything that is there now and should not be, or is gone and should not be.
    pub(super) fn leftovers(
        &self,
        layout: &Layout,
        namespaces: Option<&Namespaces>,
    ) -> Vec<String> {
        let mut left = Vec::new();
        let names = layout.existing_netns();
        left.extend(names.into_iter().map(|name| format!("network namespace {name}")));
        for path in [layout.run(), layout.lock(), layout.state()] {
            if path.exists() {
                left.push(format!("file {}", path.display()));
            }
        }
        left.extend(processes(layout, namespaces));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let ours = [layout.netns_prefix(), layout.run().display().to_string()];
        let is_ours = |line: &&str| ours.iter().any(|name| line.contains(name));
        left.extend(mounts.lines().filter(is_ours).map(|line| format!("mount {line}")));
        let changed =
            self.rules.symmetric_difference(&Self::look().rules).cloned().collect::<Vec<_>>();
        left.extend(changed.into_iter().map(|rule| format!("changed on the host: {rule}")));
        left
    }
}

fn processes(layout: &Layout, namespaces: Option<&Namespaces>) -> Vec<String> {
    let own = std::process::id();
    let run = layout.run();
    let namespaces = namespaces.map(Namespaces::without_reused).unwrap_or_default();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_ours = |pid: &u32| {
        let proc = Path::new("/proc").join(pid.to_string());
        let inode = fs::metadata(proc.join("ns/net")).map(|metadata| metadata.ino());
        let is_inside = inode.is_ok_and(|inode| namespaces.contains(&inode));
        // A removed program's link ends in " (deleted)", its beginning is still ours.
        let is_program = fs::read_link(proc.join("exe")).is_ok_and(|exe| exe.starts_with(&run));
        *pid != own && (is_inside || is_program)
    };
    let describe = |pid: u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("process {pid} {}", String::from_utf8_lossy(&command).replace('\0', " "))
    };
    debug_assert!(run.starts_with(RUN_ROOT), "else every process would match");
    pids.filter(is_ours).map(describe).collect()
}
