//! Writes what became of HTTPRoutes and GRPCRoutes: one entry of `status.parents` for each parent
//! that is a Service (Gateway API, RouteParentStatus).
//!
//! `parents` is one list for all controllers, and the API server takes it as a whole. So it is read,
//! our entries are replaced in it, and it is written with the resourceVersion it was read at: what
//! somebody else wrote in between is not lost, the write is, and is made again.

use std::collections::{BTreeMap, HashMap};

use heddle_api::names::{CONTROLLER_NAME, FIELD_MANAGER};
use heddle_resources::{Kind, ObjectKey};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use serde_json::{Map, Value, json};
use tokio::time::{Duration, Instant};

use super::Context;
use super::source::resource;
use crate::catalog::Catalog;
use crate::catalog::state::{ParentStatus, RouteStatus};
use crate::error::chain;

/// Routes that are brought up to date in one look.
const WRITES_A_LOOK: usize = 10;
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(2);
const KINDS: [Kind; 2] = [Kind::HTTPRoute, Kind::GRPCRoute];

/// What one leadership has done.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// What each route was last told.
    routes: HashMap<ObjectKey, (Option<i64>, Vec<ParentStatus>)>,
    failed: HashMap<ObjectKey, Instant>,
    /// Routes that carried entries of ours when the leadership began were noted.
    is_surveyed: bool,
}

/// Writes what differs from what was written.
pub(super) async fn look(context: &Context, catalog: &Catalog, written: &mut Written) {
    if !written.is_surveyed {
        written.is_surveyed = survey(context, written).await;
    }
    let wanted: BTreeMap<_, _> =
        catalog.route_statuses().into_iter().map(|route| (route.key.clone(), route)).collect();
    let gone = written
        .routes
        .iter()
        .filter(|(key, (_, parents))| !parents.is_empty() && !wanted.contains_key(*key));
    let gone: Vec<_> = gone.map(|(key, _)| without_parents(key)).collect();
    let now = Instant::now();
    let mut due = Vec::new();
    for route in wanted.into_values().chain(gone) {
        let told = written.routes.get(&route.key);
        let is_told = told.is_some_and(|(generation, parents)| {
            *generation == route.generation && *parents == route.parents
        });
        let failed = written.failed.get(&route.key);
        let rests = failed.is_some_and(|at| now.duration_since(*at) < RETRY);
        if !is_told && !rests {
            due.push(route);
        }
    }
    for route in due.into_iter().take(WRITES_A_LOOK) {
        if !context.leadership.is_held() {
            return;
        }
        match write(context, &route).await {
            Ok(()) => {
                written.failed.remove(&route.key);
                written.routes.insert(route.key, (route.generation, route.parents));
            }
            Err(error) => {
                context.metrics.status_write_failures.inc();
                let (key, error) = (&route.key, chain(&error));
                tracing::warn!(%key, error, "cannot write a route's status");
                written.failed.insert(route.key, Instant::now());
            }
        }
    }
}

fn without_parents(key: &ObjectKey) -> RouteStatus {
    RouteStatus { key: key.clone(), generation: None, parents: Vec::new(), carriers: Vec::new() }
}

/// Notes the routes that carry entries of ours: those of routes that have left us are taken away.
async fn survey(context: &Context, written: &mut Written) -> bool {
    for kind in KINDS {
        let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &resource(kind));
        let list = match api.list(&ListParams::default()).await {
            Ok(list) => list,
            // The Gateway API is not installed.
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(%kind, error, "cannot read the routes' statuses");
                return false;
            }
        };
        for object in list.items.iter().filter(|object| parents(object).iter().any(is_ours)) {
            let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
            let name = object.metadata.name.as_deref().unwrap_or_default();
            let parent = crate::catalog::state::Parent {
                name: String::new(),
                namespace: None,
                port: None,
                section_name: None,
            };
            // Unlike anything that is wanted, so it is compared with the object itself.
            let unknown = vec![ParentStatus { parent, conditions: Vec::new() }];
            let key = ObjectKey::new(kind, namespace, name);
            written.routes.insert(key, (None, unknown));
        }
    }
    true
}

async fn write(context: &Context, route: &RouteStatus) -> Result<(), kube::Error> {
    let key = &route.key;
    let resource = resource(key.kind);
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), &key.namespace, &resource);
    let Some(object) = api.get_opt(&key.name).await? else { return Ok(()) };
    let before = parents(&object);
    let generation = route.generation.or(object.metadata.generation);
    let after = merge(before, &route.parents, generation, &Timestamp::now().to_string());
    if after.as_slice() == before {
        return Ok(());
    }
    let body = json!({
        "metadata": { "resourceVersion": object.metadata.resource_version },
        "status": { "parents": after },
    });
    let params =
        PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
    api.patch_status(&key.name, &params, &Patch::Merge(&body)).await?;
    context.metrics.status_writes.inc();
    Ok(())
}

