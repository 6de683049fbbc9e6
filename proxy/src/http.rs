//! One HTTP request: match → authorize → pick → send → record.

pub mod retry;
