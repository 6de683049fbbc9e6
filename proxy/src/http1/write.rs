//! Outgoing heads: what a message looks like on the next hop.
//!
//! End-to-end fields go on as they came, in their order and in as few copies as there are gaps
//! between them. Fields of this hop end here, the framing is stated anew from what was understood,
//! and the mesh's own fields come last, after everything that a peer could have used to remove or
//! imitate them.

use std::net::SocketAddr;

use bytes::BytesMut;
use heddle_policy::route::HeaderEdit;

use super::chars;
use super::fields::{FieldKind, FieldSection};
use super::request::RequestHead;
use super::response::ResponseHead;
use super::{BodyFraming, TargetForm, Version};

/// A field the proxy adds: checked when made, so that no peer's bytes end a line early.
#[derive(Clone, Copy, Debug)]
pub struct NewField<'a> {
    name: &'a str,
    value: &'a [u8],
}

impl<'a> NewField<'a> {
    /// `None` if either part could not stand in a head.
    pub fn new(name: &'a str, value: &'a [u8]) -> Option<Self> {
        let good = chars::is_token(name.as_bytes()) && chars::find_bad_value_byte(value).is_none();
        good.then_some(Self { name, value })
    }

    pub(super) fn write(self, out: &mut BytesMut) {
        write_field(out, self.name.as_bytes(), self.value);
    }
}

/// In which form the target goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestTarget<'a> {
    AsSent,
    /// An absolute form loses scheme and authority, as a server other than a proxy wants it.
    Origin,
    /// The same, with another path; the query stays. For targets that have a path.
    Path(&'a str),
}

/// What the proxy changes in a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestEdits<'a> {
    pub target: RequestTarget<'a>,
    /// In place of the host that was asked for, with a target that does not name it.
    pub host: Option<&'a str>,
    /// The `Host` of an HTTP/1.0 request that has none, since it goes on as HTTP/1.1: the original
    /// destination, which is all that is known. An empty one would be refused on the next hop.
    pub host_if_missing: SocketAddr,
    /// Tell the server that no other request will follow.
    pub close: bool,
    /// Of a route, in end-to-end fields. Framing, `Host` and `Upgrade` are not edited so.
    pub edits: &'a [HeaderEdit],
    pub add: &'a [NewField<'a>],
}

/// What the proxy changes in a response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseEdits<'a> {
    /// The version of the request that is being answered.
    pub client: Version,
    /// The client's connection ends after this response.
    pub close: bool,
    /// Send a body that ends with the server's connection as chunks, if the client knows them: the
    /// client's connection survives, and a cut body is seen to be cut.
    pub rechunk: bool,
    /// Of a route, in end-to-end fields.
    pub edits: &'a [HeaderEdit],
    pub add: &'a [NewField<'a>],
}

/// What the driver has to do after [`write_response_head`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub body: BodyDelivery,
    /// The client was told, or knows from its version, that its connection ends with this body.
    pub close: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyDelivery {
    /// Forward what [`super::BodyDecoder::advance`] lets through.
    Verbatim,
    /// The client knows no chunks: forward only the payload, then close.
    Payload,
    /// Wrap each piece of payload in [`write_chunk_head`] and [`CHUNK_END`], end in
    /// [`LAST_CHUNK`].
    Rechunk,
}

