//! The laws of files and manifests: where `unsafe` may stand, how long a file may be, who depends on what.

use std::fs;
use std::path::Path;

use mesh_proto::dataplane::verdict::{Drop, Refuse};

use crate::workspace::{all_sources, files, members, read, root, sources};

/// The longest file, in lines.
const LONGEST: usize = 800;
/// Longer files, and why.
const LONG: [(&str, &str); 0] = [];
/// The only files that may hold `unsafe`: the hands, and the test that is the allocator.
const UNSAFE: [&str; 4] =
    ["meshd/src/io/tun.rs", "meshd/src/io/udp.rs", "meshd/src/linux/memory.rs", "meshd/tests/allocation.rs"];
/// The way of a packet: no lock may stand in what begins with one of these.
const PACKET_PATH: [&str; 6] = [
    "proto/src/",
    "meshd/src/io/",
    "meshd/src/wireguard/",
    "meshd/src/dataplane/lane/",
    "meshd/src/dataplane/worker/",
    "meshd/src/dataplane/handover.rs",
];
/// Files among them that hold a lock, and when it is taken.
const LOCKED: [(&str, &str); 1] =
    [("meshd/src/wireguard/peers.rs", "a peer's endpoint, when it moves and per handshake")];
/// What waits for other threads.
const LOCKS: [&str; 9] =
    ["Mutex", "RwLock", ".lock(", "Condvar", "Barrier", "mpsc", "OnceLock", "LazyLock", "block_on"];
/// What empties a file, or writes over it.
const EMPTIES: [&str; 5] = ["truncate(true)", "File::create(", "fs::write(", "fs::copy(", ".set_len("];
/// Files that do so, by which word, and why it is never the only copy of something.
const EMPTIED: [(&str, &str, &str); 6] = [
    ("coordinator/src/base/noted_epoch.rs", "fs::write(", "a draft, which takes the note's place when it is whole"),
    ("coordinator/src/cli/restore.rs", "fs::copy(", "a copy of a backup, to be read"),
    ("coordinator/src/core/shared_store.rs", "fs::write(", "a draft, which takes the note's place when it is whole"),
    ("coordinator/src/store/disk.rs", ".set_len(", "how long its file is the database's own business"),
    ("coordinator/src/store/journal.rs", ".set_len(", "a torn last line, which was never acknowledged"),
    ("coordinator/src/store/reserve.rs", ".set_len(", "space, and nothing in it"),
];
/// What a crate never depends on, directly.
const NEVER: [(&str, &[&str]); 4] = [
    ("proto", &["tokio", "boringtun", "tun", "rustix", "nix", "libc", "rand", "getrandom", "x25519-dalek", "tracing"]),
    ("host", &["meshd", "coordinator", "mesh-tests", "boringtun", "tun", "rtnetlink", "redb"]),
    ("meshd", &["coordinator", "mesh-tests", "redb"]),
    ("coordinator", &["meshd", "mesh-tests", "boringtun", "tun", "rtnetlink", "x25519-dalek"]),
];

