//! Exponential backoff with full jitter. Pure: the caller brings the random number and does the
//! waiting.

use std::time::Duration;

/// Delays that double from `base` up to `max`, each scaled by a random number, so that many clients
/// that failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// The first delay is at most `base`, no delay is above `max`.
    #[must_use]
    pub fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, ceiling: base.min(max) }
    }

    /// How long to wait before the next attempt: uniform between nothing and the current ceiling.
    /// `random` is in `0.0..1.0`; what lies outside is clamped.
    pub fn next(&mut self, random: f64) -> Duration {
        let random = if random.is_finite() { random.clamp(0.0, 1.0) } else { 1.0 };
        let delay = self.ceiling.mul_f64(random);
        self.ceiling = self.ceiling.saturating_mul(2).min(self.max);
        delay
    }

    /// After a success: start again at `base`.
    pub fn reset(&mut self) {
        self.ceiling = self.base.min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(15);

    #[test]
    fn doubles_up_to_the_maximum_and_starts_again() {
        let mut backoff = Backoff::new(BASE, MAX);
        let ceilings: Vec<u128> = (0..12).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(
            ceilings,
            [50, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000, 15_000]
        );
        backoff.reset();
        assert_eq!(backoff.next(1.0), BASE);
    }

    #[test]
    fn jitter_is_full_and_bounded() {
        for (random, want) in [(0.0, 0), (0.5, 25), (1.0, 50), (-3.0, 0), (7.0, 50)] {
            assert_eq!(Backoff::new(BASE, MAX).next(random).as_millis(), want, "{random}");
        }
        assert_eq!(Backoff::new(BASE, MAX).next(f64::NAN), BASE);
    }

    #[test]
    fn never_overflows() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::MAX);
        for _ in 0..200 {
            backoff.next(0.1);
        }
    }
}
