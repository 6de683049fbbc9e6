//! The run: workers that each own a connection, take the next request when it is due, send it
//! once and record it.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufWriter, LineWriter, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use aws_lc_rs::digest;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::record::Gathering;
use super::{BUCKET_MS, Bucket, Connection, Options, Outcome, Record};

/// Counts of a whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub requests: u64,
    pub failed: u64,
}

/// Runs to the end of the options' duration, or of standard input. `watch` sees every bucket.
pub async fn run(
    options: Options,
    watch: impl FnMut(&Bucket) -> io::Result<()>,
) -> anyhow::Result<Summary> {
    let records = options.records.as_deref().map(open_records);
    let load = Rc::new(Load::new(options, records.transpose()?));
    let local = LocalSet::new();
    for _ in 0..load.options.connections {
        let load = Rc::clone(&load);
        local.spawn_local(async move { load.work().await });
    }
    local.run_until(load.oversee(watch)).await?;
    // Workers stop at the next request; the ones on the way are waited for.
    local.await;
    if let Some(out) = &mut *load.out.borrow_mut() {
        out.flush()?;
    }
    Ok(load.summary.get())
}

/// What the workers share. One thread: cells, no locks.
struct Load {
    options: Options,
    /// Random part of every id, so that two runs never share one.
    run: u128,
    started: Instant,
    next: Cell<u64>,
    stopped: Cell<bool>,
    in_flight: Cell<u64>,
    summary: Cell<Summary>,
    gathering: RefCell<Gathering>,
    out: RefCell<Option<Box<dyn Write>>>,
}

fn open_records(path: &Path) -> anyhow::Result<Box<dyn Write>> {
    if path == Path::new("-") {
        // Line by line, so that every line of a container's log is one of somebody's.
        return Ok(Box::new(LineWriter::new(io::stdout())));
    }
    let file = File::create(path);
    let file = file.with_context(|| format!("cannot write records to {}", path.display()))?;
    Ok(Box::new(BufWriter::new(file)))
}

impl Load {
    fn new(options: Options, out: Option<Box<dyn Write>>) -> Self {
        Self {
            options,
            run: rand::random(),
            started: Instant::now(),
            next: Cell::new(0),
            stopped: Cell::new(false),
            in_flight: Cell::new(0),
            summary: Cell::default(),
            gathering: RefCell::new(Gathering::new()),
            out: RefCell::new(out),
        }
    }

    async fn oversee(
        &self,
        mut watch: impl FnMut(&Bucket) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(Duration::from_millis(BUCKET_MS));
        ticks.tick().await;
        let mut end = std::pin::pin!(self.end());
        let mut ended = false;
        while !(ended && self.in_flight.get() == 0) {
            tokio::select! {
                _ = &mut end, if !ended => {
                    ended = true;
                    self.stopped.set(true);
                    continue;
                }
                _ = ticks.tick() => {}
            }
            let bucket = self.gathering.borrow_mut().take(now_us(), self.in_flight.get());
            watch(&bucket)?;
        }
        Ok(watch(&self.gathering.borrow_mut().take(now_us(), 0))?)
    }

    async fn end(&self) {
        if self.options.duration_ms > 0 {
            sleep_until(self.started + Duration::from_millis(self.options.duration_ms)).await;
            return;
        }
        let mut ignored = [0; 64];
        let mut stdin = tokio::io::stdin();
        // An error ends it like the end of input does: whoever held the other side is gone.
        while stdin.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
    }

    async fn work(&self) {
        let mut connection = None;
        loop {
            let number = self.next.get();
            self.next.set(number + 1);
            let due = self.wait_until_due(number).await;
            if self.stopped.get() {
                return;
            }
            self.in_flight.set(self.in_flight.get() + 1);
            let request = Planned::new(self, number);
            let started_us = now_us() - u64::try_from(due.elapsed().as_micros()).unwrap_or(0);
            let outcome = self.exchange(&mut connection, &request).await;
            self.in_flight.set(self.in_flight.get() - 1);
            let (id, method) = (request.id, request.method.to_string());
            self.keep(&Record { id, method, started_us, ended_us: now_us(), outcome });
        }
    }

