//! An API server with the control plane's namespace and one that asks for proxies; control planes,
//! pods, tokens and a proxy in it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::names::{TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY, TRUST_ROOT_SECRET};
use heddle_api::proto::v1::identity_client::IdentityClient;
use heddle_api::proto::v1::{IssueRequest, IssueResponse};
use heddle_control_plane::app::{App as ControlPlane, Handle};
use heddle_control_plane::config::RawConfig;
use heddle_proxy::app::App as Proxy;
use heddle_proxy::config::Config;
use heddle_proxy::control_plane::{self, Address};
use heddle_proxy::tls::TrustBundle;
use heddle_tests::cluster::api::ApiServer;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tonic::Status;
use tonic::transport::Channel;

pub(crate) const SYSTEM: &str = "heddle-system";
/// Compilers share this machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const AUDIENCE: &str = "heddle";
/// The one pod whose address the tests speak from.
pub(crate) const OWN_ADDRESS: &str = "127.0.0.1";

/// A Secret's content, key by key.
pub(crate) type Content = BTreeMap<String, Vec<u8>>;

pub(crate) struct World {
    pub(crate) api: ApiServer,
    pub(crate) client: kube::Client,
    dir: tempfile::TempDir,
}

impl World {
    /// The control plane's namespace, and `shop`, which asks for proxies.
    pub(crate) async fn start() -> Self {
        let api = ApiServer::start().await.unwrap().with_controllers().await.unwrap();
        let client = api.client().await.unwrap();
        let world = Self { api, client, dir: tempfile::tempdir().unwrap() };
        world.install_definitions().await;
        world.namespace(SYSTEM, None).await;
        world.namespace("shop", Some("enabled")).await;
        world
    }

    /// Our kinds, which the control plane watches.
    async fn install_definitions(&self) {
        let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds");
        let applied = self.api.kubectl(&["apply", "--server-side", "-f", crds]).await.unwrap();
        applied.ok().unwrap();
    }

