//! Every file of the fuzzers' corpora, through its target once: what fuzzing found stays found.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "fuzz/src/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

#[test]
fn no_target_stumbles_over_its_corpus() {
    for (name, target) in targets::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 4 && files.len() <= 60, "{name} has {} files", files.len());
        let size: u64 = files.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
        assert!(size <= 200_000, "{name} has {size} bytes");
        for file in files {
            let data = fs::read(&file).unwrap();
            if std::panic::catch_unwind(|| target(&data)).is_err() {
                panic!("{name} stumbles over {}", file.display());
            }
        }
    }
}
