//! When the proxy is ready: redirected, certified, holding its first complete snapshot with its own
//! inbound policy, and not on its way out. What is missing is named.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle_runtime::admin::Readiness;
use tokio::sync::watch;

use crate::canary;
use crate::identity;
use crate::metrics::Condition;
use crate::snapshot::{Inbound, Snapshot};
use crate::tls::Credentials;
use crate::worker::Shared;

/// A certificate expires by itself.
const LOOK: Duration = Duration::from_secs(1);

/// What readiness follows from.
pub(super) struct Inputs {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: identity::Handle,
    pub(super) redirection: watch::Receiver<canary::State>,
}

/// Why a condition does not hold; `None` when it does.
type Missing = Option<String>;

/// What is known before any task has run, so that nobody ever sees a proxy that seems ready because
/// it has not looked yet.
pub(super) fn start(inputs: Inputs) -> watch::Receiver<Readiness> {
    let (ready, changes) = watch::channel(Readiness::default());
    publish(&inputs, &ready);
    tokio::spawn(run(inputs, ready));
    changes
}

/// Keeps `ready` true to the inputs until the drain's abort.
async fn run(mut inputs: Inputs, ready: watch::Sender<Readiness>) {
    let drain = inputs.shared.drain.clone();
    let mut snapshots = inputs.shared.snapshots.clone();
    let mut credentials = inputs.shared.credentials.clone();
    let mut was_draining = false;
    loop {
        publish(&inputs, &ready);
        tokio::select! {
            Ok(()) = inputs.redirection.changed() => {}
            Ok(()) = snapshots.changed() => {}
            Ok(()) = credentials.changed() => {}
            () = drain.draining(), if !was_draining => was_draining = true,
            () = tokio::time::sleep(LOOK) => {}
            () = drain.aborted() => return,
        }
    }
}

fn publish(inputs: &Inputs, ready: &watch::Sender<Readiness>) {
    let shared = &inputs.shared;
    let snapshot = shared.snapshots.borrow().clone();
    let credentials = shared.credentials.borrow().clone();
    let conditions = [
        (Condition::Redirection, inputs.redirection.borrow().clone().err()),
        (
            Condition::Certificate,
            certificate(credentials.as_deref(), inputs.identity.last_failure().as_deref()),
        ),
        (Condition::Snapshot, first_snapshot(&snapshot, &shared.destinations.status())),
        (Condition::Serving, shared.drain.is_draining().then(|| "the proxy is stopping".into())),
    ];
    let before = ready.borrow().is_ready();
    let changed = ready.send_if_modified(|readiness| {
        let mut changed = false;
        for (condition, missing) in conditions {
            shared.metrics.ready.of(condition).set(i64::from(missing.is_none()));
            changed |= match missing {
                Some(reason) => readiness.block(condition.name(), reason),
                None => readiness.clear(condition.name()),
            };
        }
        changed
    });
    let after = ready.borrow().is_ready();
    if changed && before != after {
        tracing::info!(ready = after, "readiness changed");
    }
}

fn certificate(credentials: Option<&Credentials>, last_failure: Option<&str>) -> Missing {
    let missing = match credentials {
        None => "not obtained yet",
        Some(own) if own.is_expired(SystemTime::now()) => "expired",
        Some(_) => return None,
    };
    Some(last_failure.map_or_else(|| missing.to_owned(), |why| format!("{missing}: {why}")))
}

fn first_snapshot(snapshot: &Snapshot, status: &crate::discovery::Status) -> Missing {
    let missing = match (&snapshot.inbound, snapshot.complete) {
        (_, false) => "not received yet",
        (Inbound::Missing, true) => "the control plane sent no inbound policy for this pod",
        // A policy that cannot be understood denies what it selects: that is being in force.
        (Inbound::Unusable | Inbound::Active(_), true) => return None,
    };
    let why = status.last_failure.as_deref();
    Some(why.map_or_else(|| missing.to_owned(), |why| format!("{missing}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Status;
    use crate::tls::testing::{Ca, id};

    #[test]
    fn a_missing_certificate_says_why() {
        let own = Ca::new().credentials(&id("shop", "web"));
        assert_eq!(certificate(Some(&own), Some("an early renewal failed")), None);
        assert_eq!(certificate(None, None).as_deref(), Some("not obtained yet"));
        assert_eq!(
            certificate(None, Some("the token is wrong")).as_deref(),
            Some("not obtained yet: the token is wrong")
        );
    }

    #[test]
    fn a_first_snapshot_is_complete_and_holds_our_policy() {
        let mut snapshot = Snapshot::empty();
        let status = Status { last_failure: Some("refused".into()), ..Status::default() };
        assert_eq!(
            first_snapshot(&snapshot, &status).as_deref(),
            Some("not received yet: refused")
        );
        snapshot.complete = true;
        let missing = first_snapshot(&snapshot, &Status::default());
        assert!(missing.is_some_and(|reason| reason.contains("no inbound policy")));
        snapshot.inbound = Inbound::Unusable;
        assert_eq!(first_snapshot(&snapshot, &status), None);
    }
}
