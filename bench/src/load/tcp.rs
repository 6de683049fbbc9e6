//! Opaque TCP: one stream as fast as it goes, and how long a server that speaks first takes to be
//! heard.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::{Target, in_time};
use crate::backend::GREETING;
use crate::process::Usage;

/// What one stream carried.
#[derive(Debug)]
pub(crate) struct Stream {
    pub bytes: u64,
    pub elapsed: Duration,
    /// Of the sidecars.
    pub cpu: Duration,
}

/// Client to server, until the server has confirmed the last byte.
pub(crate) async fn stream(
    target: &Target,
    duration: Duration,
    sidecars: &[u32],
) -> anyhow::Result<Stream> {
    let mut stream = target.connect().await?;
    let buffer = vec![b'.'; 256 << 10];
    let (started, before) = (Instant::now(), Usage::of(sidecars)?);
    let mut bytes = 0;
    while started.elapsed() < duration {
        let write = async { Ok(stream.write(&buffer).await?) };
        bytes += in_time(write).await.context("send")? as u64;
    }
    let total = async {
        stream.shutdown().await?;
        let mut total = [0; 8];
        stream.read_exact(&mut total).await?;
        Ok(u64::from_be_bytes(total))
    };
    let received = in_time(total).await.context("wait for the confirmation")?;
    let (elapsed, after) = (started.elapsed(), Usage::of(sidecars)?);
    ensure!(received == bytes, "{bytes} bytes were sent and {received} arrived");
    Ok(Stream { bytes, elapsed, cpu: after.cpu.saturating_sub(before.cpu) })
}

/// From the dial to the whole greeting of a server that speaks first.
pub(crate) async fn greeting(target: &Target) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut stream = target.connect().await?;
    let mut greeting = [0; GREETING.len()];
    let read = async { Ok(stream.read_exact(&mut greeting).await?) };
    in_time(read).await.context("wait for the greeting")?;
    ensure!(greeting == GREETING, "another greeting: {}", greeting.escape_ascii());
    Ok(started.elapsed())
}
