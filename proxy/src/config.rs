//! The environment, read once, as a [`Config`] that cannot be wrong. All mistakes are reported
//! together, each with the variable, its value and what to write instead; unknown `HEDDLE_*`
//! variables are mistakes. Nothing else in the crate reads the environment.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::identity;
use heddle_api::names;
use heddle_api::probes::{self, Table};

use crate::control_plane;

/// What the sidecar was told at start. Immutable from then on.
#[derive(Debug, Clone)]
pub struct Config {
    /// gRPC of the control plane.
    pub control_plane: control_plane::Address,
    /// The authority whose identities are believed.
    pub trust_domain: Arc<str>,
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's name.
    pub pod: Arc<str>,
    /// The node's name, when known: needed for `internalTrafficPolicy: Local`.
    pub node: Option<Arc<str>>,
    /// Proves to the control plane which pod this is; read again for every certificate.
    pub token_file: PathBuf,
    /// PEM roots that the control plane's certificate must chain to; read again for every
    /// certificate.
    pub trust_bundle_file: PathBuf,
    /// Unix socket for `drain`, `dump` and the other verbs.
    pub control_socket: PathBuf,
    /// Where redirected outbound connections arrive.
    pub outbound_listen: SocketAddr,
    /// Where redirected inbound connections arrive.
    pub inbound_listen: SocketAddr,
    /// Whether the redirection rules are watched. Off only where there are none, as in tests.
    pub canary: bool,
    /// `/metrics`, `/livez`, `/readyz`.
    pub metrics_listen: SocketAddr,
    /// Checks to be made for the kubelet; without any nobody listens for it.
    pub probes: Option<Arc<Table>>,
    /// Where the kubelet asks for them.
    pub probe_listen: SocketAddr,
    /// Data threads.
    pub threads: NonZeroUsize,
    /// Log filter, for instance `info` or `heddle_proxy=debug`.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Whether each connection and request is logged at its end.
    pub access_log: AccessLog,
    /// How long what is in flight may take once the proxy was told to stop.
    pub drain_timeout: Duration,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Plain,
    /// For machines.
    Json,
}

/// Whether each connection and request is logged at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// Not at all.
    Off,
    /// One JSON object a line.
    Json,
}

/// What the subcommands that speak to a running proxy need.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// See [`Config::control_socket`].
    pub socket: PathBuf,
    /// See [`Config::drain_timeout`].
    pub drain_timeout: Duration,
}

/// Everything that is wrong with the environment.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct Invalid(Vec<String>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "mistake" } else { "mistakes" };
        write!(f, "{} {plural} in the environment:", self.0.len())?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

const CONTROL_SOCKET: &str = "/var/run/heddle/control.sock";
const TOKEN_FILE: &str = "/var/run/secrets/heddle/token";
const TRUST_BUNDLE_FILE: &str = "/var/run/secrets/heddle/trust-bundle.pem";
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Each data thread costs memory and descriptors; no pod needs more.
const MAX_THREADS: usize = 256;
const MAX_DRAIN_TIMEOUT: Duration = Duration::from_secs(3600);

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_env() -> Result<Self, Invalid> {
        Self::parse(std::env::vars_os().filter_map(utf8))
    }

    /// Reads `variables`.
    ///
    /// # Errors
    /// Every mistake in them.
    pub fn parse(variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, Invalid> {
        let mut raw = RawConfig::new(variables);
        let control_plane = raw.required("HEDDLE_CONTROL_PLANE", control_plane);
        let trust_domain = raw.required("HEDDLE_TRUST_DOMAIN", trust_domain);
        let namespace = raw.required("HEDDLE_NAMESPACE", label);
        let pod = raw.required("HEDDLE_POD", subdomain);
        let node = raw.optional("HEDDLE_NODE", subdomain);
        let token_file = raw.or("HEDDLE_TOKEN_FILE", path, TOKEN_FILE.into());
        let trust_bundle_file = raw.or("HEDDLE_TRUST_BUNDLE_FILE", path, TRUST_BUNDLE_FILE.into());
        let control_socket = raw.or("HEDDLE_CONTROL_SOCKET", path, CONTROL_SOCKET.into());
        let outbound_listen = raw.or("HEDDLE_OUTBOUND_LISTEN", address, any(names::OUTBOUND_PORT));
        let inbound_listen = raw.or("HEDDLE_INBOUND_LISTEN", address, any(names::INBOUND_PORT));
        let metrics_listen = raw.or("HEDDLE_METRICS_LISTEN", address, any(names::METRICS_PORT));
        let probes = raw.secret(probes::VARIABLE, Table::parse).map(Arc::new);
        let probe_listen = raw.or("HEDDLE_PROBE_LISTEN", address, any(names::PROBE_PORT));
        let canary = raw.or("HEDDLE_CANARY", on_off, true);
        let threads = raw.or("HEDDLE_THREADS", threads, NonZeroUsize::MIN);
        let log = raw.or("HEDDLE_LOG", text, "info".to_owned());
        let log_format = raw.or("HEDDLE_LOG_FORMAT", log_format, LogFormat::Plain);
        let access_log = raw.or("HEDDLE_ACCESS_LOG", access_log, AccessLog::Off);
        let drain_timeout = raw.or("HEDDLE_DRAIN_TIMEOUT", drain_timeout, DRAIN_TIMEOUT);
        raw.finish()?;
        let (Some(control_plane), Some(trust_domain), Some(namespace), Some(pod)) =
            (control_plane, trust_domain, namespace, pod)
        else {
            unreachable!("a required variable that is missing is a mistake, and there was none")
        };
        Ok(Self {
            control_plane,
            trust_domain,
            namespace,
            pod,
            node,
            token_file,
            trust_bundle_file,
            control_socket,
            outbound_listen,
            inbound_listen,
            canary,
            metrics_listen,
            probes,
            probe_listen,
            threads,
            log,
            log_format,
            access_log,
            drain_timeout,
        })
    }
}

