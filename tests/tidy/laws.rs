//! The laws of the house: layers, rings, names, and types that can be read in one place.

use std::collections::BTreeSet;

use crate::house::House;
use crate::layers::{Layer, broken, declared, documented};
use crate::names::{actors_in, homonyms};
use crate::rings::{by_file, describe, rings};
use crate::workspace::{members, read};

/// The crates whose `lib.rs` and ARCHITECTURE.md write down their layers. A crate that writes them is held to them also
/// if it does not stand here.
const CRATES_WITH_LAYERS: [&str; 4] = ["proto", "host", "meshd", "coordinator"];
/// How many files of a package may stand in rings. To be brought to zero.
const FILES_IN_RINGS: [(&str, usize); 5] = [("proto", 0), ("host", 0), ("meshd", 0), ("coordinator", 0), ("tests", 0)];
/// How many imports of a crate may break its layers, rings of folders counted as one. To be brought to zero.
const BACK_IMPORTS: [(&str, usize); 4] = [("proto", 0), ("host", 0), ("meshd", 0), ("coordinator", 0)];
/// Names that several public types bear, and why that is clearer than two names.
const HOMONYMS: [(&str, &str); 6] = [
    ("Cli", "the command line of each daemon"),
    ("Config", "the configuration file of each daemon"),
    ("ConfigError", "what is wrong with it"),
    ("LockVerb", "what each command line can do about the lock"),
    ("Output", "how each command line prints"),
    ("Verb", "what each command line can be asked for"),
];
/// Types of which each of many rules has a file: the registry's state has one for each `Change`.
const ONE_FILE_PER_RULE: [&str; 1] = ["coordinator::State"];
/// In how many files the methods of a type may stand.
const SLICES: usize = 2;
/// Types that only tell what is: file and name.
const SNAPSHOTS: [(&str, &str); 2] =
    [("meshd/src/node/snapshot.rs", "Snapshot"), ("coordinator/src/core/status_snapshot.rs", "StatusSnapshot")];
/// What acts or waits, and is in no snapshot.
const ACTORS: [&str; 7] = ["Sender", "UnboundedSender", "SyncSender", "Notify", "Mutex", "RwLock", "DataPlane"];

#[test]
fn a_folder_imports_only_those_below_it() {
    let house = House::of_disk();
    let mut wrong = Vec::new();
    for package in members() {
        let Some((root, layers)) = layers_of(house, package) else { continue };
        if layers.is_empty() && CRATES_WITH_LAYERS.contains(&package) {
            wrong.push(format!("{package}: no `// Layer N: what it is.` in its lib.rs"));
        }
        let found = if layers.is_empty() { Vec::new() } else { broken(house, root, &layers) };
        let allowed = BACK_IMPORTS.iter().find(|(name, _)| *name == package).map_or(0, |(_, imports)| *imports);
        if found.len() > allowed {
            wrong.push(format!("{package}: {} imports break the layers, {allowed} may:", found.len()));
            wrong.extend(found);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_architecture_tells_the_layers_of_the_code() {
    let house = House::of_disk();
    let document = read("ARCHITECTURE.md");
    let mut wrong = Vec::new();
    for package in members() {
        let folder = format!("{package}/src");
        let written = documented(&document, &folder);
        let Some((_, layers)) = layers_of(house, package) else { continue };
        if written.len() != layers.len() {
            wrong.push(format!("{folder} has {} layers, and {} in ARCHITECTURE.md", layers.len(), written.len()));
        }
        for (code, text) in layers.iter().zip(&written).filter(|(code, text)| code != text) {
            wrong.push(format!("{folder}: lib.rs has {code}\n  and ARCHITECTURE.md {text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The map of the house is read at one go, or not at all.
#[test]
fn the_architecture_has_at_most_200_lines() {
    let lines = read("ARCHITECTURE.md").lines().count();
    assert!(lines <= 200, "ARCHITECTURE.md has {lines} lines: move what is decided to docs/decisions");
}

#[test]
fn no_two_files_import_each_other() {
    let house = House::of_disk();
    let mut wrong = Vec::new();
    for package in members() {
        let imports: Vec<_> = house.of_package(package).collect();
        let found = rings(&by_file(imports.iter().copied()));
        let files: usize = found.iter().map(BTreeSet::len).sum();
        let allowed = FILES_IN_RINGS.iter().find(|(name, _)| *name == package).map_or(0, |(_, files)| *files);
        if files > allowed {
            wrong.push(format!("{package}: {files} files stand in rings, {allowed} may:"));
            wrong.extend(found.iter().map(|ring| describe(ring, imports.iter().copied())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_two_public_types_share_a_name() {
    let homonyms = homonyms(&House::of_disk().types);
    let kept = |name: &str| HOMONYMS.iter().any(|(kept, _)| *kept == name);
    let mut wrong: Vec<String> = homonyms
        .iter()
        .filter(|(name, _)| !kept(name))
        .map(|(name, places)| format!("{name} is {}: rename one, or say in HOMONYMS why not", places.join(" and ")))
        .collect();
    let alone = HOMONYMS.iter().filter(|(name, _)| !homonyms.contains_key(*name));
    wrong.extend(alone.map(|(name, _)| format!("{name} has one meaning: it needs no place in HOMONYMS")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_methods_of_a_type_stand_together() {
    let house = House::of_disk();
    let mut wrong = Vec::new();
    for ((module, name), slices) in &house.slices {
        let home = &house.modules.all[*module];
        let full = format!("{}::{name}", home.package);
        if ONE_FILE_PER_RULE.contains(&full.as_str()) {
            continue;
        }
        if slices.len() > SLICES {
            let files: Vec<String> = slices.iter().map(|(file, slice)| format!("{file}:{}", slice.line)).collect();
            wrong.push(format!("{full} has methods in {} files, {SLICES} may be: {}", slices.len(), files.join(", ")));
        }
        for (file, slice) in slices.iter().filter(|(file, _)| **file != home.file) {
            let public = slice.public.iter();
            wrong.extend(public.map(|(method, line)| {
                format!("{file}:{line}: {full}::{method} is public and stands not with the type in {}", home.file)
            }));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_snapshot_holds_values_and_nobody_who_acts() {
    let house = House::of_disk();
    let mut wrong = Vec::new();
    for (file, name) in SNAPSHOTS {
        wrong.extend(actors_in(&house.types, file, name, &ACTORS));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns the root module of the library of a package, and the layers it declares.
fn layers_of(house: &House, package: &str) -> Option<(usize, Vec<Layer>)> {
    let root = *house.modules.libraries.values().find(|id| house.modules.all[**id].package == package)?;
    let module = &house.modules.all[root];
    let mut layers = declared(&read(&module.file));
    for layer in &mut layers {
        // What only tests compile stands outside of the order.
        layer.modules.retain(|name| !module.children.get(name).is_some_and(|child| house.modules.all[*child].gated));
    }
    Some((root, layers))
}
