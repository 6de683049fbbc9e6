//! A control plane in this process that proves itself with the mesh's own authority and then sends
//! what no control plane should: resources whose bodies do not decode.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use futures::stream::{Stream, unfold};
use heddle_api::identity::SpiffeId;
use heddle_api::names;
use heddle_api::proto::v1::discovery_server::{Discovery, DiscoveryServer};
use heddle_api::proto::v1::{
    Held, Hello, Resource, ResourceRef, ResourceReport, ResourceType, ToControlPlane, ToProxy,
    Update, to_control_plane, to_proxy,
};
use heddle_control_plane::ca::Authority;
use heddle_control_plane::config::AuthoritySource;
use nix::sched::{CloneFlags, setns};
use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status, Streaming};

use super::World;

const LIFE: Duration = Duration::from_secs(600);

/// Serves where the lab's own control plane does, which must not run meanwhile.
#[derive(Debug)]
pub struct Scripted {
    /// What proxies said of what they were sent, with their pods' names.
    pub verdicts: mpsc::Receiver<(String, ResourceReport)>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Scripted {
    /// Returns when it listens. Everything that a proxy holds of `types` is sent to it again, with
    /// another hash and a body of noise; the rest is confirmed.
    ///
    /// # Errors
    /// When it has no authority or no port.
    pub fn start(world: &World, types: &'static [ResourceType]) -> anyhow::Result<Self> {
        let tls = TlsAcceptor::from(Arc::new(server_config(world)?));
        let netns = world.lab().layout().control_plane_netns();
        let netns = File::open(format!("/run/netns/{netns}")).context("open the namespace")?;
        let (report, verdicts) = mpsc::channel();
        let (ready, listening) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let served = (|| {
                // Of this thread alone, and all that its runtime does is done by it.
                setns(netns, CloneFlags::CLONE_NEWNET)?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let any: SocketAddr = ([0_u16; 8], names::CONTROL_PLANE_PORT).into();
                    let listener = TcpListener::bind(any).await?;
                    // Whoever started it waits for this, or has given up.
                    let _ = ready.send(());
                    tokio::select! {
                        served = serve(listener, tls, Noise { types, report }) => served,
                        _ = stopped => Ok(()),
                    }
                })
            })();
            if let Err(error) = served {
                tracing::error!("the scripted control plane: {error:#}");
            }
        });
        let heard = listening.recv_timeout(Duration::from_secs(5));
        ensure!(heard.is_ok(), "the scripted control plane does not listen");
        Ok(Self { verdicts, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn server_config(world: &World) -> anyhow::Result<ServerConfig> {
    let now = SystemTime::now();
    let state = world.lab().layout().state();
    let authority = Authority::open(&AuthoritySource::Own, &state, LIFE, now)?;
    let identity = SpiffeId::new(
        "cluster.local",
        names::CONTROL_PLANE_NAMESPACE,
        names::CONTROL_PLANE_SERVICE_ACCOUNT,
    )?;
    let key = KeyPair::generate()?;
    let issued = authority.issue_own(&identity, &key, now)?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(issued.chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, noise: Noise) -> anyhow::Result<()> {
    let incoming = unfold((listener, tls), |(listener, tls)| async {
        let accepted = match listener.accept().await {
            Ok((tcp, _)) => tls.accept(tcp).await,
            Err(error) => Err(error),
        };
        Some((accepted, (listener, tls)))
    });
    // A proxy that hangs up during the handshake is no reason to stop.
    let incoming = futures::StreamExt::filter(incoming, |accepted: &io::Result<_>| {
        futures::future::ready(accepted.is_ok())
    });
    let service = DiscoveryServer::new(noise);
    let server = tonic::transport::Server::builder().add_service(service);
    Ok(Box::pin(server.serve_with_incoming(incoming)).await?)
}

struct Noise {
    types: &'static [ResourceType],
    report: mpsc::Sender<(String, ResourceReport)>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<ToProxy, Status>> + Send>>;

#[tonic::async_trait]
impl Discovery for Noise {
    type StreamStream = Answers;

    async fn stream(
        &self,
        request: Request<Streaming<ToControlPlane>>,
    ) -> Result<Response<Answers>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|message| message.message);
        let Some(to_control_plane::Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("no Hello"));
        };
        let pod = hello.pod.clone();
        let update = to_proxy::Message::Update(self.answer(hello));
        let report = self.report.clone();
        // One answer; then whatever the proxy has to say, and nothing more from here.
        let answers = unfold((Some(update), incoming), move |(update, mut incoming)| {
            let (pod, report) = (pod.clone(), report.clone());
            async move {
                if let Some(update) = update {
                    return Some((Ok(ToProxy { message: Some(update) }), (None, incoming)));
                }
                while let Ok(Some(message)) = incoming.message().await {
                    if let Some(to_control_plane::Message::Report(said)) = message.message {
                        for resource in said.resources {
                            let _ = report.send((pod.clone(), resource));
                        }
                    }
                }
                None
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Noise {
    fn answer(&self, hello: Hello) -> Update {
        let is_meant = |held: &Held| self.types.iter().any(|kind| *kind as i32 == held.r#type);
        let (spoilt, kept): (Vec<_>, Vec<_>) = hello.held.into_iter().partition(is_meant);
        let spoil = |held: Held| Resource {
            r#type: held.r#type,
            name: held.name,
            version: hello.high_water,
            hash: !held.hash,
            min_level: 0,
            body: vec![0xff; 16].into(),
        };
        let confirm = |held: Held| ResourceRef { r#type: held.r#type, name: held.name };
        Update {
            resources: spoilt.into_iter().map(spoil).collect(),
            resolved: hello.addresses,
            complete: true,
            confirmed: kept.into_iter().map(confirm).collect(),
            version: hello.high_water,
            ..Update::default()
        }
    }
}
