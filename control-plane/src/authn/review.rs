//! Service-account tokens: what one says of itself, what the API server says of it, and which live
//! pod that proves. Pure: asks nobody.
//!
//! What a token says of itself is used to refuse early and to explain, never to admit: only a review
//! by the API server proves anything.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use heddle_api::names::TOKEN_AUDIENCE;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use serde::Deserialize;

use super::{Refusal, TOKEN_LIMIT, check_address};
use crate::catalog::{Catalog, PodIdentity};

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const USERNAME_PREFIX: &str = "system:serviceaccount:";

/// What a token says of itself; nobody has proved it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Claims {
    #[serde(rename = "aud", default)]
    audiences: Audiences,
    #[serde(rename = "exp", default)]
    expires: u64,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: Bound,
}

/// RFC 7519 lets one audience stand alone.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Bound {
    namespace: String,
    serviceaccount: Named,
    pod: Option<Named>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    uid: String,
}

/// The pod that a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    pub namespace: String,
    pub service_account: String,
    pub pod: String,
    pub uid: String,
}

impl std::fmt::Display for Bearer {
    /// Bounded and escaped: an unproven token says what it likes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short =
            |text: &str| text.chars().take(64).flat_map(char::escape_debug).collect::<String>();
        let Self { namespace, service_account, pod, uid } = self;
        let [namespace, account] = [short(namespace), short(service_account)];
        write!(
            f,
            "pod {namespace}/{} (uid {}) of service account {account}",
            short(pod),
            short(uid)
        )
    }
}

/// How a bearer stands with the catalog, seen from an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    Live(Arc<PodIdentity>),
    /// The catalog may only be behind.
    NotYet(Refusal),
    Refused(Refusal),
}

/// Reads what a token says and refuses what no review could make good.
///
/// # Errors
/// When it is no service-account token, is for another audience, or is bound to no pod.
pub fn read_claims(token: &str) -> Result<(Claims, Bearer), Refusal> {
    if token.is_empty() {
        return Err(Refusal::TokenMissing);
    }
    let claims = decode(token).ok_or(Refusal::TokenUnreadable)?;
    if !claims.audiences.contain(TOKEN_AUDIENCE) {
        return Err(Refusal::TokenAudience);
    }
    let Bound { namespace, serviceaccount, pod } = claims.kubernetes.clone();
    let pod = pod.ok_or(Refusal::TokenNotBound)?;
    let bearer =
        Bearer { namespace, service_account: serviceaccount.name, pod: pod.name, uid: pod.uid };
    Ok((claims, bearer))
}

fn decode(token: &str) -> Option<Claims> {
    if token.len() > TOKEN_LIMIT {
        return None;
    }
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// Whom a review proves. `claims` and `now`, seconds since the Unix epoch, only explain a refusal.
///
/// # Errors
/// When the API server does not vouch for the token, for our audience and for a pod.
pub fn judge(status: &TokenReviewStatus, claims: &Claims, now: u64) -> Result<Bearer, Refusal> {
    if status.authenticated != Some(true) {
        let said = status.error.as_deref().unwrap_or_default();
        return Err(if claims.expires <= now {
            Refusal::TokenExpired
        } else if ["invalidated", "deleted", "does not match"].iter().any(|w| said.contains(w)) {
            Refusal::TokenRevoked
        } else {
            Refusal::TokenInvalid
        });
    }
    // An API server that knows nothing of audiences leaves this empty: its word is for itself.
    let audiences = status.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(Refusal::TokenAudience);
    }
    let user = status.user.as_ref().ok_or(Refusal::TokenInvalid)?;
    let account = user.username.as_deref().and_then(|name| name.strip_prefix(USERNAME_PREFIX));
    let (namespace, service_account) =
        account.and_then(|account| account.split_once(':')).ok_or(Refusal::TokenNotBound)?;
    let extra = user.extra.as_ref().ok_or(Refusal::TokenNotBound)?;
    let (pod, uid) =
        single(extra, POD_NAME).zip(single(extra, POD_UID)).ok_or(Refusal::TokenNotBound)?;
    Ok(Bearer {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: pod.to_owned(),
        uid: uid.to_owned(),
    })
}

fn single<'a>(extra: &'a BTreeMap<String, Vec<String>>, key: &str) -> Option<&'a str> {
    match extra.get(key)?.as_slice() {
        [one] if !one.is_empty() => Some(one),
        _ => None,
    }
}

impl Bearer {
    /// Whether the catalog has this very pod, and the address is its own.
    #[must_use]
    pub fn standing(&self, catalog: &Catalog, peer: IpAddr) -> Standing {
        let Some(pod) = catalog.pods.get(format!("{}/{}", self.namespace, self.pod).as_str())
        else {
            return Standing::NotYet(Refusal::PodNotSeen);
        };
        if *pod.uid != *self.uid {
            return Standing::NotYet(Refusal::PodReplaced);
        }
        if *pod.service_account != *self.service_account {
            return Standing::Refused(Refusal::OtherServiceAccount);
        }
        if pod.addresses.is_empty() {
            return Standing::NotYet(Refusal::PodWithoutAddress);
        }
        match check_address(pod, peer) {
            Ok(()) => Standing::Live(pod.clone()),
            Err(refusal) => Standing::Refused(refusal),
        }
    }
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Audiences {
    fn contain(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

#[cfg(test)]
mod tests;
