//! HTTP/2 connections to endpoints, shared by the requests of one data thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use heddle_policy::retry::Failure;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{IDLE, connect};
use crate::error::Error;
use crate::http2::{self, Sender};
use crate::snapshot::Endpoint;
use crate::tls::Alpn;
use crate::worker::Worker;

/// A connection to the same endpoint is added when this many streams are on each there is. Servers
/// are asked to allow as many at least (RFC 9113, 6.5.2), so that nothing queues behind a limit.
const STREAMS_BEFORE_NEXT: usize = 100;

/// Locked while a connection is being made, so that waiting callers share it.
#[derive(Default)]
struct Shelf {
    kept: Vec<Kept>,
    /// When a connection could not be made.
    failed: Option<Instant>,
}

/// HTTP/2 connections of one data thread, by endpoint.
#[derive(Default)]
pub struct Streams {
    by_endpoint: RefCell<HashMap<u64, Rc<Mutex<Shelf>>, foldhash::fast::RandomState>>,
}

struct Kept {
    sender: Sender,
    load: Rc<Load>,
}

/// How busy a connection is.
struct Load {
    streams: Cell<usize>,
    /// When the last stream ended.
    quiet_since: Cell<Instant>,
}

/// One stream's hold on a connection.
pub struct Lease {
    /// Sends on it.
    pub sender: Sender,
    load: Rc<Load>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.load.streams.set(self.load.streams.get() - 1);
        self.load.quiet_since.set(Instant::now());
    }
}

impl Kept {
    fn lease(&self) -> Lease {
        self.load.streams.set(self.load.streams.get() + 1);
        Lease { sender: self.sender.clone(), load: self.load.clone() }
    }

    fn is_worth_keeping(&self) -> bool {
        let idle = self.load.streams.get() == 0 && self.load.quiet_since.get().elapsed() > IDLE;
        !idle && !self.sender.is_closed()
    }
}

impl Streams {
    /// A connection with room for one more stream, made if there is none. Waiting callers share the
    /// one being made, and its failure: one after the other they would wait for as many timeouts.
    ///
    /// # Errors
    /// As [`connect`]'s: no byte of the application has left.
    pub async fn take(
        &self,
        worker: &Rc<Worker>,
        endpoint: &Endpoint,
        connect_timeout: Duration,
    ) -> Result<Lease, Error> {
        let shelf = self.by_endpoint.borrow_mut().entry(endpoint.state.id).or_default().clone();
        let begun = Instant::now();
        let mut shelf = shelf.lock().await;
        shelf.kept.retain(|kept| !kept.sender.is_closed());
        let room = |kept: &&Kept| kept.load.streams.get() < STREAMS_BEFORE_NEXT;
        if let Some(kept) = shelf.kept.iter().find(room) {
            return Ok(kept.lease());
        }
        if shelf.failed.is_some_and(|at| at > begun) {
            let shared = io::Error::other("the connection waited for was not made");
            return Err(Error::ConnectFailed(endpoint.address, shared));
        }
        let conn = match connect(worker, endpoint, Alpn::Http2, connect_timeout).await {
            Ok(conn) => conn,
            Err(error) => {
                if error.failure() == Some(Failure::NotConnected) {
                    shelf.failed = Some(Instant::now());
                }
                return Err(error);
            }
        };
        let sender = http2::connect(conn).await.map_err(|_| Error::NotDelivered)?;
        let load = Load { streams: Cell::new(0), quiet_since: Cell::new(Instant::now()) };
        let kept = Kept { sender, load: Rc::new(load) };
        let lease = kept.lease();
        shelf.kept.push(kept);
        Ok(lease)
    }

    /// Connections kept, as far as nobody is just making one.
    #[must_use]
    pub fn len(&self) -> usize {
        let shelves = self.by_endpoint.borrow();
        shelves.values().filter_map(|shelf| Some(shelf.try_lock().ok()?.kept.len())).sum()
    }

    /// True when none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets connections that have ended, and closes those that carry nothing.
    pub fn sweep(&self) {
        self.by_endpoint.borrow_mut().retain(|_, shelf| {
            let Ok(mut shelf) = shelf.try_lock() else { return true };
            shelf.kept.retain(Kept::is_worth_keeping);
            !shelf.kept.is_empty()
        });
    }
}
