//! One HTTP/1 exchange between two connections that this task owns: the request out, the response
//! back, without a hop to another task.
//!
//! Owns the order of reads and writes and what a failure at each point means. Refuses to choose a
//! destination, to decide on retries, and to record: its callers do.

use std::cell::Cell;
use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Duration, Instant, timeout, timeout_at};

use crate::error::Error;
use crate::hop;
use crate::http1::{
    BadResponse, BodyDecoder, Delivery, Limits, Refusal, RequestFacts, RequestHead, ResponseHead,
};
use crate::stream::{Conn, fill, send};

mod client;
mod relay;

use client::{Client, left, unless_left};
use relay::Relay;

/// Limits of every message.
pub const LIMITS: Limits = Limits::STANDARD;
/// Longest request (head and body) that is kept for another attempt, in bytes.
const REPLAY_SIZE: usize = 64 * 1024;
/// A server that stops reading may still have an answer on the way.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The connection a request goes out on.
pub struct Upstream {
    /// The connection.
    pub conn: Conn,
    /// An earlier request was answered on it.
    pub reused: bool,
    /// The peer is an inbound proxy of the mesh, whose word about delivery is believed.
    pub mesh: bool,
    head: ResponseHead,
}

impl Upstream {
    /// A new connection, ready for a request.
    #[must_use]
    pub fn new(conn: Conn, mesh: bool) -> Self {
        Self { conn, reused: false, mesh, head: ResponseHead::new() }
    }
}

/// A request as it goes out: may be sent more than once while `replayable`.
pub struct Outgoing {
    /// The head as written, and the body's first bytes.
    wire: BytesMut,
    decoder: BodyDecoder,
    facts: RequestFacts,
    /// `wire` holds every body byte that was taken from the client.
    pub replayable: bool,
    /// The last attempt has written all of it.
    sent: bool,
    /// Body bytes sent.
    pub body_bytes: u64,
}

impl Outgoing {
    /// Takes over a head already written to `wire`, and what the client sent of the body with it.
    ///
    /// # Errors
    /// The body's framing is malformed.
    pub fn new(head: &RequestHead, wire: BytesMut, down: &mut Conn) -> Result<Self, Refusal> {
        let decoder = BodyDecoder::new(head.framing(), &LIMITS);
        let facts = head.into();
        let mut this = Self { wire, decoder, facts, replayable: true, sent: false, body_bytes: 0 };
        if !this.decoder.is_done() && !down.buf.is_empty() {
            this.take(&mut down.buf)?;
        }
        Ok(this)
    }

    /// True once the whole body has been taken from the client.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.decoder.is_done()
    }

    /// Gives the buffer back for the next request.
    #[must_use]
    pub fn into_buffer(self) -> BytesMut {
        self.wire
    }

    /// Moves the body's next bytes from `buf` to the end of `wire`, and says how many.
    fn take(&mut self, buf: &mut BytesMut) -> Result<usize, Refusal> {
        let raw = self.decoder.advance(buf)?.raw;
        self.wire.extend_from_slice(&buf[..raw]);
        self.body_bytes += raw as u64;
        buf.advance(raw);
        Ok(raw)
    }
}

/// What the caller makes of a response head.
pub enum Judgement {
    /// Goes to the client, as written to the buffer.
    Forward(Delivery),
    /// Does not: another attempt will be made.
    Abandon,
}

/// How long a response is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For its final head.
    pub head_by: Option<Instant>,
    /// For its next byte, while nothing of the request moves either.
    pub idle: Option<Duration>,
}

impl Patience {
    /// For ever: the other side of the hop decides.
    pub const ENDLESS: Self = Self { head_by: None, idle: None };

    /// What `read` brings in time. `moved` is when something of the request last moved; the response
    /// has moved just now.
    async fn wait<T>(
        self,
        moved: &Cell<Instant>,
        read: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        if self.idle.is_some() {
            moved.set(Instant::now());
        }
        tokio::pin!(read);
        loop {
            let late = self.head_by.map(|by| (by, Error::PerTryTimeout));
            let silent = self.idle.map(|idle| (moved.get() + idle, Error::IdleTimeout));
            let Some((by, error)) = earlier(late, silent) else { return read.await };
            match timeout_at(by, &mut read).await {
                Ok(read) => return read,
                // What has moved meanwhile puts it off.
                Err(_)
                    if self.idle.is_some_and(|idle| moved.get() + idle > by)
                        && self.is_early(by) => {}
                Err(_) => return Err(error),
            }
        }
    }

