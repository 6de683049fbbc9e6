//! Request heads: from bytes to a judged message, or a refusal.

use std::ops::Range;

use super::chars::{self, TOKEN};
use super::fields::{Field, FieldSection, LineScan, Side};
use super::target::{self, Target};
use super::{BodyFraming, Limits, Refusal, Span, TargetForm, Version};

/// One request head. Made once per connection and used for every request on it.
#[derive(Debug)]
pub struct RequestHead {
    stage: Stage,
    scan: LineScan,
    method: Span,
    target: Target,
    version: Version,
    pub(super) section: FieldSection,
    /// Of HEAD, CONNECT and OPTIONS, the methods that change what a message means.
    is_head: bool,
    is_connect: bool,
    is_options: bool,
    upgrade: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing of this request has been read.
    Start,
    RequestLine,
    Fields,
    /// Parsed or refused: the next call to `parse` begins another request.
    Done,
}

/// Longer than any registered method by a factor of two.
pub(crate) const METHOD_BYTES: usize = 32;

impl Default for RequestHead {
    fn default() -> Self {
        Self::new()
    }
}

impl RequestHead {
    pub fn new() -> Self {
        Self {
            stage: Stage::Start,
            scan: LineScan::default(),
            method: Span::default(),
            target: Target::NONE,
            version: Version::Http11,
            section: FieldSection::default(),
            is_head: false,
            is_connect: false,
            is_options: false,
            upgrade: false,
        }
    }

    /// Reads a head from the start of `buf`. `None` asks for more bytes: call again with the same
    /// bytes and those that followed; nothing is looked at twice. `Some(n)`: the head is complete
    /// in the first `n` bytes, and the accessors may be used with this buffer until its start
    /// moves. After either outcome the next call begins with a new request.
    pub fn parse(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
        if self.stage == Stage::Done {
            self.clear();
        }
        let outcome = self.parse_lines(buf, limits);
        if !matches!(outcome, Ok(None)) {
            self.stage = Stage::Done;
        }
        outcome
    }

    fn clear(&mut self) {
        let mut section = std::mem::take(&mut self.section);
        section.clear();
        *self = Self { section, ..Self::new() };
    }

    fn parse_lines(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
        let window = &buf[..buf.len().min(limits.head_bytes)];
        if self.stage == Stage::Start && !self.skip_empty_line(window)? {
            return Ok(None);
        }
        if self.stage == Stage::RequestLine {
            check_method_so_far(&window[self.scan.line..])?;
        }
        while let Some(line) = self.scan.next_line(window)? {
            if self.stage == Stage::RequestLine {
                self.parse_request_line(window, line)?;
                self.stage = Stage::Fields;
            } else if line.is_empty() {
                self.finish(window, line.start)?;
                return Ok(Some(self.scan.line));
            } else {
                self.section.push_line(window, line, limits, Side::Request)?;
            }
        }
        if buf.len() < limits.head_bytes {
            return Ok(None);
        }
        Err(match self.stage {
            Stage::RequestLine => Refusal::TargetTooLong,
            Stage::Start | Stage::Fields | Stage::Done => Refusal::HeadTooLarge,
        })
    }

    /// One empty line is forgiven (RFC 9112, 2.2: old clients send one after a body). False while
    /// it cannot be told whether there is one.
    fn skip_empty_line(&mut self, window: &[u8]) -> Result<bool, Refusal> {
        let start = match window {
            [] | [b'\r'] | [b'\r', b'\n'] => return Ok(false),
            [b'\r', b'\n', b'\r' | b'\n', ..] => return Err(Refusal::EmptyLines),
            [b'\r', b'\n', ..] => 2,
            [b'\r', ..] => return Err(Refusal::BareCr),
            [b'\n', ..] => return Err(Refusal::BareLf),
            _ => 0,
        };
        self.scan = LineScan::at(start);
        self.stage = Stage::RequestLine;
        Ok(true)
    }

    fn parse_request_line(&mut self, buf: &[u8], line: Range<usize>) -> Result<(), Refusal> {
        let bytes = &buf[line.clone()];
        let method_end = chars::run(TOKEN, bytes);
        if method_end == 0 || bytes.get(method_end) != Some(&b' ') {
            let cr = bytes.get(method_end) == Some(&b'\r');
            return Err(if cr { Refusal::BareCr } else { Refusal::MalformedRequestLine });
        }
        let method = &bytes[..method_end];
        let rest = &bytes[method_end + 1..];
        let target_end = memchr::memchr(b' ', rest).ok_or(Refusal::MalformedRequestLine)?;
        if target_end == 0 {
            return Err(Refusal::MalformedRequestLine);
        }
        self.version = parse_version(&rest[target_end + 1..])?;
        self.method = Span::new(line.start, line.start + method_end);
        let target_start = self.method.end() + 1;
        let target = Span::new(target_start, target_start + target_end);
        self.target = Target::parse(buf, target, method)?;
        self.is_head = method == b"HEAD";
        self.is_connect = method == b"CONNECT";
        self.is_options = method == b"OPTIONS";
        Ok(())
    }

