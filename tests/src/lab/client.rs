//! Talks to a lab's node process, from another process.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::layout::Layout;
use super::protocol::{Reply, Request, Status};

/// Longer than a graceful stop takes.
const REPLY_TIMEOUT: Duration = Duration::from_secs(600);

/// Sends one command and waits for its answer.
///
/// # Errors
/// When the node process does not answer, or answers with a failure.
pub fn request(layout: &Layout, request: &Request) -> anyhow::Result<Reply> {
    let line = exchange(layout, request).with_context(|| {
        let dir = layout.dir().display();
        if layout.run().exists() {
            format!(
                "the lab of {dir} does not answer; `heddle-lab down --dir {dir}` removes what is \
                 left of it"
            )
        } else {
            format!("no lab of {dir} is up; start it with `heddle-lab up {dir}`")
        }
    })?;
    match serde_json::from_str(&line).context("the lab's node process is of another version")? {
        Reply::Failed { message } => bail!(message),
        reply @ (Reply::Status(_) | Reply::Enter(_) | Reply::Done) => Ok(reply),
    }
}

fn exchange(layout: &Layout, request: &Request) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(layout.socket())?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    writeln!(stream, "{}", serde_json::to_string(request)?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() {
        bail!("the node process ended instead of answering");
    }
    Ok(line)
}

/// How the lab is.
///
/// # Errors
/// When the node process does not answer.
pub fn status(layout: &Layout) -> anyhow::Result<Status> {
    let reply = request(layout, &Request::Status)?;
    let Reply::Status(status) = reply else { bail!("unexpected answer {reply:?}") };
    Ok(status)
}
