//! Filters as they are applied: those of a rule and of a backend made into one set of changes, once,
//! when the resource is taken in.

use heddle_api::names::header;
use heddle_api::proto::v1;

use super::target::{parse_hostname, parse_redirect, parse_rewrite};
use super::{Changes, PathRewrite, Redirect};
use crate::Invalid;

/// Longest name of a field, in bytes.
pub(super) const MAX_NAME_BYTES: usize = 256;
/// Longest value of a field, in bytes.
pub(super) const MAX_VALUE_BYTES: usize = 4096;
/// Most entries of each list of a header modifier, and most filters of one list.
const MAX_ENTRIES: usize = 64;

/// What becomes of all fields with one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderEdit {
    /// In lower case.
    pub name: Box<str>,
    /// Fields that are there stay.
    pub keep: bool,
    /// Fields added behind them, one for each value.
    pub values: Box<[Box<[u8]>]>,
}

/// The filters of one list.
#[derive(Debug, Default)]
pub(super) struct Edits {
    request: Vec<HeaderEdit>,
    response: Vec<HeaderEdit>,
    host: Option<Box<str>>,
    path: Option<PathRewrite>,
    pub(super) redirect: Option<Redirect>,
}

impl Edits {
    /// `field` is the list's own name.
    pub(super) fn parse(filters: Vec<v1::RouteFilter>, field: &str) -> Result<Self, Invalid> {
        use v1::route_filter::Filter;
        if filters.len() > MAX_ENTRIES {
            return Err(Invalid::value(field, format!("at most {MAX_ENTRIES} filters")));
        }
        let mut edits = Self::default();
        let mut rewritten = false;
        for (index, filter) in filters.into_iter().enumerate() {
            let at = format!("{field}[{index}]");
            let within = |name: &str| format!("{at}.{name}");
            match filter.filter {
                Some(Filter::RequestHeaders(modifier)) => {
                    apply(&mut edits.request, modifier)
                        .map_err(|invalid| invalid.within(&within("request_headers")))?;
                }
                Some(Filter::ResponseHeaders(modifier)) => {
                    apply(&mut edits.response, modifier)
                        .map_err(|invalid| invalid.within(&within("response_headers")))?;
                }
                Some(Filter::Redirect(redirect)) if edits.redirect.is_none() => {
                    let redirect = parse_redirect(redirect)
                        .map_err(|invalid| invalid.within(&within("redirect")))?;
                    edits.redirect = Some(redirect);
                }
                Some(Filter::Rewrite(rewrite)) if !rewritten => {
                    rewritten = true;
                    let place = within("rewrite");
                    edits.host = parse_hostname(&rewrite.hostname)
                        .map_err(|invalid| invalid.within(&place))?;
                    edits.path =
                        parse_rewrite(rewrite.path).map_err(|invalid| invalid.within(&place))?;
                }
                Some(Filter::Redirect(_) | Filter::Rewrite(_)) => {
                    return Err(Invalid::value(at, "the same filter stands before: give it once"));
                }
                // Another version's filter: without it the rule would mean something else.
                None => return Err(Invalid::value(at, "a filter that this proxy does not know")),
            }
        }
        if edits.redirect.is_some() && rewritten {
            return Err(Invalid::value(field, "redirect or rewrite, not both"));
        }
        Ok(edits)
    }

    /// These filters of a rule, then `backend`'s own: on the way to the backend they see the request
    /// in this order, on the way back the response in the other. A backend's rewrite takes the place
    /// of the rule's, field by field.
    pub(super) fn then(&self, backend: Self) -> Changes {
        let mut request = self.request.clone();
        for edit in backend.request {
            append(&mut request, edit);
        }
        let mut response = backend.response;
        for edit in &self.response {
            append(&mut response, edit.clone());
        }
        Self {
            request,
            response,
            host: backend.host.or_else(|| self.host.clone()),
            path: backend.path.or_else(|| self.path.clone()),
            redirect: backend.redirect,
        }
        .into_changes()
    }