/// Writes the head that the server gets.
pub fn write_request_head(
    head: &RequestHead,
    buf: &[u8],
    edits: &RequestEdits<'_>,
    out: &mut BytesMut,
) {
    let section = &head.section;
    out.reserve(section.end + ADDED_BYTES);
    out.extend_from_slice(head.method(buf).as_bytes());
    out.extend_from_slice(b" ");
    match (edits.target, head.target_form()) {
        (RequestTarget::AsSent, _) | (_, TargetForm::Authority | TargetForm::Asterisk) => {
            out.extend_from_slice(head.target(buf).as_bytes());
        }
        (RequestTarget::Origin, TargetForm::Origin | TargetForm::Absolute) => {
            head.write_origin_form(buf, out);
        }
        (RequestTarget::Path(path), TargetForm::Origin | TargetForm::Absolute) => {
            out.extend_from_slice(path.as_bytes());
            if let Some(query) = head.query(buf) {
                out.extend_from_slice(b"?");
                out.extend_from_slice(query.as_bytes());
            }
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");

    let asked = head.parsed_target().authority.map(|authority| authority.of(buf));
    let named = edits.host.map(str::as_bytes).or(asked);
    match named {
        _ if section.host.is_some() => {}
        Some(authority) => write_field(out, b"Host", authority),
        None => write_field(out, b"Host", edits.host_if_missing.to_string().as_bytes()),
    }
    write_end_to_end(section, buf, edits.edits, out, |kind| match (kind, named) {
        (FieldKind::Host, Some(authority)) => Fate::Replace(b"Host", authority),
        // An HTTP/1.0 client cannot be sent the 100 that this would cause.
        (FieldKind::Expect, _) if head.version() == Version::Http10 => Fate::Drop,
        _ if ends_here(kind) => Fate::Drop,
        _ => Fate::Forward,
    });

    if !head.is_connect() {
        write_framing(head.framing(), out);
    }
    let options = Options {
        close: edits.close,
        keep_alive: false,
        upgrade: head.wants_upgrade(),
        te: section.te_trailers,
    };
    write_connection(section, buf, options, out);
    if section.te_trailers {
        write_field(out, b"te", b"trailers");
    }
    write_added(edits.edits, out);
    end_head(edits.add, out);
}

/// Writes the head that the client gets, and says how the body must follow: not at all after
/// interim heads and switches. Of an interim head an HTTP/1.0 client gets nothing.
pub fn write_response_head(
    head: &ResponseHead,
    buf: &[u8],
    edits: &ResponseEdits<'_>,
    out: &mut BytesMut,
) -> Delivery {
    let delivery = plan_delivery(head, edits);
    if head.is_interim() && edits.client == Version::Http10 {
        return delivery;
    }
    let section = &head.section;
    out.reserve(section.end + ADDED_BYTES);
    write_status(head.status(), head.reason(buf), out);

    let trailers_lost = delivery.body == BodyDelivery::Payload;
    write_end_to_end(section, buf, edits.edits, out, |kind| {
        let dropped = ends_here(kind) || trailers_lost && kind == FieldKind::Trailer;
        if dropped { Fate::Drop } else { Fate::Forward }
    });

    write_framing(framing_for_client(head, edits.client, delivery.body), out);
    let options = Options {
        close: delivery.close,
        keep_alive: !delivery.close && !head.switches() && edits.client == Version::Http10,
        upgrade: head.status() == 101 || head.status() == 426,
        te: false,
    };
    write_connection(section, buf, options, out);
    write_added(edits.edits, out);
    end_head(edits.add, out);
    delivery
}

fn plan_delivery(head: &ResponseHead, edits: &ResponseEdits<'_>) -> Delivery {
    let old_client = edits.client == Version::Http10;
    if head.is_interim() || head.switches() {
        return Delivery { body: BodyDelivery::Verbatim, close: false };
    }
    match head.framing() {
        BodyFraming::Chunked if old_client => Delivery { body: BodyDelivery::Payload, close: true },
        BodyFraming::UntilClose if edits.rechunk && !old_client => {
            Delivery { body: BodyDelivery::Rechunk, close: edits.close }
        }
        BodyFraming::UntilClose => Delivery { body: BodyDelivery::Verbatim, close: true },
        BodyFraming::None | BodyFraming::Length(_) | BodyFraming::Chunked => {
            Delivery { body: BodyDelivery::Verbatim, close: edits.close }
        }
    }
}

/// What the fields say to the client.
fn framing_for_client(head: &ResponseHead, client: Version, body: BodyDelivery) -> BodyFraming {
    let status = head.status();
    if body == BodyDelivery::Rechunk {
        return BodyFraming::Chunked;
    }
    if status < 200 || status == 204 || head.switches() {
        return BodyFraming::None;
    }
    let announced = head.announced();
    let unknown = announced == BodyFraming::Chunked && client == Version::Http10;
    if unknown { BodyFraming::None } else { announced }
}

/// Enough for the first line, framing, connection options and what the mesh adds.
const ADDED_BYTES: usize = 256;

/// What becomes of a field.
enum Fate<'a> {
    Forward,
    Drop,
    Replace(&'static [u8], &'a [u8]),
}

/// Whether a field is for this hop, stated anew, or the mesh's own.
fn ends_here(kind: FieldKind) -> bool {
    match kind {
        FieldKind::Host
        | FieldKind::Trailer
        | FieldKind::Expect
        | FieldKind::IdempotencyKey
        | FieldKind::Other => false,
        FieldKind::ContentLength
        | FieldKind::TransferEncoding
        | FieldKind::Connection
        | FieldKind::KeepAlive
        | FieldKind::ProxyConnection
        | FieldKind::Http2Settings
        | FieldKind::Te
        | FieldKind::Upgrade
        | FieldKind::Heddle
        | FieldKind::Nominated => true,
    }
}

/// Copies the fields that go on. Lines lie one after another in `buf`, so neighbours that stay are
/// copied together.
fn write_end_to_end<'a>(
    section: &FieldSection,
    buf: &[u8],
    edits: &[HeaderEdit],
    out: &mut BytesMut,
    fate: impl Fn(FieldKind) -> Fate<'a>,
) {
    let fields = &section.list;
    let Some(first) = fields.first() else { return };
    let mut kept_from = first.name.start();
    for (index, field) in fields.iter().enumerate() {
        let fate = fate(field.kind);
        let removed = matches!(field.kind, FieldKind::Other | FieldKind::IdempotencyKey)
            && edits
                .iter()
                .filter(|edit| !edit.keep)
                .any(|edit| field.name.of(buf).eq_ignore_ascii_case(edit.name.as_bytes()));
        if matches!(fate, Fate::Forward) && !removed {
            continue;
        }
        out.extend_from_slice(&buf[kept_from..field.name.start()]);
        kept_from = fields.get(index + 1).map_or(section.end, |next| next.name.start());
        if let Fate::Replace(name, value) = fate {
            write_field(out, name, value);
        }
    }
    out.extend_from_slice(&buf[kept_from..section.end]);
}

