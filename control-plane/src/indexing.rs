//! The one task that writes the index: batches in, catalogs out.
//!
//! A batch is applied, compiled and published as a whole, so that nobody sees half of a change.
//! Nothing is published before a source has told everything it has.

use heddle_api::proto::v1::Version;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::catalog::{Catalog, Issue};
use crate::compile::Compiler;
use crate::index::{Batch, Changed, Index};
use crate::version::Versions;

/// Runs until the source ends.
pub async fn run(
    mut source: mpsc::Receiver<Batch>,
    catalog: watch::Sender<Option<Catalog>>,
    versions: Versions,
) {
    let mut publisher = Publisher::default();
    while let Some(batch) = source.recv().await {
        versions.observe(batch.mark);
        if let Some(published) = publisher.apply(batch, &mut || versions.next()) {
            catalog.send_replace(Some(published));
        }
        versions.settle();
    }
}

/// The index and what was last made of it.
#[derive(Default)]
struct Publisher {
    index: Index,
    compiler: Compiler,
    /// What the source has told before it was complete.
    pending: Option<Changed>,
    is_complete: bool,
    issues: Vec<Issue>,
}

impl Publisher {
    fn apply(&mut self, batch: Batch, next: &mut dyn FnMut() -> Version) -> Option<Catalog> {
        let events = batch.events.len();
        let mut changed = self.index.apply(batch.events);
        self.is_complete |= batch.initial;
        if let Some(pending) = self.pending.take() {
            changed.merge(pending);
        }
        if !self.is_complete {
            self.pending = Some(changed);
            self.log_issues(&batch.refused);
            return None;
        }
        let catalog = self.compiler.compile(&self.index, &changed, batch.refused, next)?;
        let Version { epoch, number } = catalog.version();
        debug!(epoch, number, events, "catalog published");
        self.log_issues(catalog.issues());
        Some(catalog)
    }

    /// Each issue once, when it appears; and once when it is gone.
    fn log_issues(&mut self, issues: &[Issue]) {
        for issue in issues.iter().filter(|issue| !self.issues.contains(issue)) {
            let Issue { kind, namespace, name, location, path, reason, message, .. } = issue;
            let reason = reason.as_str();
            warn!(
                kind,
                namespace,
                name,
                location,
                path,
                reason,
                problem = message,
                "not fully in force"
            );
        }
        for issue in self.issues.iter().filter(|issue| !issues.contains(issue)) {
            let Issue { kind, namespace, name, path, .. } = issue;
            info!(kind, namespace, name, path, "issue settled");
        }
        self.issues = issues.to_vec();
    }
}

#[cfg(test)]
mod tests {
    use heddle_api::proto::v1::ResourceType;
    use heddle_resources::{Kind, ObjectKey};

    use super::*;
    use crate::catalog::Reason;
    use crate::index::tests::{objects, ours, service};
    use crate::index::{Event, Mark};
    use crate::version::Marks;

    fn batch(text: &str, initial: bool) -> Batch {
        let events = objects(text).into_iter().map(Event::Apply).collect();
        Batch { events, initial, ..Batch::default() }
    }

    fn at(number: u64, batch: Batch) -> Batch {
        Batch { mark: Some(Mark { epoch: 3, seen: number, known: number }), ..batch }
    }

    #[tokio::test]
    async fn nothing_is_published_before_everything_is_read() {
        let (source, batches) = mpsc::channel(8);
        let (sender, mut catalog) = watch::channel(None);
        let versions = Versions::Marked(Marks::default());
        let known = versions.known();
        let task = tokio::spawn(run(batches, sender, versions));
        source.send(at(1, batch(&service("a", "10.96.0.1"), false))).await.unwrap();
        source.send(at(2, batch(&service("b", "10.96.0.2"), true))).await.unwrap();
        catalog.changed().await.unwrap();
        let first = catalog.borrow_and_update().clone().unwrap();
        assert_eq!(first.version(), Version { epoch: 3, number: 2 });
        assert_eq!(first.iter().filter(|one| one.key.kind == ResourceType::Service).count(), 2);

        // What changes nothing is not published; what does, whole.
        source.send(at(4, batch(&service("a", "10.96.0.1"), false))).await.unwrap();
        let split = ours(
            "TrafficSplit",
            "s",
            "{ service: a, backends: [{ service: c, weight: 1 }, { service: b, weight: 1 }] }",
        );
        let mut both = batch(&(split + &service("c", "10.96.0.3")), false);
        both.events.push(Event::Delete(ObjectKey::new(Kind::Service, "shop", "b")));
        source.send(at(6, both)).await.unwrap();
        catalog.changed().await.unwrap();
        let second = catalog.borrow_and_update().clone().unwrap();
        assert_eq!(second.version(), Version { epoch: 3, number: 6 });
        let closure = second.closure("10.96.0.1:80".parse().unwrap(), "shop");
        let names: Vec<_> = closure.iter().map(|one| &*one.key.name).collect();
        assert!(names.contains(&"shop/c:80") && !names.contains(&"shop/b:80"), "{names:?}");
        assert_eq!(second.issues().len(), 1, "the backend that is gone");

        drop(source);
        task.await.unwrap();
        assert_eq!(*known.borrow(), Version { epoch: 3, number: 6 });
    }

    #[test]
    fn what_the_source_refuses_is_an_issue() {
        let mut publisher = Publisher::default();
        let mut next = || Version { epoch: 1, number: 1 };
        let refused = Issue {
            kind: "File".to_owned(),
            namespace: String::new(),
            name: "a.yaml".to_owned(),
            location: "a.yaml:1:1".to_owned(),
            path: String::new(),
            reason: Reason::Invalid,
            message: "x".to_owned(),
            generation: None,
        };
        let batch = |refused| Batch { initial: true, refused, ..Batch::default() };
        let catalog = publisher.apply(batch(vec![refused.clone()]), &mut next).unwrap();
        assert_eq!(catalog.issues(), [refused]);
        let catalog = publisher.apply(batch(Vec::new()), &mut next).unwrap();
        assert_eq!(catalog.issues(), []);
        assert!(publisher.apply(batch(Vec::new()), &mut next).is_none());
    }
}
