//! One control plane's reading of an API server, in this process, and what it comes to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use heddle_api::proto::v1::Version;
use heddle_control_plane::app::Gates;
use heddle_control_plane::catalog::Catalog;
use heddle_control_plane::config::{self, RawConfig, Source};
use heddle_control_plane::kubernetes::Context;
use heddle_control_plane::metrics::Metrics;
use heddle_runtime::admin::Readiness;
use heddle_runtime::drain;
use prometheus::Registry;
use tokio::sync::watch;

/// A machine that compiles meanwhile takes its time.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Replica {
    pub(crate) context: Context,
    pub(crate) catalog: watch::Receiver<Option<Catalog>>,
    pub(crate) ready: watch::Receiver<Readiness>,
    known: watch::Receiver<Version>,
    signal: drain::Signal,
}

impl Replica {
    pub(crate) async fn start(kubeconfig: &Path, pod: &str) -> Self {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let (signal, drain) = drain::channel();
        let gates = Gates::new(drain.clone());
        let ready = gates.readiness();
        let settings = settings(kubeconfig, pod);
        let context = Context::open(settings, registry, metrics, gates, drain).await.unwrap();
        let (catalog, known) = (context.catalogs(), context.versions.known());
        Self { context, catalog, ready, known, signal }
    }

    /// The first catalog for which this holds.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Catalog) -> bool) -> Catalog {
        let mut catalog = self.catalog.clone();
        let found = catalog.wait_for(|catalog| catalog.as_ref().is_some_and(&holds));
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(found) => found.unwrap().clone().unwrap(),
            Err(_) => panic!(
                "never so: {what}; blocked: {:?}; there is {:#?}",
                self.ready.borrow(),
                self.catalog.borrow().as_ref().map(|catalog| facts(catalog, &[]))
            ),
        }
    }

    /// Waits until what blocks is what is asked for.
    pub(crate) async fn until_blocked(&self, wanted: impl Fn(&BTreeMap<String, String>) -> bool) {
        let mut ready = self.ready.clone();
        let found = ready.wait_for(|ready| wanted(&blockers(ready)));
        let found = tokio::time::timeout(PATIENCE, found).await.is_ok();
        assert!(found, "{:?}", self.ready.borrow());
    }

    pub(crate) async fn until_known(&self, version: Version) {
        let order = |version: Version| (version.epoch, version.number);
        let mut known = self.known.clone();
        let found = known.wait_for(|known| order(*known) >= order(version));
        let found = tokio::time::timeout(PATIENCE, found).await;
        assert!(found.is_ok(), "{version:?} is not known, but {:?}", self.known.borrow());
    }

    /// How often a kind was listed as a whole.
    pub(crate) fn lists(&self, kind: &str) -> u64 {
        self.context.metrics.watches.lists.with_label_values(&[kind]).get()
    }

    /// Lets go of what it holds.
    pub(crate) async fn end(self) {
        self.signal.finish(Duration::from_secs(10)).await;
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.signal.abort();
    }
}

fn blockers(ready: &Readiness) -> BTreeMap<String, String> {
    ready.blockers().map(|(part, reason)| (part.to_owned(), reason.to_owned())).collect()
}

fn settings(kubeconfig: &Path, pod: &str) -> config::Kubernetes {
    let raw = RawConfig {
        source: "kubernetes".to_owned(),
        pod: Some(pod.to_owned()),
        kubeconfig: Some(kubeconfig.to_owned()),
        lease_duration: Some("3s".to_owned()),
        lease_renew: Some("2s".to_owned()),
        lease_retry: Some("300ms".to_owned()),
        listen: "127.0.0.1:0".to_owned(),
        admin: "127.0.0.1:0".to_owned(),
        leaf_lifetime: "24h".to_owned(),
        stream_age: "30m".to_owned(),
        drain_timeout: "5s".to_owned(),
        log_format: "plain".to_owned(),
        log: "info".to_owned(),
        ..RawConfig::default()
    };
    match raw.check().unwrap().source {
        Source::Kubernetes(settings) => settings,
        Source::Files(settings) => panic!("{settings:?}"),
    }
}

/// What a catalog says, whenever and wherever it was compiled: each resource by its hash, and what
/// is found behind each of `addresses`.
pub(crate) fn facts(catalog: &Catalog, addresses: &[SocketAddr]) -> BTreeMap<String, u64> {
    let resources =
        catalog.iter().map(|one| (format!("{:?} {}", one.key.kind, one.key.name), one.hash));
    let behind = addresses.iter().flat_map(|address| {
        let closure = catalog.closure(*address, "shop");
        let one = move |one: std::sync::Arc<heddle_control_plane::catalog::Encoded>| {
            (format!("{address} → {:?} {}", one.key.kind, one.key.name), one.hash)
        };
        closure.into_iter().map(one)
    });
    resources.chain(behind).collect()
}
