//! The cluster itself: its API server, what the caller may do in it, the definitions of our kinds.

use heddle_api::names::API_VERSION;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;

use super::{Findings, Verdict};
use crate::cluster::Cluster;

const CATEGORY: &str = "cluster";
/// Native sidecars are for everybody from here on.
const MINOR_MIN: u32 = 33;
/// Certificates allow for a minute; half of it is worth a word.
const SKEW_LIMIT: i64 = 30;
/// Plural names of our kinds.
const KINDS: [&str; 5] =
    ["trafficsplits", "trafficpolicies", "authorizationpolicies", "meshtlspolicies", "meshes"];
/// What an installation creates: group, resource, namespaced.
const INSTALLED: [(&str, &str, bool); 10] = [
    ("", "namespaces", false),
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", false),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", false),
    ("", "serviceaccounts", true),
    ("", "services", true),
    ("apps", "deployments", true),
    ("rbac.authorization.k8s.io", "roles", true),
];

/// Whether the API server answers, in a version that is new enough, with a clock like ours.
pub(super) async fn server(cluster: &Cluster, findings: &mut Findings) -> bool {
    let version = match cluster.client.apiserver_version().await {
        Ok(version) => version,
        Err(error) => {
            let problem = format!("{error}\ncheck the kubeconfig and the network");
            findings.judge(CATEGORY, "the API server answers", Some(problem));
            return false;
        }
    };
    findings.judge(CATEGORY, "the API server answers", None);
    let digits: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
    let is_new = version.major != "1" || digits.parse::<u32>().is_ok_and(|n| n >= MINOR_MIN);
    let problem = (!is_new).then(|| {
        format!("it is {}; native sidecars need 1.{MINOR_MIN} or later", version.git_version)
    });
    findings.judge(CATEGORY, format!("Kubernetes is 1.{MINOR_MIN} or later"), problem);
    clock(cluster, findings).await;
    true
}

async fn clock(cluster: &Cluster, findings: &mut Findings) {
    let check = "this clock and the API server's agree";
    let Ok(request) = http::Request::get("/readyz").body(kube::client::Body::empty()) else {
        return;
    };
    let answered = match cluster.client.send(request).await {
        Ok(answered) => answered,
        Err(error) => return findings.unknown(CATEGORY, check, &error),
    };
    let date = answered.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
    let Some(skew) = date.and_then(parse_date).map(|then| Timestamp::now().as_second() - then)
    else {
        return findings.add(CATEGORY, check, Verdict::Unknown, "it told no date");
    };
    let problem = (skew.abs() > SKEW_LIMIT).then(|| {
        format!("they differ by {skew} s; certificates fail beyond 60 s: check NTP on both")
    });
    findings.judge(CATEGORY, check, problem);
}

/// `Sat, 21 Nov 2026 10:12:45 GMT` in seconds since the Unix epoch (RFC 9110, 5.6.7).
fn parse_date(text: &str) -> Option<i64> {
    let parsed = k8s_openapi::jiff::fmt::rfc2822::parse(text).ok()?;
    Some(parsed.timestamp().as_second())
}

/// Whether the caller may install.
pub(super) async fn permissions(cluster: &Cluster, findings: &mut Findings) {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    for (group, resource, is_namespaced) in INSTALLED {
        let check = match group {
            "" => format!("you may create {resource}"),
            _ => format!("you may create {resource}.{group}"),
        };
        let namespace =
            is_namespaced.then(|| heddle_api::names::CONTROL_PLANE_NAMESPACE.to_owned());
        let attributes = ResourceAttributes {
            verb: Some("create".to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            namespace,
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        match reviews.create(&PostParams::default(), &review).await {
            Ok(answer) => {
                let allowed = answer.status.is_some_and(|status| status.allowed);
                let problem = (!allowed).then(|| "ask an administrator of the cluster".to_owned());
                findings.judge("permissions", check, problem);
            }
            Err(error) => findings.unknown("permissions", check, &error),
        }
    }
}

/// Whether our kinds are defined, and served in the version this program speaks.
pub(super) async fn definitions(cluster: &Cluster, findings: &mut Findings) {
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let (group, version) = API_VERSION.split_once('/').unwrap_or(("", API_VERSION));
    for kind in KINDS {
        let check = format!("{kind}.{group} are defined");
        match definitions.get_opt(&format!("{kind}.{group}")).await {
            Ok(Some(definition)) => {
                let served =
                    definition.spec.versions.iter().any(|one| one.served && one.name == version);
                let problem = (!served).then(|| {
                    format!("{version} is not served; upgrade: helm upgrade heddle-crds charts/heddle-crds")
                });
                findings.judge("definitions", check, problem);
            }
            Ok(None) => {
                let problem =
                    "install them: helm install heddle-crds charts/heddle-crds".to_owned();
                findings.judge("definitions", check, Some(problem));
            }
            Err(error) => findings.unknown("definitions", check, &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_as_http_writes_them() {
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:01:40 GMT"), Some(100));
        assert_eq!(parse_date("yesterday"), None);
    }
}
