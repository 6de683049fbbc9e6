//! Chooses an endpoint, and remembers how each one fares: requests in flight, latency, failures.
//!
//! Pure: `now` is time since the process started and random numbers are arguments. The state of an
//! endpoint outlives snapshots and is shared by all data threads, so it is made of atomics.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use heddle_policy::retry::{Balance, CircuitBreaker};

use crate::snapshot::{Backend, Endpoint};

/// Latency is forgotten with this time constant.
const DECAY: Duration = Duration::from_secs(10);
/// An estimate younger than this is taken as it is: in milliseconds.
const DECAY_STARTS: u64 = 1000;
/// What an endpoint without history is assumed to take: low, so that newcomers are tried.
const UNKNOWN_LATENCY_NS: u64 = 100_000;
/// First avoidance after a refused connection; doubled at each further one.
const AVOID_BASE: Duration = Duration::from_millis(200);
/// Longest avoidance.
const AVOID_MAX: Duration = Duration::from_secs(10);
/// Random probes for an available endpoint before scanning.
const PROBES: usize = 4;

/// How one endpoint fares. One per (address, identity) in the process.
#[derive(Debug)]
pub struct EndpointState {
    /// Unique in the process; pools are keyed by it.
    pub id: u64,
    in_flight: AtomicU32,
    latency_ns: AtomicU64,
    /// When `latency_ns` was last written, in milliseconds.
    latency_at: AtomicU64,
    failures: AtomicU32,
    /// Refused connections in a row.
    refusals: AtomicU32,
    /// Not picked before this time in milliseconds, unless nothing else is left.
    avoid_until: AtomicU64,
    ejected_until: AtomicU64,
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response the policy does not count as failed, after this long.
    Success(Duration),
    /// A response or a loss that the circuit breaker counts.
    Failure,
    /// No connection could be made.
    Refused,
    /// Nothing that says anything about the endpoint: the client went away.
    Neutral,
}

impl EndpointState {
    /// A fresh endpoint.
    #[must_use]
    pub fn new(id: u64) -> Self {
        Self {
            id,
            in_flight: AtomicU32::new(0),
            latency_ns: AtomicU64::new(0),
            latency_at: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            refusals: AtomicU32::new(0),
            avoid_until: AtomicU64::new(0),
            ejected_until: AtomicU64::new(0),
        }
    }

    /// Requests and opaque connections under way, over all threads.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Counts one attempt; [`EndpointState::finish`] must follow on every path.
    pub fn start(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// True when the endpoint was ejected and rests.
    #[must_use]
    pub fn is_ejected(&self, now: Duration) -> bool {
        self.ejected_until.load(Relaxed) > millis(now)
    }

    fn is_available(&self, now: Duration) -> bool {
        let now = millis(now);
        self.avoid_until.load(Relaxed) <= now && self.ejected_until.load(Relaxed) <= now
    }

    /// Ends one attempt. Returns true when it ejected the endpoint: `peers` are the endpoints it
    /// shares its Service with, of which at most the breaker's share may rest at once.
    pub fn finish(
        &self,
        outcome: Outcome,
        now: Duration,
        breaker: Option<&CircuitBreaker>,
        peers: &[Arc<Endpoint>],
    ) -> bool {
        self.in_flight.fetch_sub(1, Relaxed);
        match outcome {
            Outcome::Success(latency) => {
                self.failures.store(0, Relaxed);
                self.refusals.store(0, Relaxed);
                self.avoid_until.store(0, Relaxed);
                self.observe(latency, now);
                false
            }
            Outcome::Refused => {
                self.avoid(now);
                self.fail(now, breaker, peers)
            }
            Outcome::Failure => self.fail(now, breaker, peers),
            Outcome::Neutral => false,
        }
    }

    /// An opaque connection was made: all that can be seen to go well with it.
    pub fn connected(&self) {
        self.failures.store(0, Relaxed);
        self.refusals.store(0, Relaxed);
        self.avoid_until.store(0, Relaxed);
    }

    fn avoid(&self, now: Duration) {
        let refusals = self.refusals.fetch_add(1, Relaxed).min(8);
        let pause = AVOID_BASE.saturating_mul(1 << refusals).min(AVOID_MAX);
        self.avoid_until.store(millis(now + pause), Relaxed);
    }

    fn fail(
        &self,
        now: Duration,
        breaker: Option<&CircuitBreaker>,
        peers: &[Arc<Endpoint>],
    ) -> bool {
        let failures = self.failures.fetch_add(1, Relaxed) + 1;
        let Some(breaker) = breaker else { return false };
        if failures < breaker.consecutive_failures || self.is_ejected(now) {
            return false;
        }
        let resting = peers.iter().filter(|peer| peer.state.is_ejected(now)).count();
        let allowed = peers.len() * breaker.max_ejected_percent as usize / 100;
        if resting >= allowed {
            return false;
        }
        self.failures.store(0, Relaxed);
        self.ejected_until.store(millis(now + breaker.open_for), Relaxed);
        true
    }

    /// Peak-sensitive moving average: a higher value is taken at once, a lower one by and by.
    #[expect(clippy::cast_possible_truncation, reason = "between two values that fit")]
    fn observe(&self, latency: Duration, now: Duration) {
        let sample = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let at = self.latency_at.swap(millis(now), Relaxed);
        let old = self.latency_ns.load(Relaxed);
        let new = if sample >= old {
            sample
        } else {
            // Even many answers within one millisecond must bring a peak down.
            let keep = kept(millis(now).saturating_sub(at)).min(0.99);
            (old as f64 * keep + sample as f64 * (1.0 - keep)) as u64
        };
        self.latency_ns.store(new, Relaxed);
    }

    #[expect(clippy::cast_possible_truncation, reason = "smaller than a value that fits")]
    fn cost(&self, balance: Balance, now: Duration) -> u64 {
        let load = u64::from(self.in_flight()) + 1;
        match balance {
            Balance::PeakEwma => match self.latency_ns.load(Relaxed) {
                0 => UNKNOWN_LATENCY_NS * load,
                latency => {
                    // An endpoint that nobody asks has no chance to show that its peak is over.
                    let idle = millis(now).saturating_sub(self.latency_at.load(Relaxed));
                    let faded = if idle < DECAY_STARTS {
                        latency
                    } else {
                        (latency as f64 * kept(idle)) as u64
                    };
                    faded.max(1).saturating_mul(load)
                }
            },
            Balance::LeastRequest => load,
            Balance::RoundRobin | Balance::Random => 0,
        }
    }
}

/// How much of a value is left after `elapsed` milliseconds.
fn kept(elapsed: u64) -> f64 {
    (-(elapsed as f64) / DECAY.as_millis() as f64).exp()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What the choice depends on beside the endpoints.
pub struct Pick<'a, R> {
    /// Time since the process started.
    pub now: Duration,
    /// Uniform over all of `u64`.
    pub random: R,
    /// Endpoint ids that this request tried already.
    pub tried: &'a [u64],
    /// The caller's address, for session affinity.
    pub client: IpAddr,
}

/// Chooses a ready endpoint of `backend`: one that was not tried yet and is not avoided or ejected,
/// else one that was not tried, else any ready one. `None` only when no endpoint is ready.
pub fn pick<'a, R: FnMut() -> u64>(
    backend: &'a Backend,
    mut pick: Pick<'_, R>,
) -> Option<&'a Arc<Endpoint>> {
    let ready = &backend.ready[..];
    if ready.len() <= 1 {
        return ready.first();
    }
    let untried = |e: &Endpoint| !pick.tried.contains(&e.state.id);
    let now = pick.now;
    let available = |e: &Endpoint| untried(e) && e.state.is_available(now);
    if backend.affinity {
        return affine(ready, pick.client, available)
            .or_else(|| affine(ready, pick.client, untried))
            .or_else(|| affine(ready, pick.client, |_| true));
    }
    let balance = backend.policy.balance;
    let choice = Choice { ready, balance, backend, now };
    choice
        .among(&mut pick.random, available)
        .or_else(|| choice.among(&mut pick.random, untried))
        .or_else(|| choice.among(&mut pick.random, |_| true))
}

