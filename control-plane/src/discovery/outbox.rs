//! The bounded queue between a subscriber's task and its connection. Notices a proxy that does not
//! read: nothing was taken for a while although something is queued.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use heddle_api::proto::v1::{ToProxy, to_proxy};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::Stream;
use tonic::Status;

/// Messages queued for a proxy; each is at most a few MiB and shares its bodies with all others.
const QUEUE: usize = 16;
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The end that a subscriber's task fills.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: mpsc::Sender<Result<ToProxy, Status>>,
    taken: Arc<AtomicU64>,
    patience: Patience,
    look: Interval,
}

/// The end that the connection empties.
#[derive(Debug)]
pub(crate) struct Outgoing {
    queue: mpsc::Receiver<Result<ToProxy, Status>>,
    taken: Arc<AtomicU64>,
}

/// Why a message was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// The proxy does not read.
    Stalled,
    /// The connection is gone.
    Closed,
}

pub(crate) fn channel(stall_limit: Duration) -> (Outbox, Outgoing) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let taken = Arc::new(AtomicU64::new(0));
    let mut look = tokio::time::interval(LOOK_INTERVAL.min(stall_limit / 4));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let patience = Patience { limit: stall_limit, since: None };
    let outbox = Outbox { queue: sender, taken: taken.clone(), patience, look };
    (outbox, Outgoing { queue: receiver, taken })
}

impl Outbox {
    /// Queues a message, waiting for room as long as the proxy reads.
    pub(crate) async fn send(&mut self, message: to_proxy::Message) -> Result<(), Unsent> {
        loop {
            tokio::select! {
                permit = self.queue.reserve() => {
                    let message = ToProxy { message: Some(message) };
                    permit.map_err(|_| Unsent::Closed)?.send(Ok(message));
                    return Ok(());
                }
                _ = self.look.tick() => {
                    if self.patience.is_over(&self.queue, &self.taken) {
                        return Err(Unsent::Stalled);
                    }
                }
            }
        }
    }

    /// Resolves when the proxy does not read, or is gone.
    pub(crate) async fn unsent(&mut self) -> Unsent {
        loop {
            tokio::select! {
                () = self.queue.closed() => return Unsent::Closed,
                _ = self.look.tick() => {
                    if self.patience.is_over(&self.queue, &self.taken) {
                        return Unsent::Stalled;
                    }
                }
            }
        }
    }

    /// Ends the stream with an error, if there is room to say so.
    pub(crate) fn fail(self, status: Status) {
        // Full means that the proxy is not reading: it learns by the stream's end.
        let _ = self.queue.try_send(Err(status));
    }
}

impl Stream for Outgoing {
    type Item = Result<ToProxy, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.queue.poll_recv(cx);
        if polled.is_ready() {
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

/// Tells slow from stalled.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    /// How many were taken when something was first seen queued without progress, and when.
    since: Option<(u64, Instant)>,
}

impl Patience {
    fn is_over<T>(&mut self, queue: &mpsc::Sender<T>, taken: &AtomicU64) -> bool {
        let queued = queue.capacity() < queue.max_capacity();
        self.look(queued, taken.load(Ordering::Relaxed), Instant::now())
    }

    /// True when nothing was taken for the limit although something was queued all the time.
    fn look(&mut self, queued: bool, taken: u64, now: Instant) -> bool {
        if !queued {
            self.since = None;
            return false;
        }
        match self.since {
            Some((before, since)) if before == taken => now.duration_since(since) >= self.limit,
            _ => {
                self.since = Some((taken, now));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_api::proto::v1::Reconnect;
    use tokio_stream::StreamExt;

    fn message() -> to_proxy::Message {
        to_proxy::Message::Reconnect(Reconnect {})
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_noticed_with_one_message_or_a_full_queue() {
        let (mut outbox, _outgoing) = channel(Duration::from_secs(10));
        outbox.send(message()).await.unwrap();
        let start = Instant::now();
        assert_eq!(outbox.unsent().await, Unsent::Stalled);
        assert!((10..=12).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());

        let (mut outbox, _outgoing) = channel(Duration::from_secs(10));
        for _ in 0..QUEUE {
            outbox.send(message()).await.unwrap();
        }
        assert_eq!(outbox.send(message()).await, Err(Unsent::Stalled));
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_or_has_nothing_to_read_is_not_cut() {
        let (mut outbox, mut outgoing) = channel(Duration::from_secs(10));
        let reader = tokio::spawn(async move {
            while outgoing.next().await.is_some() {
                tokio::time::sleep(Duration::from_secs(8)).await;
            }
        });
        for _ in 0..3 * QUEUE {
            outbox.send(message()).await.unwrap();
        }
        let idle = tokio::time::timeout(Duration::from_secs(3_600), outbox.unsent()).await;
        assert!(idle.is_err(), "idle, not stalled");
        drop(outbox);
        reader.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_gone_is_noticed() {
        let (mut outbox, outgoing) = channel(Duration::from_secs(10));
        drop(outgoing);
        assert_eq!(outbox.unsent().await, Unsent::Closed);
        assert_eq!(outbox.send(message()).await, Err(Unsent::Closed));
    }
}
