//! The way into a cluster: kubectl's configuration and flags, and every replica of the control plane
//! through a port-forward, because its admin pages answer its own host alone.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::future::join_all;
use heddle_api::names::{
    CONTROL_PLANE_ADMIN_PORT, CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_SERVICE_ACCOUNT,
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(15);
/// Of one page of one replica.
const PAGE_LIMIT: usize = 256 << 20;

/// Which cluster, and which namespace.
#[derive(Debug, clap::Args)]
pub(crate) struct Access {
    /// Path of the kubeconfig
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, global = true)]
    context: Option<String>,
    /// Namespace to look at [default: the context's]
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Look at every namespace
    #[arg(short = 'A', long, global = true, conflicts_with = "namespace")]
    all_namespaces: bool,
}

/// A connected cluster.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// `None`: every namespace.
    pub(crate) namespace: Option<String>,
}

impl Access {
    /// Reads the configuration; asks the cluster nothing.
    pub(crate) async fn connect(&self) -> anyhow::Result<Cluster> {
        let options =
            KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path);
                let read = read.with_context(|| format!("--kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(read, &options).await?
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await.context("no cluster: set KUBECONFIG or --kubeconfig")?,
        };
        config.connect_timeout = Some(TIMEOUT);
        let namespace = match (&self.namespace, self.all_namespaces) {
            (_, true) => None,
            (Some(namespace), _) => Some(namespace.clone()),
            (None, _) => Some(config.default_namespace.clone()),
        };
        Ok(Cluster { client: Client::try_from(config)?, namespace })
    }
}

impl Cluster {
    pub(crate) fn covers(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
    }

    /// The pods of the control plane that run.
    pub(crate) async fn replicas(&self) -> anyhow::Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), CONTROL_PLANE_NAMESPACE);
        let all = pods.list(&ListParams::default()).await;
        let all = all.with_context(|| format!("cannot list pods of {CONTROL_PLANE_NAMESPACE}"))?;
        let is_replica = |pod: &Pod| {
            let spec = pod.spec.as_ref();
            let account = spec.and_then(|spec| spec.service_account_name.as_deref());
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            account == Some(CONTROL_PLANE_SERVICE_ACCOUNT)
                && phase == Some("Running")
                && pod.metadata.deletion_timestamp.is_none()
        };
        Ok(all.items.into_iter().filter(is_replica).collect())
    }

    /// One page of every replica, with the replica's name. What one does not answer is told on
    /// standard error: the rest is still worth showing.
    pub(crate) async fn pages(&self, path: &str) -> anyhow::Result<Vec<(String, Value)>> {
        let replicas = self.replicas().await?;
        if replicas.is_empty() {
            bail!(
                "no control plane runs in {CONTROL_PLANE_NAMESPACE}; install it: \
                 helm install heddle charts/heddle -n {CONTROL_PLANE_NAMESPACE} --create-namespace"
            );
        }
        let names: Vec<_> = replicas.iter().map(ResourceExt::name_any).collect();
        let fetches = names.iter().map(|name| tokio::time::timeout(TIMEOUT, self.page(name, path)));
        let mut pages = Vec::new();
        for (name, fetched) in names.iter().zip(join_all(fetches).await) {
            match fetched {
                Ok(Ok(page)) => pages.push((name.clone(), page)),
                Ok(Err(error)) => eprintln!("heddle: replica {name}: {error:#}"),
                Err(_) => eprintln!("heddle: replica {name}: no answer in time"),
            }
        }
        if pages.is_empty() {
            bail!("no replica of the control plane answers");
        }
        Ok(pages)
    }

    async fn page(&self, pod: &str, path: &str) -> anyhow::Result<Value> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), CONTROL_PLANE_NAMESPACE);
        let mut forwarded = pods.portforward(pod, &[CONTROL_PLANE_ADMIN_PORT]).await?;
        let stream = forwarded.take_stream(CONTROL_PLANE_ADMIN_PORT);
        let stream = stream.context("the port-forward has no stream")?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let task = tokio::spawn(connection);
        let request = http::Request::get(path).header(http::header::HOST, "localhost");
        let response = sender.send_request(request.body(Empty::<bytes::Bytes>::new())?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), PAGE_LIMIT).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        task.abort();
        if !status.is_success() {
            bail!("{path} is answered {status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(serde_json::from_slice(&body)?)
    }
}
