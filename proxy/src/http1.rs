//! HTTP/1 as bytes: heads, framing and bodies, on both sides of the proxy.
//!
//! Owns what a message *is*: where its head ends, which fields are for this hop only, how its body
//! is delimited, and what is sent on. Everything is an offset into the caller's buffer; a field's
//! value is never copied except into the outgoing head, and a body is forwarded byte for byte.
//!
//! Refuses to do I/O, to look at a clock, to choose a destination, and to repair a message: two
//! parsers that would disagree about where a message ends must never both see it, so whatever is
//! ambiguous is a [`Refusal`] (from a client) or a [`BadResponse`] (from a server).
//!
//! One exchange, in the order a driver calls it:
//!
//! ```text
//! RequestHead::parse → write_request_head → BodyDecoder::advance …
//! ResponseHead::parse (each interim head, then the final one) → write_response_head → BodyDecoder
//! ```

mod body;
pub(crate) mod chars;
mod fields;
mod local;
mod refusal;
mod request;
mod response;
mod target;
mod write;

#[cfg(test)]
mod tests;

pub use body::{BodyDecoder, Progress};
pub use fields::{Field, FieldKind};
pub use local::{LocalResponse, RedirectResponse, write_local_response, write_redirect};
pub use refusal::{BadResponse, Refusal};
pub(crate) use request::METHOD_BYTES;
pub use request::RequestHead;
pub use response::{RequestFacts, ResponseHead};
pub use target::TargetForm;
pub use write::{
    BodyDelivery, CHUNK_END, Delivery, LAST_CHUNK, NewField, RequestEdits, RequestTarget,
    ResponseEdits, write_chunk_head, write_request_head, write_response_head,
};

/// What one message may cost. The same numbers hold for requests and responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// First line, fields and the empty line that ends them.
    pub head_bytes: usize,
    pub fields: usize,
    pub name_bytes: usize,
    /// The trailer section up to and including its empty line. The decoder asks the caller to hold
    /// that much unforwarded.
    pub trailer_bytes: usize,
    pub trailer_fields: usize,
    /// Per chunk, from the first `;` to the end of the line.
    pub chunk_extension_bytes: usize,
    /// 1xx heads before the final one, counted by the driver.
    pub interim_responses: u8,
}

impl Limits {
    pub const STANDARD: Self = Self {
        head_bytes: 32 * 1024,
        fields: 100,
        name_bytes: 256,
        trailer_bytes: 8 * 1024,
        trailer_fields: 32,
        chunk_extension_bytes: 1024,
        interim_responses: 8,
    };
}

/// The version a peer spoke. What we send says 1.1 always (RFC 9112, 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// How the body of a message is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is no body, and no field says how long it would be.
    None,
    Length(u64),
    Chunked,
    /// Responses only: the body ends when the server closes.
    UntilClose,
}

/// A range of the buffer in which a head was parsed. Valid for that buffer until the caller moves
/// its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Self {
        let offset = |at| u32::try_from(at).expect("a head is never longer than 4 GiB");
        Self { start: offset(start), end: offset(end) }
    }

    pub fn of(self, buf: &[u8]) -> &[u8] {
        &buf[self.start()..self.end()]
    }

    pub fn start(self) -> usize {
        self.start as usize
    }

    pub fn end(self) -> usize {
        self.end as usize
    }

    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// For spans whose bytes were checked to be ASCII when the head was parsed.
    fn ascii(self, buf: &[u8]) -> &str {
        std::str::from_utf8(self.of(buf)).expect("checked to be ASCII when the head was parsed")
    }
}
