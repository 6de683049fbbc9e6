//! Builds every part of the proxy and spawns every long-lived task; tests call it, too.
//!
//! The control side (discovery, certificates, canary, control socket, admin) lives on the caller's
//! runtime. Each data thread has a runtime and listeners of its own and never waits for another.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use heddle_api::names::CANARY_PORT;
use heddle_runtime::admin::{self, Admin, Readiness};
use heddle_runtime::drain::{self, Drained};
use heddle_runtime::telemetry::LevelHandle;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::LocalSet;
use tokio::time::{Instant, timeout};

use crate::config::Config;
use crate::control::{self, Control};
use crate::listener::{self, Direction};
use crate::metrics::Metrics;
use crate::worker::{Connections, Shared, Worker};
use crate::{canary, discovery, identity, probe};

mod readiness;

/// More than a request's deepest call needs; only what is touched costs memory.
const DATA_STACK: usize = 1024 * 1024;
const MAX_CONNECTIONS: u64 = 8000;
/// The hooks of a pod start in one moment: whoever asks whether the drain is over may be first.
const DRAIN_BEGINS: Duration = Duration::from_secs(5);

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A second proxy on the same ports would share the traffic without a word.
    #[error("another proxy holds {}", .0.display())]
    Running(PathBuf),
    /// The lock beside the control socket.
    #[error("{} cannot be locked", .0.display())]
    Lock(PathBuf, #[source] io::Error),
    /// The control socket.
    #[error("{} cannot be opened", .0.display())]
    Socket(PathBuf, #[source] io::Error),
    /// A port.
    #[error("{what} cannot listen on {address}")]
    Listen {
        /// What would have listened.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A metric family is there already.
    #[error("metrics cannot be registered")]
    Metrics(#[source] prometheus::Error),
    /// A thread or its runtime.
    #[error("a data thread cannot be started")]
    Thread(#[source] io::Error),
}

/// A running proxy.
pub struct App {
    /// Where `/metrics` is.
    pub metrics_address: SocketAddr,
    /// Whether it is ready, and what is missing.
    pub ready: watch::Receiver<Readiness>,
    /// What the data path acts on.
    pub shared: Arc<Shared>,
    signal: drain::Signal,
    threads: Vec<thread::JoinHandle<()>>,
    _lock: Flock<File>,
}

impl App {
    /// Starts everything. Returns when every listener is open.
    ///
    /// # Errors
    /// Says what could not be started.
    pub async fn start(config: Config, level: Option<LevelHandle>) -> Result<Self, StartError> {
        let lock = lock(&config.control_socket)?;
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).map_err(StartError::Metrics)?;
        let (signal, drain) = drain::channel();
        let started = Instant::now();
        let config = Arc::new(config);

        let (certificates, identity) = identity::Service::new(config.clone(), metrics.clone());
        let (stream, found) =
            discovery::Client::new(config.clone(), identity.clone(), metrics.clone(), started);
        let shared = Arc::new(Shared {
            config: Arc::clone(&config),
            snapshots: found.snapshots,
            credentials: identity.credentials(),
            destinations: found.destinations,
            metrics,
            connections: Connections::new(connection_limit()),
            inbound: Connections::new(usize::MAX),
            drain: drain.clone(),
            started,
        });

        let redirection = start_canary(&config, &drain).await?;
        let inputs =
            readiness::Inputs { shared: shared.clone(), identity: identity.clone(), redirection };
        let ready = readiness::start(inputs);
        let socket = control::bind(&config.control_socket)
            .map_err(|error| StartError::Socket(config.control_socket.clone(), error))?;
        let (admin_listener, metrics_address) = listen("metrics", config.metrics_listen).await?;
        let probes = match &config.probes {
            Some(table) => Some((listen("probes", config.probe_listen).await?.0, table.clone())),
            None => None,
        };
        // Threads that did start end with the attempt.
        let threads = start_threads(&shared).await.inspect_err(|_| signal.abort())?;

        if let Some((listener, table)) = probes {
            let metrics = Arc::clone(&shared.metrics);
            tokio::spawn(probe::run(listener, table, metrics, drain.clone()));
        }
        tokio::spawn(certificates.run(drain.clone()));
        tokio::spawn(stream.run(drain.clone()));
        let control = Control {
            shared: shared.clone(),
            identity,
            signal: signal.clone(),
            ready: ready.clone(),
            level,
        };
        tokio::spawn(control::run(socket, Arc::new(control)));
        let extra = axum::Router::new().route("/drained", drained(shared.clone()));
        let admin = Admin { ready: ready.clone(), registry, extra };
        tokio::spawn(admin::serve(admin_listener, admin, drain));
        Ok(Self { metrics_address, ready, shared, signal, threads, _lock: lock })
    }

    /// Finishes what is in flight, for at most the configured time, then ends everything.
    pub async fn finish(&self) -> Drained {
        self.signal.finish(self.shared.config.drain_timeout).await
    }

    /// Ends everything at once.
    pub fn abort(&self) {
        self.signal.abort();
    }

    /// Waits for the data threads, after [`Self::finish`] or [`Self::abort`].
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a data thread has panicked");
            }
        }
    }
}

