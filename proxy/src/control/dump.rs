//! Everything the proxy acts on, as JSON for people and tests. Holds no key and no token.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use super::Control;
use crate::snapshot::{Backend, Destination, Endpoint, Inbound, Routes, ServicePort};
use crate::tls::unix_seconds;

pub(super) fn dump(control: &Control) -> String {
    let shared = &control.shared;
    let snapshot = shared.snapshots.borrow().clone();
    let status = shared.destinations.status();
    let version = snapshot.version.map(|version| json!([version.epoch, version.number]));
    let now = shared.started.elapsed();
    let destinations: serde_json::Map<String, Value> = snapshot
        .destinations()
        .map(|(address, entry)| {
            let used = entry.last_used.load(Ordering::Relaxed);
            let idle = now.as_secs().saturating_sub(used);
            (address.to_string(), destination(&entry.destination, idle, now))
        })
        .collect();
    let text = serde_json::to_string_pretty(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pod": format!("{}/{}", shared.config.namespace, shared.config.pod),
        "ready": readiness(control),
        "draining": shared.drain.is_draining(),
        "connections_open": shared.connections.open(),
        "certificate": certificate(control),
        "control_plane": {
            "address": shared.config.control_plane.to_string(),
            "connected": status.connected,
            "last_failure": status.last_failure.as_deref(),
            "last_rejection": status.last_rejection.as_deref(),
        },
        "snapshot": {
            "version": version,
            "complete": snapshot.complete,
            "inbound_policy": match &snapshot.inbound {
                Inbound::Missing => "missing",
                Inbound::Unusable => "unusable",
                Inbound::Active(_) => "active",
            },
            "subscriptions": status.subscriptions,
            "destinations": destinations,
        },
    }));
    text.map_or_else(|error| error.to_string(), |text| text + "\n")
}

fn readiness(control: &Control) -> Value {
    let readiness = control.ready.borrow().clone();
    if readiness.is_ready() {
        return Value::Bool(true);
    }
    readiness.blockers().map(|(part, reason)| (part.to_owned(), json!(reason))).collect()
}

fn certificate(control: &Control) -> Value {
    let credentials = control.identity.credentials().borrow().clone();
    let last_failure = control.identity.last_failure();
    match credentials {
        None => json!({ "last_failure": last_failure.as_deref() }),
        Some(own) => json!({
            "identity": own.id().to_string(),
            "serial": own.serial().to_string(),
            "not_after": unix_seconds(own.not_after()),
            "roots": own.bundle().len(),
            "last_failure": last_failure.as_deref(),
        }),
    }
}

fn destination(destination: &Destination, idle_s: u64, now: Duration) -> Value {
    let (kind, port) = match destination {
        Destination::Unknown => return json!({ "kind": "unknown", "idle_s": idle_s }),
        Destination::Service(port) => ("service", port),
        Destination::Pod(port) => ("pod", port),
    };
    json!({
        "kind": kind,
        "service": &*port.service,
        "port": port.port,
        "protocol": port.protocol.as_str_name(),
        "idle_s": idle_s,
        "backends": backends(port, now),
        "routes": port.routes.as_ref().map(|routes| rules(routes, now)),
    })
}

fn backends(port: &ServicePort, now: Duration) -> Value {
    let weight = |index: usize| Some(port.split.as_ref()?.backends().get(index)?.weight);
    let backends = port.backends.iter().enumerate();
    backends.map(|(index, drawn)| backend(drawn, weight(index), now)).collect()
}

/// The rules in the order of the resource; which one a request follows is the policy's decision.
fn rules(routes: &Routes, now: Duration) -> Value {
    let rules = routes.table.rules().iter().zip(&routes.rules);
    rules
        .map(|(rule, backends)| {
            let drawn = rule.backends().iter().zip(&backends.drawn);
            json!({
                "rule": &*rule.name,
                "backends": drawn
                    .map(|(drawn, stands)| backend(stands, Some(drawn.weight), now))
                    .collect::<Vec<_>>(),
            })
        })
        .collect()
}

fn backend(backend: &Backend, weight: Option<u32>, now: Duration) -> Value {
    json!({
        "service": &*backend.service,
        "port": backend.port,
        "weight": weight,
        "policy": backend.policy.source.as_deref(),
        "endpoints": backend.ready.iter().map(|e| endpoint(e, now)).collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &Endpoint, now: Duration) -> Value {
    json!({
        "address": endpoint.address.to_string(),
        "identity": endpoint.identity.as_ref().map(ToString::to_string),
        "pod": &*endpoint.pod,
        "in_flight": endpoint.state.in_flight(),
        "ejected": endpoint.state.is_ejected(now),
    })
}
