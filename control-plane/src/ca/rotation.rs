//! Which roots everybody is told of, and when a new issuer may sign. Pure: `now` is an argument.
//!
//! A root is told of before anything is signed under it, and until nothing that was signed under it
//! can be valid: the record of roots outlives the Secret that named them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;

use super::bundle::{ROOT_LIMIT, parse_roots, write_pem};
use super::{Authority, fingerprint, secret};

/// After the last proxy of this replica has the roots: other replicas' proxies get them meanwhile.
const SETTLE: Duration = Duration::from_secs(5);
/// A new issuer waits for proxies that do not take the roots no longer than this.
const PATIENCE: Duration = Duration::from_secs(120);
/// Key of the record's roots.
const RECORDED: &str = "anchors.pem";
/// Key of the dates at which roots are withdrawn: fingerprint to seconds since the Unix epoch.
const RETIRING: &str = "retiring.json";

/// The roots that proxies were told of, kept outside the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    roots: Vec<CertificateDer<'static>>,
    /// By fingerprint: when a root that is wanted no longer goes.
    retiring: BTreeMap<String, u64>,
}

/// How far the roots of a new issuer have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Proxies that start find them: the ConfigMaps are written.
    pub recorded: bool,
    /// Streams of this replica.
    pub connected: u64,
    /// Those of them that use the roots.
    pub active: u64,
    /// Since they are told of on streams.
    pub told_for: Duration,
}

/// Whether a new issuer may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Wait,
    Switch,
    /// Waited long enough: this many proxies of this replica do not trust it, if any.
    Force {
        behind: u64,
    },
}

/// More roots than handshakes should try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "with the roots that are still in use there would be {0}, and at most {ROOT_LIMIT} are told of; \
     remove some from ca.crt, or wait until old ones are withdrawn"
)]
pub struct TooMany(usize);

/// Every root there should be: of the issuer that is wanted, of the one in force, and of the record.
///
/// # Errors
/// When they are too many.
pub fn roots(
    wanted: Option<&Authority>,
    current: Option<&Authority>,
    record: &Record,
    now: SystemTime,
) -> Result<Vec<CertificateDer<'static>>, TooMany> {
    let of = |authority: Option<&Authority>| {
        authority.map(|authority| authority.roots().to_vec()).unwrap_or_default()
    };
    let mut all: BTreeMap<String, CertificateDer<'static>> = BTreeMap::new();
    for root in of(wanted).into_iter().chain(of(current)).chain(record.roots.iter().cloned()) {
        if secret::is_alive(Path::new(RECORDED), &root, now) {
            all.insert(fingerprint(&root), root);
        }
    }
    if all.len() > ROOT_LIMIT {
        return Err(TooMany(all.len()));
    }
    // In the order of their fingerprints: every replica tells the same.
    Ok(all.into_values().collect())
}

/// Whether an issuer whose roots have come so far may sign.
#[must_use]
pub fn decide(progress: Progress) -> Decision {
    let Progress { recorded, connected, active, told_for } = progress;
    if recorded && active >= connected && told_for >= SETTLE {
        Decision::Switch
    } else if told_for >= PATIENCE {
        Decision::Force { behind: connected.saturating_sub(active) }
    } else {
        Decision::Wait
    }
}

impl Record {
    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn read<V: AsRef<[u8]>>(data: &BTreeMap<String, V>) -> Result<Self, String> {
        let roots = match data.get(RECORDED) {
            Some(pem) => parse_roots(pem.as_ref()).map_err(|p| format!("{RECORDED} {p}"))?,
            None => Vec::new(),
        };
        let retiring = match data.get(RETIRING) {
            Some(json) => serde_json::from_slice(json.as_ref())
                .map_err(|error| format!("{RETIRING} is not what was written: {error}"))?,
            None => BTreeMap::new(),
        };
        Ok(Self { roots, retiring })
    }

    /// As the values of a Secret.
    #[must_use]
    pub fn write(&self) -> BTreeMap<String, String> {
        let retiring = serde_json::to_string(&self.retiring).expect("text and numbers serialize");
        BTreeMap::from([
            (RECORDED.to_owned(), write_pem(&self.roots)),
            (RETIRING.to_owned(), retiring),
        ])
    }

    /// Whether proxies that start find every root of `authority`.
    #[must_use]
    pub fn holds(&self, authority: &Authority) -> bool {
        authority.roots().iter().all(|root| self.roots.contains(root))
    }

    /// Whether every root of `other` is here, too.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        other.roots.iter().all(|root| self.roots.contains(root))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// The record after this one. `told` is what everybody has been told of; `current` signs, and
    /// is what is wanted: what it does not name is withdrawn when the last certificate under it has
    /// ended.
    #[must_use]
    pub fn next(
        &self,
        told: &[CertificateDer<'static>],
        current: &Authority,
        now: SystemTime,
    ) -> Self {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Another replica may have signed with its old issuer until its own patience ended.
        let end = (now + current.leaf_lifetime() + PATIENCE + SETTLE).as_secs();
        let mut next = Self::default();
        for root in told {
            if current.roots().contains(root) {
                next.roots.push(root.clone());
                continue;
            }
            let name = fingerprint(root);
            let retire_at = self.retiring.get(&name).map_or(end, |at| *at);
            if retire_at > now.as_secs() {
                next.roots.push(root.clone());
                next.retiring.insert(name, retire_at);
            }
        }
        next
    }

    /// The record with `told` and nothing else changed, while a new issuer waits.
    #[must_use]
    pub fn with(&self, told: &[CertificateDer<'static>]) -> Self {
        Self { roots: told.to_vec(), retiring: self.retiring.clone() }
    }
}

#[cfg(test)]
mod tests;
