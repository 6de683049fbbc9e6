//! The byte streams the data path moves between, and a connection with what was read ahead.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

/// Read buffers grow by this much at first; most heads fit.
const READ_SIZE: usize = 4 * 1024;
/// A buffer above this size is given back when it has run empty.
const KEEP_SIZE: usize = 16 * 1024;

/// One direction-less stream. An enum, not a trait object: the hot path stays inlined.
pub enum Stream {
    /// The application, or a peer without a proxy.
    Tcp(TcpStream),
    /// Mesh TLS that we dialled.
    MeshClient(Box<client::TlsStream<TcpStream>>),
    /// Mesh TLS that we accepted.
    MeshServer(Box<server::TlsStream<TcpStream>>),
    /// A call of the pod to itself, served in-process.
    Local(DuplexStream),
}

impl Stream {
    /// The socket beneath, if there is one.
    #[must_use]
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::MeshClient(tls) => Some(tls.get_ref().0),
            Self::MeshServer(tls) => Some(tls.get_ref().0),
            Self::Local(_) => None,
        }
    }

    /// Makes the kernel send a reset when the stream is dropped, so that the peer cannot take what
    /// it got for a complete answer.
    pub fn reset_on_drop(&self) {
        if let Some(tcp) = self.tcp() {
            // Best effort: without it the peer still sees the end of the connection.
            let _ = tcp.set_zero_linger();
        }
    }

    /// Takes [`Stream::reset_on_drop`] back.
    pub fn close_on_drop(&self) {
        if let Some(tcp) = self.tcp() {
            // Best effort: without it the peer sees a reset after the last byte.
            let _ = socket2::SockRef::from(tcp).set_linger(None);
        }
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $body:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $body,
            Stream::MeshClient($stream) => $body,
            Stream::MeshServer($stream) => $body,
            Stream::Local($stream) => $body,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// A stream and what was read from it but not used yet.
pub struct Conn {
    /// The stream.
    pub io: Stream,
    /// Read ahead.
    pub buf: BytesMut,
}

impl Conn {
    /// A connection from which nothing was read.
    #[must_use]
    pub fn new(io: Stream) -> Self {
        Self { io, buf: BytesMut::new() }
    }

    /// Reads once, appending to the buffer. 0 is the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// As the stream's.
    pub async fn fill(&mut self) -> io::Result<usize> {
        fill(&mut self.io, &mut self.buf).await
    }

    /// Drops the first `n` bytes, and an overgrown buffer once it is empty.
    pub fn consume(&mut self, n: usize) {
        self.buf.advance(n);
        if self.buf.is_empty() && self.buf.capacity() > KEEP_SIZE {
            self.buf = BytesMut::new();
        }
    }

    /// True when a connection that should be silent is: nothing to read and not ended. What was read
    /// to find out is kept.
    #[must_use]
    pub fn is_quiet(&mut self) -> bool {
        if !self.buf.is_empty() {
            return false;
        }
        let mut probe = [0];
        let mut probe = ReadBuf::new(&mut probe);
        // The waker is never used: an idle connection is looked at again before its next use.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let quiet = Pin::new(&mut self.io).poll_read(&mut cx, &mut probe).is_pending();
        self.buf.extend_from_slice(probe.filled());
        quiet
    }

    /// True when the peer may close its side of a request's connection and still wait for the
    /// answer. The mesh's own proxies never do.
    #[must_use]
    pub fn may_half_close(&self) -> bool {
        matches!(self.io, Stream::Tcp(_))
    }
}

/// Hands out what was read ahead first: for codecs that want a plain stream.
impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.buf.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, out);
        }
        let n = self.buf.len().min(out.remaining());
        out.put_slice(&self.buf[..n]);
        self.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Reads once from `io`, appending to `buf`. Cancel-safe.
///
/// # Errors
/// As the stream's.
pub async fn fill(io: &mut (impl AsyncRead + Unpin), buf: &mut BytesMut) -> io::Result<usize> {
    if buf.capacity() - buf.len() < READ_SIZE / 4 {
        buf.reserve(READ_SIZE.max(buf.len().min(64 * 1024)));
    }
    io.read_buf(buf).await
}

/// Writes all of `bytes` and sees them off.
///
/// # Errors
/// As the stream's.
pub async fn send(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    io.write_all(bytes).await?;
    io.flush().await
}
