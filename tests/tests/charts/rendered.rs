//! What holds for everything that the chart renders, whatever the values: the threat model's demands
//! on manifests, as assertions.

use heddle_api::names;
use serde_json::{Value, json};

use super::helm::Rendering;

/// Every rule that is broken, with the object.
pub(crate) fn problems(rendering: &Rendering) -> Vec<String> {
    let mut problems = Problems(Vec::new());
    for object in &rendering.0 {
        labels(object, &mut problems);
    }
    for kind in ["Deployment", "Pod"] {
        for object in rendering.of(kind) {
            let template = &object["spec"]["template"];
            let pod = if kind == "Pod" { object } else { template };
            pod_rules(pod, &mut problems);
        }
    }
    control_plane(rendering, &mut problems);
    ports(rendering, &mut problems);
    injector(rendering, &mut problems);
    validator(rendering, &mut problems);
    permissions(rendering, &mut problems);
    problems.0
}

struct Problems(Vec<String>);

impl Problems {
    fn unless(&mut self, holds: bool, object: &Value, problem: &str) {
        if !holds {
            let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
            self.0.push(format!("{kind} {name}: {problem}"));
        }
    }
}

fn labels(object: &Value, problems: &mut Problems) {
    let labels = &object["metadata"]["labels"];
    for wanted in ["name", "instance", "version", "part-of", "managed-by"] {
        let label = format!("app.kubernetes.io/{wanted}");
        problems.unless(labels[&label].is_string(), object, &format!("no label {label}"));
    }
}

/// Pod Security's level "restricted", and more.
fn pod_rules(pod: &Value, problems: &mut Problems) {
    let spec = &pod["spec"];
    let security = &spec["securityContext"];
    let mut unless = |holds: bool, problem: &str| problems.unless(holds, pod, problem);
    unless(security["runAsNonRoot"] == true, "may run as root");
    let uid = security["runAsUser"].as_u64();
    unless(uid.is_some_and(|uid| uid > 0), "has no fixed uid");
    unless(uid != Some(names::PROXY_UID.into()), "uses the uid of proxies");
    unless(security["seccompProfile"]["type"] == "RuntimeDefault", "has no seccomp profile");
    unless(
        spec["automountServiceAccountToken"] == false,
        "gets the token that is mounted by itself",
    );
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        unless(spec[field].is_null(), "shares something with its node");
    }
    unless(pod["metadata"]["labels"][names::INJECT_LABEL] == "disabled", "might be injected");
    for container in spec["containers"].as_array().into_iter().flatten() {
        let security = &container["securityContext"];
        unless(security["readOnlyRootFilesystem"] == true, "may write to its root");
        unless(security["allowPrivilegeEscalation"] == false, "may gain privileges");
        unless(security["capabilities"] == json!({ "drop": ["ALL"] }), "keeps capabilities");
        unless(security["privileged"].is_null(), "is privileged");
        unless(container["resources"]["limits"]["memory"].is_string(), "has no memory limit");
        unless(container["resources"]["requests"]["cpu"].is_string(), "asks for no CPU");
        let environment = container["env"].as_array().map_or(&[][..], Vec::as_slice);
        let mut seen: Vec<_> = environment.iter().map(|one| &one["name"]).collect();
        seen.sort_by_key(|name| name.to_string());
        seen.dedup();
        unless(seen.len() == environment.len(), "sets a variable twice");
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        unless(volume["hostPath"].is_null(), "mounts a folder of its node");
    }
    let token = &spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    let life = token["expirationSeconds"].as_u64();
    unless(life.is_some_and(|life| life <= 3607), "has a token that lives for long");
}

fn control_plane(rendering: &Rendering, problems: &mut Problems) {
    let name = names::CONTROL_PLANE_SERVICE_ACCOUNT;
    let deployment = rendering.one("Deployment", name);
    let spec = &deployment["spec"];
    let pod = &spec["template"]["spec"];
    let container = &pod["containers"][0];
    let mut unless = |holds: bool, problem: &str| problems.unless(holds, deployment, problem);
    unless(deployment["metadata"]["namespace"] == names::CONTROL_PLANE_NAMESPACE, "is elsewhere");
    unless(pod["serviceAccountName"] == name, "is somebody else");
    unless(spec["replicas"].as_u64() >= Some(2), "has no second replica");
    unless(spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0, "goes before the next serves");
    unless(container["livenessProbe"]["httpGet"]["path"] == "/livez", "is not seen to hang");
    unless(container["readinessProbe"]["httpGet"]["path"] == "/readyz", "is not seen to be ready");
    let spread = pod["topologySpreadConstraints"].as_array().map_or(0, Vec::len);
    unless(spread == 2, "is not spread over nodes and zones");
    let selector = &spec["selector"]["matchLabels"];
    let labels = &spec["template"]["metadata"]["labels"];
    for (key, value) in selector.as_object().into_iter().flatten() {
        unless(&labels[key] == value, "does not select its own pods");
    }
    unless(selector.get("app.kubernetes.io/version").is_none(), "has a selector that changes");
    let budget = rendering.one("PodDisruptionBudget", name);
    problems.unless(&budget["spec"]["selector"]["matchLabels"] == selector, budget, "is another's");
    let service = rendering.one("Service", name);
    problems.unless(&service["spec"]["selector"] == selector, service, "is another's");
}

