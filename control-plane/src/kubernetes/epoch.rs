//! The epoch of versions: kept in a ConfigMap that every replica reads, raised by the leader alone.
//!
//! Within an epoch resourceVersions only rise. They fall when etcd is restored from a backup: what
//! proxies hold then seems newer than anything that is said from then on, and watches wait in silence
//! for numbers that are long past. So every replica asks for the current revision at short intervals,
//! and the leader answers one below what it has heard with a new epoch. With it every replica lists
//! everything again and numbers it afresh. Epochs are taken from the wall clock where that is
//! higher, because the backup may have been made before the last one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_api::names::FIELD_MANAGER;
use heddle_runtime::backoff::Backoff;
use heddle_runtime::drain;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{ListParams, PostParams};
use prometheus::IntCounter;
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::timeout;

use super::lease::Leadership;
use crate::error::chain;

/// Holds the epoch, under the key [`KEY`].
pub const CONFIG_MAP: &str = "heddle-epoch";
pub const KEY: &str = "epoch";
const POLL: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// An epoch, and the revision its first lists are made after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Epoch {
    pub(super) number: u64,
    pub(super) revision: u64,
}

/// The highest revision heard of. Shared by who hears and who compares.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard {
    inner: Arc<Mutex<Epoch>>,
}

impl Heard {
    /// Notes a revision that was heard in this epoch.
    pub(super) fn note(&self, epoch: u64, revision: u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.number == epoch {
            inner.revision = inner.revision.max(revision);
        }
    }

    fn begin(&self, epoch: Epoch) {
        *self.inner.lock().unwrap_or_else(PoisonError::into_inner) = epoch;
    }

    fn highest(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).revision
    }
}

/// Follows the ConfigMap, and raises it while leading.
pub(super) struct Keeper {
    pub(super) config_maps: Api<ConfigMap>,
    pub(super) leadership: Leadership,
    pub(super) heard: Heard,
    pub(super) epoch: watch::Sender<Epoch>,
    /// Why there is no epoch yet.
    pub(super) problem: watch::Sender<Option<String>>,
    pub(super) failures: IntCounter,
    pub(super) rewinds: IntCounter,
}

/// What one look finds.
struct Look {
    stored: Option<ConfigMap>,
    revision: u64,
}

impl Keeper {
    /// Until the drain's end: who drains still serves.
    pub(super) async fn run(self, drain: drain::Watch) {
        let mut backoff = Backoff::new(PAUSE, PAUSE_MAX);
        let mut is_failing = false;
        let mut leadership = self.leadership.clone();
        loop {
            let looked = self.look_and_decide().await;
            let pause = match &looked {
                Ok(()) => {
                    backoff.reset();
                    POLL
                }
                Err(_) => backoff.next(rand::rng().random()).max(PAUSE / 2),
            };
            if let Err(error) = looked {
                self.failures.inc();
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(error, "the epoch cannot be read; what was read holds");
                }
                self.blocked(error);
            } else if std::mem::take(&mut is_failing) {
                tracing::info!("the epoch is read again");
            }
            let is_leading = leadership.is_held();
            let gained = async {
                match is_leading {
                    true => std::future::pending().await,
                    false => leadership.gained().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = gained => {}
                () = drain.aborted() => return,
            }
        }
    }

    async fn look_and_decide(&self) -> Result<(), String> {
        // What is heard while the question is on its way may be above its answer.
        let heard = self.heard.highest();
        let Look { stored, revision } = self.look().await?;
        let current = self.epoch.borrow().number;
        let known = stored.as_ref().map(parse).transpose()?;
        let is_rewound = current > 0 && revision < heard;
        if is_rewound {
            self.rewinds.inc();
            tracing::error!(
                revision,
                heard,
                "the API server is behind what it has said: was etcd restored from a backup?"
            );
        }
        match known {
            Some(epoch) if epoch > current => self.begin(Epoch { number: epoch, revision }),
            Some(epoch) if epoch == current && !is_rewound => {}
            Some(_) | None if self.leadership.is_held() => {
                let least = if is_rewound { current + 1 } else { current.max(1) };
                let number = match current > 0 && !is_rewound {
                    // The ConfigMap is gone or set back, and nothing else: it is put right.
                    true => current,
                    false => least.max(now()),
                };
                self.write(stored, number).await?;
                if number > current {
                    self.begin(Epoch { number, revision });
                }
            }
            Some(_) | None => self.blocked("waiting for the leader to make it".to_owned()),
        }
        Ok(())
    }

