//! A server that breaks off: it reads a request, enters it in the ledger, and vanishes where the
//! path says. What a proxy makes of it is the tests' question.
//!
//! `/vanish/MOMENT/FRAMING/END`: MOMENT is `reading` (the request's body is not read), `before` (any
//! answer), `head` (after the answer's head), `body` (half of it), or `never` (it does not answer and
//! does not go); FRAMING is `length` or `chunked`; END is `fin` or `rst`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use aws_lc_rs::digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::http::hex;
use super::{Entry, Ledger, ServeOptions};

/// What is announced; half of it is sent.
const BODY: usize = 64 * 1024;
/// A request's head is never longer here.
const HEAD_LIMIT: usize = 16 * 1024;

/// Serves until it is killed.
pub async fn faulty(options: &ServeOptions) -> anyhow::Result<()> {
    let listener = super::bind(options.listen).await?;
    let ledger = options.ledger.as_deref().map(Ledger::open).transpose()?;
    let site = Arc::new((options.clone(), ledger));
    loop {
        let (stream, _): (_, SocketAddr) = listener.accept().await?;
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            // Whoever hangs up first, the connection has served its purpose.
            let _ = serve(stream, &site.0, site.1.as_ref()).await;
        });
    }
}

async fn serve(
    mut stream: TcpStream,
    options: &ServeOptions,
    ledger: Option<&Ledger>,
) -> anyhow::Result<()> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(position) = memchr::memmem::find(&read, b"\r\n\r\n") {
            break position + 4;
        }
        ensure!(read.len() < HEAD_LIMIT, "the head is too long");
        ensure!(stream.read_buf(&mut read).await? > 0, "the caller left");
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let line = head.lines().next().unwrap_or_default();
    let (method, rest) = line.split_once(' ').context("a request line")?;
    let path = rest.split([' ', '?']).next().unwrap_or_default();
    let mut parts = path.split('/').skip(2);
    let (moment, framing, how) = (parts.next(), parts.next(), parts.next());

    let length: usize = field(&head, "content-length").unwrap_or("0").parse()?;
    while moment != Some("reading") && read.len() - end < length {
        ensure!(stream.read_buf(&mut read).await? > 0, "the caller left");
    }
    if let Some(ledger) = ledger {
        ledger.record(&Entry {
            server: options.name.clone(),
            pod: options.pod.clone(),
            id: field(&head, "x-request-id").unwrap_or("-").to_owned(),
            method: method.to_owned(),
            body_sha256: hex(digest::digest(&digest::SHA256, &read[end..]).as_ref()),
        })?;
    }
    answer(&mut stream, moment.unwrap_or("before"), framing == Some("chunked")).await?;
    if how == Some("rst") {
        stream.set_zero_linger()?;
    }
    Ok(())
}

async fn answer(stream: &mut TcpStream, moment: &str, chunked: bool) -> std::io::Result<()> {
    if moment == "never" {
        let mut ignored = [0; 1024];
        while stream.read(&mut ignored).await? > 0 {}
        return Ok(());
    }
    if moment == "head" || moment == "body" {
        let framing = if chunked {
            "transfer-encoding: chunked".into()
        } else {
            format!("content-length: {BODY}")
        };
        stream.write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes()).await?;
    }
    if moment == "body" {
        let half = vec![b'.'; BODY / 2];
        if chunked {
            stream.write_all(format!("{:x}\r\n", half.len()).as_bytes()).await?;
        }
        stream.write_all(&half).await?;
        if chunked {
            stream.write_all(b"\r\n").await?;
        }
    }
    Ok(())
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a caller reads of the answer to `POST path` with a body of two bytes.
    async fn ask(path: &str) -> (usize, bool) {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let options = ServeOptions {
            listen: address,
            name: "bad".into(),
            pod: "bad-1".into(),
            ledger: None,
            linger_ms: 0,
        };
        let path_of = dir.path().join("ledger");
        let ledger = Ledger::open(&path_of).unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            serve(stream, &options, Some(&ledger)).await.unwrap();
        };
        let client = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let head = format!(
                "POST {path}?id=1 HTTP/1.1\r\nX-Request-Id: 7\r\nContent-Length: 2\r\n\r\nhi"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut read = Vec::new();
            let ended = stream.read_to_end(&mut read).await;
            (read.len(), ended.is_err())
        };
        let ((), seen) = tokio::join!(server, client);
        let text = std::fs::read_to_string(path_of).unwrap();
        assert_eq!(super::super::parse_ledger(&text).next().unwrap().id, "7");
        seen
    }

    #[tokio::test]
    async fn it_vanishes_where_it_was_told_to() {
        assert_eq!(ask("/vanish/before/length/fin").await, (0, false));
        assert_eq!(ask("/vanish/before/length/rst").await, (0, true));
        let (head, _) = ask("/vanish/head/length/fin").await;
        assert!((20..100).contains(&head), "{head}");
        let (half, _) = ask("/vanish/body/chunked/fin").await;
        assert!((BODY / 2..BODY / 2 + 200).contains(&half), "{half}");
    }
}
