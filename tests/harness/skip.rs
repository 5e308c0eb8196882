//! What a test needs of the machine, and how it says that it is missing.
//!
//! Every crate's tests take this file by its path: mesh-tests depends on the others. A test that cannot run says so
//! past the runner's capture, and writes it to the file that `MESH_SKIPS` names, of which `make test` prints the sum.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

/// Reports one test that cannot run here, and how to make it run.
///
/// # Panics
/// With `MESH_STRICT=1` in the environment, as all of this file.
pub fn skip(what: &str, how: &str) {
    report(1, what, how);
}

/// Reports `count` of the `all` facts of a test binary, which cannot run here.
///
/// # Panics
/// With `MESH_STRICT=1` in the environment.
pub fn skip_facts(count: usize, all: usize, how: &str) {
    report(count, &format!("{count} of {all} facts"), how);
}

/// Reports `count` facts that nobody asked for, which is no failure under `MESH_STRICT=1`.
pub fn leave_out(count: usize, how: &str) {
    tell(count, &format!("{count} facts, which run when asked for"), how);
}

/// Finds a program of the search path.
pub fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn report(count: usize, what: &str, how: &str) {
    tell(count, what, how);
    let strict = std::env::var_os("MESH_STRICT").is_some_and(|word| word == "1");
    assert!(!strict, "{what}: skipped although MESH_STRICT=1: {how}");
}

fn tell(count: usize, what: &str, how: &str) {
    let line = format!("SKIP {}: {what}: {how}", binary());
    // What goes through `print!` is captured; this is not.
    let _ = writeln!(std::io::stderr(), "{line}");
    if let Some(file) = std::env::var_os("MESH_SKIPS") {
        let file = File::options().create(true).append(true).open(file);
        // One write for each line: several tests write at the same time.
        let _ = file.and_then(|mut file| file.write_all(format!("{count} {line}\n").as_bytes()));
    }
}

/// The name of this test binary, without the hash that cargo appends.
fn binary() -> String {
    let program = std::env::current_exe().unwrap_or_default();
    let stem = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    stem.rsplit_once('-').map_or_else(|| stem.clone(), |(name, _)| name.to_owned())
}
