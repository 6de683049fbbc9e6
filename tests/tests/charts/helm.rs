//! Runs the real `helm` on the repository's charts, without a cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use heddle_tests::cluster::programs::Programs;
use serde_json::Value;

/// Where Heddle is installed.
pub(crate) const NAMESPACE: &str = heddle_api::names::CONTROL_PLANE_NAMESPACE;

/// What is rendered and kept as a golden file: a name, and files of values beside the defaults.
pub(crate) const VARIANTS: &[(&str, &[&str])] = &[
    ("default", &[]),
    ("ha", &["values-ha.yaml"]),
    ("restricted", &["values-restricted.yaml"]),
    ("ha-restricted", &["values-ha.yaml", "values-restricted.yaml"]),
];

/// Every template with every optional part on.
pub(crate) const EVERYTHING: &str = r#"
commonLabels: { team: mesh }
controlPlane:
  podAnnotations: { example.com/note: "1" }
  podLabels: { example.com/kind: mesh }
  serviceAccountAnnotations: { example.com/note: "2" }
  tolerations: [{ key: node-role.kubernetes.io/control-plane, operator: Exists, effect: NoSchedule }]
  affinity: { nodeAffinity: {} }
  priorityClassName: ""
  resources: { limits: { cpu: 2 } }
  extraEnv: [{ name: RUST_BACKTRACE, value: "1" }]
identity: { leafLifetime: 1h, csrPerMinute: 20 }
injector:
  failurePolicy: Ignore
  timeoutSeconds: 10
  excludedNamespaces: [kube-system, local-path]
redirection:
  skipInboundPorts: "22,8000-8005"
  skipOutboundRanges: [10.0.0.0/8]
  podsMaySkipOutboundPorts: "3306"
webhook: { certificate: provided, annotations: { cert-manager.io/inject-ca-from: heddle-system/heddle-webhook } }
networkPolicy: { enabled: true, apiServerRanges: ["10.0.0.0/24", "fd00::/64"] }
monitoring: { podMonitor: { enabled: true, labels: { release: prometheus }, namespaces: [shop] } }
mesh: { create: true, tls: Permissive }
"#;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The one of `scripts/kubernetes`.
fn program() -> PathBuf {
    Programs::find(&["helm"]).unwrap_or_else(|error| panic!("{error:#}")).path("helm")
}

/// Runs helm; what it says where it should not have.
fn run(
    arguments: &[&str],
    namespace: &str,
    files: &[&str],
    values: &str,
) -> Result<String, String> {
    let home = tempfile::tempdir().expect("a temporary directory");
    let given = home.path().join("values.yaml");
    fs::write(&given, values).expect("the values can be written");
    let mut command = Command::new(program());
    command.args(arguments).args(["--namespace", namespace]).current_dir(root());
    // Nothing of the person's who runs the test: no plugins, no repositories, no cluster.
    command.env("HOME", home.path()).env_remove("KUBECONFIG");
    for file in files {
        command.arg("--values").arg(root().join("charts/heddle").join(file));
    }
    if !values.is_empty() {
        command.arg("--values").arg(given);
    }
    said(&mut command)
}

/// Every object of the chart `heddle`, rendered with these files and values of its own.
pub(crate) fn template(files: &[&str], values: &str) -> Result<String, String> {
    run(&["template", "heddle", "charts/heddle"], NAMESPACE, files, values)
}

/// The same for somebody who names another namespace.
pub(crate) fn template_into(namespace: &str) -> Result<String, String> {
    run(&["template", "heddle", "charts/heddle"], namespace, &[], "")
}

/// The chart of the definitions.
pub(crate) fn template_crds(values: &str) -> Result<String, String> {
    run(&["template", "heddle-crds", "charts/heddle-crds"], NAMESPACE, &[], values)
}

pub(crate) fn lint(chart: &str, files: &[&str]) {
    let arguments = ["lint", "--strict", &format!("charts/{chart}")];
    if let Err(said) = run(&arguments, NAMESPACE, files, "") {
        panic!("{chart} with {files:?}: {said}");
    }
}

/// Helm as an operator of a cluster runs it, in the namespace of the mesh.
pub(crate) fn operate(kubeconfig: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let home = tempfile::tempdir()?;
    let mut command = Command::new(program());
    command.args(arguments).args(["--namespace", NAMESPACE]).current_dir(root());
    command.env("HOME", home.path()).env("KUBECONFIG", kubeconfig);
    said(&mut command).map_err(anyhow::Error::msg)
}

fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().expect("helm runs");
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).expect("UTF-8"))
    } else {
        let said = [output.stdout, output.stderr].concat();
        Err(String::from_utf8_lossy(&said).into_owned())
    }
}

/// Rendered objects.
#[derive(Debug)]
pub(crate) struct Rendering(pub(crate) Vec<Value>);

impl Rendering {
    pub(crate) fn parse(text: &str) -> Self {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("Helm rendered YAML");
        Self(documents.into_iter().filter(|document| !document.is_null()).collect())
    }

    /// Every object of a kind.
    pub(crate) fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    /// The one object of a kind and name.
    pub(crate) fn one(&self, kind: &str, name: &str) -> &Value {
        let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        let mut found = self.0.iter().filter(is_it);
        let one = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
        assert!(found.next().is_none(), "two {kind} {name}");
        one
    }
}
