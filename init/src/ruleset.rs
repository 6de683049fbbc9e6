//! The redirection rules, as text. Pure: options in, rules out.
//!
//! A connection is redirected when its first packet passes; connections older than the rules are
//! not. There are none: the rules are written before any other process of the pod starts.

use std::fmt::Write as _;

use crate::config::Skips;
use heddle_api::names::{
    CANARY_PORT, CANARY_V4, CANARY_V6, INBOUND_PORT, METRICS_PORT, OUTBOUND_PORT, PROBE_PORT,
    PROXY_UID,
};

/// Everything is in this table, which is ours alone.
pub(crate) const TABLE: &str = "inet heddle";

/// The chains in the order in which they are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ruleset {
    pub chains: Vec<Chain>,
}

/// A chain at a hook of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub name: String,
    /// `type … hook … priority …; policy …;`
    pub hook: String,
    pub rules: Vec<String>,
}

impl Ruleset {
    pub(crate) fn new(skips: &Skips) -> Self {
        Self {
            chains: vec![
                chain("outbound", "nat", "output", -100, outbound(skips)),
                chain("inbound", "nat", "prerouting", -100, inbound(skips)),
                chain("outbound-strays", "filter", "output", 0, strays()),
                chain("inbound-strays", "filter", "input", 0, strays()),
            ],
        }
    }

    /// What makes the kernel's table this one, whatever it was: in one transaction, so that there is
    /// no moment without rules.
    pub(crate) fn transaction(&self) -> String {
        let mut text = Self::removal();
        let _ = writeln!(text, "table {TABLE} {{");
        for chain in &self.chains {
            let _ = writeln!(text, "\tchain {} {{\n\t\t{}", chain.name, chain.hook);
            for rule in &chain.rules {
                let _ = writeln!(text, "\t\t{rule}");
            }
            text.push_str("\t}\n");
        }
        text.push_str("}\n");
        text
    }

    /// What removes the table; the first line keeps the second from failing where there is none.
    pub(crate) fn removal() -> String {
        format!("table {TABLE}\ndelete table {TABLE}\n")
    }
}

fn chain(name: &str, kind: &str, hook: &str, priority: i32, rules: Vec<String>) -> Chain {
    Chain {
        name: name.to_owned(),
        hook: hook_text(kind, hook, i64::from(priority), "accept"),
        rules,
    }
}

/// The line that ties a chain to its hook.
pub(crate) fn hook_text(kind: &str, hook: &str, priority: i64, policy: &str) -> String {
    format!("type {kind} hook {hook} priority {priority}; policy {policy};")
}

/// Connections that begin in the pod.
fn outbound(skips: &Skips) -> Vec<String> {
    let mut rules = vec![
        // Before the exemption of the proxy's uid: it is the proxy that asks whether the rules
        // stand.
        format!("ip daddr {CANARY_V4} tcp dport {CANARY_PORT} redirect to :{CANARY_PORT}"),
        format!("ip6 daddr {CANARY_V6} tcp dport {CANARY_PORT} redirect to :{CANARY_PORT}"),
        format!("meta skuid {PROXY_UID} accept"),
        // By address, not by interface: the pod's own address is reached over lo as well, and is
        // redirected like any other.
        "ip daddr 127.0.0.0/8 accept".to_owned(),
        "ip6 daddr ::1 accept".to_owned(),
    ];
    rules.extend(skips.skip_outbound_ports.0.iter().map(|port| format!("tcp dport {port} accept")));
    rules.extend(skips.skip_outbound_cidrs.0.iter().map(|network| {
        let family = if network.is_v4() { "ip" } else { "ip6" };
        format!("{family} daddr {network} accept")
    }));
    rules.push(format!("meta l4proto tcp redirect to :{OUTBOUND_PORT}"));
    rules
}

/// Connections that arrive at the pod.
fn inbound(skips: &Skips) -> Vec<String> {
    let mut rules = vec!["iifname \"lo\" accept".to_owned()];
    rules.extend([PROBE_PORT, METRICS_PORT].map(|port| format!("tcp dport {port} accept")));
    rules.extend(skips.skip_inbound_ports.0.iter().map(|port| format!("tcp dport {port} accept")));
    rules.push(format!("meta l4proto tcp redirect to :{INBOUND_PORT}"));
    rules
}

/// A segment that belongs to no connection the kernel knows is not redirected: it would pass the
/// proxy by, in the clear. Nobody can make use of it, so it is dropped.
fn strays() -> Vec<String> {
    vec!["meta l4proto tcp ct state invalid,untracked drop".to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_options_everything_is_redirected() {
        assert_eq!(
            Ruleset::new(&Skips::default()).transaction(),
            "table inet heddle
delete table inet heddle
table inet heddle {
	chain outbound {
		type nat hook output priority -100; policy accept;
		ip daddr 192.0.2.105 tcp dport 15105 redirect to :15105
		ip6 daddr 100::105 tcp dport 15105 redirect to :15105
		meta skuid 2715 accept
		ip daddr 127.0.0.0/8 accept
		ip6 daddr ::1 accept
		meta l4proto tcp redirect to :15101
	}
	chain inbound {
		type nat hook prerouting priority -100; policy accept;
		iifname \"lo\" accept
		tcp dport 15107 accept
		tcp dport 15109 accept
		meta l4proto tcp redirect to :15106
	}
	chain outbound-strays {
		type filter hook output priority 0; policy accept;
		meta l4proto tcp ct state invalid,untracked drop
	}
	chain inbound-strays {
		type filter hook input priority 0; policy accept;
		meta l4proto tcp ct state invalid,untracked drop
	}
}
"
        );
    }

    #[test]
    fn what_is_skipped_stands_before_the_redirection_and_after_the_canary() {
        let skips = Skips {
            skip_inbound_ports: "22".parse().unwrap(),
            skip_outbound_ports: "1-5,7".parse().unwrap(),
            skip_outbound_cidrs: "10.1.2.3/32,fd00::/8".parse().unwrap(),
        };
        let ruleset = Ruleset::new(&skips);
        assert_eq!(
            ruleset.chains[0].rules[5..],
            [
                "tcp dport 1-5 accept",
                "tcp dport 7 accept",
                "ip daddr 10.1.2.3 accept",
                "ip6 daddr fd00::/8 accept",
                "meta l4proto tcp redirect to :15101",
            ]
        );
        assert_eq!(
            ruleset.chains[1].rules[3..],
            ["tcp dport 22 accept", "meta l4proto tcp redirect to :15106"]
        );
    }
}