#[test]
fn unsafe_stands_in_few_files_and_each_block_says_why_it_is_sound() {
    let mut wrong = Vec::new();
    for file in all_sources() {
        let text = read(&file);
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if !is_unsafe(code) {
                continue;
            }
            let reason =
                lines[..number].iter().rev().take(6).any(|l| l.contains("SAFETY:")) || line.contains("SAFETY:");
            if !UNSAFE.contains(&file.as_str()) {
                wrong.push(format!("{file}:{}: unsafe outside {UNSAFE:?}", number + 1));
            } else if !reason {
                wrong.push(format!("{file}:{}: unsafe without // SAFETY:", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for pure in ["proto", "host", "coordinator"] {
        assert!(read(&format!("{pure}/src/lib.rs")).contains("#![forbid(unsafe_code)]"), "{pure} does not forbid it");
    }
}

#[test]
fn no_lock_stands_in_the_way_of_packets() {
    let files: Vec<String> = all_sources().into_iter().filter(|file| !is_test_file(file)).collect();
    let mut wrong = Vec::new();
    for folder in PACKET_PATH {
        let inside: Vec<&String> = files.iter().filter(|file| file.starts_with(folder)).collect();
        if inside.is_empty() {
            wrong.push(format!("{folder} is no place any more: correct PACKET_PATH"));
        }
        for file in inside {
            let code = shipped(&read(file));
            let found: Vec<&str> = LOCKS.into_iter().filter(|lock| code.contains(*lock)).collect();
            let excused = LOCKED.iter().any(|(name, _)| name == file);
            if excused && found.is_empty() {
                wrong.push(format!("{file} holds no lock: it needs no place in LOCKED"));
            } else if !excused && !found.is_empty() {
                wrong.push(format!("{file}: {} in the way of packets; hand it over by a value", found.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_that_may_be_the_only_copy_is_emptied() {
    let mut found = Vec::new();
    for file in all_sources().into_iter().filter(|file| !is_test_file(file)) {
        let code = shipped(&read(&file));
        found.extend(EMPTIES.iter().filter(|word| code.contains(**word)).map(|word| (file.clone(), *word)));
    }
    let is_excused = |(file, word): &(String, &str)| EMPTIED.iter().any(|(known, by, _)| known == file && by == word);
    let mut wrong: Vec<String> = found
        .iter()
        .filter(|place| !is_excused(place))
        .map(|(file, word)| format!("{file}: {word}: set the file aside, or write a new one and rename it"))
        .collect();
    let idle = EMPTIED.iter().filter(|(file, word, _)| !found.contains(&((*file).to_owned(), *word)));
    wrong.extend(idle.map(|(file, word, _)| format!("{file} has no {word}: it needs no place in EMPTIED")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_map_reaches_the_data_path_unchecked() {
    let mut wrong = Vec::new();
    for file in ["proto/src", "meshd/src"].iter().flat_map(|dir| sources(dir)).filter(|file| !is_test_file(file)) {
        for line in shipped(&read(&file)).lines().filter(|line| line.contains("by_hand(")) {
            // Where it is made, and the map of a node that knows nobody.
            if !line.contains("pub fn by_hand(") && !line.contains("by_hand(empty(") {
                wrong.push(format!("{file}: {}", line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "maps that nobody verified: {}", wrong.join("\n"));
}

#[test]
fn every_crate_takes_lints_and_versions_from_the_workspace() {
    for member in members() {
        let manifest = read(&format!("{member}/Cargo.toml"));
        assert!(manifest.contains("[lints]\nworkspace = true"), "{member} has lints of its own");
        for line in dependencies(&manifest) {
            let shared = line.contains(".workspace = true") || line.contains("workspace = true");
            assert!(shared, "{member}/Cargo.toml: `{line}` has a version of its own");
        }
    }
}

#[test]
fn the_crates_know_only_what_they_may() {
    let mut wrong = Vec::new();
    for (member, never) in NEVER {
        for line in dependencies(&read(&format!("{member}/Cargo.toml"))) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or("");
            if never.contains(&name) {
                wrong.push(format!("{member} depends on {name}"));
            }
        }
    }
    let manifests = members().into_iter().map(|member| format!("{member}/Cargo.toml"));
    for manifest in manifests.chain(["Cargo.toml".to_owned()]) {
        if read(&manifest).contains("mock-instant") {
            wrong.push(format!("{manifest} gives WireGuard a mock clock; that is for tests/outage alone"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_is_too_long_to_be_read_at_once() {
    let mut wrong = Vec::new();
    for file in all_sources() {
        let lines = read(&file).lines().count();
        let excused = LONG.iter().any(|(name, _)| *name == file);
        if lines > LONGEST && !excused {
            wrong.push(format!("{file} has {lines} lines; divide it, or say in LONG why not"));
        }
        if lines <= LONGEST && excused {
            wrong.push(format!("{file} has {lines} lines: it needs no place in LONG"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_reason_for_losing_a_packet_is_shown_by_a_test() {
    let tests: String = all_sources().iter().map(|file| tested(file)).collect();
    let refused = Refuse::ALL.iter().map(|r| (format!("Refuse::{r:?}"), r.label()));
    let dropped = Drop::ALL.iter().map(|r| (format!("Drop::{r:?}"), r.label()));
    let missing: Vec<_> = refused
        .chain(dropped)
        .filter(|(name, label)| !whole_word(&tests, name) && !tests.contains(&format!("\"{label}\"")))
        .map(|(name, _)| name)
        .collect();
    assert!(missing.is_empty(), "no test shows {missing:?}");
}

#[test]
fn no_file_names_the_machine_it_was_written_on() {
    let marks = ["work/", "root/.", "home/"].map(|place| format!("/{place}"));
    let mut wrong = Vec::new();
    for file in files(&root(), &["rs", "toml", "md", "service", "yaml", "sh", "conf", ""]) {
        let Ok(text) = fs::read_to_string(root().join(&file)) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark.as_str())) {
                wrong.push(format!("{file}:{}: {line}", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Says whether a file is compiled for tests only: its parent says so.
fn is_test_file(file: &str) -> bool {
    if file.starts_with("tests/") || file.contains("/tests/") {
        return true;
    }
    let path = Path::new(file);
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("");
    let Some(dir) = path.parent() else {
        return false;
    };
    let parents = [dir.join("mod.rs"), dir.join("lib.rs"), dir.with_extension("rs")];
    parents.iter().filter_map(|p| fs::read_to_string(root().join(p)).ok()).any(|text| {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.windows(2).any(|pair| {
            pair[0].starts_with("#[cfg(test)]")
                && pair[1].ends_with(&format!("mod {stem};"))
                && !pair[1].starts_with("//")
        })
    })
}

/// Returns what of a file ships: without comments, and up to its inline tests.
fn shipped(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or("");
    code.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// Returns what of a file is a test.
fn tested(file: &str) -> String {
    let text = read(file);
    if is_test_file(file) {
        return if file.starts_with("tests/tidy/") { String::new() } else { text };
    }
    text.split_once("#[cfg(test)]\nmod ").map_or_else(String::new, |(_, tests)| tests.to_owned())
}

/// Returns the lines of all dependency tables.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if inside && line.contains('=') && !line.starts_with('#') {
            lines.push(line);
        }
    }
    lines
}

fn is_unsafe(code: &str) -> bool {
    // Put together here, so that this file passes its own law.
    ["{", "fn", "impl", "extern", "trait"].iter().any(|what| code.contains(&["unsafe", what].join(" ")))
}

fn whole_word(text: &str, word: &str) -> bool {
    text.match_indices(word)
        .any(|(at, _)| !text[at + word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}