fn ports(rendering: &Rendering, problems: &mut Problems) {
    let name = names::CONTROL_PLANE_SERVICE_ACCOUNT;
    let deployment = rendering.one("Deployment", name);
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    for (port, number) in [
        ("discovery", names::CONTROL_PLANE_PORT),
        ("admin", names::CONTROL_PLANE_ADMIN_PORT),
        ("webhook", names::WEBHOOK_PORT),
    ] {
        let declared = json!({ "name": port, "containerPort": number, "protocol": "TCP" });
        let ports = container["ports"].as_array().map_or(&[][..], Vec::as_slice);
        problems.unless(ports.contains(&declared), deployment, "lacks a port, or has another");
    }
    let service = rendering.one("Service", name);
    let ports: Vec<_> = service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| (port["port"].as_u64(), port["targetPort"].as_str()))
        .collect();
    let wanted = [
        (Some(u64::from(names::CONTROL_PLANE_PORT)), Some("discovery")),
        (Some(443), Some("webhook")),
    ];
    problems.unless(ports == wanted, service, "offers other ports than discovery and webhook");
}

fn injector(rendering: &Rendering, problems: &mut Problems) {
    let configuration = rendering.one("MutatingWebhookConfiguration", "heddle");
    let webhooks = configuration["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
    problems.unless(webhooks.len() == 4, configuration, "does not ask in four ways");
    for webhook in webhooks {
        webhook_rules(configuration, webhook, "/inject", problems);
        let mut unless = |holds: bool, problem: &str| {
            problems.unless(holds, configuration, &format!("{}: {problem}", webhook["name"]));
        };
        let excluded = requirement(&webhook["namespaceSelector"], "kubernetes.io/metadata.name");
        let excluded = excluded.filter(|one| one["operator"] == "NotIn");
        let excluded = excluded.map(|one| one["values"].to_string()).unwrap_or_default();
        for namespace in ["kube-system", names::CONTROL_PLANE_NAMESPACE] {
            unless(excluded.contains(&format!("{namespace:?}")), "asks about system pods");
        }
        let labelled = requirement(&webhook["namespaceSelector"], names::INJECT_LABEL)
            .is_some_and(|one| one["operator"] == "In" && one["values"] == json!(["enabled"]));
        let chosen = webhook["objectSelector"]["matchExpressions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|one| one["key"] == names::INJECT_LABEL && one["operator"] == "Exists");
        unless(labelled || chosen, "asks about pods that nobody labelled");
        let condition = webhook["matchConditions"][0]["expression"].as_str().unwrap_or_default();
        let own_network = condition.contains("hostNetwork") && condition.ends_with("!= true");
        unless(own_network || webhook["failurePolicy"] == "Ignore", "may hold up the node's pods");
        unless(webhook["reinvocationPolicy"] == "IfNeeded", "misses what later webhooks add");
        let rules = json!([{
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }]);
        unless(webhook["rules"] == rules, "asks about something else than new pods");
    }
}

fn validator(rendering: &Rendering, problems: &mut Problems) {
    for configuration in rendering.of("ValidatingWebhookConfiguration") {
        for webhook in configuration["webhooks"].as_array().into_iter().flatten() {
            webhook_rules(configuration, webhook, "/validate", problems);
            let is_advice = webhook["failurePolicy"] == "Ignore";
            problems.unless(is_advice, configuration, "can stop an object from being applied");
        }
    }
}

fn webhook_rules(configuration: &Value, webhook: &Value, path: &str, problems: &mut Problems) {
    let mut unless = |holds: bool, problem: &str| {
        problems.unless(holds, configuration, &format!("{}: {problem}", webhook["name"]));
    };
    let client = &webhook["clientConfig"];
    unless(client["caBundle"].is_null(), "sets caBundle, which is the leader's");
    let service = json!({
        "name": names::CONTROL_PLANE_SERVICE_ACCOUNT,
        "namespace": names::CONTROL_PLANE_NAMESPACE,
        "path": path,
        "port": 443,
    });
    unless(client["service"] == service, "calls somebody else");
    unless(webhook["timeoutSeconds"].as_u64() <= Some(10), "holds up the API server");
    unless(webhook["sideEffects"] == "None", "is not asked in a dry run");
    unless(webhook["matchPolicy"] == "Equivalent", "misses other versions of the kind");
}

fn requirement<'a>(selector: &'a Value, key: &str) -> Option<&'a Value> {
    selector["matchExpressions"].as_array()?.iter().find(|one| one["key"] == key)
}

/// Whatever somebody adds to the rules, none of this may be among them.
fn permissions(rendering: &Rendering, problems: &mut Problems) {
    for kind in ["ClusterRole", "Role"] {
        for role in rendering.of(kind) {
            // For people, who may do the same already with everything else of the namespace.
            if role["metadata"]["name"].as_str().is_some_and(|name| name != "heddle-control-plane")
            {
                continue;
            }
            for rule in role["rules"].as_array().into_iter().flatten() {
                let text = rule.to_string();
                let mut unless = |holds: bool, problem: &str| {
                    problems.unless(holds, role, &format!("{problem}: {text}"));
                };
                unless(!text.contains('*'), "a wildcard");
                unless(kind == "Role" || !text.contains("secrets"), "Secrets of every namespace");
                for verb in ["delete", "impersonate", "escalate", "bind", "approve", "sign"] {
                    unless(!text.contains(verb), "more than it needs");
                }
                for resource in ["/exec", "/attach", "/portforward", "/proxy", "nodes", "roles"] {
                    unless(!text.contains(resource), "more than it needs");
                }
                let writes = ["create", "update", "patch"].iter().any(|verb| text.contains(verb));
                let named = rule["resourceNames"].is_array();
                let harmless = text.contains("/status")
                    || text.contains("\"events\"")
                    || text.contains("tokenreviews")
                    || kind == "Role";
                unless(!writes || named || harmless, "writes objects that it does not name");
            }
        }
    }
}
