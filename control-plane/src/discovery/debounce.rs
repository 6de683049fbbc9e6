//! When a change is sent. Pure: `now` is an argument.
//!
//! The first change of a quiet period goes at once, those that follow closely are gathered until it
//! is quiet again or the oldest has waited long enough, and an urgent one takes all with it at once.

use std::time::Duration;

use tokio::time::Instant;

/// A change is the first of a quiet period when none came before it for this long.
const QUIET: Duration = Duration::from_millis(50);
/// No change waits longer.
const HARD_MAX: Duration = Duration::from_millis(500);

/// Decides for one subscriber.
#[derive(Debug, Default)]
pub(crate) struct Debounce {
    last_change: Option<Instant>,
    pending: Option<Pending>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    first: Instant,
    due: Instant,
}

impl Debounce {
    /// Notes a change at `now`.
    pub(crate) fn change(&mut self, now: Instant, urgent: bool) {
        let quiet = self.last_change.is_none_or(|last| now.duration_since(last) >= QUIET);
        self.last_change = Some(now);
        let first = self.pending.map_or(now, |pending| pending.first);
        let at_once = urgent || (quiet && self.pending.is_none());
        let due = if at_once { now } else { (now + QUIET).min(first + HARD_MAX) };
        // What is urgent stays so, whatever comes after it.
        let due = self.pending.filter(|pending| pending.due <= now).map_or(due, |p| p.due);
        self.pending = Some(Pending { first, due });
    }

    /// When what is pending must go.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.pending.map(|pending| pending.due)
    }

    /// True when what is pending must go now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.pending.is_some_and(|pending| pending.due <= now)
    }

    /// Everything has been sent.
    pub(crate) fn sent(&mut self) {
        self.pending = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays changes at milliseconds, some urgent, and returns when something is sent.
    fn play(changes: &[(u64, bool)]) -> Vec<u64> {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut debounce = Debounce::default();
        let mut sent = Vec::new();
        for ms in 0..2_000 {
            for (_, urgent) in changes.iter().filter(|(when, _)| *when == ms) {
                debounce.change(at(ms), *urgent);
            }
            if debounce.is_due(at(ms)) {
                debounce.sent();
                sent.push(ms);
            }
        }
        assert_eq!(debounce.due(), None);
        sent
    }

    #[tokio::test]
    async fn cases() {
        let each = |ms: u64, step: usize| -> Vec<(u64, bool)> {
            (0..=ms).step_by(step).map(|at| (at, false)).collect()
        };
        let check = |name: &str, changes: &[(u64, bool)], want: &[u64]| {
            assert_eq!(play(changes), want, "{name}");
        };
        check("one change", &[(7, false)], &[7]);
        check("two far apart", &[(0, false), (50, false)], &[0, 50]);
        check("a burst is gathered", &[(0, false), (10, false), (20, false)], &[0, 70]);
        check("urgent is never delayed", &[(0, false), (10, false), (15, true)], &[0, 15]);
        check("urgent after urgent", &[(0, true), (1, true), (2, true)], &[0, 1, 2]);
        check("a storm has a hard maximum", &each(1_000, 10), &[0, 510, 1_020, 1_050][..3]);
    }

    #[tokio::test]
    async fn a_storm_costs_no_more_than_twenty_pushes_a_second() {
        for step in 1..60 {
            let changes: Vec<_> = (0..1_000).step_by(step).map(|at| (at, false)).collect();
            let sent = play(&changes);
            assert!(sent.len() <= 21, "a change each {step} ms: {} pushes", sent.len());
        }
    }
}
