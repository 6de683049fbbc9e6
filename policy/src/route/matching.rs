//! Whether one match of a rule holds for a request, and how specific it is.

use std::fmt;

use heddle_api::proto::v1;

use super::edit::{MAX_NAME_BYTES, MAX_VALUE_BYTES, is_name, is_of_mesh};
use crate::Invalid;
use crate::path::PathMatch;

/// Most headers, and most query parameters, of one match.
const MAX_CONDITIONS: usize = 64;
/// Longest name or value of a query parameter, in bytes.
const MAX_PARAMETER: usize = 1024;
/// Longest method; longer ones are refused before they come here.
const MAX_METHOD: usize = 32;

/// The parts of a request's head that rules speak of.
#[derive(Debug)]
pub struct Request<'a, F> {
    /// As received.
    pub method: &'a str,
    /// As received, without the query; `*` for the asterisk form, empty for CONNECT.
    pub path: &'a str,
    /// Without its `?`.
    pub query: Option<&'a str>,
    /// The header.
    pub fields: &'a F,
}

/// A request's header, whatever the version of HTTP keeps it in.
pub trait Fields {
    /// The values of the field with this name, which is in lower case: each line on its own, in
    /// their order. The request's authority stands for `host`.
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]>;
}

/// One match of a rule: everything it names must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matcher {
    path: Path,
    method: Option<Box<str>>,
    /// Names in lower case.
    headers: Box<[Condition]>,
    query: Box<[Condition]>,
}

/// A header or a query parameter, by its whole value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    name: Box<str>,
    value: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Path {
    Exact(Box<str>),
    /// Whole segments, without a `/` at the end; the empty prefix is that of every request, also of
    /// one that has no path.
    Prefix(Box<str>),
}

/// In the order in which Gateway API compares: the greater one wins.
pub(super) type Specificity = (bool, usize, bool, usize, usize);

impl Matcher {
    /// What a rule without matches has.
    pub(super) fn everything() -> Self {
        Self {
            path: Path::Prefix("".into()),
            method: None,
            headers: Box::new([]),
            query: Box::new([]),
        }
    }

    pub(super) fn specificity(&self) -> Specificity {
        let (exact, length) = match &self.path {
            Path::Exact(_) => (true, 0),
            Path::Prefix(prefix) => (false, prefix.len()),
        };
        (exact, length, self.method.is_some(), self.headers.len(), self.query.len())
    }

    /// What a rewrite of the matched prefix takes away; `None` when no prefix is matched.
    pub(super) fn prefix(&self) -> Option<&str> {
        match &self.path {
            Path::Exact(_) => None,
            Path::Prefix(prefix) => Some(prefix),
        }
    }

    pub(super) fn matches<F: Fields>(&self, request: &Request<'_, F>) -> bool {
        self.path.matches(request.path)
            && self.method.as_deref().is_none_or(|method| method == request.method)
            && self.headers.iter().all(|wanted| {
                is_joined(request.fields.values(&wanted.name), wanted.value.as_bytes())
            })
            && self.query.iter().all(|wanted| {
                find_parameter(request.query.unwrap_or_default(), &wanted.name)
                    .is_some_and(|found| decode(found).eq(wanted.value.bytes()))
            })
    }
}

impl Path {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) if prefix.is_empty() => true,
            Self::Prefix(prefix) => path
                .strip_prefix(&**prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }
}

/// Whether the lines of one field, joined with `,`, are `expected`. A field that is absent is not
/// the same as an empty one.
fn is_joined<'a>(values: impl Iterator<Item = &'a [u8]>, expected: &[u8]) -> bool {
    let mut rest = Some(expected);
    let mut present = false;
    for value in values {
        if present {
            rest = rest.and_then(|rest| rest.strip_prefix(b","));
        }
        rest = rest.and_then(|rest| rest.strip_prefix(value));
        present = true;
    }
    present && rest.is_some_and(<[u8]>::is_empty)
}

/// The value, not decoded, of the first parameter with this name.
fn find_parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(found, _)| decode(found).eq(name.bytes()))
        .map(|(_, value)| value)
}

