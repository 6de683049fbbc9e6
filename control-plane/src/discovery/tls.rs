//! The server's side of TLS: 1.3 only, our own certificate renewed in time, clients' certificates
//! checked against the bundle when they present one (a proxy that starts has none yet).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle_api::identity::SpiffeId;
use heddle_api::names::{CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_SERVICE_ACCOUNT};
use rand::RngExt;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use crate::ca::bundle::Bundle;
use crate::ca::{Authority, Issued};
use crate::error::{Error, chain};
use crate::metrics::Metrics;
use crate::served::Served;

/// Due dates are compared with the wall clock this often: a timer stops while the machine sleeps.
const CLOCK_INTERVAL: Duration = Duration::from_secs(30);
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Keeps the server's TLS configuration current.
pub(crate) struct Keeper {
    /// `None` until there is one.
    pub(crate) authority: watch::Receiver<Option<Arc<Authority>>>,
    pub(crate) served: watch::Receiver<Option<Served>>,
    pub(crate) metrics: Metrics,
    /// `None` until trust domain and issuer are known.
    pub(crate) config: watch::Sender<Option<Arc<ServerConfig>>>,
}

/// Our own leaf with its key.
struct Own {
    trust_domain: String,
    /// Of the issuer.
    fingerprint: String,
    issued: Issued,
    key: KeyPair,
    renew_at: SystemTime,
}

impl Own {
    fn is_due(&self, served: &Served, authority: &Authority) -> bool {
        let renamed = served.trust_domain().is_some_and(|domain| domain != self.trust_domain);
        let is_anothers = authority.fingerprint() != self.fingerprint;
        renamed || is_anothers || self.renew_at <= SystemTime::now()
    }
}

impl Keeper {
    /// Makes the first certificate when the sources have been read, and the next ones in time.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut own: Option<Own> = None;
        let mut roots: Option<Arc<[CertificateDer<'static>]>> = None;
        loop {
            let mut pause = CLOCK_INTERVAL;
            let served = self.served.borrow_and_update().clone();
            let authority = self.authority.borrow_and_update().clone();
            if let Some((served, authority)) = served.zip(authority) {
                let due = own.as_ref().is_none_or(|own| own.is_due(&served, &authority));
                if due || roots.as_ref() != Some(&served.bundle.roots) {
                    match self.rebuild(&served, &authority, &mut own, due) {
                        Ok(()) => roots = Some(served.bundle.roots.clone()),
                        Err(error) => {
                            tracing::error!(error = chain(&error), "no server certificate");
                            pause = RETRY_INTERVAL;
                        }
                    }
                }
            }
            if let Some(own) = &own {
                let left = own.renew_at.duration_since(SystemTime::now()).unwrap_or_default();
                pause = pause.min(left.max(Duration::from_millis(100)));
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.served.changed() => if changed.is_err() { return },
                Ok(()) = self.authority.changed() => {}
                () = &mut stop => return,
            }
        }
    }

    fn rebuild(
        &self,
        served: &Served,
        authority: &Authority,
        own: &mut Option<Own>,
        due: bool,
    ) -> Result<(), Error> {
        if due {
            let Some(trust_domain) = served.trust_domain() else { return Ok(()) };
            *own = Some(self.renew(authority, &trust_domain)?);
        }
        let Some(own) = own else { return Ok(()) };
        let config = server_config(&own.issued, &own.key, &served.bundle)?;
        self.config.send_replace(Some(Arc::new(config)));
        Ok(())
    }

    fn renew(&self, authority: &Authority, trust_domain: &str) -> Result<Own, Error> {
        let identity = server_identity(trust_domain)
            .map_err(|problem| Error::Config(vec![format!("Mesh trustDomain: {problem}")]))?;
        let now = SystemTime::now();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issued = authority.issue_own(&identity, &key, now).map_err(|_| Error::IssuerExpired)?;
        let life = issued.not_after.duration_since(now).unwrap_or_default();
        let renew_at = now + life.mul_f64(rand::rng().random_range(0.60..0.75));
        self.metrics.set_expiry("server", issued.not_after);
        tracing::info!(serial = issued.serial, %identity, "renewed the server certificate");
        let fingerprint = authority.fingerprint().to_owned();
        Ok(Own { trust_domain: trust_domain.to_owned(), fingerprint, issued, key, renew_at })
    }
}

/// What proxies expect the control plane to prove.
fn server_identity(trust_domain: &str) -> Result<SpiffeId, heddle_api::identity::ParseError> {
    SpiffeId::new(trust_domain, CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_SERVICE_ACCOUNT)
}

fn server_config(issued: &Issued, key: &KeyPair, bundle: &Bundle) -> Result<ServerConfig, Error> {
    let provider = Arc::new(provider());
    let mut roots = RootCertStore::empty();
    for root in bundle.roots.iter() {
        roots.add(root.clone())?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(issued.chain.clone(), key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // No resumption: every connection is verified against the bundle of its time.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}
