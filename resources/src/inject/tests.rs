//! What becomes of pods of every kind: the patch itself, its idempotence, and each refusal.

use std::collections::BTreeMap;

use heddle_api::names::{INJECT_LABEL, PROBE_PORT, PROXY_CONTAINER, PROXY_UID};
use heddle_api::probes::{Check, Key, Moment, PageKey, Table, VARIABLE};
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::manifest::inject_manifest;
use super::*;

fn enabled() -> BTreeMap<String, String> {
    [(INJECT_LABEL.to_owned(), "enabled".to_owned())].into()
}

fn key() -> PageKey {
    PageKey::parse("0123456789abcdef").unwrap()
}

fn settings() -> Settings {
    Settings::new("0.1.0", "cluster.local")
}

/// The pod that the patch makes, and the warnings.
fn injected(pod: &Value, settings: &Settings) -> (Value, Vec<String>) {
    match inject(pod, &enabled(), settings, &key()) {
        Outcome::Patch { patch, warnings } => (patched(pod, &patch), warnings),
        other @ (Outcome::Skip { .. } | Outcome::Refuse { .. }) => panic!("{other:?}"),
    }
}

fn patched(pod: &Value, patch: &Patch) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, patch).unwrap();
    pod
}

fn refusal(pod: &Value) -> String {
    match inject(pod, &enabled(), &settings(), &key()) {
        Outcome::Refuse { message } => message,
        other @ (Outcome::Skip { .. } | Outcome::Patch { .. }) => panic!("{other:?}"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "every caller makes it on the spot")]
fn pod(spec: Value) -> Value {
    let metadata = json!({ "name": "web", "labels": { "app": "web" } });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
}

fn simple() -> Value {
    pod(json!({ "containers": [{ "name": "web", "image": "web" }] }))
}

fn annotated(name: &str, value: &str) -> Value {
    let mut pod = simple();
    pod["metadata"]["annotations"] = json!({ name: value });
    pod
}

fn table(pod: &Value) -> Table {
    let proxy = &pod["spec"]["initContainers"][1];
    let mut env = proxy["env"].as_array().unwrap().iter();
    let variable = env.find(|variable| variable["name"] == VARIABLE);
    variable
        .map_or_else(|| Table::new(key()), |v| Table::parse(v["value"].as_str().unwrap()).unwrap())
}

fn golden(name: &str, pod: &Value) {
    let Outcome::Patch { patch, warnings } = inject(pod, &enabled(), &settings(), &key()) else {
        panic!("{name} is not injected");
    };
    let seen = json!({ "warnings": warnings, "patch": patch });
    insta::assert_snapshot!(name, serde_json::to_string_pretty(&seen).unwrap());
}

#[test]
fn patches_are_what_they_were() {
    golden("simple", &simple());
    golden(
        "everything",
        &pod(json!({
            "terminationGracePeriodSeconds": 120,
            "securityContext": { "runAsNonRoot": true, "fsGroup": 2000 },
            "volumes": [{ "name": "data", "emptyDir": {} }],
            "initContainers": [
                { "name": "migrate", "image": "migrate" },
                { "name": "logs", "image": "logs", "restartPolicy": "Always",
                  "startupProbe": { "tcpSocket": { "port": 24_224 } } },
            ],
            "containers": [
                { "name": "web", "image": "web",
                  "ports": [{ "name": "http", "containerPort": 8080 }],
                  "livenessProbe": { "httpGet": { "path": "/alive?full", "port": "http" },
                                     "periodSeconds": 5, "timeoutSeconds": 3 },
                  "readinessProbe": { "httpGet": {
                      "port": 8443, "scheme": "HTTPS",
                      "httpHeaders": [{ "name": "Host", "value": "web.example" }] } },
                  "startupProbe": { "exec": { "command": ["true"] } },
                  "lifecycle": { "preStop": { "sleep": { "seconds": 5 } } } },
                { "name": "cache", "image": "cache",
                  "readinessProbe": { "grpc": { "port": 9000, "service": "shop.Cart" } },
                  "lifecycle": {
                      "postStart": { "httpGet": { "path": "warm", "port": 9001 } },
                      "preStop": { "httpGet": { "path": "/bye", "port": 9001 } } } },
            ],
        })),
    );
    let mut overridden = annotated("heddle.io/proxy-log-level", "warn,heddle_proxy=debug");
    overridden["metadata"]["annotations"]["heddle.io/proxy-memory-limit"] = json!("1Gi");
    overridden["metadata"]["annotations"]["heddle.io/proxy-cpu-request"] = json!("100m");
    golden("overridden", &overridden);
}

#[test]
fn the_label_of_the_pod_beats_that_of_its_namespace() {
    for (own, namespace, want) in [
        (None, None, Some(SkipReason::NotEnabled)),
        (None, Some("enabled"), None),
        (None, Some("disabled"), Some(SkipReason::Disabled)),
        (Some("enabled"), None, None),
        (Some("enabled"), Some("disabled"), None),
        (Some("disabled"), Some("enabled"), Some(SkipReason::Disabled)),
    ] {
        let mut pod = simple();
        if let Some(own) = own {
            pod["metadata"]["labels"][INJECT_LABEL] = json!(own);
        }
        let labels = namespace.map(|value| (INJECT_LABEL.to_owned(), value.to_owned()));
        let skipped = match inject(&pod, &labels.into_iter().collect(), &settings(), &key()) {
            Outcome::Skip { reason, patch, warnings } => {
                assert_eq!((patch.len(), warnings.len()), (0, 0), "{own:?} {namespace:?}");
                Some(reason)
            }
            Outcome::Patch { .. } => None,
            other @ Outcome::Refuse { .. } => panic!("{other:?}"),
        };
        assert_eq!(skipped, want, "{own:?} {namespace:?}");
    }
    let mut pod = simple();
    pod["metadata"]["labels"][INJECT_LABEL] = json!("true");
    assert!(refusal(&pod).contains(r#"heddle.io/inject is "true": write enabled or disabled"#));
}

#[test]
fn what_no_proxy_can_be_in_is_admitted_without_one_and_says_so() {
    for (field, value, want) in [
        ("hostNetwork", json!(true), SkipReason::HostNetwork),
        ("os", json!({ "name": "windows" }), SkipReason::Windows),
        ("nodeSelector", json!({ "kubernetes.io/os": "windows" }), SkipReason::Windows),
    ] {
        let mut pod = simple();
        pod["spec"][field] = value;
        let Outcome::Skip { reason, patch, warnings } =
            inject(&pod, &enabled(), &settings(), &key())
        else {
            panic!("{field}");
        };
        assert_eq!(reason, want);
        assert!(warnings[0].contains("runs without a proxy"), "{warnings:?}");
        let after = patched(&pod, &patch);
        let status = after["metadata"]["annotations"][STATUS_ANNOTATION].as_str().unwrap();
        assert!(status.starts_with("skipped: the pod "), "{status}");
        assert_eq!(after["spec"], pod["spec"]);
        let again = inject(&after, &enabled(), &settings(), &key());
        assert!(matches!(again, Outcome::Skip { patch, .. } if patch.is_empty()), "{field}");
    }
}

#[test]
fn what_must_not_be_meshed_as_it_is_is_refused_with_the_field_and_the_cure() {
    let spec = |spec: Value| pod(spec);
    let with = |container: Value| {
        let mut whole = json!({ "name": "web", "image": "web" });
        whole.as_object_mut().unwrap().append(&mut container.as_object().unwrap().clone());
        pod(json!({ "containers": [whole] }))
    };
    let runs_as = json!({ "runAsUser": PROXY_UID });
    let web = json!([{ "name": "web" }]);
    for (pod, wants) in [
        (spec(json!({})), "spec.containers: is required"),
        (
            spec(json!({ "containers": web, "securityContext": runs_as })),
            "spec.securityContext.runAsUser: 2715 is the proxy's uid",
        ),
        (
            with(json!({ "securityContext": runs_as })),
            "spec.containers[0].securityContext.runAsUser: 2715 is the proxy's uid",
        ),
        (
            spec(json!({ "containers": web,
                         "initContainers": [{ "name": "a", "securityContext": runs_as }] })),
            "spec.initContainers[0].securityContext.runAsUser",
        ),
        (
            with(json!({ "ports": [{ "containerPort": 15_106 }] })),
            "spec.containers[0].ports[0].containerPort: 15106 is a port of the proxy",
        ),
        (
            spec(json!({ "containers": [{ "name": PROXY_CONTAINER }] })),
            "spec.containers[0].name: heddle-proxy is the mesh's own container",
        ),
        (
            spec(json!({ "containers": web, "initContainers": [
                { "name": "heddle-init" }, { "name": PROXY_CONTAINER } ] })),
            "is not a native sidecar that runs as the proxy's user",
        ),
        (
            spec(json!({ "containers": web, "volumes": [{ "name": IDENTITY_VOLUME }] })),
            "spec.volumes[0].name",
        ),
        (
            with(json!({ "livenessProbe": { "httpGet": {
                "path": "/probe/web/liveness", "port": PROBE_PORT } } })),
            "points at the proxy's probe port 15107",
        ),
        (
            with(json!({ "livenessProbe": { "httpGet": { "port": 80, "httpHeaders": [
                { "name": "a", "value": "b\nc" }] } } })),
            "web/liveness: the path or a header cannot be written as HTTP",
        ),
        (
            with(json!({ "livenessProbe": { "httpGet": { "port": 80,
                "path": format!("/{}", "x".repeat(70_000)) } } })),
            "bytes; at most 65536",
        ),
        (annotated("heddle.io/proxy-cpu-requests", "1"), "no such annotation; write one of heddle"),
        (annotated("heddle.io/proxy-cpu-request", "lots"), "write an amount such as 100m"),
        (annotated("heddle.io/proxy-memory-request", "1Gi"), "memory request 1Gi is above"),
        (annotated("heddle.io/proxy-log-level", "verbose"), "write off, error, warn"),
        (annotated("heddle.io/skip-inbound-ports", "22"), "an administrator of the mesh allows no"),
        (annotated("heddle.io/skip-outbound-ports", "x"), "write ports from 1 to 65535"),
    ] {
        let message = refusal(&pod);
        assert!(message.contains(wants), "{message}\nwants {wants}");
    }
}

#[test]
fn mistakes_are_reported_together() {
    let mut pod = annotated("heddle.io/proxy-log-level", "verbose");
    pod["spec"]["securityContext"] = json!({ "runAsUser": PROXY_UID });
    pod["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": PROXY_UID });
    assert_eq!(refusal(&pod).split("; ").count(), 3, "{}", refusal(&pod));
}

#[test]
fn ports_are_left_out_as_far_as_the_administrator_lets_pods() {
    let mut settings = settings();
    settings.skip_inbound_ports = "22".parse().unwrap();
    settings.may_skip_inbound_ports = "9000-9100".parse().unwrap();
    let pod = annotated("heddle.io/skip-inbound-ports", "9090");
    let (after, _) = injected(&pod, &settings);
    let env = &after["spec"]["initContainers"][0]["env"];
    assert_eq!(*env, json!([{ "name": "HEDDLE_SKIP_INBOUND_PORTS", "value": "22,9090" }]));
    let pod = annotated("heddle.io/skip-inbound-ports", "9000-9200");
    let Outcome::Refuse { message } = inject(&pod, &enabled(), &settings, &key()) else { panic!() };
    assert!(message.contains("lets pods leave out 9000-9100, not 9000-9200"), "{message}");
}

#[test]
fn an_annotation_that_should_be_a_label_is_no_mistake_but_is_told() {
    let (after, warnings) = injected(&annotated(INJECT_LABEL, "disabled"), &settings());
    assert!(warnings[0].contains("write it as a label"), "{warnings:?}");
    assert_eq!(after["spec"]["initContainers"][1]["name"], PROXY_CONTAINER);
}

#[test]
fn checks_that_the_proxy_cannot_make_stay_the_kubelets_and_are_told() {
    for (container, wants) in [
        (json!({ "livenessProbe": { "httpGet": { "port": "web" } } }), "\"web\" is neither"),
        (json!({ "livenessProbe": { "tcpSocket": { "port": 0 } } }), "\"0\" is neither"),
        (json!({ "readinessProbe": { "httpGet": { "port": 80, "host": "a.example" } } }), ".host:"),
        (json!({ "lifecycle": { "preStop": { "tcpSocket": { "port": 80 } } } }), "no such hook"),
    ] {
        let mut pod = simple();
        for (field, value) in container.as_object().unwrap() {
            pod["spec"]["containers"][0][field] = value.clone();
        }
        let (after, warnings) = injected(&pod, &settings());
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains(wants), "{warnings:?}");
        for (field, value) in container.as_object().unwrap() {
            assert_eq!(after["spec"]["containers"][0][field], *value);
        }
        assert!(table(&after).is_empty());
    }
}

#[test]
fn what_a_later_webhook_adds_is_completed_and_nothing_else_is_touched() {
    let mut pod = simple();
    pod["spec"]["containers"][0]["readinessProbe"] = json!({ "tcpSocket": { "port": 80 } });
    let (mut first, _) = injected(&pod, &settings());
    let late = json!({ "name": "late", "readinessProbe": { "grpc": { "port": 9 } } });
    first["spec"]["containers"].as_array_mut().unwrap().push(late);
    // What an operator changed since is not changed back.
    first["spec"]["initContainers"][1]["image"] = json!("mirror/proxy:1");
    let mut changed = settings();
    changed.log = "debug".to_owned();
    let Outcome::Patch { patch, .. } = inject(&first, &enabled(), &changed, &key()) else {
        panic!()
    };
    let paths: Vec<_> = patch.iter().map(|operation| operation.path().to_string()).collect();
    assert_eq!(
        paths,
        [
            "/spec/containers/1/readinessProbe",
            "/spec/containers/1/lifecycle",
            "/spec/containers/1/lifecycle/preStop",
            "/spec/initContainers/1/env/9/value",
        ]
    );
    let second = patched(&first, &patch);
    assert_eq!(table(&second).iter().count(), 2);
    let late = Key::new("late", Moment::Readiness);
    let declared = table(&second).find(&late).cloned().unwrap();
    assert_eq!(declared.check, Check::Grpc { port: 9, service: String::new() });
    let Outcome::Patch { patch, .. } = inject(&second, &enabled(), &changed, &key()) else {
        panic!()
    };
    assert!(patch.is_empty(), "{patch}");
}

#[test]
fn every_kind_that_makes_pods_is_injected_and_nothing_else() {
    let template = json!({ "spec": { "containers": [{ "name": "web" }] } });
    let nested = |kind: &str, spec: Value| json!({ "kind": kind, "metadata": { "name": "web", "namespace": "shop" }, "spec": spec });
    let place = json!({ "template": template });
    let cron = nested("CronJob", json!({ "jobTemplate": { "spec": place } }));
    let mut objects = json!({ "kind": "List", "items": [
        nested("Deployment", place.clone()), nested("StatefulSet", place.clone()),
        nested("DaemonSet", place.clone()), nested("Job", place), cron,
        nested("Pod", template["spec"].clone()), nested("Service", json!({})),
    ]});
    let notes = inject_manifest(&mut objects, &enabled(), &settings(), &mut key);
    let names: Vec<_> = notes.iter().map(|note| note.object.as_str()).collect();
    assert_eq!(
        names,
        [
            "Deployment shop/web",
            "StatefulSet shop/web",
            "DaemonSet shop/web",
            "Job shop/web",
            "CronJob shop/web",
            "Pod shop/web"
        ]
    );
    let text = objects.to_string();
    assert_eq!(text.matches(r#""name":"heddle-proxy""#).count(), 6);
    let again = inject_manifest(&mut objects, &enabled(), &settings(), &mut key);
    for note in again {
        assert!(matches!(note.outcome, Outcome::Patch { patch, .. } if patch.is_empty()));
    }
}

fn probe() -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        (0u32..70_000).prop_map(|port| json!(port)),
        Just(json!("http")),
        Just(json!(15_109)),
    ];
    let action = (port, "[a-z/?#% ]{0,12}").prop_flat_map(|(port, path)| {
        prop_oneof![
            Just(json!({ "httpGet": { "port": port, "path": path } })),
            Just(json!({ "httpGet": { "port": port, "scheme": "HTTPS", "host": path } })),
            Just(json!({ "tcpSocket": { "port": port } })),
            Just(json!({ "grpc": { "port": 9000, "service": path } })),
            Just(json!({ "exec": { "command": ["true"] } })),
            Just(Value::Null),
        ]
    });
    (action, 0u32..10).prop_map(|(mut action, timeout)| {
        if action.is_object() {
            action["timeoutSeconds"] = json!(timeout);
            action["aFieldOfTomorrow"] = json!({ "kept": true });
        }
        action
    })
}

prop_compose! {
    fn container(name: String)(
        probes in [probe(), probe(), probe()],
        hooks in [probe(), probe()],
        with_hooks in any::<bool>(),
        sidecar in any::<bool>(),
    ) -> Value {
        let mut container = json!({
            "name": name,
            "image": "web",
            "ports": [{ "name": "http", "containerPort": 8080 }],
        });
        for (field, probe) in ["livenessProbe", "readinessProbe", "startupProbe"].iter().zip(probes) {
            if probe.is_object() {
                container[field] = probe;
            }
        }
        if with_hooks {
            for (field, mut hook) in ["postStart", "preStop"].iter().zip(hooks) {
                if let Some(fields) = hook.as_object_mut() {
                    // A hook has no timeout of its own, and none is made by gRPC.
                    fields.retain(|name, _| name != "timeoutSeconds" && name != "grpc");
                }
                container["lifecycle"][field] = hook;
            }
        }
        if sidecar && name.starts_with("init") {
            container["restartPolicy"] = json!("Always");
        }
        container
    }
}

prop_compose! {
    fn any_pod()(
        containers in (1usize..4).prop_flat_map(|n| {
            (0..n).map(|i| container(format!("app-{i}"))).collect::<Vec<_>>()
        }),
        inits in (0usize..3).prop_flat_map(|n| {
            (0..n).map(|i| container(format!("init-{i}"))).collect::<Vec<_>>()
        }),
        grace in proptest::option::of(0u64..400),
        shape in 0u8..4,
    ) -> Value {
        let mut pod = pod(json!({ "containers": containers }));
        if !inits.is_empty() {
            pod["spec"]["initContainers"] = json!(inits);
        } else if shape == 1 {
            pod["spec"]["initContainers"] = Value::Null;
        }
        if let Some(grace) = grace {
            pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
        }
        if shape == 2 {
            pod["spec"]["hostNetwork"] = json!(true);
        }
        if shape == 3 {
            pod["metadata"] = Value::Null;
        }
        pod["spec"]["aFieldOfTomorrow"] = json!([1, 2]);
        pod
    }
}

proptest! {
    #[test]
    fn twice_is_once(pod in any_pod()) {
        let (Outcome::Patch { patch, .. } | Outcome::Skip { patch, .. }) =
            inject(&pod, &enabled(), &settings(), &key())
        else {
            panic!("refused");
        };
        let once = patched(&pod, &patch);
        let (Outcome::Patch { patch, .. } | Outcome::Skip { patch, .. }) =
            inject(&once, &enabled(), &settings(), &key())
        else {
            panic!("refused the second time");
        };
        prop_assert!(patch.is_empty(), "{}", patch);
    }

    #[test]
    fn nothing_of_the_application_is_lost_and_every_network_check_is_redirected(pod in any_pod()) {
        prop_assume!(pod["spec"]["hostNetwork"] != true);
        let (after, warnings) = injected(&pod, &settings());
        prop_assert_eq!(&after["spec"]["aFieldOfTomorrow"], &json!([1, 2]));
        let empty = Vec::new();
        let before = pod["spec"]["initContainers"].as_array().unwrap_or(&empty);
        let inits = after["spec"]["initContainers"].as_array().unwrap();
        prop_assert_eq!(inits.len(), before.len() + 2);
        for (old, new) in before.iter().zip(&inits[2..]) {
            prop_assert_eq!(&old["name"], &new["name"]);
            if old["restartPolicy"].is_null() {
                prop_assert_eq!(old, new);
            }
        }
        let mut elsewhere = 0;
        let main = after["spec"]["containers"].as_array().unwrap();
        for container in main.iter().chain(inits[2..].iter().filter(|c| c["restartPolicy"] == "Always")) {
            let hooks = [&container["lifecycle"]["postStart"], &container["lifecycle"]["preStop"]];
            let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|f| &container[f]);
            for check in hooks.into_iter().chain(probes) {
                prop_assert!(check.is_null() || check["aFieldOfTomorrow"].is_object()
                    || check["httpGet"]["path"] == "/drained");
                let ports = ["httpGet", "tcpSocket", "grpc"].map(|action| &check[action]["port"]);
                elsewhere += ports.iter()
                    .filter(|p| !p.is_null() && ***p != PROBE_PORT && ***p != 15_109).count();
            }
        }
        prop_assert_eq!(elsewhere, warnings.len(), "{:?}", warnings);
    }

    #[test]
    fn what_is_made_is_a_pod(pod in any_pod()) {
        prop_assume!(pod["metadata"].is_object());
        let (Outcome::Patch { patch, .. } | Outcome::Skip { patch, .. }) =
            inject(&pod, &enabled(), &settings(), &key())
        else {
            panic!("refused");
        };
        let mut unknown = Vec::new();
        let after = patched(&pod, &patch);
        let typed: Result<Pod, _> =
            serde_ignored::deserialize(after, |path| unknown.push(path.to_string()));
        prop_assert!(typed.is_ok(), "{:?}", typed);
        unknown.retain(|path| !path.contains("aFieldOfTomorrow"));
        prop_assert!(unknown.is_empty(), "{:?}", unknown);
    }
}
