//! Finds the processes of a network namespace. Reads /proc; sends a signal when asked.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::NETNS_ROOT;

/// Every process in the namespace with this name. None when there is no such namespace.
pub(crate) fn in_netns(netns: &str) -> Vec<Pid> {
    let Ok(wanted) = fs::metadata(Path::new(NETNS_ROOT).join(netns)) else { return Vec::new() };
    all()
        .into_iter()
        .filter(|pid| {
            // A process that ended meanwhile has no namespace any more.
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|found| found.ino() == wanted.ino() && found.dev() == wanted.dev())
        })
        .collect()
}

/// Every process whose arguments satisfy `is_meant`, but for this one.
pub(crate) fn with_arguments(is_meant: impl Fn(&[String]) -> bool) -> Vec<Pid> {
    all()
        .into_iter()
        .filter(|pid| *pid != Pid::this())
        .filter(|pid| {
            let Ok(bytes) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
            let text = String::from_utf8_lossy(&bytes);
            let arguments: Vec<_> = text.split_terminator('\0').map(str::to_owned).collect();
            is_meant(&arguments)
        })
        .collect()
}

fn all() -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .collect()
}

/// Signals processes that may be gone already, which is no mistake.
pub(crate) fn signal_all(pids: &[Pid], signal: Signal) {
    for pid in pids {
        let _ = kill(*pid, signal);
    }
}
