//! Who asks: tokens for certificates, certificates for streams. Decides, and names each refusal;
//! signs and serves nothing.
//!
//! On Kubernetes a token is a pod's service-account token, for the audience `heddle`, and the API
//! server says whose it is (`review`). In the lab it is `heddle1.<payload>.<mac>`: both parts base64url
//! without padding, the payload the JSON of [`Claims`], the MAC HMAC-SHA256 over everything before
//! its dot. Either is bound to one pod by name and uid, and accepted only from that pod's address.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use heddle_api::identity::SpiffeId;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tonic::Status;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::catalog::{Catalog, PodIdentity};
use crate::kubernetes::token_review::Reviewer;
use crate::served::Served;
use crate::state::{self, Polled};

pub mod limits;
pub mod review;

const TOKEN_PREFIX: &str = "heddle1.";
const TOKEN_LIMIT: usize = 8 * 1024;
/// Shortest key that is worth a MAC.
const KEY_MIN: usize = 32;

/// What a bootstrap token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// Seconds since the Unix epoch.
    pub exp: u64,
}

/// Why a caller is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no token; send the pod's bootstrap token")]
    TokenMissing,
    #[error("the token is not of the form heddle1.<payload>.<mac>")]
    TokenMalformed,
    #[error("the token's MAC is wrong")]
    TokenForged,
    #[error("the token has expired")]
    TokenExpired,
    #[error("there is no token key yet")]
    KeyMissing,
    #[error("the token is no service-account token of Kubernetes; project one for audience heddle")]
    TokenUnreadable,
    #[error("the token is not for audience heddle; project one that is")]
    TokenAudience,
    #[error("the API server does not know the token")]
    TokenInvalid,
    #[error("the token's pod or service account has been deleted")]
    TokenRevoked,
    #[error("the token is bound to no pod; project it into one")]
    TokenNotBound,
    #[error("the API server cannot be asked about the token; try again")]
    ReviewUnavailable,
    #[error("too many attempts from this address; try again later")]
    TooManyAttempts,
    #[error("the pod is not known here yet; try again")]
    PodNotSeen,
    #[error("the pod has no address of its own yet; try again")]
    PodWithoutAddress,
    #[error("the pod runs under another service account")]
    OtherServiceAccount,
    #[error("no live pod of that name")]
    PodUnknown,
    #[error("the token was made for an earlier pod of that name")]
    PodReplaced,
    #[error("the connection does not come from the pod's address")]
    OtherAddress,
    #[error("a stream needs a client certificate")]
    CertificateMissing,
    #[error("the certificate has not exactly one URI SAN that is a SPIFFE id")]
    CertificateName,
    #[error("the certificate is another workload's")]
    OtherIdentity,
}

impl Refusal {
    /// Label of the refusal in metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::TokenMissing => "token_missing",
            Self::TokenMalformed => "token_malformed",
            Self::TokenForged => "token_forged",
            Self::TokenExpired => "token_expired",
            Self::KeyMissing => "key_missing",
            Self::TokenUnreadable => "token_unreadable",
            Self::TokenAudience => "token_audience",
            Self::TokenInvalid => "token_invalid",
            Self::TokenRevoked => "token_revoked",
            Self::TokenNotBound => "token_not_bound",
            Self::ReviewUnavailable => "review_unavailable",
            Self::TooManyAttempts => "too_many_attempts",
            Self::PodNotSeen => "pod_not_seen",
            Self::PodWithoutAddress => "pod_without_address",
            Self::OtherServiceAccount => "other_service_account",
            Self::PodUnknown => "pod_unknown",
            Self::PodReplaced => "pod_replaced",
            Self::OtherAddress => "other_address",
            Self::CertificateMissing => "certificate_missing",
            Self::CertificateName => "certificate_name",
            Self::OtherIdentity => "other_identity",
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::TokenMissing
            | Refusal::TokenMalformed
            | Refusal::TokenForged
            | Refusal::TokenExpired
            | Refusal::TokenUnreadable
            | Refusal::TokenAudience
            | Refusal::TokenInvalid
            | Refusal::TokenRevoked
            | Refusal::TokenNotBound
            | Refusal::CertificateMissing
            | Refusal::CertificateName => Self::unauthenticated(message),
            Refusal::KeyMissing
            | Refusal::ReviewUnavailable
            | Refusal::PodNotSeen
            | Refusal::PodWithoutAddress => Self::unavailable(message),
            Refusal::TooManyAttempts => Self::resource_exhausted(message),
            Refusal::OtherServiceAccount
            | Refusal::PodUnknown
            | Refusal::PodReplaced
            | Refusal::OtherAddress
            | Refusal::OtherIdentity => Self::permission_denied(message),
        }
    }
}

/// How tokens are verified: one way for each source.
#[derive(Debug, Clone)]
pub enum Verifier {
    /// By a MAC under a key that the lab shares with the control plane.
    Mac(watch::Receiver<TokenKey>),
    /// By asking the API server.
    Review(Arc<Reviewer>),
}

/// A refusal, and what the log should say beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    pub refusal: Refusal,
    /// What the token claims and what was said of it. Empty when there is nothing to add.
    pub detail: String,
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, detail: String::new() }
    }
}

