//! The control socket: drain, dump and the other verbs, for the proxy's own uid and root only.
//!
//! One line in, an answer out, end. The answer's first line is `ok` or `error: …`. A Unix socket
//! and not TCP, so that nothing on the network, and no request forged through the application, can
//! give an order.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use heddle_runtime::admin::Readiness;
use heddle_runtime::drain;
use heddle_runtime::telemetry::LevelHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::identity;
use crate::worker::Shared;

mod dump;

const MAX_CONNECTIONS: usize = 16;
const MAX_LINE: u64 = 512;
const LINE_TIMEOUT: Duration = Duration::from_secs(5);
const RENEW_TIMEOUT: Duration = Duration::from_secs(15);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the verbs act on.
pub struct Control {
    /// Data path's parts.
    pub shared: Arc<Shared>,
    /// Renews.
    pub identity: identity::Handle,
    /// Starts a drain.
    pub signal: drain::Signal,
    /// Says what is missing.
    pub ready: watch::Receiver<Readiness>,
    /// Changes what is logged; `None` where logging is somebody else's.
    pub level: Option<LevelHandle>,
}

/// What may be asked.
#[derive(Debug, PartialEq, Eq)]
enum Verb {
    Drain,
    Dump,
    LogLevel(String),
    Ready,
    Renew,
}

impl Verb {
    fn parse(line: &str) -> Result<Self, String> {
        let (verb, argument) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        match (verb, argument) {
            ("drain", "") => Ok(Self::Drain),
            ("dump", "") => Ok(Self::Dump),
            ("ready", "") => Ok(Self::Ready),
            ("renew", "") => Ok(Self::Renew),
            ("log-level", level) if !level.is_empty() => Ok(Self::LogLevel(level.to_owned())),
            _ => Err("write drain, dump, log-level LEVEL, ready or renew".to_owned()),
        }
    }
}

/// Opens the socket. Whoever holds the process's lock may replace what an older process left.
///
/// # Errors
/// The path cannot be used.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the drain's abort: `dump` must work while the proxy drains.
pub async fn run(listener: UnixListener, control: Arc<Control>) {
    let drain = control.shared.drain.clone();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accept = async {
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) if is_allowed(&stream) => {
                    let control = Arc::clone(&control);
                    tokio::spawn(async move {
                        let aborted = control.shared.drain.clone();
                        tokio::select! {
                            () = serve(stream, &control) => {}
                            () = aborted.aborted() => {}
                        }
                        drop(slot);
                    });
                }
                Ok(_) => tracing::warn!("control socket refused a peer of another uid"),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = drain.aborted() => {}
    }
}

fn is_allowed(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    // No credentials, no service.
    stream.peer_cred().is_ok_and(|peer| may_control(peer.uid(), own))
}

/// The application's uid gets nothing.
const fn may_control(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

async fn serve(mut stream: UnixStream, control: &Control) {
    let answer = match timeout(LINE_TIMEOUT, read_line(&mut stream)).await {
        Ok(Ok(line)) => match Verb::parse(&line) {
            Ok(verb) => obey(verb, control).await,
            Err(instead) => Err(instead),
        },
        Ok(Err(_)) | Err(_) => return,
    };
    let text = match answer {
        Ok(body) => format!("ok\n{body}"),
        Err(error) => format!("error: {error}\n"),
    };
    // Who asked may have gone: what was ordered happens all the same.
    let _ = timeout(LINE_TIMEOUT, stream.write_all(text.as_bytes())).await;
}

async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut limited = stream.take(MAX_LINE);
    while !line.contains(&b'\n') {
        if limited.read_buf(&mut line).await? == 0 {
            break;
        }
    }
    let end = line.iter().position(|byte| *byte == b'\n').unwrap_or(line.len());
    line.truncate(end);
    String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into())
}

async fn obey(verb: Verb, control: &Control) -> Result<String, String> {
    match verb {
        Verb::Drain => Ok(wait_until_drained(control).await),
        Verb::Dump => Ok(dump::dump(control)),
        Verb::LogLevel(level) => set_level(control, &level),
        Verb::Ready => ready(control),
        Verb::Renew => renew(control).await,
    }
}

/// Starts the drain, then waits for the last connection or the drain's timeout.
async fn wait_until_drained(control: &Control) -> String {
    control.signal.start();
    let connections = &control.shared.connections;
    // What is left at the timeout is told below.
    let _ = timeout(control.shared.config.drain_timeout, connections.none_left()).await;
    match connections.open() {
        0 => "drained: no connection is left\n".to_owned(),
        left => format!("draining: {left} connections are left after the drain timeout\n"),
    }
}

