//! The stream from the control plane: subscribes, applies whole sets, publishes snapshots, reports.
//!
//! The only writer of the snapshot. Whatever happens to the stream, what is held stays in force: a
//! set that is not complete is dropped, and only a complete answer to `Hello` takes anything away.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use heddle_api::names::LEVEL;
use heddle_api::proto::v1::discovery_client::DiscoveryClient;
use heddle_api::proto::v1::{
    Hello, Report, ResourceReport, ResourceType, Subscribe, ToControlPlane, ToProxy, Update,
    to_control_plane, to_proxy,
};
use heddle_runtime::backoff::Backoff;
use heddle_runtime::drain;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::config::Config;
use crate::control_plane;
use crate::error::Chain;
use crate::identity;
use crate::metrics::Metrics;
use crate::snapshot::{Destination, Snapshot, Store};
use crate::tls::Credentials;

mod apply;
mod staging;
mod subscriptions;

use staging::{Staging, TooLarge};
use subscriptions::{Subscriptions, Uses};

/// Addresses that wait to be asked about; further ones are asked about when they are dialled again.
const MAX_PENDING: usize = 4096;
/// The contract's own limit on a Subscribe.
const ADDRESSES_A_MESSAGE: usize = 256;
/// Keeps a Hello well below the message limit; what does not fit is sent again by the server.
const MAX_HELLO: usize = 32_768;
const REPORTS_A_MESSAGE: usize = 1024;
/// From the connection to the server's first sign of life.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// A server that takes nothing for so long is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How often the control plane is told what was counted.
const TRAFFIC_INTERVAL: Duration = Duration::from_secs(10);
/// The longest pause is short: a control plane that is back must be heard of within seconds, and a
/// refused connect costs little.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(4));
/// A replica that ends sends its proxies away together; they come back spread over this.
const RECONNECT_SPREAD: Duration = Duration::from_secs(1);

/// Asks the control plane about destinations. Cheap to clone.
#[derive(Clone)]
pub struct Destinations {
    pending: Arc<Pending>,
    status: watch::Receiver<Status>,
}

#[derive(Default)]
struct Pending {
    addresses: Mutex<HashSet<SocketAddr>>,
    wake: Notify,
}

impl Pending {
    fn take(&self) -> HashSet<SocketAddr> {
        std::mem::take(&mut *self.addresses.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How the stream fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The control plane has spoken on the present stream.
    pub connected: bool,
    /// Why the last stream ended or could not be opened.
    pub last_failure: Option<Arc<str>>,
    /// The last resource that was not acceptable, and why.
    pub last_rejection: Option<Arc<str>>,
    /// Destinations subscribed to.
    pub subscriptions: usize,
}

impl Destinations {
    /// Asks what stands behind `address`. The answer comes as a snapshot. Asking twice asks once.
    pub fn request(&self, address: SocketAddr) {
        let mut addresses = self.pending.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.len() < MAX_PENDING {
            addresses.insert(address);
            self.pending.wake.notify_one();
        }
    }

    /// True while the control plane is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.status.borrow().connected
    }

    /// Asks nobody.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        Self { pending: Arc::default(), status: watch::channel(Status::default()).1 }
    }

    /// How the stream fares.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the control plane cannot be reached")]
    Connect(#[source] control_plane::Error),
    #[error("the control plane ended the stream with {0:?}: {1:?}")]
    Refused(tonic::Code, String),
    #[error("the control plane did not answer within {} s", OPEN_TIMEOUT.as_secs())]
    Silent,
    #[error("the control plane does not read what it is sent")]
    Stalled,
    #[error("the control plane ended the stream")]
    Closed,
    #[error("the control plane sent us elsewhere")]
    Reconnect,
    #[error("this replica of the control plane is behind what the proxy holds")]
    Behind,
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

impl From<tonic::Status> for End {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(status.code(), status.message().chars().take(256).collect())
    }
}

/// The long-lived task's state.
pub struct Client {
    config: Arc<Config>,
    identity: identity::Handle,
    metrics: Arc<Metrics>,
    store: Store,
    subscriptions: Subscriptions,
    pending: Arc<Pending>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    status: watch::Sender<Status>,
    started: Instant,
}

/// What the client shares with the rest.
pub struct Shared {
    /// Asks about destinations.
    pub destinations: Destinations,
    /// The snapshot in force.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Client {
    /// A client that has not started yet. `started` is the moment that the use of destinations is
    /// counted from.
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        identity: identity::Handle,
        metrics: Arc<Metrics>,
        started: Instant,
    ) -> (Self, Shared) {
        let (snapshots, current) = watch::channel(Arc::new(Snapshot::empty()));
        let (status, seen) = watch::channel(Status::default());
        let pending = Arc::<Pending>::default();
        let destinations = Destinations { pending: Arc::clone(&pending), status: seen };
        let store = Store::new(config.node.as_deref());
        let client = Self {
            config,
            identity,
            metrics,
            store,
            subscriptions: Subscriptions::default(),
            pending,
            snapshots,
            status,
            started,
        };
        (client, Shared { destinations, snapshots: current })
    }

