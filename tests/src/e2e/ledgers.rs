//! The servers' ledgers, read from their logs while they run: a pod that is deleted takes its log
//! with it.

use std::collections::{BTreeMap, HashSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::space::{POLL, Space};
use crate::app::{Entry, parse_ledger};
use crate::cluster::tools::Tools;
use crate::load::Record;

/// What every pod that a selector ever matched has entered.
#[derive(Debug)]
pub struct Ledgers {
    texts: Texts,
    /// Looks for new pods; ends the readers with itself.
    watching: JoinHandle<()>,
}

/// The log of each pod so far, by name.
type Texts = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

impl Ledgers {
    /// Reads the logs of the containers `app` of all pods with a label, and of those to come.
    #[must_use]
    pub fn follow(space: Space<'_>, selector: &str) -> Self {
        let texts = Texts::default();
        let reader = Reader {
            tools: Tools::clone(space.cluster()),
            namespace: space.name().to_owned(),
            texts: Arc::clone(&texts),
        };
        let watching = tokio::spawn(reader.watch(selector.to_owned()));
        Self { texts, watching }
    }

    /// Every entry, once there is one for each request that was answered, or once there is no use
    /// in waiting for it. Then for a moment more: a second entry would be a duplicate.
    pub async fn finish(self, records: &[Record]) -> Vec<Entry> {
        let answered: HashSet<_> =
            records.iter().filter(|it| it.outcome.is_ok()).map(|it| it.id.as_str()).collect();
        let begun = Instant::now();
        loop {
            let entries = self.entries();
            let entered = entries.iter().filter(|entry| answered.contains(entry.id.as_str()));
            let entered: HashSet<_> = entered.map(|entry| entry.id.as_str()).collect();
            if entered.len() == answered.len() || begun.elapsed() > PATIENCE {
                break;
            }
            sleep(POLL).await;
        }
        sleep(MOMENT).await;
        self.entries()
    }

    fn entries(&self) -> Vec<Entry> {
        let texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let texts = texts.values().map(|text| String::from_utf8_lossy(text));
        texts.flat_map(|text| parse_ledger(&text).collect::<Vec<_>>()).collect()
    }
}

impl Drop for Ledgers {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

#[derive(Clone)]
struct Reader {
    tools: Tools,
    namespace: String,
    texts: Texts,
}

impl Reader {
    async fn watch(self, selector: String) {
        let mut readers = BTreeMap::<String, JoinHandle<()>>::new();
        let mut tasks = AbortAll(Vec::new());
        loop {
            let path = "-o=jsonpath={.items[*].metadata.name}";
            let arguments = ["get", "pods", "-n", &self.namespace, "-l", &selector, path];
            // Nobody is known while the API server is away; those that are stay known.
            let pods = self.tools.ask(&arguments).await.unwrap_or_default();
            for pod in pods.split_whitespace() {
                if readers.get(pod).is_none_or(JoinHandle::is_finished) {
                    let task = tokio::spawn(self.clone().read(pod.to_owned()));
                    tasks.0.push(task.abort_handle());
                    readers.insert(pod.to_owned(), task);
                }
            }
            sleep(POLL).await;
        }
    }

    /// Reads a log to its end, or until the way to it is lost. Each attempt begins at the
    /// beginning.
    async fn read(self, pod: String) {
        let mut command = self.tools.command("kubectl");
        command.args(["logs", "-f", &pod, "-n", &self.namespace, "-c", "app"]);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(mut child) = command.spawn() else { return };
        let Some(mut out) = child.stdout.take() else { return };
        let (mut position, mut buffer) = (0, vec![0; 64 * 1024]);
        while let Ok(read) = out.read(&mut buffer).await
            && read > 0
        {
            let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = texts.entry(pod.clone()).or_default();
            // A log only grows: of what an earlier attempt has read, nothing is read differently.
            let known = kept.len().saturating_sub(position).min(read);
            kept.extend_from_slice(&buffer[known..read]);
            position += read;
        }
    }
}

struct AbortAll(Vec<tokio::task::AbortHandle>);

impl Drop for AbortAll {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// What an entry may take from a server to here.
const PATIENCE: Duration = Duration::from_secs(15);
const MOMENT: Duration = Duration::from_secs(1);
