//! How often certificates may be asked for: token buckets, one per asker and one for all. Pure:
//! `now` is an argument.
//!
//! [`Limits`] counts certificates of callers that have proved who they are, so there are no more
//! buckets than pods. [`Attempts`] counts what comes before that, by address, and is bounded by
//! itself.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// For all pods together.
const GLOBAL_PER_SECOND: f64 = 50.0;
/// What a pod may ask at once.
const POD_BURST: f64 = 5.0;
/// A proxy that starts tries again within milliseconds at first, and every five seconds at last.
const ADDRESS_BURST: f64 = 20.0;
const ADDRESS_PER_SECOND: f64 = 1.0;
/// Addresses that have a bucket of their own; the others share one.
const ADDRESS_LIMIT: usize = 8_192;
/// Full buckets are dropped when there are this many.
const SWEEP_AT: usize = 1_024;

/// Buckets of certificates.
#[derive(Debug)]
pub struct Limits {
    pods: Buckets<Arc<str>>,
    global: Bucket,
}

/// Too many; come back after this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    Pod(Duration),
    Global(Duration),
}

impl Limits {
    /// `per_minute` certificates for each pod.
    #[must_use]
    pub fn new(per_minute: u32, now: Instant) -> Self {
        let per_minute = f64::from(per_minute);
        let rate = Rate { per_second: per_minute / 60.0, burst: POD_BURST.max(per_minute / 2.0) };
        Self { pods: Buckets::new(rate), global: Bucket { tokens: GLOBAL_PER_SECOND, at: now } }
    }

    /// Takes one certificate from `pod`'s bucket and the global one.
    ///
    /// # Errors
    /// When either is empty.
    pub fn take(&mut self, pod: &str, now: Instant) -> Result<(), Exceeded> {
        const GLOBAL: Rate = Rate { per_second: GLOBAL_PER_SECOND, burst: GLOBAL_PER_SECOND };
        let own = self.pods.taken(pod, now).map_err(Exceeded::Pod)?;
        self.global = self.global.filled(GLOBAL, now).taken(GLOBAL).map_err(Exceeded::Global)?;
        self.pods.put(pod.into(), own);
        Ok(())
    }
}

/// Buckets of attempts to prove who one is.
#[derive(Debug)]
pub struct Attempts {
    addresses: Buckets<IpAddr>,
    /// Of all addresses for which there is no room.
    others: Bucket,
}

impl Attempts {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let rate = Rate { per_second: ADDRESS_PER_SECOND, burst: ADDRESS_BURST };
        Self { addresses: Buckets::new(rate), others: rate.full(now) }
    }

    /// Takes one attempt from `address`'s bucket.
    ///
    /// # Errors
    /// When it is empty: how long until it is not.
    pub fn take(&mut self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let own = self.addresses.taken(&address, now)?;
        if self.addresses.all.len() < ADDRESS_LIMIT || self.addresses.all.contains_key(&address) {
            self.addresses.put(address, own);
        } else {
            let rate = self.addresses.rate;
            self.others = self.others.filled(rate, now).taken(rate)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    per_second: f64,
    burst: f64,
}

impl Rate {
    fn full(self, now: Instant) -> Bucket {
        Bucket { tokens: self.burst, at: now }
    }
}

/// One bucket for each key that has taken something lately.
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    all: HashMap<K, Bucket>,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, all: HashMap::new() }
    }

    /// The bucket as it is after one more is taken; not in force before it is put.
    fn taken<Q: Eq + Hash + ?Sized>(&mut self, key: &Q, now: Instant) -> Result<Bucket, Duration>
    where
        K: std::borrow::Borrow<Q>,
    {
        let rate = self.rate;
        if self.all.len() >= SWEEP_AT {
            self.all.retain(|_, bucket| bucket.filled(rate, now).tokens < rate.burst);
        }
        let own = self.all.get(key).map_or_else(|| rate.full(now), |bucket| *bucket);
        own.filled(rate, now).taken(rate)
    }

    fn put(&mut self, key: K, bucket: Bucket) {
        self.all.insert(key, bucket);
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn filled(self, rate: Rate, now: Instant) -> Self {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        Self { tokens: seconds.mul_add(rate.per_second, self.tokens).min(rate.burst), at: now }
    }

    fn taken(self, rate: Rate) -> Result<Self, Duration> {
        if self.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.tokens) / rate.per_second));
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
        assert!(limits.pods.all.len() <= SWEEP_AT, "{}", limits.pods.all.len());
    }

    #[tokio::test]
    async fn an_address_that_fails_again_and_again_is_slowed_and_alone() {
        let now = Instant::now();
        let mut attempts = Attempts::new(now);
        let address = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let allowed = (0..100).filter(|_| attempts.take(address(1), now).is_ok()).count();
        assert_eq!(allowed, 20);
        assert_eq!(attempts.take(address(1), now), Err(Duration::from_secs(1)));
        attempts.take(address(2), now).unwrap();
        attempts.take(address(1), now + Duration::from_secs(1)).unwrap();
    }

    #[tokio::test]
    async fn more_addresses_than_there_is_room_for_share_one_bucket() {
        let now = Instant::now();
        let mut attempts = Attempts::new(now);
        let address = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let all = u32::try_from(ADDRESS_LIMIT).unwrap() + 100;
        let refused = (0..all).filter(|n| attempts.take(address(*n), now).is_err()).count();
        assert_eq!(refused, 80);
        assert_eq!(attempts.addresses.all.len(), ADDRESS_LIMIT);
        attempts.take(address(1), now).expect("those that have one keep their own");
    }
}
