//! Programs that run for as long as somebody here wants them to, and not one moment longer.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use anyhow::{Context as _, bail};

/// Starts programs that die with this process, also when it is killed.
///
/// The kernel ties that promise to the thread that forks, not to the process: a test's own thread
/// may end while what it has started is still in use. So one thread does all the forking, and
/// lives as long as this does.
#[derive(Debug)]
pub(crate) struct Keeper {
    requests: SyncSender<Request>,
}

type Request = (Command, SyncSender<io::Result<Child>>);

impl Keeper {
    pub(crate) fn start() -> io::Result<Self> {
        let (requests, queue) = sync_channel::<Request>(1);
        thread::Builder::new().name("keeper".into()).spawn(move || {
            for (mut command, reply) in queue {
                // Whoever asked has gone: nobody would ever end the child.
                if let Err(error) = reply.send(command.spawn())
                    && let Ok(mut child) = error.0
                {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        })?;
        Ok(Self { requests })
    }

    /// Starts `program` in `dir`, writing to `dir/NAME.log`.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        program: &Path,
        dir: &Path,
        arguments: &[String],
    ) -> anyhow::Result<Daemon> {
        let log = dir.join(format!("{name}.log"));
        let out = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        command.current_dir(dir).stdin(Stdio::null()).stderr(File::try_clone(&out)?).stdout(out);
        let (reply, child) = sync_channel(1);
        self.requests.send((command, reply)).ok().context("the keeper's thread is gone")?;
        let child = child.recv().context("the keeper's thread is gone")?;
        let child = child.with_context(|| format!("run {}", program.display()))?;
        Ok(Daemon { name, child, log })
    }
}

/// A program that was started; killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// An error when it has ended by itself, with the last that it wrote.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended, {status}\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    pub(crate) fn log_tail(&self) -> String {
        const LENGTH: usize = 4000;
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LENGTH)..]).into_owned()
    }
}

impl Daemon {
    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
