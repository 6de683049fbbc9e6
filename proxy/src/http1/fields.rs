//! Field sections: splitting lines, recognising the names that mean something to a proxy, and
//! what `Connection` says about the others.

use std::ops::Range;

use super::chars::{self, TOKEN};
use super::{Limits, Refusal, Span, Version};

/// What the parser recognised a field as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    KeepAlive,
    ProxyConnection,
    Http2Settings,
    Te,
    Trailer,
    Upgrade,
    Expect,
    IdempotencyKey,
    /// `heddle-*`: the mesh's own, never forwarded.
    Heddle,
    /// Named by `Connection`, hence for this hop only.
    Nominated,
    Other,
}

/// One field line of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: Span,
    /// Without whitespace around it.
    pub value: Span,
    pub kind: FieldKind,
}

/// Which message a section belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Request,
    Response,
}

/// Options of `Connection` that a proxy acts on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ConnectionOptions {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
}

/// The fields of one head and what they amount to.
#[derive(Debug, Default)]
pub(super) struct FieldSection {
    pub(super) list: Vec<Field>,
    /// Where the empty line after the last field begins.
    pub(super) end: usize,
    pub(super) host: Option<Span>,
    pub(super) content_length: Option<u64>,
    pub(super) chunked: bool,
    pub(super) connection: ConnectionOptions,
    has_connection: bool,
    pub(super) has_upgrade: bool,
    pub(super) te_trailers: bool,
    pub(super) expect_continue: bool,
    pub(super) idempotency_key: bool,
}

impl FieldSection {
    pub(super) fn clear(&mut self) {
        let mut list = std::mem::take(&mut self.list);
        list.clear();
        *self = Self { list, ..Self::default() };
    }

    /// Takes in one line, given without its CR LF.
    #[inline]
    pub(super) fn push_line(
        &mut self,
        buf: &[u8],
        line: Range<usize>,
        limits: &Limits,
        side: Side,
    ) -> Result<(), Refusal> {
        if self.list.len() >= limits.fields {
            return Err(Refusal::TooManyFields);
        }
        let mut field = split_line(buf, line, limits.name_bytes)?;
        let name = field.name.of(buf);
        field.kind = recognise(name);
        if side == Side::Request && is_disguised(name, field.kind) {
            return Err(Refusal::ReservedFieldName);
        }
        self.list.push(field);
        if field.kind == FieldKind::Other { Ok(()) } else { self.note(buf, field, side) }
    }

