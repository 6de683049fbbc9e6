//! The retry budget of one backend: retries stay a share of the requests, so that they cannot
//! become the load. Pure: `now` is an argument.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use heddle_policy::retry::Budget;

/// Requests are counted over this window.
const WINDOW_SECONDS: u64 = 10;

/// Requests and retries of the present and the previous window; shared by all threads. Counts are
/// approximate at a window's turn, which moves a limit by a request or two.
#[derive(Debug, Default)]
pub struct BudgetState {
    window: AtomicU64,
    requests: AtomicU64,
    retries: AtomicU64,
    previous_requests: AtomicU64,
    previous_retries: AtomicU64,
}

impl BudgetState {
    /// Counts one request.
    pub fn request(&self, now: Duration) {
        self.turn(now);
        self.requests.fetch_add(1, Relaxed);
    }

    /// Takes one retry from the budget; false when it has no room.
    pub fn try_retry(&self, budget: Budget, now: Duration) -> bool {
        self.turn(now);
        // The previous window counts for the part that still lies within the last ten seconds.
        let into = now.as_secs() % WINDOW_SECONDS * 1000 + u64::from(now.subsec_millis());
        let rest = WINDOW_SECONDS * 1000 - into;
        let sliding = |present: &AtomicU64, previous: &AtomicU64| {
            present.load(Relaxed) + previous.load(Relaxed) * rest / (WINDOW_SECONDS * 1000)
        };
        let requests = sliding(&self.requests, &self.previous_requests);
        let retries = sliding(&self.retries, &self.previous_retries);
        let allowed = requests * u64::from(budget.percent) / 100
            + u64::from(budget.min_per_second) * WINDOW_SECONDS;
        if retries >= allowed {
            return false;
        }
        self.retries.fetch_add(1, Relaxed);
        true
    }

    fn turn(&self, now: Duration) {
        let window = now.as_secs() / WINDOW_SECONDS;
        let seen = self.window.load(Relaxed);
        if seen != window && self.window.compare_exchange(seen, window, Relaxed, Relaxed).is_ok() {
            let requests = self.requests.swap(0, Relaxed);
            let retries = self.retries.swap(0, Relaxed);
            let adjacent = u64::from(window == seen + 1);
            self.previous_requests.store(requests * adjacent, Relaxed);
            self.previous_retries.store(retries * adjacent, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { percent: 20, min_per_second: 1 };

    fn take_all(state: &BudgetState, now: Duration) -> usize {
        (0..10_000).take_while(|_| state.try_retry(BUDGET, now)).count()
    }

    #[test]
    fn a_share_of_the_requests_and_a_floor() {
        let state = BudgetState::default();
        let now = Duration::from_secs(100);
        for _ in 0..1000 {
            state.request(now);
        }
        assert_eq!(take_all(&state, now), 200 + 10);
    }

    #[test]
    fn a_quiet_service_still_gets_the_floor_and_old_windows_are_forgotten() {
        let state = BudgetState::default();
        assert_eq!(take_all(&state, Duration::from_secs(5)), 10);
        assert_eq!(take_all(&state, Duration::from_secs(35)), 10);
    }
}
