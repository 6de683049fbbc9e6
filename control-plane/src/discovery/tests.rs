//! The whole control plane in this process, and real proxies' clients over mutual TLS on loopback.

use std::time::Duration;

use heddle_api::proto::v1::{Held, RejectionReason, ResourceType, Version, to_proxy};
use tonic::Code;

use self::rig::{Client, Rig, count, refused};
use crate::authn::{Claims, mint_token};
use crate::fixture::{self, WEB};

mod files;
mod rig;

const STALL_LIMIT: Duration = Duration::from_secs(1);

fn web_pods() -> [crate::catalog::PodIdentity; 2] {
    [fixture::pod("web-1", "web", &["127.0.0.2"]), fixture::pod("db-0", "db", &["127.0.0.3"])]
}

#[tokio::test]
async fn a_token_buys_a_certificate_from_the_pods_address_only() {
    let rig = Rig::start(&web_pods(), &[]).await;
    let issued = rig.issue("127.0.0.2", &rig.token("web-1")).await.unwrap();
    assert_eq!(
        crate::authn::parse_identity(&issued.chain[0].clone().into()),
        Ok(fixture::identity("web"))
    );
    assert_eq!(issued.roots.len(), 1);

    let forged = mint_token(
        b"not the key, not the key, not the key",
        &Claims {
            namespace: "shop".into(),
            pod: "web-1".into(),
            uid: "web-1-uid".into(),
            exp: u64::MAX,
        },
    );
    for (peer, token, code, reason) in [
        ("127.0.0.2", String::new(), Code::Unauthenticated, "token_missing"),
        ("127.0.0.2", "x".to_owned(), Code::Unauthenticated, "token_malformed"),
        ("127.0.0.2", forged, Code::Unauthenticated, "token_forged"),
        ("127.0.0.3", rig.token("web-1"), Code::PermissionDenied, "other_address"),
        ("127.0.0.1", rig.token("web-1"), Code::PermissionDenied, "other_address"),
        ("127.0.0.2", rig.token("web-9"), Code::PermissionDenied, "pod_unknown"),
    ] {
        let before = rig.refusals(reason).await;
        assert_eq!(rig.issue(peer, &token).await.unwrap_err().code(), code, "{reason}");
        assert_eq!(rig.refusals(reason).await, before + 1, "{reason}");
    }
    for _ in 0..4 {
        rig.issue("127.0.0.2", &rig.token("web-1")).await.unwrap();
    }
    let sixth = rig.issue("127.0.0.2", &rig.token("web-1")).await.unwrap_err();
    assert_eq!(sixth.code(), Code::ResourceExhausted);
    rig.issue("127.0.0.3", &rig.token("db-0")).await.expect("another pod is not concerned");
}

#[tokio::test]
async fn what_a_proxy_needs_comes_as_whole_sets() {
    let rig = Rig::start(&web_pods(), &[("10.0.0.1", true)]).await;
    let mut client = rig.connect("web-1", "127.0.0.2").await;
    client.hello(|_| {}).await;
    let first = client.update().await;
    assert!(first.complete && first.resolved.is_empty());
    assert_eq!(
        count(&first),
        [ResourceType::Mesh, ResourceType::TrustBundle, ResourceType::InboundPolicy]
    );

    client.subscribe(&[WEB], &[]).await;
    let set = client.update().await;
    assert_eq!(set.resolved, [WEB]);
    assert!(!set.complete);
    assert_eq!(
        count(&set),
        [ResourceType::Address, ResourceType::Service, ResourceType::Endpoints]
    );

    rig.publish(&web_pods(), &[("10.0.0.1", true), ("10.0.0.2", true)]);
    let change = client.update().await;
    assert_eq!(count(&change), [ResourceType::Endpoints]);
    assert!(change.version.unwrap().number > set.version.unwrap().number);

    client.subscribe(&[WEB], &[]).await;
    let again = client.update().await;
    assert_eq!((again.resolved.len(), again.resources.len()), (1, 0), "answered again");

    client.subscribe(&[], &[WEB]).await;
    let removed = client.update().await;
    assert_eq!((removed.removed.len(), removed.resources.len()), (3, 0));
}

