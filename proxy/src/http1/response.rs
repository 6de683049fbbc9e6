//! Response heads: what a server may answer, given what it was asked.

use std::ops::Range;

use super::chars;
use super::fields::{Field, FieldSection, LineScan, Side};
use super::request::RequestHead;
use super::{BadResponse, BodyFraming, Limits, Refusal, Span, Version};

/// What must be known of a request to read its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFacts {
    pub head: bool,
    pub connect: bool,
    /// The request was forwarded with an `Upgrade`.
    pub upgrade: bool,
}

impl From<&RequestHead> for RequestFacts {
    fn from(request: &RequestHead) -> Self {
        Self {
            head: request.is_head(),
            connect: request.is_connect(),
            upgrade: request.wants_upgrade(),
        }
    }
}

/// One response head. Made once per connection and used for every response on it.
#[derive(Debug)]
pub struct ResponseHead {
    stage: Stage,
    scan: LineScan,
    version: Version,
    status: u16,
    reason: Span,
    pub(super) section: FieldSection,
    framing: BodyFraming,
    /// The connection carries something else from here on: 101, or 2xx to CONNECT.
    switches: bool,
    /// Where the next response would begin is in doubt.
    last: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    StatusLine,
    Fields,
    Done,
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self::new()
    }
}

impl ResponseHead {
    pub fn new() -> Self {
        Self {
            stage: Stage::StatusLine,
            scan: LineScan::default(),
            version: Version::Http11,
            status: 0,
            reason: Span::default(),
            section: FieldSection::default(),
            framing: BodyFraming::None,
            switches: false,
            last: false,
        }
    }

    /// As [`RequestHead::parse`]. Interim responses are heads of their own: parse again after one.
    pub fn parse(
        &mut self,
        buf: &[u8],
        limits: &Limits,
        request: RequestFacts,
    ) -> Result<Option<usize>, BadResponse> {
        if self.stage == Stage::Done {
            let mut section = std::mem::take(&mut self.section);
            section.clear();
            *self = Self { section, ..Self::new() };
        }
        let outcome = self.parse_lines(buf, limits, request);
        if !matches!(outcome, Ok(None)) {
            self.stage = Stage::Done;
        }
        outcome
    }

    fn parse_lines(
        &mut self,
        buf: &[u8],
        limits: &Limits,
        request: RequestFacts,
    ) -> Result<Option<usize>, BadResponse> {
        let window = &buf[..buf.len().min(limits.head_bytes)];
        if self.stage == Stage::StatusLine {
            check_start(window)?;
        }
        while let Some(line) = self.scan.next_line(window)? {
            if self.stage == Stage::StatusLine {
                self.parse_status_line(window, line)?;
                self.stage = Stage::Fields;
            } else if line.is_empty() {
                self.section.finish(window, line.start, self.version, Side::Response)?;
                self.decide_framing(window, request)?;
                return Ok(Some(self.scan.line));
            } else {
                self.section.push_line(window, line, limits, Side::Response)?;
            }
        }
        if buf.len() < limits.head_bytes { Ok(None) } else { Err(Refusal::HeadTooLarge.into()) }
    }

    fn parse_status_line(&mut self, buf: &[u8], line: Range<usize>) -> Result<(), BadResponse> {
        let bytes = &buf[line.clone()];
        self.version = match bytes.get(..9) {
            Some(b"HTTP/1.1 ") => Version::Http11,
            Some(b"HTTP/1.0 ") => Version::Http10,
            _ => return Err(BadResponse::StatusLine),
        };
        let digits = match &bytes[9..] {
            // Many servers leave the space out when they leave the reason out.
            [a, b, c] | [a, b, c, b' ', ..] => [*a, *b, *c],
            _ => return Err(BadResponse::StatusLine),
        };
        if digits[0] == b'0' || !digits.iter().all(u8::is_ascii_digit) {
            return Err(BadResponse::StatusLine);
        }
        self.status = digits.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
        self.reason = Span::new((line.start + 13).min(line.end), line.end);
        match chars::find_bad_value_byte(self.reason.of(buf)) {
            None => Ok(()),
            Some(b'\r') => Err(Refusal::BareCr.into()),
            Some(_) => Err(BadResponse::StatusLine),
        }
    }

    /// RFC 9112, 6.3, without its forgiveness.
    fn decide_framing(&mut self, buf: &[u8], request: RequestFacts) -> Result<(), BadResponse> {
        // A server that was offered to switch may have begun to, whatever it answers.
        self.last = request.upgrade || request.connect;
        let announced = self.announced();
        let announces_body = !matches!(announced, BodyFraming::None | BodyFraming::Length(0));
        if self.status < 200 {
            if announces_body {
                return Err(BadResponse::InterimWithBody);
            }
            if self.status == 101 {
                let named = self.section.connection.upgrade
                    && self.section.upgrade_protocols(buf).next().is_some();
                if !request.upgrade || !named || self.version == Version::Http10 {
                    return Err(BadResponse::UnaskedSwitch);
                }
                self.switches = true;
            }
            self.framing = BodyFraming::None;
        } else if request.connect && self.status < 300 {
            self.switches = true;
            self.framing = BodyFraming::None;
        } else if self.status == 204 {
            // A body is announced by real servers; harmless if the connection is not used again.
            self.last |= announces_body;
            self.framing = BodyFraming::None;
        } else if request.head || self.status == 304 {
            self.framing = BodyFraming::None;
        } else {
            let unannounced = announced == BodyFraming::None;
            self.framing = if unannounced { BodyFraming::UntilClose } else { announced };
        }
        Ok(())
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// May hold bytes that are not ASCII.
    pub fn reason<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        self.reason.of(buf)
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// 1xx, except 101: the final response is still to come. Not for an HTTP/1.0 client.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && !self.switches
    }

    /// After this head both directions are opaque bytes.
    pub fn switches(&self) -> bool {
        self.switches
    }

    pub fn fields(&self) -> &[Field] {
        &self.section.list
    }

    /// As [`RequestHead::field`].
    pub fn field<'a>(&'a self, buf: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.section.find(buf, name)
    }

    /// How the body that follows is delimited, the request considered.
    pub fn framing(&self) -> BodyFraming {
        self.framing
    }

    /// What the fields say, which for HEAD and 304 is not what follows.
    pub(super) fn announced(&self) -> BodyFraming {
        match self.section.content_length {
            _ if self.section.chunked => BodyFraming::Chunked,
            Some(length) => BodyFraming::Length(length),
            None => BodyFraming::None,
        }
    }

    /// Whether the server's connection may be used again once the body has been read.
    pub fn keep_alive(&self) -> bool {
        let options = self.section.connection;
        !options.close
            && !self.switches
            && !self.last
            && self.framing != BodyFraming::UntilClose
            && (self.version == Version::Http11 || options.keep_alive)
    }
}

/// Refuses what cannot become a status line before it is complete.
fn check_start(bytes: &[u8]) -> Result<(), BadResponse> {
    const START: &[u8] = b"HTTP/1.";
    let length = bytes.len().min(START.len());
    if bytes[..length] == START[..length] { Ok(()) } else { Err(BadResponse::StatusLine) }
}
