//! Request targets and authorities: which form, where the path is, and what is not one.

use std::net::Ipv6Addr;

use super::chars::{self, HOST, TARGET};
use super::{Refusal, Span};

/// RFC 9112, 3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`
    Origin,
    /// `http://host/path?query`
    Absolute,
    /// `host:port`, CONNECT only.
    Authority,
    /// `*`, OPTIONS only.
    Asterisk,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) whole: Span,
    pub(super) form: TargetForm,
    /// Of the absolute and the authority form.
    pub(super) authority: Option<Span>,
    /// Empty when an absolute form has none.
    pub(super) path: Span,
    /// Without its `?`.
    pub(super) query: Option<Span>,
}

impl Target {
    pub(super) const NONE: Self = Self {
        whole: Span { start: 0, end: 0 },
        form: TargetForm::Origin,
        authority: None,
        path: Span { start: 0, end: 0 },
        query: None,
    };

    /// `whole` must lie inside one line of `buf`.
    pub(super) fn parse(buf: &[u8], whole: Span, method: &[u8]) -> Result<Self, Refusal> {
        let bytes = whole.of(buf);
        let good = chars::run(TARGET, bytes);
        if good < bytes.len() {
            return Err(if bytes[good] == b'\r' { Refusal::BareCr } else { Refusal::BadTarget });
        }
        if method == b"CONNECT" {
            return match parse_authority(bytes) {
                Some(Authority { has_port: true }) => {
                    let authority = Some(whole);
                    Ok(Self { whole, form: TargetForm::Authority, authority, ..Self::NONE })
                }
                Some(_) | None => Err(Refusal::TargetForm),
            };
        }
        match bytes {
            [b'/', ..] => Ok(Self::with_path(buf, whole, TargetForm::Origin, None, whole.start())),
            b"*" if method == b"OPTIONS" => {
                Ok(Self { whole, form: TargetForm::Asterisk, path: whole, ..Self::NONE })
            }
            _ => Self::parse_absolute(buf, whole),
        }
    }

    fn parse_absolute(buf: &[u8], whole: Span) -> Result<Self, Refusal> {
        const SCHEME: &[u8] = b"http://";
        let bytes = whole.of(buf);
        // `https` in clear text would be a claim about a connection that we know to be otherwise.
        if bytes.len() < SCHEME.len() || !bytes[..SCHEME.len()].eq_ignore_ascii_case(SCHEME) {
            return Err(Refusal::TargetForm);
        }
        let start = whole.start() + SCHEME.len();
        let rest = &buf[start..whole.end()];
        let length = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
        // Userinfo is refused with everything else that is not a host and a port.
        if parse_authority(&rest[..length]).is_none() {
            return Err(Refusal::BadHost);
        }
        let authority = Span::new(start, start + length);
        Ok(Self::with_path(buf, whole, TargetForm::Absolute, Some(authority), start + length))
    }

    fn with_path(
        buf: &[u8],
        whole: Span,
        form: TargetForm,
        authority: Option<Span>,
        start: usize,
    ) -> Self {
        let end = whole.end();
        let (path_end, query) = match memchr::memchr(b'?', &buf[start..end]) {
            Some(at) => (start + at, Some(Span::new(start + at + 1, end))),
            None => (end, None),
        };
        Self { whole, form, authority, path: Span::new(start, path_end), query }
    }

    /// What follows the authority (or is the whole of an origin form): path and query as sent.
    pub(super) fn path_and_query(self) -> Span {
        Span { start: self.path.start, end: self.whole.end }
    }
}

/// What [`parse_authority`] found besides a valid host.
pub(super) struct Authority {
    has_port: bool,
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`. An empty host is none.
pub(super) fn parse_authority(bytes: &[u8]) -> Option<Authority> {
    let host_end = match bytes {
        [b'[', ..] => {
            let close = memchr::memchr(b']', bytes)?;
            let address = std::str::from_utf8(&bytes[1..close]).ok()?;
            address.parse::<Ipv6Addr>().ok()?;
            close + 1
        }
        _ => chars::run(HOST, bytes),
    };
    match &bytes[host_end..] {
        _ if host_end == 0 => None,
        [] => Some(Authority { has_port: false }),
        [b':', port @ ..] if is_port(port) => Some(Authority { has_port: true }),
        _ => None,
    }
}

fn is_port(bytes: &[u8]) -> bool {
    let value = |digits: &[u8]| {
        digits.iter().fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'))
    };
    (1..=5).contains(&bytes.len())
        && bytes.iter().all(u8::is_ascii_digit)
        && value(bytes) <= u32::from(u16::MAX)
}
