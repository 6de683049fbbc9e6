//! Compares the kernel's rules with what they should be.
//!
//! `nft` lists rules as JSON; each is written back as the text of `ruleset`, and the texts are
//! compared line by line. What cannot be written back is shown as it is: it is not ours, so it
//! differs.

use serde_json::Value;

use crate::error::Error;
use crate::ruleset::{Chain, Ruleset, hook_text};

/// Succeeds when the table that `listing` shows is `wanted`, no more and no less.
pub(crate) fn compare(wanted: &Ruleset, listing: &str) -> Result<(), Error> {
    let found = parse(listing)?;
    let mut lines = Vec::new();
    for chain in &wanted.chains {
        match found.chains.iter().find(|candidate| candidate.name == chain.name) {
            Some(candidate) => compare_chain(chain, candidate, &mut lines),
            None => lines.push(format!("  chain {} is missing", chain.name)),
        }
    }
    for chain in &found.chains {
        if !wanted.chains.iter().any(|candidate| candidate.name == chain.name) {
            lines.push(format!("  chain {} is not ours", chain.name));
        }
    }
    if lines.is_empty() { Ok(()) } else { Err(Error::Differ(lines.join("\n"))) }
}

fn compare_chain(wanted: &Chain, found: &Chain, lines: &mut Vec<String>) {
    let name = &wanted.name;
    if wanted.hook != found.hook {
        lines.push(format!("  chain {name}: should be `{}`, is `{}`", wanted.hook, found.hook));
    }
    for index in 0..wanted.rules.len().max(found.rules.len()) {
        let number = index + 1;
        match (wanted.rules.get(index), found.rules.get(index)) {
            (Some(wanted), Some(found)) if wanted == found => {}
            (Some(wanted), Some(found)) => lines
                .push(format!("  chain {name}, rule {number}: should be `{wanted}`, is `{found}`")),
            (Some(wanted), None) => {
                lines.push(format!("  chain {name}, rule {number}: `{wanted}` is missing"));
            }
            (None, Some(found)) => {
                lines.push(format!("  chain {name}, rule {number}: `{found}` is not ours"));
            }
            (None, None) => {}
        }
    }
}

fn parse(listing: &str) -> Result<Ruleset, Error> {
    let not_json = |error: &dyn std::fmt::Display| Error::NotJson(error.to_string());
    let document: Value = serde_json::from_str(listing).map_err(|error| not_json(&error))?;
    let items = document["nftables"].as_array().ok_or_else(|| not_json(&"no `nftables`"))?;
    let mut chains: Vec<Chain> = Vec::new();
    for item in items {
        if let Some(chain) = item.get("chain") {
            chains.push(Chain {
                name: text(&chain["name"]),
                hook: hook_text(
                    &text(&chain["type"]),
                    &text(&chain["hook"]),
                    chain["prio"].as_i64().unwrap_or(i64::MIN),
                    &text(&chain["policy"]),
                ),
                rules: Vec::new(),
            });
        } else if let Some(rule) = item.get("rule") {
            let name = text(&rule["chain"]);
            if let Some(chain) = chains.iter_mut().find(|chain| chain.name == name) {
                chain.rules.push(render_rule(&rule["expr"]));
            }
        }
    }
    Ok(Ruleset { chains })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn render_rule(expressions: &Value) -> String {
    let expressions = expressions.as_array().map(Vec::as_slice).unwrap_or_default();
    expressions
        .iter()
        .map(|expression| render(expression).unwrap_or_else(|| expression.to_string()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// `None` for whatever is not in our own rules.
fn render(expression: &Value) -> Option<String> {
    let (kind, body) = expression.as_object()?.iter().next()?;
    match kind.as_str() {
        "accept" | "drop" => Some(kind.clone()),
        "redirect" => Some(format!("redirect to :{}", body["port"].as_u64()?)),
        "match" => render_match(body),
        _ => None,
    }
}

fn render_match(body: &Value) -> Option<String> {
    if !matches!(body["op"].as_str()?, "==" | "in") {
        return None;
    }
    let (kind, left) = body["left"].as_object()?.iter().next()?;
    let left = match kind.as_str() {
        "payload" => format!("{} {}", left["protocol"].as_str()?, left["field"].as_str()?),
        "meta" => match left["key"].as_str()? {
            // The only names of a device in our rules; everything else needs the word.
            "iifname" => "iifname".to_owned(),
            key => format!("meta {key}"),
        },
        "ct" => format!("ct {}", left["key"].as_str()?),
        _ => return None,
    };
    let quote = left == "iifname";
    Some(format!("{left} {}", render_value(&body["right"], quote)?))
}

fn render_value(value: &Value, quote: bool) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) if quote => Some(format!("{text:?}")),
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(Value::as_str).collect();
            Some(items?.join(","))
        }
        Value::Object(object) => {
            let (kind, body) = object.iter().next()?;
            match kind.as_str() {
                "prefix" => Some(format!("{}/{}", body["addr"].as_str()?, body["len"].as_u64()?)),
                "range" => Some(format!("{}-{}", body[0].as_u64()?, body[1].as_u64()?)),
                _ => None,
            }
        }
        Value::Null | Value::Bool(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Skips;

    /// As nft 1.0.6 lists the rules of `skips`.
    const LISTING: &str = include_str!("check/listing.json");

    fn skips() -> Skips {
        Skips {
            skip_inbound_ports: "22".parse().unwrap(),
            skip_outbound_ports: "1-5,7".parse().unwrap(),
            skip_outbound_cidrs: "10.0.0.0/8,fd00::5".parse().unwrap(),
        }
    }

    #[test]
    fn the_kernels_listing_is_recognized() {
        assert_eq!(parse(LISTING).unwrap(), Ruleset::new(&skips()));
    }

    #[test]
    fn differences_are_named() {
        let wanted = Ruleset::new(&skips());
        for (from, to, want) in [
            (
                "15101",
                "15102",
                "`meta l4proto tcp redirect to :15101`, is `meta l4proto tcp redirect to :15102`",
            ),
            ("\"prio\": -100", "\"prio\": -90", "priority -90"),
            ("\"name\": \"inbound\"", "\"name\": \"mine\"", "chain inbound is missing"),
            ("\"name\": \"inbound\"", "\"name\": \"mine\"", "chain mine is not ours"),
            ("{\"accept\": null}", "{\"counter\": null}", "{\"counter\":null}"),
            ("{\"op\": \"==\"", "{\"op\": \"!=\"", "\"op\":\"!=\""),
        ] {
            let changed = LISTING.replacen(from, to, 1);
            assert_ne!(changed, LISTING, "{from}");
            let error = compare(&wanted, &changed).unwrap_err().to_string();
            assert!(error.contains(want), "{want}\n{error}");
        }
        assert!(compare(&Ruleset::new(&Skips::default()), LISTING).is_err());
        assert!(matches!(compare(&wanted, "no"), Err(Error::NotJson(_))));
    }
}
