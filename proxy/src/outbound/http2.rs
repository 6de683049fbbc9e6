//! HTTP/2 and gRPC from the application: per request match → draw → pick → send → retry → record once.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use heddle_api::names::header;
use heddle_policy::retry::{Attempted, Failure, is_idempotent};
use http::header::{HOST, LOCATION};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::{Duration, Instant, timeout, timeout_at};

use super::route::{self, Asked, Course, Redirection, Step, edit, rewrite};
use super::{Call, InFlight, find_port, may_retry, outcome_of, pick};
use crate::balance::Outcome;
use crate::error::{Error, Reason};
use crate::http2::{
    self, Limit, Limits, Moved, Replay, ResponseBody, ResponseEnd, STREAMS, answer, clean, failure,
    is_grpc, prepare,
};
use crate::metrics::Direction;
use crate::pool::streams::Lease;
use crate::snapshot::{Backend, Endpoint, ServicePort};
use crate::stream::Conn;
use crate::telemetry::{self, RequestRecord};
use crate::worker::Worker;

/// How long a connection that is refused as a whole may ask.
const REFUSED_LIFE: Duration = Duration::from_secs(5);

/// Serves streams until the connection ends.
pub(super) async fn serve(down: Conn, worker: &Rc<Worker>, call: &Call) {
    let call = Rc::new(Call { peer: call.peer, original: call.original });
    let respond = |request| respond(worker.clone(), call.clone(), request);
    http2::serve(down, worker, Direction::Outbound, STREAMS, respond).await;
}

/// Answers every request of a connection that is refused as a whole.
pub(super) async fn answer_and_close(down: Conn, worker: &Rc<Worker>, error: &Error) {
    let reason = error.reason();
    let local = answer(error, Direction::Outbound, false, false);
    let grpc = answer(error, Direction::Outbound, true, false);
    let respond = |request: Request<Incoming>| {
        let response = if is_grpc(request.headers()) { grpc.clone() } else { local.clone() };
        worker.shared.metrics.error(Direction::Outbound, reason);
        async move {
            response.map(|body| ResponseBody::local(body, &HeaderMap::new(), |_: ResponseEnd| {}))
        }
    };
    let serve = http2::serve(down, worker, Direction::Outbound, STREAMS, respond);
    // Long enough to be told why; the refusal is not worth a connection for longer.
    let _ = timeout(REFUSED_LIFE, serve).await;
}

/// What the record of a request needs, whenever the response ends.
struct Pending {
    worker: Rc<Worker>,
    call: Rc<Call>,
    port: Option<Arc<ServicePort>>,
    backend: Option<Arc<Backend>>,
    endpoint: Option<InFlight>,
    /// The connection's room for this stream, given back when the response has ended.
    lease: Option<Lease>,
    method: Method,
    path: Box<str>,
    status: u16,
    reason: Option<Reason>,
    /// How long the rest of the response may take.
    limits: Option<Limits>,
    started: Instant,
}

impl Pending {
    fn record(self, end: &ResponseEnd) {
        let reason = self.reason.or(end.reason);
        if let (Some(port), Some(backend)) = (&self.port, &self.backend) {
            telemetry::outbound_request(
                &self.worker,
                port,
                backend,
                &RequestRecord {
                    method: self.method.as_str(),
                    path: &self.path,
                    peer: self.call.peer,
                    endpoint: self.endpoint.as_ref().map(|in_flight| &*in_flight.endpoint),
                    source: None,
                    status: self.status,
                    grpc_status: end.grpc_status,
                    reason,
                    duration: self.started.elapsed(),
                },
            );
        } else if let Some(reason) = reason {
            self.worker.shared.metrics.error(Direction::Outbound, reason);
        }
    }
}

