//! One HTTP/1.1 connection of the client: open it, send on it, learn that it is gone.

use std::str::FromStr;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Where requests go: a plain `http://` URL, taken apart once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub host: String,
    pub port: u16,
    /// Path and query, beginning with a slash.
    pub path: String,
}

impl Target {
    /// The `Host` header. Port 80 goes unsaid, as browsers do.
    pub fn authority(&self) -> String {
        if self.port == 80 { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let uri: Uri = text.parse().with_context(|| format!("`{text}` is not a URL"))?;
        if uri.scheme() != Some(&Scheme::HTTP) {
            bail!("`{text}` does not begin with http://; this client speaks nothing else");
        }
        let host = uri.host().with_context(|| format!("`{text}` names no host"))?.to_owned();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(80), path })
    }
}

#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub async fn open(target: &Target) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((target.bare_host(), target.port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Its error also reaches the request that was on it.
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// False once the peer has closed it between requests, as it may at any time.
    pub async fn is_usable(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    pub async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<Incoming>> {
        self.sender.send_request(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let cases = [
            ("http://web/", Some(("web", 80, "/", "web"))),
            ("http://web", Some(("web", 80, "/", "web"))),
            ("http://web.shop:8080/a?b=c", Some(("web.shop", 8080, "/a?b=c", "web.shop:8080"))),
            ("http://[fd00::1]:80/", Some(("[fd00::1]", 80, "/", "[fd00::1]"))),
            ("https://web/", None),
            ("web:80", None),
            ("/path", None),
        ];
        for (text, expected) in cases {
            let parsed = Target::from_str(text).ok();
            let found = parsed.as_ref().map(|t| {
                let authority = t.authority();
                (t.host.as_str(), t.port, t.path.as_str(), authority)
            });
            let expected = expected.map(|(h, p, path, a)| (h, p, path, a.to_owned()));
            assert_eq!(found, expected, "{text}");
        }
    }
}
