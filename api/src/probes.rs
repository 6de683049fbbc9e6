//! The checks that a proxy performs for the kubelet: what injection writes into the proxy's
//! environment, and what the proxy reads there. Data only: nothing is dialled here.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::is_label;

/// The proxy's variable that holds a [`Table`] as JSON.
pub const VARIABLE: &str = "HEDDLE_PROBES";
/// Every declared check is a page below this path of the probe port.
pub const PATH_PREFIX: &str = "/probe/";
/// Header of the kubelet's requests with the table's [`PageKey`].
pub const KEY_HEADER: &str = "heddle-probe-key";
/// Checks one pod may declare: far more than any pod has.
pub const MAX_CHECKS: usize = 256;
/// A table's text; the kernel refuses a variable of 128 KiB.
pub const MAX_BYTES: usize = 64 * 1024;
/// No check may take longer, whatever was declared.
pub const MAX_TIMEOUT_MS: u32 = 3_600_000;

/// When the kubelet makes a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moment {
    Liveness,
    Readiness,
    Startup,
    PostStart,
    PreStop,
}

impl Moment {
    pub const ALL: [Self; 5] =
        [Self::Liveness, Self::Readiness, Self::Startup, Self::PostStart, Self::PreStop];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
            Self::PostStart => "postStart",
            Self::PreStop => "preStop",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|moment| moment.as_str() == text)
    }

    /// A hook, which the kubelet judges by whether there was an answer, not by its status.
    #[must_use]
    pub fn is_hook(self) -> bool {
        matches!(self, Self::PostStart | Self::PreStop)
    }
}

/// Names one check: `<container>/<moment>`, as in its path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub container: String,
    pub moment: Moment,
}

impl Key {
    #[must_use]
    pub fn new(container: &str, moment: Moment) -> Self {
        Self { container: container.to_owned(), moment }
    }

    /// The page of the probe port at which this check is performed.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{PATH_PREFIX}{self}")
    }

    /// The check a page stands for.
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        Self::parse(path.strip_prefix(PATH_PREFIX)?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (container, moment) = text.split_once('/')?;
        is_label(container).then_some(())?;
        Some(Self::new(container, Moment::parse(moment)?))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.moment.as_str())
    }
}

/// What is asked of the application, on the pod's own address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Check {
    Http(HttpGet),
    /// A connection is accepted.
    Tcp {
        port: u16,
    },
    /// `grpc.health.v1.Health/Check` answers `SERVING`.
    Grpc {
        port: u16,
        service: String,
    },
}

/// One GET. Good is an answer from 200 to 399.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpGet {
    pub port: u16,
    /// Path and query as they go on the wire.
    pub path: String,
    /// Over TLS, with any certificate.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tls: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A check, and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Declared {
    pub timeout_ms: u32,
    pub check: Check,
}

/// What opens the pages: the probe port is open to everybody who reaches the pod, and a check, or
/// worse a hook, must not be set off by a stranger. Injection chooses it; who may read the pod knows
/// it, as the kubelet does.
#[derive(Clone, PartialEq, Eq)]
pub struct PageKey(String);

impl PageKey {
    /// 16 to 64 letters and digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits =
            (16..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
        fits.then(|| Self(text.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for the same key, in a time that tells nothing of how much of it was right.
    #[must_use]
    pub fn opens(&self, offered: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let pairs = own.iter().zip(offered);
        own.len() == offered.len() && pairs.fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
    }
}

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageKey(…)")
    }
}

/// Every declared check of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    key: PageKey,
    checks: BTreeMap<Key, Declared>,
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    key: String,
    checks: BTreeMap<String, Declared>,
}

/// Why a text is not a table, or a table no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("not a table of checks: {0}")]
    Shape(String),
    #[error("key: write 16 to 64 letters and digits")]
    PageKey,
    #[error("{0:?} does not name a check: write <container>/<moment>, for instance web/liveness")]
    Key(String),
    #[error("{0}: write a port from 1 to 65535")]
    Port(Key),
    #[error("{0}: write a timeout from 1 ms to one hour")]
    Timeout(Key),
    #[error("{0}: the path or a header cannot be written as HTTP")]
    Text(Key),
    #[error("{0} checks; at most {MAX_CHECKS} are performed")]
    TooMany(usize),
    #[error("{0} bytes; at most {MAX_BYTES} are read")]
    TooLong(usize),
}

impl Table {
    #[must_use]
    pub fn new(key: PageKey) -> Self {
        Self { key, checks: BTreeMap::new() }
    }