impl ControlConfig {
    /// Reads the two variables it needs from the process's environment and judges no other.
    ///
    /// # Errors
    /// Every mistake in the two.
    pub fn from_env() -> Result<Self, Invalid> {
        let wanted = ["HEDDLE_CONTROL_SOCKET", "HEDDLE_DRAIN_TIMEOUT"];
        let variables = std::env::vars_os().filter_map(utf8);
        let mut raw = RawConfig::new(variables.filter(|(name, _)| wanted.contains(&name.as_str())));
        let socket = raw.or("HEDDLE_CONTROL_SOCKET", path, CONTROL_SOCKET.into());
        let drain_timeout = raw.or("HEDDLE_DRAIN_TIMEOUT", drain_timeout, DRAIN_TIMEOUT);
        raw.finish()?;
        Ok(Self { socket, drain_timeout })
    }
}

/// The variables as they are, and the mistakes found while they are taken out one by one.
struct RawConfig {
    variables: BTreeMap<String, String>,
    known: Vec<&'static str>,
    mistakes: Vec<String>,
}

/// Says what to write instead.
type Parse<T> = fn(&str) -> Result<T, &'static str>;

impl RawConfig {
    fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = variables.into_iter().filter(|(name, _)| name.starts_with("HEDDLE_"));
        Self { variables: ours.collect(), known: Vec::new(), mistakes: Vec::new() }
    }

    fn optional<T>(&mut self, name: &'static str, parse: Parse<T>) -> Option<T> {
        self.known.push(name);
        let value = self.variables.remove(name)?;
        match parse(&value) {
            Ok(parsed) => Some(parsed),
            Err(instead) => {
                self.mistakes.push(format!("{name}={value:?}: write {instead}"));
                None
            }
        }
    }

    /// Like [`Self::optional`], but the value is not shown.
    fn secret<T, E: fmt::Display>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.known.push(name);
        let parsed = parse(&self.variables.remove(name)?);
        parsed.map_err(|error| self.mistakes.push(format!("{name}: {error}"))).ok()
    }

    fn or<T>(&mut self, name: &'static str, parse: Parse<T>, default: T) -> T {
        self.optional(name, parse).unwrap_or(default)
    }

    fn required<T>(&mut self, name: &'static str, parse: Parse<T>) -> Option<T> {
        if !self.variables.contains_key(name) {
            self.known.push(name);
            // The parser says what belongs here when it is given nothing.
            let instead = parse("").err().unwrap_or("a value");
            self.mistakes.push(format!("{name} is not set: write {instead}"));
            return None;
        }
        self.optional(name, parse)
    }

    fn finish(mut self) -> Result<(), Invalid> {
        for (name, value) in &self.variables {
            if !is_service_link(name, value) {
                self.mistakes.push(format!(
                    "{name}={value:?}: no such variable: remove it or write one of {}",
                    self.known.join(", ")
                ));
            }
        }
        if self.mistakes.is_empty() { Ok(()) } else { Err(Invalid(self.mistakes)) }
    }
}

