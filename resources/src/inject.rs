//! Injection: a pod in, what makes it a meshed one out. Pure, and the same for the webhook and for
//! `heddle inject`.
//!
//! Works on JSON and answers a JSON Patch, so a field that our types do not know is never lost. What
//! is injected once stays as it is: a pod that comes by again only gets what its newer containers
//! still lack. Never changes what an application's container runs, mounts or is allowed to do.

use std::collections::BTreeMap;

use heddle_api::names::INJECT_LABEL;
use heddle_api::probes::{PageKey, Table};
use json_patch::Patch;
use serde_json::{Value, json};

mod checks;
mod containers;
mod edit;
pub mod manifest;
mod overrides;
mod pod;
mod settings;
#[cfg(test)]
mod tests;

pub use overrides::{ANNOTATIONS, LABEL_AS_ANNOTATION};
pub use settings::{PortList, Quantity, Requirements, Settings};

use edit::Editor;
use pod::{Injected, PodView};

/// What became of the pod, for a person who looks for its proxy: `injected`, or `skipped: ` and why.
pub const STATUS_ANNOTATION: &str = "heddle.io/inject-status";
/// The volume with the proxy's token and the trust bundle.
pub const IDENTITY_VOLUME: &str = "heddle-identity";
/// The volume with the proxy's control socket.
pub const RUN_VOLUME: &str = "heddle-run";

/// What is to be done with a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The pod is meshed once the patch is applied; an empty patch says that it was already.
    Patch { patch: Patch, warnings: Vec<String> },
    /// The pod stays without a proxy. The patch notes the reason on it where nobody asked for that.
    Skip { reason: SkipReason, patch: Patch, warnings: Vec<String> },
    /// The pod must not run as it is: the mistakes, each with what to write instead.
    Refuse { message: String },
}

/// Why a pod stays without a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// Neither the pod nor its namespace asks for one.
    NotEnabled,
    /// The pod's label, or its namespace's, says `disabled`.
    Disabled,
    /// The pod shares the node's network, whose traffic is not the pod's to redirect.
    HostNetwork,
    /// The proxy is a Linux program.
    Windows,
}

impl SkipReason {
    /// For metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotEnabled => "not_enabled",
            Self::Disabled => "disabled",
            Self::HostNetwork => "host_network",
            Self::Windows => "windows",
        }
    }

    /// For a person, where it is not what they asked for.
    #[must_use]
    pub fn surprise(self) -> Option<&'static str> {
        match self {
            Self::NotEnabled | Self::Disabled => None,
            Self::HostNetwork => Some("the pod uses the node's network, which is not redirected"),
            Self::Windows => Some("the pod is for Windows, where the proxy does not run"),
        }
    }
}

/// Judges a pod, or the template of one, of a namespace with these labels. `key` is for a pod that
/// has none yet, and should be a new one for each.
#[must_use]
pub fn inject(
    pod: &Value,
    namespace_labels: &BTreeMap<String, String>,
    settings: &Settings,
    key: &PageKey,
) -> Outcome {
    let view = PodView::new(pod);
    let mut mistakes = Vec::new();
    let skip = match choice(&view, namespace_labels) {
        Ok(Some(true)) => None,
        Ok(Some(false)) => Some(SkipReason::Disabled),
        Ok(None) => Some(SkipReason::NotEnabled),
        Err(message) => return Outcome::Refuse { message },
    };
    let mut warnings = overrides::warnings(&view);
    let skip = skip.or_else(|| view.unsuitable());
    if let Some(reason) = skip {
        let mut edit = Editor::new(pod);
        if let Some(surprise) = reason.surprise() {
            warnings.push(format!(
                "{surprise}: it runs without a proxy, and workloads in Strict mode refuse its calls"
            ));
            annotate(&mut edit, &format!("skipped: {surprise}"));
        } else {
            // Who asked for no proxy need not hear how it would have been spelled.
            warnings.clear();
        }
        return Outcome::Skip { reason, patch: edit.finish(), warnings };
    }
    view.refuse(&mut mistakes);
    let overrides = overrides::parse(&view, settings, &mut mistakes);
    if !mistakes.is_empty() {
        return Outcome::Refuse { message: mistakes.join("; ") };
    }
    let mesh = Mesh { pod, view: &view, settings, overrides: &overrides };
    match mesh.patch(key, &mut warnings) {
        Ok(patch) => Outcome::Patch { patch, warnings },
        Err(message) => Outcome::Refuse { message },
    }
}

/// The pod's own label has the last word; `None` when nobody says anything.
fn choice(
    view: &PodView<'_>,
    namespace: &BTreeMap<String, String>,
) -> Result<Option<bool>, String> {
    let own = view.label(INJECT_LABEL).map(|value| (value, "the pod's"));
    let inherited = namespace.get(INJECT_LABEL).map(|value| (value.as_str(), "the namespace's"));
    match own.or(inherited) {
        None => Ok(None),
        Some(("enabled", _)) => Ok(Some(true)),
        Some(("disabled", _)) => Ok(Some(false)),
        Some((other, whose)) => Err(format!(
            "{whose} label {INJECT_LABEL} is {}: write enabled or disabled",
            pod::quote(other)
        )),
    }
}

/// What the patch of a pod that gets a proxy follows from.
struct Mesh<'a> {
    pod: &'a Value,
    view: &'a PodView<'a>,
    settings: &'a Settings,
    overrides: &'a overrides::Overrides,
}

impl Mesh<'_> {
    /// What the pod still lacks.
    fn patch(&self, key: &PageKey, warnings: &mut Vec<String>) -> Result<Patch, String> {
        let mut edit = Editor::new(self.pod);
        let before = match self.view.injected() {
            Injected::Yes { table: Some(table), .. } => table.clone(),
            Injected::Yes { table: None, .. } | Injected::No => Table::new(key.clone()),
        };
        let after = checks::redirect(&mut edit, self.view, before.clone(), warnings)?;
        let table = after.encode().map_err(|error| checks::too_many(&error))?;
        match self.view.injected() {
            Injected::No => {
                let table = (!after.is_empty()).then_some(table.as_str());
                containers::insert(&mut edit, self.view, self.settings, self.overrides, table);
            }
            Injected::Yes { proxy, .. } if after != before => {
                containers::declare(&mut edit, *proxy, &table);
            }
            Injected::Yes { .. } => {}
        }
        annotate(&mut edit, "injected");
        Ok(edit.finish())
    }
}

fn annotate(edit: &mut Editor, status: &str) {
    edit.ensure(&["metadata"], || json!({}));
    edit.ensure(&["metadata", "annotations"], || json!({}));
    edit.set(&["metadata", "annotations", STATUS_ANNOTATION], json!(status));
}
