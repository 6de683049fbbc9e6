//! The API server's answer to a watch, line by line.
//!
//! Unlike the client's own reading of it: the status of the answer counts (an unknown group answers
//! 404 in plain text), a line has a limit, and an object that is not of its kind's form is told from
//! an answer that ends.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use kube::api::{WatchEvent, WatchParams};
use kube::client::Body;
use kube::core::Status;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::error::chain;

/// No object is larger than what etcd takes, and JSON is not much more than it.
const LINE_LIMIT: usize = 16 << 20;
/// Of an answer that is an error.
const ERROR_LIMIT: usize = 64 << 10;

/// A watch that goes on.
pub(super) struct Answer {
    body: Body,
    buffer: BytesMut,
}

/// Why there is no answer, or no more of it.
#[derive(Debug)]
pub(super) enum Error {
    /// The server says so.
    Status(Box<Status>),
    /// The connection, or what came over it.
    Failed(String),
    /// One line is not an event of this kind.
    Unreadable(serde_json::Error),
}

impl Answer {
    /// Asks, and waits for the head of the answer.
    pub(super) async fn ask<K: Resource>(
        client: &Client,
        api: &Api<K>,
        params: &WatchParams,
        version: &str,
    ) -> Result<Self, Error> {
        let request = kube::core::Request::new(api.resource_url()).watch(params, version);
        let request = request.map_err(|error| Error::Failed(chain(&error)))?.map(Body::from);
        let answer = client.send(request).await.map_err(failed)?;
        let code = answer.status();
        let mut this = Self { body: answer.into_body(), buffer: BytesMut::new() };
        if code.is_success() {
            return Ok(this);
        }
        while this.buffer.len() < ERROR_LIMIT && this.receive().await? {}
        let status = serde_json::from_slice(&this.buffer).unwrap_or_else(|_| Status {
            code: code.as_u16(),
            message: String::from_utf8_lossy(&this.buffer).trim().to_owned(),
            ..Status::default()
        });
        Err(Error::Status(Box::new(status)))
    }

    /// The next event; `None` when the server has ended. A line that is cut short is none.
    pub(super) async fn next<K: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<WatchEvent<K>>, Error> {
        loop {
            while let Some(line) = self.line() {
                if !line.trim_ascii().is_empty() {
                    return serde_json::from_slice(&line).map(Some).map_err(Error::Unreadable);
                }
            }
            if self.buffer.len() > LINE_LIMIT {
                let message = format!("a line is longer than {LINE_LIMIT} bytes");
                return Err(Error::Failed(message));
            }
            if !self.receive().await? {
                return Ok(None);
            }
        }
    }

    /// Dropped in the middle, nothing is lost: what came stays in the buffer.
    async fn receive(&mut self) -> Result<bool, Error> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame.map_err(failed)?.into_data() {
                self.buffer.extend_from_slice(&data);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn line(&mut self) -> Option<Bytes> {
        let end = memchr::memchr(b'\n', &self.buffer)?;
        Some(self.buffer.split_to(end + 1).freeze())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "fits map_err")]
fn failed(error: kube::Error) -> Error {
    Error::Failed(chain(&error))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;

    use super::*;

    fn answer(chunks: &[&str]) -> Answer {
        Answer { body: Body::from(chunks.concat().into_bytes()), buffer: BytesMut::new() }
    }

    #[tokio::test]
    async fn one_unreadable_line_does_not_hide_the_next() {
        let mut answer = answer(&[
            r#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#,
            "\n\n",
            r#"{"type":"ADDED","object":{"metadata":{"name":7}}}"#,
            "\n",
            r#"{"type":"BOOKMARK","object":{"apiVersion":"v1","kind":"Service","metadata":{"resourceVersion":"9"}}}"#,
            "\n",
            r#"{"type":"DELETED","obj"#,
        ]);
        let first = answer.next::<Service>().await.unwrap();
        assert!(matches!(first, Some(WatchEvent::Added(_))), "{first:?}");
        let second = answer.next::<Service>().await;
        assert!(matches!(second, Err(Error::Unreadable(_))), "{second:?}");
        let third = answer.next::<Service>().await.unwrap();
        assert!(matches!(third, Some(WatchEvent::Bookmark(_))), "{third:?}");
        let cut = answer.next::<Service>().await.unwrap();
        assert!(cut.is_none(), "{cut:?}");
    }
}