async fn respond(
    worker: Rc<Worker>,
    call: Rc<Call>,
    request: Request<Incoming>,
) -> Response<ResponseBody<impl FnOnce(ResponseEnd) + Unpin>> {
    let grpc = is_grpc(request.headers());
    let mut pending = Box::new(Pending {
        worker,
        call,
        port: None,
        backend: None,
        endpoint: None,
        lease: None,
        method: request.method().clone(),
        path: request.uri().path().into(),
        status: 0,
        reason: None,
        limits: None,
        started: Instant::now(),
    });
    let local = match send(&mut pending, request).await {
        Ok(Answered::Application(response)) => {
            pending.status = response.status().as_u16();
            let (head, body) = response.into_parts();
            let limits = pending.limits.take();
            let body =
                ResponseBody::upstream(body, &head.headers, Recorder(pending).into_closure());
            return Response::from_parts(head, body.within(limits));
        }
        Ok(Answered::Rule(response)) => response,
        Err(error) => {
            pending.reason = Some(error.reason());
            answer(&error, Direction::Outbound, grpc, false)
        }
    };
    pending.status = local.status().as_u16();
    let (head, body) = local.into_parts();
    let body = ResponseBody::local(body, &head.headers, Recorder(pending).into_closure());
    Response::from_parts(head, body)
}

/// Who answers.
enum Answered {
    Application(Response<Incoming>),
    /// A rule of a route, by the caller's own proxy.
    Rule(Response<Bytes>),
}

/// Gives both kinds of answer one closure type.
struct Recorder(Box<Pending>);

impl Recorder {
    fn into_closure(self) -> impl FnOnce(ResponseEnd) + Unpin {
        move |end| self.0.record(&end)
    }
}

async fn send(pending: &mut Pending, mut request: Request<Incoming>) -> Result<Answered, Error> {
    let worker = pending.worker.clone();
    if request.method() == Method::CONNECT {
        return Err(Error::UpgradeRefused("CONNECT over HTTP/2"));
    }
    prepare(&mut request)?;
    let port = find_port(&worker, &pending.call).await?;
    let course = find_course(&worker, &port, &pending.call, &request);
    pending.port = Some(port.clone());
    pending.backend = Some(course.backend.clone());
    let path = match course.step {
        Step::Send(path) => path,
        Step::Redirect(to) => return redirect(&to).map(Answered::Rule),
        Step::Refuse(error) => return Err(error),
    };
    let backend = course.backend;
    let (mut head, body) = request.into_parts();
    if let Some(changes) = &backend.changes {
        rewrite(&mut head, changes, path)?;
    }
    let deadline = backend.policy.request_timeout.map(|limit| pending.started + limit);
    let attempts = attempts(pending, Request::from_parts(head, body), backend);
    let mut response = match deadline {
        None => attempts.await?,
        Some(by) => timeout_at(by, attempts).await.unwrap_or(Err(Error::RequestTimeout))?,
    };
    if let Some(changes) = &backend.changes {
        edit(response.headers_mut(), &changes.response)?;
    }
    Ok(Answered::Application(response))
}

/// What becomes of the request, by the routes of the port or by its split.
fn find_course<'p>(
    worker: &Worker,
    port: &'p ServicePort,
    call: &Call,
    request: &Request<Incoming>,
) -> Course<'p> {
    let Some(routes) = &port.routes else { return Course::unrouted(worker, port) };
    let uri = request.uri();
    let authority = uri.authority().map(Authority::as_str);
    let fields = route::Http2 { headers: request.headers(), authority };
    let named = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let authority = authority.or_else(named);
    let (method, path, query) = (request.method().as_str(), uri.path(), uri.query());
    let request = heddle_policy::route::Request { method, path, query, fields: &fields };
    let asked = Asked { request, authority, original: call.original };
    route::course(worker, port, routes, &asked)
}

fn redirect(to: &Redirection<'_>) -> Result<Response<Bytes>, Error> {
    let value = |text: &str| HeaderValue::from_str(text);
    let broken = |_| Error::Internal("the location of a redirect is no header value");
    let mut response = Response::new(Bytes::new());
    *response.status_mut() =
        StatusCode::from_u16(to.status).map_err(|_| Error::Internal("no status"))?;
    let headers = response.headers_mut();
    headers.insert(LOCATION, value(&to.location).map_err(broken)?);
    headers.insert(header::ROUTE, value(to.rule).map_err(broken)?);
    edit(headers, to.edits)?;
    Ok(response)
}

