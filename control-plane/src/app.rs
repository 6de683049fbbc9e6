//! Builds every part and spawns every long-lived task. `main` calls it, and so do tests.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_runtime::admin::{Admin, Readiness};
use heddle_runtime::drain::{self, Drained};
use heddle_runtime::telemetry::LevelHandle;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::admin::Dumps;
use crate::authn::{self, TokenKey};
use crate::ca::Authority;
use crate::ca::bundle::{self, Bundle};
use crate::catalog::Catalog;
use crate::config::Config;
use crate::control::{self, Control};
use crate::discovery::fleet::Fleet;
use crate::discovery::{self, STALL_LIMIT, Server};
use crate::error::Error;
use crate::files;
use crate::indexing;
use crate::metrics::Metrics;
use crate::served::{self, Served};
use crate::state;
use crate::version::Versions;

/// Readings of the source that wait to be applied; more would only be older news.
const BATCH_QUEUE: usize = 16;

/// A control plane that is not serving yet: what its source needs, and the rest.
pub struct App {
    config: Config,
    registry: Registry,
    metrics: Metrics,
    versions: Versions,
    stall_limit: Duration,
    signal: drain::Signal,
    drain: drain::Watch,
    /// Held as long as the process: two control planes on one state directory would hand out the
    /// same versions.
    lock: File,
}

/// A control plane that serves.
#[derive(Debug)]
pub struct Handle {
    pub addresses: Addresses,
    pub fleet: Fleet,
    signal: drain::Signal,
    _lock: File,
}

/// Where it listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub discovery: SocketAddr,
    pub admin: SocketAddr,
}

impl App {
    /// Reads what must be there before anything else.
    ///
    /// # Errors
    /// When the state directory cannot be used.
    pub fn new(config: Config) -> Result<Self, Error> {
        // May be installed already, by tests that start several in one process.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let registry = Registry::new();
        let metrics = Metrics::register(&registry)?;
        state::create_dir(&config.state_dir, 0o755)?;
        let lock = lock(&config.state_dir.join("lock"))?;
        let path = config.state_dir.join("version");
        let versions = Versions::open(path, metrics.version_write_failures.clone())?;
        let (signal, drain) = drain::channel();
        let stall_limit = STALL_LIMIT;
        Ok(Self { config, registry, metrics, versions, stall_limit, signal, drain, lock })
    }

    /// Starts everything: reads the directory, compiles it, serves it.
    ///
    /// # Errors
    /// When the state directory or the authority cannot be used, or an address is taken.
    pub async fn start(config: Config, level: Option<LevelHandle>) -> Result<Handle, Error> {
        let app = Self::new(config)?;
        let (batches, read) = mpsc::channel(BATCH_QUEUE);
        let (compiled, catalog) = watch::channel(None);
        let failures = app.metrics.source_errors.with_label_values(&["files"]);
        let versions = app.versions.clone();
        tokio::spawn(files::run(app.config.dir.clone(), batches, failures));
        tokio::spawn(indexing::run(read, compiled, move || versions.next()));
        app.serve(catalog, level).await
    }

    /// Cuts proxies that do not read after this instead of the default.
    #[must_use]
    pub fn with_stall_limit(self, stall_limit: Duration) -> Self {
        Self { stall_limit, ..self }
    }

