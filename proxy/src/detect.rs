//! The first bytes of a connection: which protocol they can still become.
//!
//! Pure and without state: a verdict other than `NeedMore` never changes when more bytes follow,
//! so a caller shows all bytes it has so far and may stop at the first verdict. Refuses to know
//! ports, to wait, and to guess: what is not certainly HTTP or TLS is opaque at the first byte
//! that proves it.

use crate::http1::chars::{self, TOKEN};
use crate::http1::{Limits, METHOD_BYTES};

/// What the client's first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Still possible: more than one of the others.
    NeedMore,
    /// A request line of HTTP/1.x, up to its version. Whether the rest of the head is acceptable
    /// is for the codec to say.
    Http1,
    /// The connection preface of HTTP/2, complete.
    Http2,
    /// A TLS ClientHello.
    Tls,
    Opaque,
}

/// What the server's first bytes are, when it speaks before the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerVerdict {
    NeedMore,
    /// A status line: an HTTP server giving up on a silent client. It teaches nothing about what
    /// the next client will say.
    HttpResponse,
    /// The settings of an HTTP/2 server, which may come before its client's first byte (RFC 9113,
    /// 3.4). The client speaks all the same, and has to be understood.
    Http2Settings,
    /// A protocol in which the server speaks first.
    Opaque,
}

/// The codec would refuse a longer request line.
const LOOK_AHEAD: usize = Limits::STANDARD.head_bytes;
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Judges all bytes that a client has sent so far.
pub fn client_first(bytes: &[u8]) -> Verdict {
    match bytes {
        [] => Verdict::NeedMore,
        [0x16, ..] => tls(bytes),
        _ if HTTP2_PREFACE.starts_with(bytes) && bytes.len() < HTTP2_PREFACE.len() => {
            Verdict::NeedMore
        }
        _ if bytes.starts_with(HTTP2_PREFACE) => Verdict::Http2,
        _ => http1(bytes),
    }
}

/// Judges all bytes that a server has sent so far.
pub fn server_first(bytes: &[u8]) -> ServerVerdict {
    match bytes {
        [] => ServerVerdict::NeedMore,
        [0, ..] => http2_settings(bytes),
        _ => match match_prefix(bytes, b"HTTP/1.") {
            Match::Partial => ServerVerdict::NeedMore,
            Match::Full => ServerVerdict::HttpResponse,
            Match::No => ServerVerdict::Opaque,
        },
    }
}

/// A frame header: some whole settings of six bytes, the type, no flags, stream 0.
fn http2_settings(bytes: &[u8]) -> ServerVerdict {
    const TYPE_FLAGS_STREAM: &[u8] = &[4, 0, 0, 0, 0, 0];
    let [_, high, low, rest @ ..] = bytes else { return ServerVerdict::NeedMore };
    let length = u16::from_be_bytes([*high, *low]);
    match match_prefix(rest, TYPE_FLAGS_STREAM) {
        _ if length % 6 != 0 || length > MAX_RECORD => ServerVerdict::Opaque,
        Match::No => ServerVerdict::Opaque,
        Match::Partial => ServerVerdict::NeedMore,
        Match::Full => ServerVerdict::Http2Settings,
    }
}

/// A handshake record of TLS 1.x whose first message is a ClientHello. The record may hold as
/// little as the first byte of it.
fn tls(bytes: &[u8]) -> Verdict {
    let possible = |at: usize, test: fn(u8) -> bool| bytes.get(at).is_none_or(|&byte| test(byte));
    let length = match bytes {
        [_, _, _, high, low, ..] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    };
    let good = possible(1, |major| major == 3)
        && possible(2, |minor| minor <= 4)
        && length.is_none_or(|length| (1..=MAX_RECORD).contains(&length))
        && possible(5, |message| message == CLIENT_HELLO);
    match bytes.len() {
        _ if !good => Verdict::Opaque,
        ..6 => Verdict::NeedMore,
        _ => Verdict::Tls,
    }
}

/// Of TLS; a frame of HTTP/2 is no longer either before it was agreed upon.
const MAX_RECORD: u16 = 1 << 14;
const CLIENT_HELLO: u8 = 1;

/// `token SP target SP HTTP/1.digit`, after at most one empty line: all that the codec accepts.
fn http1(bytes: &[u8]) -> Verdict {
    let line = match bytes {
        [b'\r'] => return Verdict::NeedMore,
        [b'\r', b'\n', line @ ..] => line,
        line => line,
    };
    let method = chars::run(TOKEN, &line[..line.len().min(METHOD_BYTES + 1)]);
    match line.get(method) {
        _ if method > METHOD_BYTES => return Verdict::Opaque,
        None => return Verdict::NeedMore,
        Some(b' ') if method > 0 => {}
        Some(_) => return Verdict::Opaque,
    }
    let rest = &line[method + 1..];
    let look = &rest[..rest.len().min(LOOK_AHEAD)];
    let target = look.iter().take_while(|byte| byte.is_ascii_graphic()).count();
    match look.get(target) {
        None if look.len() == LOOK_AHEAD => return Verdict::Opaque,
        None => return Verdict::NeedMore,
        Some(b' ') if target > 0 => {}
        Some(_) => return Verdict::Opaque,
    }
    let version = &rest[target + 1..];
    match (match_prefix(version, b"HTTP/1."), version.get(7)) {
        (Match::Partial, _) | (Match::Full, None) => Verdict::NeedMore,
        (Match::Full, Some(b'0'..=b'9')) => Verdict::Http1,
        (Match::Full, Some(_)) | (Match::No, _) => Verdict::Opaque,
    }
}

enum Match {
    No,
    /// All there is agrees.
    Partial,
    Full,
}

fn match_prefix(bytes: &[u8], prefix: &[u8]) -> Match {
    if bytes.starts_with(prefix) {
        Match::Full
    } else if prefix.starts_with(bytes) {
        Match::Partial
    } else {
        Match::No
    }
}

#[cfg(test)]
mod tests;