/// Answers once a drain that has begun, or begins within moments, has nothing inbound left. What an
/// application's preStop waits for, so that one that exits at once on SIGTERM costs no request. It
/// starts nothing: whoever can reach the port learns no more than that the pod is going.
fn drained(shared: Arc<Shared>) -> axum::routing::MethodRouter {
    axum::routing::get(move || {
        let shared = shared.clone();
        async move {
            let drained = async {
                if timeout(DRAIN_BEGINS, shared.drain.draining()).await.is_err() {
                    return "not draining\n";
                }
                shared.inbound.none_left().await;
                "drained\n"
            };
            let limit = shared.config.drain_timeout;
            timeout(limit, drained).await.unwrap_or("still draining\n")
        }
    })
}

/// `SO_REUSEPORT` lets a second process of the same uid bind the same ports in silence: the lock
/// makes it an error.
fn lock(socket: &Path) -> Result<Flock<File>, StartError> {
    let path = socket.with_extension("lock");
    let failed = |error| StartError::Lock(path.clone(), error);
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            StartError::Running(path.clone())
        } else {
            failed(errno.into())
        }
    })
}

/// Leaves descriptors for the way to the other side of each connection, and for the control side.
fn connection_limit() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from((files * 2 / 5).min(MAX_CONNECTIONS)).unwrap_or(usize::MAX)
}

/// All addresses means IPv6 and IPv4 on one socket; a kernel without IPv6 has only the latter.
async fn listen(
    what: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { what, address, source };
    let mut listener = TcpListener::bind(address).await;
    if let Err(error) = &listener
        && error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
        && address.ip().is_unspecified()
    {
        tracing::info!(what, "the kernel has no IPv6: listening on IPv4 alone");
        listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
    }
    let listener = listener.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((listener, local))
}

async fn start_canary(
    config: &Config,
    drain: &drain::Watch,
) -> Result<watch::Receiver<canary::State>, StartError> {
    if !config.canary {
        tracing::warn!("the redirection rules are not watched: HEDDLE_CANARY=off");
        return Ok(watch::channel(Ok(())).1);
    }
    let (state, changes) = watch::channel(canary::unproven());
    let address = (std::net::Ipv6Addr::UNSPECIFIED, CANARY_PORT).into();
    let (listener, _) = listen("the canary", address).await?;
    tokio::spawn(canary::run(listener, state, drain.clone()));
    Ok(changes)
}

async fn start_threads(shared: &Arc<Shared>) -> Result<Vec<thread::JoinHandle<()>>, StartError> {
    let mut threads = Vec::new();
    for index in 0..shared.config.threads.get() {
        let (started, waiting) = oneshot::channel();
        let shared = Arc::clone(shared);
        let thread = thread::Builder::new()
            .name(format!("data-{index}"))
            .stack_size(DATA_STACK)
            .spawn(move || data_thread(shared, started))
            .map_err(StartError::Thread)?;
        threads.push(thread);
        let ended = || StartError::Thread(io::Error::other("it ended at once"));
        waiting.await.map_err(|_| ended())??;
    }
    Ok(threads)
}

fn data_thread(shared: Arc<Shared>, started: oneshot::Sender<Result<(), StartError>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(StartError::Thread(error)));
            return;
        }
    };
    let drain = shared.drain.clone();
    LocalSet::new().block_on(&runtime, async move {
        // Whoever waits for this has the error; there is nothing to serve without listeners.
        let opened = accept_connections(shared);
        let failed = opened.is_err();
        let _ = started.send(opened);
        if !failed {
            drain.aborted().await;
        }
    });
    // Connections that are left end with the runtime, at once.
    runtime.shutdown_timeout(Duration::ZERO);
}

fn accept_connections(shared: Arc<Shared>) -> Result<(), StartError> {
    let open = |what, address| {
        listener::bind(address).map_err(|source| StartError::Listen { what, address, source })
    };
    let outbound = open("outbound", shared.config.outbound_listen)?;
    let inbound = open("inbound", shared.config.inbound_listen)?;
    let worker = Worker::new(shared);
    tokio::task::spawn_local(Rc::clone(&worker).keep_house());
    let both = [(Direction::Outbound, outbound), (Direction::Inbound, inbound)];
    for (direction, listeners) in both {
        for listener in listeners {
            tokio::task::spawn_local(listener::run(listener, direction, Rc::clone(&worker)));
        }
    }
    Ok(())
}
