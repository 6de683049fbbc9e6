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

/// Runs until the source ends. `next` answers a version above every one before; it is asked once per
/// catalog.
pub async fn run(
    mut source: mpsc::Receiver<Batch>,
    catalog: watch::Sender<Option<Catalog>>,
    mut next: impl FnMut() -> Version,
) {
    let mut publisher = Publisher::default();
    while let Some(batch) = source.recv().await {
        if let Some(published) = publisher.apply(batch, &mut next) {
            catalog.send_replace(Some(published));
        }
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
            let Issue { kind, namespace, name, location, path, message } = issue;
            warn!(kind, namespace, name, location, path, message, "object not fully in force");
        }
        for issue in self.issues.iter().filter(|issue| !issues.contains(issue)) {
            let Issue { kind, namespace, name, path, .. } = issue;
            info!(kind, namespace, name, path, "issue settled");
        }
        self.issues = issues.to_vec();
    }
}
