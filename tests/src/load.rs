//! A load client that tells the truth: every request has its own id, is sent once, is timed from
//! the moment it was due, and its answer is checked. It never retries.
//!
//! It prints one line of JSON per 100 ms and writes one line per request to a file, so that what
//! happened around any instant can be worked out afterwards, by whoever knows what that instant
//! was. It does not know about phases, faults or splits.

mod client;
mod record;
mod run;

use std::path::PathBuf;

pub use client::{Connection, Target};
pub use record::{Bucket, Outcome, Record, parse_records};
pub use run::{Summary, run};

/// How often a [`Bucket`] is printed.
pub const BUCKET_MS: u64 = 100;

/// What to send, how fast, for how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Plain `http://host[:port]/path`.
    pub url: Target,
    /// Requests per second, sent when they are due whether or not answers are late; 0 sends the
    /// next request of a connection when its last is answered.
    #[arg(long, default_value_t = 0)]
    pub rate: u32,
    /// Keep-alive connections; also the most requests that can be in flight.
    #[arg(long, default_value_t = 16)]
    pub connections: u32,
    /// Stop after so many milliseconds; 0 goes on until standard input closes.
    #[arg(long, default_value_t = 0)]
    pub duration_ms: u64,
    /// Percentage of requests that are POSTs with a body.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub post_percent: u8,
    /// Length of those bodies.
    #[arg(long, default_value_t = 512)]
    pub body_bytes: usize,
    /// When a request counts as failed.
    #[arg(long, default_value_t = 10_000)]
    pub timeout_ms: u64,
    /// A text to carry in a header and in every body, for whoever watches the wire.
    #[arg(long, default_value = "")]
    pub marker: String,
    /// Where to write one line per request; `-` is standard output, between the other lines.
    #[arg(long)]
    pub records: Option<PathBuf>,
}
