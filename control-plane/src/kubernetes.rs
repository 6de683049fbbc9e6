//! The source `kubernetes`: everything that speaks to an API server, and where its parts meet.
//!
//! [`start`] is the one place that joins them. Each part is given a [`Context`] and ends with its
//! `drain`; none reads the environment, makes a client of its own, or writes without leading.
//!
//! | part | file | takes | gives |
//! |---|---|---|---|
//! | reading | `source.rs`, `watch.rs` | `Context` | batches for the index |
//! | leadership | `lease.rs` | the lease's times | [`Context::leadership`]: only its holder writes |
//! | epoch | `epoch.rs` | `Context` | the epoch of versions, raised by the leader |
//! | identity | `trust.rs`, `bundle_map.rs`, `token_review.rs` | `Context` | [`Trust`](crate::app::Trust): authority, bundle, how tokens are judged; [`Context::conditions`] |
//! | admission | `admission.rs` beside this file | `Context`, `Handle::served` | a web server on `settings.webhook_listen` |
//! | status | `status.rs`, `events.rs` | `Context`, `Handle::served`, `Handle::fleet` | conditions, while leading |
//!
//! A part that must be there before the process is ready says so with `Context::gates`
//! (`gates.follow("name", watch, |state| problem)`). What is made of an object outside the source's
//! kinds is numbered with [`Marks::saw`](crate::version::Marks::saw) before `Versions::next`.

use std::sync::Arc;

use heddle_api::names::CONTROL_PLANE_SERVICE_ACCOUNT;
use heddle_runtime::drain;
use kube::Api;
use prometheus::Registry;
use tokio::sync::watch;

use crate::app::{App, Gates, Handle, Sourced};
use crate::conditions::Conditions;
use crate::config::Kubernetes;
use crate::error::Error;
use crate::kubernetes::lease::Leadership;
use crate::metrics::Metrics;
use crate::version::{Marks, Versions};

pub mod bundle_map;
mod client;
pub mod lease;
pub mod token_review;
pub mod trust;

/// What every part is given. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub client: kube::Client,
    pub settings: Arc<Kubernetes>,
    /// Asked before each write: only while it is held may this process write.
    pub leadership: Leadership,
    pub versions: Versions,
    pub metrics: Metrics,
    pub registry: Registry,
    /// What a person should know of the control plane's own state.
    pub conditions: Conditions,
    pub gates: Gates,
    pub drain: drain::Watch,
}

/// Starts every part.
///
/// # Errors
/// When the API server's address or credentials cannot be read, or an address is taken. An API
/// server that does not answer is no error: it is waited for.
pub(crate) async fn start(app: App, settings: Kubernetes) -> Result<Handle, Error> {
    let client = client::connect(&settings).await?;
    let context = Context {
        leadership: stand(&app, client.clone(), &settings),
        client,
        settings: Arc::new(settings),
        versions: Versions::Marked(Marks::default()),
        metrics: app.metrics.clone(),
        registry: app.registry.clone(),
        conditions: Conditions::default(),
        gates: app.gates.clone(),
        drain: app.drain.clone(),
    };
    let catalog = watch::channel(None).1;
    let trust = trust::start(&context, app.config.leaf_lifetime, app.fleet.clone());
    let versions = context.versions.clone();
    app.serve(Sourced { catalog, versions, trust }).await
}

/// Stands for election, until the drain.
fn stand(app: &App, client: kube::Client, settings: &Kubernetes) -> Leadership {
    let candidate = lease::Candidate {
        leases: Api::namespaced(client, &settings.namespace),
        name: CONTROL_PLANE_SERVICE_ACCOUNT.to_owned(),
        identity: settings.pod.clone(),
        times: settings.lease,
        leads: app.metrics.leader.clone(),
        failures: app.metrics.source_errors.with_label_values(&["lease"]),
    };
    candidate.run(app.drain.clone())
}