    /// Keeps what a recognised field says.
    fn note(&mut self, buf: &[u8], field: Field, side: Side) -> Result<(), Refusal> {
        let value = field.value.of(buf);
        match field.kind {
            FieldKind::Host if side == Side::Request => {
                if self.host.replace(field.value).is_some() {
                    return Err(Refusal::RepeatedHost);
                }
            }
            FieldKind::ContentLength => {
                if self.content_length.is_some() {
                    return Err(Refusal::RepeatedContentLength);
                }
                self.content_length = Some(parse_content_length(value)?);
            }
            FieldKind::TransferEncoding => {
                if self.chunked {
                    return Err(Refusal::RepeatedTransferEncoding);
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::UnsupportedTransferEncoding);
                }
                self.chunked = true;
            }
            FieldKind::Connection => self.has_connection = true,
            FieldKind::Upgrade => self.has_upgrade = true,
            FieldKind::Te => {
                self.te_trailers |= chars::list_elements(value)
                    .any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
            }
            FieldKind::Expect => {
                self.expect_continue |= value.eq_ignore_ascii_case(b"100-continue");
            }
            FieldKind::IdempotencyKey => self.idempotency_key = true,
            FieldKind::Host
            | FieldKind::KeepAlive
            | FieldKind::ProxyConnection
            | FieldKind::Http2Settings
            | FieldKind::Trailer
            | FieldKind::Heddle
            | FieldKind::Nominated
            | FieldKind::Other => {}
        }
        Ok(())
    }

    /// The section is complete: `end` is where its empty line begins.
    pub(super) fn finish(
        &mut self,
        buf: &[u8],
        end: usize,
        version: Version,
        side: Side,
    ) -> Result<(), Refusal> {
        self.end = end;
        if self.chunked {
            if self.content_length.is_some() {
                return Err(Refusal::ContentLengthWithTransferEncoding);
            }
            if version == Version::Http10 {
                return Err(Refusal::TransferEncodingInHttp10);
            }
        }
        if self.has_connection { self.resolve_connection(buf, side) } else { Ok(()) }
    }

    fn resolve_connection(&mut self, buf: &[u8], side: Side) -> Result<(), Refusal> {
        let mut options = 0;
        for index in 0..self.list.len() {
            if self.list[index].kind != FieldKind::Connection {
                continue;
            }
            for option in chars::list_elements(self.list[index].value.of(buf)) {
                options += 1;
                if options > CONNECTION_OPTIONS || !chars::is_token(option) {
                    return Err(Refusal::BadConnectionOption);
                }
                self.note_option(buf, option, side)?;
            }
        }
        Ok(())
    }

    fn note_option(&mut self, buf: &[u8], option: &[u8], side: Side) -> Result<(), Refusal> {
        if option.eq_ignore_ascii_case(b"close") {
            self.connection.close = true;
        } else if option.eq_ignore_ascii_case(b"keep-alive") {
            self.connection.keep_alive = true;
        } else if option.eq_ignore_ascii_case(b"upgrade") {
            self.connection.upgrade = true;
        } else if side == Side::Response && option.eq_ignore_ascii_case(b"transfer-encoding") {
            // True, needless, and sent by large content networks: the framing is restated anyway.
        } else if is_needed_end_to_end(option) {
            // Obeying would let a client take from a request what its proxies or the mesh vouch
            // for; ignoring would leave the next hop to judge differently.
            return Err(Refusal::ConnectionNamesProtectedField);
        } else {
            for field in &mut self.list {
                if matches!(field.kind, FieldKind::Other | FieldKind::Trailer)
                    && field.name.of(buf).eq_ignore_ascii_case(option)
                {
                    field.kind = FieldKind::Nominated;
                }
            }
        }
        Ok(())
    }

    /// The values of the fields with this name, each line on its own, without those that are meant
    /// for this hop only: what is not forwarded must not decide anything either.
    pub(super) fn find<'a>(
        &'a self,
        buf: &'a [u8],
        name: &'a str,
    ) -> impl Iterator<Item = &'a [u8]> {
        self.list
            .iter()
            .filter(move |field| {
                field.kind != FieldKind::Nominated
                    && field.name.of(buf).eq_ignore_ascii_case(name.as_bytes())
            })
            .map(move |field| field.value.of(buf))
    }

    /// The protocols of `Upgrade` that may be offered onwards. Another HTTP inside the connection
    /// would carry requests that nobody judges.
    pub(super) fn upgrade_protocols<'a>(&'a self, buf: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.list
            .iter()
            .filter(|field| field.kind == FieldKind::Upgrade)
            .flat_map(|field| chars::list_elements(field.value.of(buf)))
            .filter(|protocol| is_foreign_protocol(protocol))
    }
}

/// More than any real message has; bounds the work of looking each one up.
const CONNECTION_OPTIONS: usize = 32;

/// Name and value of a line. The kind is left to the caller.
#[inline]
pub(super) fn split_line(
    buf: &[u8],
    line: Range<usize>,
    name_bytes: usize,
) -> Result<Field, Refusal> {
    let bytes = &buf[line.clone()];
    let colon = chars::run(TOKEN, bytes);
    match bytes.get(colon) {
        Some(b':') if colon > 0 => {}
        Some(b' ' | b'\t') if colon == 0 => return Err(Refusal::FoldedField),
        Some(b'\r') => return Err(Refusal::BareCr),
        _ => return Err(Refusal::BadFieldName),
    }
    if colon > name_bytes {
        return Err(Refusal::FieldNameTooLong);
    }
    let rest = &bytes[colon + 1..];
    match chars::find_bad_value_byte(rest) {
        None => {}
        Some(b'\r') => return Err(Refusal::BareCr),
        Some(_) => return Err(Refusal::BadFieldValue),
    }
    let value = chars::trim_start(rest);
    let start = line.end - value.len();
    Ok(Field {
        name: Span::new(line.start, line.start + colon),
        value: Span::new(start, start + chars::trim_end(value).len()),
        kind: FieldKind::Other,
    })
}

/// The kind of a field by its name. Lengths first: most names are of no length listed here or
/// differ in the first comparison.
#[inline]
pub(super) fn recognise(name: &[u8]) -> FieldKind {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    match name.len() {
        2 if is(b"te") => FieldKind::Te,
        4 if is(b"host") => FieldKind::Host,
        6 if is(b"expect") => FieldKind::Expect,
        7 if is(b"upgrade") => FieldKind::Upgrade,
        7 if is(b"trailer") => FieldKind::Trailer,
        10 if is(b"connection") => FieldKind::Connection,
        10 if is(b"keep-alive") => FieldKind::KeepAlive,
        14 if is(b"content-length") => FieldKind::ContentLength,
        14 if is(b"http2-settings") => FieldKind::Http2Settings,
        15 if is(b"idempotency-key") => FieldKind::IdempotencyKey,
        16 if is(b"proxy-connection") => FieldKind::ProxyConnection,
        17 if is(b"transfer-encoding") => FieldKind::TransferEncoding,
        7.. if is_of_mesh(name) => FieldKind::Heddle,
        _ => FieldKind::Other,
    }
}

