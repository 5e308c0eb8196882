//! Which file imports which: every `use` line and every path in code, types, patterns, attributes and macros, followed
//! through re-exports to the file that defines what is named.
//!
//! `mod child;` imports nothing, and neither does `pub use child::Name;`: it only says where the name may be found, and who
//! takes it from there imports the child. Neither does a method call; but an `impl` imports the file of its type, and
//! `Type::function` that of the `impl` block.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::ext::IdentExt as _;
use syn::visit::{self, Visit};
use syn::{Arm, Attribute, Field, ImplItem, Item, Lit, Local, Stmt, Variant, Visibility};

use crate::modules::{Id, ImportTarget, Modules, Syntax, Use, attributes, flatten, impl_attributes, is_gated};

/// One file names something of another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Import {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) line: usize,
    /// The path as it is written.
    pub(crate) what: String,
}

/// Where methods of a type are written, by module and name of the type.
pub(crate) type Slices = BTreeMap<(Id, String), BTreeMap<String, Slice>>;

/// The inherent `impl` blocks of a type in one file.
#[derive(Default, Debug)]
pub(crate) struct Slice {
    /// Line of the first.
    pub(crate) line: usize,
    /// Names of all that is `pub` or `pub(crate)`, with their lines.
    pub(crate) public: BTreeMap<String, usize>,
    members: BTreeSet<String>,
}

/// Returns all imports between files of the same package in what is shipped.
pub(crate) fn imports(modules: &Modules, syntax: &Syntax, slices: &Slices) -> BTreeSet<Import> {
    let mut found = BTreeSet::new();
    for (id, module) in modules.all.iter().enumerate().filter(|(_, module)| !module.gated) {
        let mut reader = Reader { modules, slices, at: id, passed: BTreeSet::new(), found: BTreeSet::new() };
        for item in &syntax[id] {
            reader.visit_item(item);
        }
        // A module that is imported for its own sake, not as a way to names.
        for import in &module.uses {
            let name = import.name.as_deref().unwrap_or("*");
            let only_offered = import.offered && reader.is_below(&import.path);
            if !only_offered && !reader.passed.contains(name) {
                for target in modules.resolve(id, &import.path) {
                    if let ImportTarget::Module(other) = target {
                        reader.found.insert((modules.all[other].file.clone(), import.line, import.path.join("::")));
                    }
                }
            }
        }
        let foreign = reader.found.into_iter().filter(|(to, ..)| *to != module.file);
        found.extend(foreign.map(|(to, line, what)| Import { from: module.file.clone(), to, line, what }));
    }
    let packages: BTreeMap<&str, &str> =
        modules.all.iter().map(|module| (module.file.as_str(), module.package.as_str())).collect();
    found.retain(|import| packages.get(import.from.as_str()) == packages.get(import.to.as_str()));
    found
}

/// Returns the inherent `impl` blocks of all types.
pub(crate) fn slices(modules: &Modules, syntax: &Syntax) -> Slices {
    let mut slices = Slices::new();
    for (id, module) in modules.all.iter().enumerate().filter(|(_, module)| !module.gated) {
        for item in &syntax[id] {
            let Item::Impl(block) = item else { continue };
            let syn::Type::Path(named) = &*block.self_ty else { continue };
            if block.trait_.is_some() || is_gated(&block.attrs) {
                continue;
            }
            for target in modules.resolve(id, &words(&named.path)) {
                let ImportTarget::Item { module: home, name, member: None } = target else { continue };
                let slice = slices.entry((home, name)).or_default().entry(module.file.clone()).or_default();
                if slice.line == 0 {
                    slice.line = block.impl_token.span.start().line;
                }
                for item in block.items.iter().filter(|item| !is_gated(impl_attributes(item))) {
                    let Some((ident, visible)) = member(item) else { continue };
                    let name = ident.unraw().to_string();
                    if is_public(visible) {
                        slice.public.insert(name.clone(), ident.span().start().line);
                    }
                    slice.members.insert(name);
                }
            }
        }
    }
    slices
}

#[expect(clippy::wildcard_enum_match_arm, reason = "syn may learn new items")]
fn member(item: &ImplItem) -> Option<(&syn::Ident, &Visibility)> {
    match item {
        ImplItem::Const(item) => Some((&item.ident, &item.vis)),
        ImplItem::Fn(item) => Some((&item.sig.ident, &item.vis)),
        ImplItem::Type(item) => Some((&item.ident, &item.vis)),
        _ => None,
    }
}

/// Says whether at least the whole crate may use it.
pub(crate) fn is_public(visible: &Visibility) -> bool {
    match visible {
        Visibility::Public(_) => true,
        Visibility::Restricted(to) => to.path.is_ident("crate"),
        Visibility::Inherited => false,
    }
}

pub(crate) fn words(path: &syn::Path) -> Vec<String> {
    path.segments.iter().map(|segment| segment.ident.unraw().to_string()).collect()
}

/// Reads the code of one module.
struct Reader<'m> {
    modules: &'m Modules,
    slices: &'m Slices,
    at: Id,
    /// Imported names through which other names were reached.
    passed: BTreeSet<String>,
    /// File, line, path.
    found: BTreeSet<(String, usize, String)>,
}

