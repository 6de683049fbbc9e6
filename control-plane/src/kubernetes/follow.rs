//! One kind, followed for ever: listed, then watched, and listed again when the thread is lost.
//!
//! A list is a streaming one where the server has them, else it comes in pages; both are consistent
//! reads, so nothing ever goes back in time. What is told is in apply/delete/reset form: between
//! [`News::Begin`] and [`News::Complete`] everything there is, after that every change. Failures are
//! waited out with jitter, counted by kind, and logged once; what was told before holds meanwhile.

use std::fmt::Debug;
use std::time::Duration;

use heddle_resources::{Kind, ObjectKey};
use heddle_runtime::backoff::Backoff;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Status;
use kube::{Api, Client, Resource};
use prometheus::IntCounter;
use rand::RngExt;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::answer::{self, Answer};
use super::read::{self, Reading};
use crate::error::chain;

/// Objects in one page of a list.
const PAGE: u32 = 500;
/// For the head of an answer, and for a page.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The server ends a watch after this many seconds, and a new one goes on where it was.
const WATCH_SECONDS: std::ops::Range<u32> = 240..290;
/// The server sends a bookmark about once a minute, the first on a quiet kind later than that. One
/// that is silent for three is not there.
const SILENCE: Duration = Duration::from_secs(180);
/// A streaming list that pauses for so long is none: asked for in pages from then on.
const LIST_SILENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A watch that ended sooner without a word is waited for like a failed one.
const SHORT: Duration = Duration::from_secs(5);
/// On the bookmark after the last object of a streaming list.
const LIST_END: &str = "k8s.io/initial-events-end";

/// What is told of one kind.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) kind: Kind,
    /// Under which epoch it was listed.
    pub(super) epoch: u64,
    pub(super) news: News,
}

#[derive(Debug)]
pub(super) enum News {
    /// A list begins. What it does not say by its end is gone.
    Begin,
    Apply {
        key: ObjectKey,
        uid: String,
        number: u64,
        reading: Box<Reading>,
    },
    Delete {
        key: ObjectKey,
        number: u64,
    },
    /// The list is whole, as of this revision.
    Complete {
        revision: u64,
    },
    /// Nothing is missing up to this revision.
    Progress {
        revision: u64,
    },
    /// The kind is not installed.
    Absent,
    /// It cannot be read, and why.
    Failed(String),
}

/// Follows one kind.
pub(super) struct Follower<K> {
    pub(super) client: Client,
    pub(super) api: Api<K>,
    pub(super) kind: Kind,
    pub(super) read: fn(Kind, K) -> Reading,
    pub(super) out: mpsc::Sender<Told>,
    pub(super) failures: IntCounter,
    pub(super) lists: IntCounter,
    /// May be missing from the cluster.
    pub(super) is_optional: bool,
    /// The server has no streaming lists.
    pub(super) pages: bool,
}

/// Why following paused.
enum Stop {
    /// Nobody listens: the process ends.
    Closed,
    /// The server cannot go on from where we were.
    Expired(String),
    /// There is no such kind.
    Absent,
    /// The server has no streaming lists.
    NoStreams,
    Failed(String),
}

/// Where to go on.
struct Thread {
    epoch: u64,
    /// The resourceVersion up to which everything was told; `None`: list.
    position: Option<String>,
    /// Something came since the last pause.
    moved: bool,
}

