//! Where a request goes in place of where it was sent: rewritten paths, and the `location` of a
//! redirect.

use heddle_api::identity::is_subdomain;
use heddle_api::proto::v1;

use crate::Invalid;
use crate::split::port;

/// Longest path that stands in place of another, in bytes.
const MAX_PATH: usize = 1024;

/// What stands in place of a path. The query stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewrite {
    /// The whole path.
    Full(Box<str>),
    /// The matched prefix; without a `/` at the end.
    Prefix(Box<str>),
}

/// The path walks up (`/..`): what is appended to another prefix would leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the path has a dot segment, and the route appends it to another prefix")]
pub struct DotSegment;

impl PathRewrite {
    pub(super) fn needs_prefix(&self) -> bool {
        matches!(self, Self::Prefix(_))
    }

    /// `prefix` has no `/` at its end. `*` and the empty path of CONNECT have nothing to replace.
    pub(super) fn apply(&self, path: &str, prefix: Option<&str>) -> Result<String, DotSegment> {
        if !path.starts_with('/') {
            return Ok(path.to_owned());
        }
        match (self, prefix.and_then(|prefix| path.strip_prefix(prefix))) {
            (Self::Full(full), _) => Ok(full.to_string()),
            (Self::Prefix(_), Some(rest)) if walks(rest) => Err(DotSegment),
            (Self::Prefix(replacement), Some(rest)) => {
                let path = format!("{replacement}{rest}");
                Ok(if path.is_empty() { "/".to_owned() } else { path })
            }
            // Only rules whose every match is a prefix come here; another path stays as it is.
            (Self::Prefix(_), None) => Ok(path.to_owned()),
        }
    }
}

/// Whether a segment is `.` or `..`, plain or encoded, between separators that are plain or encoded,
/// with or without `;` parameters.
fn walks(path: &str) -> bool {
    let mut rest = path.as_bytes();
    let mut dots = Some(0);
    loop {
        let (byte, width) = match *rest {
            [] => return matches!(dots, Some(1 | 2)),
            [b'%', b'2', b'e' | b'E', ..] => (b'.', 3),
            [b'%', b'2', b'f' | b'F', ..] | [b'%', b'5', b'c' | b'C', ..] => (b'/', 3),
            [b'%', b'3', b'b' | b'B', ..] => (b';', 3),
            [b'\\', ..] => (b'/', 1),
            [byte, ..] => (byte, 1),
        };
        rest = &rest[width..];
        match byte {
            b'/' | b';' if matches!(dots, Some(1 | 2)) => return true,
            b'/' => dots = Some(0),
            b'.' => dots = dots.map(|n: u32| n + 1),
            _ => dots = None,
        }
    }
}

/// Where the caller is sent; what is absent stays as the request has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    scheme: Option<Scheme>,
    hostname: Option<Box<str>>,
    path: Option<PathRewrite>,
    port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// What was called, as far as a redirect keeps it. The scheme is `http`: what a proxy can read is
/// not encrypted.
#[derive(Debug, Clone, Copy)]
pub struct Called<'a> {
    /// Host and optional port.
    pub authority: &'a str,
    /// The port that was dialled.
    pub port: u16,
    /// As received.
    pub path: &'a str,
    /// Without its `?`.
    pub query: Option<&'a str>,
}

impl Redirect {
    pub(super) fn path(&self) -> Option<&PathRewrite> {
        self.path.as_ref()
    }

    pub(super) fn location(
        &self,
        called: &Called<'_>,
        prefix: Option<&str>,
    ) -> Result<String, DotSegment> {
        let scheme = self.scheme.unwrap_or(Scheme::Http);
        // A scheme of its own brings its own port with it (HTTPRequestRedirectFilter.port).
        let port = self.port.or(self.scheme.map(Scheme::port)).unwrap_or(called.port);
        let host = self.hostname.as_deref().unwrap_or_else(|| host_of(called.authority));
        let mut location = format!("{}://{host}", scheme.name());
        if port != scheme.port() {
            location.push(':');
            location.push_str(&port.to_string());
        }
        match &self.path {
            Some(rewrite) => location.push_str(&rewrite.apply(called.path, prefix)?),
            None if called.path.starts_with('/') => location.push_str(called.path),
            None => location.push('/'),
        }
        if let Some(query) = called.query {
            location.push('?');
            location.push_str(query);
        }
        Ok(location)
    }
}

/// Without the port. A colon inside brackets is part of an address.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}

pub(super) fn parse_redirect(redirect: v1::Redirect) -> Result<Redirect, Invalid> {
    let scheme = match &*redirect.scheme {
        "" => None,
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        _ => return Err(Invalid::value("scheme", "`http` or `https`")),
    };
    let port = match redirect.port {
        0 => None,
        number => Some(port(number).ok_or_else(|| Invalid::value("port", "1 to 65535"))?),
    };
    let status = u16::try_from(redirect.status)
        .ok()
        .filter(|status| matches!(status, 301 | 302 | 303 | 307 | 308))
        .ok_or_else(|| Invalid::value("status", "301, 302, 303, 307 or 308"))?;
    Ok(Redirect {
        scheme,
        hostname: parse_hostname(&redirect.hostname)?,
        path: parse_rewrite(redirect.path)?,
        port,
        status,
    })
}

pub(super) fn parse_hostname(hostname: &str) -> Result<Option<Box<str>>, Invalid> {
    match hostname {
        "" => Ok(None),
        hostname if is_subdomain(hostname) => Ok(Some(hostname.into())),
        _ => Err(Invalid::value("hostname", "a host name in lower case, without a port")),
    }
}

pub(super) fn parse_rewrite(
    rewrite: Option<v1::PathRewrite>,
) -> Result<Option<PathRewrite>, Invalid> {
    use v1::path_rewrite::Path;
    let Some(rewrite) = rewrite else { return Ok(None) };
    let rewrite = match rewrite.path {
        None => return Err(Invalid::value("path", "give `full` or `prefix`")),
        Some(Path::Full(full)) if full.is_empty() => PathRewrite::Full("/".into()),
        Some(Path::Full(full)) => PathRewrite::Full(full.into()),
        Some(Path::Prefix(prefix)) => {
            // A `/` at the end would double the one that follows the matched prefix.
            let kept = prefix.trim_end_matches('/');
            if kept.is_empty() && !prefix.is_empty() && prefix != "/" {
                return Err(Invalid::value("path", PATHS));
            }
            PathRewrite::Prefix(kept.into())
        }
    };
    let (PathRewrite::Full(path) | PathRewrite::Prefix(path)) = &rewrite;
    let good = |byte: u8| byte.is_ascii_graphic() && !b"?#\\\"<>`".contains(&byte);
    if path.len() > MAX_PATH
        || !(path.is_empty() || path.starts_with('/'))
        || !path.bytes().all(good)
        || walks(path)
    {
        return Err(Invalid::value("path", PATHS));
    }
    Ok(Some(rewrite))
}

const PATHS: &str = "a path that begins with `/`, without a query, a fragment or dot segments, in \
    at most 1024 bytes; percent-encode what is not ASCII";
