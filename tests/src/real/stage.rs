//! A lab with everything that the tests' programs need in reach of the applications' uid, which
//! cannot enter the checkout nor root's home: scripts, settings, a directory to share, Python.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::ran::{Ran, tail};
use super::suite::Side;
use crate::lab::{Lab, Options};

/// Where `scripts/prepare` keeps what no distribution packages: as root, a place that every uid
/// can read. `HEDDLE_CACHE` moves it, here as there.
pub(super) fn tools() -> PathBuf {
    std::env::var_os("HEDDLE_CACHE").map_or_else(|| "/var/cache/heddle".into(), PathBuf::from)
}

/// A lab that is up, and its files.
#[derive(Debug)]
pub struct Stage {
    lab: Lab,
    // After the lab: it goes down before its files go.
    root: TempDir,
}

impl Stage {
    /// Starts a lab of `manifests`, in which these stand for paths: `@FILES@` the scripts and
    /// settings of `tests/data/real`, `@SHARED@` a directory that everybody may write, `@PYTHON@`
    /// the interpreter with the tests' packages.
    ///
    /// # Errors
    /// What is not ready, and why.
    pub fn up(manifests: &[String], options: Options) -> anyhow::Result<Self> {
        let root = tempfile::Builder::new().prefix("heddle-real-").tempdir_in("/tmp")?;
        open_to(root.path(), 0o755)?;
        for (name, mode) in [("files", 0o755), ("shared", 0o1777), ("mesh", 0o755)] {
            fs::create_dir(root.path().join(name))?;
            open_to(&root.path().join(name), mode)?;
        }
        copy_files(root.path())?;
        for (number, text) in manifests.iter().enumerate() {
            fs::write(root.path().join(format!("mesh/{number}.yaml")), fill(text, root.path()))?;
        }
        let mut options = Options { timeout: Duration::from_secs(120), ..options };
        options.programs.extend([beside_tests("heddle-app")?]);
        let h2spec = tools().join("bin/h2spec");
        if h2spec.is_file() {
            options.programs.push(h2spec);
        }
        let lab = Lab::up(&root.path().join("mesh"), &options)?;
        Ok(Self { lab, root })
    }

    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A script or settings file, as pods see it.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        self.root.path().join("files").join(name).display().to_string()
    }

    /// A file in the directory that everybody may write.
    #[must_use]
    pub fn shared(&self, name: &str) -> PathBuf {
        self.root.path().join("shared").join(name)
    }

    /// Writes a file that everybody may read.
    ///
    /// # Errors
    /// As the file system's.
    pub fn share(&self, name: &str, content: &[u8]) -> anyhow::Result<String> {
        let path = self.shared(name);
        fs::write(&path, content)?;
        open_to(&path, 0o644)?;
        Ok(path.display().to_string())
    }

    /// Runs a program in a pod. One that takes longer than a minute and a half has failed.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn run(&self, pod: &str, argv: &[&str]) -> anyhow::Result<Ran> {
        let mut limited = vec!["timeout", "-k", "1", "90"];
        limited.extend(argv);
        Ok(self.lab.exec(pod, &limited)?.into())
    }

    /// Runs a script of `tests/data/real`.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn python(&self, pod: &str, script: &str, args: &[&str]) -> anyhow::Result<Ran> {
        let (python, script) = (python(), self.file(script));
        let mut argv = vec![python.as_str(), &script];
        argv.extend(args);
        self.run(pod, &argv)
    }

    /// Starts a script and lets it run.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn start_python(
        &self,
        pod: &str,
        script: &str,
        args: &[&str],
    ) -> anyhow::Result<Background> {
        let (python, script) = (python(), self.file(script));
        let mut argv = vec![python.as_str(), &script];
        argv.extend(args);
        self.start(pod, &argv)
    }

    /// Starts a program and lets it run.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn start(&self, pod: &str, argv: &[&str]) -> anyhow::Result<Background> {
        let mut limited = vec!["timeout", "-k", "1", "150"];
        limited.extend(argv);
        Ok(Background(Some(self.lab.spawn(pod, &limited)?)))
    }

    /// The address of a pod: IPv4 first, IPv6 second.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn address(&self, pod: &str, family: usize) -> anyhow::Result<std::net::IpAddr> {
        let status = self.lab.pod(pod)?;
        status.addresses.get(family).copied().with_context(|| format!("{pod} has no such address"))
    }

    /// The last lines of the proxies that had a part in a failure.
    #[must_use]
    pub fn proxy_logs(&self, side: &Side) -> String {
        let Ok(status) = self.lab.status() else { return "the lab is gone".into() };
        let ours = |namespace: &str| namespace == side.client || namespace == side.server;
        let meshed = status.pods.iter().filter(|pod| pod.meshed && ours(&pod.namespace));
        meshed
            .filter_map(|pod| {
                let name = pod.key().to_string();
                let log = self.lab.logs(&name, "proxy").ok()?;
                Some(format!("--- proxy of {name}\n{}", tail(&log)))
            })
            .collect()
    }
}

/// A program that runs in a pod; killed when it is dropped.
#[derive(Debug)]
pub struct Background(Option<Child>);

impl Background {
    /// Waits for its end.
    ///
    /// # Errors
    /// When it was lost.
    pub fn wait(mut self) -> anyhow::Result<Ran> {
        let child = self.0.take().context("waited for twice")?;
        Ok(child.wait_with_output()?.into())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // SIGTERM, which `timeout` passes on to what it runs.
            if let Ok(pid) = i32::try_from(child.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let _ = child.wait();
        }
    }
}

fn python() -> String {
    tools().join("venv/test/bin/python").display().to_string()
}

fn fill(text: &str, root: &Path) -> String {
    text.replace("@FILES@", &root.join("files").display().to_string())
        .replace("@SHARED@", &root.join("shared").display().to_string())
        .replace("@PYTHON@", &python())
}

fn copy_files(root: &Path) -> anyhow::Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/real");
    for entry in fs::read_dir(&source)? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        let target = root.join("files").join(name);
        fs::write(&target, fill(&fs::read_to_string(&path)?, root))?;
        open_to(&target, 0o644)?;
    }
    Ok(())
}

fn open_to(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("open {} to everybody", path.display()))
}

/// A program of this workspace: test programs lie one directory below it.
fn beside_tests(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let dir = program.parent().and_then(Path::parent).context("no build directory")?;
    let path = dir.join(name);
    anyhow::ensure!(path.is_file(), "{} is not built: run `make lab`", path.display());
    Ok(path)
}
