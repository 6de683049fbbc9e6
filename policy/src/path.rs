//! Path matching, and the paths that are too ambiguous to match at all.
//!
//! The string judged is the string forwarded, byte for byte: an ambiguous path is refused on ports
//! that have path rules, never normalised.

use heddle_api::proto::v1;

use crate::Invalid;

/// How a rule names paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(Box<str>),
    /// Whole segments: `/a` matches `/a` and `/a/b`, not `/ab` (as Gateway API's PathPrefix).
    Prefix(Box<str>),
}

impl PathMatch {
    /// True when `path` (no query) is matched.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => {
                let prefix = prefix.trim_end_matches('/');
                path.strip_prefix(prefix)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

impl TryFrom<v1::PathMatch> for PathMatch {
    type Error = Invalid;

    fn try_from(path: v1::PathMatch) -> Result<Self, Invalid> {
        let (text, exact) = match path.r#match {
            Some(v1::path_match::Match::Exact(text)) => (text, true),
            Some(v1::path_match::Match::Prefix(text)) => (text, false),
            None => return Err(Invalid::value("match", "give `exact` or `prefix`")),
        };
        if !text.starts_with('/') || is_ambiguous(&text) {
            return Err(Invalid::value(
                "match",
                "a path begins with `/` and has no `//`, `/./`, \
                `/../`, `\\`, `%2F`, `%5C`, `%00` or escapes that nothing needs",
            ));
        }
        Ok(if exact { Self::Exact(text.into()) } else { Self::Prefix(text.into()) })
    }
}

/// True for a path that two servers may read differently: empty or dot segments, plain or encoded,
/// backslashes, encoded slashes, backslashes or NUL, encoded letters, digits and other characters
/// that need no escape, `;` parameters after a dot segment, or an incomplete escape.
#[must_use]
pub fn is_ambiguous(path: &str) -> bool {
    let bytes = path.as_bytes();
    let mut at = 0;
    // 1 while every byte of the present segment is a dot, plain or encoded; 0 otherwise.
    let mut dots = Some(0usize);
    while at < bytes.len() {
        let (byte, width) = match bytes[at] {
            b'%' => match decode(bytes.get(at + 1), bytes.get(at + 2)) {
                // An encoded separator, or no escape at all.
                Some(b'/' | b'\\' | 0) | None => return true,
                // As good as plain (RFC 3986, 2.3): a server may compare it decoded, a rule does not.
                Some(byte) if is_unreserved(byte) => return true,
                Some(byte) => (byte, 3),
            },
            byte => (byte, 1),
        };
        match byte {
            b'/' => {
                let first = at == 0;
                if !first && matches!(dots, Some(0..=2)) {
                    return true;
                }
                dots = Some(0);
            }
            b'\\' => return true,
            b';' if matches!(dots, Some(1..=2)) => return true,
            b'.' => dots = dots.map(|n| n + 1),
            _ => dots = None,
        }
        at += width;
    }
    matches!(dots, Some(1..=2))
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn decode(high: Option<&u8>, low: Option<&u8>) -> Option<u8> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some(digit(high?)? << 4 | digit(low?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_matches_whole_segments() {
        let prefix = PathMatch::Prefix("/a".into());
        for (path, want) in [
            ("/a", true),
            ("/a/", true),
            ("/a/b", true),
            ("/ab", false),
            ("/", false),
            ("*", false),
        ] {
            assert_eq!(prefix.matches(path), want, "{path}");
        }
        let root = PathMatch::Prefix("/".into());
        assert!(root.matches("/") && root.matches("/x") && !root.matches("*"));
    }

    #[test]
    fn ambiguous_paths_are_known() {
        for path in [
            "//",
            "/a//b",
            "/./a",
            "/a/.",
            "/a/..",
            "/a/../b",
            "/%2e/a",
            "/%2E%2e/a",
            "/.%2e",
            "/a%2Fb",
            "/a%2fb",
            "/a%5cb",
            "/a%00",
            "/%61dmin",
            "/a%2eb",
            "/a%7Eb",
            "/a\\b",
            "/a/..;/b",
            "/%",
            "/%4",
            "/%zz",
        ] {
            assert!(is_ambiguous(path), "{path}");
        }
        for path in [
            "/",
            "/a",
            "/a/",
            "/a/b.c",
            "/a/...",
            "/..a/b",
            "/a%20b",
            "*",
            "/a;b/c",
            "/.well-known/x",
        ] {
            assert!(!is_ambiguous(path), "{path}");
        }
    }
}
