//! Why the control plane cannot start or cannot do what it was asked. What a proxy is told over
//! gRPC is decided where it is refused; what an object's author is told is an [`Issue`].
//!
//! [`Issue`]: crate::catalog::Issue

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A failure an operator can act on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    #[error("cannot {what} {}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{} has mode {mode:04o} and others could use it; run: chmod {wanted:o} {}",
        path.display(), path.display()
    )]
    Mode { path: PathBuf, mode: u32, wanted: u32 },
    #[error("{}: {problem}", path.display())]
    Content { path: PathBuf, problem: String },
    #[error("cannot listen on {address} for {purpose}")]
    Listen { purpose: &'static str, address: SocketAddr, source: io::Error },
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    #[error("cannot {what}")]
    Api { what: String, source: Box<kube::Error> },
    #[error("cannot register a metric")]
    Metric(#[from] prometheus::Error),
    #[error("the issuing certificate has expired; replace it")]
    IssuerExpired,
}

impl Error {
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { what, path: path.to_owned(), source }
    }

    pub(crate) fn api(what: impl Into<String>, source: kube::Error) -> Self {
        Self::Api { what: what.into(), source: Box::new(source) }
    }

    pub(crate) fn content(path: &Path, problem: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), problem: problem.into() }
    }
}

/// An error and all its causes on one line, for the log.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
