//! A second control plane over the same manifests, with an authority of its own.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use super::{World, eventually};

/// It runs in the network namespace of the lab's own; killed when it is dropped.
#[derive(Debug)]
pub struct Rogue {
    child: Child,
    /// Where proxies reach it.
    pub address: SocketAddr,
    root: TempDir,
}

impl Rogue {
    /// Returns when it has an authority and listens.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(world: &World, port: u16) -> anyhow::Result<Self> {
        let root = tempfile::Builder::new().prefix("heddle-rogue-").tempdir_in("/tmp")?;
        // Its bundle is for a proxy to read.
        fs::set_permissions(root.path(), Permissions::from_mode(0o755))?;
        let layout = world.lab().layout();
        let status = world.lab().status()?.control_plane;
        let address = *status.addresses.first().context("an address of the control plane")?;
        let log = fs::File::create(root.path().join("log"))?;
        let child = Command::new("ip")
            .args(["netns", "exec", &layout.control_plane_netns()])
            .arg(layout.bin().join("heddle-control-plane"))
            .arg("--dir")
            .arg(world.dir())
            .arg("--state-dir")
            .arg(root.path().join("state"))
            .arg("--token-key-file")
            .arg(layout.state().join("token-key"))
            .arg("--trust-bundle-out")
            .arg(root.path().join("trust-bundle.pem"))
            .args(["--listen", &format!("[::]:{port}"), "--admin", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start a second control plane")?;
        let rogue = Self { child, address: SocketAddr::new(address, port), root };
        eventually("the second control plane has an authority", Duration::from_secs(5), || {
            let log = fs::read_to_string(rogue.root.path().join("log"))?;
            ensure!(rogue.trust_bundle().exists(), "{log}");
            Ok(())
        })?;
        Ok(rogue)
    }

    /// Its roots, for a proxy that is to believe it.
    #[must_use]
    pub fn trust_bundle(&self) -> PathBuf {
        self.root.path().join("trust-bundle.pem")
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
