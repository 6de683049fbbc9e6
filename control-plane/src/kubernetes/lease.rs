//! Leadership: one replica at a time holds the Lease, and only its holder writes.
//!
//! As client-go does it. Nobody compares clocks of two machines: how long a holder has been silent
//! is measured from when *this* process saw its last sign of life. Every write carries the
//! resourceVersion it is based on, so that of two candidates the API server picks one. A holder that
//! cannot renew steps down by itself, before anybody may succeed it; one that ends lets go.

use std::time::Duration;

use heddle_runtime::drain;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use prometheus::{IntCounter, IntGauge};
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::config::LeaseTimes;
use crate::error::chain;

/// Whether this process leads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leadership {
    until: watch::Receiver<Option<Instant>>,
}

impl Leadership {
    /// True while the lease is held. Ask right before each write: it is also false in a process that
    /// was stopped so long that another may lead by now.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until the lease is held; for ever in a process that ends.
    pub async fn gained(&mut self) {
        while !self.is_held() {
            if self.until.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the lease is held no longer.
    pub async fn lost(&mut self) {
        loop {
            let Some(until) = *self.until.borrow_and_update() else { return };
            tokio::select! {
                changed = self.until.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(until) => {}
            }
            if !self.is_held() {
                return;
            }
        }
    }

    /// One that is never held, for tests of what must not write.
    #[must_use]
    pub fn none() -> Self {
        Self { until: watch::channel(None).1 }
    }
}

/// Takes part in the election.
pub struct Candidate {
    pub leases: Api<Lease>,
    pub name: String,
    /// Unlike every other candidate's.
    pub identity: String,
    pub times: LeaseTimes,
    pub leads: IntGauge,
    /// Attempts that failed for another reason than that somebody else leads.
    pub failures: IntCounter,
}

/// The Lease as last seen.
#[derive(Default)]
struct Seen {
    lease: Option<Lease>,
    /// When it was first seen so.
    at: Option<Instant>,
}

impl Candidate {
    /// Stands for election until the drain begins, then lets go.
    pub fn run(self, drain: drain::Watch) -> Leadership {
        let (until, leadership) = watch::channel(None);
        let work = drain.begin_work();
        tokio::spawn(async move {
            let mut seen = Seen::default();
            tokio::select! {
                () = self.stand(&until, &mut seen) => {}
                () = drain.draining() => {}
            }
            let was_leading = until.send_replace(None).is_some();
            self.leads.set(0);
            if was_leading {
                self.release(&mut seen).await;
            }
            drop(work);
        });
        Leadership { until: leadership }
    }

    async fn stand(&self, until: &watch::Sender<Option<Instant>>, seen: &mut Seen) {
        let mut is_failing = false;
        loop {
            // What is held is held from before the request: the answer may have been long on its way.
            let asked = Instant::now();
            let held_until = *until.borrow();
            let patience = held_until.map_or(self.times.renew, |until| until - asked);
            let attempt = timeout(patience, self.attempt(seen)).await;
            let error = match attempt {
                Ok(Ok(true)) => {
                    if until.send_replace(Some(asked + self.times.renew)).is_none() {
                        tracing::info!(lease = self.name, holder = self.identity, "leading");
                    }
                    None
                }
                Ok(Ok(false)) => {
                    self.step_down(until, "another replica has the lease");
                    None
                }
                Ok(Err(error)) => Some(chain(&error)),
                Err(_) => Some("the API server did not answer in time".to_owned()),
            };
            if let Some(error) = &error {
                self.failures.inc();
                if !is_failing {
                    tracing::warn!(error, lease = self.name, "cannot renew or take the lease");
                }
                if held_until.is_some_and(|until| Instant::now() >= until) {
                    self.step_down(until, "could not be renewed in time");
                }
            }
            is_failing = error.is_some();
            let leads = until.borrow().is_some();
            self.leads.set(i64::from(leads));
            self.pause(leads).await;
        }
    }

    fn step_down(&self, until: &watch::Sender<Option<Instant>>, reason: &str) {
        if until.send_replace(None).is_some() {
            tracing::warn!(lease = self.name, reason, "leading no longer");
        }
    }

    /// Candidates that wait together do not ask together.
    async fn pause(&self, leads: bool) {
        let stretch = if leads { 1.0 } else { 1.0 + 0.2 * rand::rng().random::<f64>() };
        tokio::time::sleep(self.times.retry.mul_f64(stretch)).await;
    }

    /// Takes or renews the lease. True when it is held now.
    async fn attempt(&self, seen: &mut Seen) -> Result<bool, kube::Error> {
        let now = Instant::now();
        let Some(current) = self.leases.get_opt(&self.name).await? else {
            let lease = self.lease(None);
            return written(self.leases.create(&PostParams::default(), &lease).await, seen);
        };
        if seen.lease.as_ref().map(|lease| &lease.spec) != Some(&current.spec) {
            *seen = Seen { lease: Some(current.clone()), at: Some(now) };
        }
        let spec = current.spec.clone().unwrap_or_default();
        let silent = seen.at.map_or(Duration::ZERO, |at| now.duration_since(at));
        if !may_take(&spec, &self.identity, silent) {
            return Ok(false);
        }
        let lease = self.lease(Some(&current));
        written(self.leases.replace(&self.name, &PostParams::default(), &lease).await, seen)
    }

    /// The Lease as its holder writes it.
    fn lease(&self, current: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let old = current.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let is_mine = old.holder_identity.as_deref() == Some(&self.identity);
        let seconds = self.times.duration.as_millis().div_ceil(1000);
        let transitions = old.lease_transitions.unwrap_or(0);
        let changed = i32::from(current.is_some() && !is_mine);
        let metadata = current.map_or_else(
            || ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            |lease| lease.metadata.clone(),
        );
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            acquire_time: old.acquire_time.filter(|_| is_mine).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions.saturating_add(changed)),
            ..LeaseSpec::default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    /// Lets go, so that nobody has to wait. Failing costs the others the lease's duration.
    async fn release(&self, seen: &mut Seen) {
        let Some(current) = seen.lease.take() else { return };
        let mut lease = self.lease(Some(&current));
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        let params = PostParams::default();
        let replaced = self.leases.replace(&self.name, &params, &lease);
        match timeout(self.times.retry, replaced).await {
            Ok(Ok(_)) => tracing::info!(lease = self.name, "lease released"),
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "lease not released");
            }
            Err(_) => tracing::warn!("lease not released in time"),
        }
    }
}