/// What edits put behind the fields that stay. They were checked when the route was taken in.
pub(super) fn write_added(edits: &[HeaderEdit], out: &mut BytesMut) {
    for edit in edits {
        for value in &edit.values {
            write_field(out, edit.name.as_bytes(), value);
        }
    }
}

fn write_framing(framing: BodyFraming, out: &mut BytesMut) {
    match framing {
        BodyFraming::None | BodyFraming::UntilClose => {}
        BodyFraming::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        BodyFraming::Length(length) => {
            let mut digits = itoa::Buffer::new();
            write_field(out, b"content-length", digits.format(length).as_bytes());
        }
    }
}

#[derive(Clone, Copy)]
struct Options {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    te: bool,
}

/// One `Connection` field of our own, and the `Upgrade` that it names.
fn write_connection(section: &FieldSection, buf: &[u8], options: Options, out: &mut BytesMut) {
    let upgrade = options.upgrade && section.upgrade_protocols(buf).next().is_some();
    let named: [(bool, &[u8]); 4] = [
        (options.close, b"close"),
        (options.keep_alive, b"keep-alive"),
        (upgrade, b"upgrade"),
        (options.te, b"te"),
    ];
    write_list(b"connection", named.into_iter().filter_map(|(on, name)| on.then_some(name)), out);
    if upgrade {
        write_list(b"upgrade", section.upgrade_protocols(buf), out);
    }
}

fn write_list<'a>(name: &[u8], elements: impl Iterator<Item = &'a [u8]>, out: &mut BytesMut) {
    let mut any = false;
    for element in elements {
        if any {
            out.extend_from_slice(b", ");
        } else {
            out.extend_from_slice(name);
            out.extend_from_slice(b": ");
        }
        any = true;
        out.extend_from_slice(element);
    }
    if any {
        out.extend_from_slice(b"\r\n");
    }
}

pub(super) fn write_status(status: u16, reason: &[u8], out: &mut BytesMut) {
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(digits.format(status).as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn write_field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn end_head(add: &[NewField<'_>], out: &mut BytesMut) {
    for field in add {
        field.write(out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Begins a chunk of `length` bytes, which must not be zero: that would end the body.
pub fn write_chunk_head(length: usize, out: &mut BytesMut) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    debug_assert!(length > 0, "an empty chunk ends the body");
    let digits = length.ilog2() / 4 + 1;
    for digit in (0..digits).rev() {
        out.extend_from_slice(&[HEX[(length >> (digit * 4)) & 0xf]]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Ends a chunk begun by [`write_chunk_head`].
pub const CHUNK_END: &[u8] = b"\r\n";
/// Ends a body of such chunks.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