    /// Keeps a stream open until the drain's abort: what is in flight may need another endpoint.
    pub async fn run(mut self, drain: drain::Watch) {
        tokio::select! {
            () = Box::pin(self.serve()) => {}
            () = drain.aborted() => {}
        }
    }

    async fn serve(&mut self) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let end = match self.stream().await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            let was_connected = self.status.borrow().connected;
            if was_connected {
                backoff.reset();
                self.metrics.set_control_plane_connected(false);
            }
            let reason: Arc<str> = Chain(&end).to_string().into();
            self.status.send_modify(|status| {
                status.connected = false;
                status.last_failure = Some(Arc::clone(&reason));
            });
            let wait = if matches!(end, End::Reconnect) {
                tracing::debug!("told to connect again");
                RECONNECT_SPREAD.mul_f64(rand::random())
            } else {
                let wait = backoff.next(rand::random());
                let retry_in_ms = wait.as_millis();
                tracing::warn!(%reason, retry_in_ms, "no stream to the control plane");
                wait
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// One stream, top to bottom: hello, then sets, subscriptions and orders until it ends.
    async fn stream(&mut self) -> Result<std::convert::Infallible, End> {
        let credentials = self.valid_credentials().await;
        // The file counts here, too: a control plane whose roots were all replaced while this proxy
        // could not hear of it is met again as at the start.
        let bundle = identity::with_file(&self.config, credentials.bundle());
        let own = Some(&*credentials);
        let connected = control_plane::connect(&self.config.control_plane, &bundle, own).await;
        let channel = connected.map_err(End::Connect)?;
        let (outgoing, sent) = mpsc::channel(32);
        let outgoing = Outgoing(outgoing);
        outgoing.send(to_control_plane::Message::Hello(self.hello())).await?;
        self.store.begin_resync();
        let mut client = DiscoveryClient::new(channel);
        let opened = client.stream(ReceiverStream::new(sent));
        let opened = tokio::time::timeout(OPEN_TIMEOUT, opened).await;
        let mut incoming = opened.map_err(|_| End::Silent)??.into_inner();
        let mut staging = Staging::default();
        let first = tokio::time::timeout(OPEN_TIMEOUT, receive(&mut incoming)).await;
        self.accept(first.map_err(|_| End::Silent)??, &mut staging, &outgoing).await?;
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Proxies that came together do not tell together.
        let first = Instant::now() + TRAFFIC_INTERVAL.mul_f64(rand::random());
        let mut traffic = tokio::time::interval_at(first, TRAFFIC_INTERVAL);
        traffic.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pending = Arc::clone(&self.pending);
        loop {
            tokio::select! {
                message = receive(&mut incoming) => {
                    self.accept(message?, &mut staging, &outgoing).await?;
                }
                () = pending.wake.notified() => self.subscribe(&outgoing).await?,
                _ = sweep.tick() => self.evict_idle(&outgoing).await?,
                _ = traffic.tick() => {
                    let counted = to_control_plane::Message::Traffic(self.metrics.traffic());
                    outgoing.send(counted).await?;
                }
            }
        }
    }

    /// Waits for a certificate that can be used. Why there is none is its owner's to say.
    async fn valid_credentials(&self) -> Arc<Credentials> {
        let mut current = self.identity.credentials();
        loop {
            let credentials = current.borrow_and_update().clone();
            if let Some(credentials) = credentials
                && !credentials.is_expired(SystemTime::now())
            {
                return credentials;
            }
            if current.changed().await.is_err() {
                // Its owner has ended, so this process is ending.
                std::future::pending::<()>().await;
            }
        }
    }

    fn hello(&mut self) -> Hello {
        self.take_pending();
        let mut held = self.store.held();
        held.truncate(MAX_HELLO);
        let addresses = self.subscriptions.iter().take(MAX_HELLO);
        Hello {
            proxy_version: env!("CARGO_PKG_VERSION").to_owned(),
            level: LEVEL,
            namespace: self.config.namespace.to_string(),
            pod: self.config.pod.to_string(),
            high_water: self.store.high_water(),
            held,
            addresses: addresses.map(|address| address.to_string()).collect(),
        }
    }

    /// Moves what was asked about into the subscriptions, and returns what is new among it and what
    /// had to make room.
    fn take_pending(&mut self) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let asked = self.pending.take();
        let uses = if self.subscriptions.has_room(asked.len()) { Uses::new() } else { self.uses() };
        let changes = self.subscriptions.add(asked, self.started.elapsed(), &uses);
        self.note_subscriptions();
        changes
    }