    /// The head may still be waited for.
    fn is_early(self, at: Instant) -> bool {
        self.head_by.is_none_or(|by| at < by)
    }
}

/// How an exchange ended.
pub enum End {
    /// The final response went to the client, whole.
    Complete(Complete),
    /// The response switched protocols: both connections carry something else from now on.
    Switched {
        /// 101, or 2xx to CONNECT.
        status: u16,
    },
    /// Nothing of a final response went to the client.
    Failed(Error),
    /// [`Judgement::Abandon`].
    Abandoned,
    /// The client's request turned out to be malformed; no final response went to it.
    Refused(Refusal),
    /// The client went away.
    ClientGone,
    /// The response broke off after its head: the client must see a broken connection.
    Broken {
        /// As sent to the client.
        status: u16,
        /// Why.
        error: Error,
    },
}

/// A response that was forwarded whole.
#[derive(Clone, Copy)]
pub struct Complete {
    /// As sent to the client.
    pub status: u16,
    /// Body bytes forwarded.
    pub body_bytes: u64,
    /// When the head arrived.
    pub head_at: Instant,
    /// The upstream connection may carry another request.
    pub upstream_reusable: bool,
    /// The client's connection may.
    pub client_reusable: bool,
}

/// Reads the next request's head. `None`: the client closed between requests.
///
/// # Errors
/// The request is refused, or the connection broke.
pub async fn read_request_head(
    down: &mut Conn,
    head: &mut RequestHead,
) -> Result<Option<usize>, ReadError> {
    loop {
        if !down.buf.is_empty()
            && let Some(n) = head.parse(&down.buf, &LIMITS).map_err(ReadError::Refused)?
        {
            return Ok(Some(n));
        }
        if down.fill().await.map_err(ReadError::Lost)? == 0 {
            return if down.buf.is_empty() {
                Ok(None)
            } else {
                Err(ReadError::Lost(io::ErrorKind::UnexpectedEof.into()))
            };
        }
    }
}

/// Why no request head could be read.
pub enum ReadError {
    /// The strict codec refuses it.
    Refused(Refusal),
    /// The connection ended or broke in the middle.
    Lost(io::Error),
}

/// Sends `request` and brings its response back. `judge` sees every response head, interim ones
/// included, and writes what the client gets of it.
pub async fn exchange(
    down: &mut Conn,
    up: &mut Upstream,
    request: &mut Outgoing,
    patience: Patience,
    judge: impl FnMut(&ResponseHead, &[u8], &mut BytesMut) -> Judgement,
) -> End {
    let facts = request.facts;
    request.sent = false;
    let written = send(&mut up.conn.io, &request.wire).await;
    let refused = written.is_err();
    match written {
        Ok(()) => request.sent = request.is_complete(),
        // A server that refuses early and closes may have said why.
        Err(error) if up.conn.is_quiet() => return End::Failed(Error::ConnectionLost(error)),
        Err(_) => {}
    }
    let head = &mut up.head;
    let moved = Cell::new(Instant::now());
    let respond = Respond { facts, mesh: up.mesh, patience, moved: &moved, judge };
    let end = if request.sent || refused {
        respond.run(&mut up.conn.io, &mut up.conn.buf, head, down).await
    } else {
        let may_half_close = down.may_half_close();
        let (mut down_read, mut down_write) = tokio::io::split(&mut down.io);
        let (mut up_read, mut up_write) = tokio::io::split(&mut up.conn.io);
        let respond = respond.run(&mut up_read, &mut up.conn.buf, head, &mut down_write);
        let pump = async {
            let (from, to) = ((&mut down_read, &mut down.buf), &mut up_write);
            let pumped = pump(from, request, to, &moved).await;
            if pumped.is_ok() {
                left(&mut down_read, &mut down.buf, may_half_close).await;
            }
            pumped.err().unwrap_or(PumpError::ClientGone)
        };
        both(respond, pump).await
    };
    if let End::Switched { status } = end
        && !request.sent
    {
        return End::Broken { status, error: Error::ResponseMalformed(BadResponse::UnaskedSwitch) };
    }
    let End::Complete(mut complete) = end else { return end };
    // A request that was not taken whole leaves bytes that would be read as the next one; of one
    // that was not written whole the server takes the next one for the rest.
    complete.client_reusable &= request.is_complete();
    complete.upstream_reusable &= request.sent && up.conn.buf.is_empty();
    End::Complete(complete)
}

