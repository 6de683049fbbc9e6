//! What an administrator decides about injection and the webhooks: options in, settings that cannot
//! be wrong out, or every mistake.

use std::str::FromStr;

use clap::Args;
use heddle_resources::inject::{PortList, Quantity, Settings};
use ipnet::IpNet;

use crate::config::parse_duration;

/// What was written, unchecked. All of it is for the source "kubernetes".
#[derive(Debug, Default, Clone, Args)]
#[command(next_help_heading = "Injection (source \"kubernetes\")")]
pub struct Raw {
    /// Image of the sidecar. [default: heddle/proxy of this version]
    #[arg(long, env = "HEDDLE_PROXY_IMAGE")]
    pub proxy_image: Option<String>,
    /// Image of what writes the redirection rules. [default: heddle/init of this version]
    #[arg(long, env = "HEDDLE_INIT_IMAGE")]
    pub init_image: Option<String>,
    /// Of both images: "Always", "IfNotPresent" or "Never". [default: IfNotPresent]
    #[arg(long, env = "HEDDLE_IMAGE_PULL_POLICY")]
    pub image_pull_policy: Option<String>,
    /// Where proxies find the control plane. [default: the Service, by name]
    #[arg(long, env = "HEDDLE_PROXY_CONTROL_PLANE")]
    pub proxy_control_plane: Option<String>,
    /// CPU the scheduler keeps for a sidecar; empty for none. [default: 20m]
    #[arg(long, env = "HEDDLE_PROXY_CPU_REQUEST")]
    pub proxy_cpu_request: Option<String>,
    /// CPU a sidecar may use at most; empty for no limit. [default: no limit]
    #[arg(long, env = "HEDDLE_PROXY_CPU_LIMIT")]
    pub proxy_cpu_limit: Option<String>,
    /// Memory the scheduler keeps for a sidecar; empty for none. [default: 32Mi]
    #[arg(long, env = "HEDDLE_PROXY_MEMORY_REQUEST")]
    pub proxy_memory_request: Option<String>,
    /// Memory a sidecar may use at most; empty for no limit. [default: 256Mi]
    #[arg(long, env = "HEDDLE_PROXY_MEMORY_LIMIT")]
    pub proxy_memory_limit: Option<String>,
    /// The same of the container that writes the redirection rules. [default: 10m]
    #[arg(long, env = "HEDDLE_INIT_CPU_REQUEST")]
    pub init_cpu_request: Option<String>,
    /// See --init-cpu-request. [default: no limit]
    #[arg(long, env = "HEDDLE_INIT_CPU_LIMIT")]
    pub init_cpu_limit: Option<String>,
    /// See --init-cpu-request. [default: 16Mi]
    #[arg(long, env = "HEDDLE_INIT_MEMORY_REQUEST")]
    pub init_memory_request: Option<String>,
    /// See --init-cpu-request. [default: 64Mi]
    #[arg(long, env = "HEDDLE_INIT_MEMORY_LIMIT")]
    pub init_memory_limit: Option<String>,
    /// What a sidecar logs. [default: info]
    #[arg(long, env = "HEDDLE_PROXY_LOG")]
    pub proxy_log: Option<String>,
    /// "json" or "plain". [default: json]
    #[arg(long, env = "HEDDLE_PROXY_LOG_FORMAT")]
    pub proxy_log_format: Option<String>,
    /// "off" or "json". [default: off]
    #[arg(long, env = "HEDDLE_PROXY_ACCESS_LOG")]
    pub proxy_access_log: Option<String>,
    /// How long a sidecar's drain may take; less where the pod's grace period asks for it.
    /// [default: 30s]
    #[arg(long, env = "HEDDLE_PROXY_DRAIN_TIMEOUT")]
    pub proxy_drain_timeout: Option<String>,
    /// Life of a sidecar's token, 10m to 24h. [default: 1h]
    #[arg(long, env = "HEDDLE_PROXY_TOKEN_LIFETIME")]
    pub proxy_token_lifetime: Option<String>,
    /// Ports that no sidecar sees, such as "22,8000-8005". [default: none]
    #[arg(long, env = "HEDDLE_SKIP_INBOUND_PORTS")]
    pub skip_inbound_ports: Option<String>,
    /// Ports that applications dial past their sidecar. [default: none]
    #[arg(long, env = "HEDDLE_SKIP_OUTBOUND_PORTS")]
    pub skip_outbound_ports: Option<String>,
    /// Networks that applications dial past their sidecar, such as "10.1.0.0/16". [default: none]
    #[arg(long, env = "HEDDLE_SKIP_OUTBOUND_CIDRS")]
    pub skip_outbound_cidrs: Option<String>,
    /// Ports that a pod may hide from its sidecar by annotation. [default: none]
    #[arg(long, env = "HEDDLE_MAY_SKIP_INBOUND_PORTS")]
    pub may_skip_inbound_ports: Option<String>,
    /// Ports that a pod may dial past its sidecar by annotation. [default: none]
    #[arg(long, env = "HEDDLE_MAY_SKIP_OUTBOUND_PORTS")]
    pub may_skip_outbound_ports: Option<String>,
    /// "managed": the leader makes the webhooks' certificate and tells the API server. "provided":
    /// somebody else writes the Secret heddle-webhook, and the CA into the webhook configurations,
    /// for instance cert-manager. [default: managed]
    #[arg(long, env = "HEDDLE_WEBHOOK_CERTIFICATE")]
    pub webhook_certificate: Option<String>,
}