impl Verifier {
    /// The live pod that `token` proves, presented from `peer`. May wait a little for `served` to
    /// show a pod that is new.
    ///
    /// # Errors
    /// Names the first thing that does not hold.
    pub async fn verify(
        &self,
        token: &str,
        peer: IpAddr,
        served: watch::Receiver<Option<Served>>,
    ) -> Result<Arc<PodIdentity>, Denied> {
        match self {
            Self::Mac(key) => {
                let key = key.borrow().clone().map_err(|_| Refusal::KeyMissing)?;
                let current = served.borrow().clone().ok_or(Refusal::PodNotSeen)?;
                let now = SystemTime::now();
                let pod = verify_token(&key, token, peer, now, &current.catalog)?;
                Ok(Arc::new(pod.clone()))
            }
            Self::Review(reviewer) => reviewer.verify(token, peer, served).await,
        }
    }
}

/// Makes a bootstrap token.
#[must_use]
pub fn mint_token(key: &[u8], claims: &Claims) -> String {
    let payload = serde_json::to_vec(claims).expect("strings and a number always serialize");
    let signed = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(payload));
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac))
}

/// The pod that `token` proves, presented from `peer`.
///
/// # Errors
/// Names the first thing that does not hold. Nothing of the payload is looked at before its MAC.
pub fn verify_token<'a>(
    key: &[u8],
    token: &str,
    peer: IpAddr,
    now: SystemTime,
    catalog: &'a Catalog,
) -> Result<&'a PodIdentity, Refusal> {
    let claims = open_token(key, token)?;
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if claims.exp <= now {
        return Err(Refusal::TokenExpired);
    }
    let pod = catalog.pod(&claims.namespace, &claims.pod).ok_or(Refusal::PodUnknown)?;
    if *pod.uid != *claims.uid {
        return Err(Refusal::PodReplaced);
    }
    check_address(pod, peer)?;
    Ok(pod)
}

fn open_token(key: &[u8], token: &str) -> Result<Claims, Refusal> {
    if token.is_empty() {
        return Err(Refusal::TokenMissing);
    }
    if token.len() > TOKEN_LIMIT || !token.starts_with(TOKEN_PREFIX) {
        return Err(Refusal::TokenMalformed);
    }
    let (signed, mac) = token.rsplit_once('.').ok_or(Refusal::TokenMalformed)?;
    let payload = signed.strip_prefix(TOKEN_PREFIX).ok_or(Refusal::TokenMalformed)?;
    let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| Refusal::TokenMalformed)?;
    // Compares in constant time.
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes(), &mac)
        .map_err(|_| Refusal::TokenForged)?;
    let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| Refusal::TokenMalformed)?;
    serde_json::from_slice(&payload).map_err(|_| Refusal::TokenMalformed)
}

/// The pod a stream speaks for: `namespace` and `name` are its word, `identity` its certificate's,
/// `peer` the connection's.
///
/// # Errors
/// Names the first thing that does not hold.
pub fn verify_stream<'a>(
    catalog: &'a Catalog,
    namespace: &str,
    name: &str,
    identity: &SpiffeId,
    peer: IpAddr,
) -> Result<&'a PodIdentity, Refusal> {
    let pod = catalog.pod(namespace, name).ok_or(Refusal::PodUnknown)?;
    if pod.identity != *identity {
        return Err(Refusal::OtherIdentity);
    }
    check_address(pod, peer)?;
    Ok(pod)
}

fn check_address(pod: &PodIdentity, peer: IpAddr) -> Result<(), Refusal> {
    // A socket that listens on both families shows an IPv4 peer as an IPv6 one.
    let peer = peer.to_canonical();
    if pod.addresses.iter().any(|address| address.to_canonical() == peer) {
        Ok(())
    } else {
        Err(Refusal::OtherAddress)
    }
}

/// The identity of a certificate whose chain has been verified: it has exactly one SAN, a URI, and
/// that is a SPIFFE id.
///
/// # Errors
/// When any of this does not hold.
pub fn parse_identity(certificate: &CertificateDer<'_>) -> Result<SpiffeId, Refusal> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| Refusal::CertificateName)?;
    let names = parsed.subject_alternative_name().ok().flatten().ok_or(Refusal::CertificateName)?;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else {
        return Err(Refusal::CertificateName);
    };
    uri.parse().map_err(|_| Refusal::CertificateName)
}

/// The token key as it stands on disk. `Err` says why there is none.
pub type TokenKey = Result<Arc<[u8]>, String>;

/// Follows the token key's file: it may appear after the control plane has started, and be replaced.
pub async fn watch_token_key(
    path: PathBuf,
    key: watch::Sender<TokenKey>,
    stop: impl Future<Output = ()>,
) {
    let shown = path.display().to_string();
    let parse = |content: Option<Vec<u8>>| match content {
        Some(bytes) if bytes.len() >= KEY_MIN => Ok(bytes.into()),
        Some(bytes) => Err(format!(
            "{shown} holds {} bytes; write at least {KEY_MIN} random ones",
            bytes.len()
        )),
        None => Err(format!("{shown} does not exist yet")),
    };
    let apply = |content: Result<Option<Vec<u8>>, String>| {
        let next: TokenKey = content.and_then(parse);
        match &next {
            Ok(_) => tracing::info!(path = shown, "token key read"),
            Err(problem) => tracing::warn!(problem, "no token key: no certificate is issued"),
        }
        // What it replaces is of no interest.
        drop(key.send_replace(next));
    };
    Polled::new(path, state::read_secret).run(stop, apply).await;
}

#[cfg(test)]
mod tests;
