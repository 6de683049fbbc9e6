//! Names and numbers that more than one part must agree on.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Redirected outbound connections of the application arrive here.
pub const OUTBOUND_PORT: u16 = 15101;
/// The canary listener: answers the proxy's own dial to [`CANARY_V4`] while the rules stand.
pub const CANARY_PORT: u16 = 15105;
/// Redirected inbound connections to the pod arrive here.
pub const INBOUND_PORT: u16 = 15106;
/// Where the proxy performs the probes and hooks that the kubelet would otherwise make itself, on
/// the pod's address, never redirected.
pub const PROBE_PORT: u16 = 15107;
/// `/metrics`, `/livez` and `/readyz` of the proxy, on the pod's address, never redirected.
pub const METRICS_PORT: u16 = 15109;
/// gRPC of the control plane: discovery and identity.
pub const CONTROL_PLANE_PORT: u16 = 15112;
/// Admin HTTP of the control plane.
pub const CONTROL_PLANE_ADMIN_PORT: u16 = 15113;
/// Admission webhooks of the control plane (HTTPS).
pub const WEBHOOK_PORT: u16 = 15114;

/// Ports of the proxy itself. A dial to one of them, from wherever, is refused unless the kernel
/// delivers it directly (`METRICS_PORT`, `PROBE_PORT`).
pub const PROXY_PORTS: [u16; 5] =
    [OUTBOUND_PORT, CANARY_PORT, INBOUND_PORT, PROBE_PORT, METRICS_PORT];

/// The uid every proxy runs as. Its traffic is exempt from redirection, so no container of the
/// application may claim it.
pub const PROXY_UID: u32 = 2715;

/// Dialled by the proxy to learn whether the redirection rules still stand (TEST-NET-1, RFC 5737:
/// nobody answers there unless the rules redirect it).
pub const CANARY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 105);
/// The same for IPv6 (discard prefix, RFC 6666).
pub const CANARY_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0x105);

/// ALPN protocols between proxies: claims of the client about what follows, never trusted as facts.
pub mod alpn {
    /// One HTTP/1 connection.
    pub const HTTP1: &[u8] = b"heddle-h1";
    /// One HTTP/2 connection.
    pub const HTTP2: &[u8] = b"heddle-h2";
    /// One opaque TCP connection.
    pub const TCP: &[u8] = b"heddle-tcp";
}

/// Label on pods and namespaces: `enabled` or `disabled`.
pub const INJECT_LABEL: &str = "heddle.io/inject";
/// Name of the proxy's container in a meshed pod's spec.
pub const PROXY_CONTAINER: &str = "heddle-proxy";
/// Name of the container that writes the redirection rules.
pub const INIT_CONTAINER: &str = "heddle-init";
/// Group and version of our resources.
pub const API_VERSION: &str = "heddle.io/v1alpha1";
/// ConfigMap that the control plane keeps in every injected namespace: roots for proxies that start.
pub const TRUST_BUNDLE_CONFIG_MAP: &str = "heddle-trust-bundle";
/// Key of [`TRUST_BUNDLE_CONFIG_MAP`]: PEM certificates.
pub const TRUST_BUNDLE_KEY: &str = "trust-bundle.pem";
/// Secret with the issuing certificate and its key, in the layout of cert-manager.
pub const TRUST_ROOT_SECRET: &str = "heddle-trust-root";
/// Secret with every root that proxies are told of, also those that are on their way out.
pub const TRUST_ANCHORS_SECRET: &str = "heddle-trust-anchors";
/// Audience of the service-account tokens that proxies present.
pub const TOKEN_AUDIENCE: &str = "heddle";
/// Field manager of everything the control plane writes.
pub const FIELD_MANAGER: &str = "heddle";
/// `controllerName` in the status of Gateway API routes.
pub const CONTROLLER_NAME: &str = "heddle.io/mesh";
/// Namespace and service account of the control plane.
pub const CONTROL_PLANE_NAMESPACE: &str = "heddle-system";
/// See [`CONTROL_PLANE_NAMESPACE`].
pub const CONTROL_PLANE_SERVICE_ACCOUNT: &str = "heddle-control-plane";

/// Request and response headers of the mesh itself. All `heddle-*` headers are removed from what
/// an application sends before ours are added.
pub mod header {
    /// Every header whose name begins so is the mesh's.
    pub const PREFIX: &str = "heddle-";
    /// On every answer a proxy made itself: the reason, from the closed table in docs/errors.md.
    pub const ERROR: &str = "heddle-error";
    /// On every answer a proxy made itself: `outbound` or `inbound`.
    pub const ERROR_PROXY: &str = "heddle-error-proxy";
    /// From inbound to outbound, over mesh TLS only: the request was not delivered to the application.
    pub const NOT_DELIVERED: &str = "heddle-not-delivered";
    /// On a redirect that a proxy made: the rule of the route that says so.
    pub const ROUTE: &str = "heddle-route";
    /// From inbound to the application: the caller's SPIFFE id, from its certificate.
    pub const CLIENT_ID: &str = "heddle-client-id";
}

/// What the proxy understands of the wire contract; sent in `Hello.level`. Raised whenever a
/// resource gains a meaning that an older proxy would get wrong.
///
/// 2: `Route`. A proxy of level 1 rejects it and goes on by the Service's Split.
pub const LEVEL: u32 = 2;
