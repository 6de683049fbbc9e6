//! The leader's part: writes the Secret with the webhooks' certificate, and tells the API server in
//! the two webhook configurations whom to trust. Everybody else only follows the Secret.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use heddle_api::names::FIELD_MANAGER;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use prometheus::IntCounter;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::certificate::{self, Data};
use super::{CONFIGURATION, SECRET};
use crate::conditions::{Condition, Conditions};
use crate::error::{Error, chain};
use crate::kubernetes::lease::Leadership;

/// A configuration that an upgrade has replaced is told again within this.
const INTERVAL: Duration = Duration::from_secs(5);
/// One pass: three reads and at most three writes.
const PASS_TIMEOUT: Duration = Duration::from_secs(20);

const MISSING: &str = "InjectorMissing";
const FAILING: &str = "WebhookCertificateFailing";

/// Keeps the certificate and the trust in it.
pub struct Keeper {
    /// Of the control plane's own namespace.
    pub secrets: Api<Secret>,
    pub mutating: Api<MutatingWebhookConfiguration>,
    pub validating: Api<ValidatingWebhookConfiguration>,
    /// By which the API server calls us.
    pub names: Vec<String>,
    pub leadership: Leadership,
    pub conditions: Conditions,
    pub failures: IntCounter,
}

impl Keeper {
    /// Works while leading, until `stop` resolves.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut leadership = self.leadership.clone();
        loop {
            if leadership.is_held() {
                let pass = timeout(PASS_TIMEOUT, Box::pin(self.pass(SystemTime::now()))).await;
                let problem = match pass {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(chain(&error)),
                    Err(_) => Some("the API server does not answer".to_owned()),
                };
                self.note(problem);
            }
            tokio::select! {
                () = leadership.gained(), if !leadership.is_held() => {}
                () = tokio::time::sleep(INTERVAL) => {}
                () = &mut stop => return,
            }
        }
    }

    /// Reads everything, and writes what should be otherwise.
    ///
    /// # Errors
    /// What the API server refuses.
    pub async fn pass(&self, now: SystemTime) -> Result<(), Error> {
        let failed = |what: &'static str| move |error| Error::api(what, error);
        let secret = self.secrets.get_opt(SECRET).await.map_err(failed("read heddle-webhook"))?;
        let data = secret.as_ref().map(content);
        let is_told = match &data {
            Some(data) => self.tell(certificate::roots(data)).await?,
            None => false,
        };
        let Some(write) = certificate::plan(data.as_ref(), &self.names, is_told, now)? else {
            return Ok(());
        };
        let object = object(secret.as_ref(), &write.data);
        let params =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
        // By the version that was read: of two that think they lead one fails, and reads again.
        let written = match &secret {
            Some(_) => self.secrets.replace(SECRET, &params, &object).await,
            None => self.secrets.create(&params, &object).await,
        };
        match written {
            Ok(_) => tracing::info!(secret = SECRET, why = write.why, "wrote a new certificate"),
            Err(kube::Error::Api(status)) if status.code == 409 => return Ok(()),
            Err(error) => return Err(Error::api("write heddle-webhook", error)),
        }
        self.tell(certificate::roots(&write.data)).await.map(drop)
    }

    /// Makes both configurations name `roots`. True when they did already.
    async fn tell(&self, roots: &[u8]) -> Result<bool, Error> {
        let bundle = STANDARD.encode(roots);
        let mutating = tell(&self.mutating, &bundle).await?;
        if mutating == Told::Absent {
            self.conditions.set(
                MISSING,
                Condition {
                    kind: "MutatingWebhookConfiguration",
                    namespace: String::new(),
                    name: CONFIGURATION.to_owned(),
                    is_warning: true,
                    message: "is absent: no pod is injected; install the chart again".to_owned(),
                },
            );
        } else {
            self.conditions.clear(MISSING);
        }
        // The validating one may be switched off.
        let validating = tell(&self.validating, &bundle).await?;
        Ok(mutating != Told::Now && validating != Told::Now)
    }

    fn note(&self, problem: Option<String>) {
        let Some(problem) = problem else { return self.conditions.clear(FAILING) };
        self.failures.inc();
        self.conditions.set(
            FAILING,
            Condition {
                kind: "Secret",
                namespace: String::new(),
                name: SECRET.to_owned(),
                is_warning: true,
                message: format!("cannot be kept, or its CA not told to the API server: {problem}"),
            },
        );
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Already,
    Now,
    Absent,
}

