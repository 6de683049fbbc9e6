//! What a program has written and how it ended.

use std::process::{ExitStatus, Output};

use anyhow::{Context as _, ensure};
use serde::de::DeserializeOwned;

/// A program that has ended.
#[derive(Debug)]
pub struct Ran {
    pub out: String,
    pub err: String,
    pub status: ExitStatus,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { out: text(output.stdout), err: text(output.stderr), status: output.status }
    }
}

impl Ran {
    /// Its output, when it succeeded.
    ///
    /// # Errors
    /// How it failed, and the end of what it wrote.
    pub fn ok(self) -> anyhow::Result<Self> {
        ensure!(self.status.success(), "{}\n{}", self.status, self.excerpt());
        Ok(self)
    }

    /// What it wrote, as JSON.
    ///
    /// # Errors
    /// It failed, or wrote something else.
    pub fn json<T: DeserializeOwned>(self) -> anyhow::Result<T> {
        let this = self.ok()?;
        serde_json::from_str(&this.out).with_context(|| this.excerpt())
    }

    /// Both outputs, bounded.
    #[must_use]
    pub fn excerpt(&self) -> String {
        format!("stdout: {}\nstderr: {}", tail(&self.out), tail(&self.err))
    }

    /// Fails unless the output holds `text`.
    ///
    /// # Errors
    /// What it holds instead.
    pub fn expect_out(self, text: &str) -> anyhow::Result<Self> {
        let this = self.ok()?;
        ensure!(this.out.contains(text), "no {text:?} in\n{}", this.excerpt());
        Ok(this)
    }

    /// Fails unless the error output, where programs write what they do, holds `text`.
    ///
    /// # Errors
    /// What it holds instead.
    pub fn expect_err(self, text: &str) -> anyhow::Result<Self> {
        ensure!(self.err.contains(text), "no {text:?} in\n{}", self.excerpt());
        Ok(self)
    }
}

/// The last lines.
pub(super) fn tail(text: &str) -> &str {
    const LENGTH: usize = 3000;
    let mut start = text.len().saturating_sub(LENGTH);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}