#[tokio::test]
async fn a_proxy_that_comes_back_is_sent_differences_only() {
    let rig = Rig::start(&web_pods(), &[("10.0.0.1", true)]).await;
    let mut client = rig.connect("web-1", "127.0.0.2").await;
    client.hello(|hello| hello.addresses = vec![WEB.to_owned()]).await;
    let first = client.update().await;
    assert_eq!(first.resolved, [WEB]);
    let mut held: Vec<Held> = first
        .resources
        .iter()
        .map(|resource| Held {
            r#type: resource.r#type,
            name: resource.name.clone(),
            hash: resource.hash,
        })
        .collect();
    assert_eq!(held.len(), 6);
    // One of another body, one that is nobody's any more.
    let stale = held.iter_mut().find(|held| held.name == "shop/web:80").unwrap();
    stale.hash ^= 1;
    held.push(Held { name: "shop/gone".to_owned(), ..held[0].clone() });

    let mut client = rig.connect("web-1", "127.0.0.2").await;
    client
        .hello(|hello| {
            hello.addresses = vec![WEB.to_owned()];
            hello.held = held.clone();
            hello.high_water = first.version;
        })
        .await;
    let resumed = client.update().await;
    assert!(resumed.complete);
    assert_eq!(count(&resumed), [ResourceType::Endpoints]);
    assert_eq!(resumed.confirmed.len(), 5);
    assert!(resumed.confirmed.iter().all(|confirmed| confirmed.name != "shop/gone"));
}

#[tokio::test]
async fn a_server_that_is_behind_serves_nothing_until_its_epoch_is_raised() {
    let rig = Rig::start(&web_pods(), &[]).await;
    let high_water = Some(Version { epoch: 1, number: 1 << 40 });
    let mut client = rig.connect("web-1", "127.0.0.2").await;
    client.hello(|hello| hello.high_water = high_water).await;
    let message = client.next().await.unwrap();
    assert!(matches!(message, Some(to_proxy::Message::TryAnother(_))), "{message:?}");
    assert_eq!(client.next().await.unwrap(), None);

    assert_eq!(rig.ctl("raise-epoch").await, "epoch 2\n");
    let mut client = rig.connect("web-1", "127.0.0.2").await;
    client.hello(|hello| hello.high_water = high_water).await;
    let update = client.update().await;
    assert!(update.complete);
    assert_eq!(update.version.unwrap().epoch, 2);
}