impl<K> Follower<K>
where
    K: Resource + DeserializeOwned + Clone + Debug + Send + 'static,
{
    /// Follows until nobody listens. Each epoch begins with a list.
    pub(super) async fn run(mut self, mut epoch: watch::Receiver<u64>) {
        loop {
            let current = *epoch.borrow_and_update();
            tokio::select! {
                () = self.follow(current), if current > 0 => return,
                changed = epoch.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn follow(&mut self, epoch: u64) {
        let mut thread = Thread { epoch, position: None, moved: false };
        let mut backoff = Backoff::new(PAUSE, PAUSE_MAX);
        let mut problem: Option<String> = None;
        loop {
            let began = Instant::now();
            let in_pages = thread.position.is_none() && self.pages;
            let ended = match in_pages {
                true => self.list(&mut thread).await,
                false => self.stream(&mut thread).await,
            };
            if std::mem::take(&mut thread.moved) {
                backoff.reset();
                if problem.take().is_some() {
                    tracing::info!(kind = %self.kind, "followed again");
                }
            }
            let (text, news) = match ended {
                Ok(()) if in_pages || began.elapsed() > SHORT => continue,
                Ok(()) => (None, None),
                Err(Stop::Closed) => return,
                Err(Stop::NoStreams) => {
                    self.pages = true;
                    continue;
                }
                Err(Stop::Expired(text)) => {
                    thread.position = None;
                    (Some(format!("to be listed again: {text}")), None)
                }
                Err(Stop::Absent) => {
                    thread.position = None;
                    (Some("is not installed".to_owned()), Some(News::Absent))
                }
                Err(Stop::Failed(text)) => (Some(text.clone()), Some(News::Failed(text))),
            };
            if let Some(text) = text {
                self.note(&text, problem.as_ref() != Some(&text), &news);
                problem = Some(text);
            }
            if let Some(news) = news
                && self.tell(&thread, news).await.is_err()
            {
                return;
            }
            let pause = backoff.next(rand::rng().random()).max(PAUSE / 10);
            tokio::time::sleep(pause).await;
        }
    }

    /// Counts a failure, and logs it when it is news. That somebody else's kind is not installed is
    /// none.
    fn note(&self, problem: &str, is_news: bool, news: &Option<News>) {
        let is_expected = self.is_optional && matches!(news, Some(News::Absent));
        if !is_expected {
            self.failures.inc();
        }
        if !is_news {
            return;
        }
        match is_expected {
            true => tracing::info!(kind = %self.kind, "is not installed; looked for again"),
            false => {
                tracing::warn!(kind = %self.kind, problem, "not followed; what was read holds");
            }
        }
    }

    /// Everything, in pages, then the position to watch from.
    async fn list(&self, thread: &mut Thread) -> Result<(), Stop> {
        self.begin(thread).await?;
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let asked = timeout(ANSWER_TIMEOUT, self.api.list(&params)).await;
            let page = asked.map_err(|_| silent())?.map_err(|error| judge(&error))?;
            thread.moved = true;
            for object in page.items {
                self.apply(thread, object).await?;
            }
            if let Some(token) = page.metadata.continue_.filter(|token| !token.is_empty()) {
                params = params.continue_token(&token);
                continue;
            }
            let version = page.metadata.resource_version.unwrap_or_default();
            let revision = number(&version);
            thread.position = Some(version);
            return self.tell(thread, News::Complete { revision }).await;
        }
    }

    /// Changes from the position on; without one, everything and then changes.
    async fn stream(&self, thread: &mut Thread) -> Result<(), Stop> {
        let params = WatchParams {
            timeout: Some(rand::rng().random_range(WATCH_SECONDS)),
            send_initial_events: thread.position.is_none(),
            ..WatchParams::default()
        };
        let version = thread.position.clone().unwrap_or_default();
        let asked = Answer::ask(&self.client, &self.api, &params, &version);
        let asked = timeout(ANSWER_TIMEOUT, asked).await.map_err(|_| silent())?;
        let mut answer = asked.map_err(refused)?;
        if thread.position.is_none() {
            self.begin(thread).await?;
        }
        loop {
            let is_listing = thread.position.is_none();
            let patience = if is_listing { LIST_SILENCE } else { SILENCE };
            match timeout(patience, answer.next()).await {
                Ok(Ok(Some(event))) => self.take(thread, event).await?,
                Ok(Ok(None)) if is_listing => return Err(failed("the list was cut short")),
                Ok(Ok(None)) => return Ok(()),
                // One object that is not of its kind's form stops no other.
                Ok(Err(answer::Error::Unreadable(error))) => {
                    self.failures.inc();
                    tracing::error!(kind = %self.kind, %error, "an object is not readable");
                }
                Ok(Err(error)) => return Err(refused(error)),
                Err(_) if is_listing => return Err(Stop::NoStreams),
                Err(_) => return Err(silent()),
            }
            thread.moved = true;
        }
    }

    async fn take(&self, thread: &mut Thread, event: WatchEvent<K>) -> Result<(), Stop> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.advance(thread, object.meta().resource_version.as_deref());
                self.apply(thread, object).await
            }
            WatchEvent::Deleted(object) => {
                let version = object.meta().resource_version.as_deref();
                self.advance(thread, version);
                let number = version.map_or(0, number);
                let key = read::key(self.kind, object.meta());
                self.tell(thread, News::Delete { key, number }).await
            }
            WatchEvent::Bookmark(bookmark) => {
                let revision = number(&bookmark.metadata.resource_version);
                let is_end = bookmark.metadata.annotations.contains_key(LIST_END);
                if thread.position.is_none() && !is_end {
                    return Ok(());
                }
                let was_listing = thread.position.is_none();
                thread.position = Some(bookmark.metadata.resource_version);
                let news = match was_listing {
                    true => News::Complete { revision },
                    false => News::Progress { revision },
                };
                self.tell(thread, news).await
            }
            WatchEvent::Error(status) => Err(judge_status(&status, true)),
        }
    }

    /// While listing there is no position yet: a list that is cut has to begin again.
    fn advance(&self, thread: &mut Thread, version: Option<&str>) {
        if let (Some(position), Some(version)) = (&mut thread.position, version) {
            version.clone_into(position);
        }
    }

    async fn begin(&self, thread: &Thread) -> Result<(), Stop> {
        self.lists.inc();
        self.tell(thread, News::Begin).await
    }

    async fn apply(&self, thread: &Thread, object: K) -> Result<(), Stop> {
        let meta = object.meta();
        let key = read::key(self.kind, meta);
        let uid = meta.uid.clone().unwrap_or_default();
        let number = meta.resource_version.as_deref().map_or(0, number);
        let reading = Box::new((self.read)(self.kind, object));
        self.tell(thread, News::Apply { key, uid, number, reading }).await
    }

    async fn tell(&self, thread: &Thread, news: News) -> Result<(), Stop> {
        let told = Told { kind: self.kind, epoch: thread.epoch, news };
        self.out.send(told).await.map_err(|_| Stop::Closed)
    }
}

/// A resourceVersion as the number it is with every API server there is.
fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

fn failed(text: impl Into<String>) -> Stop {
    Stop::Failed(text.into())
}

fn silent() -> Stop {
    failed("the API server does not answer")
}

fn refused(error: answer::Error) -> Stop {
    match error {
        answer::Error::Status(status) => judge_status(&status, false),
        answer::Error::Failed(text) => failed(text),
        answer::Error::Unreadable(error) => failed(error.to_string()),
    }
}

fn judge(error: &kube::Error) -> Stop {
    if let kube::Error::Api(status) = error {
        return judge_status(status, false);
    }
    failed(chain(error))
}

/// What the server's word means. As an event of a running watch, whatever it says ends the thread:
/// no position that it could go on from comes with it.
fn judge_status(status: &Status, is_event: bool) -> Stop {
    let text = if status.message.is_empty() { &status.reason } else { &status.message };
    let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
    match status.code {
        404 => Stop::Absent,
        410 => Stop::Expired(text),
        422 if status.message.contains("sendInitialEvents") => Stop::NoStreams,
        _ if is_event => Stop::Expired(text),
        code => failed(format!("{code}: {text}")),
    }
}
