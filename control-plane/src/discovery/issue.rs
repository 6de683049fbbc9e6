//! The Identity service: a token and a CSR in, a certificate out, an audit line for each.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use heddle_api::proto::v1::identity_server::Identity;
use heddle_api::proto::v1::{IssueRequest, IssueResponse};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::accept::Caller;
use crate::authn::limits::{Exceeded, Limits};
use crate::authn::{Denied, Verifier};
use crate::ca::{Authority, Issued, Refusal};
use crate::catalog::PodIdentity;
use crate::error::chain;
use crate::metrics::Metrics;
use crate::served::Served;

/// Issues certificates.
pub(crate) struct Issuer {
    /// `None` until there is one.
    pub(crate) authority: watch::Receiver<Option<Arc<Authority>>>,
    pub(crate) served: watch::Receiver<Option<Served>>,
    pub(crate) verifier: Verifier,
    pub(crate) limits: Mutex<Limits>,
    pub(crate) metrics: Metrics,
}

#[tonic::async_trait]
impl Identity for Issuer {
    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::internal("the connection is unknown"))?;
        let request = request.into_inner();
        self.served()?;
        let proved = self.verifier.verify(&request.token, caller.peer, self.served.clone());
        let pod = proved.await.map_err(|denied| self.deny(&denied, &caller))?;
        self.check_limits(&pod)?;
        // Only now: what is known may have changed while the token was verified.
        let served = self.served()?;
        let authority = self.authority.borrow().clone();
        let authority = authority.ok_or_else(|| Status::unavailable("there is no issuer yet"))?;
        let issued = authority
            .issue(&pod.identity, &request.csr, SystemTime::now())
            .map_err(|refusal| self.refuse(&refusal, &pod))?;
        self.metrics.certificates_issued.inc();
        audit(&issued, &pod, &caller);
        Ok(Response::new(IssueResponse {
            chain: issued.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            roots: served.bundle.roots.iter().map(|root| root.to_vec()).collect(),
            not_after: unix(issued.not_after),
        }))
    }
}

impl Issuer {
    fn served(&self) -> Result<Served, Status> {
        let served = self.served.borrow().clone();
        served.ok_or_else(|| Status::unavailable("the sources have not been read yet"))
    }

    fn deny(&self, denied: &Denied, caller: &Caller) -> Status {
        let Denied { refusal, detail } = denied;
        self.metrics.authentication_refused.with_label_values(&[refusal.reason()]).inc();
        tracing::warn!(peer = %caller.peer, %refusal, detail, "certificate refused");
        Status::from(*refusal)
    }

    fn check_limits(&self, pod: &PodIdentity) -> Result<(), Status> {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let taken =
            self.limits.lock().unwrap_or_else(PoisonError::into_inner).take(&name, Instant::now());
        let (reason, message) = match taken {
            Ok(()) => return Ok(()),
            Err(Exceeded::Pod(wait)) => (
                "pod_limit",
                format!("this pod asks too often; come back in {} ms", wait.as_millis()),
            ),
            Err(Exceeded::Global(wait)) => (
                "global_limit",
                format!(
                    "too many certificates are asked for; come back in {} ms",
                    wait.as_millis()
                ),
            ),
        };
        self.metrics.issuance_refused.with_label_values(&[reason]).inc();
        Err(Status::resource_exhausted(message))
    }

    fn refuse(&self, refusal: &Refusal, pod: &PodIdentity) -> Status {
        self.metrics.issuance_refused.with_label_values(&[refusal.reason()]).inc();
        let error = chain(refusal);
        tracing::warn!(namespace = %pod.namespace, pod = %pod.name, error, "CSR refused");
        let message = refusal.to_string();
        match refusal {
            Refusal::TooLarge | Refusal::Malformed | Refusal::Unproven | Refusal::KeyType => {
                Status::invalid_argument(message)
            }
            Refusal::IssuerExpired | Refusal::Signing(_) => Status::unavailable(message),
        }
    }
}

fn audit(issued: &Issued, pod: &PodIdentity, caller: &Caller) {
    tracing::info!(
        target: "audit",
        serial = issued.serial,
        identity = %pod.identity,
        namespace = %pod.namespace,
        pod = %pod.name,
        address = %caller.peer,
        not_after = unix(issued.not_after),
        "certificate issued"
    );
}

fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
