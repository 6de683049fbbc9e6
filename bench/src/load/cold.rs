//! How long sidecars take from their start to the first good answer.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, timeout_at};

use super::Target;
use super::alarm::Alarm;
use super::http1::Connection;

/// Between two attempts. Short against what is measured, long against one attempt's cost.
const RETRY: Duration = Duration::from_micros(500);
/// No contender is that slow.
const LIMIT: Duration = Duration::from_secs(20);

/// Tries until an answer is good; says how long that took since `started`.
pub(crate) async fn first_answer(target: &Target, started: Instant) -> anyhow::Result<Duration> {
    let mut last = anyhow::anyhow!("no attempt ended");
    let mut alarm = Alarm::new()?;
    let attempts = async {
        loop {
            match attempt(target).await {
                Ok(()) => return anyhow::Ok(started.elapsed()),
                Err(error) => last = error,
            }
            alarm.sleep_until(Instant::now() + RETRY).await?;
        }
    };
    match timeout_at(started + LIMIT, attempts).await {
        Ok(answered) => answered,
        Err(_) => Err(last).context("no good answer in time; the last attempt"),
    }
}

async fn attempt(target: &Target) -> anyhow::Result<()> {
    Connection::open(target).await?.exchange().await
}