    pub(super) fn into_changes(self) -> Changes {
        Changes {
            request: self.request.into(),
            response: self.response.into(),
            host: self.host,
            path: self.path,
            redirect: self.redirect,
        }
    }
}

/// `next` after what `edits` have done already.
fn append(edits: &mut Vec<HeaderEdit>, next: HeaderEdit) {
    match edits.iter_mut().find(|edit| edit.name == next.name) {
        Some(edit) if next.keep => {
            edit.values = edit.values.iter().cloned().chain(next.values).collect();
        }
        Some(edit) => *edit = next,
        None => edits.push(next),
    }
}

/// First `remove`, then `set`, then `add`. Of equal names in one list only the first counts (Gateway
/// API, HTTPHeader.name).
fn apply(edits: &mut Vec<HeaderEdit>, modifier: v1::HeaderModifier) -> Result<(), Invalid> {
    let too_many = |field: &str| Invalid::value(field, format!("at most {MAX_ENTRIES} fields"));
    if modifier.remove.len() > MAX_ENTRIES {
        return Err(too_many("remove"));
    }
    for (index, name) in modifier.remove.into_iter().enumerate() {
        let name = field_name(&name, || format!("remove[{index}]"))?;
        append(edits, HeaderEdit { name, keep: false, values: Box::new([]) });
    }
    for (list, field, keep) in [(modifier.set, "set", false), (modifier.add, "add", true)] {
        if list.len() > MAX_ENTRIES {
            return Err(too_many(field));
        }
        let mut seen: Vec<Box<str>> = Vec::with_capacity(list.len());
        for (index, entry) in list.into_iter().enumerate() {
            let name = field_name(&entry.name, || format!("{field}[{index}].name"))?;
            let value = entry.value.trim_matches([' ', '\t']).as_bytes();
            if value.len() > MAX_VALUE_BYTES || !value.iter().all(|byte| is_value(*byte)) {
                let message = format!("at most {MAX_VALUE_BYTES} bytes, none of them a control");
                return Err(Invalid::value(format!("{field}[{index}].value"), message));
            }
            if !seen.contains(&name) {
                seen.push(name.clone());
                append(edits, HeaderEdit { name, keep, values: Box::new([value.into()]) });
            }
        }
    }
    Ok(())
}

fn field_name(name: &str, at: impl Fn() -> String) -> Result<Box<str>, Invalid> {
    let name = name.to_ascii_lowercase();
    if name.len() > MAX_NAME_BYTES || !is_name(&name) {
        return Err(Invalid::value(at(), "the name of a header field"));
    }
    if is_protected(&name) {
        let message = format!(
            "`{name}` delimits the message, is for one hop only, or is the mesh's own; \
            for the host there is the rewrite's `hostname`"
        );
        return Err(Invalid::value(at(), message));
    }
    Ok(name.into())
}

/// Fields that no route may touch: they say where a message ends, what connection it is on, or what
/// the mesh vouches for. `name` is in lower case.
#[must_use]
pub fn is_protected(name: &str) -> bool {
    const PROTECTED: [&str; 12] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "idempotency-key",
    ];
    // `_` is folded to `-` by servers that make variables of fields.
    let folded = |known: &&str| {
        known.len() == name.len()
            && known.bytes().zip(name.bytes()).all(|(a, b)| a == if b == b'_' { b'-' } else { b })
    };
    PROTECTED.iter().any(folded) || is_of_mesh(name)
}

/// True for `heddle-*`, and for what a server may fold to that.
pub(super) fn is_of_mesh(name: &str) -> bool {
    name.len() >= header::PREFIX.len()
        && name
            .bytes()
            .map(|byte| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() })
            .zip(header::PREFIX.bytes())
            .all(|(a, b)| a == b)
}

/// RFC 9110, `token`.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// RFC 9110, `field-vchar` and the whitespace between.
fn is_value(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f || byte == b'\t'
}
