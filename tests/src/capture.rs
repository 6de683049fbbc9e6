//! Watches the wire of the network namespace it runs in, with a packet socket, and counts how
//! often a marker passes in the clear. Needs CAP_NET_RAW there.
//!
//! It looks at TCP payload only, on every interface except loopback: what a pod's application and
//! its own proxy say to each other over loopback is not on the wire. A packet that crosses several
//! interfaces of the namespace counts once on each. It decrypts nothing and stores nothing.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use memchr::memmem::Finder;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

/// What to look for and for how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The text that must not pass in the clear.
    #[arg(long)]
    pub marker: String,
    /// Stop after so many milliseconds; 0 goes on until standard input closes.
    #[arg(long, default_value_t = 0)]
    pub duration_ms: u64,
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// TCP packets that carried anything.
    pub packets: u64,
    pub bytes: u64,
    /// Packets that begin with the header of a TLS record.
    pub tls_packets: u64,
    /// Times the marker stood in the clear, across packet boundaries too.
    pub plaintext_markers: u64,
}

/// Captures until told to stop. `ready` is called when the first packet could be seen.
pub async fn run(
    options: Options,
    ready: impl FnOnce() -> std::io::Result<()>,
) -> anyhow::Result<Seen> {
    let socket = open().context("cannot open a packet socket (CAP_NET_RAW is needed)")?;
    ready()?;
    let stop = Arc::new(AtomicBool::new(false));
    let watch = Watch::new(options.marker.as_bytes());
    let watching = tokio::task::spawn_blocking({
        let stop = Arc::clone(&stop);
        move || watch_until(&socket, watch, &stop)
    });
    end(options.duration_ms).await;
    stop.store(true, Ordering::Relaxed);
    Ok(watching.await??)
}

fn open() -> nix::Result<OwnedFd> {
    // A datagram packet socket delivers from the network header on, whatever the link is.
    let kind = SockType::Datagram;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, kind, flags, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(QUIET_MS))?;
    Ok(socket)
}

/// Reads until asked to stop, and then what had arrived by then.
fn watch_until(socket: &OwnedFd, mut watch: Watch, stop: &AtomicBool) -> nix::Result<Seen> {
    let mut buffer = vec![0; LARGEST_PACKET];
    let mut last_ones = 0;
    while last_ones < MOST_PACKETS_WAITING {
        let stopping = stop.load(Ordering::Relaxed);
        last_ones += usize::from(stopping);
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, Some(link))) if link.hatype() != libc::ARPHRD_LOOPBACK => {
                watch.look_at(link.ifindex(), &buffer[..length]);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if stopping => break,
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(watch.seen)
}

async fn end(duration_ms: u64) {
    if duration_ms > 0 {
        return tokio::time::sleep(Duration::from_millis(duration_ms)).await;
    }
    let mut ignored = [0; 64];
    let mut stdin = tokio::io::stdin();
    // An error ends it like the end of input does: whoever held the other side is gone.
    while stdin.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
}

/// One direction of one connection on one interface.
type Flow = (usize, SocketAddr, SocketAddr);

/// Counts over packets in order; no sockets, no clock.
struct Watch {
    marker: Finder<'static>,
    /// The end of each flow so far, one byte short of a whole marker.
    tails: HashMap<Flow, Vec<u8>>,
    seen: Seen,
}

impl Watch {
    fn new(marker: &[u8]) -> Self {
        let marker = Finder::new(marker).into_owned();
        Self { marker, tails: HashMap::new(), seen: Seen::default() }
    }

    fn look_at(&mut self, interface: usize, packet: &[u8]) {
        let Some((from, to, payload)) = parse_tcp(packet) else { return };
        if payload.is_empty() {
            return;
        }
        self.seen.packets += 1;
        self.seen.bytes += payload.len() as u64;
        self.seen.tls_packets += u64::from(is_tls_record(payload));
        if self.tails.len() == MOST_FLOWS {
            // Costs at most the markers that straddle two packets just now.
            self.tails.clear();
        }
        let tail = self.tails.entry((interface, from, to)).or_default();
        tail.extend_from_slice(payload);
        self.seen.plaintext_markers += self.marker.find_iter(tail).count() as u64;
        let keep = self.marker.needle().len().saturating_sub(1).min(tail.len());
        tail.drain(..tail.len() - keep);
    }
}

