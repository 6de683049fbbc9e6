//! Waiting for what other processes do, and the clock that their records share.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use tokio::time::Instant;

/// Microseconds since the Unix epoch, as in a [`crate::load::Record`].
#[must_use]
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(since.as_micros()).expect("the clock is before the year 500000")
}

/// Asks until `attempt` succeeds, and returns how long that took with what it found.
///
/// # Errors
/// The last attempt's, when none succeeded within `limit`.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<(Duration, T)> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Ok(found) => return Ok((begun.elapsed(), found)),
            Err(error) if begun.elapsed() > limit => {
                bail!("{what}: not within {limit:?}: {error:#}")
            }
            Err(_) => pause(Duration::from_millis(20)),
        }
    }
}

/// Lets time pass: where time itself is the subject, or between two looks at another process.
#[expect(clippy::disallowed_methods, reason = "this thread waits for other processes, no runtime")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
