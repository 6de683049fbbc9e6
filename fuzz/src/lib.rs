//! Hostile bytes for everything that reads bytes from strangers: targets, and what changes inputs.
//!
//! A target panics when something is wrong with an input, and otherwise says in a few words what
//! became of it. An input with a new outcome is worth changing further: that is the only guidance,
//! so no instrumented build is needed and the corpus is replayed by any toolchain.

mod mutate;
mod targets;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, SystemTime};

pub use mutate::Mutator;
pub use targets::{TARGETS, Target};

/// Longer for one input is a finding, too: an unoptimised build needs a thousandth of it.
const TOO_LONG: Duration = Duration::from_secs(2);
/// Inputs that are kept for changing.
const POOL_LIMIT: usize = 4096;
/// Inputs with the same outcome, of which the shorter are kept.
const PER_OUTCOME: usize = 8;

/// An input that a target panicked on.
#[derive(Debug)]
pub struct Finding {
    pub input: Vec<u8>,
    pub message: String,
}

/// One target under test, with the inputs found worth changing so far.
pub struct Campaign {
    target: &'static Target,
    mutator: Mutator,
    pool: Vec<Vec<u8>>,
    outcomes: HashMap<String, usize>,
    /// Inputs tried.
    pub tried: u64,
}

impl Campaign {
    /// Starts from the target's own seeds and from `corpus`.
    ///
    /// # Errors
    /// The first input that is a finding as it stands.
    pub fn new(
        target: &'static Target,
        corpus: Vec<Vec<u8>>,
        seed: u64,
    ) -> Result<Self, Box<Finding>> {
        let mutator = Mutator::new(seed, target.words);
        let mut campaign =
            Self { target, mutator, pool: Vec::new(), outcomes: HashMap::new(), tried: 0 };
        let own = (target.seeds)();
        for input in corpus.into_iter().chain(own).chain([Vec::new()]) {
            campaign.feed(input)?;
        }
        Ok(campaign)
    }

    /// Changes one input and tries it.
    ///
    /// # Errors
    /// It is a finding.
    pub fn step(&mut self) -> Result<(), Box<Finding>> {
        let input = self.mutator.change(&self.pool);
        self.feed(input)
    }

    /// How many outcomes were told apart.
    #[must_use]
    pub fn outcomes(&self) -> usize {
        self.outcomes.len()
    }

    fn feed(&mut self, input: Vec<u8>) -> Result<(), Box<Finding>> {
        self.tried += 1;
        let outcome = try_input(self.target, &input)
            .map_err(|message| Box::new(Finding { input: input.clone(), message }))?;
        let seen = self.outcomes.entry(outcome).or_default();
        *seen += 1;
        if *seen <= PER_OUTCOME && self.pool.len() < POOL_LIMIT {
            self.pool.push(input);
        }
        Ok(())
    }
}

/// What becomes of one input, or what is wrong with that.
fn try_input(target: &Target, input: &[u8]) -> Result<String, String> {
    let begun = SystemTime::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let outcome = outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without a message".to_owned())
    })?;
    match begun.elapsed() {
        Ok(taken) if taken > TOO_LONG => Err(format!("takes {taken:?}")),
        Ok(_) | Err(_) => Ok(outcome),
    }
}

/// The inputs kept for a target in `folder`, each once.
///
/// # Errors
/// The folder cannot be read; that it is not there is none.
pub fn read_corpus(folder: &Path) -> io::Result<Vec<Vec<u8>>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut inputs = HashSet::new();
    for entry in entries {
        inputs.insert(fs::read(entry?.path())?);
    }
    let mut inputs: Vec<_> = inputs.into_iter().collect();
    inputs.sort();
    Ok(inputs)
}

#[test]
fn a_panic_is_a_finding() {
    let words: &[&[u8]] = &[];
    let run = |input: &[u8]| {
        assert!(input.len() < 40, "too long for this target");
        format!("{} bytes", input.len() / 8)
    };
    let target = Box::leak(Box::new(Target { name: "test", run, seeds: Vec::new, words }));
    let mut campaign = Campaign::new(target, vec![vec![b'x'; 8]], 1).unwrap();
    let finding = (0..100_000).find_map(|_| campaign.step().err()).expect("it is found");
    assert!(finding.input.len() >= 40 && finding.message.contains("too long"), "{finding:?}");
    assert!(Campaign::new(target, vec![vec![0; 50]], 1).is_err());
}
