//! The source `kubernetes`: everything that speaks to an API server, and where its parts meet.
//!
//! [`start`] is the one place that joins them. Each part is given a [`Context`] and ends with its
//! `drain`; none reads the environment, makes a client of its own, or writes without leading.
//!
//! | part | file | takes | gives |
//! |---|---|---|---|
//! | reading | `source.rs`, `follow.rs`, `collection.rs`, `read.rs` | `Context` | [`Context::catalogs`] |
//! | leadership | `lease.rs` | the lease's times | [`Context::leadership`]: only its holder writes |
//! | epoch | `epoch.rs` | `Context` | the epoch of versions, raised by the leader |
//! | identity | `trust.rs`, `bundle_map.rs`, `token_review.rs` | `Context` | [`Trust`](crate::app::Trust): authority, bundle, how tokens are judged; [`Context::conditions`] |
//! | admission | `admission.rs` beside this file | `Context`, `Handle::served` | a web server on `settings.webhook_listen` |
//! | status | `status.rs`, `routes.rs` | `Context`, `Handle::served`, the fleets of all replicas | conditions, while leading |
//!
//! A part that must be there before the process is ready says so with `Context::gates`
//! (`gates.follow("name", watch, |state| problem)`). What is made of an object outside the source's
//! kinds is numbered with [`Marks::saw`](crate::version::Marks::saw) before `Versions::next`.

use std::sync::Arc;

use heddle_api::names::CONTROL_PLANE_SERVICE_ACCOUNT;
use heddle_runtime::drain;
use kube::Api;
use prometheus::Registry;
use tokio::sync::{mpsc, watch};

use crate::admission;
use crate::app::{App, BATCH_QUEUE, Gates, Handle, Sourced};
use crate::ca::Authority;
use crate::catalog::Catalog;
use crate::conditions::Conditions;
use crate::config::Kubernetes;
use crate::error::Error;
use crate::indexing;
use crate::kubernetes::lease::Leadership;
use crate::metrics::Metrics;
use crate::replica::{Credentials, Gathered, Gatherer};
use crate::version::{Marks, Versions};

mod answer;
pub mod bundle_map;
mod client;
mod collection;
pub mod epoch;
mod follow;
pub mod lease;
mod read;
mod routes;
mod source;
mod status;
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

impl Context {
    /// Makes the client, and stands for election until the drain.
    ///
    /// # Errors
    /// When the API server's address or credentials cannot be read. An API server that does not
    /// answer is no error: it is waited for.
    pub async fn open(
        settings: Kubernetes,
        registry: Registry,
        metrics: Metrics,
        gates: Gates,
        drain: drain::Watch,
    ) -> Result<Self, Error> {
        let client = client::connect(&settings).await?;
        let candidate = lease::Candidate {
            leases: Api::namespaced(client.clone(), &settings.namespace),
            name: CONTROL_PLANE_SERVICE_ACCOUNT.to_owned(),
            identity: settings.pod.clone(),
            times: settings.lease,
            leads: metrics.leader.clone(),
            failures: metrics.source_errors.with_label_values(&["lease"]),
        };
        Ok(Self {
            client,
            leadership: candidate.run(drain.clone()),
            settings: Arc::new(settings),
            versions: Versions::Marked(Marks::default()),
            metrics,
            registry,
            conditions: Conditions::default(),
            gates,
            drain,
        })
    }

    /// Reads the cluster and compiles it. `None` until everything was read.
    #[must_use]
    pub fn catalogs(&self) -> watch::Receiver<Option<Catalog>> {
        let (batches, read) = mpsc::channel(BATCH_QUEUE);
        let (compiled, catalog) = watch::channel(None);
        tokio::spawn(source::run(self.clone(), batches));
        tokio::spawn(indexing::run(read, compiled, self.versions.clone()));
        catalog
    }
}

/// Starts every part.
///
/// # Errors
/// As [`Context::open`], and when an address is taken.
pub(crate) async fn start(app: App, settings: Kubernetes) -> Result<Handle, Error> {
    let (registry, metrics) = (app.registry.clone(), app.metrics.clone());
    let (gates, drain) = (app.gates.clone(), app.drain.clone());
    let context = Context::open(settings, registry, metrics, gates, drain).await?;
    let catalog = context.catalogs();
    let trust = trust::start(&context, app.config.leaf_lifetime, app.fleet.clone());
    let (authority, versions) = (trust.authority.clone(), context.versions.clone());
    let mut handle = app.serve(Sourced { catalog, versions, trust }).await?;
    let admission = admission::start(&context, handle.served.clone()).await?;
    handle.addresses.admission = Some(admission.address);
    write_statuses(context, &handle, authority);
    Ok(handle)
}

/// Writes what becomes of objects, whenever this replica leads.
fn write_statuses(
    context: Context,
    handle: &Handle,
    authority: watch::Receiver<Option<Arc<Authority>>>,
) {
    let gathered = Gathered::new(handle.fleet.clone());
    let Kubernetes { namespace, pod, .. } = &*context.settings;
    let own = format!("{namespace}/{pod}");
    let service_account = (namespace.clone(), CONTROL_PLANE_SERVICE_ACCOUNT.to_owned());
    let (served, port) = (handle.served.clone(), handle.addresses.discovery.port());
    let (sums, heard) = (gathered.clone(), served.clone());
    let gatherer = move || Gatherer {
        gathered: sums.clone(),
        served: heard.clone(),
        credentials: Credentials { authority: authority.clone(), served: heard.clone() },
        own: own.clone(),
        service_account: service_account.clone(),
        port,
    };
    let writer = status::Writer { context, served, gathered, gatherer: Box::new(gatherer) };
    tokio::spawn(writer.run());
}