/// Free, ours, or its holder has been silent for longer than it promised.
fn may_take(spec: &LeaseSpec, identity: &str, silent: Duration) -> bool {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
    holder.is_empty() || holder == identity || silent > Duration::from_secs(seconds)
}

/// What came of a write: somebody else was first, or we hold what we wrote.
fn written(result: Result<Lease, kube::Error>, seen: &mut Seen) -> Result<bool, kube::Error> {
    match result {
        Ok(lease) => {
            *seen = Seen { lease: Some(lease), at: Some(Instant::now()) };
            Ok(true)
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_free_own_or_forsaken() {
        let seconds = Duration::from_secs;
        for (holder, promised, silent, wanted) in [
            (None, Some(15), seconds(0), true),
            (Some(""), Some(1), seconds(0), true),
            (Some("me"), Some(15), seconds(0), true),
            (Some("you"), Some(15), seconds(0), false),
            (Some("you"), Some(15), seconds(15), false),
            (Some("you"), Some(15), seconds(16), true),
            (Some("you"), None, seconds(1), true),
            (Some("you"), Some(-3), seconds(1), true),
        ] {
            let spec = LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: promised,
                ..LeaseSpec::default()
            };
            assert_eq!(may_take(&spec, "me", silent), wanted, "{holder:?} {promised:?} {silent:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn leadership_ends_by_itself() {
        let (sender, until) = watch::channel(None);
        let mut leadership = Leadership { until };
        assert!(!leadership.is_held());
        sender.send_replace(Some(Instant::now() + Duration::from_secs(10)));
        leadership.gained().await;
        assert!(leadership.is_held());
        // Nobody says a word, as in a process that was frozen.
        leadership.lost().await;
        assert!(!leadership.is_held());
        let mut other = leadership.clone();
        let waiting = tokio::spawn(async move { other.gained().await });
        sender.send_replace(Some(Instant::now() + Duration::from_secs(10)));
        waiting.await.unwrap();
    }
}
