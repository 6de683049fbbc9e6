//! Judges an object of ours as the control plane will when it reads it, and advises on what it means
//! beside the others: those may come in any order, so nothing that refers to them is refused.

use std::collections::BTreeSet;

use heddle_resources::crd::{TrafficPolicy, TrafficSplit};
use heddle_resources::{Object, reader};
use serde_json::{Value, json};

use super::cluster::{Cluster, Error};
use crate::error::chain;

/// Reads the object; the first answer is what is wrong with it.
pub(super) fn read(mut object: Value) -> (Option<String>, Option<Object>) {
    if let Some(fields) = object.as_object_mut() {
        // Others' to write, and to judge.
        fields.remove("status");
        let metadata = fields.get("metadata").cloned().unwrap_or_default();
        let mut kept = json!({});
        for field in ["name", "namespace", "labels"] {
            if let Some(value) = metadata.get(field) {
                kept[field] = value.clone();
            }
        }
        fields.insert("metadata".to_owned(), kept);
    }
    let mut reading = reader::read_value(object);
    if reading.errors.is_empty() {
        return (None, reading.objects.pop().map(|located| located.object));
    }
    let mistakes = reading.errors.iter().map(|error| {
        let parts = [&error.path, &error.value, &error.message];
        let parts = parts.into_iter().filter(|part| !part.is_empty());
        parts.map(String::as_str).collect::<Vec<_>>().join(": ")
    });
    (Some(mistakes.collect::<Vec<_>>().join("; ")), None)
}

/// What the author may want to know. Advice that cannot be given is not worth a failure.
pub(super) async fn advise(object: &Object, cluster: &Cluster) -> Vec<String> {
    let advice = if let Object::TrafficSplit(split) = object {
        Box::pin(of_split(split, cluster)).await
    } else if let Object::TrafficPolicy(policy) = object {
        Box::pin(of_policy(policy, cluster)).await
    } else {
        Ok(Vec::new())
    };
    advice.unwrap_or_else(|error| {
        tracing::debug!(error = chain(&error), "an object was admitted without advice");
        Vec::new()
    })
}

async fn of_split(split: &TrafficSplit, cluster: &Cluster) -> Result<Vec<String>, Error> {
    let namespace = split.metadata.namespace.as_deref().unwrap_or("default");
    let mut named = BTreeSet::from([split.spec.service.as_str()]);
    named.extend(split.spec.backends.iter().map(|backend| backend.service.as_str()));
    let mut advice = missing(namespace, named, cluster).await?;
    advice.extend(beside_splits(split, &cluster.splits(namespace).await?));
    Ok(advice)
}

/// What a split means beside the others of its namespace.
fn beside_splits(split: &TrafficSplit, others: &[TrafficSplit]) -> Vec<String> {
    let mut advice = Vec::new();
    let others = others.iter().filter(|other| other.metadata.name != split.metadata.name);
    for other in others {
        let name = other.metadata.name.as_deref().unwrap_or_default();
        let service = &other.spec.service;
        if *service == split.spec.service {
            advice.push(format!(
                "TrafficSplit {name} splits Service {service} already: the older of the two is in \
                 force, the other is Conflicted"
            ));
        } else if split.spec.backends.iter().any(|backend| backend.service == *service) {
            advice.push(format!(
                "backend {service} is split by TrafficSplit {name}, and splits do not nest: calls \
                 that come by this split go to its own endpoints"
            ));
        } else if other.spec.backends.iter().any(|backend| backend.service == split.spec.service) {
            advice.push(format!(
                "Service {} is a backend of TrafficSplit {name}, and splits do not nest: calls \
                 that come by that split are not split again",
                split.spec.service
            ));
        }
    }
    advice
}

async fn of_policy(policy: &TrafficPolicy, cluster: &Cluster) -> Result<Vec<String>, Error> {
    let namespace = policy.metadata.namespace.as_deref().unwrap_or("default");
    let service = policy.spec.target_ref.name.as_str();
    let mut advice = missing(namespace, BTreeSet::from([service]), cluster).await?;
    advice.extend(beside_policies(policy, &cluster.policies(namespace).await?));
    Ok(advice)
}

fn beside_policies(policy: &TrafficPolicy, others: &[TrafficPolicy]) -> Vec<String> {
    let service = &policy.spec.target_ref.name;
    let same = others.iter().filter(|other| {
        other.metadata.name != policy.metadata.name && other.spec.target_ref.name == *service
    });
    same.map(|other| {
        format!(
            "TrafficPolicy {} is for Service {service} already: the older of the two is in force, \
             the other is Conflicted",
            other.metadata.name.as_deref().unwrap_or_default()
        )
    })
    .collect()
}

async fn missing(
    namespace: &str,
    services: BTreeSet<&str>,
    cluster: &Cluster,
) -> Result<Vec<String>, Error> {
    let mut advice = Vec::new();
    for service in services {
        if !cluster.has_service(namespace, service).await? {
            advice.push(format!("there is no Service {namespace}/{service}: create it"));
        }
    }
    Ok(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(name: &str, service: &str, backends: &[&str]) -> TrafficSplit {
        let backends: Vec<_> =
            backends.iter().map(|one| json!({ "service": one, "weight": 1 })).collect();
        let (error, object) = read(json!({
            "apiVersion": "heddle.io/v1alpha1", "kind": "TrafficSplit",
            "metadata": { "name": name, "namespace": "shop", "uid": "u", "managedFields": [] },
            "spec": { "service": service, "backends": backends },
            "status": { "anything": true },
        }));
        assert_eq!(error, None);
        let Some(Object::TrafficSplit(split)) = object else { panic!("{object:?}") };
        (*split).clone()
    }

    #[test]
    fn splits_that_meet_are_told() {
        let new = split("new", "web", &["web-v1", "web-v2"]);
        for (other, wants) in [
            (split("new", "web", &["web-v1"]), None),
            (split("other", "api", &["api-v1"]), None),
            (split("old", "web", &["web-v1"]), Some("splits Service web already")),
            (
                split("inner", "web-v1", &["a"]),
                Some("backend web-v1 is split by TrafficSplit inner"),
            ),
            (split("outer", "shop", &["web"]), Some("is a backend of TrafficSplit outer")),
        ] {
            let advice = beside_splits(&new, std::slice::from_ref(&other));
            let told = advice.first().map(String::as_str);
            assert_eq!(told.is_some(), wants.is_some(), "{told:?}");
            assert!(told.unwrap_or_default().contains(wants.unwrap_or_default()), "{told:?}");
        }
    }

    #[test]
    fn a_mistake_is_told_with_its_field() {
        let (error, object) = read(json!({
            "apiVersion": "heddle.io/v1alpha1", "kind": "TrafficSplit",
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "service": "web", "backends": [{ "service": "web-v1", "wieght": 1 }] },
        }));
        assert!(object.is_none());
        let error = error.unwrap();
        assert!(error.contains("spec.backends[0].wieght"), "{error}");
    }
}