/// Sets `caBundle` of every webhook in the configuration of ours, and nothing else of it.
async fn tell<K>(api: &Api<K>, bundle: &str) -> Result<Told, Error>
where
    K: Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let failed = |error| Error::api("keep a webhook configuration", error);
    let Some(configuration) = api.get_opt(CONFIGURATION).await.map_err(failed)? else {
        return Ok(Told::Absent);
    };
    let configuration = serde_json::to_value(&configuration).unwrap_or_default();
    let operations = operations(&configuration, bundle);
    if operations.is_empty() {
        return Ok(Told::Already);
    }
    let patch: json_patch::Patch =
        serde_json::from_value(Value::Array(operations)).expect("these are operations");
    let params =
        PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch(CONFIGURATION, &params, &Patch::Json::<DynamicObject>(patch)).await {
        Ok(_) => {
            tracing::info!("told the API server which CA the webhooks' certificate has");
            Ok(Told::Now)
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Told::Absent),
        Err(error) => Err(failed(error)),
    }
}

/// For each webhook that names another bundle: that it still is the one that was seen, and the value.
fn operations(configuration: &Value, bundle: &str) -> Vec<Value> {
    let webhooks = configuration["webhooks"].as_array().into_iter().flatten().enumerate();
    let others = webhooks.filter(|(_, webhook)| webhook["clientConfig"]["caBundle"] != bundle);
    let operations = others.flat_map(|(index, webhook)| {
        let at = format!("/webhooks/{index}");
        [
            json!({ "op": "test", "path": format!("{at}/name"), "value": webhook["name"] }),
            json!({ "op": "add", "path": format!("{at}/clientConfig/caBundle"), "value": bundle }),
        ]
    });
    operations.collect()
}

fn content(secret: &Secret) -> Data {
    let data = secret.data.iter().flatten();
    data.map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

fn object(read: Option<&Secret>, data: &Data) -> Secret {
    let mut secret = read.cloned().unwrap_or_default();
    secret.metadata.name = Some(SECRET.to_owned());
    secret.metadata.managed_fields = None;
    let labels = secret.metadata.labels.get_or_insert_with(BTreeMap::new);
    for (name, value) in [
        ("app.kubernetes.io/name", "heddle"),
        ("app.kubernetes.io/component", "control-plane"),
        ("app.kubernetes.io/managed-by", FIELD_MANAGER),
    ] {
        labels.insert(name.to_owned(), value.to_owned());
    }
    secret.type_.get_or_insert_with(|| "kubernetes.io/tls".to_owned());
    let bytes = data.iter().map(|(key, value)| (key.clone(), ByteString(value.clone())));
    secret.data = Some(bytes.collect());
    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told_and_only_to_the_webhook_that_was_seen() {
        let configuration = json!({ "webhooks": [
            { "name": "a", "clientConfig": { "caBundle": "new" } },
            { "name": "b", "clientConfig": { "caBundle": "old" } },
            { "name": "c", "clientConfig": {} },
        ]});
        let told = operations(&configuration, "new");
        let mut after = configuration.clone();
        let patch: json_patch::Patch = serde_json::from_value(Value::Array(told)).unwrap();
        json_patch::patch(&mut after, &patch).unwrap();
        assert!(operations(&after, "new").is_empty(), "{after}");
        assert_eq!(patch.len(), 4);
        let mut renamed = configuration;
        renamed["webhooks"][1]["name"] = json!("x");
        assert!(json_patch::patch(&mut renamed, &patch).is_err());
    }
}