/// Kubernetes sets variables like `HEDDLE_WEB_SERVICE_HOST` for a Service named `heddle-web` in the
/// pod's namespace. They are nobody's mistake.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && is_url)
        || name.rsplit_once("_PORT_").is_some_and(|(_, rest)| {
            let mut parts = rest.split('_');
            parts.next().is_some_and(|port| port.parse::<u16>().is_ok())
                && parts.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol))
        })
}

fn utf8((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    // A value that is not UTF-8 stays visible, with replacement characters, so that it is reported.
    Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
}

/// Every address of the pod, IPv4 included.
fn any(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn control_plane(value: &str) -> Result<control_plane::Address, &'static str> {
    value.parse()
}

fn address(value: &str) -> Result<SocketAddr, &'static str> {
    value.parse().map_err(|_| "IP:PORT, for instance 10.0.0.1:15112 or [fd00::1]:15112")
}

fn trust_domain(value: &str) -> Result<Arc<str>, &'static str> {
    if identity::is_trust_domain(value) {
        Ok(value.into())
    } else {
        Err("1 to 255 of a-z, 0-9, '.', '-', '_', for instance cluster.local")
    }
}

fn label(value: &str) -> Result<Arc<str>, &'static str> {
    if identity::is_label(value) {
        Ok(value.into())
    } else {
        Err("the pod's namespace: 1 to 63 of a-z, 0-9, '-', not at either end")
    }
}

fn subdomain(value: &str) -> Result<Arc<str>, &'static str> {
    if identity::is_subdomain(value) {
        Ok(value.into())
    } else {
        Err("an object's name: 1 to 253 of a-z, 0-9, '-', '.', each part beginning and ending \
             with a letter or digit")
    }
}

fn path(value: &str) -> Result<PathBuf, &'static str> {
    if value.starts_with('/') { Ok(value.into()) } else { Err("an absolute path") }
}

fn text(value: &str) -> Result<String, &'static str> {
    if value.is_empty() {
        Err("a filter, for instance info or heddle_proxy=debug, or leave it out")
    } else {
        Ok(value.to_owned())
    }
}

fn on_off(value: &str) -> Result<bool, &'static str> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off"),
    }
}

fn threads(value: &str) -> Result<NonZeroUsize, &'static str> {
    let parsed = value.parse::<NonZeroUsize>().ok();
    parsed.filter(|threads| threads.get() <= MAX_THREADS).ok_or("a number from 1 to 256")
}

fn log_format(value: &str) -> Result<LogFormat, &'static str> {
    match value {
        "plain" => Ok(LogFormat::Plain),
        "json" => Ok(LogFormat::Json),
        _ => Err("plain or json"),
    }
}

fn access_log(value: &str) -> Result<AccessLog, &'static str> {
    match value {
        "off" => Ok(AccessLog::Off),
        "json" => Ok(AccessLog::Json),
        _ => Err("off or json"),
    }
}

