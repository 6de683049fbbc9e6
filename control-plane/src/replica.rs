//! Replicas of one control plane: each tells the others how its resources stand with its proxies,
//! and the leader adds it up. Memory grows with resources and replicas, never with proxies.
//!
//! Both sides prove the control plane's own SPIFFE id. A replica whose stream ends takes its counts
//! with it: its proxies are on their way to another one, which will count them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1::replica_server::Replica;
use heddle_api::proto::v1::{ResourceType, Standings, StandingsRequest};
use heddle_runtime::backoff::Backoff;
use heddle_runtime::drain;
use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::catalog::Key;
use crate::discovery::fleet::{Fleet, Standing};
use crate::error::chain;
use crate::served::Served;

mod dial;

pub use dial::Credentials;

/// Standings in a message, as the contract has it.
const STANDINGS_A_MESSAGE: usize = 1024;
/// Between two messages with changes.
const PACE: Duration = Duration::from_millis(500);
/// A receiver that takes nothing for so long is cut.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Replicas that are asked; more than anybody runs.
const REPLICA_LIMIT: usize = 32;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

type Counted = HashMap<(Key, u64), Standing>;

/// Tells what this replica's proxies say.
pub(crate) struct Teller {
    pub(crate) fleet: Fleet,
    pub(crate) served: watch::Receiver<Option<Served>>,
    pub(crate) drain: drain::Watch,
    /// The identity that a request's connection proves.
    pub(crate) identify: fn(&Request<StandingsRequest>) -> Result<SpiffeId, Status>,
}

#[tonic::async_trait]
impl Replica for Teller {
    type StandingsStream = Pin<Box<dyn Stream<Item = Result<Standings, Status>> + Send>>;

