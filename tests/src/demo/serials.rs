//! Certificates as their peers saw them: the serial numbers that proxies log for the other side of
//! every new mesh connection. A proxy's word about its own certificate does not count.

use std::collections::BTreeSet;

use anyhow::Context as _;
use serde::Deserialize;

use crate::lab::Lab;

/// The log target that carries them.
const TARGET: &str = "heddle_proxy::peer";

#[derive(Deserialize)]
struct Line {
    target: String,
    serial: Option<String>,
}

/// Every serial that any meshed pod has seen so far.
pub(super) fn seen_by_peers(lab: &Lab) -> anyhow::Result<BTreeSet<String>> {
    let mut serials = BTreeSet::new();
    for pod in lab.status()?.pods.iter().filter(|pod| pod.meshed) {
        let log = lab.logs(&pod.key().to_string(), "proxy").context("read a proxy's log")?;
        serials.extend(log.lines().filter_map(parse));
    }
    Ok(serials)
}

fn parse(line: &str) -> Option<String> {
    // Most lines are something else, and need no parser to tell.
    if !line.contains(TARGET) {
        return None;
    }
    let line: Line = serde_json::from_str(line).ok()?;
    line.serial.filter(|_| line.target == TARGET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_about_peers_count() {
        let cases = [
            (
                r#"{"target":"heddle_proxy::peer","serial":"0a1b","message":"connected"}"#,
                Some("0a1b"),
            ),
            (r#"{"target":"heddle_proxy::identity","serial":"0a1b"}"#, None),
            (r#"{"target":"x","message":"heddle_proxy::peer","serial":"0a1b"}"#, None),
            (r#"{"target":"heddle_proxy::peer"}"#, None),
            ("heddle_proxy::peer serial=0a1b", None),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line).as_deref(), expected, "{line}");
        }
    }
}
