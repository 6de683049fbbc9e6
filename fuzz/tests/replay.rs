//! Every input that was ever kept, and some thousand new ones that are the same in every run.

use std::path::Path;

use heddle_fuzz::{Campaign, TARGETS, read_corpus};

const STEPS: u32 = 20_000;

#[test]
fn nothing_is_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in TARGETS {
        let corpus = read_corpus(&root.join(target.name)).unwrap();
        let mut campaign = Campaign::new(target, corpus, 1)
            .unwrap_or_else(|finding| panic!("{}: {finding:?}", target.name));
        for _ in 0..STEPS {
            if let Err(finding) = campaign.step() {
                panic!("{}: {finding:?}", target.name);
            }
        }
        assert!(campaign.outcomes() >= 2, "{}: every input has the same outcome", target.name);
    }
}

#[test]
fn every_corpus_belongs_to_a_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for entry in std::fs::read_dir(root).into_iter().flatten() {
        let name = entry.unwrap().file_name();
        assert!(TARGETS.iter().any(|target| name == target.name), "{name:?} is no target");
    }
}
