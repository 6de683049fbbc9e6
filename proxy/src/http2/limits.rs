//! How long a request over HTTP/2 may take: to its response's head, to its last byte, and with
//! nothing moving either way. Refuses to say what follows: its callers answer, reset or retry.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::time::{Duration, Instant, Sleep, sleep_until, timeout_at};

use crate::error::Error;

/// When something of a request or of its response last moved.
#[derive(Clone, Debug)]
pub struct Moved(Rc<Cell<Instant>>);

impl Moved {
    /// It moves now.
    #[must_use]
    pub fn new() -> Self {
        Self(Rc::new(Cell::new(Instant::now())))
    }

    /// It moves now.
    pub fn touch(&self) {
        self.0.set(Instant::now());
    }
}

impl Default for Moved {
    fn default() -> Self {
        Self::new()
    }
}

/// Which of the limits has passed.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// That of the whole request, retries included.
    Request,
    /// That of one attempt.
    Attempt,
    /// Nothing moved.
    Idle,
}

impl Limit {
    pub(super) fn error(self) -> Error {
        match self {
            Self::Request => Error::RequestTimeout,
            Self::Attempt => Error::PerTryTimeout,
            Self::Idle => Error::IdleTimeout,
        }
    }
}

/// The limits of one wait.
#[derive(Clone, Debug)]
pub struct Limits {
    by: Option<(Instant, Limit)>,
    idle: Option<(Duration, Moved)>,
}

impl Limits {
    /// The earliest of `by` counts.
    #[must_use]
    pub fn new<const N: usize>(
        by: [(Option<Instant>, Limit); N],
        idle: Option<(Duration, Moved)>,
    ) -> Self {
        let by = by.into_iter().filter_map(|(at, limit)| Some((at?, limit)));
        Self { by: by.min_by_key(|(at, _)| *at), idle }
    }

    /// The next moment at which one has passed, if nothing moves until then.
    fn due(&self) -> Option<(Instant, Limit)> {
        let idle = self.idle.as_ref().map(|(idle, moved)| (moved.0.get() + *idle, Limit::Idle));
        match (self.by, idle) {
            (Some(by), Some(idle)) => Some(if by.0 <= idle.0 { by } else { idle }),
            (by, idle) => by.or(idle),
        }
    }

    /// What `future` brings in time.
    ///
    /// # Errors
    /// A limit has passed, or what `future` says.
    pub async fn wait<T>(
        &self,
        future: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::pin!(future);
        loop {
            let Some((at, limit)) = self.due() else { return future.await };
            match timeout_at(at, &mut future).await {
                Ok(done) => return done,
                // What has moved meanwhile puts it off.
                Err(_) if self.due().is_some_and(|(later, _)| later > at) => {}
                Err(_) => return Err(limit.error()),
            }
        }
    }

    /// Watches over a body; `None` when nothing limits it.
    pub(super) fn timer(self) -> Option<Timer> {
        let sleep = Box::pin(sleep_until(self.due()?.0));
        Some(Timer { limits: self, sleep })
    }
}

/// The limits of a response that is under way. It looks at them while the caller takes what there
/// is: a caller that takes nothing is no slow response.
pub(super) struct Timer {
    limits: Limits,
    sleep: Pin<Box<Sleep>>,
}

impl Timer {
    pub(super) fn touch(&self) {
        if let Some((_, moved)) = &self.limits.idle {
            moved.touch();
        }
    }

    /// Ready when a limit has passed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Limit> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            match self.limits.due() {
                Some((later, _)) if later > self.sleep.deadline() => {
                    self.sleep.as_mut().reset(later);
                }
                Some((_, limit)) => return Poll::Ready(limit),
                None => return Poll::Pending,
            }
        }
    }
}