/// Runs both directions until the response has ended. `pump` ends only when there is no use in
/// waiting for it.
async fn both(respond: impl Future<Output = End>, pump: impl Future<Output = PumpError>) -> End {
    tokio::pin!(respond);
    let pumped = tokio::select! {
        biased;
        end = &mut respond => return end,
        pumped = pump => pumped,
    };
    match pumped {
        PumpError::Refused(refusal) => End::Refused(refusal),
        PumpError::ClientGone => End::ClientGone,
        PumpError::Upstream(error) => {
            timeout(LAST_WORDS, respond).await.unwrap_or(End::Failed(Error::ConnectionLost(error)))
        }
    }
}

enum PumpError {
    Refused(Refusal),
    ClientGone,
    Upstream(io::Error),
}

/// Forwards the rest of a request's body, keeping it for another attempt while it is small.
async fn pump(
    (down, buf): (&mut (impl AsyncRead + Unpin), &mut BytesMut),
    request: &mut Outgoing,
    up: &mut (impl AsyncWrite + Unpin),
    moved: &Cell<Instant>,
) -> Result<(), PumpError> {
    loop {
        if !buf.is_empty() {
            if request.replayable && request.wire.len() + buf.len() > REPLAY_SIZE {
                request.replayable = false;
            }
            if !request.replayable {
                request.wire.clear();
            }
            let raw = request.take(buf).map_err(PumpError::Refused)?;
            let from = request.wire.len() - raw;
            send(up, &request.wire[from..]).await.map_err(PumpError::Upstream)?;
            moved.set(Instant::now());
        }
        if request.is_complete() {
            request.sent = true;
            return Ok(());
        }
        match fill(down, buf).await {
            Ok(0) | Err(_) => return Err(PumpError::ClientGone),
            Ok(_) => {}
        }
    }
}

/// The way back.
struct Respond<'m, J> {
    facts: RequestFacts,
    mesh: bool,
    patience: Patience,
    /// When something of the request last moved.
    moved: &'m Cell<Instant>,
    judge: J,
}

impl<J: FnMut(&ResponseHead, &[u8], &mut BytesMut) -> Judgement> Respond<'_, J> {
    async fn run(
        mut self,
        up: &mut (impl AsyncRead + Unpin),
        buf: &mut BytesMut,
        head: &mut ResponseHead,
        down: &mut impl Client,
    ) -> End {
        let mut out = BytesMut::new();
        let mut interim = 0;
        loop {
            let read = read_response_head(up, buf, head, self.facts, self.mesh);
            let read = self.patience.wait(self.moved, read);
            let n = match unless_left(down, read).await {
                Some(Ok(n)) => n,
                Some(Err(error)) => return End::Failed(error),
                None => return End::ClientGone,
            };
            let delivery = match (self.judge)(head, &buf[..n], &mut out) {
                Judgement::Forward(delivery) => delivery,
                Judgement::Abandon => return End::Abandoned,
            };
            let head_at = Instant::now();
            buf.advance(n);
            if head.is_interim() && !head.switches() {
                interim += 1;
                if interim > LIMITS.interim_responses {
                    return End::Failed(Error::ResponseMalformed(BadResponse::TooManyInterim));
                }
                if send(down, &out).await.is_err() {
                    return End::ClientGone;
                }
                out.clear();
                continue;
            }
            if head.switches() {
                let sent = send(down, &out).await;
                return sent.map_or(End::ClientGone, |()| End::Switched { status: head.status() });
            }
            let patience = Patience { head_by: None, ..self.patience };
            let relay = Relay { delivery, head_at, patience, moved: self.moved };
            return relay.run(up, buf, head, down, out).await;
        }
    }
}

fn earlier(a: Option<(Instant, Error)>, b: Option<(Instant, Error)>) -> Option<(Instant, Error)> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if a.0 <= b.0 { a } else { b }),
        (a, b) => a.or(b),
    }
}

async fn read_response_head(
    up: &mut (impl AsyncRead + Unpin),
    buf: &mut BytesMut,
    head: &mut ResponseHead,
    facts: RequestFacts,
    mesh: bool,
) -> Result<usize, Error> {
    loop {
        if !buf.is_empty() {
            let parsed = head.parse(buf, &LIMITS, facts);
            let parsed = parsed.map_err(Error::ResponseMalformed)?;
            if let Some(n) = parsed {
                // The inbound side strips `heddle-*` from what an application answers, so over mesh
                // TLS these bytes are its own.
                let retired = mesh && buf[..n] == *hop::RETIRED;
                return if retired { Err(Error::NotDelivered) } else { Ok(n) };
            }
        }
        if fill(up, buf).await.map_err(Error::ConnectionLost)? == 0 {
            return Err(Error::ConnectionLost(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

#[cfg(test)]
mod tests;
