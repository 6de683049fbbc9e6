//! `heddle-fuzz`: runs targets for a while each, and keeps the input of a finding.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::Parser;
use heddle_fuzz::{Campaign, Finding, TARGETS, Target, read_corpus};

/// Feeds hostile bytes to everything that reads bytes from strangers.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which targets. Default: all.
    targets: Vec<String>,
    /// How long each is run.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The same changes for the same number. Default: another each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Inputs to begin with, in a folder for each target; findings are added to it.
    #[arg(long, default_value = "fuzz/corpus")]
    corpus: PathBuf,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    if let Some(unknown) = arguments.targets.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("{unknown:?} is not a target; write one of {}", names.join(", "));
    }
    let chosen = TARGETS.iter().filter(|target| {
        arguments.targets.is_empty() || arguments.targets.iter().any(|name| name == target.name)
    });
    let mut code = ExitCode::SUCCESS;
    for target in chosen {
        if let Err(finding) = run(target, &arguments)? {
            keep(target, &arguments, &finding)?;
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

fn run(target: &'static Target, arguments: &Arguments) -> anyhow::Result<Result<(), Box<Finding>>> {
    let folder = arguments.corpus.join(target.name);
    let corpus = read_corpus(&folder).with_context(|| format!("read {}", folder.display()))?;
    let begun = SystemTime::now();
    let clock = begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = arguments.seed.unwrap_or(clock.as_secs());
    let mut campaign = match Campaign::new(target, corpus, seed) {
        Ok(campaign) => campaign,
        Err(finding) => return Ok(Err(finding)),
    };
    // A clock that is set back must not make the run endless, nor one that is set forward fail it.
    while begun.elapsed().is_ok_and(|passed| passed < Duration::from_secs(arguments.seconds)) {
        for _ in 0..100 {
            if let Err(finding) = campaign.step() {
                return Ok(Err(finding));
            }
        }
    }
    let (tried, outcomes) = (campaign.tried, campaign.outcomes());
    eprintln!("{:<16} {tried:>10} inputs, {outcomes:>4} outcomes, seed {seed}", target.name);
    Ok(Ok(()))
}

fn keep(target: &Target, arguments: &Arguments, finding: &Finding) -> anyhow::Result<()> {
    let folder = arguments.corpus.join(target.name);
    std::fs::create_dir_all(&folder)?;
    let checksum = finding.input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = folder.join(format!("{checksum:016x}"));
    std::fs::write(&path, &finding.input)?;
    eprintln!("{:<16} FINDING: {}\n  kept as {}", target.name, finding.message, path.display());
    Ok(())
}
