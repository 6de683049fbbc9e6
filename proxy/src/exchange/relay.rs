//! A final response on its way to the client: its head, which is written already, and its body.

use std::cell::Cell;
use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::client::{Client, unless_left};
use super::{Complete, End, LIMITS, Patience};
use crate::error::Error;
use crate::http1::{
    BodyDecoder, BodyDelivery, CHUNK_END, Delivery, LAST_CHUNK, Refusal, ResponseHead,
    write_chunk_head,
};
use crate::stream::{fill, send};

/// Body bytes up to this size are copied behind the head, to save a write.
const COALESCE_SIZE: usize = 16 * 1024;

/// How a final response is forwarded.
pub(super) struct Relay<'m> {
    pub(super) delivery: Delivery,
    pub(super) head_at: Instant,
    pub(super) patience: Patience,
    /// When something of the request last moved.
    pub(super) moved: &'m Cell<Instant>,
}

impl Relay<'_> {
    /// Forwards the head (in `out`) and the body.
    pub(super) async fn run(
        self,
        up: &mut (impl AsyncRead + Unpin),
        buf: &mut BytesMut,
        head: &ResponseHead,
        down: &mut impl Client,
        mut out: BytesMut,
    ) -> End {
        let status = head.status();
        let mut decoder = BodyDecoder::new(head.framing(), &LIMITS);
        let mut body_bytes = 0;
        loop {
            if !buf.is_empty() && !decoder.is_done() {
                match self.relay(&mut decoder, buf, &mut out, down).await {
                    Ok(raw) => body_bytes += raw as u64,
                    Err(Cut::ClientGone) => return End::ClientGone,
                    Err(Cut::Malformed(refusal)) => {
                        return End::Broken {
                            status,
                            error: Error::ResponseMalformed(refusal.into()),
                        };
                    }
                }
            }
            let done = decoder.is_done();
            if done && self.delivery.body == BodyDelivery::Rechunk {
                out.extend_from_slice(LAST_CHUNK);
            }
            if !out.is_empty() {
                if send(down, &out).await.is_err() {
                    return End::ClientGone;
                }
                out.clear();
            }
            if done {
                return End::Complete(Complete {
                    status,
                    body_bytes,
                    head_at: self.head_at,
                    upstream_reusable: head.keep_alive(),
                    client_reusable: !self.delivery.close,
                });
            }
            match unless_left(down, self.fill(up, buf)).await {
                Some(Ok(0)) if decoder.finish_at_eof().is_ok() => {}
                Some(Ok(0)) => {
                    let error = Error::ConnectionLost(io::ErrorKind::UnexpectedEof.into());
                    return End::Broken { status, error };
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return End::Broken { status, error },
                None => return End::ClientGone,
            }
        }
    }

    async fn fill(
        &self,
        up: &mut (impl AsyncRead + Unpin),
        buf: &mut BytesMut,
    ) -> Result<usize, Error> {
        let read = async { fill(up, buf).await.map_err(Error::ConnectionLost) };
        self.patience.wait(self.moved, read).await
    }

    /// Forwards the body's next bytes: small ones by way of `out`, behind what is there already.
    async fn relay(
        &self,
        decoder: &mut BodyDecoder,
        buf: &mut BytesMut,
        out: &mut BytesMut,
        down: &mut (impl AsyncWrite + Unpin),
    ) -> Result<usize, Cut> {
        let raw = transform(decoder, buf, self.delivery.body, out).map_err(Cut::Malformed)?;
        if self.delivery.body == BodyDelivery::Verbatim {
            if raw > COALESCE_SIZE {
                if !out.is_empty() {
                    send(down, out).await.map_err(|_| Cut::ClientGone)?;
                    out.clear();
                }
                send(down, &buf[..raw]).await.map_err(|_| Cut::ClientGone)?;
            } else {
                out.extend_from_slice(&buf[..raw]);
            }
        }
        buf.advance(raw);
        Ok(raw)
    }
}

enum Cut {
    ClientGone,
    Malformed(Refusal),
}

/// Judges the next body bytes; forms other than `Verbatim` are written to `out`.
fn transform(
    decoder: &mut BodyDecoder,
    buf: &[u8],
    delivery: BodyDelivery,
    out: &mut BytesMut,
) -> Result<usize, Refusal> {
    let progress = match delivery {
        BodyDelivery::Verbatim => decoder.advance(buf)?,
        BodyDelivery::Payload => {
            decoder.advance_with(buf, |range| out.extend_from_slice(&buf[range]))?
        }
        BodyDelivery::Rechunk => decoder.advance_with(buf, |range| {
            write_chunk_head(range.len(), out);
            out.extend_from_slice(&buf[range]);
            out.extend_from_slice(CHUNK_END);
        })?,
    };
    Ok(progress.raw)
}
