//! One question of the API server's and its answer: AdmissionReview in, AdmissionReview out. The
//! object stays raw JSON, so that no field is lost that our types do not know.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use heddle_api::names::INJECT_LABEL;
use heddle_api::probes::PageKey;
use heddle_resources::inject::{Outcome, inject};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::cluster::Cluster;
use super::{Owner, Refusal, Settings, validate};
use crate::error::chain;
use crate::metrics::Admission;

/// The API server shows at most 4 KiB of warnings, 256 bytes of each.
const MAX_WARNINGS: usize = 16;
const MAX_MESSAGE: usize = 4096;
const API_VERSION: &str = "admission.k8s.io/v1";

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Webhook {
    Inject,
    Validate,
}

impl Webhook {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Inject => "inject",
            Self::Validate => "validate",
        }
    }
}

/// What is answered.
#[derive(Debug)]
pub(super) enum Answer {
    Reviewed {
        outcome: &'static str,
        body: Vec<u8>,
    },
    /// This was no question.
    Malformed(String),
    /// There is no answer now.
    Unable(String),
}

impl Answer {
    /// For metrics.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Reviewed { outcome, .. } => outcome,
            Self::Malformed(_) => "malformed",
            Self::Unable(_) => "unable",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    request: Request,
}

/// What of a question is looked at.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: GroupKind,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    dry_run: Option<bool>,
    #[serde(default)]
    object: Value,
}

#[derive(Debug, Deserialize)]
struct GroupKind {
    #[serde(default)]
    group: String,
    kind: String,
}

/// What the API server is told.
#[derive(Debug)]
struct Verdict {
    outcome: &'static str,
    /// Why not, when the object is not admitted.
    refusal: Option<String>,
    patch: Option<json_patch::Patch>,
    warnings: Vec<String>,
}

pub(super) struct Reviewer {
    pub(super) cluster: Cluster,
    pub(super) settings: Settings,
    pub(super) metrics: Admission,
    pub(super) refusals: broadcast::Sender<Arc<Refusal>>,
}

impl Reviewer {
    pub(super) async fn review(&self, webhook: Webhook, body: &[u8]) -> Answer {
        let review: Review = match serde_json::from_slice(body) {
            Ok(review) => review,
            Err(error) => return Answer::Malformed(format!("no AdmissionReview: {error}")),
        };
        if review.api_version != API_VERSION {
            return Answer::Malformed(format!("write an AdmissionReview of {API_VERSION}"));
        }
        let request = review.request;
        let verdict = match webhook {
            Webhook::Inject => match self.inject(&request).await {
                Ok(verdict) => verdict,
                Err(message) => return Answer::Unable(message),
            },
            Webhook::Validate => self.validate(&request).await,
        };
        let GroupKind { kind, .. } = &request.kind;
        let name = name_of(&request.object);
        tracing::debug!(
            webhook = webhook.name(),
            kind,
            namespace = request.namespace,
            name,
            outcome = verdict.outcome,
            "answered an admission review"
        );
        Answer::Reviewed { outcome: verdict.outcome, body: respond(&request.uid, verdict) }
    }

    async fn inject(&self, request: &Request) -> Result<Verdict, String> {
        if !request.kind.group.is_empty() || request.kind.kind != "Pod" {
            let message = format!("{} is not a Pod: ask /validate", request.kind.kind);
            return Ok(Verdict::refuse(message));
        }
        let settings = self.settings.current();
        let settings = settings.ok_or("the Mesh is not known yet: this replica is starting")?;
        let pod = &request.object;
        let labels = match pod["metadata"]["labels"].get(INJECT_LABEL) {
            // The pod's own label has the last word.
            Some(_) => BTreeMap::new(),
            None => self.cluster.namespace_labels(&request.namespace).await.map_err(|error| {
                format!("namespace {} cannot be read: {}", request.namespace, chain(&error))
            })?,
        };
        let key = PageKey::parse(&format!("{:032x}", rand::random::<u128>()))
            .expect("32 digits are a key");
        Ok(match inject(pod, &labels, &settings, &key) {
            Outcome::Patch { patch, warnings } => {
                Verdict { outcome: "injected", refusal: None, patch: Some(patch), warnings }
            }
            Outcome::Skip { reason, patch, warnings } => {
                Verdict { outcome: reason.as_str(), refusal: None, patch: Some(patch), warnings }
            }
            Outcome::Refuse { message } => {
                self.tell(request, &message);
                Verdict::refuse(message)
            }
        })
    }

    async fn validate(&self, request: &Request) -> Verdict {
        let (errors, object) = validate::read(request.object.clone());
        if let Some(message) = errors {
            return Verdict::refuse(message);
        }
        let warnings = match &object {
            Some(object) => validate::advise(object, &self.cluster).await,
            None => Vec::new(),
        };
        Verdict { outcome: "accepted", refusal: None, patch: None, warnings }
    }

    /// A person finds a refusal in the events of what makes the pod, and in the log here.
    fn tell(&self, request: &Request, message: &str) {
        if request.dry_run == Some(true) {
            return;
        }
        let name = name_of(&request.object).to_owned();
        tracing::warn!(namespace = request.namespace, name, message, "a pod is not admitted");
        let refusal = Refusal {
            namespace: request.namespace.clone(),
            name,
            owner: owner_of(&request.object),
            message: message.to_owned(),
        };
        // Nobody may be listening.
        let _ = self.refusals.send(Arc::new(refusal));
    }
}

impl Verdict {
    fn refuse(message: String) -> Self {
        Self { outcome: "refused", refusal: Some(message), patch: None, warnings: Vec::new() }
    }
}

fn name_of(object: &Value) -> &str {
    let text = |field: &str| object["metadata"][field].as_str().filter(|text| !text.is_empty());
    text("name").or(text("generateName")).unwrap_or_default()
}

fn owner_of(pod: &Value) -> Option<Owner> {
    let owners = pod["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    let text = |field: &str| Some(owner[field].as_str()?.to_owned());
    Some(Owner {
        api_version: text("apiVersion")?,
        kind: text("kind")?,
        name: text("name")?,
        uid: text("uid")?,
    })
}

fn respond(uid: &str, verdict: Verdict) -> Vec<u8> {
    let mut response = json!({ "uid": uid, "allowed": verdict.refusal.is_none() });
    if let Some(message) = verdict.refusal {
        let message: String = message.chars().take(MAX_MESSAGE).collect();
        response["status"] = json!({ "code": 422, "reason": "Invalid", "message": message });
    }
    if let Some(patch) = verdict.patch.filter(|patch| !patch.is_empty()) {
        let patch = serde_json::to_vec(&patch).expect("a patch is JSON");
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(STANDARD.encode(patch));
    }
    if !verdict.warnings.is_empty() {
        let warnings: Vec<_> = verdict.warnings.into_iter().take(MAX_WARNINGS).collect();
        response["warnings"] = json!(warnings);
    }
    let review =
        json!({ "apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response });
    review.to_string().into_bytes()
}

#[cfg(test)]
mod tests;
