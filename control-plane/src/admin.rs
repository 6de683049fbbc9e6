//! Pages of the admin port beside health and metrics: what was compiled, and who was told what.
//! Read-only, and only for clients on this host: they show every namespace's configuration.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use heddle_api::proto::v1::{self, ResourceType, Version};
use heddle_runtime::admin::Client;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::discovery::fleet::{Fleet, Member, Rejecting, Standing};
use crate::metrics::{kind_label, rejection_label};
use crate::served::Served;
use crate::traffic;

/// What the pages are drawn from.
#[derive(Debug, Clone)]
pub struct Dumps {
    pub served: watch::Receiver<Option<Served>>,
    pub fleet: Fleet,
}

impl Dumps {
    /// Every compiled resource with how it stands with the proxies, and every refused object.
    #[must_use]
    pub fn catalog(&self) -> Value {
        let Some(served) = self.served.borrow().clone() else {
            return json!({ "version": null, "issues": [], "resources": [] });
        };
        let bundle = std::iter::once(&served.bundle.encoded);
        let mut resources: Vec<_> = served.catalog.iter().chain(bundle).collect();
        resources.sort_by(|a, b| a.key.cmp(&b.key));
        let resources: Vec<Value> = resources
            .into_iter()
            .map(|resource| {
                let standing = self.fleet.standing(&resource.key, resource.hash);
                json!({
                    "type": kind_label(resource.key.kind),
                    "name": &*resource.key.name,
                    "version": version(resource.version),
                    "hash": hash(resource.hash),
                    "bytes": resource.body.len(),
                    "given": standing.given,
                    "active": standing.active,
                    "rejected": standing.rejected,
                    "rejecting": rejecting(&standing),
                })
            })
            .collect();
        json!({
            "version": version(served.version),
            "issues": served.catalog.issues(),
            "resources": resources,
        })
    }

    /// Every stream: who, subscribed to what, given which body, with which verdict.
    #[must_use]
    pub fn subscribers(&self) -> Value {
        let rejections = self.fleet.rejections().into_iter().map(|(key, standing)| {
            json!({
                "type": kind_label(key.kind),
                "name": &*key.name,
                "given": standing.given,
                "rejected": standing.rejected,
                "rejecting": rejecting(&standing),
            })
        });
        let rejections: Vec<Value> = rejections.collect();
        let members = self.fleet.members();
        let subscribers: Vec<Value> = members.iter().map(|member| subscriber(member)).collect();
        json!({ "subscribers": subscribers, "rejections": rejections })
    }

    /// What the proxies of each workload counted lately, per second.
    #[must_use]
    pub fn traffic(&self) -> Value {
        let Some(served) = self.served.borrow().clone() else { return json!({ "workloads": [] }) };
        let mut table = traffic::Table::default();
        for member in self.fleet.members() {
            let policy = served.catalog.find(ResourceType::InboundPolicy, &member.pod);
            let policy = policy.and_then(|one| v1::InboundPolicy::decode(one.body.clone()).ok());
            // A pod that is gone from the catalog is about to lose its stream, too.
            let Some(policy) = policy else { continue };
            let identity = member.identity.to_string();
            table.add(&policy.namespace, &policy.workload, &identity, &member.lock_traffic());
        }
        json!({ "workloads": table.into_workloads() })
    }

    /// The pages under `/debug`.
    pub fn router(self) -> Router {
        Router::new()
            .route("/debug/catalog", get(show_catalog))
            .route("/debug/subscribers", get(show_subscribers))
            .route("/debug/traffic", get(show_traffic))
            .with_state(self)
    }
}

async fn show_catalog(
    State(dumps): State<Dumps>,
    Extension(client): Extension<Client>,
) -> Response {
    page(client, || dumps.catalog())
}

async fn show_subscribers(
    State(dumps): State<Dumps>,
    Extension(client): Extension<Client>,
) -> Response {
    page(client, || dumps.subscribers())
}

async fn show_traffic(
    State(dumps): State<Dumps>,
    Extension(client): Extension<Client>,
) -> Response {
    page(client, || dumps.traffic())
}

fn page(client: Client, draw: impl FnOnce() -> Value) -> Response {
    if !client.is_local() {
        let advice = "only for clients on this host; or run: heddle-control-plane ctl dump\n";
        return (StatusCode::FORBIDDEN, advice).into_response();
    }
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, format!("{:#}\n", draw())).into_response()
}

fn rejecting(standing: &Standing) -> Vec<Value> {
    let one = |rejecting: &Rejecting| {
        json!({
            "pod": &*rejecting.pod,
            "reason": rejection_label(rejecting.reason),
            "path": rejecting.path,
            "message": rejecting.message,
        })
    };
    standing.rejecting.iter().map(one).collect()
}

fn subscriber(member: &Member) -> Value {
    let ledger = member.lock_ledger();
    let mut given: Vec<_> = ledger.given.values().collect();
    given.sort_by(|a, b| a.resource.key.cmp(&b.resource.key));
    let resources: Vec<Value> = given
        .into_iter()
        .map(|given| {
            json!({
                "type": kind_label(given.resource.key.kind),
                "name": &*given.resource.key.name,
                "version": version(given.resource.version),
                "hash": hash(given.resource.hash),
                "verdict": given.verdict.as_str(),
            })
        })
        .collect();
    let since = member.since.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    json!({
        "pod": &*member.pod,
        "identity": member.identity.to_string(),
        "address": member.peer,
        "proxy_version": member.proxy_version,
        "level": member.level,
        "since": since.as_secs(),
        "version": version(member.sent_version()),
        "subscriptions": ledger.subscriptions,
        "resources": resources,
    })
}

fn version(version: Version) -> Value {
    json!({ "epoch": version.epoch, "number": version.number })
}

/// As text: numbers above 2^53 are not safe in JSON.
fn hash(hash: u64) -> String {
    format!("{hash:016x}")
}
