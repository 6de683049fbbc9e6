//! Sets up logging, once per process, on standard error; standard output belongs to answers.

use std::str::FromStr;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Plain,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "plain" => Ok(Self::Plain),
            other => Err(format!("log format is \"{other}\"; write \"json\" or \"plain\"")),
        }
    }
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "log filter is \"{filter}\"; write for instance \"info\" or \"warn,heddle_proxy=debug\""
    )]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("a logger is already installed in this process")]
    Installed(#[from] TryInitError),
    #[error("the logger has gone")]
    Gone(#[from] reload::Error),
}

/// Changes what is logged while the process runs.
#[derive(Debug, Clone)]
pub struct LevelHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LevelHandle {
    /// Replaces the filter; an unreadable one changes nothing.
    ///
    /// # Errors
    /// When `filter` does not parse.
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        self.filter.reload(parse_filter(filter)?)?;
        Ok(())
    }

    /// The filter in force.
    #[must_use]
    pub fn current(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }
}

/// Installs the process's logger.
///
/// # Errors
/// When `filter` does not parse or a logger is installed already.
pub fn init(format: Format, filter: &str) -> Result<LevelHandle, Error> {
    let (filter, handle) = reload::Layer::new(parse_filter(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr))
            .try_init()?,
        Format::Plain => {
            registry.with(fmt::layer().with_ansi(false).with_writer(std::io::stderr)).try_init()?;
        }
    }
    Ok(LevelHandle { filter: handle })
}

fn parse_filter(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(filter).map_err(|source| Error::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_changes_while_running_and_nonsense_is_refused() {
        let handle = init(Format::Json, "warn").unwrap();
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        handle.set("debug").unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        let error = handle.set("heddle=loud").unwrap_err();
        assert!(error.to_string().contains("heddle=loud"), "{error}");
        assert_eq!(handle.current(), "debug");
        assert!(matches!(init(Format::Plain, "info"), Err(Error::Installed(_))));
    }

    #[test]
    fn formats() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!("plain".parse(), Ok(Format::Plain));
        assert!("xml".parse::<Format>().unwrap_err().contains("xml"));
    }
}
