//! Command line and environment, read once: raw text in, a [`Config`] that cannot be wrong out, or
//! every mistake at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use heddle_api::identity::{is_label, is_subdomain};
use heddle_api::names::{
    CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_PORT, CONTROL_PLANE_SERVICE_ACCOUNT, WEBHOOK_PORT,
};
use heddle_runtime::telemetry;

use crate::admission;
use crate::error::Error;

/// Shortest life of a leaf: renewal, jitter and clock skew need some room.
const LEAF_LIFETIME_MIN: Duration = Duration::from_secs(20);
const LEAF_LIFETIME_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
/// Certificates a pod may ask for in a minute, unless short lives need more.
const CSR_PER_MINUTE: u32 = 5;

/// The control plane of Heddle.
#[derive(Debug, Parser)]
#[command(name = "heddle-control-plane", version, args_conflicts_with_subcommands = true)]
pub struct CommandLine {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub serve: RawConfig,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Talk to the control plane that runs on this state directory.
    Ctl {
        /// Its --state-dir.
        #[arg(long, env = "HEDDLE_STATE_DIR")]
        state_dir: PathBuf,
        #[command(subcommand)]
        verb: Verb,
    },
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Order proxies to renew their certificates now: all, or one.
    Renew {
        /// "<namespace>/<pod>"
        #[arg(long)]
        pod: Option<String>,
    },
    /// Show the compiled catalog or the subscribers, as JSON.
    Dump {
        #[arg(value_parser = ["catalog", "subscribers"])]
        what: String,
    },
    /// Begin a new epoch, so that proxies which hold a higher version follow again. Only after the
    /// state directory was lost or restored from a backup.
    RaiseEpoch,
    /// Change what is logged, for instance "debug" or "info,heddle_control_plane=trace".
    LogLevel { filter: String },
}

/// What was written, unchecked.
#[derive(Debug, Default, Args)]
pub struct RawConfig {
    /// Where the cluster is read from: "files" or "kubernetes".
    #[arg(long, env = "HEDDLE_SOURCE", default_value = "files")]
    pub source: String,
    /// Directory of YAML files (source "files").
    #[arg(long, env = "HEDDLE_DIR")]
    pub dir: Option<PathBuf>,
    /// Address for discovery and identity (gRPC over TLS).
    #[arg(long, env = "HEDDLE_LISTEN", default_value = "[::]:15112")]
    pub listen: String,
    /// Address for health, metrics and dumps (HTTP, read-only).
    #[arg(long, env = "HEDDLE_ADMIN", default_value = "[::]:15113")]
    pub admin: String,
    /// Life of the certificates issued: 20s to 2160h.
    #[arg(long, env = "HEDDLE_LEAF_LIFETIME", default_value = "24h")]
    pub leaf_lifetime: String,
    /// Key that bootstrap tokens are signed with: at least 32 bytes, mode 0600. It may appear later.
    /// [default: <state-dir>/token.key]
    #[arg(long, env = "HEDDLE_TOKEN_KEY_FILE")]
    pub token_key_file: Option<PathBuf>,
    /// What outlives the process: CA, version, control socket. [default: <dir>/.state]
    #[arg(long, env = "HEDDLE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where the roots are written for proxies that start. [default: <state-dir>/trust-bundle.pem]
    #[arg(long, env = "HEDDLE_TRUST_BUNDLE_OUT")]
    pub trust_bundle_out: Option<PathBuf>,
    /// Your own root certificate (PEM), with --ca-intermediate and --ca-key.
    #[arg(long, env = "HEDDLE_CA_ROOT")]
    pub ca_root: Option<PathBuf>,
    /// Your own issuing certificate (PEM), signed by --ca-root.
    #[arg(long, env = "HEDDLE_CA_INTERMEDIATE")]
    pub ca_intermediate: Option<PathBuf>,
    /// The key of --ca-intermediate (PEM, PKCS#8, mode 0600).
    #[arg(long, env = "HEDDLE_CA_KEY")]
    pub ca_key: Option<PathBuf>,
    /// A stream ends at a random age between this and twice this.
    #[arg(long, env = "HEDDLE_STREAM_AGE", default_value = "30m")]
    pub stream_age: String,
    /// Certificates a pod may ask for in a minute. [default: 5, more for short lives]
    #[arg(long, env = "HEDDLE_CSR_PER_MINUTE")]
    pub csr_per_minute: Option<String>,
    /// Own namespace: lease, trust root and webhook certificate are there (source "kubernetes").
    /// [default: heddle-system]
    #[arg(long, env = "HEDDLE_NAMESPACE")]
    pub namespace: Option<String>,
    /// Own pod's name: one replica is told from another by it (source "kubernetes").
    #[arg(long, env = "HEDDLE_POD")]
    pub pod: Option<String>,
    /// The Service of all replicas (source "kubernetes"). [default: heddle-control-plane]
    #[arg(long, env = "HEDDLE_SERVICE")]
    pub service: Option<String>,
    /// Address for admission webhooks, HTTPS (source "kubernetes"). [default: [::]:15114]
    #[arg(long, env = "HEDDLE_WEBHOOK_LISTEN")]
    pub webhook_listen: Option<String>,
    /// How to reach the API server, when not by the pod's service account (source "kubernetes").
    #[arg(long, env = "HEDDLE_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// A leader that has not renewed for this long is succeeded (source "kubernetes"). [default: 15s]
    #[arg(long, env = "HEDDLE_LEASE_DURATION")]
    pub lease_duration: Option<String>,
    /// A leader that cannot renew for this long steps down (source "kubernetes"). [default: 10s]
    #[arg(long, env = "HEDDLE_LEASE_RENEW")]
    pub lease_renew: Option<String>,
    /// Between two looks at the lease (source "kubernetes"). [default: 2s]
    #[arg(long, env = "HEDDLE_LEASE_RETRY")]
    pub lease_retry: Option<String>,
    #[command(flatten)]
    pub admission: admission::options::Raw,
    /// How long streams may take to end when the process is told to.
    #[arg(long, env = "HEDDLE_DRAIN_TIMEOUT", default_value = "5s")]
    pub drain_timeout: String,
    /// "json" or "plain".
    #[arg(long, env = "HEDDLE_LOG_FORMAT", default_value = "json")]
    pub log_format: String,
    /// What is logged.
    #[arg(long, env = "HEDDLE_LOG", default_value = "info")]
    pub log: String,
}

