//! What a pod may decide about its own proxy: a closed list of annotations. One that is not in it,
//! or whose value cannot be used, is a mistake of the pod's: a typo never passes in silence.

use heddle_api::names::INJECT_LABEL;
use serde_json::Value;

use super::STATUS_ANNOTATION;
use super::pod::{PodView, quote};
use super::settings::{PortList, Requirements, Settings};

const PREFIX: &str = "heddle.io/";
/// A label's name, written as an annotation.
pub const LABEL_AS_ANNOTATION: &str = INJECT_LABEL;

const CPU_REQUEST: &str = "heddle.io/proxy-cpu-request";
const CPU_LIMIT: &str = "heddle.io/proxy-cpu-limit";
const MEMORY_REQUEST: &str = "heddle.io/proxy-memory-request";
const MEMORY_LIMIT: &str = "heddle.io/proxy-memory-limit";
const LOG_LEVEL: &str = "heddle.io/proxy-log-level";
const SKIP_INBOUND: &str = "heddle.io/skip-inbound-ports";
const SKIP_OUTBOUND: &str = "heddle.io/skip-outbound-ports";

/// What a pod may say.
pub const ANNOTATIONS: [&str; 7] =
    [CPU_REQUEST, CPU_LIMIT, MEMORY_REQUEST, MEMORY_LIMIT, LOG_LEVEL, SKIP_INBOUND, SKIP_OUTBOUND];

/// Longer filters are not what a person wrote.
const MAX_FILTER: usize = 256;

/// What holds for this pod: the settings, where it says nothing else.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Overrides {
    pub requirements: Requirements,
    pub log: String,
    pub skip_inbound_ports: PortList,
    pub skip_outbound_ports: PortList,
}

/// What is no mistake, and not what its author thinks either.
pub(super) fn warnings(view: &PodView<'_>) -> Vec<String> {
    let mut annotations = view.annotations();
    let found = annotations.find(|(name, _)| *name == LABEL_AS_ANNOTATION);
    let warning = found.map(|_| {
        format!(
            "the annotation {LABEL_AS_ANNOTATION} has no effect: write it as a label, on the pod \
             or its namespace"
        )
    });
    warning.into_iter().collect()
}

/// Reads every annotation of ours.
pub(super) fn parse(
    view: &PodView<'_>,
    settings: &Settings,
    mistakes: &mut Vec<String>,
) -> Overrides {
    let mut overrides = Overrides {
        requirements: settings.proxy.clone(),
        log: settings.log.clone(),
        skip_inbound_ports: settings.skip_inbound_ports.clone(),
        skip_outbound_ports: settings.skip_outbound_ports.clone(),
    };
    for (name, value) in view.annotations().filter(|(name, _)| name.starts_with(PREFIX)) {
        if let Err(instead) = overrides.apply(name, value, settings) {
            let value = value.as_str().map_or_else(|| value.to_string(), quote);
            mistakes.push(format!("metadata.annotations[{}]={value}: {instead}", quote(name)));
        }
    }
    if let Err(message) = overrides.requirements.check("the proxy") {
        mistakes.push(message);
    }
    overrides
}

impl Overrides {
    /// The error says what to write instead.
    fn apply(&mut self, name: &str, value: &Value, settings: &Settings) -> Result<(), String> {
        let text = value.as_str().ok_or("write it as a string, in quotes")?;
        let amount = || text.parse().map(Some).map_err(|error| format!("{error}"));
        match name {
            LABEL_AS_ANNOTATION | STATUS_ANNOTATION => {}
            CPU_REQUEST => self.requirements.cpu_request = amount()?,
            CPU_LIMIT => self.requirements.cpu_limit = amount()?,
            MEMORY_REQUEST => self.requirements.memory_request = amount()?,
            MEMORY_LIMIT => self.requirements.memory_limit = amount()?,
            LOG_LEVEL => self.log = filter(text)?,
            SKIP_INBOUND => {
                let ports = allowed(text, &settings.may_skip_inbound_ports)?;
                self.skip_inbound_ports = self.skip_inbound_ports.join(&ports);
            }
            SKIP_OUTBOUND => {
                let ports = allowed(text, &settings.may_skip_outbound_ports)?;
                self.skip_outbound_ports = self.skip_outbound_ports.join(&ports);
            }
            _ => {
                return Err(format!("no such annotation; write one of {}", ANNOTATIONS.join(", ")));
            }
        }
        Ok(())
    }
}

/// `info`, or `warn,heddle_proxy=debug`: levels, each alone or for one part of the proxy.
fn filter(text: &str) -> Result<String, String> {
    let level = |text: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&text);
    let target = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b))
    };
    let directive = |part: &str| match part.split_once('=') {
        Some((part, value)) => target(part) && level(value),
        None => level(part),
    };
    if text.len() <= MAX_FILTER && text.split(',').all(directive) {
        return Ok(text.to_owned());
    }
    Err("write off, error, warn, info, debug or trace, alone or as heddle_proxy=debug, with commas \
         between several"
        .to_owned())
}

fn allowed(text: &str, allowed: &PortList) -> Result<PortList, String> {
    let ports: PortList = text.parse().map_err(|error| format!("{error}"))?;
    let Some(outside) = ports.find_outside(allowed) else { return Ok(ports) };
    Err(match allowed.is_empty() {
        true => {
            "an administrator of the mesh allows no pod to leave ports out: remove it".to_owned()
        }
        false => format!(
            "an administrator of the mesh lets pods leave out {allowed}, not {outside}: remove that"
        ),
    })
}
