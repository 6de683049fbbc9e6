//! Runs the `nft` program and puts its complaints into our words.

use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

use crate::error::Error;
use crate::ruleset::TABLE;

/// Hands a transaction to the kernel: all of it takes effect, or nothing.
pub(crate) fn apply(transaction: &str) -> Result<(), Error> {
    let output = run(&["-f", "-"], transaction)?;
    if output.status.success() { Ok(()) } else { Err(explain(&output)) }
}

/// The table as the kernel has it, as `nft`'s JSON.
pub(crate) fn list() -> Result<String, Error> {
    let mut arguments = vec!["-j", "list", "table"];
    arguments.extend(TABLE.split(' '));
    let output = run(&arguments, "")?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let error = explain(&output);
    let is_absent = matches!(&error, Error::Refused(text) if text.contains("No such file"));
    Err(if is_absent { Error::Absent } else { error })
}

fn run(arguments: &[&str], input: &str) -> Result<Output, Error> {
    let spawned = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NftMissing),
        Err(error) => return Err(Error::Nft(error)),
    };
    let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
    // When it ends before it has read everything, its complaint says why.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().map_err(Error::Nft)
}

fn explain(output: &Output) -> Error {
    explain_text(&String::from_utf8_lossy(&output.stderr))
}

fn explain_text(stderr: &str) -> Error {
    // The lines after the first repeat the rule and point into it.
    let text = stderr.trim().lines().take(3).collect::<Vec<_>>().join(" ");
    if text.contains("Operation not permitted") || text.contains("you must be root") {
        return Error::NotPermitted;
    }
    // A missing module shows as an unknown chain type or expression: ENOENT or EOPNOTSUPP for
    // something that was just being added.
    let adding = text.contains("Could not process rule");
    if text.contains("not supported") || (adding && text.contains("No such file")) {
        return Error::NoNat(text);
    }
    Error::Refused(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_apart() {
        type Is = fn(&Error) -> bool;
        let permission: Is = |error| matches!(error, Error::NotPermitted);
        let nat: Is = |error| matches!(error, Error::NoNat(_));
        let refused: Is = |error| matches!(error, Error::Refused(_));
        for (text, want) in [
            ("netlink: Error: cache initialization failed: Operation not permitted", permission),
            ("Operation not permitted (you must be root)\n", permission),
            ("Error: Could not process rule: Operation not supported\n\tchain output {", nat),
            ("Error: Could not process rule: No such file or directory", nat),
            ("/dev/stdin:1:1-2: Error: syntax error, unexpected foo", refused),
            ("Error: No such file or directory\nlist table inet heddle", refused),
        ] {
            assert!(want(&explain_text(text)), "{text}");
        }
    }
}