/// What the process runs with.
#[derive(Debug, Clone)]
pub struct Config {
    pub source: Source,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    pub leaf_lifetime: Duration,
    pub stream_age: Duration,
    pub csr_per_minute: u32,
    pub drain_timeout: Duration,
    pub log_format: telemetry::Format,
    pub log: String,
}

/// Where the cluster is read from, and what that source needs.
#[derive(Debug, Clone)]
pub enum Source {
    Files(Files),
    Kubernetes(Kubernetes),
}

/// A directory of YAML files.
#[derive(Debug, Clone)]
pub struct Files {
    pub dir: PathBuf,
    pub state_dir: PathBuf,
    pub token_key_file: PathBuf,
    pub trust_bundle_out: PathBuf,
    pub authority: AuthoritySource,
}

/// An API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    pub namespace: String,
    pub pod: String,
    pub service: String,
    pub webhook_listen: SocketAddr,
    /// `None`: by the service account of the pod this process runs in.
    pub kubeconfig: Option<PathBuf>,
    pub lease: LeaseTimes,
    pub admission: Arc<admission::options::Options>,
}

/// How leadership is held: `duration` > `renew` > `retry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// Others succeed a leader that was not seen to renew for this long.
    pub duration: Duration,
    /// A leader that could not renew for this long steps down by itself.
    pub renew: Duration,
    /// Between two attempts.
    pub retry: Duration,
}

/// Where the issuing certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthoritySource {
    /// A root made on first start and kept in the state directory.
    Own,
    /// The operator's.
    Given { root: PathBuf, intermediate: PathBuf, key: PathBuf },
}