/// Addresses and payload, if this is a TCP packet with nothing unusual before the TCP header.
fn parse_tcp(packet: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])> {
    let (from, to, segment) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
            let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
            let address = |at: usize| -> Option<IpAddr> {
                Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?))
            };
            (*packet.get(9)? == TCP).then_some(())?;
            (address(12)?, address(16)?, packet.get(header..end)?)
        }
        6 => {
            let address = |at: usize| -> Option<IpAddr> {
                Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?))
            };
            (*packet.get(6)? == TCP).then_some(())?;
            (address(8)?, address(24)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
    let header = usize::from(segment.get(12)? >> 4) * 4;
    let (from, to) = (SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?));
    Some((from, to, segment.get(header..)?))
}

/// Content type 20 to 23 and a version 3.x, as every TLS record since SSL 3 begins.
fn is_tls_record(payload: &[u8]) -> bool {
    matches!(payload, [20..=23, 3, 0..=4, ..])
}

const TCP: u8 = 6;
/// Segmentation offload hands over packets far above the link's size.
const LARGEST_PACKET: usize = 256 * 1024;
const RECEIVE_BUFFER: usize = 32 * 1024 * 1024;
/// Silence that long means that nothing waits.
const QUIET_MS: i64 = 20;
const MOST_PACKETS_WAITING: usize = 64 * 1024;
const MOST_FLOWS: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut tcp = vec![0; 20];
        tcp[..2].copy_from_slice(&port.to_be_bytes());
        tcp[12] = 5 << 4;
        tcp.extend_from_slice(payload);
        tcp
    }

    fn v4(port: u16, payload: &[u8]) -> Vec<u8> {
        let segment = segment(port, payload);
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&u16::try_from(20 + segment.len()).unwrap().to_be_bytes());
        packet[9] = TCP;
        packet.extend(segment);
        packet
    }

    fn v6(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[6] = TCP;
        packet.extend(segment(port, payload));
        packet
    }

    #[track_caller]
    fn check(packets: &[(usize, Vec<u8>)], markers: u64, carried: u64) {
        let mut watch = Watch::new(b"marker");
        packets.iter().for_each(|(interface, packet)| watch.look_at(*interface, packet));
        assert_eq!((watch.seen.plaintext_markers, watch.seen.packets), (markers, carried));
    }

    #[test]
    fn markers_are_found_wherever_they_stand() {
        check(&[(1, v4(1, b"a marker and a marker"))], 2, 1);
        check(&[(1, v6(1, b"a marker"))], 1, 1);
        check(&[(1, v4(1, b"a mar")), (1, v4(1, b"ker"))], 1, 2);
        check(&[(1, v4(1, b"m")), (1, v4(1, b"arke")), (1, v4(1, b"")), (1, v4(1, b"r"))], 1, 3);
        check(&[(1, v4(1, b"marker")), (2, v4(1, b"marker"))], 2, 2);
    }

    #[test]
    fn flows_are_kept_apart_and_no_marker_counts_twice() {
        check(&[(1, v4(1, b"mar")), (1, v4(2, b"ker"))], 0, 2);
        check(&[(1, v4(1, b"mar")), (2, v4(1, b"ker"))], 0, 2);
        check(&[(1, v4(1, b"marker")), (1, v4(1, b"x"))], 1, 2);
    }

    #[test]
    fn what_is_not_tcp_payload_is_not_looked_at() {
        let mut padded = v4(1, b"");
        padded.extend(b"marker");
        let mut udp = v4(1, b"marker");
        udp[9] = 17;
        check(
            &[(1, padded), (1, udp), (1, vec![]), (1, vec![0x45]), (1, b"marker".to_vec())],
            0,
            0,
        );
    }

    #[test]
    fn tls_records() {
        for (payload, expected) in [
            (&[22, 3, 1, 0][..], true),
            (&[23, 3, 3], true),
            (b"GET / HTTP/1.1", false),
            (&[22, 3], false),
        ] {
            assert_eq!(is_tls_record(payload), expected, "{payload:?}");
        }
    }
}