fn set_level(control: &Control, level: &str) -> Result<String, String> {
    let handle = control.level.as_ref().ok_or("logging is not this process's to change")?;
    handle.set(level).map_err(|error| error.to_string())?;
    tracing::info!(level, "log level changed");
    Ok(format!("{}\n", handle.current()))
}

fn ready(control: &Control) -> Result<String, String> {
    let readiness = control.ready.borrow().clone();
    if readiness.is_ready() {
        return Ok("ready\n".to_owned());
    }
    let mut missing = String::from("not ready");
    for (part, reason) in readiness.blockers() {
        let _ = write!(missing, "; {part}: {reason}");
    }
    Err(missing)
}

/// Orders a new certificate and waits until it is in use.
async fn renew(control: &Control) -> Result<String, String> {
    let mut credentials = control.identity.credentials();
    let serial = |credentials: &watch::Receiver<Option<Arc<crate::tls::Credentials>>>| {
        credentials.borrow().as_ref().map(|own| own.serial().to_string())
    };
    let before = serial(&credentials);
    let mut failures = control.identity.failures();
    failures.mark_unchanged();
    control.identity.renew();
    let renewed = credentials
        .wait_for(|own| own.as_ref().is_some_and(|own| Some(own.serial().to_string()) != before));
    // Only a failure after the order counts, not the one that may have led to it.
    let failed = async {
        while failures.changed().await.is_ok() && failures.borrow_and_update().is_none() {}
    };
    let outcome = timeout(RENEW_TIMEOUT, async {
        tokio::select! {
            renewed = renewed => renewed.is_ok(),
            () = failed => false,
        }
    });
    if !outcome.await.unwrap_or(false) {
        let failure = control.identity.last_failure();
        return Err(failure.map_or_else(|| "no answer yet".to_owned(), |text| text.to_string()));
    }
    Ok(format!("{}\n", serial(&credentials).unwrap_or_default()))
}

/// Why a subcommand got no answer from the running proxy.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there, or somebody else's socket.
    #[error("no proxy can be asked at {}", .0.display())]
    Socket(PathBuf, #[source] io::Error),
    /// The proxy did not answer in time.
    #[error("the proxy did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The proxy said no.
    #[error("{0}")]
    Refused(String),
}

/// Asks the proxy behind `socket`: one line, one answer.
///
/// # Errors
/// It cannot be reached, does not answer within `patience`, or says no.
pub async fn ask(socket: &Path, line: &str, patience: Duration) -> Result<String, AskError> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = timeout(patience, exchange).await.map_err(|_| AskError::Timeout(patience))?;
    let answer = answer.map_err(|error| AskError::Socket(socket.to_owned(), error))?;
    match answer.split_once('\n') {
        Some(("ok", body)) => Ok(body.to_owned()),
        Some((error, _)) => {
            Err(AskError::Refused(error.strip_prefix("error: ").unwrap_or(error).to_owned()))
        }
        None => Err(AskError::Refused("the proxy closed the connection".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_uid_and_root_may_control() {
        for (peer, own, allowed) in
            [(2715, 2715, true), (0, 2715, true), (1000, 2715, false), (1000, 0, false)]
        {
            assert_eq!(may_control(peer, own), allowed, "{peer} {own}");
        }
    }

    #[test]
    fn verbs_are_exact() {
        for (line, want) in [
            ("drain", Ok(Verb::Drain)),
            ("dump\r", Ok(Verb::Dump)),
            ("ready", Ok(Verb::Ready)),
            ("renew", Ok(Verb::Renew)),
            ("log-level debug,h2=warn", Ok(Verb::LogLevel("debug,h2=warn".into()))),
            ("log-level", Err(())),
            ("drain now", Err(())),
            ("shutdown", Err(())),
            ("", Err(())),
        ] {
            assert_eq!(Verb::parse(line).map_err(drop), want, "{line}");
        }
    }

    #[tokio::test]
    async fn the_socket_is_ours_alone_and_replaces_a_stale_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(bind(&path).unwrap());
        let listener = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(is_allowed(&stream));
            let line = read_line(&mut stream).await.unwrap();
            stream.write_all(format!("error: what is {line:?}\n").as_bytes()).await.unwrap();
        };
        let (asked, ()) = tokio::join!(ask(&path, "x", LINE_TIMEOUT), answer);
        assert_eq!(asked.unwrap_err().to_string(), "what is \"x\"");
    }

    #[tokio::test]
    async fn asking_nobody_says_where() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.sock");
        let error = ask(&path, "ready", LINE_TIMEOUT).await.unwrap_err();
        assert!(error.to_string().ends_with("none.sock"), "{error}");
    }
}
