//! Faults in sequence over one lab: each named, all run whatever became of the others.

use tokio::time::Instant;

use super::World;

/// Runs cases and keeps what failed.
#[derive(Debug, Default)]
pub struct Cases {
    ran: u32,
    failures: Vec<String>,
}

impl Cases {
    /// One case. `HEDDLE_TEST_CASES=a,b` runs only those whose names hold one of the words.
    pub fn run(
        &mut self,
        world: &World,
        name: &str,
        case: impl FnOnce(&World) -> anyhow::Result<()>,
    ) {
        if !is_wanted(name) {
            return;
        }
        let begun = Instant::now();
        // Each begins with a mesh that is whole, also when the one before left it broken.
        let outcome = world.mend().and_then(|()| case(world));
        self.ran += 1;
        let seconds = begun.elapsed().as_secs_f32();
        let Err(error) = outcome else {
            eprintln!("{name}: ok, {seconds:.1} s");
            return;
        };
        let text = format!("{name} after {seconds:.1} s: {error:#}\n{}", world.last_words());
        eprintln!("{text}");
        self.failures.push(text);
    }

    /// Fails when a case did.
    ///
    /// # Panics
    /// With every failure, one after the other.
    pub fn finish(self) {
        let Self { ran, failures } = self;
        eprintln!("{ran} cases, {} failed", failures.len());
        assert!(failures.is_empty(), "{} of {ran}:\n{}", failures.len(), failures.join("\n\n"));
    }
}

fn is_wanted(name: &str) -> bool {
    let Some(words) = std::env::var_os("HEDDLE_TEST_CASES") else { return true };
    words.to_string_lossy().split(',').any(|word| name.contains(word))
}
