//! `heddle stat`: golden metrics of workloads.

use anyhow::bail;
use serde::Serialize;

use crate::cluster::Access;
use crate::output::{Output, Printed, table};
use crate::traffic::{Peer, Rates};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A workload: NAME, or KIND/NAME as kubectl writes it [default: all of the namespace]
    workload: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    namespace: String,
    workload: String,
    /// `inbound` or `outbound`.
    direction: &'static str,
    /// Empty on inbound: every caller together.
    service: String,
    backend: String,
    route: String,
    proxies: u64,
    success: Option<f64>,
    requests_per_second: f64,
    latency_p50_ms: Option<f64>,
    latency_p95_ms: Option<f64>,
    latency_p99_ms: Option<f64>,
    open_tcp_connections: u64,
}

pub(crate) async fn run(access: &Access, options: &Options) -> anyhow::Result<Printed> {
    let wanted = options.workload.as_deref().map(parse).transpose()?;
    let cluster = access.connect().await?;
    let mut lines = Vec::new();
    for workload in cluster.traffic().await?.into_values() {
        let named = wanted.is_none_or(|wanted| wanted == workload.workload);
        if !named || !cluster.covers(&workload.namespace) {
            continue;
        }
        let line = |direction, service: &str, backend: &str, route: &str, rates: &Rates| Line {
            namespace: workload.namespace.clone(),
            workload: workload.workload.clone(),
            direction,
            service: service.to_owned(),
            backend: backend.to_owned(),
            route: route.to_owned(),
            proxies: workload.pods,
            success: rates.success(),
            requests_per_second: rates.requests,
            latency_p50_ms: finite(rates.percentile(0.50)),
            latency_p95_ms: finite(rates.percentile(0.95)),
            latency_p99_ms: finite(rates.percentile(0.99)),
            open_tcp_connections: rates.open_connections,
        };
        let mut inbound = Rates::default();
        let mut outbound = Vec::new();
        for row in &workload.traffic {
            match &row.peer {
                Peer::Inbound { .. } => inbound.add(&row.rates),
                Peer::Outbound { service, backend, route } => {
                    outbound.push(line("outbound", service, backend, route, &row.rates));
                }
            }
        }
        lines.push(line("inbound", "", "", "", &inbound));
        outbound.sort_by(|a, b| (&a.service, &a.backend).cmp(&(&b.service, &b.backend)));
        lines.extend(outbound);
    }
    let text = options.output.print(&lines, || draw(&lines))?;
    Ok(Printed::well(text))
}

/// The name of a workload; the kind before it is for the eye.
fn parse(text: &str) -> anyhow::Result<&str> {
    let name = text.split_once('/').map_or(text, |(_, name)| name);
    if name.is_empty() || name.contains('/') {
        bail!("\"{text}\" names no workload; write NAME or deploy/NAME");
    }
    Ok(name)
}

/// JSON knows no infinity: what is beyond the last bucket has no number.
fn finite(milliseconds: Option<f64>) -> Option<f64> {
    milliseconds.filter(|milliseconds| milliseconds.is_finite())
}

fn draw(lines: &[Line]) -> String {
    let rows = lines.iter().map(|line| {
        let to = match (line.service.as_str(), line.backend.as_str()) {
            ("", _) => "-".to_owned(),
            (service, backend) if service == backend => service.to_owned(),
            (service, backend) => format!("{service} > {backend}"),
        };
        let has_requests = line.requests_per_second > 0.0;
        let latency = |value: Option<f64>| match value {
            Some(value) if value < 10.0 => format!("{value:.1}ms"),
            Some(value) => format!("{value:.0}ms"),
            None if has_requests => ">10s".to_owned(),
            None => "-".to_owned(),
        };
        vec![
            line.namespace.clone(),
            line.workload.clone(),
            line.direction.to_owned(),
            to,
            line.success.map_or_else(|| "-".to_owned(), |s| format!("{:.2}%", s * 100.0)),
            format!("{:.1}", line.requests_per_second),
            latency(line.latency_p50_ms),
            latency(line.latency_p95_ms),
            latency(line.latency_p99_ms),
            line.open_tcp_connections.to_string(),
        ]
    });
    let head =
        ["NAMESPACE", "WORKLOAD", "DIRECTION", "TO", "SUCCESS", "RPS", "P50", "P95", "P99", "TCP"];
    let empty =
        "No proxy has reported here in the last minutes. Pods of the mesh: heddle status -A";
    table(&head, rows.collect(), empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_named_as_for_kubectl() {
        assert_eq!(parse("web").unwrap(), "web");
        assert_eq!(parse("deploy/web").unwrap(), "web");
        for wrong in ["", "deploy/", "a/b/c"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_shows_success_rate_and_latency() {
        let line = Line {
            namespace: "shop".to_owned(),
            workload: "web".to_owned(),
            direction: "outbound",
            service: "shop/cart".to_owned(),
            backend: "shop/cart-v2".to_owned(),
            route: String::new(),
            proxies: 2,
            success: Some(0.995),
            requests_per_second: 12.34,
            latency_p50_ms: Some(1.25),
            latency_p95_ms: Some(120.4),
            latency_p99_ms: None,
            open_tcp_connections: 3,
        };
        let drawn = draw(&[line]);
        let shown = drawn.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            shown,
            "shop web outbound shop/cart > shop/cart-v2 99.50% 12.3 1.2ms 120ms >10s 3"
        );
    }
}
