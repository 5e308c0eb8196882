//! The laws are shown to work: each kind of forbidden import, planted into a small tree, is found.

use crate::house::House;
use crate::layers::{broken, declared};
use crate::modules::{Root, Sources};
use crate::names::{actors_in, homonyms, sliced};
use crate::rings::{by_file, rings};

/// A crate of three layers without a fault: `up` has a folder, `mid` offers what `low` defines.
const CLEAN: [(&str, &str); 7] = [
    (
        "src/lib.rs",
        "// Layer 0: words.\npub mod low;\n// Layer 1: what is true.\npub mod mid;\n// Layer 2: what to do.\npub mod up;\n",
    ),
    ("src/low.rs", "pub struct Word;\nimpl Word { pub fn new() -> Self { Self } }\n"),
    ("src/mid/mod.rs", "mod fact;\npub use crate::low::Word;\npub use self::fact::Fact;\n"),
    ("src/mid/fact.rs", "use super::Word;\npub struct Fact(pub Word);\n"),
    (
        "src/up/mod.rs",
        "mod act;\n#[cfg(test)]\nmod tests;\npub struct Plan;\npub fn go() {}\n#[macro_export]\nmacro_rules! now { () => {} }\n",
    ),
    (
        "src/up/act.rs",
        "use crate::mid::{self, Fact};\nuse super::Plan;\nfn act(_: Plan) -> Fact { mid::Fact(crate::low::Word::new()) }\n",
    ),
    ("src/up/tests.rs", "use super::*;\nuse super::act;\n"),
];

/// Builds the clean tree with some files replaced or added.
fn house(changed: &[(&str, &str)]) -> (House, Sources) {
    let both = CLEAN.iter().chain(changed);
    let sources: Sources = both.map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    let library = Some("tree".to_owned());
    let root = Root { package: String::new(), library, file: "src/lib.rs".to_owned() };
    (House::new(&sources, &[root]), sources)
}

/// Returns what the law of layers says about the clean tree with some files replaced or added.
fn faults(changed: &[(&str, &str)]) -> Vec<String> {
    let (house, sources) = house(changed);
    broken(&house, house.modules.libraries["tree"], &declared(&sources["src/lib.rs"]))
}

/// Asserts that the text, as file of the lowest layer, is found to import `up`.
fn is_found(file: &str, text: &str) {
    let found = faults(&[(file, text)]);
    assert!(found.iter().any(|fault| fault.starts_with(file) && fault.contains("src/up/mod.rs")), "{found:#?}");
}

#[test]
fn a_clean_tree_passes() {
    assert_eq!(faults(&[]), [""; 0]);
    let (house, _) = house(&[]);
    assert_eq!(rings(&by_file(&house.imports)), []);
}

#[test]
fn a_use_of_an_upper_module_is_found() {
    is_found("src/low.rs", "use crate::up;\npub struct Word;\nfn f() { let _ = up; }");
    is_found("src/low.rs", "use crate::up::Plan;\npub struct Word(Plan);");
    is_found("src/low.rs", "use crate::{mid::Fact, up::{go, Plan}};\npub struct Word(Plan);");
    is_found("src/low.rs", "pub struct Word;\nfn f() { use crate::up::go; go() }");
}

#[test]
fn a_use_by_the_name_of_the_crate_is_found() {
    is_found("src/low.rs", "use tree::up::Plan;\npub struct Word(Plan);");
}

#[test]
fn a_super_of_super_is_found() {
    is_found("src/mid/fact.rs", "use super::super::up::Plan;\npub struct Fact(Plan);");
    is_found("src/mid/fact.rs", "pub struct Fact(super::super::up::Plan);");
}

#[test]
fn a_path_in_code_types_and_patterns_is_found() {
    is_found("src/low.rs", "pub struct Word;\nfn f() { crate::up::go() }");
    is_found("src/low.rs", "pub struct Word(Vec<crate::up::Plan>);");
    is_found("src/low.rs", "pub struct Word;\nfn f<T>(x: T) { if let crate::up::Plan = x {} }");
    is_found("src/low.rs", "use crate::up;\npub struct Word;\nfn f() { up::go() }");
}

