//! What an update does to what is held.

use heddle_api::proto::v1::ResourceType;
use prost::Message;

use super::*;

fn policy(default_tls: v1::TlsMode, hash: u64) -> v1::Resource {
    let policy = v1::InboundPolicy {
        namespace: "shop".into(),
        pod: "web".into(),
        default_tls: default_tls.into(),
        ..v1::InboundPolicy::default()
    };
    v1::Resource {
        r#type: ResourceType::InboundPolicy.into(),
        name: "shop/web".into(),
        hash,
        min_level: 1,
        body: policy.encode_to_vec().into(),
        ..v1::Resource::default()
    }
}

#[test]
fn a_confirmed_policy_ends_the_denial_that_a_bad_one_began() {
    let mut store = Store::new(None);
    let update = |resource| v1::Update {
        resources: vec![resource],
        complete: true,
        ..v1::Update::default()
    };
    assert_eq!(store.apply(update(policy(v1::TlsMode::Strict, 1)))[0].rejection, None);
    let reports = store.apply(update(policy(v1::TlsMode::Unspecified, 2)));
    assert!(reports[0].rejection.is_some());
    assert!(matches!(store.build().inbound, Inbound::Unusable));

    // The owner went back to the good one while the stream was down: it is what we say we hold.
    assert_eq!(store.held()[0].hash, 1);
    store.begin_resync();
    let confirmed =
        v1::ResourceRef { r#type: ResourceType::InboundPolicy.into(), name: "shop/web".into() };
    store.apply(v1::Update { confirmed: vec![confirmed], complete: true, ..v1::Update::default() });
    assert!(matches!(store.build().inbound, Inbound::Active(_)));
}
