//! One proxy's stream, top to bottom: hello, its answer, then changes, subscriptions, reports and
//! orders until it ends. Waits for nobody else, and nobody waits for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1::{
    Reconnect, RenewCertificate, ResourceType, Subscribe, ToControlPlane, TryAnother, Version,
    to_control_plane, to_proxy,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::accept::Caller;
use super::debounce::Debounce;
use super::fleet::{Fleet, Member};
use super::ledger::{Difference, Verdict, wanted};
use super::outbox::{Outbox, Unsent};
use super::pack::{BODY_LIMIT, Set, pack};
use crate::authn::verify_stream;
use crate::catalog::{Encoded, Key, Subscriber};
use crate::metrics::{Metrics, kind_label};
use crate::served::Served;
use crate::version::order;

mod hello;
mod report;

const ADDRESSES_A_MESSAGE: usize = 256;
const ADDRESSES_A_STREAM: usize = 65_536;
/// Text that a proxy chose, kept of it at most.
const TEXT_LIMIT: usize = 512;

/// What every session shares.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) served: watch::Receiver<Option<Served>>,
    pub(crate) known: watch::Receiver<Version>,
    pub(crate) fleet: Fleet,
    pub(crate) metrics: Metrics,
    pub(crate) drain: heddle_runtime::drain::Watch,
}

/// Why a stream ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The proxy ended it, or its connection is gone.
    ByProxy,
    Stalled,
    /// It has lived long enough, or the server drains: the proxy was told to connect again.
    Reconnect,
    /// This server is behind what the proxy holds.
    Behind,
    /// The same pod has opened a newer stream.
    Superseded,
    /// The proxy may not, or broke the protocol.
    Refused(&'static str, Status),
}

impl Ended {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::ByProxy => "by_proxy",
            Self::Stalled => "stalled",
            Self::Reconnect => "reconnect",
            Self::Behind => "behind",
            Self::Superseded => "superseded",
            Self::Refused(reason, _) => reason,
        }
    }
}

impl From<Unsent> for Ended {
    fn from(unsent: Unsent) -> Self {
        match unsent {
            Unsent::Stalled => Self::Stalled,
            Unsent::Closed => Self::ByProxy,
        }
    }
}

/// Serves one stream whose certificate proves `identity`, for at most `age`.
pub(crate) async fn serve(
    context: Context,
    caller: Caller,
    identity: SpiffeId,
    mut inbound: Streaming<ToControlPlane>,
    mut outbox: Outbox,
    age: Duration,
) {
    let metrics = context.metrics.clone();
    metrics.streams_open.inc();
    let ended = match Session::begin(context, &caller, identity, &mut inbound, &mut outbox).await {
        Ok(mut session) => {
            let ended = session.run(&mut inbound, &mut outbox, age).await;
            session.context.fleet.leave(&session.member);
            tracing::debug!(pod = %session.member.pod, reason = ended.reason(), "stream ended");
            ended
        }
        Err(ended) => ended,
    };
    metrics.streams_open.dec();
    metrics.streams_ended.with_label_values(&[ended.reason()]).inc();
    match ended {
        Ended::ByProxy | Ended::Reconnect | Ended::Behind => {}
        Ended::Refused(reason, status) => {
            tracing::warn!(peer = %caller.peer, reason, message = status.message(), "stream refused");
            outbox.fail(status);
        }
        Ended::Superseded => outbox.fail(Status::aborted("the pod has opened a newer stream")),
        Ended::Stalled => {
            // Its window is closed, so it cannot be told: the connection goes, and what is queued.
            metrics.queue_cuts.inc();
            tracing::warn!(peer = %caller.peer, "cut a proxy that does not read");
            caller.cut.cancel();
        }
    }
}

struct Session {
    context: Context,
    member: Arc<Member>,
    namespace: String,
    name: String,
    uid: Arc<str>,
    debounce: Debounce,
    /// When the oldest change that was not sent yet appeared.
    behind_since: Option<Instant>,
}

