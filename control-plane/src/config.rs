//! Command line and environment, read once: raw text in, a [`Config`] that cannot be wrong out, or
//! every mistake at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use heddle_runtime::telemetry;

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
    /// Where the cluster is read from: "files".
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
    pub dir: PathBuf,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    pub state_dir: PathBuf,
    pub token_key_file: PathBuf,
    pub trust_bundle_out: PathBuf,
    pub authority: AuthoritySource,
    pub leaf_lifetime: Duration,
    pub stream_age: Duration,
    pub csr_per_minute: u32,
    pub drain_timeout: Duration,
    pub log_format: telemetry::Format,
    pub log: String,
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
        if self.source != "files" {
            mistakes.add(format!("--source is \"{}\"; write \"files\"", self.source));
        }
        let dir = self.dir.unwrap_or_else(|| {
            mistakes.add("--dir is missing; write the directory of YAML files".to_owned());
            PathBuf::new()
        });
        if !dir.as_os_str().is_empty() && !dir.is_dir() {
            mistakes.add(format!("--dir is \"{}\", which is no directory", dir.display()));
        }
        let state_dir = self.state_dir.unwrap_or_else(|| dir.join(".state"));
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
            listen: mistakes.address("--listen", &self.listen),
            admin: mistakes.address("--admin", &self.admin),
            token_key_file: self.token_key_file.unwrap_or_else(|| state_dir.join("token.key")),
            trust_bundle_out: self
                .trust_bundle_out
                .unwrap_or_else(|| state_dir.join("trust-bundle.pem")),
            authority: mistakes.authority(self.ca_root, self.ca_intermediate, self.ca_key),
            leaf_lifetime,
            stream_age,
            csr_per_minute,
            drain_timeout: mistakes.duration("--drain-timeout", &self.drain_timeout),
            log_format: self.log_format.parse().unwrap_or_else(|problem| {
                mistakes.add(format!("--log-format: {problem}"));
                telemetry::Format::Plain
            }),
            log: self.log,
            dir,
            state_dir,
        };
        if mistakes.0.is_empty() { Ok(config) } else { Err(Error::Config(mistakes.0)) }
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

fn parse_duration(text: &str) -> Option<Duration> {
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
        assert_eq!(config.state_dir, dir.path().join(".state"));
        assert_eq!(config.trust_bundle_out, dir.path().join(".state/trust-bundle.pem"));
        assert_eq!(config.authority, AuthoritySource::Own);
        assert_eq!(config.csr_per_minute, 5);
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
            "--ca-root=/x",
        ])
        .check()
        .unwrap_err()
        .to_string();
        for wanted in [
            "--source is \"etcd\"",
            "--dir is missing",
            "--listen is \"here\"",
            "--leaf-lifetime is \"5s\"; write between",
            "--stream-age is \"soon\"",
            "--csr-per-minute is \"0\"",
            "\"xml\"",
            "--ca-root, --ca-intermediate and --ca-key",
        ] {
            assert!(error.contains(wanted), "{wanted:?} is not in:\n{error}");
        }
        assert_eq!(error.lines().count(), 8, "{error}");
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