/// Sends the request, to another endpoint as long as the policy allows.
async fn attempts(
    pending: &mut Pending,
    request: Request<Incoming>,
    backend: &Arc<Backend>,
) -> Result<Response<Incoming>, Error> {
    let worker = pending.worker.clone();
    let (head, body) = request.into_parts();
    let idempotent =
        is_idempotent(head.method.as_str()) || head.headers.contains_key("idempotency-key");
    // The built-in hour is for opaque connections; a request waits as long as its client.
    let idle = backend.policy.source.as_ref().and(backend.policy.idle_timeout);
    let idle = idle.map(|idle| (idle, Moved::new()));
    let replay = Replay::new(body).watched(idle.as_ref().map(|(_, moved)| moved.clone()));
    let mut tried = Vec::new();
    backend.state.budget.request(worker.now());
    loop {
        let Some(endpoint) = pick(&worker, &pending.call, backend, &tried) else {
            return Err(Error::NoEndpoints(backend.service.clone()));
        };
        let mut in_flight = InFlight::start(&worker, endpoint, backend);
        let retries = u32::try_from(tried.len()).unwrap_or(u32::MAX);
        let begun = Instant::now();
        let request = Request::from_parts(head.clone(), replay.handle());
        let attempt = attempt(&worker, backend, endpoint, request, idle.clone()).await;
        let attempted = Attempted { retries, idempotent, replayable: replay.is_replayable() };
        let (error, failure) = match attempt {
            Ok((response, lease)) => {
                let status = response.status().as_u16();
                in_flight.outcome = if status >= 500 {
                    Outcome::Failure
                } else {
                    Outcome::Success(begun.elapsed())
                };
                let failure = Failure::Status(status);
                // The last attempt's answer goes to the client, whatever it is.
                if !may_retry(&worker, backend, failure, attempted).await {
                    pending.reason = response
                        .headers()
                        .get(header::ERROR)
                        .and_then(|value| Reason::parse(value.as_bytes()));
                    replay.settle();
                    pending.endpoint = Some(in_flight);
                    pending.lease = Some(lease);
                    let policy = &backend.policy;
                    let request = policy.request_timeout.map(|limit| pending.started + limit);
                    let attempt = policy.attempt_timeout.map(|limit| begun + limit);
                    let by = [(request, Limit::Request), (attempt, Limit::Attempt)];
                    pending.limits = Some(Limits::new(by, idle));
                    return Ok(response);
                }
                tried.push(endpoint.state.id);
                continue;
            }
            Err(error) => {
                in_flight.outcome = outcome_of(&error);
                let Some(failure) = error.failure() else { return Err(error) };
                (error, failure)
            }
        };
        drop(in_flight);
        if !may_retry(&worker, backend, failure, attempted).await {
            return Err(error);
        }
        tried.push(endpoint.state.id);
    }
}

/// One attempt at one endpoint.
async fn attempt(
    worker: &Rc<Worker>,
    backend: &Backend,
    endpoint: &Endpoint,
    request: Request<crate::http2::RequestBody>,
    idle: Option<(Duration, Moved)>,
) -> Result<(Response<Incoming>, Lease), Error> {
    let policy = &backend.policy;
    let exchange = async {
        let mut lease = worker.streams.take(worker, endpoint, policy.connect_timeout).await?;
        lease.sender.ready().await.map_err(|_| Error::NotDelivered)?;
        let response = lease.sender.send_request(request).await.map_err(failure)?;
        Ok((response, lease))
    };
    if let Some((_, moved)) = &idle {
        moved.touch();
    }
    let by = policy.head_timeout().map(|limit| Instant::now() + limit);
    let (mut response, lease) = Limits::new([(by, Limit::Attempt)], idle).wait(exchange).await?;
    let headers = response.headers_mut();
    let mesh = endpoint.identity.is_some();
    if mesh && headers.contains_key(header::NOT_DELIVERED) {
        return Err(Error::NotDelivered);
    }
    // What the inbound proxy says of itself is passed on; what an application says is not.
    let said = [header::ERROR, header::ERROR_PROXY].map(|name| (name, headers.get(name).cloned()));
    clean(headers)?;
    if mesh {
        for (name, value) in said {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
    }
    Ok((response, lease))
}