/// As forms are read: `+` is a space, `%41` is `A`, an escape that is none stands for itself.
fn decode(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (byte, width) = match *rest {
            [] => return None,
            [b'%', high, low, ..] => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => (high << 4 | low, 3),
                _ => (b'%', 1),
            },
            [b'+', ..] => (b' ', 1),
            [byte, ..] => (byte, 1),
        };
        rest = &rest[width..];
        Some(byte)
    })
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

impl TryFrom<v1::RouteMatch> for Matcher {
    type Error = Invalid;

    fn try_from(matched: v1::RouteMatch) -> Result<Self, Invalid> {
        let path = match matched.path {
            None => Path::Prefix("".into()),
            Some(path) => {
                match PathMatch::try_from(path).map_err(|invalid| invalid.within("path"))? {
                    PathMatch::Exact(exact) => Path::Exact(exact),
                    PathMatch::Prefix(prefix) => Path::Prefix(prefix.trim_end_matches('/').into()),
                }
            }
        };
        let method = match &*matched.method {
            "" => None,
            method if method.len() <= MAX_METHOD && is_name(method) => Some(method.into()),
            _ => {
                let message = format!("a method such as GET, at most {MAX_METHOD} bytes");
                return Err(Invalid::value("method", message));
            }
        };
        Ok(Self {
            path,
            method,
            headers: headers(matched.headers)?,
            query: parameters(matched.query)?,
        })
    }
}

fn headers(conditions: Vec<v1::NameValue>) -> Result<Box<[Condition]>, Invalid> {
    bound(&conditions, "headers")?;
    let mut headers: Vec<Condition> = Vec::with_capacity(conditions.len());
    for (index, condition) in conditions.into_iter().enumerate() {
        let at = |field: &str| format!("headers[{index}].{field}");
        let name = condition.name.to_ascii_lowercase();
        if name.len() > MAX_NAME_BYTES || !is_name(&name) {
            return Err(Invalid::value(at("name"), "the name of a header field"));
        }
        if is_of_mesh(&name) {
            // What is not forwarded must not decide anything either.
            let message = "the mesh's own fields are taken out of what applications send";
            return Err(Invalid::value(at("name"), message));
        }
        if condition.value.len() > MAX_VALUE_BYTES {
            return Err(Invalid::value(at("value"), format!("at most {MAX_VALUE_BYTES} bytes")));
        }
        // Of equal names only the first counts (Gateway API, HTTPHeaderMatch.name).
        if headers.iter().all(|taken| *taken.name != *name) {
            headers.push(Condition { name: name.into(), value: condition.value.into() });
        }
    }
    Ok(headers.into())
}

fn parameters(conditions: Vec<v1::NameValue>) -> Result<Box<[Condition]>, Invalid> {
    bound(&conditions, "query")?;
    let mut parameters: Vec<Condition> = Vec::with_capacity(conditions.len());
    for (index, condition) in conditions.into_iter().enumerate() {
        let at = |field: &str| format!("query[{index}].{field}");
        if !(1..=MAX_PARAMETER).contains(&condition.name.len()) {
            return Err(Invalid::value(at("name"), format!("1 to {MAX_PARAMETER} bytes")));
        }
        if condition.value.len() > MAX_PARAMETER {
            return Err(Invalid::value(at("value"), format!("at most {MAX_PARAMETER} bytes")));
        }
        if parameters.iter().all(|taken| *taken.name != *condition.name) {
            let (name, value) = (condition.name.into(), condition.value.into());
            parameters.push(Condition { name, value });
        }
    }
    Ok(parameters.into())
}

fn bound(conditions: &[v1::NameValue], field: &str) -> Result<(), Invalid> {
    if conditions.len() <= MAX_CONDITIONS {
        return Ok(());
    }
    Err(Invalid::value(field, format!("at most {MAX_CONDITIONS}")))
}

/// Names what must hold, for explanations.
impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Path::Exact(path) => write!(f, "path {path}")?,
            Path::Prefix(prefix) => {
                write!(f, "path prefix {}", if prefix.is_empty() { "/" } else { prefix })?;
            }
        }
        if let Some(method) = &self.method {
            write!(f, ", method {method}")?;
        }
        for header in &self.headers {
            write!(f, ", header {}", header.name)?;
        }
        for parameter in &self.query {
            write!(f, ", query parameter {}", parameter.name.escape_debug())?;
        }
        Ok(())
    }
}
