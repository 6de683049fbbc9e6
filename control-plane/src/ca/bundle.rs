//! The trust bundle: the authority's roots and the operator's extra ones, as one set.
//!
//! The set goes to every proxy as a resource, and to a file for proxies that have not met the control
//! plane yet. Extra roots that cannot be read change nothing: the set before them holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use heddle_api::proto::v1::{ResourceType, TrustBundle, Version};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::parse_certificates;
use crate::catalog::{Encoded, Key};
use crate::metrics::Metrics;
use crate::state::{self, Polled};
use crate::version::Versions;

/// More roots than any rotation needs; the handshake tries them one by one.
pub(crate) const ROOT_LIMIT: usize = 16;

/// A set of roots, and the resource that carries it.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub roots: Arc<[CertificateDer<'static>]>,
    pub encoded: Arc<Encoded>,
}

impl Bundle {
    /// The roots in the order given, each once.
    #[must_use]
    pub fn new(roots: &[CertificateDer<'static>], version: Version) -> Self {
        let mut set: Vec<CertificateDer<'static>> = Vec::with_capacity(roots.len());
        for root in roots {
            if !set.contains(root) {
                set.push(root.clone());
            }
        }
        let message = TrustBundle { roots: set.iter().map(|root| root.to_vec()).collect() };
        let key = Key::new(ResourceType::TrustBundle, "default");
        let encoded = Arc::new(Encoded::new(key, version, &message));
        Self { roots: set.into(), encoded }
    }

    /// As proxies read it when they start.
    #[must_use]
    pub fn pem(&self) -> String {
        write_pem(&self.roots)
    }
}

/// Certificates as text, one block after another.
#[must_use]
pub(crate) fn write_pem(certificates: &[CertificateDer<'_>]) -> String {
    use base64::Engine as _;
    let mut text = String::new();
    for certificate in certificates {
        let body = base64::engine::general_purpose::STANDARD.encode(certificate);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in body.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// Keeps the bundle current: own roots, and those in a file that the operator may change.
pub struct Keeper {
    pub own: Vec<CertificateDer<'static>>,
    pub extra: PathBuf,
    pub out: PathBuf,
    pub versions: Versions,
    pub metrics: Metrics,
    pub bundle: watch::Sender<Option<Arc<Bundle>>>,
}

impl Keeper {
    /// Follows the file of extra roots until `stop` resolves.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let first = self.bundle.borrow().clone();
        if let Some(first) = first {
            write(&first, &self.out);
        }
        Polled::new(self.extra.clone(), state::read_public)
            .run(stop, |content| self.apply(content))
            .await;
    }

    fn apply(&self, content: Result<Option<Vec<u8>>, String>) {
        let extra = match content.and_then(|content| match content {
            Some(pem) => parse_roots(&pem),
            None => Ok(Vec::new()),
        }) {
            Ok(extra) => extra,
            Err(problem) => {
                self.metrics.source_errors.with_label_values(&["extra_roots"]).inc();
                let path = self.extra.display();
                tracing::error!(%path, problem, "extra roots not read; the roots before hold");
                return;
            }
        };
        let roots: Vec<_> = self.own.iter().cloned().chain(extra).collect();
        let next = Arc::new(Bundle::new(&roots, self.versions.next()));
        if self.bundle.borrow().as_ref().is_some_and(|bundle| bundle.roots == next.roots) {
            return;
        }
        tracing::info!(roots = next.roots.len(), "trust bundle changed");
        write(&next, &self.out);
        self.bundle.send_replace(Some(next));
    }
}

/// A failure is logged and not fatal: proxies that run get the bundle over their stream.
fn write(bundle: &Bundle, path: &Path) {
    if let Err(error) = state::write_atomic(path, bundle.pem().as_bytes(), 0o644) {
        tracing::error!(path = %path.display(), %error, "cannot write the trust bundle");
    }
}

/// CA certificates in PEM; none when there is only white space.
pub(crate) fn parse_roots(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    if pem.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let roots = parse_certificates(pem)?;
    if roots.len() > ROOT_LIMIT {
        return Err(format!("holds {} certificates; at most {ROOT_LIMIT} are used", roots.len()));
    }
    for (position, root) in roots.iter().enumerate() {
        let usable = X509Certificate::from_der(root).is_ok_and(|(_, parsed)| parsed.is_ca());
        if !usable {
            return Err(format!("certificate {} is not a CA's", position + 1));
        }
    }
    Ok(roots)
}