impl Reader<'_> {
    fn path(&mut self, path: &[String], line: usize) {
        let Some(first) = path.first() else { return };
        if path.len() > 1 {
            self.passed.insert(first.clone());
        }
        for target in self.modules.resolve(self.at, path) {
            self.target(target, path, line);
        }
    }

    fn target(&mut self, target: ImportTarget, path: &[String], line: usize) {
        let ImportTarget::Item { module, name, member } = target else { return };
        let written = path.join("::");
        self.found.insert((self.modules.all[module].file.clone(), line, written.clone()));
        // `Type::function` is also an import of the file where that function stands.
        let Some(member) = member else { return };
        for (file, slice) in self.slices.get(&(module, name)).into_iter().flatten() {
            if slice.members.contains(&member) {
                self.found.insert((file.clone(), line, written.clone()));
            }
        }
    }

    fn import(&mut self, import: &Use) {
        if let [first, _, ..] = import.path.as_slice() {
            self.passed.insert(first.clone());
        }
        for target in self.modules.resolve(self.at, &import.path) {
            match target {
                ImportTarget::Module(module) if import.name.is_none() => {
                    let what = format!("{}::*", import.path.join("::"));
                    self.found.insert((self.modules.all[module].file.clone(), import.line, what));
                }
                // Counted at the end, if no name was reached through it.
                ImportTarget::Module(_) => {}
                ImportTarget::Item { .. } => self.target(target, &import.path, import.line),
            }
        }
    }

    /// Says whether all that a path means stands in modules below this one.
    fn is_below(&self, path: &[String]) -> bool {
        let targets = self.modules.resolve(self.at, path);
        let module = |target: &ImportTarget| match target {
            ImportTarget::Module(module) | ImportTarget::Item { module, .. } => *module,
        };
        !targets.is_empty() && targets.iter().all(|target| self.modules.is_below(module(target), self.at))
    }

    /// Finds the paths in the tokens of a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(ident) if !is_field(&tokens, at) => {
                    let line = ident.span().start().line;
                    let mut path = vec![ident.unraw().to_string()];
                    while is_colons(&tokens, at + 1)
                        && let Some(TokenTree::Ident(next)) = tokens.get(at + 3)
                    {
                        path.push(next.unraw().to_string());
                        at += 3;
                    }
                    match tokens.get(at + 3) {
                        Some(TokenTree::Group(group)) if is_colons(&tokens, at + 1) => self.group(&path, group),
                        _ if matches!(tokens.get(at + 1), Some(TokenTree::Punct(p)) if p.as_char() == '!') => {
                            self.macro_name(&path, line);
                        }
                        _ => self.path(&path, line),
                    }
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            at += 1;
        }
    }

    /// Reads `prefix::{…}` in a macro.
    fn group(&mut self, prefix: &[String], group: &proc_macro2::Group) {
        let text = format!("{}::{{{}}}", prefix.join("::"), group.stream());
        let mut uses = Vec::new();
        if let Ok(tree) = syn::parse_str(&text) {
            flatten(&tree, &mut Vec::new(), &mut uses);
        }
        for mut import in uses {
            import.line = group.span().start().line;
            self.import(&import);
        }
    }

    fn macro_name(&mut self, path: &[String], line: usize) {
        match path {
            [name] => {
                for target in self.modules.resolve_macro(self.at, name) {
                    self.target(target, path, line);
                }
            }
            _ => self.path(path, line),
        }
    }

    /// Finds paths in the texts of an attribute: `#[serde(with = "crate::seconds")]`.
    fn texts(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.texts(group.stream()),
                TokenTree::Literal(literal) => {
                    let line = literal.span().start().line;
                    let Ok(Lit::Str(text)) = syn::parse_str::<Lit>(&literal.to_string()) else { continue };
                    let Ok(path) = syn::parse_str::<syn::Path>(&text.value()) else { continue };
                    let path = words(&path);
                    for target in self.modules.resolve(self.at, &path) {
                        if let (ImportTarget::Module(module), true) = (&target, path.len() > 1) {
                            let file = self.modules.all[*module].file.clone();
                            self.found.insert((file, line, path.join("::")));
                        }
                        self.target(target, &path, line);
                    }
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) => {}
            }
        }
    }
}

/// Says whether a word stands after a point: a field or a method.
fn is_field(tokens: &[TokenTree], at: usize) -> bool {
    let point = |at: usize| matches!(&tokens[at], TokenTree::Punct(punct) if punct.as_char() == '.');
    // `..name` is a range.
    at > 0 && point(at - 1) && !(at > 1 && point(at - 2))
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    let colon = |at| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    colon(at) && colon(at + 1)
}

impl<'a> Visit<'a> for Reader<'_> {
    fn visit_item(&mut self, item: &'a Item) {
        if is_gated(attributes(item)) {
            return;
        }
        visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        let mut uses = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut uses);
        let offered = !matches!(item.vis, Visibility::Inherited);
        for import in &uses {
            if !(offered && self.is_below(&import.path)) {
                self.import(import);
            }
        }
    }

    fn visit_impl_item(&mut self, item: &'a ImplItem) {
        if !is_gated(impl_attributes(item)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'a Field) {
        if !is_gated(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'a Variant) {
        if !is_gated(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'a Arm) {
        if !is_gated(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_local(&mut self, local: &'a Local) {
        if !is_gated(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_stmt(&mut self, statement: &'a Stmt) {
        if !matches!(statement, Stmt::Macro(call) if is_gated(&call.attrs)) {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_visibility(&mut self, _: &'a Visibility) {
        // `pub(in crate::engine)` imports nothing.
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let line = path.segments.first().map_or(0, |segment| segment.ident.span().start().line);
        self.path(&words(path), line);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        let line = call.path.segments.first().map_or(0, |segment| segment.ident.span().start().line);
        self.macro_name(&words(&call.path), line);
        self.tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'a Attribute) {
        if attribute.path().is_ident("doc") {
            return;
        }
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
            self.texts(list.tokens.clone());
        }
    }
}
