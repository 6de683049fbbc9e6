//! HTTP/1.1 with keep-alive: one request at a time per connection.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::alarm::Alarm;
use super::{Tally, Target, Timing, Window, in_time, next_id};
use crate::backend::{BODY, ID, body};

/// As fast as answers come.
pub(crate) async fn http1(
    target: &Target,
    connections: u32,
    timing: Timing,
    sidecars: &[u32],
) -> anyhow::Result<Window> {
    let tally = Tally::new();
    let mut workers = Vec::new();
    for _ in 0..connections {
        let mut connection = Connection::open(target).await?;
        let tally = Rc::clone(&tally);
        workers.push(async move {
            while !tally.stopped.get() {
                in_time(connection.exchange()).await?;
                tally.count();
            }
            Ok(())
        });
    }
    tally.run(workers, timing, sidecars).await
}

/// `rate` requests per second in all, sent when they are due whether or not the answers are late; a
/// connection that is still busy makes its next request wait, and the wait counts.
pub(crate) async fn http1_at_rate(
    target: &Target,
    connections: u32,
    rate: u32,
    timing: Timing,
    sidecars: &[u32],
) -> anyhow::Result<Window> {
    let tally = Tally::new();
    let gap = Duration::from_secs(1) / rate;
    let mut opened = Vec::new();
    for _ in 0..connections {
        opened.push((Connection::open(target).await?, Alarm::new()?));
    }
    let start = Instant::now();
    let mut workers = Vec::new();
    for (number, (mut connection, mut alarm)) in (0..connections).zip(opened) {
        let tally = Rc::clone(&tally);
        workers.push(async move {
            let mut due = start + gap * number;
            loop {
                alarm.sleep_until(due).await?;
                if tally.stopped.get() {
                    return Ok(());
                }
                in_time(connection.exchange()).await?;
                tally.record(due.elapsed());
                tally.count();
                due += gap * connections;
            }
        });
    }
    tally.run(workers, timing, sidecars).await
}

pub(super) struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    response: Vec<u8>,
}

const BEFORE_ID: &[u8] = b"GET /";
const AFTER_ID: &[u8] = b" HTTP/1.1\r\nHost: server.bench\r\nUser-Agent: heddle-bench\r\n\r\n";

impl Connection {
    pub(super) async fn open(target: &Target) -> anyhow::Result<Self> {
        let request = [BEFORE_ID, &[b'0'; ID], AFTER_ID].concat();
        Ok(Self { stream: target.connect().await?, request, response: Vec::with_capacity(8 << 10) })
    }

    /// Sends one request and checks its answer.
    pub(super) async fn exchange(&mut self) -> anyhow::Result<()> {
        let id = next_id();
        self.request[BEFORE_ID.len()..BEFORE_ID.len() + ID].copy_from_slice(&id);
        self.stream.write_all(&self.request).await.context("send a request")?;
        self.response.clear();
        loop {
            if self.stream.read_buf(&mut self.response).await.context("read an answer")? == 0 {
                bail!("the connection was closed before the answer was complete");
            }
            if is_answer(&self.response, &id)? {
                return Ok(());
            }
        }
    }
}

/// Whether `response` is the whole answer to the request `id`; false while some is missing.
fn is_answer(response: &[u8], id: &[u8; ID]) -> anyhow::Result<bool> {
    let Some(end) = memmem::find(response, b"\r\n\r\n") else { return Ok(false) };
    let (head, rest) = response.split_at(end);
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let status = lines.next().unwrap_or_default();
    ensure!(status.starts_with(b"HTTP/1.1 200"), "an answer begins {}", printable(head));
    let (mut length, mut header_id) = (None, None);
    for line in lines {
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            length = std::str::from_utf8(value).ok().and_then(|value| value.parse::<usize>().ok());
        } else if name.eq_ignore_ascii_case(b"x-id") {
            header_id = Some(value);
        }
    }
    ensure!(header_id == Some(id), "an answer to another request: {}", printable(head));
    ensure!(length == Some(BODY), "an answer of another length: {}", printable(head));
    let found = &rest[4..];
    ensure!(found.len() <= BODY, "{} bytes too many", found.len() - BODY.min(found.len()));
    if found.len() < BODY {
        return Ok(false);
    }
    ensure!(found == body(id), "the body of another answer");
    Ok(true)
}

fn printable(head: &[u8]) -> String {
    head[..head.len().min(400)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID_A: &[u8; ID] = b"000000000000000a";
    const ID_B: &[u8; ID] = b"000000000000000b";

    fn answer(status: &str, header_id: &[u8], length: usize, body: &[u8]) -> Vec<u8> {
        let header_id = String::from_utf8_lossy(header_id);
        let head = format!("{status}\r\nX-Id: {header_id}\r\nContent-Length: {length}\r\n\r\n");
        [head.as_bytes(), body].concat()
    }

    #[test]
    fn only_the_whole_answer_to_this_request_counts() {
        let good = answer("HTTP/1.1 200 OK", ID_A, BODY, &body(ID_A));
        assert!(is_answer(&good, ID_A).unwrap());
        for part in [0, 5, 40, good.len() - 1] {
            assert!(!is_answer(&good[..part], ID_A).unwrap(), "{part}");
        }
        let mut damaged = body(ID_A);
        damaged[BODY - 1] = b'x';
        for wrong in [
            answer("HTTP/1.1 503 Service Unavailable", ID_A, BODY, &body(ID_A)),
            answer("HTTP/1.1 200 OK", ID_B, BODY, &body(ID_A)),
            answer("HTTP/1.1 200 OK", ID_A, BODY - 1, &body(ID_A)[1..]),
            answer("HTTP/1.1 200 OK", ID_A, BODY, &body(ID_B)),
            answer("HTTP/1.1 200 OK", ID_A, BODY, &damaged),
            [good, b"x".to_vec()].concat(),
        ] {
            assert!(is_answer(&wrong, ID_A).is_err(), "{}", wrong.escape_ascii());
        }
    }
}
