//! The command line and the environment: what to do, and what not to redirect.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use clap::{Args, Parser};
use ipnet::IpNet;

/// Redirects this network namespace's TCP to the Heddle proxy.
#[derive(Debug, Parser)]
#[command(name = "heddle-init", version)]
pub(crate) struct CommandLine {
    /// Change nothing: compare the rules with what they should be, exit 1 if they differ.
    #[arg(long, conflicts_with = "remove")]
    check: bool,
    /// Remove the rules.
    #[arg(long)]
    remove: bool,
    #[command(flatten)]
    pub skips: Skips,
}

/// What is left alone. Empty unless an administrator says otherwise: nothing is excluded by itself.
#[derive(Debug, Default, Args)]
pub(crate) struct Skips {
    /// Ports on which connections reach the application without the proxy, such as 22,8000-8005.
    #[arg(long, default_value = "", env = "HEDDLE_SKIP_INBOUND_PORTS")]
    pub skip_inbound_ports: List<PortRange>,
    /// Destination ports that the application dials without the proxy.
    #[arg(long, default_value = "", env = "HEDDLE_SKIP_OUTBOUND_PORTS")]
    pub skip_outbound_ports: List<PortRange>,
    /// Destination networks that the application dials without the proxy, such as 10.0.0.0/8.
    #[arg(long, default_value = "", env = "HEDDLE_SKIP_OUTBOUND_CIDRS")]
    pub skip_outbound_cidrs: List<Network>,
}

/// Values between commas. An empty text is an empty list, so that a variable may be left empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List<T>(pub Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: FromStr> FromStr for List<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        text.split(',').map(|item| item.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Write,
    Check,
    Remove,
}

impl CommandLine {
    pub(crate) fn action(&self) -> Action {
        match (self.check, self.remove) {
            (true, _) => Action::Check,
            (false, true) => Action::Remove,
            (false, false) => Action::Write,
        }
    }
}

/// One port, or an inclusive range of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortRange {
    first: u16,
    last: u16,
}

/// Why a text is not a port range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write ports from 1 to 65535 as 80 or 8000-8005, the lower one first")]
pub(crate) struct PortRangeError;

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let port = |text: &str| match text.trim().parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(PortRangeError),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = Self { first: port(first)?, last: port(last)? };
        if range.first > range.last {
            return Err(PortRangeError);
        }
        Ok(range)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A network, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network(IpNet);

/// Why a text is not a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("write a network such as 10.0.0.0/8 or fd00::/8")]
    Shape,
    /// The kernel would drop them, so they are a mistake.
    #[error("has bits set beyond its prefix; write {0}")]
    HostBits(IpNet),
}

impl Network {
    pub(crate) fn is_v4(self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let network = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => text.parse().map_err(|_| NetworkError::Shape)?,
        };
        if network.trunc() != network {
            return Err(NetworkError::HostBits(network.trunc()));
        }
        Ok(Self(network))
    }
}

impl fmt::Display for Network {
    /// As the kernel writes it back: a single address has no prefix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            return self.0.addr().fmt(f);
        }
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn ports_and_networks_are_read_strictly() {
        for (text, want) in [("80", Some("80")), ("1-5", Some("1-5")), (" 7 - 9", Some("7-9"))] {
            assert_eq!(text.parse::<PortRange>().ok().map(|p| p.to_string()).as_deref(), want);
        }
        for text in ["", "0", "0-5", "5-1", "65536", "http", "1-", "-1", "1-2-3"] {
            assert_eq!(text.parse::<PortRange>(), Err(PortRangeError), "{text:?}");
        }
        assert_eq!("".parse(), Ok(List::<PortRange>::default()));
        assert_eq!("1, 2-3".parse::<List<PortRange>>().unwrap().0.len(), 2);
        assert!("1,,2".parse::<List<PortRange>>().is_err());
        for (text, want) in [
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("10.1.2.3", Ok("10.1.2.3")),
            ("10.1.2.3/32", Ok("10.1.2.3")),
            ("fd00::/8", Ok("fd00::/8")),
            ("10.0.0.1/8", Err("has bits set beyond its prefix; write 10.0.0.0/8")),
            ("10.0.0.0/33", Err("write a network such as 10.0.0.0/8 or fd00::/8")),
            ("web", Err("write a network such as 10.0.0.0/8 or fd00::/8")),
        ] {
            let got = text.parse::<Network>();
            let got = got.map(|network| network.to_string()).map_err(|error| error.to_string());
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned), "{text:?}");
        }
    }
}
