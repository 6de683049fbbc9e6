//! The pod's certificate: a fresh key and a request for every one, renewal before the end of its
//! life, and the trust bundle. The only writer of [`Credentials`].
//!
//! The key is made here and never leaves the process. A certificate is used until its end even when
//! it cannot be renewed; after its end nothing replaces it but another certificate.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1::IssueRequest;
use heddle_api::proto::v1::identity_client::IdentityClient;
use heddle_runtime::backoff::Backoff;
use heddle_runtime::drain;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::config::Config;
use crate::control_plane;
use crate::error::Chain;
use crate::metrics::{Metrics, RenewalResult};
use crate::tls::{self, BundleError, Credentials, CredentialsError, TrustBundle};

mod schedule;

use schedule::{Clocks, Schedule};

/// From the connection to the answer.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(10);
/// The contract's own limit.
const MAX_TOKEN: u64 = 8 * 1024;
/// 64 roots of a few KiB.
const MAX_BUNDLE: u64 = 1024 * 1024;
/// While a certificate is in hand there is time.
const RENEWAL_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Without one the pod is out of service, so the wait is short: it serves within seconds of the
/// control plane's return.
const BOOTSTRAP_BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Why no certificate was obtained.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token or the trust bundle cannot be read.
    #[error("{} cannot be read", .0.display())]
    File(PathBuf, #[source] std::io::Error),
    /// The token or the trust bundle is larger than anything sensible.
    #[error("{} is larger than {limit} bytes", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// What is accepted.
        limit: u64,
    },
    /// The token file holds something that is not text.
    #[error("{} does not hold a token", .0.display())]
    Token(PathBuf),
    /// The trust bundle's file.
    #[error("{} is not a trust bundle in PEM", .0.display())]
    BundleFile(PathBuf, #[source] BundleError),
    /// The trust bundle in the answer.
    #[error("the control plane sent an unusable trust bundle")]
    Bundle(#[source] BundleError),
    /// The connection.
    #[error("the control plane cannot be reached")]
    ControlPlane(#[source] control_plane::Error),
    /// The control plane's own word.
    #[error("the control plane answered {code:?}: {message:?}")]
    Refused {
        /// gRPC status.
        code: tonic::Code,
        /// For people.
        message: String,
    },
    /// Neither yes nor no.
    #[error("the control plane did not answer within {} s", ISSUE_TIMEOUT.as_secs())]
    Timeout,
    /// No key or request could be made.
    #[error("no key could be made")]
    Key(#[source] rcgen::Error),
    /// The certificate that came is not usable.
    #[error("the control plane sent an unusable certificate")]
    Credentials(#[source] CredentialsError),
    /// The certificate is another namespace's.
    #[error("the control plane sent a certificate for {0}, which is not of this pod's namespace")]
    WrongNamespace(SpiffeId),
}

/// Why a trust bundle is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum BundleRefused {
    /// It is not one.
    #[error(transparent)]
    Invalid(#[from] BundleError),
    /// With it every peer would refuse this proxy, and this proxy the peers.
    #[error(transparent)]
    Unusable(#[from] CredentialsError),
    /// The process is ending.
    #[error("the proxy is stopping")]
    Stopping,
}

enum Order {
    Renew,
    Bundle { bundle: TrustBundle, answer: oneshot::Sender<Result<(), BundleRefused>> },
}

/// Orders to the service. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    trust_domain: Arc<str>,
    orders: mpsc::Sender<Order>,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    last_failure: watch::Receiver<Option<Arc<str>>>,
}

impl Handle {
    /// A certificate that nobody renews.
    #[cfg(test)]
    pub(crate) fn fixed(credentials: Credentials) -> Self {
        Self {
            trust_domain: credentials.id().trust_domain().into(),
            orders: mpsc::channel(1).0,
            credentials: watch::channel(Some(Arc::new(credentials))).1,
            last_failure: watch::channel(None).1,
        }
    }

    /// Asks for a new certificate now. Orders that wait already are not doubled.
    pub fn renew(&self) {
        // A full queue holds an order that has not been looked at yet.
        let _ = self.orders.try_send(Order::Renew);
    }

    /// Takes over the roots that the control plane distributes.
    ///
    /// # Errors
    /// They are not certificates, or our own certificate does not chain to them.
    pub async fn offer_bundle(&self, roots: &[Vec<u8>]) -> Result<(), BundleRefused> {
        let roots = roots.iter().map(|der| CertificateDer::from(der.clone()));
        let bundle = TrustBundle::new(Arc::clone(&self.trust_domain), roots)?;
        let (answer, answered) = oneshot::channel();
        let order = Order::Bundle { bundle, answer };
        self.orders.send(order).await.map_err(|_| BundleRefused::Stopping)?;
        answered.await.unwrap_or(Err(BundleRefused::Stopping))
    }

    /// The certificate in hand; `None` before the first. It may have expired: who uses it checks.
    #[must_use]
    pub fn credentials(&self) -> watch::Receiver<Option<Arc<Credentials>>> {
        self.credentials.clone()
    }

    /// Why each attempt failed, as it does; `None` after a success.
    #[must_use]
    pub fn failures(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.last_failure.clone()
    }

    /// Why the last attempt failed; `None` after a success.
    #[must_use]
    pub fn last_failure(&self) -> Option<Arc<str>> {
        self.last_failure.borrow().clone()
    }
}

/// The long-lived task's state.
pub struct Service {
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    orders: mpsc::Receiver<Order>,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
    last_failure: watch::Sender<Option<Arc<str>>>,
    /// The latest roots from the control plane.
    bundle: Option<Arc<TrustBundle>>,
    schedule: Option<Schedule>,
    /// Somebody ordered a renewal and it has not happened yet.
    ordered: bool,
    backoff: Backoff,
    /// Not before this, after a failure.
    retry_at: Option<Instant>,
}

impl Service {
    /// A service that has not started yet, and its handle.
    #[must_use]
    pub fn new(config: Arc<Config>, metrics: Arc<Metrics>) -> (Self, Handle) {
        let (orders, received) = mpsc::channel(8);
        let (credentials, current) = watch::channel(None);
        let (last_failure, failure) = watch::channel(None);
        let trust_domain = Arc::clone(&config.trust_domain);
        let handle = Handle { trust_domain, orders, credentials: current, last_failure: failure };
        let service = Self {
            config,
            metrics,
            orders: received,
            credentials,
            last_failure,
            bundle: None,
            schedule: None,
            ordered: false,
            backoff: Backoff::new(BOOTSTRAP_BACKOFF.0, BOOTSTRAP_BACKOFF.1),
            retry_at: None,
        };
        (service, handle)
    }

    /// Obtains certificates until the drain's abort: what is in flight needs them to the end.
    pub async fn run(mut self, drain: drain::Watch) {
        tokio::select! {
            () = self.serve() => {}
            () = drain.aborted() => {}
        }
    }

    async fn serve(&mut self) {
        loop {
            let now = Instant::now();
            if self.is_due() && self.retry_at.is_none_or(|at| at <= now) {
                self.renew().await;
            }
            let pause = self.pause();
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Renew) => {
                        self.ordered = true;
                        self.retry_at = None;
                    }
                    Some(Order::Bundle { bundle, answer }) => {
                        // Who asked may have gone; the bundle is in force all the same.
                        let _ = answer.send(self.apply_bundle(bundle));
                    }
                    None => return,
                },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn is_due(&self) -> bool {
        self.ordered || self.schedule.as_ref().is_none_or(|s| s.is_due(Clocks::now()))
    }

    /// Until the clocks are looked at again.
    fn pause(&self) -> Duration {
        let tick = self.schedule.as_ref().map_or(schedule::MAX_TICK, Schedule::tick);
        let retry = self.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
        retry.filter(|_| self.is_due()).map_or(tick, |retry| retry.min(tick))
    }

    async fn renew(&mut self) {
        let result = tokio::time::timeout(ISSUE_TIMEOUT, fetch(&self.config, self.bundle.as_ref()));
        match result.await.unwrap_or(Err(Error::Timeout)) {
            Ok(credentials) => self.take_over(credentials),
            Err(error) => self.note_failure(&error),
        }
    }

    fn take_over(&mut self, credentials: Credentials) {
        let life = credentials.not_before()..credentials.not_after();
        self.schedule = Some(Schedule::new(Clocks::now(), life, rand::random()));
        self.ordered = false;
        self.retry_at = None;
        self.backoff = Backoff::new(RENEWAL_BACKOFF.0, RENEWAL_BACKOFF.1);
        self.bundle = Some(Arc::clone(credentials.bundle()));
        tracing::info!(
            id = %credentials.id(),
            serial = %credentials.serial(),
            not_after = tls::unix_seconds(credentials.not_after()),
            "certificate obtained"
        );
        self.metrics.renewals.inc(RenewalResult::Ok);
        self.metrics.set_certificate_expiry(credentials.not_after());
        self.last_failure.send_replace(None);
        self.credentials.send_replace(Some(Arc::new(credentials)));
    }

    fn note_failure(&mut self, error: &Error) {
        let remaining = self.schedule.as_ref().and_then(|s| s.remaining(Clocks::now()));
        if remaining.is_none() && self.schedule.take().is_some() {
            // Out of service from here on: as urgent as at the start.
            self.backoff = Backoff::new(BOOTSTRAP_BACKOFF.0, BOOTSTRAP_BACKOFF.1);
        }
        let wait = schedule::retry_wait(self.backoff.next(rand::random()), remaining);
        self.retry_at = Some(Instant::now() + wait);
        self.metrics.renewals.inc(RenewalResult::Failed);
        let reason: Arc<str> = Chain(error).to_string().into();
        tracing::warn!(
            error = %reason,
            retry_in_ms = wait.as_millis(),
            certificate_left_s = remaining.map_or(0, |left| left.as_secs()),
            "no certificate obtained"
        );
        self.last_failure.send_replace(Some(reason));
    }

    fn apply_bundle(&mut self, bundle: TrustBundle) -> Result<(), BundleRefused> {
        let bundle = Arc::new(bundle);
        let current = self.credentials.borrow().clone();
        if let Some(current) = current
            && !current.bundle().same_roots(&bundle)
        {
            let rebuilt = match current.with_bundle(Arc::clone(&bundle)) {
                Ok(rebuilt) => rebuilt,
                // Nothing to protect: the next certificate comes with its own roots.
                Err(_) if current.is_expired(SystemTime::now()) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            tracing::info!(roots = bundle.len(), "trust bundle changed");
            self.credentials.send_replace(Some(Arc::new(rebuilt)));
        }
        self.bundle = Some(bundle);
        Ok(())
    }
}

/// One certificate: key, request, answer, checks.
async fn fetch(config: &Config, current: Option<&Arc<TrustBundle>>) -> Result<Credentials, Error> {
    let token = read_token(config)?;
    let trusted = trusted_roots(config, current)?;
    let channel = control_plane::connect(&config.control_plane, &trusted, None)
        .await
        .map_err(Error::ControlPlane)?;
    let (key, csr) = make_request().map_err(Error::Key)?;
    let answer = IdentityClient::new(channel).issue(IssueRequest { token, csr }).await;
    let answer = answer.map_err(|status| Error::Refused {
        code: status.code(),
        message: status.message().chars().take(256).collect(),
    })?;
    let answer = answer.into_inner();
    let chain: Vec<_> = answer.chain.into_iter().map(CertificateDer::from).collect();
    let roots = answer.roots.into_iter().map(CertificateDer::from);
    let sent = TrustBundle::new(Arc::clone(&config.trust_domain), roots).map_err(Error::Bundle)?;
    let credentials = assemble(chain, key, current, sent).map_err(Error::Credentials)?;
    if credentials.id().namespace() != &*config.namespace {
        return Err(Error::WrongNamespace(credentials.id().clone()));
    }
    Ok(credentials)
}

/// The bundle that the stream pushed is the one in force: a replica that answers may be behind it.
/// Only a certificate that does not chain to it shows that it is the older of the two.
fn assemble(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    pushed: Option<&Arc<TrustBundle>>,
    sent: TrustBundle,
) -> Result<Credentials, CredentialsError> {
    if let Some(pushed) = pushed {
        let own = Credentials::new(chain.clone(), key.clone_key(), Arc::clone(pushed));
        if own.is_ok() {
            return own;
        }
    }
    Credentials::new(chain, key, Arc::new(sent))
}

fn make_request() -> Result<(PrivateKeyDer<'static>, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // The control plane chooses the subject; whatever stood here would be ignored.
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?.der().to_vec();
    Ok((PrivatePkcs8KeyDer::from(key.serialize_der()).into(), csr))
}

fn read_token(config: &Config) -> Result<String, Error> {
    let path = &config.token_file;
    let text = String::from_utf8(read(path, MAX_TOKEN)?).map_err(|_| Error::Token(path.clone()))?;
    match text.trim() {
        "" => Err(Error::Token(path.clone())),
        token => Ok(token.to_owned()),
    }
}

/// What the control plane must chain to. The file is read again each time: an operator may have
/// replaced it. What the control plane pushed counts too, since a rotation may have passed the file
/// by.
fn trusted_roots(
    config: &Config,
    current: Option<&Arc<TrustBundle>>,
) -> Result<Arc<TrustBundle>, Error> {
    match current {
        Some(current) => Ok(with_file(config, current)),
        None => read_bundle(config).map(Arc::new),
    }
}

/// `current` and the roots in the file; `current` alone when the file cannot be used.
pub(crate) fn with_file(config: &Config, current: &Arc<TrustBundle>) -> Arc<TrustBundle> {
    read_bundle(config).map_or_else(|_| Arc::clone(current), |file| Arc::new(current.union(&file)))
}

fn read_bundle(config: &Config) -> Result<TrustBundle, Error> {
    let path = &config.trust_bundle_file;
    let pem = read(path, MAX_BUNDLE)?;
    TrustBundle::from_pem(Arc::clone(&config.trust_domain), &pem)
        .map_err(|error| Error::BundleFile(path.clone(), error))
}

/// Small local files on the control thread: an asynchronous read would cost a thread for nothing.
fn read(path: &std::path::Path, limit: u64) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let failed = |error| Error::File(path.to_owned(), error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    let read = file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > limit {
        return Err(Error::FileTooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
