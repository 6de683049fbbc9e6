//! How often certificates may be asked for: a token bucket per pod and one for all. Pure: `now` is
//! an argument. Only callers that have proved who they are get a bucket, so there are no more of
//! them than pods.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// For all pods together.
const GLOBAL_PER_SECOND: f64 = 50.0;
/// What a pod may ask at once.
const POD_BURST: f64 = 5.0;
/// Full buckets are dropped when there are this many.
const SWEEP_AT: usize = 1_024;

/// Buckets of certificates.
#[derive(Debug)]
pub struct Limits {
    per_second: f64,
    burst: f64,
    pods: HashMap<Arc<str>, Bucket>,
    global: Bucket,
}

/// Too many; come back after this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    Pod(Duration),
    Global(Duration),
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Limits {
    /// `per_minute` certificates for each pod.
    #[must_use]
    pub fn new(per_minute: u32, now: Instant) -> Self {
        Self {
            per_second: f64::from(per_minute) / 60.0,
            burst: POD_BURST.max(f64::from(per_minute) / 2.0),
            pods: HashMap::new(),
            global: Bucket { tokens: GLOBAL_PER_SECOND, at: now },
        }
    }

    /// Takes one certificate from `pod`'s bucket and the global one.
    ///
    /// # Errors
    /// When either is empty.
    pub fn take(&mut self, pod: &str, now: Instant) -> Result<(), Exceeded> {
        if self.pods.len() >= SWEEP_AT {
            let (rate, burst) = (self.per_second, self.burst);
            self.pods.retain(|_, bucket| bucket.filled(rate, burst, now).tokens < burst);
        }
        let full = Bucket { tokens: self.burst, at: now };
        let own = self.pods.get(pod).map_or(full, |bucket| *bucket);
        let own = own.filled(self.per_second, self.burst, now);
        let own = own.taken(self.per_second).map_err(Exceeded::Pod)?;
        let global = self.global.filled(GLOBAL_PER_SECOND, GLOBAL_PER_SECOND, now);
        self.global = global.taken(GLOBAL_PER_SECOND).map_err(Exceeded::Global)?;
        self.pods.insert(pod.into(), own);
        Ok(())
    }
}

impl Bucket {
    fn filled(self, rate: f64, burst: f64, now: Instant) -> Self {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        Self { tokens: seconds.mul_add(rate, self.tokens).min(burst), at: now }
    }

    fn taken(self, rate: f64) -> Result<Self, Duration> {
        if self.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.tokens) / rate));
        }
        Ok(Self { tokens: self.tokens - 1.0, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_burst_then_the_rate_and_one_pod_does_not_starve_another() {
        let start = Instant::now();
        let mut limits = Limits::new(5, start);
        for _ in 0..5 {
            limits.take("shop/a", start).unwrap();
        }
        assert_eq!(
            limits.take("shop/a", start),
            Err(Exceeded::Pod(Duration::from_secs(12))),
            "five a minute"
        );
        limits.take("shop/b", start).unwrap();
        let later = start + Duration::from_secs(12);
        limits.take("shop/a", later).unwrap();
        assert!(limits.take("shop/a", later).is_err());
    }

    #[tokio::test]
    async fn all_pods_together_are_limited() {
        let start = Instant::now();
        let mut limits = Limits::new(5, start);
        for pod in 0..50 {
            limits.take(&format!("shop/{pod}"), start).unwrap();
        }
        assert!(matches!(limits.take("shop/x", start), Err(Exceeded::Global(_))));
        limits.take("shop/x", start + Duration::from_millis(21)).unwrap();
    }

    #[tokio::test]
    async fn buckets_do_not_pile_up() {
        let start = Instant::now();
        let mut limits = Limits::new(5, start);
        let mut now = start;
        for pod in 0..3 * SWEEP_AT {
            now += Duration::from_millis(50);
            limits.take(&format!("shop/{pod}"), now).unwrap();
        }
        assert!(limits.pods.len() <= SWEEP_AT, "{}", limits.pods.len());
    }
}
