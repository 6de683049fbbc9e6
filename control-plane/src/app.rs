//! Builds every part and spawns every long-lived task. `main` calls it, and so do tests.
//!
//! What is the same for every source is here; `app/files.rs` and `kubernetes.rs` add what is theirs.

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use heddle_runtime::admin::{Admin, Readiness};
use heddle_runtime::drain::{self, Drained};
use heddle_runtime::telemetry::LevelHandle;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::admin::Dumps;
use crate::authn::Verifier;
use crate::ca::Authority;
use crate::ca::bundle::Bundle;
use crate::catalog::Catalog;
use crate::config::{Config, Source};
use crate::discovery::fleet::Fleet;
use crate::discovery::{self, STALL_LIMIT, Server};
use crate::error::Error;
use crate::kubernetes;
use crate::metrics::Metrics;
use crate::served::{self, Served};
use crate::version::Versions;

pub(crate) mod files;

/// Readings of the source that wait to be applied; more would only be older news.
pub(crate) const BATCH_QUEUE: usize = 16;

/// A control plane that is not serving yet.
pub struct App {
    pub(crate) config: Config,
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) gates: Gates,
    pub(crate) drain: drain::Watch,
    pub(crate) fleet: Fleet,
    stall_limit: Duration,
    signal: drain::Signal,
}

/// What a source brings to the server.
pub(crate) struct Sourced {
    pub(crate) catalog: watch::Receiver<Option<Catalog>>,
    pub(crate) versions: Versions,
    pub(crate) trust: Trust,
}

/// Who may have a certificate, who signs it, and whom everybody trusts.
pub(crate) struct Trust {
    /// `None` until there is one.
    pub(crate) authority: watch::Receiver<Option<Arc<Authority>>>,
    pub(crate) bundle: watch::Receiver<Option<Arc<Bundle>>>,
    pub(crate) verifier: Verifier,
}

/// A control plane that serves.
#[derive(Debug)]
pub struct Handle {
    pub addresses: Addresses,
    pub fleet: Fleet,
    pub served: watch::Receiver<Option<Served>>,
    signal: drain::Signal,
    /// Held as long as the process, by a source whose state only one may use.
    lock: Option<File>,
}

/// Where it listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub discovery: SocketAddr,
    pub admin: SocketAddr,
    /// Of the webhooks, where there are any.
    pub admission: Option<SocketAddr>,
}

impl App {
    /// Makes what needs no source.
    ///
    /// # Errors
    /// When a metric is registered twice.
    pub fn new(config: Config) -> Result<Self, Error> {
        // May be installed already, by tests that start several in one process.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let registry = Registry::new();
        let metrics = Metrics::register(&registry)?;
        let (signal, drain) = drain::channel();
        let gates = Gates::new(drain.clone());
        let (fleet, stall_limit) = (Fleet::default(), STALL_LIMIT);
        Ok(Self { config, registry, metrics, gates, drain, fleet, stall_limit, signal })
    }

    /// Starts everything: reads the source, compiles it, serves it.
    ///
    /// # Errors
    /// When the source or the authority cannot be used, or an address is taken.
    pub async fn start(config: Config, level: Option<LevelHandle>) -> Result<Handle, Error> {
        let app = Self::new(config)?;
        match app.config.source.clone() {
            Source::Files(settings) => files::start(app, settings, level).await,
            Source::Kubernetes(settings) => kubernetes::start(app, settings).await,
        }
    }

    /// Cuts proxies that do not read after this instead of the default.
    #[must_use]
    pub fn with_stall_limit(self, stall_limit: Duration) -> Self {
        Self { stall_limit, ..self }
    }