#[test]
fn a_lower_facade_does_not_hide_what_is_upper() {
    let facade =
        ("src/mid/mod.rs", "mod fact;\npub use crate::low::Word;\npub use crate::up::Plan;\npub use fact::Fact;");
    let found = faults(&[facade, ("src/low.rs", "use crate::mid::Plan;\npub struct Word(Plan);")]);
    assert!(
        found.iter().any(|fault| fault.starts_with("src/low.rs:1") && fault.contains("src/up/mod.rs")),
        "{found:#?}"
    );
    assert!(found.iter().any(|fault| fault.starts_with("src/mid/mod.rs:3")), "{found:#?}");
}

#[test]
fn an_upper_facade_is_no_excuse_and_no_fault_either() {
    // `up` offers what `low` defines: who takes it from there imports `low`.
    let facade = ("src/up/mod.rs", "pub use crate::low::Word;\npub struct Plan;\npub fn go() {}");
    assert_eq!(faults(&[facade, ("src/mid/fact.rs", "use crate::up::Word;\npub struct Fact(pub Word);")]), [""; 0]);
}

#[test]
fn a_facade_that_offers_what_its_own_files_define_imports_nothing() {
    let fact = ("src/mid/fact.rs", "use super::Other;\npub struct Fact(Other);");
    let clean = "mod fact;\npub use crate::low::Word;\npub use fact::{self, Fact};\npub struct Other;";
    assert_eq!(rings(&by_file(&house(&[("src/mid/mod.rs", clean), fact]).0.imports)), []);
    let used = format!("{clean}\nfn f(_: Fact) {{}}");
    assert_eq!(rings(&by_file(&house(&[("src/mid/mod.rs", &used), fact]).0.imports)).len(), 1);
}

#[test]
fn a_function_that_bears_the_name_of_a_module_is_not_taken_for_it() {
    let (house, _) = house(&[
        ("src/up/mod.rs", "mod act;\nmod new;\nfn act() {}\nfn f() -> new::New { act() }"),
        ("src/up/act.rs", "pub struct Act;"),
        ("src/up/new.rs", "use super::act::Act;\npub struct New(Act);"),
    ]);
    assert_eq!(rings(&by_file(&house.imports)), []);
}

#[test]
fn a_glob_is_found() {
    is_found("src/low.rs", "use crate::up::*;\npub struct Word;");
    let hidden = ("src/mid/mod.rs", "mod fact;\npub use crate::low::Word;\npub use crate::up::*;\npub use fact::Fact;");
    let found = faults(&[hidden, ("src/low.rs", "use crate::mid::*;\npub struct Word(Plan);")]);
    assert!(
        found.iter().any(|fault| fault.starts_with("src/low.rs:2") && fault.contains("src/up/mod.rs")),
        "{found:#?}"
    );
}

#[test]
fn an_impl_block_in_another_folder_is_found() {
    is_found("src/low.rs", "pub struct Word;\nimpl crate::up::Plan { pub fn new() -> Self { Self } }");
    is_found(
        "src/low.rs",
        "use crate::up::Plan;\npub struct Word;\nimpl From<Word> for Plan { fn from(_: Word) -> Self { Self } }",
    );
}

#[test]
fn a_function_of_a_type_is_looked_for_where_it_stands() {
    let up = ("src/up/act.rs", "use crate::low::Word;\nimpl Word { pub fn plan() -> Self { Self } }");
    let found =
        faults(&[up, ("src/mid/fact.rs", "use crate::low::Word;\npub struct Fact;\nfn f() -> Word { Word::plan() }")]);
    assert!(
        found.iter().any(|fault| fault.starts_with("src/mid/fact.rs:3") && fault.contains("up/act.rs")),
        "{found:#?}"
    );
}

#[test]
fn a_path_in_a_macro_is_found() {
    is_found("src/low.rs", "pub struct Word;\nfn f() { assert!(true, \"{:?}\", crate::up::go()); }");
    is_found("src/low.rs", "use crate::up;\npub struct Word;\nfn f() { println!(\"{:?}\", up::go()); }");
    is_found("src/low.rs", "pub struct Word;\nmacro_rules! m { () => { $crate::up::go() } }");
    is_found("src/low.rs", "pub struct Word;\nmacro_rules! m { () => { use $crate::{mid, up::Plan}; } }");
    is_found("src/low.rs", "pub struct Word;\nfn f() { crate::up::now!(); }");
}

