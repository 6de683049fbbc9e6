//! The client of an exchange while its server is silent: it may leave, and nobody else would notice.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, WriteHalf};
use tokio::time::{Duration, sleep};

use crate::stream::Conn;

/// What a client may send ahead, in bytes, before its end is no longer looked for.
const READ_AHEAD: usize = 16 * 1024;
/// A client may close its side and still wait for the answer; one that has left looks the same.
const HALF_CLOSED: Duration = Duration::from_secs(30);

/// Where a response goes, and who may leave before it has come.
pub(super) trait Client: AsyncWrite + Unpin {
    /// Resolves when the client has left. Cancel-safe.
    async fn left(&mut self);
}

impl Client for Conn {
    async fn left(&mut self) {
        let may_half_close = self.may_half_close();
        left(&mut self.io, &mut self.buf, may_half_close).await;
    }
}

/// Whoever has the other half reads.
impl<T: AsyncWrite> Client for WriteHalf<T> {
    async fn left(&mut self) {
        std::future::pending().await
    }
}

/// Resolves when the client has left: broken off, or closed its side and heard nothing for long.
/// What it sends ahead is kept.
pub(super) async fn left(
    client: &mut (impl AsyncRead + Unpin),
    buf: &mut BytesMut,
    may_half_close: bool,
) {
    let mut ahead = [0; 64];
    loop {
        if buf.len() >= READ_AHEAD {
            return std::future::pending().await;
        }
        match client.read(&mut ahead).await {
            Ok(0) if may_half_close => return sleep(HALF_CLOSED).await,
            Ok(0) | Err(_) => return,
            Ok(n) => buf.extend_from_slice(&ahead[..n]),
        }
    }
}

/// What `read` brings, or `None` when the client leaves first.
pub(super) async fn unless_left<T>(
    down: &mut impl Client,
    read: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        read = read => Some(read),
        () = down.left() => None,
    }
}