    /// When each destination was used last.
    fn uses(&self) -> Uses {
        let snapshot = self.snapshots.borrow().clone();
        let uses = snapshot.destinations().map(|(address, entry)| {
            (*address, Duration::from_secs(entry.last_used.load(Ordering::Relaxed)))
        });
        uses.collect()
    }

    fn note_subscriptions(&self) {
        let count = self.subscriptions.len();
        self.metrics.subscriptions.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.status.send_modify(|status| status.subscriptions = count);
    }

    async fn subscribe(&mut self, outgoing: &Outgoing) -> Result<(), End> {
        let (add, remove) = self.take_pending();
        outgoing.subscribe(&add, &remove).await
    }

    /// What was not used for an hour is given up. Only while the stream stands: without the control
    /// plane it could not be asked for again.
    async fn evict_idle(&mut self, outgoing: &Outgoing) -> Result<(), End> {
        let idle = self.subscriptions.evict_idle(self.started.elapsed(), &self.uses());
        if !idle.is_empty() {
            tracing::debug!(count = idle.len(), "idle destinations given up");
            self.note_subscriptions();
        }
        outgoing.subscribe(&[], &idle).await
    }

    async fn accept(
        &mut self,
        message: ToProxy,
        staging: &mut Staging,
        outgoing: &Outgoing,
    ) -> Result<(), End> {
        match message.message {
            Some(to_proxy::Message::Update(update)) => {
                self.note_connected();
                let Some(set) = staging.add(update)? else { return Ok(()) };
                let reports = self.apply(set).await;
                outgoing.report(reports).await
            }
            Some(to_proxy::Message::RenewCertificate(_)) => {
                tracing::info!("told to renew the certificate");
                self.identity.renew();
                Ok(())
            }
            Some(to_proxy::Message::Reconnect(_)) => Err(End::Reconnect),
            Some(to_proxy::Message::TryAnother(_)) => Err(End::Behind),
            // A kind of message that a newer control plane knows.
            None => Ok(()),
        }
    }

    fn note_connected(&self) {
        let news = self.status.send_if_modified(|status| {
            status.last_failure = None;
            !std::mem::replace(&mut status.connected, true)
        });
        if news {
            tracing::info!(control_plane = %self.config.control_plane, "stream open");
            self.metrics.set_control_plane_connected(true);
        }
    }
}

async fn receive(incoming: &mut Streaming<ToProxy>) -> Result<ToProxy, End> {
    incoming.message().await?.ok_or(End::Closed)
}

/// The way to the control plane on one stream.
struct Outgoing(mpsc::Sender<ToControlPlane>);

impl Outgoing {
    async fn send(&self, message: to_control_plane::Message) -> Result<(), End> {
        let message = ToControlPlane { message: Some(message) };
        match tokio::time::timeout(SEND_TIMEOUT, self.0.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Closed),
            Err(_) => Err(End::Stalled),
        }
    }

    /// Removals first: they make room.
    async fn subscribe(&self, add: &[SocketAddr], remove: &[SocketAddr]) -> Result<(), End> {
        let text = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect();
        for remove in remove.chunks(ADDRESSES_A_MESSAGE) {
            let message = Subscribe { add: Vec::new(), remove: text(remove) };
            self.send(to_control_plane::Message::Subscribe(message)).await?;
        }
        for add in add.chunks(ADDRESSES_A_MESSAGE) {
            let message = Subscribe { add: text(add), remove: Vec::new() };
            self.send(to_control_plane::Message::Subscribe(message)).await?;
        }
        Ok(())
    }

    async fn report(&self, mut reports: Vec<ResourceReport>) -> Result<(), End> {
        while !reports.is_empty() {
            let rest = reports.split_off(reports.len().min(REPORTS_A_MESSAGE));
            let message = Report { resources: std::mem::replace(&mut reports, rest) };
            self.send(to_control_plane::Message::Report(message)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
