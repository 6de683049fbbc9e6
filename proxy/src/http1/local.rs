//! Answers that the proxy makes itself.

use bytes::BytesMut;
use heddle_api::names::header;
use heddle_policy::route::HeaderEdit;
use http::StatusCode;

use super::write::{NewField, end_head, write_added, write_field, write_status};

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

/// An answer that sends the caller elsewhere, as a route says.
#[derive(Clone, Copy, Debug)]
pub struct RedirectResponse<'a> {
    pub status: u16,
    pub location: &'a str,
    /// The rule that says so.
    pub rule: &'a str,
    /// What its filters make of the header.
    pub edits: &'a [HeaderEdit],
    /// As [`LocalResponse::close`].
    pub close: bool,
}

/// Writes a complete redirect. It has no body: whoever follows it does not look, and whoever reads
/// it reads the header.
pub fn write_redirect(response: &RedirectResponse<'_>, out: &mut BytesMut) {
    write_status(response.status, phrase(response.status).as_bytes(), out);
    write_field(out, b"location", response.location.as_bytes());
    write_field(out, b"content-length", b"0");
    write_field(out, header::ROUTE.as_bytes(), response.rule.as_bytes());
    if response.close {
        write_field(out, b"connection", b"close");
    }
    write_added(response.edits, out);
    end_head(&[], out);
}

fn phrase(status: u16) -> &'static str {
    let status = StatusCode::from_u16(status).ok();
    status.and_then(|status| status.canonical_reason()).unwrap_or_default()
}

/// Writes a complete response.
pub fn write_local_response(response: &LocalResponse<'_>, out: &mut BytesMut) {
    write_status(response.status, phrase(response.status).as_bytes(), out);
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
