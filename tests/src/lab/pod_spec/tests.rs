//! What is honoured, and what is refused with which words.

use super::*;

fn parse(manifest: &str) -> Result<PodSpec, Vec<Refusal>> {
    let manifest: core::Pod = serde_saphyr::from_str(manifest).unwrap();
    PodSpec::new(&manifest, &BTreeMap::new())
}

fn container(fields: &str) -> String {
    format!(
        "{{ metadata: {{ name: p }}, spec: {{ containers: [{{ name: a, command: [x], {fields} }}] }} }}"
    )
}

fn pod(fields: &str) -> String {
    format!(
        "{{ metadata: {{ name: p }}, spec: {{ containers: [{{ name: a, command: [x] }}], {fields} }} }}"
    )
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table: one row for each field")]
fn each_field_the_lab_cannot_honour_is_named() {
    for (manifest, path) in [
        (container("envFrom: [{ configMapRef: { name: c } }]"), "spec.containers[0].envFrom"),
        (
            container("volumeMounts: [{ name: v, mountPath: /v }]"),
            "spec.containers[0].volumeMounts",
        ),
        (container("startupProbe: { tcpSocket: { port: 1 } }"), "spec.containers[0].startupProbe"),
        (container("tty: true"), "spec.containers[0].tty"),
        (
            container("ports: [{ containerPort: 1, hostPort: 1 }]"),
            "spec.containers[0].ports[0].hostPort",
        ),
        (
            container("securityContext: { privileged: true }"),
            "spec.containers[0].securityContext.privileged",
        ),
        (
            container("securityContext: { runAsUser: 2715 }"),
            "spec.containers[0].securityContext.runAsUser",
        ),
        (
            container("securityContext: { runAsUser: 0, runAsNonRoot: true }"),
            "spec.containers[0].securityContext.runAsUser",
        ),
        (
            container("securityContext: { capabilities: { add: [NET_ADMIN] } }"),
            "spec.containers[0].securityContext.capabilities.add",
        ),
        (
            container(
                "env: [{ name: A, valueFrom: { fieldRef: { fieldPath: metadata.labels } } }]",
            ),
            "spec.containers[0].env[0].valueFrom",
        ),
        (
            container("readinessProbe: { httpGet: { port: web } }"),
            "spec.containers[0].readinessProbe.httpGet.port",
        ),
        (
            container("readinessProbe: { httpGet: { port: 1, scheme: HTTPS } }"),
            "spec.containers[0].readinessProbe.httpGet.scheme",
        ),
        (container("readinessProbe: { grpc: { port: 1 } }"), "spec.containers[0].readinessProbe"),
        (
            container("lifecycle: { preStop: { httpGet: { port: 1 } } }"),
            "spec.containers[0].lifecycle.preStop",
        ),
        (pod("volumes: [{ name: v, emptyDir: {} }]"), "spec.volumes"),
        (pod("hostNetwork: true"), "spec.hostNetwork"),
        (pod("restartPolicy: Sometimes"), "spec.restartPolicy"),
        (pod("initContainers: [{ name: mine }]"), "spec.initContainers[0]"),
        (
            pod("initContainers: [{ name: heddle-proxy, env: [{ name: A }] }]"),
            "spec.initContainers[0].env[0]",
        ),
        (
            "{ spec: { containers: [{ name: proxy, command: [x] }] } }".to_owned(),
            "spec.containers[0].name",
        ),
        ("{ spec: { containers: [{ name: a }] } }".to_owned(), "spec.containers[0].command"),
        (
            "{ spec: { containers: [{ name: a, command: [x] }, { name: a, command: [x] }] } }"
                .to_owned(),
            "spec.containers[1].name",
        ),
        (
            "{ metadata: { labels: { heddle.io/inject: 'no' } }, \
             spec: { containers: [{ name: a, command: [x] }] } }"
                .to_owned(),
            "metadata.labels[heddle.io/inject]",
        ),
    ] {
        let refusals = parse(&manifest).expect_err(&manifest);
        let paths: Vec<_> = refusals.iter().map(|refusal| refusal.path.as_str()).collect();
        assert_eq!(paths, [path], "{manifest}");
    }
}

#[test]
fn what_cannot_matter_here_is_accepted() {
    let manifest = pod(
        "restartPolicy: OnFailure, schedulerName: x, priorityClassName: y, nodeSelector: { a: b }, \
         automountServiceAccountToken: false, terminationGracePeriodSeconds: 5, \
         securityContext: { runAsUser: 1000, runAsNonRoot: true, fsGroup: 1 }",
    );
    let spec = parse(&manifest).unwrap();
    assert_eq!((spec.grace_s, spec.may_finish, spec.containers[0].uid), (5, true, 1000));
    let spec = parse(&container(
        "image: x, imagePullPolicy: Never, resources: { limits: { cpu: '1' } }, \
         livenessProbe: { tcpSocket: { port: 1 } }, \
         securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: [ALL] } }",
    ))
    .unwrap();
    assert_eq!(spec.containers[0].uid, APPLICATION_UID);
}

#[test]
fn the_nearest_label_decides_whether_a_pod_is_meshed() {
    let disabled = BTreeMap::from([(names::INJECT_LABEL.to_owned(), "disabled".to_owned())]);
    let none = BTreeMap::new();
    let plain = "{ spec: { containers: [{ name: a, command: [x] }] } }";
    let labelled = "{ metadata: { labels: { heddle.io/inject: enabled } }, \
                    spec: { containers: [{ name: a, command: [x] }] } }";
    for (manifest, namespace, want) in
        [(plain, &none, true), (plain, &disabled, false), (labelled, &disabled, true)]
    {
        let manifest: core::Pod = serde_saphyr::from_str(manifest).unwrap();
        assert_eq!(PodSpec::new(&manifest, namespace).unwrap().meshed, want, "{manifest:?}");
    }
}

#[test]
fn containers_are_read_with_kubernetes_meaning() {
    let spec = parse(&container(
        "args: [y], workingDir: /tmp, ports: [{ name: http, containerPort: 8080 }], \
         env: [{ name: A, value: b }, { name: IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }], \
         readinessProbe: { httpGet: { port: http, path: /ready }, failureThreshold: 1 }, \
         lifecycle: { preStop: { exec: { command: [bye] } } }",
    ))
    .unwrap();
    let container = &spec.containers[0];
    assert_eq!(container.argv, ["x", "y"]);
    assert_eq!(container.pre_stop, Some(vec!["bye".to_owned()]));
    assert_eq!(container.env[1], ("IP".to_owned(), EnvValue::Field(FieldRef::PodIp)));
    let probe = container.readiness.as_ref().unwrap();
    let check = Check::Http { port: 8080, path: "/ready".to_owned(), headers: Vec::new() };
    assert_eq!((&probe.check, probe.failures, probe.successes), (&check, 1, 1));
    assert_eq!(spec.resolve_port(&IntOrString::String("http".to_owned())), Some(8080));
    assert_eq!(spec.resolve_port(&IntOrString::String("other".to_owned())), None);
}