/// What a choice is made from.
struct Choice<'a> {
    ready: &'a [Arc<Endpoint>],
    balance: Balance,
    backend: &'a Backend,
    now: Duration,
}

impl<'a> Choice<'a> {
    fn among(
        &self,
        random: &mut impl FnMut() -> u64,
        usable: impl Fn(&Endpoint) -> bool,
    ) -> Option<&'a Arc<Endpoint>> {
        let ready = self.ready;
        match self.balance {
            Balance::RoundRobin => {
                nth_usable(ready, &usable, |n| self.backend.state.next_turn() % n)
            }
            Balance::Random => any_usable(ready, &usable, random),
            Balance::PeakEwma | Balance::LeastRequest => {
                let first = any_usable(ready, &usable, random)?;
                let others = |e: &Endpoint| e.state.id != first.state.id && usable(e);
                let cost = |e: &Endpoint| e.state.cost(self.balance, self.now);
                match any_usable(ready, others, random) {
                    Some(second) if cost(second) < cost(first) => Some(second),
                    _ => Some(first),
                }
            }
        }
    }
}

/// Any usable endpoint, each equally likely.
fn any_usable<'a>(
    ready: &'a [Arc<Endpoint>],
    usable: impl Fn(&Endpoint) -> bool,
    random: &mut impl FnMut() -> u64,
) -> Option<&'a Arc<Endpoint>> {
    // Most are usable most of the time: a few probes spare looking at all of them.
    for _ in 0..PROBES {
        let candidate = &ready[below(random(), ready.len())];
        if usable(candidate) {
            return Some(candidate);
        }
    }
    nth_usable(ready, usable, |n| below(random(), n))
}

/// Counts the usable endpoints first, so that the neighbour of an unusable one does not inherit its
/// share.
fn nth_usable(
    ready: &[Arc<Endpoint>],
    usable: impl Fn(&Endpoint) -> bool,
    index: impl FnOnce(usize) -> usize,
) -> Option<&Arc<Endpoint>> {
    let count = ready.iter().filter(|e| usable(e)).count();
    if count == 0 {
        return None;
    }
    ready.iter().filter(|e| usable(e)).nth(index(count))
}

/// Rendezvous hashing: the same client meets the same endpoint in every proxy and after a restart,
/// and the loss of an endpoint moves only its own clients.
fn affine(
    ready: &[Arc<Endpoint>],
    client: IpAddr,
    usable: impl Fn(&Endpoint) -> bool,
) -> Option<&Arc<Endpoint>> {
    ready.iter().filter(|e| usable(e)).max_by_key(|endpoint| {
        foldhash::quality::FixedState::with_seed(0).hash_one((client, endpoint.address))
    })
}

/// Maps `random` onto `0..n` without a modulo's bias.
#[expect(clippy::cast_possible_truncation, reason = "the product's high half is below n")]
fn below(random: u64, n: usize) -> usize {
    ((u128::from(random) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests;
