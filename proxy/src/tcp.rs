//! Opaque bytes, both ways: counts, half-close, idle timeout, resets passed on as resets.

use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::time::Duration;

use bytes::BytesMut;
use nix::fcntl::{self, OFlag, SpliceFFlags};
use nix::unistd::pipe2;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use crate::stream::Conn;

/// First read buffer of a direction.
const FIRST_BUFFER: usize = 8 * 1024;
/// Buffer of a direction that keeps its first one full: bulk data.
const BULK_BUFFER: usize = 128 * 1024;

/// What one splice moves at most: a pipe's default capacity.
const SPLICE_SIZE: usize = 64 * 1024;

/// How a forwarded connection ended.
#[derive(Debug)]
pub struct Transfer {
    /// Bytes from the initiator.
    pub sent: u64,
    /// Bytes to the initiator.
    pub received: u64,
    /// `Ok` when both sides closed in order.
    pub end: Result<(), Cut>,
}

/// What cut a connection.
#[derive(Debug)]
pub enum Cut {
    /// One of the sides broke.
    Broken(io::Error),
    /// Nothing moved for too long.
    Idle,
    /// The proxy is at the end of its drain, or the caller's right was withdrawn.
    Ordered,
}

/// Forwards until both sides have closed, one breaks, nothing moves for `idle`, or `stop` resolves.
/// What cut the connection is passed on to both sides as a reset, so that neither takes a cut stream
/// for a whole one.
pub async fn forward(
    mut down: Conn,
    mut up: Conn,
    idle: Option<Duration>,
    stop: impl Future<Output = ()>,
) -> Transfer {
    let (sent, received) = (Cell::new(0), Cell::new(0));
    let moved = Cell::new(Instant::now());
    // From now on a drop is a cut: a process that ends, or a task that is aborted, says nothing more.
    down.io.reset_on_drop();
    up.io.reset_on_drop();
    let end = {
        let (down_read, down_write) = tokio::io::split(&mut down.io);
        let (up_read, up_write) = tokio::io::split(&mut up.io);
        let there = copy(down_read, std::mem::take(&mut down.buf), up_write, &sent, &moved);
        let back = copy(up_read, std::mem::take(&mut up.buf), down_write, &received, &moved);
        tokio::select! {
            biased;
            // First: what may not be forwarded any more must not win a draw.
            () = stop => Err(Cut::Ordered),
            both = async { tokio::try_join!(there, back) } => {
                both.map(|_| ()).map_err(Cut::Broken)
            }
            () = unmoved(&moved, idle) => Err(Cut::Idle),
        }
    };
    if end.is_ok() {
        down.io.close_on_drop();
        up.io.close_on_drop();
    }
    Transfer { sent: sent.get(), received: received.get(), end }
}

/// As [`forward`], for two plain sockets whose bytes nobody has to see: they stay in the kernel.
pub async fn splice(down: TcpStream, up: TcpStream, stop: impl Future<Output = ()>) -> Transfer {
    let (sent, received) = (Cell::new(0), Cell::new(0));
    // As above. Best effort: without it both sides still see the end of the connection.
    let _ = (down.set_zero_linger(), up.set_zero_linger());
    let both = async {
        tokio::try_join!(splice_one(&down, &up, &sent), splice_one(&up, &down, &received))
    };
    let end = tokio::select! {
        both = both => both.map(|_| ()).map_err(Cut::Broken),
        () = stop => Err(Cut::Ordered),
    };
    if end.is_ok() {
        let orderly = |tcp: &TcpStream| SockRef::from(tcp).set_linger(None);
        let _ = (orderly(&down), orderly(&up));
    }
    Transfer { sent: sent.get(), received: received.get(), end }
}

async fn splice_one(from: &TcpStream, to: &TcpStream, count: &Cell<u64>) -> io::Result<()> {
    let (pipe_out, pipe_in) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    let readable = || Ok(fcntl::splice(from, None, &pipe_in, None, SPLICE_SIZE, flags)?);
    loop {
        let mut left = from.async_io(Interest::READABLE, readable).await?;
        if left == 0 {
            return SockRef::from(to).shutdown(Shutdown::Write);
        }
        count.set(count.get() + left as u64);
        while left > 0 {
            let writable = || Ok(fcntl::splice(&pipe_out, None, to, None, left, flags)?);
            left -= to.async_io(Interest::WRITABLE, writable).await?;
        }
    }
}

/// Resolves once nothing has moved for `idle`.
async fn unmoved(moved: &Cell<Instant>, idle: Option<Duration>) {
    let Some(idle) = idle else { return std::future::pending().await };
    loop {
        let due = moved.get() + idle;
        if due <= Instant::now() {
            return;
        }
        sleep_until(due).await;
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut buf: BytesMut,
    mut to: impl AsyncWrite + Unpin,
    count: &Cell<u64>,
    moved: &Cell<Instant>,
) -> io::Result<()> {
    let mut size = FIRST_BUFFER;
    loop {
        if !buf.is_empty() {
            to.write_all(&buf).await?;
            to.flush().await?;
            count.set(count.get() + buf.len() as u64);
            moved.set(Instant::now());
            if buf.len() >= size {
                size = BULK_BUFFER;
            }
            buf.clear();
        }
        buf.reserve(size);
        if from.read_buf(&mut buf).await? == 0 {
            return to.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::stream::Stream;

    fn pair() -> (tokio::io::DuplexStream, Conn) {
        let (near, far) = duplex(1024);
        (near, Conn::new(Stream::Local(far)))
    }

    #[tokio::test]
    async fn one_side_may_go_on_after_the_other_has_closed() {
        let ((mut client, down), (mut server, mut up)) = (pair(), pair());
        up.buf.extend_from_slice(b"greeting ");
        let forward = forward(down, up, None, std::future::pending());
        let talk = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut asked = String::new();
            server.read_to_string(&mut asked).await.unwrap();
            server.write_all(b"answer").await.unwrap();
            drop(server);
            let mut got = String::new();
            client.read_to_string(&mut got).await.unwrap();
            (asked, got)
        };
        let (transfer, (asked, got)) = tokio::join!(forward, talk);
        assert_eq!((asked.as_str(), got.as_str()), ("question", "greeting answer"));
        assert_eq!((transfer.sent, transfer.received), (8, 15));
        assert!(transfer.end.is_ok());
    }

    async fn socket_pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn spliced_bytes_arrive_whole_and_half_close_is_kept() {
        let ((mut client, down), (mut server, up)) = (socket_pair().await, socket_pair().await);
        let body: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let talk = async {
            let (mut read, mut write) = client.split();
            let upload = async {
                write.write_all(&body).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let serve = async {
                let mut got = Vec::new();
                server.read_to_end(&mut got).await.unwrap();
                assert_eq!(got, body);
                server.write_all(b"answer").await.unwrap();
                server.shutdown().await.unwrap();
            };
            tokio::join!(upload, serve);
            let mut answer = String::new();
            read.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let (transfer, answer) = tokio::join!(splice(down, up, std::future::pending()), talk);
        assert_eq!((transfer.sent, transfer.received), (3_000_000, 6));
        assert!(transfer.end.is_ok());
        assert_eq!(answer, "answer");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_cut() {
        let ((_client, down), (_server, up)) = (pair(), pair());
        let transfer =
            forward(down, up, Some(Duration::from_secs(60)), std::future::pending()).await;
        assert!(matches!(transfer.end, Err(Cut::Idle)));
    }
}