    /// Returns the instant the request counts from: when it was due, if nobody was free to send
    /// it then; else when the timer woke us, whose slack of a millisecond is not the server's.
    async fn wait_until_due(&self, number: u64) -> Instant {
        let rate = u64::from(self.options.rate);
        let Some(offset_us) = (number * 1_000_000).checked_div(rate) else {
            return Instant::now();
        };
        let due = self.started + Duration::from_micros(offset_us);
        if due <= Instant::now() {
            return due;
        }
        sleep_until(due).await;
        Instant::now()
    }

    async fn exchange(&self, connection: &mut Option<Connection>, planned: &Planned) -> Outcome {
        let limit = Duration::from_millis(self.options.timeout_ms);
        match timeout(limit, self.exchange_once(connection, planned)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err((stage, error))) => {
                *connection = None;
                Outcome::Broken { stage, cause: format!("{error:#}") }
            }
            Err(_) => {
                *connection = None;
                Outcome::Broken { stage: "timeout", cause: String::new() }
            }
        }
    }

    async fn exchange_once(
        &self,
        slot: &mut Option<Connection>,
        planned: &Planned,
    ) -> Result<Outcome, (&'static str, anyhow::Error)> {
        if let Some(connection) = slot
            && !connection.is_usable().await
        {
            *slot = None;
        }
        let connection = match slot {
            Some(connection) => connection,
            None => {
                let opened = Connection::open(&self.options.url).await;
                slot.insert(opened.map_err(|error| ("connect", error))?)
            }
        };
        let request = planned.request(&self.options).map_err(|error| ("send", error.into()))?;
        let response = connection.send(request).await.map_err(|error| ("send", error.into()))?;
        planned.judge(response).await.map_err(|error| ("body", error.into()))
    }

    fn keep(&self, record: &Record) {
        let mut summary = self.summary.get();
        summary.requests += 1;
        summary.failed += u64::from(!record.outcome.is_ok());
        self.summary.set(summary);
        self.gathering.borrow_mut().add(record);
        if let Some(out) = &mut *self.out.borrow_mut() {
            // A full disk shows as missing records, which every reader of them checks.
            let _ = record.write_to(out);
        }
    }
}

/// A request before it is sent, and what its answer must repeat.
struct Planned {
    id: String,
    method: Method,
    body: Bytes,
}

impl Planned {
    fn new(load: &Load, number: u64) -> Self {
        // Spread evenly rather than drawn: 50 % is every other request.
        let percent = u64::from(load.options.post_percent);
        let is_post = (number * percent) / 100 != ((number + 1) * percent) / 100;
        let method = if is_post { Method::POST } else { Method::GET };
        let id = format_id(load.run, number);
        let body = if is_post { body_for(&load.options, &id) } else { Bytes::new() };
        Self { id, method, body }
    }

    fn request(&self, options: &Options) -> http::Result<Request<Full<Bytes>>> {
        let path = &options.url.path;
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut request = Request::builder()
            .method(&self.method)
            .uri(format!("{path}{separator}id={}", self.id))
            .header(http::header::HOST, options.url.authority())
            .header("x-request-id", &self.id);
        if !options.marker.is_empty() {
            request = request.header("x-marker", &options.marker);
        }
        request.body(Full::new(self.body.clone()))
    }

    async fn judge(&self, response: Response<Incoming>) -> hyper::Result<Outcome> {
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        if head.status != StatusCode::OK {
            let reason = head.headers.get(heddle_error());
            let reason = reason.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            let reason = reason.unwrap_or_default();
            return Ok(Outcome::Status { status: head.status.as_u16(), reason });
        }
        let Ok(seen) = serde_json::from_slice::<Seen>(&body) else {
            return Ok(Outcome::Wrong { what: "not json" });
        };
        if seen.id != self.id {
            return Ok(Outcome::Wrong { what: "id" });
        }
        let sent = digest::digest(&digest::SHA256, &self.body);
        if seen.body_sha256 != crate::app::hex(sent.as_ref()) {
            return Ok(Outcome::Wrong { what: "body hash" });
        }
        Ok(Outcome::Ok { server: seen.server, pod: seen.pod })
    }
}