    /// Serves what the catalog says, from the first that is not `None`.
    ///
    /// # Errors
    /// When an address is taken.
    pub(crate) async fn serve(self, sourced: Sourced) -> Result<Handle, Error> {
        let Sourced { catalog, versions, trust } = sourced;
        let config = &self.config;
        let discovery_listener = discovery::bind(config.listen).await?;
        let admin_listener = bind_admin(config.admin).await?;
        let addresses = Addresses {
            discovery: discovery_listener.local_addr().unwrap_or(config.listen),
            admin: admin_listener.local_addr().unwrap_or(config.admin),
            admission: None,
        };

        let served = self.join(catalog, trust.bundle, &versions);
        let tls = watch::Sender::new(None);
        let fleet = self.fleet.clone();
        self.gates.follow("sources", served.clone(), |served| {
            served.is_none().then(|| "not read yet".to_owned())
        });
        self.gates.follow("server-certificate", tls.subscribe(), |tls| {
            tls.is_none().then(|| "not issued yet".to_owned())
        });

        let admin = Admin {
            ready: self.gates.readiness(),
            registry: self.registry.clone(),
            extra: Dumps { served: served.clone(), fleet: fleet.clone() }.router(),
        };
        tokio::spawn(heddle_runtime::admin::serve(admin_listener, admin, self.drain.clone()));
        let server = Server {
            authority: trust.authority,
            served: served.clone(),
            known: versions.known(),
            verifier: trust.verifier,
            fleet: fleet.clone(),
            metrics: self.metrics.clone(),
            csr_per_minute: config.csr_per_minute,
            stream_age: config.stream_age,
            stall_limit: self.stall_limit,
            tls,
            drain: self.drain.clone(),
        };
        tokio::spawn(server.run(discovery_listener));
        tracing::info!(discovery = %addresses.discovery, admin = %addresses.admin, "serving");
        Ok(Handle { addresses, fleet, served, signal: self.signal, lock: None })
    }

    fn join(
        &self,
        catalog: watch::Receiver<Option<Catalog>>,
        bundle: watch::Receiver<Option<Arc<Bundle>>>,
        versions: &Versions,
    ) -> watch::Receiver<Option<Served>> {
        let (sender, receiver) = watch::channel(None);
        let (floor, metrics) = (versions.floor(), self.metrics.clone());
        let drain = self.drain.clone();
        tokio::spawn(async move {
            served::run(catalog, bundle, floor, sender, metrics, drain.aborted()).await;
        });
        receiver
    }
}

impl Handle {
    /// Tells proxies to go elsewhere, lets streams end, and ends what is left after `deadline`.
    pub async fn shutdown(self, deadline: Duration) -> Drained {
        let drained = self.signal.finish(deadline).await;
        drop(self.lock);
        drained
    }
}

/// What stands between the process and being ready. Each part holds its own gate; cheap to clone.
#[derive(Debug, Clone)]
pub struct Gates {
    ready: watch::Sender<Readiness>,
    drain: drain::Watch,
}

impl Gates {
    /// Blocks by itself once the drain begins.
    #[must_use]
    pub fn new(drain: drain::Watch) -> Self {
        let gates = Self { ready: watch::Sender::default(), drain };
        let ending = gates.clone();
        tokio::spawn(async move {
            ending.drain.draining().await;
            ending.set("drain", Some("the process is ending".to_owned()));
        });
        gates
    }

    /// What blocks at present.
    #[must_use]
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.ready.subscribe()
    }

    /// Blocks `part` for as long as `problem` says why. Blocked, if so, when this returns.
    pub fn follow<T: Send + Sync + 'static>(
        &self,
        part: &'static str,
        mut state: watch::Receiver<T>,
        problem: impl Fn(&T) -> Option<String> + Send + 'static,
    ) {
        let first = problem(&state.borrow_and_update());
        self.set(part, first);
        let gates = self.clone();
        tokio::spawn(async move {
            loop {
                let changed = tokio::select! {
                    changed = state.changed() => changed,
                    () = gates.drain.aborted() => return,
                };
                // Its task has ended, as it does at the end of the process: what it said last holds.
                if changed.is_err() {
                    return;
                }
                let now = problem(&state.borrow_and_update());
                gates.set(part, now);
            }
        });
    }

    fn set(&self, part: &'static str, problem: Option<String>) {
        self.ready.send_if_modified(|ready| match problem {
            Some(problem) => ready.block(part, problem),
            None => ready.clear(part),
        });
    }
}

async fn bind_admin(address: SocketAddr) -> Result<TcpListener, Error> {
    let listen = |source| Error::Listen { purpose: "admin", address, source };
    TcpListener::bind(address).await.map_err(listen)
}
