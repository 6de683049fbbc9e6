//! From a directory of YAML to a proxy's stream, and over a restart.

use heddle_api::proto::v1::{Endpoints, Held, ResourceType, Update};
use prost::Message;

use super::rig::{Rig, count};
use crate::version::order;

const WEB: &str = "10.96.0.10:80";

fn service() -> &'static str {
    "apiVersion: v1\nkind: Namespace\nmetadata: { name: shop }\n---\n\
     apiVersion: v1\nkind: Service\nmetadata: { name: web, namespace: shop }\n\
     spec: { clusterIP: 10.96.0.10, selector: { app: web }, ports: [{ port: 80, targetPort: 8080 }] }\n"
}

/// What controllers fill in: running pods and the Service's endpoints.
fn state(pods: &[(&str, &str, bool)]) -> String {
    let pod = |(name, address, _): &(&str, &str, bool)| {
        format!(
            "apiVersion: v1\nkind: Pod\n\
             metadata: {{ name: {name}, namespace: shop, uid: {name}-uid, labels: {{ app: web }} }}\n\
             spec: {{ serviceAccountName: web, containers: [{{ name: app, image: app }}, \
             {{ name: heddle-proxy, image: heddle }}] }}\n\
             status: {{ phase: Running, podIPs: [{{ ip: {address} }}] }}\n---\n"
        )
    };
    let endpoint = |(_, address, ready): &(&str, &str, bool)| {
        format!("- {{ addresses: [{address}], conditions: {{ ready: {ready} }} }}\n")
    };
    let (pods, endpoints): (String, String) =
        (pods.iter().map(pod).collect(), pods.iter().map(endpoint).collect());
    format!(
        "{pods}apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: web-1, namespace: shop, labels: {{ kubernetes.io/service-name: web }} }}\n\
         addressType: IPv4\nports: [{{ port: 8080 }}]\nendpoints:\n{endpoints}"
    )
}

fn ready(update: &Update) -> Vec<String> {
    let resource = update.resources.iter().find(|one| one.r#type() == ResourceType::Endpoints);
    let endpoints = Endpoints::decode(resource.unwrap().body.clone()).unwrap().endpoints;
    endpoints.into_iter().filter(|one| one.ready).map(|one| one.address).collect()
}

#[tokio::test]
async fn a_directory_is_served_followed_and_resumed_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(".state")).unwrap();
    std::fs::write(dir.path().join("web.yaml"), service()).unwrap();
    let both = [("web-1", "127.0.0.2", true), ("web-2", "127.0.0.3", true)];
    std::fs::write(dir.path().join(".state/pods.yaml"), state(&both)).unwrap();
    let rig = Rig::start_over(dir).await;

    let mut client = rig.connect("web-1", "127.0.0.2").await;
    client.hello(|hello| hello.addresses = vec![WEB.to_owned()]).await;
    let first = client.update().await;
    assert_eq!(first.resolved, [WEB]);
    assert_eq!(ready(&first), ["127.0.0.2", "127.0.0.3"]);

    let started = tokio::time::Instant::now();
    let one = [("web-1", "127.0.0.2", true), ("web-2", "127.0.0.3", false)];
    rig.write(".state/pods.yaml", &state(&one));
    let change = client.update().await;
    assert_eq!(ready(&change), ["127.0.0.2"]);
    assert!(started.elapsed().as_millis() < 1_000, "{:?}", started.elapsed());

    let credentials = rig.credentials("web-1", "127.0.0.2").await;
    drop(client);
    let rig = rig.restart().await;
    let client = rig.connect_with(credentials, "127.0.0.2").await;
    let mut client = client.expect("the root outlives the process");
    let held: Vec<Held> = first
        .resources
        .iter()
        .chain(&change.resources)
        .map(|one| Held { r#type: one.r#type, name: one.name.clone(), hash: one.hash })
        .collect();
    client
        .hello(|hello| {
            hello.addresses = vec![WEB.to_owned()];
            hello.held = held;
            hello.high_water = change.version;
        })
        .await;
    let resumed = client.update().await;
    assert!(order(resumed.version.unwrap()) > order(change.version.unwrap()));
    assert_eq!(count(&resumed), [], "nothing is sent twice");
    assert_eq!(resumed.confirmed.len(), first.resources.len());
}
