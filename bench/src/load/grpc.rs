//! Unary gRPC calls over HTTP/2 with prior knowledge: several connections, several calls in flight
//! on each; status, trailers and message checked.

use std::rc::Rc;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use tokio::task::{AbortHandle, spawn_local};

use super::{Tally, Target, Timing, Window, in_time, next_id};
use crate::backend::{GRPC_PREFIX, body, grpc_message, read_body};

/// `connections` times `calls` in flight.
pub(crate) async fn grpc(
    target: &Target,
    connections: u32,
    calls: u32,
    timing: Timing,
    sidecars: &[u32],
) -> anyhow::Result<Window> {
    let tally = Tally::new();
    let (mut drivers, mut workers) = (Vec::new(), Vec::new());
    for _ in 0..connections {
        let (sender, driver) = open(target).await?;
        drivers.push(driver);
        for _ in 0..calls {
            let (tally, mut sender) = (Rc::clone(&tally), sender.clone());
            workers.push(async move {
                while !tally.stopped.get() {
                    sender = in_time(call(sender)).await?;
                    tally.count();
                }
                Ok(())
            });
        }
    }
    tally.run(workers, timing, sidecars).await
}

/// Ends a connection when dropped.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn open(target: &Target) -> anyhow::Result<(SendRequest<Bytes>, Driver)> {
    let stream = target.connect().await?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .handshake::<_, Bytes>(stream)
        .await
        .context("begin HTTP/2")?;
    // Its error reaches every call that is on it.
    let task = spawn_local(async move { connection.await.ok() });
    Ok((sender, Driver(task.abort_handle())))
}

async fn call(sender: SendRequest<Bytes>) -> anyhow::Result<SendRequest<Bytes>> {
    let id = next_id();
    let request = Request::builder()
        .method(Method::POST)
        .uri("http://server.bench/bench.Bench/Call")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .context("make a request")?;
    let mut sender = sender.ready().await.context("wait for a stream")?;
    let (response, mut stream) = sender.send_request(request, false).context("send a request")?;
    stream.send_data(grpc_message(&id), true).context("send a message")?;
    let response = response.await.context("wait for an answer")?;
    ensure!(response.status() == StatusCode::OK, "an answer with {:?}", response);
    let mut received = response.into_body();
    let message = read_body(&mut received).await.context("read a message")?;
    ensure!(message.get(GRPC_PREFIX..) == Some(&body(&id)[..]), "the message of another answer");
    let trailers = received.trailers().await.context("read trailers")?.context("no trailers")?;
    let status = trailers.get("grpc-status").context("no grpc-status")?;
    ensure!(status == "0", "grpc-status {status:?}");
    Ok(sender)
}
