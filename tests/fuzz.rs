//! The laws of fuzz/laws.rs without a fuzzer: on the corpus, and on changes of it that are the same each time.
//! `cargo fuzz` looks further, but needs a nightly toolchain.

use std::fs;
use std::path::Path;

use fastrand::Rng;

#[path = "../fuzz/laws.rs"]
mod laws;

/// Changed inputs of each seed.
const CHANGES: u32 = 200;

/// Some bytes flipped, cut out, doubled, or taken from another seed.
fn changed(seed: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.u32(1..8) {
        let at = rng.usize(..=bytes.len());
        let end = (at + rng.usize(..32)).min(bytes.len());
        match rng.u32(..5) {
            0 => drop(bytes.drain(at..end)),
            1 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            2 => bytes.insert(at, rng.u8(..)),
            3 => {
                let from = rng.usize(..=other.len());
                let to = (from + rng.usize(..32)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ => bytes[at..end].iter_mut().take(1).for_each(|byte| *byte ^= 1 << rng.u32(..8)),
        }
    }
    bytes
}

#[test]
fn every_law_holds_for_the_corpus_and_what_is_made_of_it() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, law) in laws::LAWS {
        let folder = fs::read_dir(corpus.join(name)).unwrap_or_else(|e| panic!("the corpus of {name}: {e}"));
        let mut files: Vec<_> = folder.map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("a seed")).collect();
        assert!(seeds.len() >= 3, "{name} has only {} seeds", seeds.len());
        let mut rng = Rng::with_seed(1);
        for seed in &seeds {
            law(seed);
            for _ in 0..CHANGES {
                let other = rng.choice(&seeds).expect("a seed");
                let input = changed(seed, other, &mut rng);
                let held = std::panic::catch_unwind(|| law(&input));
                assert!(held.is_ok(), "{name} does not hold for {:?}", input.escape_ascii().to_string());
            }
        }
    }
}

#[test]
fn each_law_is_a_fuzz_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("the manifest");
    for (name, _) in laws::LAWS {
        let target = fs::read_to_string(folder.join(format!("fuzz_targets/{name}.rs"))).expect("a target");
        assert!(target.contains(&format!("fuzz_target!(|data: &[u8]| laws::{name}(data));")), "{target}");
        let declared = format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"");
        assert!(manifest.contains(&declared), "{name} is no target of fuzz/Cargo.toml");
    }
}
