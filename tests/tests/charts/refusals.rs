//! Values that an operator might write by mistake, and what Helm says about each.

use super::helm;

/// Values, and what the answer has to contain.
const BAD: &[(&str, &[&str])] = &[
    // Typos: a name that nothing reads is never ignored.
    ("replicas: 3", &["additional properties 'replicas' not allowed"]),
    ("controlPlane: { replica: 3 }", &["/controlPlane'", "'replica' not allowed"]),
    ("controlplane: { replicas: 3 }", &["'controlplane' not allowed"]),
    ("proxy: { image: { repo: x } }", &["/proxy/image'", "'repo' not allowed"]),
    ("proxy: { resources: { limit: { memory: 1Gi } } }", &["/proxy/resources'", "'limit'"]),
    ("injector: { namespaceSelector: {} }", &["/injector'", "'namespaceSelector'"]),
    ("global: { registry: x }", &["/global'", "'registry'"]),
    ("mesh: { create: true, mtls: Strict }", &["/mesh'", "'mtls'"]),
    ("controlPlane: { podDisruptionBudget: { minAvailable: 1 } }", &["'minAvailable'"]),
    ("controlPlane: { extraEnv: [{ nam: A }] }", &["/controlPlane/extraEnv/0'", "'nam'"]),
    // Wrong shapes.
    ("controlPlane: { replicas: \"3\" }", &["/controlPlane/replicas'", "want integer"]),
    ("controlPlane: { replicas: 0 }", &["/controlPlane/replicas'", "minimum: got 0, want 1"]),
    ("controlPlane: { replicas: null }", &["/controlPlane'", "missing property 'replicas'"]),
    ("proxy: { image: { tag: 1.10 } }", &["/proxy/image/tag'", "got number, want string"]),
    ("proxy: { image: { digest: sha256:abc } }", &["/proxy/image/digest'", "pattern"]),
    ("proxy: { image: { repository: 'Heddle/Proxy' } }", &["/proxy/image/repository'", "pattern"]),
    ("proxy: { image: { pullPolicy: always } }", &["'Always', 'IfNotPresent', 'Never'"]),
    ("proxy: { accessLog: on }", &["/proxy/accessLog'"]),
    ("proxy: { accessLog: plain }", &["/proxy/accessLog'", "'off', 'json', false"]),
    ("controlPlane: { drainTimeout: 30 }", &["/drainTimeout'", "got number, want string"]),
    ("controlPlane: { drainTimeout: 30 s }", &["/drainTimeout'", "pattern"]),
    ("redirection: { skipInboundPorts: 22 }", &["/skipInboundPorts'", "got number, want string"]),
    ("redirection: { skipOutboundPorts: '22-80,a' }", &["/skipOutboundPorts'", "pattern"]),
    ("redirection: { skipOutboundRanges: [10.0.0.1] }", &["/skipOutboundRanges/0'"]),
    ("init: { image: { pullPolicy: Never } }", &["/init/image'", "'pullPolicy' not allowed"]),
    ("webhook: { certificate: provided, caBundle: YWJj }", &["/webhook/caBundle'", "pattern"]),
    ("proxy: { log: { filter: '' } }", &["/proxy/log/filter'", "minLength"]),
    (
        "proxy: { resources: { requests: { memory: 32 MB } } }",
        &["/proxy/resources/requests/memory'"],
    ),
    ("controlPlane: { log: { format: text } }", &["/controlPlane/log/format'", "'json', 'plain'"]),
    ("controlPlane: { spread: { nodes: required } }", &["'ScheduleAnyway', 'DoNotSchedule'"]),
    (
        "controlPlane: { podDisruptionBudget: { maxUnavailable: 0 } }",
        &["maxUnavailable'", "minimum"],
    ),
    (
        "controlPlane: { tolerations: [{ effect: NoScheduling }] }",
        &["/controlPlane/tolerations/0/effect'"],
    ),
    ("controlPlane: { extraEnv: [{ name: A, value: 1 }] }", &["/extraEnv/0/value'", "want string"]),
    ("commonLabels: { team: [a] }", &["/commonLabels/team'", "want string"]),
    ("commonLabels: { 'a b': c }", &["/commonLabels'", "'a b' not allowed"]),
    ("injector: { failurePolicy: Warn }", &["/injector/failurePolicy'", "'Fail', 'Ignore'"]),
    (
        "injector: { timeoutSeconds: 60 }",
        &["/injector/timeoutSeconds'", "maximum: got 60, want 30"],
    ),
    ("injector: { excludedNamespaces: [Kube_System] }", &["/injector/excludedNamespaces/0'"]),
    ("identity: { csrPerMinute: 100000 }", &["/identity/csrPerMinute'", "maximum"]),
    ("networkPolicy: { enabled: true, apiServerRanges: [10.0.0.1] }", &["/apiServerRanges/0'"]),
    ("networkPolicy: { enabled: true, apiServerPorts: [] }", &["/apiServerPorts'", "minItems"]),
    ("mesh: { create: true, tls: strict }", &["/mesh/tls'", "'Strict', 'Permissive'"]),
    ("mesh: { create: true, authorization: Allow }", &["'AllowAuthenticated', 'Deny'"]),
    ("mesh: { create: true, clusterRanges: 10.0.0.0/8 }", &["/mesh/clusterRanges'", "want array"]),
    ("mesh: { create: true, trustDomain: Cluster.Local }", &["/mesh/trustDomain'", "pattern"]),
    // What is right by itself and wrong together.
    ("mesh: { tls: Permissive }", &["mesh.tls is set, but mesh.create is false"]),
    ("mesh: { clusterRanges: [10.0.0.0/8] }", &["mesh.clusterRanges is set"]),
    ("networkPolicy: { apiServerRanges: [10.0.0.0/8] }", &["networkPolicy.enabled is false"]),
    ("controlPlane: { drainTimeout: 1m }", &["terminationGracePeriodSeconds is 30", "65 or more"]),
    ("identity: { leafLifetime: 10s }", &["identity.leafLifetime is 10s", "20s and 2160h"]),
    ("identity: { leafLifetime: 2161h }", &["identity.leafLifetime is 2161h"]),
    ("proxy: { drainTimeout: 61m }", &["proxy.drainTimeout is 61m", "between 1s and 1h"]),
    ("proxy: { tokenLifetime: 5m }", &["proxy.tokenLifetime is 5m", "between 10m and 24h"]),
    (
        "webhook: { caBundle: '-----BEGIN CERTIFICATE-----x-----END CERTIFICATE-----' }",
        &["webhook.caBundle is set, but webhook.certificate is managed"],
    ),
    (
        "controlPlane: { extraEnv: [{ name: HEDDLE_LOG, value: debug }] }",
        &["controlPlane.extraEnv sets HEDDLE_LOG, which the chart sets itself"],
    ),
];

/// Every bad value is refused, and what is nearest to it and right is not.
pub(crate) fn check() {
    let mut wrong = Vec::new();
    for (values, wanted) in BAD {
        match helm::template(&[], values) {
            Ok(_) => wrong.push(format!("{values}: accepted")),
            Err(said) => {
                let missing = wanted.iter().filter(|part| !said.contains(**part));
                wrong.extend(missing.map(|part| format!("{values}: no {part:?} in {said}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for values in [
        "proxy: { accessLog: json }",
        "proxy: { accessLog: off }",
        "controlPlane: { resources: { limits: { cpu: 2 } } }",
    ] {
        assert!(helm::template(&[], values).is_ok(), "{values}");
    }
    let said = helm::template_into("default").expect_err("it is not heddle-system");
    assert!(said.contains("--namespace heddle-system --create-namespace"), "{said}");
    let crds = helm::template_crds("keep: false").expect_err("that chart has no values");
    assert!(crds.contains("'keep' not allowed"), "{crds}");
}
