//! Every kind of mistake in a services.toml, and what the operator gets to read: `golden/NN-name.toml` is
//! the file, `golden/NN-name.txt` the report. Names that contain `node-file` are node files, and those that contain
//! `accepted` are read as texts that were taken before.
//!
//! `UPDATE_GOLDEN=1 cargo test -p mesh-proto --test golden` writes the reports anew; read them before you commit.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "the purity of the brain does not bind what looks at it")]

use std::fs;
use std::path::{Path, PathBuf};

use mesh_proto::services::{Diagnostics, Severity, parse, parse_accepted, parse_node, parse_node_accepted};

/// Reads a file the way its name asks for, and reports on it.
fn report(name: &str, text: &str) -> Diagnostics {
    let file = "/etc/mesh-coordinator/services.toml";
    let warned = |list| Diagnostics::new(file, text, list);
    let accepted = name.contains("accepted");
    if name.contains("node-file") {
        let parse = if accepted { parse_node_accepted } else { parse_node };
        parse(text, "/etc/meshd/services.toml").map_or_else(|all| all, |(_, w)| warned(w))
    } else {
        let parse = if accepted { parse_accepted } else { parse };
        parse(text, file).map_or_else(|all| all, |parsed| warned(parsed.warnings))
    }
}

fn mistakes() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|f| f.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    files
}

#[test]
fn every_mistake_is_reported_as_the_golden_files_say() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for path in mistakes() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let golden = path.with_extension("txt");

        let found = report(&name, &text).render(false) + "\n";

        if update {
            fs::write(&golden, &found).unwrap();
        } else if fs::read_to_string(&golden).ok().as_deref() != Some(&found) {
            wrong.push(format!("{name} is reported as\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_mistake_refuses_its_file_and_says_what_to_do() {
    let files = mistakes();
    assert!(files.len() >= 24, "only {} kinds", files.len());
    for path in files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();

        let all = report(&name, &text);

        assert!(all.summary().contains("error"), "{name} was taken");
        for one in &all.list {
            let place = one.span.start <= one.span.end && one.span.end <= text.len();
            assert!(place, "{name}: {one:?}");
            let says = !one.label.is_empty() || one.help.is_some();
            assert!(says, "{name}: `{}` does not say what to do", one.message);
        }
    }
}

#[test]
fn files_that_use_what_is_reserved_are_refused_for_that_alone() {
    let reserved = mistakes().into_iter().filter(|path| path.to_string_lossy().contains("-reserved-"));
    let mut files = 0;
    for path in reserved.filter(|path| !path.to_string_lossy().contains("-names")) {
        let text = fs::read_to_string(&path).unwrap();

        let all = report("", &text);

        for one in all.list.iter().filter(|one| one.severity == Severity::Error) {
            assert_eq!(one.code, "MESH0110", "{}: {}", path.display(), one.message);
        }
        files += 1;
    }
    assert!(files >= 4, "only {files} files");
}

#[test]
fn the_file_that_readme_prints_is_taken_without_a_word() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let text = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let said = parse(text, "README.md")
        .map_or_else(|all| all.lines(), |parsed| Diagnostics::new("README.md", text, parsed.warnings).lines());
    assert!(said.is_empty(), "{said:?}");
}