    /// Serves what `catalog` says, from the first that is not `None`.
    ///
    /// # Errors
    /// When the authority cannot be opened or an address is taken.
    pub async fn serve(
        self,
        catalog: watch::Receiver<Option<Catalog>>,
        level: Option<LevelHandle>,
    ) -> Result<Handle, Error> {
        let config = &self.config;
        let now = SystemTime::now();
        let authority =
            Authority::open(&config.authority, &config.state_dir, config.leaf_lifetime, now)?;
        record_expiry(&self.metrics, &authority);
        let discovery_listener = discovery::bind(config.listen).await?;
        let admin_listener = bind_admin(config.admin).await?;
        let control_listener = control::bind(&config.state_dir)?;
        let addresses = Addresses {
            discovery: discovery_listener.local_addr().unwrap_or(config.listen),
            admin: admin_listener.local_addr().unwrap_or(config.admin),
        };

        let bundle = self.keep_bundle(&authority);
        let served = self.join(catalog, bundle);
        let token_key = self.keep_token_key();
        let tls = watch::Sender::new(None);
        let fleet = Fleet::default();
        let dumps = Dumps { served: served.clone(), fleet: fleet.clone() };

        let ready = watch::Sender::new(Readiness::default());
        let admin = Admin {
            ready: ready.subscribe(),
            registry: self.registry.clone(),
            extra: dumps.clone().router(),
        };
        let configured = tls.subscribe();
        tokio::spawn(watch_readiness(
            ready,
            served.clone(),
            token_key.clone(),
            configured,
            self.drain.clone(),
        ));
        tokio::spawn(heddle_runtime::admin::serve(admin_listener, admin, self.drain.clone()));
        let control = Control { dumps, versions: self.versions.clone(), level };
        let drain = self.drain.clone();
        tokio::spawn(async move {
            control::serve(control_listener, control, drain.aborted()).await;
        });
        let server = Server {
            authority: Arc::new(authority),
            served,
            token_key,
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
        Ok(Handle { addresses, fleet, signal: self.signal, _lock: self.lock })
    }

    fn keep_bundle(&self, authority: &Authority) -> watch::Receiver<Arc<Bundle>> {
        let first = Bundle::new(authority.roots(), &self.versions);
        let (bundle, receiver) = watch::channel(Arc::new(first));
        let keeper = bundle::Keeper {
            own: authority.roots().to_vec(),
            extra: self.config.state_dir.join("ca/extra-roots.pem"),
            out: self.config.trust_bundle_out.clone(),
            versions: self.versions.clone(),
            metrics: self.metrics.clone(),
            bundle,
        };
        let drain = self.drain.clone();
        tokio::spawn(async move { keeper.run(drain.aborted()).await });
        receiver
    }

    fn join(
        &self,
        catalog: watch::Receiver<Option<Catalog>>,
        bundle: watch::Receiver<Arc<Bundle>>,
    ) -> watch::Receiver<Option<Served>> {
        let (sender, receiver) = watch::channel(None);
        let (floor, metrics) = (self.versions.floor(), self.metrics.clone());
        let drain = self.drain.clone();
        tokio::spawn(async move {
            served::run(catalog, bundle, floor, sender, metrics, drain.aborted()).await;
        });
        receiver
    }

    fn keep_token_key(&self) -> watch::Receiver<TokenKey> {
        let (sender, receiver) = watch::channel(Err("not read yet".to_owned()));
        let path = self.config.token_key_file.clone();
        let drain = self.drain.clone();
        tokio::spawn(async move { authn::watch_token_key(path, sender, drain.aborted()).await });
        receiver
    }
}

impl Handle {
    /// Tells proxies to go elsewhere, lets streams end, and ends what is left after `deadline`.
    pub async fn shutdown(self, deadline: Duration) -> Drained {
        self.signal.finish(deadline).await
    }
}

/// Follows everything that stands between the process and being ready.
async fn watch_readiness(
    ready: watch::Sender<Readiness>,
    mut served: watch::Receiver<Option<Served>>,
    mut token_key: watch::Receiver<TokenKey>,
    mut tls: watch::Receiver<Option<Arc<rustls::ServerConfig>>>,
    drain: drain::Watch,
) {
    loop {
        let mut next = Readiness::default();
        if served.borrow_and_update().is_none() {
            next.block("sources", "not read yet");
        }
        if let Err(problem) = &*token_key.borrow_and_update() {
            next.block("token-key", problem.clone());
        }
        if tls.borrow_and_update().is_none() {
            next.block("server-certificate", "not issued yet");
        }
        if drain.is_draining() {
            next.block("drain", "the process is ending");
        }
        ready.send_if_modified(|current| {
            let changed = *current != next;
            *current = next;
            changed
        });
        let drained = async {
            if drain.is_draining() {
                std::future::pending::<()>().await;
            }
            drain.draining().await;
        };
        let changed = tokio::select! {
            changed = served.changed() => changed,
            changed = token_key.changed() => changed,
            changed = tls.changed() => changed,
            () = drained => Ok(()),
            () = drain.aborted() => return,
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn bind_admin(address: SocketAddr) -> Result<TcpListener, Error> {
    let listen = |source| Error::Listen { purpose: "admin", address, source };
    TcpListener::bind(address).await.map_err(listen)
}

fn lock(path: &Path) -> Result<File, Error> {
    let file = File::create(path).map_err(Error::file("create", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::content(path, "another control plane runs on this state directory"))
        }
        Err(TryLockError::Error(error)) => Err(Error::file("lock", path)(error)),
    }
}

fn record_expiry(metrics: &Metrics, authority: &Authority) {
    let issuer = authority.not_after().duration_since(UNIX_EPOCH).unwrap_or_default();
    let issuer = i64::try_from(issuer.as_secs()).unwrap_or(i64::MAX);
    metrics.certificate_expiry.with_label_values(&["issuer"]).set(issuer);
    let expiries = authority.roots().iter().filter_map(|root| {
        let (_, parsed) = X509Certificate::from_der(root).ok()?;
        Some(parsed.validity().not_after.timestamp())
    });
    if let Some(earliest) = expiries.min() {
        metrics.certificate_expiry.with_label_values(&["root"]).set(earliest);
    }
}
