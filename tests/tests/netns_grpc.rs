//! gRPC between grpcio clients and servers: all four kinds, deadlines, cancellation, errors, many
//! streams, and balancing per request over one connection of the client.

use std::collections::BTreeMap;

use anyhow::ensure;
use heddle_tests::lab::Options;
use heddle_tests::real::{Program, Ran, Side, Stage, Suite, require, sides};

#[test]
fn grpc_speaks_through_the_mesh() {
    require(&[Program::Python("grpc")]).unwrap();
    let manifests = sides(include_str!("../data/real/grpc.yaml"));
    let stage = Stage::up(&manifests, Options::default()).unwrap();
    let mut suite = Suite::default();
    // First: a server that was slow a moment ago is asked less, and later cases are slow on purpose.
    suite.on(&stage, "balancing per request", &[Side::MESHED], balance);
    for service in ["greeter", "declared"] {
        suite.all(&stage, &format!("all kinds on {service}"), |stage, side| {
            call(stage, side, service, "all_kinds").map(drop)
        });
    }
    for case in ["bidi", "large", "deadline", "cancellation", "errors", "parallel"] {
        suite.all(&stage, case, |stage, side| call(stage, side, "one", case).map(drop));
    }
    suite.both(&stage, "metadata and identity", metadata);
    suite.finish();
}

fn call(stage: &Stage, side: &Side, service: &str, case: &str) -> anyhow::Result<Ran> {
    let target = format!("{}:9090", side.host(service));
    stage.python(&side.client("client"), "grpc_client.py", &[&target, case])?.ok()
}

fn balance(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let shares: BTreeMap<String, u32> = call(stage, side, "greeter", "balance")?.json()?;
    ensure!(shares.values().sum::<u32>() == 400, "{shares:?}");
    ensure!(shares.len() == 2 && shares.values().all(|share| *share >= 80), "{shares:?}");
    Ok(())
}

fn metadata(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let ran = call(stage, side, "greeter", "metadata")?.expect_out("x-plain=value")?;
    ensure!(ran.out.contains(r"x-raw-bin=b'\x00\x01'"), "{}", ran.out);
    let own = "heddle-client-id=spiffe://cluster.local/ns/meshed/sa/client";
    ensure!(ran.out.contains(own) == side.is_meshed(), "{}", ran.out);
    ensure!(ran.out.contains("forged") != side.is_meshed(), "{}", ran.out);
    Ok(())
}