/// What admission runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The trust domain is filled in from the Mesh.
    pub inject: Settings,
    pub certificate: CertificateSource,
}

/// Who makes the webhooks' certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateSource {
    /// The leader.
    Managed,
    /// Somebody else, who also tells the API server.
    Provided,
}

impl Default for Options {
    fn default() -> Self {
        let inject = Settings::new(env!("CARGO_PKG_VERSION"), "");
        Self { inject, certificate: CertificateSource::Managed }
    }
}

impl Raw {
    /// Every option, and whether it was written.
    #[must_use]
    pub fn given(&self) -> [(&'static str, bool); 23] {
        [
            ("--proxy-image", self.proxy_image.is_some()),
            ("--init-image", self.init_image.is_some()),
            ("--image-pull-policy", self.image_pull_policy.is_some()),
            ("--proxy-control-plane", self.proxy_control_plane.is_some()),
            ("--proxy-cpu-request", self.proxy_cpu_request.is_some()),
            ("--proxy-cpu-limit", self.proxy_cpu_limit.is_some()),
            ("--proxy-memory-request", self.proxy_memory_request.is_some()),
            ("--proxy-memory-limit", self.proxy_memory_limit.is_some()),
            ("--init-cpu-request", self.init_cpu_request.is_some()),
            ("--init-cpu-limit", self.init_cpu_limit.is_some()),
            ("--init-memory-request", self.init_memory_request.is_some()),
            ("--init-memory-limit", self.init_memory_limit.is_some()),
            ("--proxy-log", self.proxy_log.is_some()),
            ("--proxy-log-format", self.proxy_log_format.is_some()),
            ("--proxy-access-log", self.proxy_access_log.is_some()),
            ("--proxy-drain-timeout", self.proxy_drain_timeout.is_some()),
            ("--proxy-token-lifetime", self.proxy_token_lifetime.is_some()),
            ("--skip-inbound-ports", self.skip_inbound_ports.is_some()),
            ("--skip-outbound-ports", self.skip_outbound_ports.is_some()),
            ("--skip-outbound-cidrs", self.skip_outbound_cidrs.is_some()),
            ("--may-skip-inbound-ports", self.may_skip_inbound_ports.is_some()),
            ("--may-skip-outbound-ports", self.may_skip_outbound_ports.is_some()),
            ("--webhook-certificate", self.webhook_certificate.is_some()),
        ]
    }

    /// Checks everything; what is wrong is added to `mistakes`.
    pub(crate) fn check(&self, mistakes: &mut Vec<String>) -> Options {
        let mut options = Options::default();
        let certificate = &mut options.certificate;
        let managed = match self.webhook_certificate.as_deref() {
            None | Some("managed") => Some(CertificateSource::Managed),
            Some("provided") => Some(CertificateSource::Provided),
            Some(_) => None,
        };
        let given = self.webhook_certificate.as_deref().unwrap_or_default();
        put(
            mistakes,
            "--webhook-certificate",
            given,
            managed.ok_or("\"managed\" or \"provided\""),
            certificate,
        );
        self.check_containers(&mut options.inject, mistakes);
        self.check_amounts(&mut options.inject, mistakes);
        self.check_times(&mut options.inject, mistakes);
        self.check_skips(&mut options.inject, mistakes);
        options
    }

    fn check_containers(&self, settings: &mut Settings, mistakes: &mut Vec<String>) {
        let mut text = |option, given: &Option<String>, wanted: &[&str], what, to: &mut String| {
            let Some(given) = given else { return };
            let fits = match wanted {
                [] => !given.is_empty() && given.bytes().all(|b| b.is_ascii_graphic()),
                wanted => wanted.contains(&given.as_str()),
            };
            put(mistakes, option, given, fits.then(|| given.clone()).ok_or(what), to);
        };
        let image = "an image, for instance heddle/proxy:0.1.0";
        text("--proxy-image", &self.proxy_image, &[], image, &mut settings.proxy_image);
        text("--init-image", &self.init_image, &[], image, &mut settings.init_image);
        text(
            "--image-pull-policy",
            &self.image_pull_policy,
            &["Always", "IfNotPresent", "Never"],
            "Always, IfNotPresent or Never",
            &mut settings.image_pull_policy,
        );
        text(
            "--proxy-control-plane",
            &self.proxy_control_plane,
            &[],
            "HOST:PORT",
            &mut settings.control_plane,
        );
        text("--proxy-log", &self.proxy_log, &[], "a filter, for instance info", &mut settings.log);
        text(
            "--proxy-log-format",
            &self.proxy_log_format,
            &["json", "plain"],
            "json or plain",
            &mut settings.log_format,
        );
        text(
            "--proxy-access-log",
            &self.proxy_access_log,
            &["off", "json"],
            "off or json",
            &mut settings.access_log,
        );
    }

    fn check_amounts(&self, settings: &mut Settings, mistakes: &mut Vec<String>) {
        let before = mistakes.len();
        let Settings { proxy, init, .. } = settings;
        for (option, given, to) in [
            ("--proxy-cpu-request", &self.proxy_cpu_request, &mut proxy.cpu_request),
            ("--proxy-cpu-limit", &self.proxy_cpu_limit, &mut proxy.cpu_limit),
            ("--proxy-memory-request", &self.proxy_memory_request, &mut proxy.memory_request),
            ("--proxy-memory-limit", &self.proxy_memory_limit, &mut proxy.memory_limit),
            ("--init-cpu-request", &self.init_cpu_request, &mut init.cpu_request),
            ("--init-cpu-limit", &self.init_cpu_limit, &mut init.cpu_limit),
            ("--init-memory-request", &self.init_memory_request, &mut init.memory_request),
            ("--init-memory-limit", &self.init_memory_limit, &mut init.memory_limit),
        ] {
            match given.as_deref() {
                None => {}
                Some("") => *to = None,
                Some(given) => {
                    let amount = given.parse::<Quantity>().map(Some);
                    put(mistakes, option, given, amount, to);
                }
            }
        }
        if mistakes.len() == before {
            mistakes.extend(proxy.check("the proxy").err());
            mistakes.extend(init.check("heddle-init").err());
        }
    }

    fn check_times(&self, settings: &mut Settings, mistakes: &mut Vec<String>) {
        for (option, given, (low, high), to) in [
            ("--proxy-drain-timeout", &self.proxy_drain_timeout, (1, 3600), None),
            (
                "--proxy-token-lifetime",
                &self.proxy_token_lifetime,
                (600, 86_400),
                Some(&mut settings.token_seconds),
            ),
        ] {
            let Some(given) = given else { continue };
            let duration = parse_duration(given);
            let duration = duration.filter(|d| (low..=high).contains(&d.as_secs()));
            let Some(duration) = duration else {
                mistakes.push(format!("{option} is \"{given}\"; write {low}s to {high}s"));
                continue;
            };
            match to {
                Some(to) => *to = u32::try_from(duration.as_secs()).unwrap_or(u32::MAX),
                None => settings.drain_timeout = duration,
            }
        }
    }

    fn check_skips(&self, settings: &mut Settings, mistakes: &mut Vec<String>) {
        for (option, given, to) in [
            ("--skip-inbound-ports", &self.skip_inbound_ports, &mut settings.skip_inbound_ports),
            ("--skip-outbound-ports", &self.skip_outbound_ports, &mut settings.skip_outbound_ports),
            (
                "--may-skip-inbound-ports",
                &self.may_skip_inbound_ports,
                &mut settings.may_skip_inbound_ports,
            ),
            (
                "--may-skip-outbound-ports",
                &self.may_skip_outbound_ports,
                &mut settings.may_skip_outbound_ports,
            ),
        ] {
            if let Some(given) = given {
                put(mistakes, option, given, given.parse::<PortList>(), to);
            }
        }
        if let Some(given) = self.skip_outbound_cidrs.as_deref().filter(|g| !g.is_empty()) {
            let networks = given.split(',').map(|one| {
                IpNet::from_str(one.trim()).ok().filter(|network| network.trunc() == *network)
            });
            let networks = networks.collect::<Option<Vec<_>>>();
            let networks = networks.ok_or("networks such as 10.1.0.0/16,fd00::/8");
            let option = "--skip-outbound-cidrs";
            put(mistakes, option, given, networks, &mut settings.skip_outbound_cidrs);
        }
    }
}

/// Takes a value, or notes what to write instead.
fn put<T>(
    mistakes: &mut Vec<String>,
    option: &str,
    given: &str,
    value: Result<T, impl std::fmt::Display>,
    to: &mut T,
) {
    match value {
        Ok(value) => *to = value,
        Err(instead) => {
            let instead = instead.to_string();
            let instead = instead.strip_prefix("write ").unwrap_or(&instead);
            mistakes.push(format!("{option} is \"{given}\"; write {instead}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        raw: Raw,
    }

    fn check(arguments: &[&str]) -> (Options, Vec<String>) {
        let line = CommandLine::parse_from(std::iter::once(&"x").chain(arguments));
        let mut mistakes = Vec::new();
        let options = line.raw.check(&mut mistakes);
        (options, mistakes)
    }

    #[test]
    fn nothing_has_to_be_decided() {
        assert_eq!(check(&[]), (Options::default(), Vec::new()));
    }

    #[test]
    fn every_option_is_listed_and_has_its_effect() {
        use clap::CommandFactory as _;
        let arguments = [
            "--proxy-image=a",
            "--init-image=b",
            "--image-pull-policy=Never",
            "--proxy-control-plane=c:1",
            "--proxy-cpu-request=60m",
            "--proxy-cpu-limit=1",
            "--proxy-memory-request=",
            "--proxy-memory-limit=1Gi",
            "--init-cpu-request=20m",
            "--init-cpu-limit=1",
            "--init-memory-request=",
            "--init-memory-limit=1Gi",
            "--proxy-log=debug",
            "--proxy-log-format=plain",
            "--proxy-access-log=json",
            "--proxy-drain-timeout=1m",
            "--proxy-token-lifetime=2h",
            "--skip-inbound-ports=22",
            "--skip-outbound-ports=25",
            "--skip-outbound-cidrs=10.1.0.0/16",
            "--may-skip-inbound-ports=9000-9010",
            "--may-skip-outbound-ports=53",
            "--webhook-certificate=provided",
        ];
        let known = CommandLine::command();
        let known = known.get_arguments().filter(|argument| argument.get_id() != "help").count();
        let line = CommandLine::parse_from(std::iter::once("x").chain(arguments));
        let given = line.raw.given();
        assert_eq!((given.len(), arguments.len()), (known, known));
        assert!(given.iter().all(|(_, is_given)| *is_given), "{given:?}");
        for argument in arguments {
            let (options, mistakes) = check(&[argument]);
            assert_eq!(mistakes, [""; 0]);
            assert_ne!(options, Options::default(), "{argument}");
        }
        let (options, _) = check(&arguments);
        assert_eq!(options.inject.token_seconds, 7200);
        assert_eq!(options.inject.proxy.memory_request, None);
    }

    #[test]
    fn every_mistake_names_the_option_and_what_to_write() {
        for (argument, wants) in [
            ("--proxy-image=", "an image"),
            ("--image-pull-policy=Sometimes", "Always, IfNotPresent or Never"),
            ("--proxy-cpu-request=lots", "an amount such as 100m"),
            ("--proxy-memory-request=1Gi", "request 1Gi is above its limit 256Mi"),
            ("--init-cpu-limit=1m", "heddle-init's CPU request 10m is above its limit 1m"),
            ("--proxy-log-format=xml", "json or plain"),
            ("--proxy-drain-timeout=0s", "1s to 3600s"),
            ("--proxy-token-lifetime=5m", "600s to 86400s"),
            ("--skip-inbound-ports=0", "ports from 1 to 65535"),
            ("--skip-outbound-cidrs=10.1.2.3/16", "networks such as"),
            ("--webhook-certificate=none", "\"managed\" or \"provided\""),
        ] {
            let (_, mistakes) = check(&[argument]);
            assert_eq!(mistakes.len(), 1, "{argument}: {mistakes:?}");
            assert!(mistakes[0].contains(wants), "{mistakes:?}");
        }
    }
}
