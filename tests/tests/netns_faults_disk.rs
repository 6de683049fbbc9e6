//! The disk that manifests and state lie on is full: what is read goes on, what cannot be written is
//! said, and nothing is lost by it.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use heddle_tests::faults::{Account, Cases, Plan, Traffic, World, eventually};
use heddle_tests::lab::Options;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const MESH: &str = include_str!("../data/faults.yaml");
const SOON: Duration = Duration::from_secs(5);

/// A small file system of its own, gone with the value.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> nix::Result<Self> {
        mount(Some("heddle"), at, Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=755"))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_stops_nothing_that_needs_none() {
    let root = tempfile::Builder::new().prefix("heddle-disk-").tempdir_in("/tmp").unwrap();
    // Before the mount: the lab of a directory must be gone before its disk is.
    let disk = Disk::mount(root.path()).unwrap();
    {
        let dir = tempfile::Builder::new().prefix("mesh-").tempdir_in(root.path()).unwrap();
        let files = [("mesh.yaml", MESH), ("split.yaml", &split(100, 0))];
        let world = World::up_in(dir, &files, Options::default()).unwrap();
        let mut cases = Cases::default();
        cases.run(&world, "disk full", full);
        cases.finish();
    }
    drop(disk);
}

/// As long as any other, so that one can stand where another stood.
fn split(v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: heddle.io/v1alpha1\nkind: TrafficSplit\nmetadata: {{ name: web }}\n\
         spec:\n  service: web\n  backends:\n    - {{ service: web-v1, weight: {v1:<3} }}\n    \
         - {{ service: web-v2, weight: {v2:<3} }}\n"
    )
}

/// Writes until nothing fits.
fn fill(path: &Path) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    for size in [64 * 1024, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    let probe = path.with_extension("probe");
    let refused = fs::write(&probe, b"x").is_err();
    let _ = fs::remove_file(probe);
    ensure!(refused, "the disk is not full");
    Ok(())
}

fn drawn_from(world: &World, pod: &str) -> anyhow::Result<()> {
    let plan = Plan { duration_ms: 100, ..Plan::steady("client", "http://web/") };
    let account = Account::new(Traffic::run(world, &plan)?, world.ledger()?);
    account.expect_clean()?;
    ensure!(account.by_pod().keys().eq([&pod]), "{:?}", account.by_pod());
    Ok(())
}

/// Overwrites the split where it stands, which needs no room.
fn overwrite(world: &World, text: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).open(world.dir().join("split.yaml"))?;
    file.write_all_at(text.as_bytes(), 0).context("overwrite the split")
}

fn full(world: &World) -> anyhow::Result<()> {
    drawn_from(world, "web-1")?;
    let traffic = Traffic::start(world, &Plan::steady("client", "http://all/"))?;
    let ballast = world.dir().join("ballast");
    fill(&ballast)?;
    let outcome = while_full(world, &traffic);
    fs::remove_file(ballast)?;
    outcome?;
    eventually("an epoch can be raised again", SOON, || world.ctl(&["raise-epoch"]))?;
    world.write("split.yaml", &split(100, 0))?;
    eventually("a new file is followed", SOON, || drawn_from(world, "web-1"))?;
    Account::new(traffic.finish()?, world.ledger()?).expect_clean()
}

fn while_full(world: &World, traffic: &Traffic) -> anyhow::Result<()> {
    overwrite(world, &split(0, 100))?;
    eventually("a change is followed", SOON, || drawn_from(world, "web-2"))?;
    let refused = world.ctl(&["raise-epoch"]).err().context("an epoch that is not kept")?;
    eprintln!("  {refused:#}");
    ensure!(format!("{refused:#}").contains("No space left"), "{refused:#}");
    // Also a control plane that starts now.
    world.kill("control-plane")?;
    traffic.more(100)?;
    world.lab().start("control-plane")?;
    world.await_streams()?;
    let failures =
        world.control_plane_metric("heddle_control_plane_version_write_failures_total")?;
    ensure!(failures > 0.0, "versions were written: {failures}");
    overwrite(world, &split(100, 0))?;
    eventually("a change is followed", SOON, || drawn_from(world, "web-1"))?;
    traffic.more(100)
}