#[test]
fn a_path_in_an_attribute_is_found() {
    is_found("src/low.rs", "pub struct Word {\n#[serde(with = \"crate::up\")] pub a: u8 }");
    is_found("src/low.rs", "pub struct Word {\n#[serde(default = \"crate::up::go\")] pub a: u8 }");
    is_found("src/low.rs", "#[derive(crate::up::Plan)]\npub struct Word;");
}

#[test]
fn a_renamed_import_is_found() {
    is_found("src/low.rs", "use crate::up as down;\npub struct Word(down::Plan);");
    is_found("src/low.rs", "use crate as all;\npub struct Word(all::up::Plan);");
    is_found("src/low.rs", "use crate::up::Plan as Map;\npub struct Word(Map);");
}

#[test]
fn a_ring_of_three_files_is_found() {
    let (house, _) = house(&[
        ("src/mid/mod.rs", "mod a;\nmod b;\nmod fact;\npub use crate::low::Word;\npub use fact::Fact;"),
        ("src/mid/a.rs", "use super::b::B;\npub struct A(B);"),
        ("src/mid/b.rs", "pub struct B(super::Fact);"),
        ("src/mid/fact.rs", "pub struct Fact;\nfn f() -> super::a::A { super::a::A }"),
    ]);
    let found: Vec<Vec<String>> =
        rings(&by_file(&house.imports)).into_iter().map(|ring| ring.into_iter().collect()).collect();
    assert_eq!(found, [["src/mid/a.rs", "src/mid/b.rs", "src/mid/fact.rs"]]);
}

#[test]
fn two_folders_of_a_layer_may_not_import_each_other_even_without_a_ring_of_files() {
    let found = faults(&[
        ("src/lib.rs", "// Layer 0: all.\npub mod low;\npub mod mid;\npub mod up;\n"),
        ("src/mid/fact.rs", "pub struct Fact(crate::up::Plan);"),
    ]);
    assert!(found.iter().any(|fault| fault.starts_with("mid, up import each other")), "{found:#?}");
}

#[test]
fn a_module_without_a_layer_is_found() {
    let found = faults(&[
        ("src/lib.rs", "mod lost;\n// Layer 0: words.\npub mod low;\npub mod mid;\npub mod up;\n"),
        ("src/lost.rs", ""),
    ]);
    assert!(found.iter().any(|fault| fault.starts_with("src/lib.rs:1: mod lost stands in no layer")), "{found:#?}");
}

#[test]
fn what_only_tests_compile_is_free() {
    let text = "pub struct Word;\n#[cfg(test)]\nmod tests { use crate::up::Plan; }\n#[cfg(test)]\nuse crate::up::go;\n\
                impl Word { #[cfg(test)] fn f() { crate::up::go() } }\n#[cfg(not(test))]\nfn g() {}";
    assert_eq!(faults(&[("src/low.rs", text), ("src/mid/fact.rs", "pub struct Fact;")]), [""; 0]);
    is_found("src/low.rs", "pub struct Word;\n#[cfg(not(test))]\nfn g() { crate::up::go() }");
}

#[test]
fn an_actor_deep_in_a_snapshot_is_found() {
    let (house, _) = house(&[
        ("src/low.rs", "pub struct Word(Vec<Deep>);\nenum Deep { A, B { told: Option<Arc<tokio::sync::Notify>> } }"),
        ("src/up/act.rs", "pub struct Snapshot { word: crate::mid::Word, count: u64 }\npub struct Plain(u64);"),
    ]);
    let found = actors_in(&house.types, "src/up/act.rs", "Snapshot", &["Notify"]);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("src/low.rs:2: Snapshot → Word → Deep holds a Notify"), "{found:?}");
    assert_eq!(actors_in(&house.types, "src/up/act.rs", "Plain", &["Notify"]), [""; 0]);
}

#[test]
fn types_of_one_name_and_methods_in_other_files_are_seen() {
    let (house, _) = house(&[("src/up/act.rs", "pub(crate) struct Word;\nimpl crate::low::Word { pub fn f() {} }")]);
    assert_eq!(homonyms(&house.types)["Word"], ["src/low.rs:1 (struct)", "src/up/act.rs:1 (struct)"]);
    assert_eq!(sliced(&house.modules, &house.slices)["::Word"], ["src/low.rs", "src/up/act.rs"]);
}