    /// Reads the variable's value.
    ///
    /// # Errors
    /// It is not what [`Table::encode`] writes.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.len() > MAX_BYTES {
            return Err(Invalid::TooLong(text.len()));
        }
        let raw: Raw =
            serde_json::from_str(text).map_err(|error| Invalid::Shape(error.to_string()))?;
        let mut table = Self::new(PageKey::parse(&raw.key).ok_or(Invalid::PageKey)?);
        for (key, declared) in raw.checks {
            let key = Key::parse(&key).ok_or(Invalid::Key(key))?;
            check(&key, &declared)?;
            table.checks.insert(key, declared);
        }
        match table.checks.len() {
            0..=MAX_CHECKS => Ok(table),
            more => Err(Invalid::TooMany(more)),
        }
    }

    /// Writes the variable's value.
    ///
    /// # Errors
    /// It holds more than is read, or something that could not be performed.
    pub fn encode(&self) -> Result<String, Invalid> {
        if self.checks.len() > MAX_CHECKS {
            return Err(Invalid::TooMany(self.checks.len()));
        }
        self.iter().try_for_each(|(key, declared)| check(key, declared))?;
        let checks = self.iter().map(|(key, declared)| (key.to_string(), declared.clone()));
        let raw = Raw { key: self.key.0.clone(), checks: checks.collect() };
        let text = serde_json::to_string(&raw).map_err(|e| Invalid::Shape(e.to_string()))?;
        // The kubelet takes `$(NAME)` in a variable for a reference.
        let text = text.replace('$', r"\u0024");
        if text.len() > MAX_BYTES { Err(Invalid::TooLong(text.len())) } else { Ok(text) }
    }

    /// Declares a check; the one declared before under this name, if any, is forgotten.
    pub fn insert(&mut self, key: Key, declared: Declared) {
        self.checks.insert(key, declared);
    }

    #[must_use]
    pub fn find(&self, key: &Key) -> Option<&Declared> {
        self.checks.get(key)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty()
    }

    #[must_use]
    pub fn page_key(&self) -> &PageKey {
        &self.key
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Declared)> {
        self.checks.iter()
    }
}

fn check(key: &Key, declared: &Declared) -> Result<(), Invalid> {
    if !(1..=MAX_TIMEOUT_MS).contains(&declared.timeout_ms) {
        return Err(Invalid::Timeout(key.clone()));
    }
    let port = match &declared.check {
        Check::Http(get) => {
            let path = get.path.starts_with('/') && get.path.bytes().all(|b| b.is_ascii_graphic());
            let header = |(name, value): &(String, String)| {
                !name.is_empty()
                    && name.bytes().all(|b| b.is_ascii_graphic() && b != b':')
                    && value.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f))
            };
            if !path || !get.headers.iter().all(header) {
                return Err(Invalid::Text(key.clone()));
            }
            get.port
        }
        Check::Tcp { port } | Check::Grpc { port, .. } => *port,
    };
    if port == 0 { Err(Invalid::Port(key.clone())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef";

    #[test]
    fn only_the_whole_key_opens() {
        let key = PageKey::parse(KEY).unwrap();
        assert!(key.opens(KEY.as_bytes()));
        for offered in ["", "0", "0123456789abcdeg", "0123456789abcdef0", "0123456789ABCDEF"] {
            assert!(!key.opens(offered.as_bytes()), "{offered}");
        }
        assert!(!format!("{key:?}").contains(KEY));
        for text in ["", "0123456789abcde", "0123456789abcde\n", &"0".repeat(65)] {
            assert_eq!(PageKey::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_table_reads_as_it_was_written() {
        let mut table = Table::new(PageKey::parse(KEY).unwrap());
        let http = HttpGet {
            port: 8080,
            path: "/healthz?full=$(HOME)".into(),
            tls: true,
            headers: vec![("Host".into(), "web.example".into())],
        };
        for (moment, check) in [
            (Moment::Liveness, Check::Http(http)),
            (Moment::Readiness, Check::Tcp { port: 5432 }),
            (Moment::Startup, Check::Grpc { port: 9000, service: "shop.Cart".into() }),
        ] {
            table.insert(Key::new("web", moment), Declared { timeout_ms: 900, check });
        }
        let text = table.encode().unwrap();
        assert!(!text.contains('$'), "{text}");
        assert_eq!(Table::parse(&text), Ok(table), "{text}");
    }

    #[test]
    fn pages_and_keys_are_the_same_thing() {
        for moment in Moment::ALL {
            let key = Key::new("web-1", moment);
            assert_eq!(Key::from_path(&key.path()), Some(key));
        }
        for path in ["/probe/web", "/probe/web/alive", "/probe/../liveness", "/web/liveness", "/"] {
            assert_eq!(Key::from_path(path), None, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_performed_is_refused_by_name() {
        let table = |checks: String| format!(r#"{{"key":"{KEY}","checks":{{{checks}}}}}"#);
        let tcp = |port: u32, ms: u32| {
            table(format!(
                r#""web/liveness":{{"timeoutMs":{ms},"check":{{"tcp":{{"port":{port}}}}}}}"#
            ))
        };
        let http = |path: &str| {
            table(format!(
                r#""web/preStop":{{"timeoutMs":1,"check":{{"http":{{"port":1,"path":"{path}"}}}}}}"#
            ))
        };
        for (text, wants) in [
            (tcp(80, 1), ""),
            (tcp(0, 1), "port from 1"),
            (tcp(65_536, 1), "not a table"),
            (tcp(80, 0), "timeout from 1 ms"),
            (tcp(80, 3_600_001), "timeout from 1 ms"),
            (tcp(80, 1).replace("liveness", "alive"), "does not name a check"),
            (tcp(80, 1).replace("tcp", "udp"), "not a table"),
            (tcp(80, 1).replace("\"port\"", "\"prot\""), "not a table"),
            (tcp(80, 1).replace(KEY, "short"), "key: write 16 to 64"),
            (http("/a"), ""),
            (http("a"), "cannot be written"),
            (http("/a b"), "cannot be written"),
            (" ".repeat(MAX_BYTES + 1), "bytes; at most"),
        ] {
            let message = Table::parse(&text).err().map(|error| error.to_string());
            let message = message.unwrap_or_default();
            assert_eq!(message.is_empty(), wants.is_empty(), "{text}: {message}");
            assert!(message.contains(wants), "{text}: {message}");
        }
    }
}