    /// What can be judged only with all fields known.
    fn finish(&mut self, buf: &[u8], end: usize) -> Result<(), Refusal> {
        self.section.finish(buf, end, self.version, Side::Request)?;
        match self.section.host {
            None if self.version == Version::Http11 => return Err(Refusal::MissingHost),
            Some(host) if target::parse_authority(host.of(buf)).is_none() => {
                return Err(Refusal::BadHost);
            }
            None | Some(_) => {}
        }
        let has_body = self.section.chunked || self.section.content_length.is_some_and(|n| n > 0);
        if self.is_connect && has_body {
            return Err(Refusal::ConnectWithBody);
        }
        self.upgrade = self.section.has_upgrade
            && self.section.connection.upgrade
            && self.version == Version::Http11
            && self.section.upgrade_protocols(buf).next().is_some();
        Ok(())
    }

    pub fn method<'a>(&self, buf: &'a [u8]) -> &'a str {
        self.method.ascii(buf)
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn target_form(&self) -> TargetForm {
        self.target.form
    }

    /// The target as sent.
    pub fn target<'a>(&self, buf: &'a [u8]) -> &'a str {
        self.target.whole.ascii(buf)
    }

    /// The path as sent, not decoded and not normalised: what is judged is what is forwarded. `/`
    /// for an absolute form without one, `*` for the asterisk form, empty for CONNECT.
    pub fn path<'a>(&self, buf: &'a [u8]) -> &'a str {
        match (self.target.form, self.target.path.ascii(buf)) {
            (TargetForm::Absolute, "") => self.root(),
            (_, path) => path,
        }
    }

    /// What stands for the missing path of an absolute form (RFC 9112, 3.2.1 and 3.2.4).
    fn root(&self) -> &'static str {
        if self.is_options && self.target.query.is_none() { "*" } else { "/" }
    }

    /// Without its `?`.
    pub fn query<'a>(&self, buf: &'a [u8]) -> Option<&'a str> {
        self.target.query.map(|query| query.ascii(buf))
    }

    /// Host and optional port of the request: the target's if it has one, which wins over `Host`
    /// (RFC 9112, 3.2.2). Missing only in HTTP/1.0.
    pub fn authority<'a>(&self, buf: &'a [u8]) -> Option<&'a str> {
        self.target.authority.or(self.section.host).map(|authority| authority.ascii(buf))
    }

    pub fn fields(&self) -> &[Field] {
        &self.section.list
    }

    /// The values of the fields with this name, each line on its own (RFC 9110 lets a recipient
    /// join them; a policy must not). Fields for this hop only are not found.
    pub fn field<'a>(&'a self, buf: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.section.find(buf, name)
    }

    pub fn framing(&self) -> BodyFraming {
        match self.section.content_length {
            _ if self.section.chunked => BodyFraming::Chunked,
            Some(length) => BodyFraming::Length(length),
            None => BodyFraming::None,
        }
    }

    /// Whether the client wants to send another request on this connection.
    pub fn keep_alive(&self) -> bool {
        let options = self.section.connection;
        !options.close && (self.version == Version::Http11 || options.keep_alive)
    }

    /// Whether the request offers to switch to another protocol. HTTP itself does not count.
    pub fn wants_upgrade(&self) -> bool {
        self.upgrade
    }

    /// Whether the client waits for 100 before it sends the body.
    pub fn expects_continue(&self) -> bool {
        let has_body = !matches!(self.framing(), BodyFraming::None | BodyFraming::Length(0));
        self.section.expect_continue && has_body && self.version == Version::Http11
    }

    pub fn is_head(&self) -> bool {
        self.is_head
    }

    pub fn is_connect(&self) -> bool {
        self.is_connect
    }

    pub fn has_idempotency_key(&self) -> bool {
        self.section.idempotency_key
    }

    pub(super) fn parsed_target(&self) -> Target {
        self.target
    }

    /// Path and query for a server that wants the origin form.
    pub(super) fn write_origin_form(&self, buf: &[u8], out: &mut bytes::BytesMut) {
        if self.target.form == TargetForm::Absolute && self.target.path.is_empty() {
            out.extend_from_slice(self.root().as_bytes());
        }
        out.extend_from_slice(self.target.path_and_query().of(buf));
    }
}

/// Refuses what cannot become a method before its line is complete, so that a peer speaking
/// something else is told at once instead of being waited for. Looked at in full each time: it is
/// at most 33 bytes.
fn check_method_so_far(bytes: &[u8]) -> Result<(), Refusal> {
    let start = &bytes[..bytes.len().min(METHOD_BYTES + 1)];
    let length = chars::run(TOKEN, start);
    if length > METHOD_BYTES {
        return Err(Refusal::MethodTooLong);
    }
    match start.get(length) {
        None | Some(b'\r' | b'\n') => Ok(()),
        Some(b' ') if length > 0 => Ok(()),
        Some(b' ') => Err(Refusal::MalformedRequestLine),
        Some(_) => Err(Refusal::BadMethod),
    }
}

fn parse_version(bytes: &[u8]) -> Result<Version, Refusal> {
    match bytes {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            Err(Refusal::UnsupportedVersion)
        }
        _ if bytes.contains(&b'\r') => Err(Refusal::BareCr),
        _ => Err(Refusal::MalformedRequestLine),
    }
}
