//! Types: one word means one thing, the methods of a type stand where they are looked for, and what a snapshot holds.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::TokenTree;
use syn::ext::IdentExt as _;
use syn::visit::{self, Visit};
use syn::{Item, Visibility};

use crate::imports::{Slices, is_public, words};
use crate::modules::{Id, ImportTarget, Modules, Syntax, attributes, is_gated};

/// A type that a module defines.
#[derive(Debug)]
pub(crate) struct Type {
    pub(crate) file: String,
    pub(crate) line: usize,
    /// `struct`, `enum`, `trait` or `type`.
    pub(crate) kind: &'static str,
    /// Whether its whole crate may name it.
    pub(crate) public: bool,
    /// All words in its definition.
    pub(crate) words: BTreeSet<String>,
    /// The types of ours that it names, by module and name.
    pub(crate) names: BTreeSet<(Id, String)>,
}

/// All types of what is shipped, by module and name.
pub(crate) type Types = BTreeMap<(Id, String), Type>;

/// Returns all types.
pub(crate) fn types(modules: &Modules, syntax: &Syntax) -> Types {
    let mut types = Types::new();
    for (id, module) in modules.all.iter().enumerate().filter(|(_, module)| !module.gated) {
        for item in syntax[id].iter().filter(|item| !is_gated(attributes(item))) {
            let Some((kind, ident, visible)) = named(item) else { continue };
            let mut reader = Words { modules, at: id, words: BTreeSet::new(), names: BTreeSet::new() };
            reader.visit_item(item);
            let defined = Type {
                file: module.file.clone(),
                line: ident.span().start().line,
                kind,
                public: is_public(visible),
                words: reader.words,
                names: reader.names,
            };
            types.insert((id, ident.unraw().to_string()), defined);
        }
    }
    types
}

#[expect(clippy::wildcard_enum_match_arm, reason = "syn may learn new items")]
fn named(item: &Item) -> Option<(&'static str, &syn::Ident, &Visibility)> {
    match item {
        Item::Struct(item) => Some(("struct", &item.ident, &item.vis)),
        Item::Enum(item) => Some(("enum", &item.ident, &item.vis)),
        Item::Trait(item) => Some(("trait", &item.ident, &item.vis)),
        Item::Type(item) => Some(("type", &item.ident, &item.vis)),
        _ => None,
    }
}

/// Collects what a definition names.
struct Words<'m> {
    modules: &'m Modules,
    at: Id,
    words: BTreeSet<String>,
    names: BTreeSet<(Id, String)>,
}

impl<'a> Visit<'a> for Words<'_> {
    fn visit_attribute(&mut self, _: &'a syn::Attribute) {}

    fn visit_path(&mut self, path: &'a syn::Path) {
        let path_words = words(path);
        for target in self.modules.resolve(self.at, &path_words) {
            if let ImportTarget::Item { module, name, .. } = target {
                self.words.insert(name.clone());
                self.names.insert((module, name));
            }
        }
        self.words.extend(path_words);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        let idents = call.tokens.clone().into_iter().filter_map(|token| match token {
            TokenTree::Ident(ident) => Some(ident.unraw().to_string()),
            TokenTree::Group(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => None,
        });
        self.words.extend(idents);
    }
}

/// Returns the names that two or more public types bear, with the places of all of them.
pub(crate) fn homonyms(types: &Types) -> BTreeMap<String, Vec<String>> {
    let mut places: BTreeMap<&String, BTreeSet<String>> = BTreeMap::new();
    for ((_, name), found) in types.iter().filter(|(_, found)| found.public) {
        places.entry(name).or_default().insert(format!("{}:{} ({})", found.file, found.line, found.kind));
    }
    let twice = places.into_iter().filter(|(_, places)| places.len() > 1);
    twice.map(|(name, places)| (name.clone(), places.into_iter().collect())).collect()
}

/// Returns the types of each package whose inherent `impl` blocks stand in other files than their own, as
/// `package::Type`, with all files, the one that defines it first.
pub(crate) fn sliced(modules: &Modules, slices: &Slices) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for ((module, name), files) in slices {
        let home = &modules.all[*module];
        let others = files.keys().filter(|file| **file != home.file);
        let names: Vec<String> = files.keys().filter(|file| **file == home.file).chain(others).cloned().collect();
        if files.len() > 1 {
            found.insert(format!("{}::{name}", home.package), names);
        }
    }
    found
}

/// Returns which of the forbidden words a type names, itself or through the types of ours that it holds.
pub(crate) fn actors_in(types: &Types, file: &str, name: &str, forbidden: &[&str]) -> Vec<String> {
    let start = types.iter().find(|((_, other), found)| other == name && found.file == file);
    let Some((start, _)) = start else {
        return vec![format!("{file} has no type {name}: correct SNAPSHOTS")];
    };
    let mut wrong = Vec::new();
    let mut open = vec![(start.clone(), name.to_owned())];
    let mut seen = BTreeSet::from([start.clone()]);
    while let Some((at, way)) = open.pop() {
        let Some(found) = types.get(&at) else { continue };
        for word in forbidden.iter().filter(|word| found.words.contains(**word)) {
            wrong.push(format!(
                "{}:{}: {way} holds a {word}; keep the value here, and who acts elsewhere",
                found.file, found.line
            ));
        }
        for next in found.names.iter().filter(|next| seen.insert((*next).clone())) {
            open.push((next.clone(), format!("{way} → {}", next.1)));
        }
    }
    wrong
}
