//! The figures of the house, for people: `cargo test -p mesh-tests --test tidy -- --nocapture --ignored rings`.

use std::collections::BTreeSet;

use crate::house::House;
use crate::modules::{Modules, Sources};
use crate::names::{homonyms, sliced};
use crate::rings::{by_file, describe, rings};
use crate::workspace::{everything, members};

#[test]
#[ignore = "prints for people and proves nothing"]
#[expect(clippy::print_stdout, reason = "this is what it is for")]
fn rings_folders_and_lines_of_code() {
    let (sources, _) = everything();
    let house = House::of_disk();
    let mut total = 0;
    for package in members() {
        let imports: Vec<_> = house.of_package(package).collect();
        let found = rings(&by_file(imports.iter().copied()));
        println!("{package}: {} rings, {} files in them", found.len(), found.iter().map(BTreeSet::len).sum::<usize>());
        for ring in &found {
            println!("{}", describe(ring, imports.iter().copied()));
        }
    }
    for package in members() {
        let files: BTreeSet<&String> =
            house.modules.all.iter().filter(|m| m.package == package && !m.gated).map(|module| &module.file).collect();
        let shipped: Vec<_> = files.into_iter().filter(|file| is_shipped(package, file)).collect();
        let folders: BTreeSet<&str> = shipped.iter().filter_map(|file| Some(file.rsplit_once('/')?.0)).collect();
        let lines: usize = shipped.iter().map(|file| lines_of_code(&sources, &house.modules, file)).sum();
        total += lines;
        println!("{package}: {} files in {} folders, {lines} lines of code", shipped.len(), folders.len());
    }
    println!("together {total} lines of code: no blanks, no comments, no inline tests; tests/ counts as code");
    for (name, places) in homonyms(&house.types) {
        println!("type {name}: {}", places.join(", "));
    }
    for (name, files) in sliced(&house.modules, &house.slices) {
        println!("impl {name} in {} files: {}", files.len(), files.join(", "));
    }
    for missing in &house.modules.missing {
        println!("{missing}");
    }
}

/// Says whether a file is part of a program or library, or of the tests that are a crate of their own.
fn is_shipped(package: &str, file: &str) -> bool {
    package == "tests" || file.starts_with(&format!("{package}/src/"))
}

/// Returns the lines of a file that are neither blank nor comment nor test.
fn lines_of_code(sources: &Sources, modules: &Modules, file: &str) -> usize {
    let gated = modules.gated_lines.get(file).map_or(&[][..], Vec::as_slice);
    let text = sources.get(file).map_or("", String::as_str);
    text.lines()
        .enumerate()
        .filter(|(at, _)| !gated.iter().any(|(first, last)| (*first..=*last).contains(&(at + 1))))
        .filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
        .count()
}
