//! What an administrator decides for every pod, as types that cannot be wrong.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use heddle_api::names::{
    CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_PORT, CONTROL_PLANE_SERVICE_ACCOUNT,
};
use ipnet::IpNet;

/// What every injected pod gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub proxy_image: String,
    pub init_image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// Host name and port of the control plane.
    pub control_plane: String,
    pub trust_domain: String,
    /// Filter of the proxy's log, unless the pod asks for another.
    pub log: String,
    /// `plain` or `json`.
    pub log_format: String,
    /// `off` or `json`.
    pub access_log: String,
    /// How long a proxy's drain takes at most; less where a pod's grace period asks for it.
    pub drain_timeout: Duration,
    /// Life of the proxy's token; the kubelet renews it at 80 %.
    pub token_seconds: u32,
    pub proxy: Requirements,
    pub init: Requirements,
    /// Left alone in every pod.
    pub skip_inbound_ports: PortList,
    pub skip_outbound_ports: PortList,
    pub skip_outbound_cidrs: Vec<IpNet>,
    /// What a pod may leave alone by annotation; nothing unless an administrator says so.
    pub may_skip_inbound_ports: PortList,
    pub may_skip_outbound_ports: PortList,
}

impl Settings {
    /// What holds where an administrator has decided nothing.
    #[must_use]
    pub fn new(version: &str, trust_domain: &str) -> Self {
        Self {
            proxy_image: format!("heddle/proxy:{version}"),
            init_image: format!("heddle/init:{version}"),
            image_pull_policy: "IfNotPresent".to_owned(),
            control_plane: format!(
                "{CONTROL_PLANE_SERVICE_ACCOUNT}.{CONTROL_PLANE_NAMESPACE}.svc:{CONTROL_PLANE_PORT}"
            ),
            trust_domain: trust_domain.to_owned(),
            log: "info".to_owned(),
            log_format: "json".to_owned(),
            access_log: "off".to_owned(),
            drain_timeout: Duration::from_secs(30),
            token_seconds: 3600,
            proxy: Requirements::new(Some("20m"), None, Some("32Mi"), Some("256Mi")),
            init: Requirements::new(Some("10m"), None, Some("16Mi"), Some("64Mi")),
            skip_inbound_ports: PortList::default(),
            skip_outbound_ports: PortList::default(),
            skip_outbound_cidrs: Vec::new(),
            may_skip_inbound_ports: PortList::default(),
            may_skip_outbound_ports: PortList::default(),
        }
    }
}

/// CPU and memory of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requirements {
    pub cpu_request: Option<Quantity>,
    pub cpu_limit: Option<Quantity>,
    pub memory_request: Option<Quantity>,
    pub memory_limit: Option<Quantity>,
}

impl Requirements {
    fn new(
        cpu_request: Option<&str>,
        cpu_limit: Option<&str>,
        memory_request: Option<&str>,
        memory_limit: Option<&str>,
    ) -> Self {
        let one =
            |text: Option<&str>| text.map(|text| text.parse().expect("a default is a quantity"));
        Self {
            cpu_request: one(cpu_request),
            cpu_limit: one(cpu_limit),
            memory_request: one(memory_request),
            memory_limit: one(memory_limit),
        }
    }

    /// What Kubernetes would refuse, in words that name the two values.
    ///
    /// # Errors
    /// A request is above its limit.
    pub fn check(&self, whose: &str) -> Result<(), String> {
        for (what, request, limit) in [
            ("CPU", &self.cpu_request, &self.cpu_limit),
            ("memory", &self.memory_request, &self.memory_limit),
        ] {
            if let (Some(request), Some(limit)) = (request, limit)
                && request.thousandths > limit.thousandths
            {
                return Err(format!(
                    "{whose}'s {what} request {request} is above its limit {limit}: lower the \
                     one or raise the other"
                ));
            }
        }
        Ok(())
    }
}

/// An amount as Kubernetes writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantity {
    text: String,
    thousandths: u128,
}

/// Why a text is not a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write an amount such as 100m, 0.5 or 2 (CPU), 64Mi or 1Gi (memory)")]
pub struct QuantityError;