impl RawConfig {
    /// Checks everything.
    ///
    /// # Errors
    /// Lists every mistake, each with what to write instead.
    pub fn check(self) -> Result<Config, Error> {
        let mut mistakes = Mistakes::default();
        let source = match self.source.as_str() {
            "files" => Source::Files(self.files(&mut mistakes)),
            "kubernetes" => Source::Kubernetes(self.kubernetes(&mut mistakes)),
            other => {
                let message = format!("--source is \"{other}\"; write \"files\" or \"kubernetes\"");
                mistakes.add(message);
                Source::Kubernetes(self.kubernetes(&mut Mistakes::default()))
            }
        };
        let leaf_lifetime = mistakes.duration("--leaf-lifetime", &self.leaf_lifetime);
        if !(LEAF_LIFETIME_MIN..=LEAF_LIFETIME_MAX).contains(&leaf_lifetime) {
            mistakes.add(format!(
                "--leaf-lifetime is \"{}\"; write between 20s and 2160h",
                self.leaf_lifetime
            ));
        }
        let stream_age = mistakes.duration("--stream-age", &self.stream_age);
        if stream_age < Duration::from_secs(1) {
            mistakes.add(format!("--stream-age is \"{}\"; write 1s or more", self.stream_age));
        }
        let csr_per_minute = match &self.csr_per_minute {
            None => csr_per_minute(leaf_lifetime),
            Some(text) => mistakes.parse("--csr-per-minute", text, 1..=60_000, "1 to 60000"),
        };
        let config = Config {
            source,
            listen: mistakes.address("--listen", &self.listen),
            admin: mistakes.address("--admin", &self.admin),
            leaf_lifetime,
            stream_age,
            csr_per_minute,
            drain_timeout: mistakes.duration("--drain-timeout", &self.drain_timeout),
            log_format: self.log_format.parse().unwrap_or_else(|problem| {
                mistakes.add(format!("--log-format: {problem}"));
                telemetry::Format::Plain
            }),
            log: self.log,
        };
        if mistakes.0.is_empty() { Ok(config) } else { Err(Error::Config(mistakes.0)) }
    }

    fn files(&self, mistakes: &mut Mistakes) -> Files {
        mistakes.refuse_with(
            "files",
            &[
                ("--namespace", self.namespace.is_some()),
                ("--pod", self.pod.is_some()),
                ("--service", self.service.is_some()),
                ("--webhook-listen", self.webhook_listen.is_some()),
                ("--kubeconfig", self.kubeconfig.is_some()),
                ("--lease-duration", self.lease_duration.is_some()),
                ("--lease-renew", self.lease_renew.is_some()),
                ("--lease-retry", self.lease_retry.is_some()),
            ],
        );
        mistakes.refuse_with("files", &self.admission.given());
        let dir = self.dir.clone().unwrap_or_else(|| {
            mistakes.add("--dir is missing; write the directory of YAML files".to_owned());
            PathBuf::new()
        });
        if !dir.as_os_str().is_empty() && !dir.is_dir() {
            mistakes.add(format!("--dir is \"{}\", which is no directory", dir.display()));
        }
        let state_dir = self.state_dir.clone().unwrap_or_else(|| dir.join(".state"));
        let beside =
            |path: &Option<PathBuf>, name| path.clone().unwrap_or_else(|| state_dir.join(name));
        Files {
            token_key_file: beside(&self.token_key_file, "token.key"),
            trust_bundle_out: beside(&self.trust_bundle_out, "trust-bundle.pem"),
            authority: mistakes.authority(
                self.ca_root.clone(),
                self.ca_intermediate.clone(),
                self.ca_key.clone(),
            ),
            dir,
            state_dir,
        }
    }

    fn kubernetes(&self, mistakes: &mut Mistakes) -> Kubernetes {
        mistakes.refuse_with(
            "kubernetes",
            &[
                ("--dir", self.dir.is_some()),
                ("--state-dir", self.state_dir.is_some()),
                ("--token-key-file", self.token_key_file.is_some()),
                ("--trust-bundle-out", self.trust_bundle_out.is_some()),
                ("--ca-root", self.ca_root.is_some()),
                ("--ca-intermediate", self.ca_intermediate.is_some()),
                ("--ca-key", self.ca_key.is_some()),
            ],
        );
        let text = |given: &Option<String>, or: &str| given.as_deref().unwrap_or(or).to_owned();
        let namespace = text(&self.namespace, CONTROL_PLANE_NAMESPACE);
        mistakes.label("--namespace", &namespace);
        let service = text(&self.service, CONTROL_PLANE_SERVICE_ACCOUNT);
        mistakes.label("--service", &service);
        let pod = self.pod.clone().unwrap_or_default();
        if !is_subdomain(&pod) {
            let message = "write this pod's own name (fieldRef metadata.name)";
            mistakes.add(match &self.pod {
                None => format!("--pod is missing; {message}"),
                Some(pod) => format!("--pod is \"{pod}\"; {message}"),
            });
        }
        let mut admission = self.admission.check(&mut mistakes.0);
        if self.admission.proxy_control_plane.is_none() {
            admission.inject.control_plane =
                format!("{service}.{namespace}.svc:{CONTROL_PLANE_PORT}");
        }
        let webhook = text(&self.webhook_listen, &format!("[::]:{WEBHOOK_PORT}"));
        Kubernetes {
            namespace,
            pod,
            service,
            webhook_listen: mistakes.address("--webhook-listen", &webhook),
            kubeconfig: self.kubeconfig.clone(),
            lease: self.lease(mistakes),
            admission: Arc::new(admission),
        }
    }

