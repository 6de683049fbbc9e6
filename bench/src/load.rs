//! The load generator: closed loops for maxima, an open loop on a fixed schedule for latency. Every
//! answer is checked against its request; one that is lost or wrong makes the whole sample void.

mod alarm;
mod cold;
mod grpc;
mod http1;
mod tcp;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::backend::ID;
use crate::netns::Netns;
use crate::process::Usage;

pub(crate) use cold::first_answer;
pub(crate) use grpc::grpc;
pub(crate) use http1::{http1, http1_at_rate};
pub(crate) use tcp::{greeting, stream};

/// When an answer counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// Where connections go, seen from where.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub netns: Rc<Netns>,
    pub address: SocketAddr,
}

impl Target {
    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let socket = {
            let _inside = self.netns.enter()?;
            TcpSocket::new_v4()?
        };
        socket.set_nodelay(true)?;
        let connected = timeout(LOST_AFTER, socket.connect(self.address)).await;
        connected
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
            .flatten()
            .with_context(|| format!("connect to {}", self.address))
    }
}

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Not counted: pools fill, caches warm.
    pub warm_up: Duration,
    pub counted: Duration,
}

/// What was counted.
#[derive(Debug)]
pub(crate) struct Window {
    pub requests: u64,
    pub elapsed: Duration,
    /// Of the sidecars.
    pub cpu: Duration,
    /// Of the larger sidecar, at the end, with the connections still open.
    pub rss_kib: u64,
    /// From the moment a request was due, in nanoseconds. Only of open loops.
    pub latency_ns: Histogram<u64>,
}

/// What the workers of one measurement share.
struct Tally {
    requests: Cell<u64>,
    stopped: Cell<bool>,
    failures: RefCell<Vec<anyhow::Error>>,
    latency_ns: RefCell<Histogram<u64>>,
}

impl Tally {
    fn new() -> Rc<Self> {
        Rc::new(Self {
            requests: Cell::new(0),
            stopped: Cell::new(false),
            failures: RefCell::new(Vec::new()),
            // Recording clamps to these bounds, and nothing waits longer than the upper one.
            latency_ns: RefCell::new(
                Histogram::new_with_bounds(1, 2 * nanoseconds(LOST_AFTER), 3)
                    .expect("the bounds are in order and three digits supported"),
            ),
        })
    }

    fn count(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    fn record(&self, latency: Duration) {
        self.latency_ns.borrow_mut().saturating_record(nanoseconds(latency));
    }

    /// Runs the workers; counts from the end of the warm-up on.
    async fn run<F>(
        self: &Rc<Self>,
        workers: Vec<F>,
        timing: Timing,
        sidecars: &[u32],
    ) -> anyhow::Result<Window>
    where
        F: Future<Output = anyhow::Result<()>> + 'static,
    {
        // Dropped with what is left in it: no worker outlives its measurement.
        let mut running = JoinSet::new();
        for worker in workers {
            let tally = Rc::clone(self);
            running.spawn_local(async move {
                if let Err(error) = worker.await {
                    tally.failures.borrow_mut().push(error);
                }
            });
        }
        sleep(timing.warm_up).await;
        self.latency_ns.borrow_mut().reset();
        let (requests, started, before) =
            (self.requests.get(), Instant::now(), Usage::of(sidecars)?);
        sleep(timing.counted).await;
        let (requests, elapsed, after) =
            (self.requests.get() - requests, started.elapsed(), Usage::of(sidecars)?);
        let latency_ns = self.latency_ns.borrow().clone();
        self.stopped.set(true);
        // Each worker gives up on an answer by itself, so this one cannot last.
        while running.join_next().await.is_some() {}
        let failures = self.failures.take();
        if let Some(first) = failures.first() {
            bail!("{} workers failed, the first: {first:#}", failures.len());
        }
        if requests == 0 {
            bail!("no request was answered in {elapsed:?}");
        }
        let cpu = after.cpu.saturating_sub(before.cpu);
        Ok(Window { requests, elapsed, cpu, rss_kib: after.rss_kib, latency_ns })
    }
}

/// Within [`LOST_AFTER`], or an error.
async fn in_time<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    timeout(LOST_AFTER, work).await.context("an answer is lost")?
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An id that no other request of this process has.
fn next_id() -> [u8; ID] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut id = [b'0'; ID];
    for place in id.iter_mut().rev() {
        *place = b"0123456789abcdef"[(number & 0xf) as usize];
        number >>= 4;
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_kept_to_three_digits() {
        let tally = Tally::new();
        for microseconds in [100, 200, 9_000_000] {
            tally.record(Duration::from_micros(microseconds));
        }
        let found = [0.3, 0.6, 1.0].map(|q| tally.latency_ns.borrow().value_at_quantile(q) / 1000);
        for (found, expected) in found.into_iter().zip([100, 200, 9_000_000_u64]) {
            assert!(found.abs_diff(expected) <= expected / 1000 + 1, "{found} {expected}");
        }
    }

    #[test]
    fn ids_are_sixteen_digits_and_differ() {
        let (one, two) = (next_id(), next_id());
        assert_ne!(one, two);
        assert!(one.iter().chain(&two).all(u8::is_ascii_hexdigit));
        let number = |id: [u8; ID]| u64::from_str_radix(std::str::from_utf8(&id).unwrap(), 16);
        assert!(number(one).unwrap() < number(two).unwrap());
    }
}
