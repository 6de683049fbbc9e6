//! One clock for the demo, its clients and its servers: microseconds since the Unix epoch.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    micros(since)
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).expect("shorter than half a million years")
}

#[expect(clippy::cast_precision_loss, reason = "durations of seconds fit a float exactly enough")]
pub(super) fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "durations of seconds fit a float exactly enough")]
pub(super) fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}