impl Session {
    /// From the first message to the end of its answer.
    async fn begin(
        context: Context,
        caller: &Caller,
        identity: SpiffeId,
        inbound: &mut Streaming<ToControlPlane>,
        outbox: &mut Outbox,
    ) -> Result<Self, Ended> {
        let hello = hello::receive(inbound).await?;
        let mut served = context.served.clone();
        let Some(current) = served.borrow_and_update().clone() else {
            let status = Status::unavailable("the sources have not been read yet");
            return Err(Ended::Refused("not_ready", status));
        };
        let uid = hello::authorize(&context.metrics, &current, &hello, &identity, caller)?;
        let known = [current.version, *context.known.borrow()];
        let known = known.into_iter().max_by_key(|version| order(*version)).unwrap_or_default();
        if order(hello.high_water.unwrap_or_default()) > order(known) {
            let message = TryAnother { server_version: Some(known) };
            outbox.send(to_proxy::Message::TryAnother(message)).await?;
            return Err(Ended::Behind);
        }
        let subscriptions = hello::parse_addresses(&hello.addresses)?.into_iter().collect();
        let member = hello::join(&context.fleet, &hello, identity, caller, subscriptions);
        let session = Self {
            context: Context { served, ..context },
            member,
            namespace: hello.namespace,
            name: hello.pod,
            uid,
            debounce: Debounce::default(),
            behind_since: None,
        };
        let held = hello.held.into_iter().filter_map(|held| {
            let kind = ResourceType::try_from(held.r#type).ok()?;
            Some((Key::new(kind, held.name), held.hash))
        });
        let answered =
            session.answer_hello(&current, held.collect(), hello.addresses, outbox).await;
        if answered.is_err() {
            session.context.fleet.leave(&session.member);
        }
        answered.map(|()| session)
    }

    /// Differences between what the proxy holds and what it should, ended by `complete`.
    async fn answer_hello(
        &self,
        current: &Served,
        held: HashMap<Key, u64>,
        resolved: Vec<String>,
        outbox: &mut Outbox,
    ) -> Result<(), Ended> {
        let (confirmed, changed): (Vec<_>, Vec<_>) = self
            .wanted(current)
            .into_iter()
            .partition(|resource| held.get(&resource.key) == Some(&resource.hash));
        self.member.lock_ledger().resume(&confirmed);
        let holding = confirmed.iter().map(|resource| (&resource.key, resource.hash));
        self.context.fleet.gave(holding, &[], &self.member.pod);
        for resource in &confirmed {
            let (key, pod) = (&resource.key, &self.member.pod);
            self.context.fleet.judged(key, resource.hash, Verdict::Pending, pod, None);
        }
        let set = Set {
            resolved,
            confirmed: confirmed.into_iter().map(|resource| resource.key.clone()).collect(),
            complete: true,
            ..Set::default()
        };
        self.send(current, Difference { changed, removed: Vec::new() }, set, outbox).await
    }

    /// Everything after the answer to hello.
    async fn run(
        &mut self,
        inbound: &mut Streaming<ToControlPlane>,
        outbox: &mut Outbox,
        age: Duration,
    ) -> Ended {
        let mut renewals = self.member.renewals.subscribe();
        let mut aged = std::pin::pin!(tokio::time::sleep(age));
        let superseded: CancellationToken = self.member.superseded.clone();
        let drain = self.context.drain.clone();
        loop {
            let due = self.debounce.due();
            let step = tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => self.apply(message, outbox).await,
                    Ok(None) | Err(_) => Err(Ended::ByProxy),
                },
                changed = self.context.served.changed() => match changed {
                    Ok(()) => self.note_change(outbox).await,
                    Err(_) => reconnect(outbox).await,
                },
                () = sleep_until(due) => self.push(outbox).await,
                unsent = outbox.unsent() => Err(unsent.into()),
                _ = renewals.changed() => {
                    let order = to_proxy::Message::RenewCertificate(RenewCertificate {});
                    outbox.send(order).await.map_err(Ended::from)
                }
                () = &mut aged => reconnect(outbox).await,
                () = drain.draining() => reconnect(outbox).await,
                () = superseded.cancelled() => Err(Ended::Superseded),
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    async fn apply(&mut self, message: ToControlPlane, outbox: &mut Outbox) -> Result<(), Ended> {
        match message.message {
            Some(to_control_plane::Message::Subscribe(subscribe)) => {
                self.subscribe(subscribe, outbox).await
            }
            Some(to_control_plane::Message::Report(report)) => {
                report::note_all(&self.context, &self.member, report);
                Ok(())
            }
            Some(to_control_plane::Message::Traffic(traffic)) => {
                self.member.lock_traffic().note(traffic, Instant::now());
                Ok(())
            }
            Some(to_control_plane::Message::Hello(_)) => Err(protocol("hello was said already")),
            // A kind of message that a newer proxy knows.
            None => Ok(()),
        }
    }

    /// Answered at once, together with whatever was waiting to be sent.
    async fn subscribe(&mut self, subscribe: Subscribe, outbox: &mut Outbox) -> Result<(), Ended> {
        if subscribe.add.len().max(subscribe.remove.len()) > ADDRESSES_A_MESSAGE {
            return Err(protocol("more than 256 addresses in one message"));
        }
        let (add, remove) =
            (hello::parse_addresses(&subscribe.add)?, hello::parse_addresses(&subscribe.remove)?);
        {
            let mut ledger = self.member.lock_ledger();
            for address in &remove {
                ledger.subscriptions.remove(address);
            }
            ledger.subscriptions.extend(add);
            if ledger.subscriptions.len() > ADDRESSES_A_STREAM {
                let status = Status::resource_exhausted("more than 65536 addresses on one stream");
                return Err(Ended::Refused("too_many_addresses", status));
            }
        }
        let Some(current) = self.context.served.borrow_and_update().clone() else {
            return Ok(());
        };
        let difference = self.difference(&current);
        if difference.is_empty() && subscribe.add.is_empty() {
            return Ok(());
        }
        let set = Set { resolved: subscribe.add, ..Set::default() };
        self.send(&current, difference, set, outbox).await?;
        self.debounce.sent();
        self.behind_since = None;
        Ok(())
    }

    /// Something changed: does it concern this proxy, and may it wait?
    async fn note_change(&mut self, outbox: &mut Outbox) -> Result<(), Ended> {
        let Some(current) = self.context.served.borrow_and_update().clone() else {
            return Ok(());
        };
        self.check_pod(&current)?;
        let difference = self.difference(&current);
        if difference.is_empty() {
            // What was pending has been taken back.
            self.debounce.sent();
            self.behind_since = None;
            return Ok(());
        }
        let urgent = self.member.lock_ledger().loses_endpoint(&difference);
        self.behind_since.get_or_insert(current.at);
        let now = Instant::now();
        self.debounce.change(now, urgent);
        if self.debounce.is_due(now) {
            self.push_difference(&current, difference, outbox).await?;
        }
        Ok(())
    }

    async fn push(&mut self, outbox: &mut Outbox) -> Result<(), Ended> {
        let Some(current) = self.context.served.borrow().clone() else { return Ok(()) };
        let difference = self.difference(&current);
        self.push_difference(&current, difference, outbox).await
    }

    async fn push_difference(
        &mut self,
        current: &Served,
        difference: Difference,
        outbox: &mut Outbox,
    ) -> Result<(), Ended> {
        if !difference.is_empty() {
            self.send(current, difference, Set::default(), outbox).await?;
        }
        self.debounce.sent();
        if let Some(since) = self.behind_since.take() {
            self.context.metrics.push_latency.observe(since.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Sends one atomic set, and only then counts it as given.
    async fn send(
        &self,
        current: &Served,
        difference: Difference,
        set: Set,
        outbox: &mut Outbox,
    ) -> Result<(), Ended> {
        let metrics = &self.context.metrics;
        let replaced = self.member.lock_ledger().commit(&difference);
        let given = difference.changed.iter().map(|resource| (&resource.key, resource.hash));
        self.context.fleet.gave(given, &replaced, &self.member.pod);
        let bytes: usize = difference.changed.iter().map(|resource| resource.body.len()).sum();
        let Difference { changed, removed } = difference;
        for update in pack(Set { changed, removed, version: current.version, ..set }) {
            outbox.send(to_proxy::Message::Update(update)).await?;
            metrics.updates_sent.inc();
        }
        metrics.update_bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
        self.member.note_version(current.version);
        Ok(())
    }

    fn difference(&self, current: &Served) -> Difference {
        let wanted = self.wanted(current);
        self.member.lock_ledger().difference(&wanted)
    }

    fn wanted(&self, current: &Served) -> Vec<Arc<Encoded>> {
        let subscriber = Subscriber { namespace: &self.namespace, pod: &self.name };
        let ledger = self.member.lock_ledger();
        let mut wanted = wanted(current, &subscriber, &ledger.subscriptions);
        for resource in &mut wanted {
            if resource.body.len() <= BODY_LIMIT {
                continue;
            }
            // No message holds it: the proxy keeps what it was given before.
            self.context.metrics.oversized.inc();
            let name = &resource.key.name;
            tracing::error!(kind = kind_label(resource.key.kind), %name, "resource is too large to be sent");
            if let Some(given) = ledger.given.get(&resource.key) {
                *resource = given.resource.clone();
            }
        }
        wanted.retain(|resource| resource.body.len() <= BODY_LIMIT);
        wanted
    }

    /// The stream speaks for one live pod: when that is gone or another, so is the stream.
    fn check_pod(&self, current: &Served) -> Result<(), Ended> {
        let (identity, peer) = (&self.member.identity, self.member.peer);
        match verify_stream(&current.catalog, &self.namespace, &self.name, identity, peer) {
            Ok(pod) if pod.uid == self.uid => Ok(()),
            Ok(_) => {
                let status = Status::permission_denied("the pod was replaced by another");
                Err(Ended::Refused("pod_replaced", status))
            }
            Err(refusal) => Err(Ended::Refused("pod_gone", refusal.into())),
        }
    }
}

async fn reconnect(outbox: &mut Outbox) -> Result<(), Ended> {
    outbox.send(to_proxy::Message::Reconnect(Reconnect {})).await?;
    Err(Ended::Reconnect)
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn protocol(message: &str) -> Ended {
    Ended::Refused("protocol_error", Status::invalid_argument(message))
}

fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_LIMIT));
    text
}
