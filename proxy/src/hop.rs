//! What two proxies say to each other besides the application's bytes.
//!
//! A client whose certificate is refused still sees its connect and its first write succeed, so
//! "not processed" cannot be read off TLS. Hence every mesh connection begins with a preface from
//! inbound to outbound; outbound sends no byte of the application before it. And an idle connection
//! is not simply closed but retired, so that a request that crosses the retirement is known to be
//! undelivered.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::error::Error;
use crate::stream::send;

/// Version of the rules in this file, sent in the preface.
const VERSION: u8 = 1;
/// First byte of a preface: not the start of any protocol carried inside.
const MAGIC: u8 = 0xD1;

/// How the inbound proxy receives a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Go on.
    Ready = 0,
    /// The caller's identity may not connect.
    Denied = 1,
    /// The application does not accept connections (`heddle-tcp` only).
    Unreachable = 2,
    /// The proxy has no policy yet, or is stopping: ask another endpoint.
    Unavailable = 3,
    /// A limit is reached.
    Overload = 4,
}

/// The last head on an HTTP/1 connection that the inbound side retires. Nothing that arrives after
/// it was sent is delivered.
pub const RETIRED: &[u8] =
    b"HTTP/1.1 408 Retired\r\nheddle-retired: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Says how a connection is received.
///
/// # Errors
/// As the stream's.
pub async fn send_preface(io: &mut (impl AsyncWrite + Unpin), status: Status) -> io::Result<()> {
    send(io, &[MAGIC, VERSION, status as u8, 0]).await
}

/// Waits for the preface; anything but `Ready` is an error that says whether another endpoint may
/// be asked.
///
/// # Errors
/// The connection ended, is not of the mesh, or is not received.
pub async fn receive_preface(io: &mut (impl AsyncRead + Unpin)) -> Result<(), Error> {
    let mut preface = [0; 4];
    io.read_exact(&mut preface).await.map_err(Error::HandshakeFailed)?;
    // Later versions may use the last byte and new statuses; what the first ones mean stays.
    match preface {
        [MAGIC, 1..=255, 0, _] => Ok(()),
        [MAGIC, 1..=255, 1, _] => Err(Error::AuthorizationDenied("the inbound proxy".into())),
        [MAGIC, 1..=255, 2..=4, _] => Err(Error::NotDelivered),
        _ => Err(Error::MeshProtocolRefused { offered: "preface" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    #[tokio::test]
    async fn every_status_has_its_meaning() {
        for (status, want) in [
            (Status::Ready, None),
            (Status::Denied, Some(Reason::AuthorizationDenied)),
            (Status::Unreachable, Some(Reason::NotDelivered)),
            (Status::Unavailable, Some(Reason::NotDelivered)),
            (Status::Overload, Some(Reason::NotDelivered)),
        ] {
            let mut wire = Vec::new();
            send_preface(&mut wire, status).await.unwrap();
            let got = receive_preface(&mut wire.as_slice()).await;
            assert_eq!(got.err().map(|error| error.reason()), want, "{status:?}");
        }
    }

    #[tokio::test]
    async fn what_is_not_a_preface_is_refused() {
        for wire in [&b"HTTP/1.1"[..], &[MAGIC, 0, 0, 0], &[MAGIC, VERSION, 9, 0]] {
            let error = receive_preface(&mut &wire[..]).await.unwrap_err();
            assert_eq!(error.reason(), Reason::MeshProtocolRefused);
        }
        let error = receive_preface(&mut &[MAGIC][..]).await.unwrap_err();
        assert_eq!(error.reason(), Reason::HandshakeFailed);
    }
}
