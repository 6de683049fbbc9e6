//! One request: read it whole, enter it in the ledger, answer what its path asks for.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use aws_lc_rs::digest;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRAILER};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use super::answer::{self, Body};
use super::{Answer, Entry, Ledger};

const CLIENT_ID: &str = "heddle-client-id";

#[derive(Debug)]
pub(super) struct App {
    pub(super) name: String,
    pub(super) pod: String,
    pub(super) ledger: Option<Ledger>,
}

impl App {
    /// An error breaks the connection: the request's body did not arrive whole, or the ledger
    /// could not be written, and then an answer would be a lie.
    pub(super) async fn respond(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> io::Result<Response<Body>> {
        let (head, body) = request.into_parts();
        let query = Query(head.uri.query().unwrap_or(""));
        let id = match head.headers.get("x-request-id") {
            Some(value) => String::from_utf8_lossy(value.as_bytes()).into_owned(),
            None => query.find("id").unwrap_or("-").to_owned(),
        };
        let (body_bytes, body_sha256) = hash(body).await.map_err(io::Error::other)?;
        let method = head.method.to_string();
        self.enter(&id, &method, &body_sha256)?;
        let answer = Answer {
            server: self.name.clone(),
            pod: self.pod.clone(),
            id,
            method,
            path: head.uri.path().to_owned(),
            body_bytes,
            body_sha256,
            client: head.headers.get(CLIENT_ID).map(text),
            peer,
            headers: head.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect(),
        };
        let response = route(&answer, &query).await;
        Ok(if head.method == Method::HEAD { without_body(response) } else { response })
    }

    fn enter(&self, id: &str, method: &str, body_sha256: &str) -> io::Result<()> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        // Spaces would break the line apart; an id is the client's to choose.
        let id = id.replace(char::is_whitespace, "_");
        let pod = if self.pod.is_empty() { "-" } else { &self.pod };
        ledger.record(&Entry {
            server: self.name.clone(),
            pod: pod.to_owned(),
            id,
            method: method.to_owned(),
            body_sha256: body_sha256.to_owned(),
        })
    }
}

async fn route(answer: &Answer, query: &Query<'_>) -> Response<Body> {
    let length = query.number("n").unwrap_or(1000);
    let mut segments = answer.path.split('/').skip(1);
    let (first, second) = (segments.next().unwrap_or(""), segments.next().unwrap_or(""));
    match first {
        "delay" => {
            tokio::time::sleep(Duration::from_millis(query.number("ms").unwrap_or(100))).await;
            json(StatusCode::OK, answer)
        }
        "status" => match second.parse::<StatusCode>() {
            Ok(status) if !status.is_informational() => json(status, answer),
            _ => json(StatusCode::BAD_REQUEST, answer),
        },
        "bytes" => with_length(length, answer::sized(length)),
        "close" => with_length(length, answer::broken(length)),
        "chunked" => {
            let chunk = query.number("chunk").and_then(|n| n.try_into().ok()).unwrap_or(100);
            of_type("application/octet-stream", answer::chunked(length, chunk))
        }
        "stream" => {
            let interval = Duration::from_millis(query.number("interval_ms").unwrap_or(1000));
            let count = query.number("events").unwrap_or(u64::MAX);
            of_type("text/event-stream", answer::events(count, interval))
        }
        "trailers" => {
            let name = HeaderName::from_static("x-checksum");
            let value = HeaderValue::from_static("pattern");
            let length = usize::try_from(length.min(1 << 20)).expect("bounded");
            let body = answer::with_trailers(answer::pattern(length), name.clone(), value);
            let mut response = of_type("application/octet-stream", body);
            response.headers_mut().insert(TRAILER, name.into());
            response
        }
        _ => json(StatusCode::OK, answer),
    }
}

fn json(status: StatusCode, answer: &Answer) -> Response<Body> {
    let bytes = serde_json::to_vec(answer).expect("strings and numbers always serialize");
    let mut response = of_type("application/json", answer::full(bytes));
    *response.status_mut() = status;
    response
}

/// What HEAD is answered: hyper leaves the body away on HTTP/1 only.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
    *response.body_mut() = answer::full("");
    response
}

fn with_length(length: u64, body: Body) -> Response<Body> {
    let mut response = of_type("application/octet-stream", body);
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response
}

fn of_type(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

async fn hash(mut body: Incoming) -> Result<(u64, String), hyper::Error> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            context.update(data);
            length += data.len() as u64;
        }
    }
    Ok((length, hex(context.finish().as_ref())))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// The query as sent; the values this server reads need no unescaping.
struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    fn find(&self, name: &str) -> Option<&'a str> {
        let mut pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.find(name)?.parse().ok()
    }
}
