//! The repository on disk: its files, and the targets of its packages.

use std::fs;
use std::path::{Path, PathBuf};

use crate::modules::{Root, Sources};

/// The packages of the workspace.
pub(crate) fn members() -> Vec<&'static str> {
    vec!["proto", "host", "meshd", "coordinator", "tests"]
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Returns all Rust files of the workspace and of the two workspaces in tests.
pub(crate) fn all_sources() -> Vec<String> {
    members().iter().flat_map(|dir| sources(dir)).collect()
}

/// Returns the Rust files below a folder.
pub(crate) fn sources(dir: &str) -> Vec<String> {
    files(&root().join(dir), &["rs"]).into_iter().map(|file| format!("{dir}/{file}")).collect()
}

/// Returns all files with one of the extensions below a directory, relative to it, sorted.
pub(crate) fn files(dir: &Path, extensions: &[&str]) -> Vec<String> {
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

/// Returns the text of all files and the targets of all packages, libraries first.
pub(crate) fn everything() -> (Sources, Vec<Root>) {
    let sources: Sources = all_sources().into_iter().map(|file| (file.clone(), read(&file))).collect();
    let roots = members().into_iter().flat_map(|member| targets(member, &sources)).collect();
    (sources, roots)
}

/// Returns the targets of a package: what its manifest names, and what cargo finds by itself.
fn targets(package: &str, sources: &Sources) -> Vec<Root> {
    let manifest: toml::Table =
        toml::from_str(&read(&format!("{package}/Cargo.toml"))).unwrap_or_else(|error| panic!("{package}: {error}"));
    let text = |table: Option<&toml::Value>, key| table?.get(key)?.as_str().map(ToOwned::to_owned);
    let package_table = manifest.get("package");
    let finds = |key: &str| package_table.and_then(|table| table.get(key)?.as_bool()).unwrap_or(true);
    let mut roots = Vec::new();
    let mut add = |file: String, library: Option<String>| {
        let file = format!("{package}/{file}");
        if sources.contains_key(&file) && !roots.iter().any(|root: &Root| root.file == file) {
            roots.push(Root { package: package.to_owned(), library, file });
        }
    };

    let name = text(package_table, "name").unwrap_or_default().replace('-', "_");
    let library = text(manifest.get("lib"), "path").unwrap_or_else(|| "src/lib.rs".to_owned());
    add(library, Some(name));
    for kind in ["bin", "test", "bench", "example"] {
        for target in manifest.get(kind).and_then(|list| list.as_array()).into_iter().flatten() {
            if let Some(path) = text(Some(target), "path") {
                add(path, None);
            }
        }
    }
    if finds("autobins") {
        add("src/main.rs".to_owned(), None);
    }
    for (key, folder) in [("autotests", "tests"), ("autobenches", "benches")] {
        let prefix = format!("{package}/{folder}/");
        for file in sources.keys().filter(|_| finds(key)).filter_map(|file| file.strip_prefix(&prefix)) {
            let words: Vec<&str> = file.split('/').collect();
            if matches!(words.as_slice(), [_] | [_, "main.rs"]) {
                add(format!("{folder}/{file}"), None);
            }
        }
    }
    roots
}
