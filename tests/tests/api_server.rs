//! The harness's own API server: it starts, does what a real one does, forgets what it is told to
//! forget, and leaves nothing behind.

use std::path::Path;

use futures::{StreamExt as _, pin_mut};
use heddle_tests::cluster::api::ApiServer;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};

fn config_map(name: &str) -> ConfigMap {
    let mut object = ConfigMap::default();
    object.metadata.name = Some(name.into());
    object
}

#[tokio::test]
async fn it_is_real_and_leaves_nothing() {
    let mut api = ApiServer::start().await.unwrap();
    let dir = api.kubeconfig().parent().unwrap().to_owned();
    let client = api.client().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    maps.create(&PostParams::default(), &config_map("one")).await.unwrap();
    api.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").await.unwrap();
    let ran = api.kubectl(&["get", "namespace", "shop", "-o", "name"]).await.unwrap();
    assert_eq!(ran.ok().unwrap().out.trim(), "namespace/shop");
    // Admission is on: without controllers nobody has made the service account.
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, image: a}]}}";
    let refused = api.apply(pod).await.unwrap_err();
    assert!(format!("{refused:#}").contains("serviceaccount \"default\" not found"), "{refused:#}");
    // So is RBAC.
    let nobody = api.client_for("nobody", &[]).await.unwrap();
    let namespaces: Api<Namespace> = Api::all(nobody);
    let refused = namespaces.list(&ListParams::default()).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");
    // A crash loses nothing, and a compaction is felt by whoever resumes from before it.
    let before = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version;
    maps.create(&PostParams::default(), &config_map("two")).await.unwrap();
    api.compact().await.unwrap();
    api.kill();
    assert!(maps.get("one").await.is_err());
    api.restart().await.unwrap();
    assert_eq!(maps.get("two").await.unwrap().metadata.name.as_deref(), Some("two"));
    let events = maps.watch(&WatchParams::default(), &before.unwrap()).await;
    let code = match events {
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
        Ok(events) => {
            pin_mut!(events);
            match events.next().await {
                Some(Ok(WatchEvent::Error(status))) => status.code,
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(code, 410);
    drop(api);
    assert!(!dir.exists());
    let left = processes_of(&dir);
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn controllers_do_their_work() {
    let api = ApiServer::start().await.unwrap().with_controllers().await.unwrap();
    api.apply(
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n---\n\
         {apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, \
         spec: {selector: {app: web}, ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}}",
    )
    .await
    .unwrap();
    let client = api.client().await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "shop");
    let found =
        kube::runtime::wait::await_condition(accounts, "default", |it: Option<&_>| it.is_some());
    found.await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client, "shop");
    let pod = serde_json::json!({
        "metadata": { "name": "web", "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "app", "image": "none" }] },
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let family = "-o=jsonpath={.spec.ipFamilies}";
    let ran = api.kubectl(&["get", "service", "web", "-n", "shop", family]).await.unwrap();
    assert_eq!(ran.ok().unwrap().out, r#"["IPv4","IPv6"]"#);
    let slices = [
        "wait",
        "--for=create",
        "endpointslice",
        "-l",
        "kubernetes.io/service-name=web",
        "-n",
        "shop",
    ];
    api.kubectl(&slices).await.unwrap().ok().unwrap();
}

/// Command lines that mention `dir`.
fn processes_of(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines =
        entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(&dir.display().to_string())).collect()
}