    fn lease(&self, mistakes: &mut Mistakes) -> LeaseTimes {
        let before = mistakes.0.len();
        let mut time = |option, given: &Option<String>, or| {
            mistakes.duration(option, given.as_deref().unwrap_or(or))
        };
        let lease = LeaseTimes {
            duration: time("--lease-duration", &self.lease_duration, "15s"),
            renew: time("--lease-renew", &self.lease_renew, "10s"),
            retry: time("--lease-retry", &self.lease_retry, "2s"),
        };
        // A leader must have stepped down before anybody may succeed it.
        let is_ordered = lease.duration > lease.renew && lease.renew > lease.retry;
        if mistakes.0.len() == before && (!is_ordered || lease.duration < Duration::from_secs(1)) {
            mistakes.add(
                "--lease-duration, --lease-renew and --lease-retry must each be longer than the \
                 next, and the first 1s or more; write for instance 15s, 10s and 2s"
                    .to_owned(),
            );
        }
        lease
    }
}

/// A proxy renews once in 60 to 75 % of a life; four times that leaves room for restarts and orders.
fn csr_per_minute(leaf_lifetime: Duration) -> u32 {
    let seconds = u32::try_from(leaf_lifetime.as_secs().max(1)).unwrap_or(u32::MAX);
    CSR_PER_MINUTE.max(240 / seconds)
}

#[derive(Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    fn add(&mut self, mistake: String) {
        self.0.push(mistake);
    }

    fn address(&mut self, option: &str, text: &str) -> SocketAddr {
        text.parse().unwrap_or_else(|_| {
            self.add(format!("{option} is \"{text}\"; write for instance \"[::]:15112\""));
            SocketAddr::from(([0, 0, 0, 0], 0))
        })
    }

    /// Refuses options that mean nothing to this source, so that none is ignored.
    fn refuse_with(&mut self, source: &str, options: &[(&str, bool)]) {
        for (option, _) in options.iter().filter(|(_, is_given)| *is_given) {
            self.add(format!("{option} has no meaning with --source {source}; remove it"));
        }
    }

    fn label(&mut self, option: &str, name: &str) {
        if !is_label(name) {
            self.add(format!(
                "{option} is \"{name}\"; write a name of 1 to 63 of a-z, 0-9 and \"-\""
            ));
        }
    }

    fn duration(&mut self, option: &str, text: &str) -> Duration {
        parse_duration(text).unwrap_or_else(|| {
            self.add(format!(
                "{option} is \"{text}\"; write a number and ms, s, m or h, for instance \"30s\""
            ));
            // Within every range checked afterwards, so that one mistake is told once.
            Duration::from_secs(3600)
        })
    }

    fn parse<T: FromStr + PartialOrd + Default>(
        &mut self,
        option: &str,
        text: &str,
        range: std::ops::RangeInclusive<T>,
        wanted: &str,
    ) -> T {
        text.parse().ok().filter(|value| range.contains(value)).unwrap_or_else(|| {
            self.add(format!("{option} is \"{text}\"; write a number, {wanted}"));
            T::default()
        })
    }

    fn authority(
        &mut self,
        root: Option<PathBuf>,
        intermediate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> AuthoritySource {
        match (root, intermediate, key) {
            (None, None, None) => AuthoritySource::Own,
            (Some(root), Some(intermediate), Some(key)) => {
                AuthoritySource::Given { root, intermediate, key }
            }
            _ => {
                self.add(
                    "--ca-root, --ca-intermediate and --ca-key go together; write all three or none"
                        .to_owned(),
                );
                AuthoritySource::Own
            }
        }
    }
}

pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(arguments: &[&str]) -> RawConfig {
        let program = std::iter::once(&"heddle-control-plane");
        CommandLine::try_parse_from(program.chain(arguments)).unwrap().serve
    }

    #[test]
    fn defaults_follow_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let config = raw(&["--dir", dir.path().to_str().unwrap()]).check().unwrap();
        assert_eq!(config.listen.port(), heddle_api::names::CONTROL_PLANE_PORT);
        assert_eq!(config.admin.port(), heddle_api::names::CONTROL_PLANE_ADMIN_PORT);
        assert_eq!(config.csr_per_minute, 5);
        let Source::Files(files) = config.source else { panic!("{:?}", config.source) };
        assert_eq!(files.state_dir, dir.path().join(".state"));
        assert_eq!(files.trust_bundle_out, dir.path().join(".state/trust-bundle.pem"));
        assert_eq!(files.authority, AuthoritySource::Own);
    }

    #[test]
    fn a_pod_name_is_all_that_kubernetes_needs() {
        let config = raw(&["--source=kubernetes", "--pod=heddle-control-plane-0"]).check().unwrap();
        let Source::Kubernetes(settings) = config.source else { panic!("{:?}", config.source) };
        let seconds = Duration::from_secs;
        assert_eq!(
            settings,
            Kubernetes {
                namespace: "heddle-system".to_owned(),
                pod: "heddle-control-plane-0".to_owned(),
                service: "heddle-control-plane".to_owned(),
                webhook_listen: "[::]:15114".parse().unwrap(),
                kubeconfig: None,
                lease: LeaseTimes { duration: seconds(15), renew: seconds(10), retry: seconds(2) },
                admission: Arc::default(),
            }
        );
    }

    #[test]
    fn what_only_the_other_source_knows_is_refused() {
        let error = |arguments: &[&str]| raw(arguments).check().unwrap_err().to_string();
        let text = error(&[
            "--source=kubernetes",
            "--namespace=Here",
            "--webhook-listen=443",
            "--dir=/",
            "--state-dir=/x",
            "--token-key-file=/x",
            "--trust-bundle-out=/x",
            "--ca-root=/x",
            "--lease-renew=15s",
        ]);
        for wanted in [
            "--dir has no meaning with --source kubernetes",
            "--state-dir has no meaning",
            "--token-key-file has no meaning",
            "--trust-bundle-out has no meaning",
            "--ca-root has no meaning",
            "--namespace is \"Here\"",
            "--pod is missing",
            "--webhook-listen is \"443\"",
            "--lease-duration, --lease-renew and --lease-retry",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is not in:\n{text}");
        }
        assert_eq!(text.lines().count(), 9, "{text}");
        let text = error(&["--dir=/", "--pod=a", "--kubeconfig=/x", "--lease-retry=1s"]);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("--kubeconfig has no meaning with --source files"), "{text}");
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let error = raw(&[
            "--source=etcd",
            "--listen=here",
            "--leaf-lifetime=5s",
            "--stream-age=soon",
            "--csr-per-minute=0",
            "--log-format=xml",
        ])
        .check()
        .unwrap_err()
        .to_string();
        for wanted in [
            "--source is \"etcd\"",
            "--listen is \"here\"",
            "--leaf-lifetime is \"5s\"; write between",
            "--stream-age is \"soon\"",
            "--csr-per-minute is \"0\"",
            "\"xml\"",
        ] {
            assert!(error.contains(wanted), "{wanted:?} is not in:\n{error}");
        }
        assert_eq!(error.lines().count(), 6, "{error}");
        let error = raw(&["--ca-root=/x"]).check().unwrap_err().to_string();
        assert!(error.contains("--dir is missing"), "{error}");
        assert!(error.contains("--ca-root, --ca-intermediate and --ca-key"), "{error}");
    }

    #[test]
    fn durations() {
        for (text, want) in [
            ("500ms", Some(500)),
            ("20s", Some(20_000)),
            ("3m", Some(180_000)),
            ("24h", Some(86_400_000)),
            ("", None),
            ("20", None),
            ("s", None),
            ("1.5h", None),
            ("-1s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ] {
            assert_eq!(parse_duration(text), want.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn short_lives_are_given_more_certificates() {
        for (seconds, want) in [(20, 12), (60, 5), (86_400, 5)] {
            assert_eq!(csr_per_minute(Duration::from_secs(seconds)), want);
        }
    }
}