    pub(crate) async fn namespace(&self, name: &str, inject: Option<&str>) {
        let mut labels = serde_json::Map::new();
        if let Some(inject) = inject {
            labels.insert("heddle.io/inject".into(), inject.into());
        }
        let manifest = json!({ "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": labels } });
        self.api.apply(&manifest.to_string()).await.unwrap();
    }

    pub(crate) async fn replica(&self, pod: &str) -> Handle {
        let raw = RawConfig {
            source: "kubernetes".into(),
            kubeconfig: Some(self.api.kubeconfig().to_owned()),
            pod: Some(pod.to_owned()),
            listen: "127.0.0.1:0".into(),
            admin: "127.0.0.1:0".into(),
            webhook_listen: Some("127.0.0.1:0".into()),
            leaf_lifetime: "24h".into(),
            stream_age: "30m".into(),
            csr_per_minute: Some("1000".into()),
            drain_timeout: "1s".into(),
            log_format: "plain".into(),
            log: "info".into(),
            ..RawConfig::default()
        };
        ControlPlane::start(raw.check().unwrap(), None).await.unwrap()
    }

    /// A running pod with a proxy, as the scheduler and the kubelet would leave it.
    pub(crate) async fn pod(&self, name: &str, account: &str, ip: &str) -> Pod {
        self.api
            .apply(&format!(
                "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {account}, namespace: shop}}}}"
            ))
            .await
            .unwrap();
        let pods = Api::<Pod>::namespaced(self.client.clone(), "shop");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "serviceAccountName": account,
                "nodeName": "n1",
                "containers": [{ "name": "app", "image": "app" }],
                "initContainers": [
                    { "name": "heddle-proxy", "image": "proxy", "restartPolicy": "Always" },
                ],
            },
        }))
        .unwrap();
        pods.create(&PostParams::default(), &pod).await.unwrap();
        let status = json!({ "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        }});
        let patch = Patch::Merge(&status);
        pods.patch_status(name, &PatchParams::default(), &patch).await.unwrap()
    }

    /// A token as the kubelet would request it for `pod`.
    pub(crate) async fn token(&self, account: &str, audience: &str, pod: Option<&Pod>) -> String {
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), "shop");
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![audience.to_owned()],
                bound_object_ref: pod.map(|pod| BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                expiration_seconds: Some(600),
            },
            ..TokenRequest::default()
        };
        let answer =
            accounts.create_token_request(account, &PostParams::default(), &request).await.unwrap();
        answer.status.unwrap().token
    }

    /// What a pod that starts in `namespace` finds.
    pub(crate) async fn bundle(&self, namespace: &str) -> Option<String> {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let map = maps.get_opt(TRUST_BUNDLE_CONFIG_MAP).await.unwrap()?;
        map.data?.remove(TRUST_BUNDLE_KEY)
    }

    pub(crate) async fn until_bundle(
        &self,
        namespace: &str,
        accept: impl Fn(usize) -> bool,
    ) -> String {
        eventually("the trust bundle", async || {
            let pem = self.bundle(namespace).await?;
            accept(pem.matches("BEGIN CERTIFICATE").count()).then_some(pem)
        })
        .await
    }

    pub(crate) async fn secret(&self, name: &str) -> Option<Content> {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), SYSTEM);
        let data = secrets.get_opt(name).await.unwrap()?.data?;
        Some(data.into_iter().map(|(key, value)| (key, value.0)).collect())
    }

    pub(crate) async fn write_root(&self, values: &[(&str, &[u8])]) {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), SYSTEM);
        let data: BTreeMap<_, _> =
            values.iter().map(|(key, value)| (*key, ByteString(value.to_vec()))).collect();
        let patch = Patch::Merge(json!({ "data": data }));
        secrets.patch(TRUST_ROOT_SECRET, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Asks `to` for a certificate, from this machine's own address.
    pub(crate) async fn issue(
        &self,
        to: &Handle,
        token: &str,
        csr: Vec<u8>,
    ) -> Result<IssueResponse, Status> {
        let pem = self.until_bundle("shop", |roots| roots > 0).await;
        let channel = connect(to, &pem).await?;
        let request = IssueRequest { token: token.to_owned(), csr };
        Ok(IdentityClient::new(channel).issue(request).await?.into_inner())
    }

    /// The real proxy of a pod at this machine's address.
    pub(crate) async fn proxy(&self, to: SocketAddr, pod: &str, token: &str) -> Proxy {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        std::fs::write(path("token"), token).unwrap();
        let roots = self.until_bundle("shop", |roots| roots > 0).await;
        std::fs::write(path("trust-bundle.pem"), roots).unwrap();
        let any = "127.0.0.1:0".to_owned();
        let variables = [
            ("HEDDLE_CONTROL_PLANE", to.to_string()),
            ("HEDDLE_TRUST_DOMAIN", "cluster.local".to_owned()),
            ("HEDDLE_NAMESPACE", "shop".to_owned()),
            ("HEDDLE_POD", pod.to_owned()),
            ("HEDDLE_TOKEN_FILE", path("token")),
            ("HEDDLE_TRUST_BUNDLE_FILE", path("trust-bundle.pem")),
            ("HEDDLE_CONTROL_SOCKET", path("control.sock")),
            ("HEDDLE_OUTBOUND_LISTEN", any.clone()),
            ("HEDDLE_INBOUND_LISTEN", any.clone()),
            ("HEDDLE_METRICS_LISTEN", any),
            ("HEDDLE_CANARY", "off".to_owned()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value));
        Proxy::start(Config::parse(variables).unwrap(), None).await.unwrap()
    }
}

/// Asks until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    asked.await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Speaks to a replica from this machine's own address, without a certificate.
pub(crate) async fn connect(to: &Handle, roots: &str) -> Result<Channel, Status> {
    let bundle = TrustBundle::from_pem("cluster.local".into(), roots.as_bytes()).unwrap();
    let address = Address::Ip(to.addresses.discovery);
    let connected = control_plane::connect(&address, &Arc::new(bundle), None).await;
    connected.map_err(|error| Status::unavailable(error.to_string()))
}
