//! The gRPC server that proxies talk to: discovery streams and certificates, on one port, over TLS.
//! The rules of the protocol are in docs/discovery.md.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1::discovery_server::{Discovery, DiscoveryServer};
use heddle_api::proto::v1::identity_server::IdentityServer;
use heddle_api::proto::v1::replica_server::ReplicaServer;
use heddle_api::proto::v1::{ToControlPlane, ToProxy, Version};
use heddle_runtime::drain;
use rand::RngExt;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::accept::{Acceptor, Caller};
use self::fleet::Fleet;
use self::session::Context;
use crate::authn::limits::Limits;
use crate::authn::{Refusal, Verifier, parse_identity};
use crate::ca::Authority;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::replica::Teller;
use crate::served::Served;

mod accept;
mod debounce;
pub mod fleet;
mod issue;
mod ledger;
mod outbox;
mod pack;
mod session;
mod tls;

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests at once on a connection: its stream and a certificate, with room to spare.
const REQUESTS_A_CONNECTION: u32 = 16;
const STREAM_MESSAGE_LIMIT: usize = 4 << 20;
/// A token and a CSR of 8 KiB each, with room for the encoding.
const ISSUE_MESSAGE_LIMIT: usize = 32 << 10;
const HEADER_LIMIT: u32 = 16 << 10;
/// Handshakes done and not yet taken by the server.
const CONNECTION_QUEUE: usize = 64;
/// A proxy that takes nothing of what is queued for it is cut after this.
pub const STALL_LIMIT: Duration = Duration::from_secs(10);

/// What the server is made of.
pub struct Server {
    /// `None` until there is one.
    pub authority: watch::Receiver<Option<Arc<Authority>>>,
    pub served: watch::Receiver<Option<Served>>,
    /// What is served says everything up to this.
    pub known: watch::Receiver<Version>,
    pub verifier: Verifier,
    pub fleet: Fleet,
    pub metrics: Metrics,
    pub csr_per_minute: u32,
    /// A stream ends at a random age between this and twice this.
    pub stream_age: Duration,
    pub stall_limit: Duration,
    /// Told when the server has a certificate; `None` until then.
    pub tls: watch::Sender<Option<Arc<rustls::ServerConfig>>>,
    pub drain: drain::Watch,
}

impl Server {
    /// Serves until the drain, then until every stream has ended or the drain aborts.
    pub async fn run(self, listener: TcpListener) {
        let work = self.drain.begin_work();
        let keeper = tls::Keeper {
            authority: self.authority.clone(),
            served: self.served.clone(),
            metrics: self.metrics.clone(),
            config: self.tls.clone(),
        };
        let aborted = self.drain.clone();
        tokio::spawn(async move { keeper.run(aborted.aborted()).await });

        let (connections, accepted) = mpsc::channel(CONNECTION_QUEUE);
        let acceptor = Acceptor {
            listener,
            config: self.tls.subscribe(),
            connections,
            metrics: self.metrics.clone(),
            drain: self.drain.clone(),
        };
        tokio::spawn(acceptor.run());

        let drain = self.drain.clone();
        let serving = self
            .router()
            .serve_with_incoming_shutdown(ReceiverStream::new(accepted), drain.draining());
        tokio::select! {
            served = serving => if let Err(error) = served {
                tracing::error!(error = crate::error::chain(&error), "discovery server failed");
            },
            () = drain.aborted() => {}
        }
        drop(work);
    }

    fn router(self) -> tonic::transport::server::Router {
        let issuer = issue::Issuer {
            authority: self.authority,
            served: self.served.clone(),
            verifier: self.verifier,
            limits: Mutex::new(Limits::new(self.csr_per_minute, Instant::now())),
            metrics: self.metrics.clone(),
        };
        let teller = Teller {
            fleet: self.fleet.clone(),
            served: self.served.clone(),
            drain: self.drain.clone(),
            identify: |request| {
                let caller = request.extensions().get::<Caller>();
                let caller = caller.ok_or_else(|| Status::internal("the connection is unknown"))?;
                identify(caller).map_err(Status::from)
            },
        };
        let streams = Streams {
            context: Context {
                served: self.served,
                known: self.known,
                fleet: self.fleet,
                metrics: self.metrics,
                drain: self.drain,
            },
            age: self.stream_age,
            stall_limit: self.stall_limit,
        };
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(REQUESTS_A_CONNECTION)
            .http2_max_header_list_size(HEADER_LIMIT)
            .add_service(
                DiscoveryServer::new(streams).max_decoding_message_size(STREAM_MESSAGE_LIMIT),
            )
            .add_service(ReplicaServer::new(teller).max_decoding_message_size(ISSUE_MESSAGE_LIMIT))
            .add_service(IdentityServer::new(issuer).max_decoding_message_size(ISSUE_MESSAGE_LIMIT))
    }
}

/// The port for proxies.
///
/// # Errors
/// When the address cannot be bound.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let listen = |source| Error::Listen { purpose: "discovery", address, source };
    TcpListener::bind(address).await.map_err(listen)
}

struct Streams {
    context: Context,
    age: Duration,
    stall_limit: Duration,
}

#[tonic::async_trait]
impl Discovery for Streams {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<ToProxy, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<ToControlPlane>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::internal("the connection is unknown"))?;
        let identity = identify(&caller).map_err(|refusal| {
            let refused = &self.context.metrics.authentication_refused;
            refused.with_label_values(&[refusal.reason()]).inc();
            tracing::warn!(peer = %caller.peer, %refusal, "stream refused");
            Status::from(refusal)
        })?;
        let age = self.age.mul_f64(1.0 + rand::rng().random::<f64>());
        let (outbox, outgoing) = outbox::channel(self.stall_limit);
        // Its own task: the answer's head goes out at once, so that no proxy waits for it with its
        // first message.
        let inbound = request.into_inner();
        tokio::spawn(session::serve(self.context.clone(), caller, identity, inbound, outbox, age));
        Ok(Response::new(Box::pin(outgoing)))
    }
}

fn identify(caller: &Caller) -> Result<SpiffeId, Refusal> {
    let certificates = caller.certificates.as_ref().ok_or(Refusal::CertificateMissing)?;
    parse_identity(certificates.first().ok_or(Refusal::CertificateMissing)?)
}

#[cfg(test)]
mod tests;
