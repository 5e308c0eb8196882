//! Whether the oracle would notice: ten mutations of the engine, each of which `proto/tests/oracle` must catch.
//!
//! A copy of the proto crate, in a workspace of its own, is changed in one place at a time and tested. It shares one
//! target directory below the workspace's, so that only the crate itself is built again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The order in which mutations are tried comes from this number.
const SEED: u64 = 20;

/// One mistake: what it is, the file, the text that stands there exactly once, the text in its place.
struct Mutation(&'static str, &'static str, &'static str, &'static str);

const MUTATIONS: [Mutation; 10] = [
    Mutation(
        "a peer may use any source",
        "engine.rs",
        "if self.view.owner(Flat(header.tuple.source)) != Some(AddressOwner::Peer(from)) {",
        "if from == NodeId(0) {",
    ),
    Mutation(
        "only the caller's node judges",
        "engine/decide.rs",
        "is_none() {\n            return self.resume_reply_inbound(",
        "is_none() && is_forbidden(tuple.source) {\n            return self.resume_reply_inbound(",
    ),
    Mutation(
        "the source becomes the destination",
        "engine.rs",
        "source: Some((flow.to.source, flow.to.source_port)),",
        "source: Some((flow.to.destination, flow.to.source_port)),",
    ),
    Mutation(
        "an answer comes from the backend's port",
        "flow.rs",
        "let back = Flow { to: key.tuple.reverse(),",
        "let back = Flow { to: FiveTuple { source_port: flow.to.destination_port, ..key.tuple.reverse() },",
    ),
    Mutation(
        "a new map does not bind flows that exist",
        "engine/decide.rs",
        "if flow.revision == self.view.stamp() {",
        "if flow.revision <= self.view.stamp() {",
    ),
    Mutation(
        "answers go on after the permission is gone",
        "engine/decide.rs",
        "self.judge(answer, key.tuple.reverse(), flow.remote)",
        "Ok(())",
    ),
    Mutation(
        "real and flat are exchanged",
        "../base/block_map.rs",
        "translate(self.flat, self.real, flat.0).map(Real)",
        "translate(self.real, self.flat, flat.0).map(Real)",
    ),
    Mutation(
        "a SYN passes for an answer",
        "engine/decide.rs",
        "if !matches!(header.kind, Kind::Tcp(_)) || is_syn(header) {",
        "if !matches!(header.kind, Kind::Tcp(_)) {",
    ),
    Mutation(
        "any peer may report an error about a flow",
        "engine.rs",
        "hit.filter(|hit| hit.flow.remote == Some(from))",
        "hit.filter(|hit| hit.flow.remote.is_some() && from != NodeId(0))",
    ),
    Mutation("every other ticket is lost", "balancer.rs", "self.tickets.fetch_add(1, ", "self.tickets.fetch_add(2, "),
];

/// The copy of the crate; removed in the end.
struct Copy {
    root: PathBuf,
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Copy {
    fn new() -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let copy = Self { root: std::env::temp_dir().join(format!("mesh-mutations-{}", std::process::id())) };
        let proto = workspace.join("proto");
        copy_tree(&proto.join("src"), &copy.root.join("src"));
        copy_tree(&proto.join("tests/oracle"), &copy.root.join("tests/oracle"));
        fs::copy(workspace.join("Cargo.lock"), copy.root.join("Cargo.lock")).unwrap();
        let whole = fs::read_to_string(workspace.join("Cargo.toml")).unwrap();
        let own = fs::read_to_string(proto.join("Cargo.toml")).unwrap();
        fs::write(copy.root.join("Cargo.toml"), manifest(&whole, &own)).unwrap();
        copy
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.join("src/dataplane").join(name)
    }

    /// Says whether the oracle agrees with the engine as it stands in the copy, and what it printed.
    fn agrees(&self) -> (bool, String) {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["test", "--offline", "--quiet", "--test", "oracle"]).current_dir(&self.root);
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("mutations");
        cargo.env("CARGO_TARGET_DIR", target).env("CARGO_PROFILE_TEST_DEBUG", "0").env("RUST_BACKTRACE", "0");
        cargo.env_remove("RUSTFLAGS");
        let output = cargo.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text.into_owned())
    }
}

/// Writes a manifest with the dependencies' versions where the crate's own refers to the workspace's.
fn manifest(workspace: &str, own: &str) -> String {
    let version = |name: &str| {
        let line = workspace.lines().find(|l| l.split_once(" = ").is_some_and(|(key, _)| key == name));
        line.unwrap_or_else(|| panic!("{name} has no version in Cargo.toml")).to_owned()
    };
    let section = own.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let names = section.lines().filter_map(|line| line.strip_suffix(".workspace = true"));
    let dependencies: Vec<String> = names.map(version).collect();
    format!(
        "[package]\nname = \"mesh-proto\"\nversion = \"0.1.0\"\nedition = \"2024\"\nautotests = false\n\n\
         [workspace]\n\n[dependencies]\n{}\n\n[dev-dependencies]\n{}\n\n[[test]]\nname = \"oracle\"\npath = \"tests/oracle/main.rs\"\n",
        dependencies.join("\n"),
        version("etherparse")
    )
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let there = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &there);
        } else {
            fs::copy(&path, &there).unwrap();
        }
    }
}

/// Returns the mutations in the order of the seed (the multiplier is Knuth's MMIX).
fn shuffled() -> Vec<&'static Mutation> {
    let mut state = SEED;
    let mut keyed: Vec<(u64, &Mutation)> = MUTATIONS
        .iter()
        .map(|mutation| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33, mutation)
        })
        .collect();
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, mutation)| mutation).collect()
}

#[test]
fn the_oracle_catches_every_mutation_of_the_engine() {
    let copy = Copy::new();
    let (agrees, text) = copy.agrees();
    assert!(agrees, "the engine as it is does not satisfy the oracle:\n{text}");

    let mut missed = Vec::new();
    for Mutation(name, file, old, new) in shuffled() {
        let path = copy.file(file);
        let source = fs::read_to_string(&path).unwrap();
        assert_eq!(source.matches(old).count(), 1, "{name}: `{old}` must stand in {file} exactly once");
        fs::write(&path, source.replace(old, new)).unwrap();
        let (agrees, text) = copy.agrees();
        fs::write(&path, source).unwrap();
        assert!(text.contains("test result"), "{name}: the mutated engine does not compile:\n{text}");
        if agrees {
            missed.push(*name);
        }
    }

    assert!(missed.is_empty(), "not caught: {missed:?}");
}
