//! Asks the API server whose a token is, and waits for the index to know that pod. What the answers
//! mean is decided in `authn::review`.
//!
//! Nothing is cached: each certificate costs one review, so a token is worth nothing the moment the
//! API server says so. Questions are bounded in number, in time and by address; a token that no
//! answer could make good is refused without one.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_api::names::TOKEN_AUDIENCE;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::authn::limits::Attempts;
use crate::authn::review::{Bearer, Claims, Standing, judge, read_claims};
use crate::authn::{Denied, Refusal};
use crate::catalog::PodIdentity;
use crate::error::chain;
use crate::served::Served;

/// Questions at once; others wait, within the time of their own.
const REVIEWS_AT_ONCE: usize = 32;
/// From the wish to ask to the answer.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Proved pods that wait for the index at once. Each is a real pod, but nobody waits without limit.
const WAITING_LIMIT: usize = 512;
/// A new pod's proxy is often faster than the watch that tells of the pod, or of its address.
const INDEX_PATIENCE: Duration = Duration::from_secs(3);
/// What the log quotes of an answer.
const DETAIL_LIMIT: usize = 300;

/// Verifies service-account tokens.
pub struct Reviewer {
    reviews: Api<TokenReview>,
    asking: Semaphore,
    waiting: Semaphore,
    attempts: Mutex<Attempts>,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").finish_non_exhaustive()
    }
}

impl Reviewer {
    #[must_use]
    pub fn new(client: kube::Client) -> Self {
        Self {
            reviews: Api::all(client),
            asking: Semaphore::new(REVIEWS_AT_ONCE),
            waiting: Semaphore::new(WAITING_LIMIT),
            attempts: Mutex::new(Attempts::new(Instant::now())),
        }
    }

    /// The live pod that `token` proves, presented from `peer`.
    ///
    /// # Errors
    /// Names the first thing that does not hold.
    pub async fn verify(
        &self,
        token: &str,
        peer: IpAddr,
        served: watch::Receiver<Option<Served>>,
    ) -> Result<Arc<PodIdentity>, Denied> {
        let (claims, claimed) = read_claims(token)?;
        let denied = |refusal| Denied { refusal, detail: format!("the token claims {claimed}") };
        self.attempts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(peer, Instant::now())
            .map_err(|_| denied(Refusal::TooManyAttempts))?;
        // A token that was carried off is refused on sight: the API server would say that it is
        // good.
        if let Some(Standing::Refused(refusal)) = standing(&claimed, peer, &served) {
            return Err(denied(refusal));
        }
        let status = self.ask(token).await.map_err(|detail| Denied {
            refusal: Refusal::ReviewUnavailable,
            detail: bounded(detail),
        })?;
        let bearer = proved(&status, &claims).map_err(|refusal| {
            let said = status.error.as_deref().unwrap_or("nothing more");
            let detail = format!("the token claims {claimed}; the API server says {said:?}");
            Denied { refusal, detail: bounded(detail) }
        })?;
        self.await_pod(&bearer, peer, served).await.map_err(denied)
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, String> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let answer = tokio::time::timeout(REVIEW_TIMEOUT, async {
            let _slot = self.asking.acquire().await;
            self.reviews.create(&PostParams::default(), &review).await
        });
        match answer.await {
            Ok(Ok(answer)) => Ok(answer.status.unwrap_or_default()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("no answer within {} s", REVIEW_TIMEOUT.as_secs())),
        }
    }

    async fn await_pod(
        &self,
        bearer: &Bearer,
        peer: IpAddr,
        mut served: watch::Receiver<Option<Served>>,
    ) -> Result<Arc<PodIdentity>, Refusal> {
        let deadline = Instant::now() + INDEX_PATIENCE;
        let mut slot = None;
        loop {
            served.mark_unchanged();
            let refusal = match standing(bearer, peer, &served) {
                Some(Standing::Live(pod)) => return Ok(pod),
                Some(Standing::Refused(refusal)) => return Err(refusal),
                Some(Standing::NotYet(refusal)) => refusal,
                None => Refusal::PodNotSeen,
            };
            if slot.is_none() {
                slot = Some(self.waiting.try_acquire().map_err(|_| refusal)?);
            }
            match tokio::time::timeout_at(deadline, served.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(refusal),
            }
        }
    }
}

/// `None` before the sources have been read.
fn standing(
    bearer: &Bearer,
    peer: IpAddr,
    served: &watch::Receiver<Option<Served>>,
) -> Option<Standing> {
    let current = served.borrow().clone()?;
    Some(bearer.standing(&current.catalog, peer))
}

fn proved(status: &TokenReviewStatus, claims: &Claims) -> Result<Bearer, Refusal> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    judge(status, claims, now)
}

fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(DETAIL_LIMIT));
    text
}

#[cfg(test)]
mod tests;
