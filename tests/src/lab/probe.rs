//! Readiness checks, made from inside the pod's network namespace.
//!
//! In a cluster the mesh has the proxy perform the checks of a meshed pod, because the kubelet's
//! dials would arrive as plaintext from the node. The lab does what the proxy would: it dials the
//! pod's own address as the proxy's uid, which the redirection rules let pass.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::unistd::{Uid, setfsuid};

use super::network;

/// A readiness probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    pub check: Check,
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub successes: u32,
    pub failures: u32,
}

/// What is asked of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    Http { port: u16, path: String, headers: Vec<(String, String)> },
    Tcp { port: u16 },
    Exec { argv: Vec<String> },
}

/// From where a check over the network is made.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub netns: String,
    pub address: IpAddr,
    /// The uid the redirection rules see.
    pub uid: u32,
}

/// The answer to an HTTP check.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub body: String,
}

/// Counts answers into the state Kubernetes would see.
#[derive(Debug)]
pub(crate) struct Threshold {
    successes: u32,
    failures: u32,
    ready: bool,
    streak: u32,
}

impl Threshold {
    pub(crate) fn new(probe: &Probe) -> Self {
        Self { successes: probe.successes, failures: probe.failures, ready: false, streak: 0 }
    }

    /// Notes one answer; `Some` when it changes the state.
    pub(crate) fn record(&mut self, success: bool) -> Option<bool> {
        if success == self.ready {
            self.streak = 0;
            return None;
        }
        self.streak += 1;
        let needed = if success { self.successes } else { self.failures };
        if self.streak < needed {
            return None;
        }
        self.streak = 0;
        self.ready = success;
        Some(success)
    }
}

/// Connects and closes.
///
/// # Errors
/// When nobody accepts.
pub(crate) async fn check_tcp(origin: Origin, port: u16, timeout: Duration) -> anyhow::Result<()> {
    inside(origin, move |address| connect(SocketAddr::new(address, port), timeout).map(drop)).await
}

/// One GET request.
///
/// # Errors
/// When there is no answer that can be read as HTTP.
pub(crate) async fn fetch_http(
    origin: Origin,
    port: u16,
    path: &str,
    headers: &[(String, String)],
    timeout: Duration,
) -> anyhow::Result<Answer> {
    let host = SocketAddr::new(origin.address, port);
    let mut head = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str(&format!("Host: {host}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    inside(origin, move |_| {
        let mut stream = connect(host, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.write_all(head.as_bytes()).context("send the request")?;
        read_answer(stream)
    })
    .await
}

fn connect(to: SocketAddr, timeout: Duration) -> anyhow::Result<TcpStream> {
    TcpStream::connect_timeout(&to, timeout).with_context(|| format!("connect to {to}"))
}

/// Reads at most this much of an answer, as the kubelet does.
const MAX_ANSWER: u64 = 10 << 10;

fn read_answer(stream: TcpStream) -> anyhow::Result<Answer> {
    let mut bytes = Vec::new();
    let end = stream.take(MAX_ANSWER).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let status = text
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|status| status.parse().ok());
    let Some(status) = status else {
        end.context("read the answer")?;
        bail!("the answer is not HTTP/1: {:?}", text.chars().take(40).collect::<String>());
    };
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim().to_owned();
    Ok(Answer { status, body })
}

/// Runs `work` where the probe comes from: its sockets are those of the namespace and of the uid.
async fn inside<T: Send + 'static>(
    origin: Origin,
    work: impl FnOnce(IpAddr) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let Origin { netns, address, uid } = origin;
    let as_uid = move || {
        setfsuid(Uid::from_raw(uid));
        work(address)
    };
    network::inside(&netns, as_uid).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_consecutive_answers() {
        let mut probe = Probe {
            check: Check::Tcp { port: 1 },
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            successes: 1,
            failures: 3,
        };
        let mut threshold = Threshold::new(&probe);
        let answers = [false, true, false, false, true, false, false, false, false];
        let changes: Vec<_> = answers.iter().map(|answer| threshold.record(*answer)).collect();
        let never = None;
        assert_eq!(
            changes,
            [never, Some(true), never, never, never, never, never, Some(false), never]
        );
        probe.successes = 2;
        let mut threshold = Threshold::new(&probe);
        assert_eq!(
            [true, false, true, true].map(|answer| threshold.record(answer)),
            [None, None, None, Some(true)]
        );
    }
}
