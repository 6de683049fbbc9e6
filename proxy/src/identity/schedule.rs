//! When a certificate is renewed. Pure: clocks and randomness are arguments.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// Longest time between two looks at the clocks: a timer alone would stop while the machine
/// sleeps.
pub(super) const MAX_TICK: Duration = Duration::from_secs(30);
/// No wait is cut below this, however little is left.
const MIN_RETRY_CAP: Duration = Duration::from_millis(200);

/// The two clocks that between them notice everything: wall time sees steps of the clock, boot time
/// sees sleep and cannot be set back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub(super) wall: SystemTime,
    pub(super) boot: Duration,
}

impl Clocks {
    pub(super) fn now() -> Self {
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock");
        Self { wall: SystemTime::now(), boot: boot.into() }
    }
}

/// One certificate's dates.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    received: Clocks,
    validity: Range<SystemTime>,
    /// From receipt to the end.
    life: Duration,
    /// From receipt to renewal.
    due_after: Duration,
}

impl Schedule {
    /// For a certificate received at `now`. `random` in 0..1 spreads renewals over 60 to 75 % of its
    /// life, so that a fleet that started together does not renew together. Life counts from receipt:
    /// the start of validity lies before it by an allowance for clocks.
    pub(super) fn new(now: Clocks, validity: Range<SystemTime>, random: f64) -> Self {
        let life = validity.end.duration_since(now.wall).unwrap_or_default();
        let due_after = life.mul_f64(0.15f64.mul_add(random.clamp(0.0, 1.0), 0.6));
        Self { received: now, validity, life, due_after }
    }

    pub(super) fn is_due(&self, now: Clocks) -> bool {
        now.wall >= self.received.wall + self.due_after
            || now.boot >= self.received.boot + self.due_after
            // The clock was set back: peers with the same clock refuse it from now on.
            || now.wall < self.validity.start
    }

    /// What is left of its life; `None` once it has ended, by our wall clock, as peers judge it by
    /// theirs.
    pub(super) fn remaining(&self, now: Clocks) -> Option<Duration> {
        self.validity.end.duration_since(now.wall).ok().filter(|left| !left.is_zero())
    }

    /// How often to look at the clocks.
    pub(super) fn tick(&self) -> Duration {
        MAX_TICK.min(self.life / 20).max(Duration::from_millis(50))
    }
}

/// The wait after a failure: as the backoff says, but never so long that fewer than ten attempts fit
/// into what is left.
pub(super) fn retry_wait(backoff: Duration, remaining: Option<Duration>) -> Duration {
    match remaining {
        Some(left) => backoff.min((left / 10).max(MIN_RETRY_CAP)),
        None => backoff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn clocks(wall: Duration, boot: Duration) -> Clocks {
        Clocks { wall: SystemTime::UNIX_EPOCH + 100 * DAY + wall, boot: DAY + boot }
    }

    fn start() -> Clocks {
        clocks(Duration::ZERO, Duration::ZERO)
    }

    /// Valid from a minute before `start` for `life`.
    fn schedule(life: Duration, random: f64) -> Schedule {
        let validity = start().wall - Duration::from_secs(60)..start().wall + life;
        Schedule::new(start(), validity, random)
    }

    #[test]
    fn a_certificate_from_the_future_is_due() {
        let schedule = schedule(DAY, 0.5);
        let back = |seconds| Clocks {
            wall: start().wall - Duration::from_secs(seconds),
            boot: start().boot + Duration::from_secs(1),
        };
        assert!(!schedule.is_due(back(59)), "within the allowance");
        assert!(schedule.is_due(back(61)));
    }

    #[test]
    fn due_between_60_and_75_percent_by_either_clock() {
        for life in [Duration::from_secs(20), DAY] {
            for (random, percent) in [(0.0, 60), (0.5, 67), (1.0, 75)] {
                let schedule = schedule(life, random);
                let before = life * percent / 100 - life / 100;
                let after = life * percent / 100 + life / 100;
                assert!(!schedule.is_due(clocks(before, before)), "{life:?} {random}");
                assert!(schedule.is_due(clocks(after, after)), "{life:?} {random}");
                // The wall clock was set back, or stepped forward, or the machine slept.
                assert!(schedule.is_due(clocks(Duration::ZERO, after)), "{life:?} {random}");
                assert!(schedule.is_due(clocks(after, Duration::ZERO)), "{life:?} {random}");
            }
        }
    }

    #[test]
    fn ticks_are_fine_enough_for_short_lives() {
        for (life, tick) in [(20, 1000), (60, 3000), (600, 30_000), (86_400, 30_000)] {
            let schedule = schedule(Duration::from_secs(life), 0.5);
            assert_eq!(schedule.tick().as_millis(), tick, "{life}");
        }
        // Dead on arrival: no busy loop.
        assert_eq!(schedule(Duration::ZERO, 0.5).tick().as_millis(), 50);
    }

    #[test]
    fn nothing_remains_at_the_end() {
        let schedule = schedule(DAY, 0.5);
        assert_eq!(schedule.remaining(start()), Some(DAY));
        assert_eq!(schedule.remaining(clocks(DAY, DAY)), None);
        assert_eq!(schedule.remaining(clocks(2 * DAY, DAY)), None);
    }

    #[test]
    fn ten_attempts_fit_into_what_is_left() {
        let secs = Duration::from_secs;
        for (backoff, remaining, want) in [
            (secs(300), Some(secs(8 * 3600)), secs(300)),
            (secs(300), Some(secs(600)), secs(60)),
            (secs(300), Some(secs(6)), Duration::from_millis(600)),
            (secs(300), Some(Duration::from_millis(10)), Duration::from_millis(200)),
            (Duration::from_millis(50), Some(secs(6)), Duration::from_millis(50)),
            (secs(5), None, secs(5)),
        ] {
            assert_eq!(retry_wait(backoff, remaining), want, "{backoff:?} {remaining:?}");
        }
    }
}
