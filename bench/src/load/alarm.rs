//! A timer that is on time: the runtime's own is exact to a millisecond, which is more than most
//! answers take.

use std::io;
use std::os::fd::AsFd as _;

use anyhow::Context as _;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::net::unix::pipe::Receiver;
use tokio::time::Instant;

pub(super) struct Alarm {
    timer: TimerFd,
    /// The same timer. It is no pipe, but is waited for and read like one.
    rings: Receiver,
}

impl Alarm {
    pub(super) fn new() -> anyhow::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("make a timer")?;
        let rings = Receiver::from_owned_fd_unchecked(timer.as_fd().try_clone_to_owned()?)?;
        Ok(Self { timer, rings })
    }

    pub(super) async fn sleep_until(&mut self, due: Instant) -> anyhow::Result<()> {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let expiration = Expiration::OneShot(TimeSpec::from(left));
        self.timer.set(expiration, TimerSetTimeFlags::empty())?;
        let mut expirations = [0; 8];
        loop {
            self.rings.readable().await?;
            match self.rings.try_read(&mut expirations) {
                Ok(_) => return Ok(()),
                // What was noted was the ring before.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("read a timer"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn never_early() {
        let mut alarm = Alarm::new().unwrap();
        for microseconds in [0, 50, 300, 1500, 20] {
            let due = Instant::now() + Duration::from_micros(microseconds);
            alarm.sleep_until(due).await.unwrap();
            assert!(Instant::now() >= due);
        }
    }
}