    /// A consistent read: its revision is the API server's newest.
    async fn look(&self) -> Result<Look, String> {
        let params = ListParams::default().fields(&format!("metadata.name={CONFIG_MAP}"));
        let list = timeout(ANSWER_TIMEOUT, self.config_maps.list(&params)).await;
        let list = list.map_err(|_| "the API server does not answer".to_owned())?;
        let list = list.map_err(|error| chain(&error))?;
        let revision = list.metadata.resource_version.unwrap_or_default();
        let revision = revision.parse().map_err(|_| "the list has no revision".to_owned())?;
        Ok(Look { stored: list.items.into_iter().next(), revision })
    }

    /// Guarded by the resourceVersion: of two that lead at once, one fails.
    async fn write(&self, stored: Option<ConfigMap>, number: u64) -> Result<(), String> {
        let data = Some([(KEY.to_owned(), number.to_string())].into());
        let params =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let written = async {
            match stored {
                Some(stored) => {
                    let map = ConfigMap { data, ..stored };
                    self.config_maps.replace(CONFIG_MAP, &params, &map).await
                }
                None => {
                    let metadata =
                        ObjectMeta { name: Some(CONFIG_MAP.to_owned()), ..ObjectMeta::default() };
                    let map = ConfigMap { metadata, data, ..ConfigMap::default() };
                    self.config_maps.create(&params, &map).await
                }
            }
        };
        let written = timeout(ANSWER_TIMEOUT, written).await;
        let written = written.map_err(|_| "the API server does not answer".to_owned())?;
        written.map(drop).map_err(|error| chain(&error))
    }

    fn begin(&self, epoch: Epoch) {
        tracing::info!(epoch = epoch.number, revision = epoch.revision, "epoch");
        self.heard.begin(epoch);
        self.problem.send_replace(None);
        self.epoch.send_replace(epoch);
    }

    /// Only what was never there blocks.
    fn blocked(&self, problem: String) {
        if self.epoch.borrow().number == 0 {
            self.problem.send_replace(Some(problem));
        }
    }
}

fn parse(map: &ConfigMap) -> Result<u64, String> {
    let text = map.data.as_ref().and_then(|data| data.get(KEY)).map_or("", String::as_str);
    let number = text.parse().ok().filter(|number| (1..u64::MAX / 2).contains(number));
    number.ok_or_else(|| {
        format!("`{KEY}` of ConfigMap {CONFIG_MAP} is \"{text}\"; delete the ConfigMap")
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_that_was_not_written_by_us_is_not_taken() {
        let map = |text: &str| ConfigMap {
            data: Some([(KEY.to_owned(), text.to_owned())].into()),
            ..ConfigMap::default()
        };
        for text in ["", "x", "0", "-1", "18446744073709551615"] {
            assert!(parse(&map(text)).unwrap_err().contains("delete"), "{text:?}");
        }
        assert!(parse(&ConfigMap::default()).is_err());
        assert_eq!(parse(&map("7")), Ok(7));
    }

    #[test]
    fn what_was_heard_before_an_epoch_does_not_count_in_it() {
        let heard = Heard::default();
        heard.begin(Epoch { number: 2, revision: 10 });
        heard.note(1, 99);
        assert_eq!(heard.highest(), 10);
        heard.note(2, 12);
        heard.note(2, 11);
        assert_eq!(heard.highest(), 12);
    }
}