#[tokio::test]
async fn one_that_does_not_read_is_cut_and_others_do_not_wait() {
    let rig = Rig::start(&web_pods(), &[]).await;
    let mut stalled = rig.connect("db-0", "127.0.0.3").await;
    stalled.hello(|hello| hello.addresses = vec![WEB.to_owned()]).await;
    stalled.update().await;
    let mut reading = rig.connect("web-1", "127.0.0.2").await;
    reading.hello(|hello| hello.addresses = vec![WEB.to_owned()]).await;
    reading.update().await;

    let started = tokio::time::Instant::now();
    let mut round = 0;
    while rig.metric("heddle_control_plane_queue_cuts_total").await < 1.0 {
        assert!(started.elapsed() < 20 * STALL_LIMIT, "not cut");
        round += 1;
        // More than the windows of a connection hold, and different each time.
        let many: Vec<String> =
            (0..4_000).map(|n| format!("10.{round}.{}.{}", n / 250, n % 250)).collect();
        let many: Vec<(&str, bool)> = many.iter().map(|address| (address.as_str(), true)).collect();
        rig.publish(&web_pods(), &many);
        let told = tokio::time::timeout(STALL_LIMIT, reading.update()).await;
        assert_eq!(count(&told.expect("waits for another")), [ResourceType::Endpoints]);
    }
    assert_eq!(rig.metric("heddle_control_plane_streams_open").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_hundreds() {
    let names: Vec<(String, String)> =
        (0..200).map(|n| (format!("web-{n}"), format!("127.0.1.{n}"))).collect();
    let pods: Vec<_> =
        names.iter().map(|(name, address)| fixture::pod(name, "web", &[address])).collect();
    let rig = Rig::start(&pods, &[]).await;
    // One certificate of the workload does for all: a stream's pod is told by its address.
    let (chain, key) = rig.credentials("web-0", "127.0.1.0").await.unwrap();
    let mut clients = Vec::new();
    for (name, address) in &names {
        let credentials = Some((chain.clone(), key.clone_key()));
        let mut client = rig.connect_with(credentials, address).await.unwrap();
        client
            .hello(|hello| {
                hello.pod.clone_from(name);
                hello.addresses = vec![WEB.to_owned()];
            })
            .await;
        assert!(client.update().await.complete);
        clients.push(client);
    }
    for round in 0..5 {
        rig.publish(&pods, &[(format!("10.0.0.{round}").as_str(), true)]);
        let told = clients.iter_mut().map(async |client| count(&client.update().await));
        for told in futures::future::join_all(told).await {
            assert_eq!(told, [ResourceType::Endpoints]);
        }
    }
}

#[tokio::test]
async fn a_stream_is_refused_to_all_but_its_pods_proxy() {
    let rig = Rig::start(&web_pods(), &[]).await;
    let refusal = async |mut client: Client, change: fn(&mut heddle_api::proto::v1::Hello)| {
        client.hello(change).await;
        refused(client.next().await)
    };
    let client = rig.connect("web-1", "127.0.0.2").await;
    assert_eq!(refusal(client, |hello| hello.pod = "db-0".into()).await, Code::PermissionDenied);
    assert_eq!(rig.refusals("other_identity").await, 1);

    let client = rig.connect_with(rig.credentials("web-1", "127.0.0.2").await, "127.0.0.3").await;
    assert_eq!(refusal(client.unwrap(), |_| {}).await, Code::PermissionDenied);
    assert_eq!(rig.refusals("other_address").await, 1);

    let nobody = rig.connect_with(None, "127.0.0.2").await;
    assert_eq!(nobody.map(|_| ()).unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(rig.refusals("certificate_missing").await, 1);

    let foreign = Rig::start(&web_pods(), &[]).await;
    let credentials = foreign.credentials("web-1", "127.0.0.2").await;
    rig.connect_with(credentials, "127.0.0.2").await.map(|_| ()).expect_err("another root");
}

#[tokio::test]
async fn a_stream_ends_with_its_pod_and_with_a_newer_stream() {
    let rig = Rig::start(&web_pods(), &[]).await;
    let mut older = rig.connect("web-1", "127.0.0.2").await;
    older.hello(|_| {}).await;
    older.update().await;
    let mut newer = rig.connect("web-1", "127.0.0.2").await;
    newer.hello(|_| {}).await;
    newer.update().await;
    assert_eq!(refused(older.next().await), Code::Aborted);

    let mut replaced = web_pods();
    replaced[0].uid = "another".into();
    rig.publish(&replaced, &[]);
    assert_eq!(refused(newer.next().await), Code::PermissionDenied);
    assert!(rig.handle.fleet.members().is_empty());
}

#[tokio::test]
async fn verbs_reach_the_proxies_they_name() {
    let rig = Rig::start(&web_pods(), &[]).await;
    let mut client = rig.connect("web-1", "127.0.0.2").await;
    client.hello(|_| {}).await;
    client.update().await;
    assert_eq!(rig.ctl("renew shop/web-1").await, "1 ordered\n");
    let message = client.next().await.unwrap();
    assert!(matches!(message, Some(to_proxy::Message::RenewCertificate(_))), "{message:?}");
    assert_eq!(rig.ctl("renew").await, "1 ordered\n");
    assert!(matches!(client.next().await.unwrap(), Some(to_proxy::Message::RenewCertificate(_))));
    assert!(rig.ctl("renew shop/db-0").await.starts_with("error: no proxy"));
    assert!(rig.ctl("shutdown").await.starts_with("error: unknown verb"));
}

#[tokio::test]
async fn reports_are_counted_and_rejections_named() {
    let rig = Rig::start(&web_pods(), &[]).await;
    let mut client = rig.connect("web-1", "127.0.0.2").await;
    client.hello(|_| {}).await;
    let update = client.update().await;
    let rejected = &update.resources[0];
    client.report(rejected, Some(RejectionReason::InvalidValue)).await;
    client.report(&update.resources[1], None).await;
    rig.eventually(|| rig.handle.fleet.rejections().len() == 1).await;
    let (key, standing) = rig.handle.fleet.rejections().remove(0);
    assert_eq!(&*key.name, rejected.name);
    assert_eq!((standing.given, standing.active, standing.rejected), (1, 0, 1));
    assert_eq!(&*standing.rejecting[0].pod, "shop/web-1");
    assert_eq!(standing.rejecting[0].reason, RejectionReason::InvalidValue);

    let page = rig.get("/debug/subscribers").await;
    assert!(page.contains("\"verdict\": \"rejected\""), "{page}");
    assert!(page.contains("\"verdict\": \"active\""), "{page}");
    assert!(rig.get("/debug/catalog").await.contains("invalid_value"));

    drop(client);
    rig.eventually(|| rig.handle.fleet.rejections().is_empty()).await;
}

#[tokio::test]
async fn nothing_is_served_before_the_sources_are_read() {
    let rig = Rig::start_unread().await;
    assert!(rig.get("/readyz").await.contains("sources: not read yet"));
    assert!(rig.get("/livez").await.ends_with("ok\n"));
    rig.publish(&web_pods(), &[]);
    rig.wait_ready().await;
    rig.issue("127.0.0.2", &rig.token("web-1")).await.unwrap();
}

#[tokio::test]
async fn a_drain_sends_proxies_elsewhere() {
    let rig = Rig::start(&web_pods(), &[]).await;
    let mut client = rig.connect("web-1", "127.0.0.2").await;
    client.hello(|_| {}).await;
    client.update().await;
    let Rig { handle, .. } = rig;
    let ended = tokio::spawn(handle.shutdown(Duration::from_secs(10)));
    let message = client.next().await.unwrap();
    assert!(matches!(message, Some(to_proxy::Message::Reconnect(_))), "{message:?}");
    assert_eq!(client.next().await.unwrap(), None);
    drop(client);
    assert_eq!(ended.await.unwrap(), heddle_runtime::drain::Drained::Finished);
}
