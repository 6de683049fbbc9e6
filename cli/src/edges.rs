//! `heddle edges`: who calls whom. What one looks at before turning Strict on.

use heddle_api::identity::SpiffeId;
use serde::Serialize;

use crate::cluster::Access;
use crate::output::{Output, Printed, table};
use crate::traffic::{Peer, Rates};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only edges over which something went in plaintext
    #[arg(long)]
    plaintext: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Edge {
    namespace: String,
    workload: String,
    /// `from`: the peer calls this workload; `to`: this workload calls it.
    direction: &'static str,
    /// Of a caller: namespace/service account, or empty. Of a callee: the Service.
    peer: String,
    /// Identity of a caller, when it proved one.
    identity: Option<String>,
    secured: Secured,
    requests_per_second: f64,
    open_tcp_connections: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Secured {
    Mutual,
    Plaintext,
    Mixed,
    /// Nothing was sent in the last minute.
    Idle,
}

impl Secured {
    fn of(rates: &Rates) -> Self {
        let all = rates.requests + rates.connections;
        let plain = rates.plaintext_requests + rates.plaintext_connections;
        match (all > 0.0, plain > 0.0) {
            (false, _) => Self::Idle,
            (true, false) => Self::Mutual,
            (true, true) if plain < all => Self::Mixed,
            (true, true) => Self::Plaintext,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Mutual => "mutual TLS",
            Self::Plaintext => "PLAINTEXT",
            Self::Mixed => "MIXED",
            Self::Idle => "idle",
        }
    }
}

pub(crate) async fn run(access: &Access, options: &Options) -> anyhow::Result<Printed> {
    let cluster = access.connect().await?;
    let mut edges = Vec::new();
    for workload in cluster.traffic().await?.into_values() {
        if !cluster.covers(&workload.namespace) {
            continue;
        }
        for row in &workload.traffic {
            let (direction, peer, identity) = describe(&row.peer);
            edges.push(Edge {
                namespace: workload.namespace.clone(),
                workload: workload.workload.clone(),
                direction,
                peer,
                identity,
                secured: Secured::of(&row.rates),
                requests_per_second: row.rates.requests,
                open_tcp_connections: row.rates.open_connections,
            });
        }
    }
    if options.plaintext {
        edges.retain(|edge| matches!(edge.secured, Secured::Plaintext | Secured::Mixed));
    }
    edges.sort_by_cached_key(|edge| {
        (edge.namespace.clone(), edge.workload.clone(), edge.direction, edge.peer.clone())
    });
    let text = options.output.print(&edges, || draw(&edges))?;
    Ok(Printed::well(text))
}

fn describe(peer: &Peer) -> (&'static str, String, Option<String>) {
    match peer {
        Peer::Inbound { source } if source.is_empty() => ("from", String::new(), None),
        Peer::Inbound { source } => {
            let parsed = source.parse::<SpiffeId>().ok();
            let short = parsed.map(|id| format!("{}/{}", id.namespace(), id.service_account()));
            ("from", short.unwrap_or_else(|| source.clone()), Some(source.clone()))
        }
        Peer::Outbound { service, backend, .. } if service == backend => {
            ("to", service.clone(), None)
        }
        Peer::Outbound { service, backend, .. } => ("to", format!("{service} > {backend}"), None),
    }
}

fn draw(edges: &[Edge]) -> String {
    let rows = edges.iter().map(|edge| {
        let peer = if edge.peer.is_empty() { "(no identity)" } else { &edge.peer };
        vec![
            edge.namespace.clone(),
            edge.workload.clone(),
            edge.direction.to_owned(),
            peer.to_owned(),
            edge.secured.as_str().to_owned(),
            format!("{:.1}", edge.requests_per_second),
            edge.open_tcp_connections.to_string(),
        ]
    });
    let head = ["NAMESPACE", "WORKLOAD", "CALL", "PEER", "SECURED", "RPS", "TCP"];
    table(&head, rows.collect(), "No call was seen in the last minutes.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_is_secured_when_all_of_it_is() {
        let rates = |requests, plaintext_requests, connections, plaintext_connections| Rates {
            requests,
            plaintext_requests,
            connections,
            plaintext_connections,
            ..Rates::default()
        };
        for (rates, secured) in [
            (rates(0.0, 0.0, 0.0, 0.0), Secured::Idle),
            (rates(5.0, 0.0, 1.0, 0.0), Secured::Mutual),
            (rates(5.0, 5.0, 0.0, 0.0), Secured::Plaintext),
            (rates(5.0, 1.0, 0.0, 0.0), Secured::Mixed),
            (rates(5.0, 0.0, 1.0, 1.0), Secured::Mixed),
            (rates(0.0, 0.0, 1.0, 1.0), Secured::Plaintext),
        ] {
            assert_eq!(Secured::of(&rates), secured, "{rates:?}");
        }
    }

    #[test]
    fn a_caller_is_named_by_its_account_and_an_unknown_one_as_such() {
        let source = "spiffe://cluster.local/ns/shop/sa/web".to_owned();
        let (direction, peer, identity) = describe(&Peer::Inbound { source: source.clone() });
        assert_eq!((direction, peer.as_str(), identity), ("from", "shop/web", Some(source)));
        let (_, peer, identity) = describe(&Peer::Inbound { source: String::new() });
        assert_eq!((peer.as_str(), identity), ("", None));
    }
}