/// A whole number with its unit: `500ms`, `30s`, `2m`.
fn drain_timeout(value: &str) -> Result<Duration, &'static str> {
    let split = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(split);
    let duration = number.parse::<u32>().ok().and_then(|number| match unit {
        "ms" => Some(Duration::from_millis(number.into())),
        "s" => Some(Duration::from_secs(number.into())),
        "m" => Some(Duration::from_secs(u64::from(number) * 60)),
        _ => None,
    });
    duration
        .filter(|duration| *duration <= MAX_DRAIN_TIMEOUT)
        .ok_or("a duration up to 60m: a whole number and ms, s or m, for instance 30s")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[(&str, &str)] = &[
        ("HEDDLE_CONTROL_PLANE", "10.1.0.1:15112"),
        ("HEDDLE_TRUST_DOMAIN", "cluster.local"),
        ("HEDDLE_NAMESPACE", "shop"),
        ("HEDDLE_POD", "web-1"),
    ];

    fn parse(changes: &[(&str, &str)]) -> Result<Config, Invalid> {
        let all = GOOD.iter().chain(changes);
        Config::parse(all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn four_variables_are_enough() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.outbound_listen.to_string(), "[::]:15101");
        assert_eq!(config.inbound_listen.to_string(), "[::]:15106");
        assert_eq!(config.metrics_listen.to_string(), "[::]:15109");
        assert_eq!(config.threads.get(), 1);
        assert_eq!(config.drain_timeout, Duration::from_secs(30));
        assert!(config.canary);
        assert_eq!(config.node, None);
    }

    #[test]
    fn every_mistake_names_variable_value_and_what_to_write() {
        for (name, value, instead) in [
            ("HEDDLE_CONTROL_PLANE", "control_plane:15112", "HOST:PORT or IP:PORT"),
            ("HEDDLE_CONTROL_PLANE", "control-plane", "HOST:PORT or IP:PORT"),
            ("HEDDLE_CONTROL_PLANE", "", "heddle-control-plane.heddle-system.svc:15112"),
            ("HEDDLE_TRUST_DOMAIN", "Cluster.Local", "cluster.local"),
            ("HEDDLE_NAMESPACE", "a.b", "namespace"),
            ("HEDDLE_POD", "-web", "object's name"),
            ("HEDDLE_NODE", "Node", "object's name"),
            ("HEDDLE_TOKEN_FILE", "token", "an absolute path"),
            ("HEDDLE_TRUST_BUNDLE_FILE", "", "an absolute path"),
            ("HEDDLE_CONTROL_SOCKET", "./x", "an absolute path"),
            ("HEDDLE_OUTBOUND_LISTEN", "15101", "IP:PORT"),
            ("HEDDLE_INBOUND_LISTEN", "::1:15106:", "IP:PORT"),
            ("HEDDLE_METRICS_LISTEN", "localhost:1", "IP:PORT"),
            ("HEDDLE_PROBE_LISTEN", "15107", "IP:PORT"),
            ("HEDDLE_CANARY", "true", "on or off"),
            ("HEDDLE_THREADS", "0", "1 to 256"),
            ("HEDDLE_THREADS", "257", "1 to 256"),
            ("HEDDLE_THREADS", "two", "1 to 256"),
            ("HEDDLE_LOG", "", "a filter"),
            ("HEDDLE_LOG_FORMAT", "text", "plain or json"),
            ("HEDDLE_ACCESS_LOG", "on", "off or json"),
            ("HEDDLE_DRAIN_TIMEOUT", "30", "30s"),
            ("HEDDLE_DRAIN_TIMEOUT", "61m", "30s"),
            ("HEDDLE_DRAIN_TIMEOUT", "-1s", "30s"),
            ("HEDDLE_DRAIN_TIMEOUT", "4294967296s", "30s"),
            ("HEDDLE_METRICS_PORT", "15109", "no such variable"),
            ("HEDDLE_", "", "no such variable"),
        ] {
            let message = parse(&[(name, value)]).unwrap_err().to_string();
            assert!(message.starts_with("1 mistake in the environment:\n"), "{message}");
            assert!(message.contains(&format!("{name}={value:?}: ")), "{message}");
            assert!(message.contains(instead), "{message}");
        }
    }

    #[test]
    fn all_mistakes_come_together() {
        let message =
            Config::parse([("HEDDLE_THREADS".to_owned(), "x".to_owned())]).unwrap_err().to_string();
        assert!(message.starts_with("5 mistakes"), "{message}");
        assert!(message.contains("HEDDLE_CONTROL_PLANE is not set: write HOST:PORT"), "{message}");
        assert!(message.contains("HEDDLE_POD is not set"), "{message}");
    }

    #[test]
    fn service_links_of_kubernetes_are_not_mistakes() {
        parse(&[
            ("HEDDLE_CONTROL_PLANE_SERVICE_HOST", "10.96.0.9"),
            ("HEDDLE_CONTROL_PLANE_SERVICE_PORT", "15112"),
            ("HEDDLE_CONTROL_PLANE_SERVICE_PORT_GRPC", "15112"),
            ("HEDDLE_CONTROL_PLANE_PORT", "tcp://10.96.0.9:15112"),
            ("HEDDLE_CONTROL_PLANE_PORT_15112_TCP", "tcp://10.96.0.9:15112"),
            ("HEDDLE_CONTROL_PLANE_PORT_15112_TCP_ADDR", "10.96.0.9"),
            ("PATH", "/bin"),
        ])
        .unwrap();
    }

    #[test]
    fn durations_have_units() {
        for (value, want) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("0s", 0)] {
            let config = parse(&[("HEDDLE_DRAIN_TIMEOUT", value)]).unwrap();
            assert_eq!(config.drain_timeout, Duration::from_millis(want), "{value}");
        }
    }
}
