//! Verbs that change something, on a socket in the state directory that only this user and root may
//! use: never on a port. One line asks, the answer ends with the connection.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_runtime::telemetry::LevelHandle;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::admin::Dumps;
use crate::config::Verb;
use crate::error::{Error, chain};
use crate::version::Counter;

const LINE_LIMIT: u64 = 4 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Of the answer to a verb that was not done.
const FAILED: &str = "error: ";

/// What the verbs act on.
#[derive(Debug, Clone)]
pub struct Control {
    pub dumps: Dumps,
    pub versions: Counter,
    /// `None` when somebody else set up logging.
    pub level: Option<LevelHandle>,
}

/// Where the socket of a state directory is.
#[must_use]
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

/// Makes the socket, readable by its owner alone before it has its name.
///
/// # Errors
/// When the path cannot be used, for instance because it is too long for a socket.
pub fn bind(state_dir: &Path) -> Result<UnixListener, Error> {
    let path = socket_path(state_dir);
    let staged = state_dir.join(".control.new");
    let bound = || {
        // Left by a crash: the state directory's lock says that nobody else is here.
        remove_if_there(&staged)?;
        let listener = UnixListener::bind(&staged)?;
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o600))?;
        fs::rename(&staged, &path)?;
        Ok(listener)
    };
    bound().map_err(Error::file("make the socket", &path))
}

/// Serves until `stop` resolves.
pub async fn serve(listener: UnixListener, control: Control, stop: impl Future<Output = ()>) {
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => return,
        };
        match accepted {
            // One at a time: verbs are rare, and their order is the callers'.
            Ok((stream, _)) => {
                let answered = tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, &control));
                match answered.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "control connection failed"),
                    Err(_) => tracing::debug!("control connection timed out"),
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a control connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, control: &Control) -> io::Result<()> {
    let caller = stream.peer_cred()?.uid();
    let (reader, mut writer) = stream.into_split();
    if caller != 0 && caller != own_uid()? {
        return writer.write_all(format!("{FAILED}not for uid {caller}\n").as_bytes()).await;
    }
    let mut line = String::new();
    BufReader::new(reader.take(LINE_LIMIT)).read_line(&mut line).await?;
    let line = line.trim_end();
    let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
    let answer =
        control.apply(verb, argument).unwrap_or_else(|problem| format!("{FAILED}{problem}"));
    tracing::info!(verb, argument, uid = caller, "control verb");
    writer.write_all(answer.as_bytes()).await?;
    writer.write_all(b"\n").await?;
    writer.shutdown().await
}

impl Control {
    fn apply(&self, verb: &str, argument: &str) -> Result<String, String> {
        match (verb, argument) {
            ("renew", "") => Ok(format!("{} ordered", self.dumps.fleet.renew(None))),
            ("renew", pod) => match self.dumps.fleet.renew(Some(pod)) {
                0 => Err(format!("no proxy of pod \"{pod}\" is connected")),
                ordered => Ok(format!("{ordered} ordered")),
            },
            ("dump", "catalog") => Ok(format!("{:#}", self.dumps.catalog())),
            ("dump", "subscribers") => Ok(format!("{:#}", self.dumps.subscribers())),
            ("raise-epoch", "") => {
                let version = self.versions.raise_epoch().map_err(|error| chain(&error))?;
                Ok(format!("epoch {}", version.epoch))
            }
            ("log-level", filter) => {
                let level = self.level.as_ref().ok_or("logging is not this process's own")?;
                level.set(filter).map_err(|error| chain(&error))?;
                Ok(format!("log level {filter}"))
            }
            _ => Err(format!("unknown verb \"{verb}\"")),
        }
    }
}

/// Asks the control plane that runs on `state_dir`.
///
/// # Errors
/// When none runs there, or it did not do what was asked; the message is its own.
pub async fn call(state_dir: &Path, verb: &Verb) -> anyhow::Result<String> {
    use anyhow::Context as _;
    let path = socket_path(state_dir);
    let stream = UnixStream::connect(&path).await;
    let mut stream = stream.with_context(|| {
        format!("no control plane answers at {}; is it running?", path.display())
    })?;
    stream.write_all(request(verb).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    match answer.strip_prefix(FAILED) {
        Some(problem) => anyhow::bail!("{}", problem.trim_end()),
        None => Ok(answer),
    }
}

fn request(verb: &Verb) -> String {
    match verb {
        Verb::Renew { pod: None } => "renew\n".to_owned(),
        Verb::Renew { pod: Some(pod) } => format!("renew {pod}\n"),
        Verb::Dump { what } => format!("dump {what}\n"),
        Verb::RaiseEpoch => "raise-epoch\n".to_owned(),
        Verb::LogLevel { filter } => format!("log-level {filter}\n"),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn own_uid() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
}
