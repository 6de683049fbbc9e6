//! Admission: the web server that the API server asks whether an object may be as it is. `/inject`
//! makes pods meshed, `/validate` judges our own kinds. Every replica serves; nothing is written.
//!
//! Validation is advice, sooner than the status can give it: whatever is checked here the control
//! plane checks again when it reads the object.

use std::sync::Arc;

use heddle_resources::inject;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::Api;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};

use crate::error::Error;
use crate::kubernetes::Context;
use crate::served::Served;

pub mod certificate;
mod cluster;
pub mod keeper;
pub mod options;
mod review;
mod server;
mod serving;
mod validate;

use cluster::Cluster;
use options::CertificateSource;

/// Secret with the serving pair, in the control plane's namespace.
pub const SECRET: &str = "heddle-webhook";
/// The one MutatingWebhookConfiguration and the one ValidatingWebhookConfiguration of ours.
pub const CONFIGURATION: &str = "heddle";
/// Refusals that nobody has fetched yet; the oldest make room.
const REFUSALS: usize = 64;

/// A pod that was not admitted, for whoever tells people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub namespace: String,
    /// Its name, or what its name was to begin with.
    pub name: String,
    /// What makes the pod, and will try again.
    pub owner: Option<Owner>,
    /// The mistakes, each with what to write instead.
    pub message: String,
}

/// A pod's controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
}

/// A server that runs.
#[derive(Debug)]
pub struct Handle {
    pub address: std::net::SocketAddr,
    /// What this replica refused, while somebody subscribes.
    pub refusals: broadcast::Sender<Arc<Refusal>>,
}

/// Starts the server, and in the leader the keeper of its certificate.
///
/// # Errors
/// When the address is taken.
pub async fn start(
    context: &Context,
    served: watch::Receiver<Option<Served>>,
) -> Result<Handle, Error> {
    let settings = &context.settings;
    let listen =
        |source| Error::Listen { purpose: "admission", address: settings.webhook_listen, source };
    let listener = TcpListener::bind(settings.webhook_listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let secrets = Api::namespaced(context.client.clone(), &settings.namespace);

    let (tls, current) = watch::channel(None);
    context.gates.follow("webhook-certificate", current.clone(), |tls| {
        tls.is_none().then(|| format!("the Secret {SECRET} gives no certificate yet"))
    });
    let failures = context.metrics.source_errors.with_label_values(&["webhook_certificate"]);
    let serving = serving::Follower { secrets: secrets.clone(), tls, failures: failures.clone() };
    let drain = context.drain.clone();
    tokio::spawn(async move { serving.run(drain.aborted()).await });

    if settings.admission.certificate == CertificateSource::Managed {
        let keeper = keeper::Keeper {
            secrets,
            mutating: Api::<MutatingWebhookConfiguration>::all(context.client.clone()),
            validating: Api::<ValidatingWebhookConfiguration>::all(context.client.clone()),
            names: certificate::names(&settings.service, &settings.namespace),
            leadership: context.leadership.clone(),
            conditions: context.conditions.clone(),
            failures,
        };
        let drain = context.drain.clone();
        tokio::spawn(async move { keeper.run(drain.aborted()).await });
    }

    let (refusals, _) = broadcast::channel(REFUSALS);
    let reviewer = review::Reviewer {
        cluster: Cluster::new(context.client.clone()),
        settings: Settings { of_pods: settings.admission.inject.clone(), served },
        metrics: context.metrics.admission.clone(),
        refusals: refusals.clone(),
    };
    tokio::spawn(server::run(listener, current, Arc::new(reviewer), context.drain.clone()));
    tracing::info!(%address, "answering admission reviews");
    Ok(Handle { address, refusals })
}

/// What pods get; the trust domain is the Mesh's.
struct Settings {
    of_pods: inject::Settings,
    served: watch::Receiver<Option<Served>>,
}

impl Settings {
    /// `None` before the Mesh is known.
    fn current(&self) -> Option<inject::Settings> {
        let served = self.served.borrow().clone()?;
        Some(inject::Settings { trust_domain: served.trust_domain()?, ..self.of_pods.clone() })
    }
}