    async fn standings(
        &self,
        request: Request<StandingsRequest>,
    ) -> Result<Response<Self::StandingsStream>, Status> {
        let caller = (self.identify)(&request)?;
        let domain = self.served.borrow().as_ref().and_then(Served::trust_domain);
        if domain.and_then(|domain| dial::own_identity(&domain)).as_ref() != Some(&caller) {
            tracing::warn!(%caller, "standings are refused");
            return Err(Status::permission_denied("only for replicas of the control plane"));
        }
        let (sender, stream) = mpsc::channel(1);
        let (fleet, drain) = (self.fleet.clone(), self.drain.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = tell(&fleet, &sender) => {}
                () = drain.draining() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Everything, then what changes, until the receiver is gone or takes nothing.
async fn tell(fleet: &Fleet, sender: &mpsc::Sender<Result<Standings, Status>>) {
    let mut changes = fleet.changes();
    let mut told = Counted::new();
    let mut is_first = true;
    loop {
        changes.borrow_and_update();
        let now = fleet.standings();
        let messages = differences(&told, &now, is_first);
        for message in messages {
            let sent = tokio::time::timeout(SEND_TIMEOUT, sender.send(Ok(message))).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
        (told, is_first) = (now, false);
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(PACE) => {}
        }
        tokio::select! {
            () = sender.closed() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

fn differences(told: &Counted, now: &Counted, complete: bool) -> Vec<Standings> {
    let news = now.iter().filter(|(slot, standing)| told.get(*slot) != Some(standing));
    let news = news.map(|((key, hash), standing)| standing.tell(key, *hash));
    let gone = told.keys().filter(|slot| !now.contains_key(*slot));
    let gone = gone.map(|(key, hash)| Standing::default().tell(key, *hash));
    let mut changed: Vec<_> = news.chain(gone).collect();
    let mut messages = Vec::new();
    while changed.len() > STANDINGS_A_MESSAGE {
        let rest = changed.split_off(STANDINGS_A_MESSAGE);
        let changed = std::mem::replace(&mut changed, rest);
        messages.push(Standings { changed, complete: false });
    }
    if complete || !changed.is_empty() {
        messages.push(Standings { changed, complete });
    }
    messages
}

/// What all replicas count, this one included. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gathered {
    own: Fleet,
    others: Arc<Mutex<HashMap<IpAddr, Counted>>>,
    revision: watch::Sender<u64>,
}

impl Gathered {
    #[must_use]
    pub fn new(own: Fleet) -> Self {
        Self { own, others: Arc::default(), revision: watch::Sender::default() }
    }

    /// How a body stands with the proxies of every replica that is heard.
    #[must_use]
    pub fn standing(&self, key: &Key, hash: u64) -> Standing {
        let mut sum = self.own.standing(key, hash);
        let slot = (key.clone(), hash);
        for counted in self.lock().values() {
            if let Some(standing) = counted.get(&slot) {
                sum.add(standing);
            }
        }
        sum
    }

    /// Everything at a moment.
    #[must_use]
    pub fn survey(&self) -> Survey {
        let mut sum = self.own.standings();
        for counted in self.lock().values() {
            for (slot, standing) in counted {
                sum.entry(slot.clone()).or_default().add(standing);
            }
        }
        sum.into_iter().collect()
    }

    /// Tell when a standing has changed: this replica's own, and another's.
    #[must_use]
    pub fn changes(&self) -> [watch::Receiver<u64>; 2] {
        [self.own.changes(), self.revision.subscribe()]
    }

    fn set(&self, replica: IpAddr, counted: Option<Counted>) {
        match counted {
            Some(counted) => drop(self.lock().insert(replica, counted)),
            None => drop(self.lock().remove(&replica)),
        }
        self.revision.send_modify(|revision| *revision = revision.wrapping_add(1));
    }

    fn merge(&self, replica: IpAddr, told: Vec<heddle_api::proto::v1::Standing>) {
        let mut others = self.lock();
        let counted = others.entry(replica).or_default();
        for one in told {
            let Ok(kind) = ResourceType::try_from(one.r#type) else { continue };
            let slot = (Key::new(kind, one.name.as_str()), one.hash);
            match Standing::parse(one) {
                Some(standing) => drop(counted.insert(slot, standing)),
                None => drop(counted.remove(&slot)),
            }
        }
        drop(others);
        self.revision.send_modify(|revision| *revision = revision.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Counted>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all proxies said of all resources at a moment.
#[derive(Debug, Default)]
pub struct Survey {
    /// By resource: proxies that hold any body of it, and how each body stands.
    resources: HashMap<Key, (u64, HashMap<u64, Standing>)>,
}

impl Survey {
    /// How many proxies hold the resource, of whatever body, and how this body stands with those
    /// that were given it.
    #[must_use]
    pub fn of(&self, key: &Key, hash: u64) -> (u64, Option<&Standing>) {
        self.resources.get(key).map_or((0, None), |(known, bodies)| (*known, bodies.get(&hash)))
    }
}

impl FromIterator<((Key, u64), Standing)> for Survey {
    fn from_iter<I: IntoIterator<Item = ((Key, u64), Standing)>>(standings: I) -> Self {
        let mut survey = Self::default();
        for ((key, hash), standing) in standings {
            let (known, bodies) = survey.resources.entry(key).or_default();
            *known += standing.given;
            bodies.insert(hash, standing);
        }
        survey
    }
}

/// Hears every other replica, as long as it is told to run.
pub struct Gatherer {
    pub gathered: Gathered,
    pub served: watch::Receiver<Option<Served>>,
    pub credentials: Credentials,
    /// Own pod, "<namespace>/<name>": it is not asked.
    pub own: String,
    /// The replicas' service account, "<namespace>/<name>".
    pub service_account: (String, String),
    /// Where they listen for proxies, and for each other.
    pub port: u16,
}

impl Gatherer {
    /// Follows the replicas that the catalog knows; forgets all of them when dropped.
    pub async fn run(mut self) {
        let mut asked = Asked { gathered: self.gathered.clone(), tasks: HashMap::new() };
        loop {
            let replicas = self.replicas();
            asked.retain(&replicas);
            for replica in replicas {
                if asked.tasks.contains_key(&replica) {
                    continue;
                }
                let address = SocketAddr::new(replica, self.port);
                let (gathered, credentials) = (self.gathered.clone(), self.credentials.clone());
                let task = tokio::spawn(hear(address, gathered, credentials));
                asked.tasks.insert(replica, task);
            }
            if self.served.changed().await.is_err() {
                return;
            }
        }
    }

    /// Each by one address.
    fn replicas(&mut self) -> HashSet<IpAddr> {
        let served = self.served.borrow_and_update().clone();
        let Some(served) = served else { return HashSet::new() };
        let (namespace, service_account) = &self.service_account;
        let replicas = served.catalog.pods_of(namespace, service_account);
        let replicas = replicas.filter(|pod| format!("{}/{}", pod.namespace, pod.name) != self.own);
        let mut all: Vec<_> = replicas.filter_map(|pod| pod.addresses.first().copied()).collect();
        all.sort_unstable();
        all.into_iter().take(REPLICA_LIMIT).collect()
    }
}

/// The replicas that are being heard; ended with this.
struct Asked {
    gathered: Gathered,
    tasks: HashMap<IpAddr, JoinHandle<()>>,
}

impl Asked {
    fn retain(&mut self, replicas: &HashSet<IpAddr>) {
        let gathered = &self.gathered;
        self.tasks.retain(|replica, task| {
            let stays = replicas.contains(replica);
            if !stays {
                task.abort();
                gathered.set(*replica, None);
            }
            stays
        });
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.retain(&HashSet::new());
    }
}

/// Hears one replica, connecting again whenever the stream ends.
async fn hear(address: SocketAddr, gathered: Gathered, credentials: Credentials) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        let ended = hear_once(address, &gathered, &credentials, &mut backoff).await;
        gathered.set(address.ip(), None);
        if let Err(error) = ended {
            tracing::debug!(replica = %address, error = %format!("{error:#}"), "replica not heard");
        }
        let pause = backoff.next(rand::rng().random());
        tokio::time::sleep(pause).await;
    }
}

async fn hear_once(
    address: SocketAddr,
    gathered: &Gathered,
    credentials: &Credentials,
    backoff: &mut Backoff,
) -> anyhow::Result<()> {
    let mut client = dial::connect(address, credentials).await?;
    let opened = client.standings(StandingsRequest {}).await;
    let mut stream = opened.map_err(|status| anyhow::anyhow!(chain(&status)))?.into_inner();
    // Shown only once it is whole: half of the counts would be read as half of the fleet.
    let mut staged = Some(Vec::new());
    while let Some(message) = stream.message().await? {
        backoff.reset();
        match &mut staged {
            None => gathered.merge(address.ip(), message.changed),
            Some(all) => {
                all.extend(message.changed);
                if message.complete {
                    gathered.set(address.ip(), Some(Counted::new()));
                    gathered.merge(address.ip(), staged.take().unwrap_or_default());
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(n: u64) -> (Key, u64) {
        (Key::new(ResourceType::Split, "shop/web"), n)
    }

    fn standing(given: u64, active: u64) -> Standing {
        Standing { given, active, ..Standing::default() }
    }

    #[test]
    fn a_receiver_knows_what_the_teller_knows() {
        let gathered = Gathered::new(Fleet::default());
        let replica: IpAddr = "10.0.0.1".parse().unwrap();
        let mut told = Counted::new();
        let states = [
            (0..3000).map(|n| (slot(n), standing(n + 1, n))).collect(),
            Counted::from([(slot(1), standing(7, 5)), (slot(2), standing(3, 2))]),
            Counted::new(),
        ];
        for (round, now) in states.into_iter().enumerate() {
            let messages = differences(&told, &now, round == 0);
            assert_eq!(
                messages.iter().filter(|message| message.complete).count(),
                usize::from(round == 0)
            );
            for message in messages {
                assert!(message.changed.len() <= STANDINGS_A_MESSAGE);
                gathered.merge(replica, message.changed);
            }
            for n in 0..3000 {
                let wanted = now.get(&slot(n)).cloned().unwrap_or_default();
                let (key, hash) = slot(n);
                let heard = gathered.standing(&key, hash);
                assert_eq!((heard.given, heard.active), (wanted.given, wanted.active));
            }
            assert!(differences(&now, &now, false).is_empty());
            told = now;
        }
    }

    #[test]
    fn a_replica_that_is_gone_takes_its_counts_with_it() {
        let gathered = Gathered::new(Fleet::default());
        let (key, hash) = slot(1);
        for replica in ["10.0.0.1", "10.0.0.2"] {
            let told = standing(2, 1).tell(&key, hash);
            gathered.merge(replica.parse().unwrap(), vec![told]);
        }
        assert_eq!(gathered.standing(&key, hash).given, 4);
        gathered.set("10.0.0.1".parse().unwrap(), None);
        assert_eq!(gathered.standing(&key, hash).given, 2);
    }
}
