//! HTTP/2 and gRPC to the application: per request authorize → send → record once.

use std::rc::Rc;
use std::sync::Arc;

use heddle_api::names::header;
use heddle_policy::authorize::Request as Judged;
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::{Call, DIAL_TIMEOUT, check, receive};
use crate::error::{Error, Reason};
use crate::http2::{
    self, PLAINTEXT_STREAMS, Replay, ResponseBody, ResponseEnd, STREAMS, Sender, answer, clean,
    failure, is_grpc, prepare,
};
use crate::metrics::{Direction, RequestSeries};
use crate::pool;
use crate::stream::{Conn, Stream};
use crate::telemetry::{self, RequestRecord};
use crate::worker::Worker;

/// What all streams of one connection share.
struct Shared {
    worker: Rc<Worker>,
    call: Call,
    series: Arc<RequestSeries>,
    client_id: Option<HeaderValue>,
    /// The application's connection stays with the caller's. Held while it is being made, so that a
    /// burst of streams makes one.
    app: Mutex<Option<Sender>>,
}

/// Serves streams until the connection ends.
pub(super) async fn serve(down: Conn, worker: &Rc<Worker>, call: &Call) {
    let id = call.source.as_ref().map(ToString::to_string);
    let shared = Rc::new(Shared {
        worker: worker.clone(),
        call: Call { peer: call.peer, local: call.local, source: call.source.clone() },
        series: worker.shared.metrics.inbound(call.source.as_ref()),
        client_id: id.and_then(|id| HeaderValue::try_from(id).ok()),
        app: Mutex::new(None),
    });
    let streams = if call.source.is_some() { STREAMS } else { PLAINTEXT_STREAMS };
    let respond = move |request| respond(shared.clone(), request);
    http2::serve(down, worker, Direction::Inbound, streams, respond).await;
}

/// What the record of a request needs, whenever the response ends.
struct Pending {
    shared: Rc<Shared>,
    method: Method,
    path: Box<str>,
    status: u16,
    reason: Option<Reason>,
    started: Instant,
}

impl Pending {
    fn record(self, end: &ResponseEnd) {
        let Shared { worker, call, series, .. } = &*self.shared;
        telemetry::inbound_request(
            worker,
            series,
            &RequestRecord {
                method: self.method.as_str(),
                path: &self.path,
                peer: call.peer,
                endpoint: None,
                source: call.source.as_ref(),
                status: self.status,
                grpc_status: end.grpc_status,
                reason: self.reason.or(end.reason),
                duration: self.started.elapsed(),
            },
        );
    }

    fn into_closure(self: Box<Self>) -> impl FnOnce(ResponseEnd) + Unpin {
        move |end| self.record(&end)
    }
}

async fn respond(
    shared: Rc<Shared>,
    request: Request<Incoming>,
) -> Response<ResponseBody<impl FnOnce(ResponseEnd) + Unpin>> {
    let grpc = is_grpc(request.headers());
    let mut pending = Box::new(Pending {
        shared: shared.clone(),
        method: request.method().clone(),
        path: request.uri().path().into(),
        status: 0,
        reason: None,
        started: Instant::now(),
    });
    match send(&shared, request).await {
        Ok(response) => {
            pending.status = response.status().as_u16();
            let (head, body) = response.into_parts();
            let body = ResponseBody::upstream(body, &head.headers, pending.into_closure());
            Response::from_parts(head, body)
        }
        Err(error) => {
            // Proof is given over mesh TLS only; a plaintext caller could not tell who wrote it.
            let undelivered = shared.call.source.is_some()
                && matches!(
                    error.reason(),
                    Reason::ConnectFailed | Reason::ConnectTimeout | Reason::NotDelivered
                );
            let response = answer(&error, Direction::Inbound, grpc, undelivered);
            pending.status = response.status().as_u16();
            pending.reason = Some(error.reason());
            let (head, body) = response.into_parts();
            let body = ResponseBody::local(body, &head.headers, pending.into_closure());
            Response::from_parts(head, body)
        }
    }
}

async fn send(
    shared: &Shared,
    mut request: Request<Incoming>,
) -> Result<Response<Incoming>, Error> {
    if request.method() == Method::CONNECT {
        return Err(Error::UpgradeRefused("CONNECT over HTTP/2"));
    }
    prepare(&mut request)?;
    // One view per request: a long connection follows every change of policy.
    let judged = Judged { method: request.method().as_str(), path: request.uri().path() };
    let policy = receive(&shared.worker, &shared.call)?;
    check(policy.authorize_request(shared.call.caller(), judged))?;
    if let Some(id) = &shared.client_id {
        request.headers_mut().insert(header::CLIENT_ID, id.clone());
    }
    let mut sender = connect(shared).await?;
    sender.ready().await.map_err(|_| Error::NotDelivered)?;
    let request = request.map(|body| {
        let body = Replay::new(body);
        body.settle();
        body.handle()
    });
    let mut response = sender.send_request(request).await.map_err(failure)?;
    clean(response.headers_mut())?;
    Ok(response)
}

/// The application's connection, made when there is none or it has ended.
async fn connect(shared: &Shared) -> Result<Sender, Error> {
    // A burst behind an application that does not accept fails as one, not one after the other.
    let local = shared.call.local;
    let app = timeout(DIAL_TIMEOUT, shared.app.lock()).await;
    let mut app = app.map_err(|_| Error::ConnectTimeout(local))?;
    if let Some(sender) = &*app
        && !sender.is_closed()
    {
        return Ok(sender.clone());
    }
    let tcp = pool::dial(local, DIAL_TIMEOUT).await?;
    let sender = http2::connect(Conn::new(Stream::Tcp(tcp))).await?;
    Ok(app.insert(sender).clone())
}
