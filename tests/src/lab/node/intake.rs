//! Where the node's events come from, pods aside: the directory of manifests and the socket.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::{Event, Reply};
use crate::lab::layout::Layout;
use crate::lab::manifests::is_manifest;

/// Editors write a file in several steps; what follows within this time is one change.
const SETTLE: Duration = Duration::from_millis(40);
/// Longest command line that is read.
const MAX_REQUEST: u64 = 1 << 20;

/// Watches until what it returns is dropped.
pub(super) fn watch(
    layout: &Layout,
    events: &mpsc::Sender<Event>,
) -> anyhow::Result<[RecommendedWatcher; 2]> {
    let manifests = watch_dir(layout.dir(), is_manifest, events, || Event::ManifestsChanged)?;
    let bundle = |path: &Path| path.ends_with("trust-bundle.pem");
    let state = watch_dir(&layout.state(), bundle, events, || Event::TrustBundleChanged)?;
    Ok([manifests, state])
}

fn watch_dir(
    dir: &Path,
    is_meant: fn(&Path) -> bool,
    events: &mpsc::Sender<Event>,
    event: fn() -> Event,
) -> anyhow::Result<RecommendedWatcher> {
    // One pending signal is as good as many.
    let (signal, mut signals) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |change: notify::Result<notify::Event>| {
        let is_meant = change.map_or(true, |change| {
            !change.kind.is_access()
                && (change.need_rescan() || change.paths.iter().any(|path| is_meant(path)))
        });
        if is_meant {
            let _ = signal.try_send(());
        }
    })?;
    watcher
        .watch(dir, RecursiveMode::NonRecursive)
        .with_context(|| format!("watch {}", dir.display()))?;
    let events = events.clone();
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            tokio::time::sleep(SETTLE).await;
            let _ = signals.try_recv();
            if events.send(event()).await.is_err() {
                return;
            }
        }
    });
    Ok(watcher)
}

/// Takes commands from whoever may open the socket: its owner.
pub(super) fn listen(layout: &Layout, events: &mpsc::Sender<Event>) -> anyhow::Result<()> {
    let path = layout.socket();
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let events = events.clone();
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let events = events.clone();
                    tokio::spawn(async move {
                        if let Err(error) = serve(stream, &events).await {
                            tracing::debug!("command: {error:#}");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("accept a command: {error}");
                    tokio::time::sleep(SETTLE).await;
                }
            }
        }
    });
    Ok(())
}

async fn serve(stream: UnixStream, events: &mpsc::Sender<Event>) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(MAX_REQUEST)).read_line(&mut line).await?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => {
            let (sender, reply) = oneshot::channel();
            events.send(Event::Command(request, sender)).await?;
            reply.await?
        }
        Err(error) => Reply::Failed { message: format!("not a command of this version: {error}") },
    };
    writer.write_all(serde_json::to_string(&reply)?.as_bytes()).await?;
    writer.shutdown().await?;
    Ok(())
}