fn is_of_mesh(name: &[u8]) -> bool {
    matches!(name[6], b'-' | b'_') && name[..6].eq_ignore_ascii_case(b"heddle")
}

/// A name that a server which maps `_` and `-` to the same variable (CGI, WSGI) would take for a
/// mesh or framing field.
#[inline]
fn is_disguised(name: &[u8], kind: FieldKind) -> bool {
    if kind == FieldKind::Heddle {
        return name.contains(&b'_');
    }
    name.len() == 14 && name.eq_ignore_ascii_case(b"content_length")
        || name.len() == 17 && name.eq_ignore_ascii_case(b"transfer_encoding")
}

fn parse_content_length(value: &[u8]) -> Result<u64, Refusal> {
    // 19 digits cannot overflow a u64. Above 2^63 servers that count in signed numbers disagree.
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::BadContentLength);
    }
    let length = value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0'));
    if i64::try_from(length).is_ok() { Ok(length) } else { Err(Refusal::BadContentLength) }
}

fn is_foreign_protocol(protocol: &[u8]) -> bool {
    let mut parts = protocol.splitn(2, |&byte| byte == b'/');
    let name = parts.next().unwrap_or_default();
    chars::is_token(name)
        && parts.next().is_none_or(chars::is_token)
        && ![b"h2c".as_slice(), b"h2", b"http"].iter().any(|http| name.eq_ignore_ascii_case(http))
}

/// Fields that `Connection` may not take away (RFC 9110, 7.6.1: "intended for all recipients").
#[rustfmt::skip]
const END_TO_END: [&[u8]; 31] = [
    b"host", b"content-length", b"transfer-encoding", b"content-type", b"content-encoding", b"content-range",
    b"authorization", b"cookie", b"set-cookie", b"cache-control", b"expect", b"range", b"date", b"location",
    b"origin", b"referer", b"via", b"forwarded", b"x-real-ip", b"x-request-id", b"idempotency-key",
    b"traceparent", b"tracestate", b"b3", b"baggage", b"etag", b"if-match", b"if-none-match", b"vary",
    b"www-authenticate", b"proxy-authorization",
];
const END_TO_END_PREFIXES: [&[u8]; 4] = [b"heddle-", b"heddle_", b"x-forwarded-", b"x-b3-"];

fn is_needed_end_to_end(name: &[u8]) -> bool {
    END_TO_END.iter().any(|known| name.eq_ignore_ascii_case(known))
        || END_TO_END_PREFIXES.iter().any(|prefix| {
            name.len() >= prefix.len() && name[..prefix.len()].eq_ignore_ascii_case(prefix)
        })
}

/// Fields that may not stand in a trailer section, besides all that have a kind of their own
/// (RFC 9110, 6.5.1): a recipient that merges trailers into the head would act on them too late.
#[rustfmt::skip]
const NEVER_TRAILERS: [&[u8]; 13] = [
    b"authorization", b"proxy-authorization", b"www-authenticate", b"cookie", b"set-cookie",
    b"content-type", b"content-encoding", b"content-range", b"cache-control", b"range", b"location",
    b"content_length", b"transfer_encoding",
];

pub(super) fn is_allowed_in_trailers(name: &[u8]) -> bool {
    recognise(name) == FieldKind::Other
        && !NEVER_TRAILERS.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Finds the lines of a section that arrives in pieces, looking at no byte twice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LineScan {
    /// Where the line not yet returned begins.
    pub(super) line: usize,
    /// No LF stands before this.
    scanned: usize,
}

impl LineScan {
    pub(super) fn at(start: usize) -> Self {
        Self { line: start, scanned: start }
    }

    /// The next complete line without its CR LF. `window` must begin where it began last time.
    #[inline]
    pub(super) fn next_line(&mut self, window: &[u8]) -> Result<Option<Range<usize>>, Refusal> {
        let Some(found) = memchr::memchr(b'\n', &window[self.scanned..]) else {
            self.scanned = window.len();
            return Ok(None);
        };
        let start = self.line;
        let lf = self.scanned + found;
        if lf == start || window[lf - 1] != b'\r' {
            return Err(Refusal::BareLf);
        }
        *self = Self::at(lf + 1);
        Ok(Some(start..lf - 1))
    }
}
