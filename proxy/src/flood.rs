//! Frames of HTTP/2 that cost the receiver and carry nothing, counted as they pass by.
//!
//! The codec answers every PING and SETTINGS for as long as they come (CVE-2019-9512, CVE-2019-9515)
//! and takes empty DATA and PRIORITY frames without end (CVE-2019-9518). Here they are paid from an
//! allowance that time and real traffic fill up again; with nothing left the connection ends. What
//! the codec limits itself (resets, CONTINUATION, sizes of heads) is left to it. Refuses to change a
//! byte.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Idle frames that a connection may send at once.
const BURST: u32 = 1000;
/// One more for each of these intervals.
const REFILL: Duration = Duration::from_millis(10);
/// One more for this much that is sent to the peer: a client that measures its bandwidth pings once
/// per round trip while it receives. Far more than an answer to a PING has.
const EARNED_BY: usize = 1024;

/// What is said of it.
pub const FLOOD: &str = "a flood of HTTP/2 frames that carry nothing";

const PREFACE: usize = 24;
const HEADER: usize = 9;

/// A connection whose peer speaks HTTP/2, beginning with the client's preface.
pub struct Guarded<S> {
    inner: S,
    frames: Frames,
    allowance: Allowance,
    flooded: Rc<Cell<bool>>,
}

impl<S> Guarded<S> {
    /// Nothing must have been read yet. The second value becomes true when a flood has ended the
    /// connection: the codec keeps of an error only its words.
    #[must_use]
    pub fn new(inner: S) -> (Self, Rc<Cell<bool>>) {
        let allowance = Allowance { left: BURST, filled: Instant::now(), written: 0 };
        let flooded = Rc::new(Cell::new(false));
        (Self { inner, frames: Frames::default(), allowance, flooded: flooded.clone() }, flooded)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, buf);
        let allowance = &mut this.allowance;
        let within = this.frames.advance(&buf.filled()[before..], |cost| allowance.pay(cost));
        if within {
            return read;
        }
        this.flooded.set(true);
        Poll::Ready(Err(io::Error::other(FLOOD)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = written {
            this.allowance.earn_by_writing(n);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// What a frame does to the allowance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    /// Carries nothing: one less.
    Idle,
    /// A request begins: one more.
    Earns,
    None,
}

/// Finds the frames in a stream of bytes, however it is cut.
struct Frames {
    /// Bytes that are of no interest: the preface, then each frame's payload.
    skip: usize,
    header: [u8; HEADER],
    have: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self { skip: PREFACE, header: [0; HEADER], have: 0 }
    }
}

impl Frames {
    /// False when `pay` has refused one.
    fn advance(&mut self, mut bytes: &[u8], mut pay: impl FnMut(Cost) -> bool) -> bool {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(HEADER - self.have);
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < HEADER {
                return true;
            }
            let [a, b, c, kind, flags, ..] = self.header;
            let length = u32::from_be_bytes([0, a, b, c]);
            self.have = 0;
            self.skip = length as usize;
            if !pay(cost(kind, flags, length)) {
                return false;
            }
        }
    }
}

fn cost(kind: u8, flags: u8, length: u32) -> Cost {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const PRIORITY: u8 = 2;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const END_STREAM: u8 = 1;
    match kind {
        HEADERS => Cost::Earns,
        DATA if length == 0 && flags & END_STREAM == 0 => Cost::Idle,
        PRIORITY | SETTINGS | PING => Cost::Idle,
        _ => Cost::None,
    }
}

struct Allowance {
    left: u32,
    /// When time last filled it.
    filled: Instant,
    /// Bytes written that have not earned anything yet.
    written: usize,
}

impl Allowance {
    fn pay(&mut self, cost: Cost) -> bool {
        match cost {
            Cost::None => true,
            Cost::Earns => {
                self.earn(1);
                true
            }
            Cost::Idle => {
                // The clock is read only by those who have used up what they had.
                if self.left == 0 {
                    self.fill();
                }
                let enough = self.left > 0;
                self.left = self.left.saturating_sub(1);
                enough
            }
        }
    }

    fn fill(&mut self) {
        let now = Instant::now();
        let intervals = (now - self.filled).as_millis() / REFILL.as_millis();
        self.filled = now;
        self.earn(u32::try_from(intervals).unwrap_or(BURST));
    }

    fn earn_by_writing(&mut self, n: usize) {
        self.written += n;
        self.earn(u32::try_from(self.written / EARNED_BY).unwrap_or(BURST));
        self.written %= EARNED_BY;
    }

    fn earn(&mut self, n: u32) {
        self.left = self.left.saturating_add(n).min(BURST);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, 0], payload].concat()
    }

    fn costs(bytes: &[u8], size: usize) -> Vec<Cost> {
        let (mut frames, mut found) = (Frames::default(), Vec::new());
        for piece in bytes.chunks(size) {
            frames.advance(piece, |cost| {
                found.push(cost);
                true
            });
        }
        found
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        use Cost::{Earns, Idle, None};
        let frames = [
            (frame(4, 0, &[0; 6]), Idle),
            (frame(1, 4, b"headers"), Earns),
            (frame(0, 0, b"data"), None),
            (frame(0, 0, b""), Idle),
            (frame(0, 1, b""), None),
            (frame(6, 0, &[6; 8]), Idle),
            (frame(2, 0, &[0; 5]), Idle),
            (frame(8, 0, &[0; 4]), None),
        ];
        let mut bytes = vec![0; PREFACE];
        let mut expected = Vec::new();
        for (frame, cost) in frames {
            bytes.extend(frame);
            expected.push(cost);
        }
        for size in [1, 7, 9, 10, bytes.len()] {
            assert_eq!(costs(&bytes, size), expected, "{size}");
        }
    }

    /// Sends `burst` every `interval`, and says after how many bursts the connection ended.
    async fn endured(burst: &[u8], interval: Duration, answer: usize) -> Option<usize> {
        let (mut near, far) = duplex(1 << 20);
        let (mut guarded, flooded) = Guarded::new(far);
        near.write_all(&[0; PREFACE]).await.unwrap();
        let (mut sink, answer) = (vec![0; 1 << 16], vec![0; answer]);
        for sent in 0..200 {
            near.write_all(burst).await.unwrap();
            let mut left = burst.len();
            while left > 0 {
                match guarded.read(&mut sink).await {
                    Ok(n) => left = left.saturating_sub(n),
                    Err(_) => {
                        assert!(flooded.get());
                        return Some(sent);
                    }
                }
            }
            guarded.write_all(&answer).await.unwrap();
            near.read_exact(&mut sink[..answer.len()]).await.unwrap();
            tokio::time::sleep(interval).await;
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_ends_the_connection_and_honest_traffic_does_not() {
        let pings = frame(6, 0, &[0; 8]).repeat(100);
        let at_once = endured(&pings, Duration::ZERO, 0).await;
        assert_eq!(at_once, Some(BURST as usize / 100));
        let slowly = endured(&pings, REFILL * 100, 0).await;
        assert_eq!(slowly, None);
        // One PING for each round trip of a download.
        let measuring = frame(6, 0, &[0; 8]).repeat(10);
        assert_eq!(endured(&measuring, Duration::ZERO, 16 * 1024).await, None);
        // Many small requests, each with a PING.
        let requests = [frame(1, 5, b"head"), frame(6, 0, &[0; 8])].concat().repeat(100);
        assert_eq!(endured(&requests, Duration::ZERO, 0).await, None);
    }
}
