//! The laws of this repository that no compiler knows: which module may import which, where `unsafe` may stand,
//! how long a file may be, that every reason for losing a packet is shown by a test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use mesh_proto::dataplane::verdict::{Drop, Refuse};

/// The longest file, in lines.
const LONGEST: usize = 800;
/// Longer files, and why.
const LONG: [(&str, &str); 0] = [];
/// The only files that may hold `unsafe`: the hands, and the test that is the allocator.
const UNSAFE: [&str; 3] = ["meshd/src/tun.rs", "meshd/src/udp.rs", "meshd/tests/allocation.rs"];
/// The way of a packet through meshd, with all of proto: no lock may stand there.
const PACKET_PATH: [&str; 18] = [
    "cmsg.rs",
    "datagrams.rs",
    "detour.rs",
    "handover.rs",
    "lane.rs",
    "lane/train.rs",
    "packets.rs",
    "path.rs",
    "sessions.rs",
    "sessions/door.rs",
    "sessions/session.rs",
    "sessions/switch.rs",
    "sessions/timers.rs",
    "tun.rs",
    "tunnels.rs",
    "udp.rs",
    "worker.rs",
    "worker/alarm.rs",
];
/// What waits for other threads.
const LOCKS: [&str; 9] =
    ["Mutex", "RwLock", ".lock(", "Condvar", "Barrier", "mpsc", "OnceLock", "LazyLock", "block_on"];
/// What a crate never depends on, directly.
const NEVER: [(&str, &[&str]); 3] = [
    ("proto", &["tokio", "boringtun", "tun", "rustix", "nix", "libc", "rand", "getrandom", "x25519-dalek", "tracing"]),
    ("meshd", &["coordinator", "mesh-tests", "redb", "axum"]),
    ("coordinator", &["meshd", "mesh-tests", "boringtun", "tun", "rtnetlink", "x25519-dalek"]),
];

#[test]
fn a_module_of_the_brain_imports_lower_layers_only() {
    let lib = read("proto/src/lib.rs");
    let layers = layers(&lib);
    assert!(layers.len() > 10, "no layers found in proto/src/lib.rs: {layers:?}");

    let mut wrong = Vec::new();
    let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in sources("proto/src") {
        let module = module_of(&file);
        let Some((&module, &layer)) = layers.get_key_value(module.as_str()) else {
            continue;
        };
        for name in imported(&shipped(&read(&file))) {
            match layers.get_key_value(name.as_str()) {
                Some((_, &other)) if other > layer => {
                    wrong.push(format!("{file}: layer {layer} imports {name} of layer {other}"));
                }
                Some((&other, _)) if other != module => {
                    imports.entry(module).or_default().insert(other);
                }
                Some(_) | None => {}
            }
        }
    }
    wrong.extend(cycle(&imports).map(|path| format!("modules import each other: {}", path.join(" → "))));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

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
    assert!(read("proto/src/lib.rs").contains("#![forbid(unsafe_code)]"));
}

#[test]
fn no_lock_stands_in_the_way_of_packets() {
    let meshd = PACKET_PATH.map(|file| format!("meshd/src/{file}"));
    let mut wrong = Vec::new();
    for file in sources("proto/src").into_iter().filter(|file| !is_test_file(file)).chain(meshd) {
        let code = shipped(&read(&file));
        wrong.extend(LOCKS.iter().filter(|lock| code.contains(**lock)).map(|lock| format!("{file}: {lock}")));
    }
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
    for member in ["proto", "meshd", "coordinator", "tests"] {
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
    for manifest in ["Cargo.toml", "proto/Cargo.toml", "meshd/Cargo.toml", "coordinator/Cargo.toml", "tests/Cargo.toml"]
    {
        if read(manifest).contains("mock-instant") {
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

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn all_sources() -> Vec<String> {
    ["proto/src", "meshd", "coordinator", "tests"].iter().flat_map(|dir| sources(dir)).collect()
}

fn sources(dir: &str) -> Vec<String> {
    files(&root().join(dir), &["rs"]).into_iter().map(|file| format!("{dir}/{file}")).collect()
}

/// Returns all files with one of the extensions below a directory, relative to it, sorted.
fn files(dir: &Path, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", ".git"].contains(&name.as_str()) {
                    open.push(path);
                }
            } else if name != ".git" && extensions.contains(&path.extension().map_or("", |e| e.to_str().unwrap_or("?")))
            {
                let relative = path.strip_prefix(dir).unwrap_or(&path);
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

/// Reads `// Layer N: …` and the modules below it.
fn layers(lib: &str) -> BTreeMap<&str, u32> {
    let mut layer = 0;
    let mut layers = BTreeMap::new();
    for line in lib.lines() {
        if let Some(rest) = line.strip_prefix("// Layer ") {
            layer = rest.split(':').next().and_then(|n| n.parse().ok()).unwrap_or(layer);
        } else if let Some(name) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            layers.insert(name, layer);
        }
    }
    layers
}

/// Returns the top module that a file of proto belongs to, or nothing for its tests.
fn module_of(file: &str) -> String {
    let inside = file.trim_start_matches("proto/src/").trim_end_matches(".rs");
    if is_test_file(file) {
        return String::new();
    }
    inside.split('/').next().unwrap_or("").to_owned()
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
        return if file == "tests/tidy.rs" { String::new() } else { text };
    }
    text.split_once("#[cfg(test)]\nmod ").map_or_else(String::new, |(_, tests)| tests.to_owned())
}

/// Returns the first words of all `crate::…` paths, groups included.
fn imported(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(word(rest));
            continue;
        };
        let mut depth = 1;
        let mut start = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' => start = depth == 1,
                _ if start && !c.is_whitespace() => {
                    names.insert(word(&group[i..]));
                    start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    names
}

/// Returns a way from a module back to itself, if there is one.
fn cycle<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Option<Vec<&'a str>> {
    fn walk<'a>(
        at: &'a str,
        imports: &BTreeMap<&'a str, BTreeSet<&'a str>>,
        path: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> bool {
        if path.contains(&at) {
            path.push(at);
            return true;
        }
        if !done.insert(at) {
            return false;
        }
        path.push(at);
        let found = imports.get(at).into_iter().flatten().any(|next| walk(next, imports, path, done));
        if !found {
            path.pop();
        }
        found
    }
    let mut done = BTreeSet::new();
    imports.keys().find_map(|start| {
        let mut path = Vec::new();
        walk(start, imports, &mut path, &mut done).then_some(path)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_found_in_groups_and_paths() {
        let code = "use crate::{id::NodeId, packet::{self, Header}, clock};\nlet x = crate::lpm::Table::new();";
        let names: Vec<_> = imported(code).into_iter().collect();
        assert_eq!(names, ["clock", "id", "lpm", "packet"]);
    }

    #[test]
    fn a_circle_of_imports_is_found() {
        let imports = |pairs: &[(&'static str, &'static str)]| {
            let mut map: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for (from, to) in pairs {
                map.entry(from).or_default().insert(to);
            }
            map
        };
        assert_eq!(cycle(&imports(&[("a", "b"), ("a", "c"), ("b", "c")])), None);
        assert!(cycle(&imports(&[("a", "b"), ("b", "c"), ("c", "b")])).is_some());
    }
}
