//! What becomes of a request: the rule it follows, the backend drawn for it, and what its head looks
//! like on the way there. The decision is the policy's; this file brings it the request and carries
//! out what it says, for both versions of HTTP.

use std::sync::Arc;

use heddle_policy::route::{
    self, Called, Changes, DotSegment, Fields, Followed, HeaderEdit, Redirect, Request,
};
use http::header::HOST;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::draw;
use crate::error::Error;
use crate::http1::RequestHead;
use crate::snapshot::{Backend, Routes, ServicePort};
use crate::worker::Worker;

/// What becomes of one request. Decided once, before the first attempt.
pub(super) struct Course<'p> {
    /// Where it goes; for what is answered here, what it is recorded as.
    pub(super) backend: &'p Arc<Backend>,
    pub(super) step: Step<'p>,
}

/// The next thing to do with it.
pub(super) enum Step<'p> {
    /// It is sent, to this path if a rule rewrites it.
    Send(Option<String>),
    /// It is answered.
    Redirect(Redirection<'p>),
    /// It is refused.
    Refuse(Error),
}

/// An answer that sends the caller elsewhere.
pub(super) struct Redirection<'p> {
    pub(super) status: u16,
    pub(super) location: String,
    /// The rule that says so.
    pub(super) rule: &'p str,
    /// What filters make of the answer's header.
    pub(super) edits: &'p [HeaderEdit],
}

/// A request as rules see it, and where it was sent.
pub(super) struct Asked<'a, F> {
    pub(super) request: Request<'a, F>,
    /// Host and optional port, if it names one.
    pub(super) authority: Option<&'a str>,
    /// Stands for the authority where there is none.
    pub(super) original: std::net::SocketAddr,
}

impl<'p> Course<'p> {
    /// That of a request to a port without routes, which is not looked at any further.
    pub(super) fn unrouted(worker: &Worker, port: &'p ServicePort) -> Self {
        Self { backend: draw(worker, port), step: Step::Send(None) }
    }
}

/// Finds the rule and draws the backend. Allocates only what a rule changes.
pub(super) fn course<'p, F: Fields>(
    worker: &Worker,
    port: &'p ServicePort,
    routes: &'p Routes,
    asked: &Asked<'_, F>,
) -> Course<'p> {
    let Some(followed) = routes.table.find(&asked.request) else {
        let error = Error::NoRoute(port.service.clone());
        return Course { backend: &routes.unmatched, step: Step::Refuse(error) };
    };
    follow(worker, routes, &followed, port.port, asked)
}

fn follow<'p, F>(
    worker: &Worker,
    routes: &'p Routes,
    followed: &Followed<'p>,
    port: u16,
    asked: &Asked<'_, F>,
) -> Course<'p> {
    let backends = &routes.rules[followed.index];
    let rule = &followed.rule.name;
    let (backend, step) = match followed.rule.draw(worker.random()) {
        route::Course::Backend(index) => {
            let backend = &backends.drawn[index];
            let path = backend.changes.as_deref().and_then(|changes| changes.path.as_ref());
            let path = path.filter(|_| asked.request.path.starts_with('/'));
            match path.map(|rewrite| followed.rewrite(rewrite, asked.request.path)).transpose() {
                Ok(path) => (backend, Step::Send(path)),
                Err(DotSegment) => (backend, Step::Refuse(Error::DotSegment(rule.clone()))),
            }
        }
        route::Course::Redirect(redirect, edits) => {
            (&backends.answers, redirection(followed, redirect, edits, port, asked))
        }
        route::Course::Invalid(index) => {
            (&backends.drawn[index], Step::Refuse(Error::InvalidBackend(rule.clone())))
        }
        route::Course::NoBackend => {
            (&backends.answers, Step::Refuse(Error::NoBackend(rule.clone())))
        }
    };
    Course { backend, step }
}

fn redirection<'p, F>(
    followed: &Followed<'p>,
    redirect: &Redirect,
    edits: &'p [HeaderEdit],
    port: u16,
    asked: &Asked<'_, F>,
) -> Step<'p> {
    // A client of HTTP/1.0 may name no host: what it dialled is all that is known.
    let dialled =
        if asked.authority.is_none() { asked.original.to_string() } else { String::new() };
    let called = Called {
        authority: asked.authority.unwrap_or(&dialled),
        port,
        path: asked.request.path,
        query: asked.request.query,
    };
    match followed.location(redirect, &called) {
        Ok(location) => Step::Redirect(Redirection {
            status: redirect.status,
            location,
            rule: &followed.rule.name,
            edits,
        }),
        Err(DotSegment) => Step::Refuse(Error::DotSegment(followed.rule.name.clone())),
    }
}

/// The header of an HTTP/1 request.
pub(super) struct Http1<'a> {
    pub(super) head: &'a RequestHead,
    pub(super) bytes: &'a [u8],
}

impl Fields for Http1<'_> {
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let host = if name == "host" { self.head.authority(self.bytes) } else { None };
        // With an absolute target `Host` is not what was asked for (RFC 9112, 3.2.2).
        let lines = (name != "host").then(|| self.head.field(self.bytes, name));
        host.map(str::as_bytes).into_iter().chain(lines.into_iter().flatten())
    }
}

/// The header of an HTTP/2 request.
pub(super) struct Http2<'a> {
    pub(super) headers: &'a HeaderMap,
    /// `:authority`, which wins over `host`.
    pub(super) authority: Option<&'a str>,
}

impl Fields for Http2<'_> {
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let host = if name == "host" { self.authority } else { None };
        let lines = host.is_none().then(|| self.headers.get_all(name).iter());
        let lines = lines.into_iter().flatten().map(HeaderValue::as_bytes);
        host.map(str::as_bytes).into_iter().chain(lines)
    }
}

/// Carries out a rule's edits of an HTTP/2 header.
pub(super) fn edit(headers: &mut HeaderMap, edits: &[HeaderEdit]) -> Result<(), Error> {
    for edit in edits {
        let name = HeaderName::from_bytes(edit.name.as_bytes()).map_err(|_| UNCHECKED)?;
        if !edit.keep {
            headers.remove(&name);
        }
        for value in &edit.values {
            let value = HeaderValue::from_bytes(value).map_err(|_| UNCHECKED)?;
            headers.append(&name, value);
        }
    }
    Ok(())
}

/// Carries out a rule's edits of an HTTP/2 request's head.
pub(super) fn rewrite(
    head: &mut http::request::Parts,
    changes: &Changes,
    path: Option<String>,
) -> Result<(), Error> {
    edit(&mut head.headers, &changes.request)?;
    if path.is_none() && changes.host.is_none() {
        return Ok(());
    }
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    if let Some(mut target) = path {
        if let Some(query) = parts.path_and_query.as_ref().and_then(PathAndQuery::query) {
            target.push('?');
            target.push_str(query);
        }
        parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| UNCHECKED)?);
    }
    if let Some(host) = &changes.host {
        if parts.authority.is_some() {
            parts.authority = Some(Authority::try_from(&**host).map_err(|_| UNCHECKED)?);
        }
        if parts.authority.is_none() || head.headers.contains_key(HOST) {
            head.headers.insert(HOST, HeaderValue::from_str(host).map_err(|_| UNCHECKED)?);
        }
    }
    head.uri = Uri::from_parts(parts).map_err(|_| UNCHECKED)?;
    Ok(())
}

const UNCHECKED: Error = Error::Internal("a route was taken in that cannot be carried out");
