//! The HTTP/2 conformance suite `h2spec`, every case and strict, against both listeners of the
//! proxy: outbound as a meshed client meets it, inbound as a client from outside does.

use anyhow::{Context as _, ensure};
use heddle_tests::lab::Options;
use heddle_tests::real::{Program, Side, Stage, Suite, require, sides};

/// Cases of the suite. Fewer would mean that some were not run.
const CASES: u32 = 146;

/// Answered only after this many milliseconds: a server that answers a request before it has ended
/// resets the stream itself (RFC 9113, 8.1), and must ignore what the client sends on it then (5.1),
/// where the suite waits for an error.
const PATH: &str = "/delay?ms=30";

#[test]
fn both_listeners_conform_to_http2() {
    require(&[Program::Built("h2spec")]).unwrap();
    let manifests = sides(include_str!("../data/real/h2spec.yaml"));
    let stage = Stage::up(&manifests, Options::default()).unwrap();
    let mut suite = Suite::default();
    // The server of the control speaks HTTP/1 as well, so what is no HTTP/2 is no error to it.
    suite.on(&stage, "h2spec generic", &[Side::PLAIN], |stage, side| {
        let (out, passed) = h2spec(stage, side, &["generic"])?;
        ensure!(passed > 20 && !out.contains("Failures:"), "{out}");
        Ok(())
    });
    suite.on(&stage, "h2spec", &[Side::MESHED, Side::PERMISSIVE], |stage, side| {
        let (out, passed) = h2spec(stage, side, &["--strict"])?;
        ensure!(passed == CASES, "{passed} of {CASES} passed\n{out}");
        Ok(())
    });
    suite.finish();
}

/// What it says, and how many cases passed.
fn h2spec(stage: &Stage, side: &Side, args: &[&str]) -> anyhow::Result<(String, u32)> {
    let host = side.host("web");
    let mut argv = vec!["h2spec", "-h", &host, "-p", "8080", "-P", PATH, "--timeout", "3"];
    argv.extend(args);
    let out = stage.run(&side.client("client"), &argv)?.out;
    let summary = out.lines().rev().find(|line| line.contains(" tests, "));
    let summary = summary.with_context(|| format!("no summary in {out}"))?;
    let passed = summary.split(", ").find_map(|part| part.strip_suffix(" passed"));
    let passed = passed.context("no number of passed cases")?.parse()?;
    Ok((out, passed))
}