fn parents(object: &DynamicObject) -> &[Value] {
    let parents = object.data.get("status").and_then(|status| status.get("parents"));
    parents.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn is_ours(entry: &Value) -> bool {
    entry.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER_NAME)
}

/// The list with our entries replaced; everybody else's stay as and where they are.
fn merge(
    before: &[Value],
    wanted: &[ParentStatus],
    generation: Option<i64>,
    now: &str,
) -> Vec<Value> {
    let ours: Vec<_> = before.iter().filter(|entry| is_ours(entry)).collect();
    let mut after: Vec<Value> = before.iter().filter(|entry| !is_ours(entry)).cloned().collect();
    for status in wanted {
        let parent = parent_ref(status);
        let old = ours.iter().find(|entry| entry.get("parentRef") == Some(&parent));
        let conditions: Vec<_> = status
            .conditions
            .iter()
            .map(|one| condition(one, old.copied(), generation, now))
            .collect();
        after.push(json!({
            "controllerName": CONTROLLER_NAME,
            "parentRef": parent,
            "conditions": conditions,
        }));
    }
    after
}

fn parent_ref(status: &ParentStatus) -> Value {
    let parent = &status.parent;
    let mut fields = Map::new();
    fields.insert("group".to_owned(), json!(""));
    fields.insert("kind".to_owned(), json!("Service"));
    fields.insert("name".to_owned(), json!(parent.name));
    if let Some(namespace) = &parent.namespace {
        fields.insert("namespace".to_owned(), json!(namespace));
    }
    if let Some(port) = parent.port {
        fields.insert("port".to_owned(), json!(port));
    }
    if let Some(section) = &parent.section_name {
        fields.insert("sectionName".to_owned(), json!(section));
    }
    Value::Object(fields)
}

fn condition(
    wanted: &crate::catalog::state::Condition,
    entry: Option<&Value>,
    generation: Option<i64>,
    now: &str,
) -> Value {
    let status = if wanted.status { "True" } else { "False" };
    let old = entry.and_then(|entry| entry.get("conditions")).and_then(Value::as_array);
    let same = old.into_iter().flatten().find(|one| {
        one.get("type").and_then(Value::as_str) == Some(wanted.r#type.as_str())
            && one.get("status").and_then(Value::as_str) == Some(status)
    });
    let since = same.and_then(|one| one.get("lastTransitionTime")).and_then(Value::as_str);
    let mut condition = json!({
        "type": wanted.r#type.as_str(),
        "status": status,
        "reason": wanted.reason,
        "message": wanted.message,
        "lastTransitionTime": since.unwrap_or(now),
    });
    if let Some(generation) = generation {
        condition["observedGeneration"] = json!(generation);
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::state::{Condition, ConditionType, Parent};

    fn wanted(name: &str, status: bool) -> ParentStatus {
        ParentStatus {
            parent: Parent {
                name: name.to_owned(),
                namespace: None,
                port: Some(80),
                section_name: None,
            },
            conditions: vec![Condition {
                r#type: ConditionType::Accepted,
                status,
                reason: "Accepted",
                message: String::new(),
            }],
        }
    }

    #[test]
    fn others_entries_stay_and_times_move_only_when_conditions_turn() {
        let other =
            json!({ "controllerName": "example.com/gateway", "parentRef": { "name": "x" } });
        let first = merge(std::slice::from_ref(&other), &[wanted("web", true)], Some(1), "t1");
        assert_eq!(first[0], other);
        assert_eq!(
            first[1]["parentRef"],
            json!({
                "group": "", "kind": "Service", "name": "web", "port": 80
            })
        );
        let same = merge(&first, &[wanted("web", true)], Some(1), "t2");
        assert_eq!(same, first, "nothing new is nothing to write");
        let turned = merge(&first, &[wanted("web", false)], Some(2), "t3");
        assert_eq!(turned[1]["conditions"][0]["lastTransitionTime"], "t3");
        assert_eq!(turned[1]["conditions"][0]["observedGeneration"], 2);
        assert_eq!(merge(&first, &[], Some(3), "t4"), [other], "a parent that was dropped");
    }
}
