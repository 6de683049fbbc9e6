//! `heddle inject`: manifests in, the same with the sidecar out, by the code of the webhook.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use heddle_api::names::INJECT_LABEL;
use heddle_api::probes::PageKey;
use heddle_resources::inject::manifest::{Note, inject_manifest};
use heddle_resources::inject::{Outcome, Settings};
use rand::distr::{Alphanumeric, SampleString as _};
use serde_json::Value;

use crate::output::{Format, Printed};
use crate::version::OWN;

/// Largest input that is read.
const INPUT_LIMIT: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// File with manifests, YAML or JSON; "-" is standard input
    #[arg(short, long = "filename")]
    filename: PathBuf,
    /// Image of the proxy [default: this version's]
    #[arg(long)]
    proxy_image: Option<String>,
    /// Image of the init container [default: this version's]
    #[arg(long)]
    init_image: Option<String>,
    /// Where proxies find the control plane, HOST:PORT [default: its Service]
    #[arg(long)]
    control_plane: Option<String>,
    /// The mesh's trust domain
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// YAML or JSON
    #[arg(short = 'o', long = "output", value_enum, default_value = "yaml")]
    format: Format,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<Printed> {
    let text = read(&options.filename)?;
    inject(&text, options)
}

fn inject(text: &str, options: &Options) -> anyhow::Result<Printed> {
    let mut settings = Settings::new(OWN, &options.trust_domain);
    let given = [
        (&options.proxy_image, &mut settings.proxy_image),
        (&options.init_image, &mut settings.init_image),
        (&options.control_plane, &mut settings.control_plane),
    ];
    for (given, setting) in given {
        if let Some(given) = given {
            setting.clone_from(given);
        }
    }
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(text).context("no YAML or JSON")?;
    objects.retain(|object| !object.is_null());
    if objects.is_empty() {
        bail!("there is no manifest in it");
    }
    // Whoever runs this asks for the sidecar: a pod that says no still has its way.
    let labels = BTreeMap::from([(INJECT_LABEL.to_owned(), "enabled".to_owned())]);
    let mut is_well = true;
    for object in &mut objects {
        for note in inject_manifest(object, &labels, &settings, &mut new_key) {
            is_well &= tell(&note);
        }
    }
    Ok(Printed { text: print(&objects, options.format)?, is_well })
}

fn new_key() -> PageKey {
    let text = Alphanumeric.sample_string(&mut rand::rng(), 32);
    PageKey::parse(&text).expect("letters and digits, as many as it takes")
}

/// One line for each pod; false when it was refused.
fn tell(note: &Note) -> bool {
    let Note { object, outcome } = note;
    let (line, warnings, is_well) = match outcome {
        Outcome::Patch { patch, warnings } if patch.0.is_empty() => {
            ("injected already".to_owned(), warnings.as_slice(), true)
        }
        Outcome::Patch { warnings, .. } => ("injected".to_owned(), warnings.as_slice(), true),
        Outcome::Skip { reason, warnings, .. } => {
            (format!("skipped: {}", reason.as_str()), warnings.as_slice(), true)
        }
        Outcome::Refuse { message } => (format!("refused: {message}"), [].as_slice(), false),
    };
    eprintln!("{object}: {line}");
    for warning in warnings {
        eprintln!("{object}: warning: {warning}");
    }
    is_well
}

fn print(objects: &[Value], format: Format) -> anyhow::Result<String> {
    let one = |object: &Value| -> anyhow::Result<String> {
        Ok(match format {
            Format::Json => serde_json::to_string_pretty(object)? + "\n",
            Format::Table | Format::Yaml => format!("---\n{}", serde_saphyr::to_string(object)?),
        })
    };
    objects.iter().map(one).collect()
}

fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(INPUT_LIMIT).read_to_string(&mut text)?;
    } else {
        let file = std::fs::File::open(path);
        let file = file.with_context(|| format!("cannot read {}", path.display()))?;
        file.take(INPUT_LIMIT).read_to_string(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &str) -> Options {
        Line::try_parse_from(line.split(' ')).unwrap().options
    }

    const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: shop }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      containers: [{ name: web, image: "example.com/web:1" }]
---
apiVersion: v1
kind: ConfigMap
metadata: { name: other }
data: { yes: "on", number: "007" }
"#;

    #[test]
    fn workloads_get_the_sidecar_and_the_rest_passes_as_it_is() {
        let printed =
            inject(DEPLOYMENT, &options("inject -f - --proxy-image mine/proxy:2")).unwrap();
        assert!(printed.is_well);
        let objects: Vec<Value> = serde_saphyr::from_multiple(&printed.text).unwrap();
        let init = &objects[0]["spec"]["template"]["spec"]["initContainers"];
        let images: Vec<_> = init.as_array().unwrap().iter().map(|one| &one["image"]).collect();
        assert!(images.iter().any(|image| *image == "mine/proxy:2"), "{images:?}");
        assert_eq!(objects[1]["data"]["number"], "007");
        assert_eq!(objects[1]["data"]["yes"], "on");
        // What was injected is not injected again.
        let again = inject(&printed.text, &options("inject -f -")).unwrap();
        assert_eq!(serde_saphyr::from_multiple::<Value>(&again.text).unwrap(), objects);
    }

    #[test]
    fn a_refused_pod_is_told_and_left_as_it_was() {
        let text = DEPLOYMENT.replace("image:", "securityContext: { runAsUser: 2715 }, image:");
        let printed = inject(&text, &options("inject -f -")).unwrap();
        assert!(!printed.is_well);
        assert!(!printed.text.contains("initContainers"));
        assert!(inject("", &options("inject -f -")).is_err());
    }
}
