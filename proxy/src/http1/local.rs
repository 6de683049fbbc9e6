//! Answers that the proxy makes itself.

use bytes::BytesMut;
use heddle_api::names::header;
use http::StatusCode;

use super::write::{NewField, end_head, write_field, write_status};

/// An answer made here, not by the application: it says so, says why, and says which proxy.
#[derive(Clone, Copy, Debug)]
pub struct LocalResponse<'a> {
    pub status: u16,
    /// From the closed table in docs/errors.md.
    pub reason: &'static str,
    /// `outbound` or `inbound`.
    pub proxy: &'static str,
    /// One sentence for people: what was wrong and what to do.
    pub message: &'a str,
    /// The request was a HEAD: the head is the same, the body stays away.
    pub head_only: bool,
    /// The connection ends after this answer, as it must when a body was left unread.
    pub close: bool,
    pub add: &'a [NewField<'a>],
}

/// Writes a complete response.
pub fn write_local_response(response: &LocalResponse<'_>, out: &mut BytesMut) {
    let phrase = StatusCode::from_u16(response.status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default();
    write_status(response.status, phrase.as_bytes(), out);
    write_field(out, b"content-type", b"text/plain; charset=utf-8");
    let mut digits = itoa::Buffer::new();
    let length = response.message.len() + 1;
    write_field(out, b"content-length", digits.format(length).as_bytes());
    write_field(out, header::ERROR.as_bytes(), response.reason.as_bytes());
    write_field(out, header::ERROR_PROXY.as_bytes(), response.proxy.as_bytes());
    if response.close {
        write_field(out, b"connection", b"close");
    }
    end_head(response.add, out);
    if !response.head_only {
        out.extend_from_slice(response.message.as_bytes());
        out.extend_from_slice(b"\n");
    }
}
