//! The first message of a stream: who speaks, for which pod, subscribed to what.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1::{Hello, ToControlPlane, Version, to_control_plane};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::super::accept::Caller;
use super::super::fleet::{Fleet, Member};
use super::super::ledger::Ledger;
use super::{ADDRESSES_A_STREAM, Ended, bounded, protocol};
use crate::authn::verify_stream;
use crate::metrics::Metrics;
use crate::served::Served;

const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for hello, which must come first and soon.
pub(super) async fn receive(inbound: &mut Streaming<ToControlPlane>) -> Result<Hello, Ended> {
    match tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await {
        Ok(Ok(Some(ToControlPlane { message: Some(to_control_plane::Message::Hello(hello)) }))) => {
            Ok(hello)
        }
        Ok(Ok(Some(_))) => Err(protocol("the first message must be hello")),
        Ok(Ok(None) | Err(_)) => Err(Ended::ByProxy),
        Err(_) => {
            Err(Ended::Refused("no_hello", Status::deadline_exceeded("no hello in 10 seconds")))
        }
    }
}

/// The uid of the pod that the stream speaks for.
pub(super) fn authorize(
    metrics: &Metrics,
    current: &Served,
    hello: &Hello,
    identity: &SpiffeId,
    caller: &Caller,
) -> Result<Arc<str>, Ended> {
    verify_stream(&current.catalog, &hello.namespace, &hello.pod, identity, caller.peer)
        .map(|pod| pod.uid.clone())
        .map_err(|refusal| {
            metrics.authentication_refused.with_label_values(&[refusal.reason()]).inc();
            Ended::Refused("not_authorized", refusal.into())
        })
}

/// Makes the stream known to the fleet.
pub(super) fn join(
    fleet: &Fleet,
    hello: &Hello,
    identity: SpiffeId,
    caller: &Caller,
    subscriptions: BTreeSet<SocketAddr>,
) -> Arc<Member> {
    let member = Arc::new(Member {
        pod: format!("{}/{}", hello.namespace, hello.pod).into(),
        identity,
        peer: caller.peer,
        proxy_version: bounded(hello.proxy_version.clone()),
        level: hello.level,
        since: SystemTime::now(),
        ledger: Mutex::new(Ledger { subscriptions, ..Ledger::default() }),
        version: Mutex::new(Version::default()),
        traffic: Mutex::default(),
        renewals: watch::Sender::new(0),
        superseded: CancellationToken::new(),
    });
    fleet.join(member.clone());
    member
}

/// Addresses in the one form that names their resource.
pub(super) fn parse_addresses(texts: &[String]) -> Result<Vec<SocketAddr>, Ended> {
    if texts.len() > ADDRESSES_A_STREAM {
        return Err(protocol("more than 65536 addresses on one stream"));
    }
    let parse = |text: &String| {
        let address =
            text.parse::<SocketAddr>().ok().filter(|address| address.to_string() == *text);
        address.ok_or_else(|| protocol("an address is not of the form 10.0.0.1:80 or [fd00::1]:80"))
    };
    texts.iter().map(parse).collect()
}