const SUFFIXES: [(&str, u128); 9] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("", 1),
];
/// Far more digits than any amount needs; keeps the arithmetic exact.
const MAX_QUANTITY: usize = 18;

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.len() > MAX_QUANTITY {
            return Err(QuantityError);
        }
        let thousandths = match text.strip_suffix('m') {
            Some(number) => decimal(number).filter(|number| number % 1000 == 0).map(|n| n / 1000),
            None => SUFFIXES
                .into_iter()
                .find_map(|(suffix, factor)| Some(decimal(text.strip_suffix(suffix)?)? * factor)),
        };
        let thousandths = thousandths.ok_or(QuantityError)?;
        Ok(Self { text: text.to_owned(), thousandths })
    }
}

/// A number with at most three decimals, in thousandths.
fn decimal(text: &str) -> Option<u128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let fraction: u128 = format!("{fraction:0<3}").parse().ok()?;
    Some(whole * 1000 + fraction)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Ports and ranges of ports, as `heddle-init` reads them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortList(Vec<(u16, u16)>);

/// Why a text is not a list of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write ports from 1 to 65535 as 22,8000-8005, the lower one of a range first")]
pub struct PortListError;

/// More would not be a list a person wrote.
const MAX_RANGES: usize = 64;

impl FromStr for PortList {
    type Err = PortListError;

    fn from_str(text: &str) -> Result<Self, PortListError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let port = |text: &str| match text.trim().parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(PortListError),
        };
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (port(first)?, port(last)?);
            if first > last { Err(PortListError) } else { Ok((first, last)) }
        };
        let ranges: Vec<_> = text.split(',').map(range).collect::<Result<_, _>>()?;
        if ranges.len() > MAX_RANGES { Err(PortListError) } else { Ok(Self(ranges)) }
    }
}

impl PortList {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first range that is not wholly inside one range of `allowed`.
    pub(super) fn find_outside(&self, allowed: &Self) -> Option<String> {
        let inside = |(first, last): (u16, u16)| {
            allowed.0.iter().any(|(low, high)| *low <= first && last <= *high)
        };
        let outside = self.0.iter().find(|range| !inside(**range))?;
        Some(Self(vec![*outside]).to_string())
    }

    /// Both lists, without what would stand there twice.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        let mut all = self.0.clone();
        all.extend(other.0.iter().filter(|range| !self.0.contains(range)));
        Self(all)
    }
}

impl fmt::Display for PortList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{first}")?;
            if first != last {
                write!(f, "-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, want) in [
            ("100m", Some(100)),
            ("0.5", Some(500)),
            ("2", Some(2_000)),
            ("1k", Some(1_000_000)),
            ("64Mi", Some(64 * 1024 * 1024 * 1000)),
            ("1.5Gi", Some(3 * 512 * 1024 * 1024 * 1000)),
            ("0", Some(0)),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1.", None),
            (".5", None),
            ("1.0001", None),
            ("64MB", None),
            ("1 Gi", None),
            ("1e3", None),
            ("0.5m", None),
            ("1000000000000000000", None),
        ] {
            assert_eq!(text.parse::<Quantity>().ok().map(|q| q.thousandths), want, "{text:?}");
        }
    }

    #[test]
    fn a_request_above_its_limit_is_named() {
        let mut requirements = Requirements::new(Some("100m"), Some("0.1"), None, Some("1Mi"));
        assert_eq!(requirements.check("the proxy"), Ok(()));
        requirements.memory_request = Some("1025Ki".parse().unwrap());
        let message = requirements.check("the proxy").unwrap_err();
        assert!(message.contains("memory request 1025Ki is above its limit 1Mi"), "{message}");
    }

    #[test]
    fn port_lists_are_strict_and_compare_by_range() {
        let list = |text: &str| text.parse::<PortList>().unwrap();
        assert_eq!(list(" 22 , 8000 - 8005").to_string(), "22,8000-8005");
        assert_eq!(list("").to_string(), "");
        for text in ["0", "65536", "9-1", "a", "1,,2", "1-2-3", "-"] {
            assert_eq!(text.parse::<PortList>(), Err(PortListError), "{text}");
        }
        assert_eq!(list("22,8001-8003").find_outside(&list("8000-8005,22")), None);
        assert_eq!(list("22,8001-8006").find_outside(&list("8000-8005,22")).unwrap(), "8001-8006");
        assert_eq!(list("22").join(&list("22,80")).to_string(), "22,80");
    }
}