/// The part of [`crate::app::Answer`] that is checked; the rest is not even copied.
#[derive(Deserialize)]
struct Seen {
    server: String,
    pod: String,
    id: String,
    body_sha256: String,
}

/// A body no other request has, so that an answer to another request cannot pass for ours.
fn body_for(options: &Options, id: &str) -> Bytes {
    let unit = format!("{id} {} ", options.marker);
    unit.bytes().cycle().take(options.body_bytes).collect()
}

fn format_id(run: u128, number: u64) -> String {
    let run = format!("{run:032x}");
    let (a, b, c, d) = (&run[..8], &run[8..12], &run[13..16], &run[17..20]);
    format!("{a}-{b}-4{c}-8{d}-{number:012x}")
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(since.as_micros()).expect("the clock is before the year 500000")
}

const fn heddle_error() -> &'static str {
    heddle_api::names::header::ERROR
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::app::{ServeOptions, Server, parse_ledger};

    #[test]
    fn ids_are_uuids_and_differ() {
        let id = format_id(u128::MAX, 255);
        assert_eq!(id, "ffffffff-ffff-4fff-8fff-0000000000ff");
        let ids: HashSet<_> = (0..100).map(|number| format_id(7, number)).collect();
        assert_eq!(ids.len(), 100);
    }

    fn options(url: &str) -> Options {
        Options {
            url: url.parse().unwrap(),
            rate: 500,
            connections: 4,
            duration_ms: 400,
            post_percent: 30,
            body_bytes: 100,
            timeout_ms: 2_000,
            marker: "m".into(),
            records: None,
        }
    }

    #[tokio::test]
    async fn every_request_is_recorded_once_on_both_sides() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, records) = (dir.path().join("ledger"), dir.path().join("records"));
        let served = ServeOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            name: "v1".into(),
            pod: "v1-a".into(),
            ledger: Some(ledger.clone()),
            linger_ms: 0,
        };
        let server = Server::bind(&served).await.unwrap();
        let url = format!("http://{}/", server.local_addr().unwrap());
        let serving = tokio::spawn(server.run());
        let mut buckets = Vec::new();
        let options = Options { records: Some(records.clone()), ..options(&url) };
        let summary = run(options, |bucket| {
            buckets.push(bucket.clone());
            Ok(())
        });
        let summary = summary.await.unwrap();
        serving.abort();

        let counted: u64 = buckets.iter().flat_map(|bucket| bucket.ok.values()).sum();
        assert_eq!((summary.failed, summary.requests), (0, counted));
        assert!((150..=200).contains(&counted), "{counted} requests in 400 ms at 500/s");
        let text = std::fs::read_to_string(records).unwrap();
        let records = super::super::parse_records(&text).unwrap();
        let sent: HashSet<_> = records.iter().map(|record| record.id.clone()).collect();
        assert_eq!(sent.len() as u64, summary.requests);
        let posts = records.iter().filter(|record| record.method == "POST").count();
        assert!(posts * 100 / records.len() >= 25, "{posts} posts of {}", records.len());
        let text = std::fs::read_to_string(ledger).unwrap();
        let entered: Vec<_> = parse_ledger(&text).map(|entry| entry.id).collect();
        assert_eq!(entered.len(), sent.len());
        assert_eq!(entered.into_iter().collect::<HashSet<_>>(), sent);
    }

    #[tokio::test]
    async fn failures_are_recorded_and_not_retried() {
        // Bound and dropped: nobody listens there now.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut kinds = HashSet::new();
        let options = Options { duration_ms: 200, ..options(&format!("http://{gone}/")) };
        let summary = run(options, |bucket| {
            kinds.extend(bucket.failed.keys().cloned());
            Ok(())
        });
        let summary = summary.await.unwrap();
        assert!(summary.requests > 0 && summary.failed == summary.requests, "{summary:?}");
        assert_eq!(kinds, HashSet::from(["broken:connect".to_owned()]));
    }
}
