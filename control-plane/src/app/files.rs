//! What the source `files` adds: a state directory that one process holds, the authority and the
//! tokens in it, and the control socket.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use heddle_runtime::telemetry::LevelHandle;
use tokio::sync::{mpsc, watch};

use super::{App, BATCH_QUEUE, Handle, Sourced, Trust};
use crate::admin::Dumps;
use crate::authn::{self, TokenKey, Verifier};
use crate::ca::bundle::{self, Bundle};
use crate::ca::{Authority, ends_first};
use crate::catalog::Catalog;
use crate::config::Files;
use crate::control::{self, Control};
use crate::error::Error;
use crate::version::{Counter, Versions};
use crate::{indexing, state};

/// Reads the directory, compiles it, serves it.
pub(super) async fn start(
    app: App,
    settings: Files,
    level: Option<LevelHandle>,
) -> Result<Handle, Error> {
    let state = State::open(&app, settings)?;
    let (batches, read) = mpsc::channel(BATCH_QUEUE);
    let (compiled, catalog) = watch::channel(None);
    let failures = app.metrics.source_errors.with_label_values(&["files"]);
    tokio::spawn(crate::files::run(state.settings.dir.clone(), batches, failures));
    tokio::spawn(indexing::run(read, compiled, Versions::Counted(state.counter.clone())));
    state.serve(app, catalog, level).await
}

/// What must be there before anything else.
pub(crate) struct State {
    settings: Files,
    counter: Counter,
    /// Two control planes on one state directory would hand out the same versions.
    lock: File,
}

impl State {
    /// Opens the state directory.
    ///
    /// # Errors
    /// When it cannot be used, or another control plane runs on it.
    pub(crate) fn open(app: &App, settings: Files) -> Result<Self, Error> {
        state::create_dir(&settings.state_dir, 0o755)?;
        let lock = lock(&settings.state_dir.join("lock"))?;
        let path = settings.state_dir.join("version");
        let counter = Counter::open(path, app.metrics.version_write_failures.clone())?;
        Ok(Self { settings, counter, lock })
    }

    /// Serves what `catalog` says.
    ///
    /// # Errors
    /// When the authority or the control socket cannot be opened, or an address is taken.
    pub(crate) async fn serve(
        self,
        app: App,
        catalog: watch::Receiver<Option<Catalog>>,
        level: Option<LevelHandle>,
    ) -> Result<Handle, Error> {
        let versions = Versions::Counted(self.counter.clone());
        let trust = self.trust(&app, &versions)?;
        let control_listener = control::bind(&self.settings.state_dir)?;
        let drain = app.drain.clone();
        let mut handle = app.serve(Sourced { catalog, versions, trust }).await?;
        let dumps = Dumps { served: handle.served.clone(), fleet: handle.fleet.clone() };
        let control = Control { dumps, versions: self.counter, level };
        tokio::spawn(async move {
            control::serve(control_listener, control, drain.aborted()).await;
        });
        handle.lock = Some(self.lock);
        Ok(handle)
    }

    fn trust(&self, app: &App, versions: &Versions) -> Result<Trust, Error> {
        let Files { state_dir, authority, .. } = &self.settings;
        let lifetime = app.config.leaf_lifetime;
        let authority = Authority::open(authority, state_dir, lifetime, SystemTime::now())?;
        app.metrics.set_expiry("issuer", authority.not_after());
        if let Some(end) = ends_first(authority.roots()) {
            app.metrics.set_expiry("root", end);
        }
        let bundle = self.keep_bundle(app, &authority, versions);
        let token_key = self.keep_token_key(app);
        app.gates.follow("token-key", token_key.clone(), |key| key.clone().err());
        let authority = watch::Sender::new(Some(Arc::new(authority))).subscribe();
        Ok(Trust { authority, bundle, verifier: Verifier::Mac(token_key) })
    }

    fn keep_bundle(
        &self,
        app: &App,
        authority: &Authority,
        versions: &Versions,
    ) -> watch::Receiver<Option<Arc<Bundle>>> {
        let first = Bundle::new(authority.roots(), versions.next());
        let (bundle, receiver) = watch::channel(Some(Arc::new(first)));
        let keeper = bundle::Keeper {
            own: authority.roots().to_vec(),
            extra: self.settings.state_dir.join("ca/extra-roots.pem"),
            out: self.settings.trust_bundle_out.clone(),
            versions: versions.clone(),
            metrics: app.metrics.clone(),
            bundle,
        };
        let drain = app.drain.clone();
        tokio::spawn(async move { keeper.run(drain.aborted()).await });
        receiver
    }

    fn keep_token_key(&self, app: &App) -> watch::Receiver<TokenKey> {
        let (sender, receiver) = watch::channel(Err("not read yet".to_owned()));
        let path = self.settings.token_key_file.clone();
        let drain = app.drain.clone();
        tokio::spawn(async move { authn::watch_token_key(path, sender, drain.aborted()).await });
        receiver
    }
}

fn lock(path: &Path) -> Result<File, Error> {
    let file = File::create(path).map_err(Error::file("create", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::content(path, "another control plane runs on this state directory"))
        }
        Err(TryLockError::Error(error)) => Err(Error::file("lock", path)(error)),
    }
}
