//! The one place where a request or an opaque connection is recorded: metrics, and the access log
//! where it is on. Traces will be made here, too.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::identity::SpiffeId;
use tokio::time::Instant;

use crate::config::AccessLog;
use crate::error::{Chain, Error, Reason};
use crate::metrics::{Direction, OpenConnection, Outcome, RequestSeries, Tls};
use crate::snapshot::{Backend, Endpoint, ServicePort};
use crate::tcp::{Cut, Transfer};
use crate::worker::Worker;

/// Longest part of a path that the access log keeps, in bytes.
const LOGGED_PATH: usize = 1024;

/// A request at its end. What a peer chose (method, path) goes to the access log only, never into a
/// label.
pub struct RequestRecord<'a> {
    /// As received.
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// Who dialled.
    pub peer: SocketAddr,
    /// Who answered, on outbound.
    pub endpoint: Option<&'a Endpoint>,
    /// The caller's proved identity, on inbound.
    pub source: Option<&'a SpiffeId>,
    /// Of the response; 0 when the client left before one was sent.
    pub status: u16,
    /// From trailers.
    pub grpc_status: Option<u32>,
    /// Set when a proxy made the answer.
    pub reason: Option<Reason>,
    /// From the request's head to the response's last byte.
    pub duration: Duration,
}

/// A connection that was refused or broke before anything could be recorded on it.
pub fn connection_error(worker: &Worker, direction: Direction, error: &Error) {
    worker.shared.metrics.error(direction, error.reason());
    tracing::debug!(direction = direction.name(), error = %Chain(error), "connection refused");
}

/// Records a request of the application.
pub fn outbound_request(
    worker: &Worker,
    port: &ServicePort,
    backend: &Backend,
    record: &RequestRecord<'_>,
) {
    let series = backend.series.get_or_init(|| {
        worker.shared.metrics.outbound(&port.service, &backend.route, &backend.service)
    });
    let tls = record.endpoint.map_or(Tls::None, tls);
    request(worker, Direction::Outbound, series, tls, Some(backend), record);
}

/// Records a request to the application. `series` was resolved once for the connection.
pub fn inbound_request(worker: &Worker, series: &RequestSeries, record: &RequestRecord<'_>) {
    let tls = if record.source.is_some() { Tls::Mutual } else { Tls::None };
    request(worker, Direction::Inbound, series, tls, None, record);
}

fn request(
    worker: &Worker,
    direction: Direction,
    series: &RequestSeries,
    tls: Tls,
    backend: Option<&Backend>,
    record: &RequestRecord<'_>,
) {
    series.record(&Outcome {
        status: (record.status != 0).then_some(record.status),
        grpc_status: record.grpc_status,
        tls,
        flag: record.reason,
        duration: record.duration,
    });
    if let Some(reason) = record.reason {
        worker.shared.metrics.error(direction, reason);
    }
    if worker.shared.config.access_log != AccessLog::Off {
        log_request(direction, backend, record);
    }
}

fn log_request(direction: Direction, backend: Option<&Backend>, record: &RequestRecord<'_>) {
    let path = &record.path[..record.path.floor_char_boundary(LOGGED_PATH)];
    tracing::info!(
        target: "heddle_proxy::access",
        direction = direction.name(),
        method = record.method,
        path,
        peer = %record.peer,
        source = record.source.map(tracing::field::display),
        route = backend.map_or("", |backend| &*backend.route),
        backend = backend.map_or("", |backend| &*backend.service),
        endpoint = record.endpoint.map(|endpoint| tracing::field::display(endpoint.address)),
        pod = record.endpoint.map(|endpoint| &*endpoint.pod),
        status = record.status,
        grpc_status = record.grpc_status,
        reason = record.reason.map(Reason::name),
        duration_us = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX),
        "request"
    );
}

/// An opaque connection while it is open.
pub struct Connection<'a> {
    worker: &'a Worker,
    direction: Direction,
    open: OpenConnection,
    destination: Arc<str>,
    address: SocketAddr,
    opened: Instant,
}

impl<'a> Connection<'a> {
    /// To a backend of a Service.
    #[must_use]
    pub fn outbound(
        worker: &'a Worker,
        port: &ServicePort,
        backend: &Backend,
        endpoint: &Endpoint,
    ) -> Self {
        let series = backend.tcp_series.get_or_init(|| {
            worker.shared.metrics.outbound_tcp(&port.service, &backend.route, &backend.service)
        });
        let open = series.open(tls(endpoint));
        let destination = backend.service.clone();
        Self::new(worker, Direction::Outbound, open, destination, endpoint.address)
    }

    /// To an address that nobody in the mesh owns.
    #[must_use]
    pub fn pass_through(worker: &'a Worker, address: SocketAddr) -> Self {
        let series = worker.shared.metrics.outbound_tcp("passthrough", "", "passthrough");
        let open = series.open(Tls::None);
        Self::new(worker, Direction::Outbound, open, "passthrough".into(), address)
    }

    /// To the application.
    #[must_use]
    pub fn inbound(worker: &'a Worker, source: Option<&SpiffeId>, address: SocketAddr) -> Self {
        let series = worker.shared.metrics.inbound_tcp(source);
        let open = series.open(if source.is_some() { Tls::Mutual } else { Tls::None });
        Self::new(worker, Direction::Inbound, open, "".into(), address)
    }

    fn new(
        worker: &'a Worker,
        direction: Direction,
        open: OpenConnection,
        destination: Arc<str>,
        address: SocketAddr,
    ) -> Self {
        Self { worker, direction, open, destination, address, opened: Instant::now() }
    }

    /// Records it, at its end.
    pub fn end(self, transfer: &Transfer) {
        self.open.sent(transfer.sent);
        self.open.received(transfer.received);
        let reason = match &transfer.end {
            Ok(()) | Err(Cut::Ordered) => None,
            Err(Cut::Broken(_)) => Some(Reason::ConnectionLost),
            Err(Cut::Idle) => Some(Reason::IdleTimeout),
        };
        if let Some(Reason::IdleTimeout) = reason {
            self.worker.shared.metrics.error(self.direction, Reason::IdleTimeout);
        }
        if self.worker.shared.config.access_log != AccessLog::Off {
            tracing::info!(
                target: "heddle_proxy::access",
                direction = self.direction.name(),
                backend = &*self.destination,
                address = %self.address,
                sent = transfer.sent,
                received = transfer.received,
                reason = reason.map(Reason::name),
                duration_us = u64::try_from(self.opened.elapsed().as_micros()).unwrap_or(u64::MAX),
                "connection"
            );
        }
    }
}

fn tls(endpoint: &Endpoint) -> Tls {
    if endpoint.identity.is_some() { Tls::Mutual } else { Tls::None }
}
