//! The tree of modules of every target, as the compiler sees it: from each root file along its `mod` lines, with what
//! each module defines and the names that its `use` lines bring in.

use std::collections::{BTreeMap, BTreeSet};

use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, Meta, UseTree, Visibility};

/// The text of each file, by its path from the root of the repository.
pub(crate) type Sources = BTreeMap<String, String>;

/// The first file of a target.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    /// Folder of the package: `proto`.
    pub(crate) package: String,
    /// The name by which others import it, if it is a library.
    pub(crate) library: Option<String>,
    pub(crate) file: String,
}

/// Index of a module in [`Modules::all`].
pub(crate) type Id = usize;

/// All modules of all targets.
pub(crate) struct Modules {
    pub(crate) all: Vec<Module>,
    /// Root module of each library, by the name that others import.
    pub(crate) libraries: BTreeMap<String, Id>,
    /// Lines of code per file that a test build alone compiles, first to last.
    pub(crate) gated_lines: BTreeMap<String, Vec<(usize, usize)>>,
    /// `mod` lines whose file is missing.
    pub(crate) missing: Vec<String>,
}

/// One module: a file, or a `mod name { … }` inside of one.
pub(crate) struct Module {
    pub(crate) package: String,
    pub(crate) file: String,
    /// Names from the root of its target; empty for the root.
    pub(crate) path: Vec<String>,
    /// Line of its `mod`; 1 for a root.
    pub(crate) line: usize,
    pub(crate) root: Id,
    pub(crate) parent: Option<Id>,
    /// Whether only a test build or a feature compiles it.
    pub(crate) gated: bool,
    pub(crate) children: BTreeMap<String, Id>,
    /// Names of what it defines, also inside of its functions.
    pub(crate) items: BTreeSet<String>,
    pub(crate) uses: Vec<Use>,
}

/// The items of each module, by its index, without the modules among them. Not part of [`Module`], since it cannot be
/// shared between threads.
pub(crate) type Syntax = Vec<Vec<Item>>;

/// One name, or all names of a place, brought in by a `use`.
pub(crate) struct Use {
    pub(crate) path: Vec<String>,
    /// The name it has here; nothing for a glob.
    pub(crate) name: Option<String>,
    pub(crate) line: usize,
    /// Whether others may take it from here: `pub use`.
    pub(crate) offered: bool,
}

/// What a path means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ImportTarget {
    /// A module as such.
    Module(Id),
    /// What a module defines, and the next word of the path: `Type::member`.
    Item { module: Id, name: String, member: Option<String> },
}

impl Modules {
    /// Reads the modules of all targets.
    pub(crate) fn new(sources: &Sources, roots: &[Root]) -> (Self, Syntax) {
        let mut syntax = Syntax::new();
        let mut modules =
            Self { all: Vec::new(), libraries: BTreeMap::new(), gated_lines: BTreeMap::new(), missing: Vec::new() };
        for root in roots {
            let folder = parent(&root.file).to_owned();
            let id = modules.all.len();
            let place = (root.package.as_str(), root.file.as_str(), folder.as_str());
            let Some(id) = modules.load((sources, &mut syntax), place, None, (id, 1, false)) else {
                modules.missing.push(format!("{} is no file", root.file));
                continue;
            };
            if let Some(name) = &root.library {
                modules.libraries.insert(name.clone(), id);
            }
        }
        (modules, syntax)
    }

    /// Reads a file and the modules below it; `folder` is where files of its children stand.
    fn load(
        &mut self,
        (sources, syntax): (&Sources, &mut Syntax),
        (package, file, folder): (&str, &str, &str),
        above: Option<(Id, &str)>,
        (root, line, gated): (Id, usize, bool),
    ) -> Option<Id> {
        let text = sources.get(file)?;
        let parsed = syn::parse_file(text).unwrap_or_else(|error| {
            panic!("{file}:{}: {error}", error.span().start().line);
        });
        let gated = gated || is_gated(&parsed.attrs);
        Some(self.add((sources, syntax), (package, file, folder), parsed.items, above, (root, line, gated)))
    }

    fn add(
        &mut self,
        (sources, syntax): (&Sources, &mut Syntax),
        (package, file, folder): (&str, &str, &str),
        items: Vec<Item>,
        above: Option<(Id, &str)>,
        (root, line, gated): (Id, usize, bool),
    ) -> Id {
        let id = self.all.len();
        let mut path = above.map_or_else(Vec::new, |(parent, _)| self.all[parent].path.clone());
        path.extend(above.map(|(_, name)| name.to_owned()));
        self.all.push(Module {
            package: package.to_owned(),
            file: file.to_owned(),
            path,
            line,
            root,
            parent: above.map(|(parent, _)| parent),
            gated,
            children: BTreeMap::new(),
            items: BTreeSet::new(),
            uses: Vec::new(),
        });
        syntax.push(Vec::new());
        let mut kept = Vec::new();
        for item in items {
            let Item::Mod(module) = item else {
                kept.push(item);
                continue;
            };
            let name = module.ident.unraw().to_string();
            let at = module.ident.span().start().line;
            let inside = gated || is_gated(&module.attrs);
            if is_gated(&module.attrs) {
                let lines = (module.span().start().line, module.span().end().line);
                self.gated_lines.entry(file.to_owned()).or_default().push(lines);
            }
            let above = Some((id, name.as_str()));
            let child = if let Some((_, items)) = module.content {
                let below = join(folder, &name);
                Some(self.add((sources, &mut *syntax), (package, file, &below), items, above, (root, at, inside)))
            } else if let Some(path) = path_attribute(&module.attrs) {
                let named = normal(&join(parent(file), &path));
                let below = parent(&named).to_owned();
                self.load((sources, &mut *syntax), (package, &named, &below), above, (root, at, inside))
            } else {
                let below = join(folder, &name);
                let files = [format!("{below}.rs"), format!("{below}/mod.rs")];
                let found = files.iter().find(|file| sources.contains_key(*file));
                found.and_then(|found| {
                    self.load((sources, &mut *syntax), (package, found, &below), above, (root, at, inside))
                })
            };
            match child {
                Some(child) => {
                    self.all[id].children.insert(name, child);
                }
                None => self.missing.push(format!("{file}:{at}: mod {name} has no file")),
            }
        }
        let mut found = Definitions::default();
        for item in &kept {
            found.visit_item(item);
        }
        self.gated_lines.entry(file.to_owned()).or_default().extend(found.gated);
        self.all[id].items = found.items;
        self.all[id].uses = found.uses;
        syntax[id] = kept;
        id
    }

    /// Says whether a module stands inside of another.
    pub(crate) fn is_below(&self, module: Id, other: Id) -> bool {
        let (inner, outer) = (&self.all[module], &self.all[other]);
        inner.root == outer.root && inner.path.len() > outer.path.len() && inner.path.starts_with(&outer.path)
    }

    /// Returns all that a path, written in a module, may mean; nothing for what is no code of ours.
    pub(crate) fn resolve(&self, from: Id, path: &[String]) -> BTreeSet<ImportTarget> {
        self.resolve_in(from, path, &mut BTreeSet::new())
    }

    /// Returns what the nearest module above that knows a macro's name means by it.
    pub(crate) fn resolve_macro(&self, from: Id, name: &str) -> BTreeSet<ImportTarget> {
        let mut at = Some(from);
        while let Some(module) = at {
            let found = self.look_up(module, name, &mut BTreeSet::new());
            if found.iter().any(|target| matches!(target, ImportTarget::Item { .. })) {
                return found;
            }
            at = self.all[module].parent;
        }
        BTreeSet::new()
    }

    fn resolve_in(&self, from: Id, path: &[String], seen: &mut BTreeSet<(Id, String)>) -> BTreeSet<ImportTarget> {
        let Some((first, rest)) = path.split_first() else {
            return BTreeSet::new();
        };
        let mut targets = match first.as_str() {
            "crate" => BTreeSet::from([ImportTarget::Module(self.all[from].root)]),
            "self" => BTreeSet::from([ImportTarget::Module(from)]),
            "super" => self.all[from].parent.map(ImportTarget::Module).into_iter().collect(),
            name => self.look_up(from, name, seen),
        };
        if targets.is_empty() {
            targets.extend(self.libraries.get(first).map(|id| ImportTarget::Module(*id)));
        }
        for word in rest {
            // A function may bear the name of a module beside it; only the module has an inside.
            if targets.iter().any(|target| matches!(target, ImportTarget::Module(_))) {
                targets.retain(|target| matches!(target, ImportTarget::Module(_)));
            }
            targets = targets.into_iter().flat_map(|target| self.inside(target, word, seen)).collect();
        }
        targets
    }

    /// Returns what a word means after `target::`.
    fn inside(&self, target: ImportTarget, word: &str, seen: &mut BTreeSet<(Id, String)>) -> BTreeSet<ImportTarget> {
        match target {
            ImportTarget::Module(module) if word == "super" => {
                self.all[module].parent.map(ImportTarget::Module).into_iter().collect()
            }
            ImportTarget::Module(module) if word == "self" => BTreeSet::from([ImportTarget::Module(module)]),
            ImportTarget::Module(module) => {
                let found = self.look_up(module, word, seen);
                if found.is_empty() {
                    // What a macro made there has no definition that can be read.
                    return BTreeSet::from([ImportTarget::Item { module, name: word.to_owned(), member: None }]);
                }
                found
            }
            ImportTarget::Item { module, name, member } => {
                let member = Some(member.unwrap_or_else(|| word.to_owned()));
                BTreeSet::from([ImportTarget::Item { module, name, member }])
            }
        }
    }

    /// Returns what a name means in a module: its own children and items, then what it imports by name, then by globs.
    fn look_up(&self, at: Id, name: &str, seen: &mut BTreeSet<(Id, String)>) -> BTreeSet<ImportTarget> {
        if !seen.insert((at, name.to_owned())) {
            return BTreeSet::new();
        }
        let module = &self.all[at];
        let mut found = BTreeSet::new();
        found.extend(module.children.get(name).map(|child| ImportTarget::Module(*child)));
        if module.items.contains(name) {
            found.insert(ImportTarget::Item { module: at, name: name.to_owned(), member: None });
        }
        for import in module.uses.iter().filter(|import| import.name.as_deref() == Some(name)) {
            found.extend(self.resolve_in(at, &import.path, seen));
        }
        if found.is_empty() {
            for glob in module.uses.iter().filter(|import| import.name.is_none()) {
                for target in self.resolve_in(at, &glob.path, seen) {
                    if let ImportTarget::Module(other) = target {
                        found.extend(self.look_up(other, name, seen));
                    }
                }
            }
        }
        seen.remove(&(at, name.to_owned()));
        found
    }
}

/// Collects what a module defines and imports, also in its functions, and not what is compiled for tests alone.
#[derive(Default)]
struct Definitions {
    items: BTreeSet<String>,
    uses: Vec<Use>,
    gated: Vec<(usize, usize)>,
}

impl<'a> Visit<'a> for Definitions {
    fn visit_item(&mut self, item: &'a Item) {
        if is_gated(attributes(item)) {
            self.gated.push((item.span().start().line, item.span().end().line));
            return;
        }
        self.items.extend(defined(item));
        if let Item::Use(item) = item {
            let before = self.uses.len();
            flatten(&item.tree, &mut Vec::new(), &mut self.uses);
            for import in &mut self.uses[before..] {
                import.offered = !matches!(item.vis, Visibility::Inherited);
            }
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'a ImplItem) {
        if is_gated(impl_attributes(item)) {
            self.gated.push((item.span().start().line, item.span().end().line));
            return;
        }
        visit::visit_impl_item(self, item);
    }
}

/// Turns a tree of `use` into one entry per name.
pub(crate) fn flatten(tree: &UseTree, prefix: &mut Vec<String>, uses: &mut Vec<Use>) {
    let mut push = |prefix: &[String], last: Option<String>, name: Option<String>, line| {
        // `use a::{self}` is `use a`.
        let path: Vec<_> = prefix.iter().cloned().chain(last.filter(|last| last != "self")).collect();
        let name = name.map(|name| if name == "self" { path.last().cloned().unwrap_or_default() } else { name });
        uses.push(Use { path, name, line, offered: false });
    };
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.unraw().to_string());
            flatten(&path.tree, prefix, uses);
            prefix.pop();
        }
        UseTree::Name(name) => {
            let word = name.ident.unraw().to_string();
            push(prefix, Some(word.clone()), Some(word), name.ident.span().start().line);
        }
        UseTree::Rename(name) => {
            let (word, new) = (name.ident.unraw().to_string(), name.rename.unraw().to_string());
            push(prefix, Some(word), Some(new), name.ident.span().start().line);
        }
        UseTree::Glob(glob) => push(prefix, None, None, glob.star_token.span.start().line),
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, prefix, uses);
            }
        }
    }
}

/// Says whether only a test build, or one with a feature, compiles what has these attributes.
pub(crate) fn is_gated(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg") && attribute.parse_args().is_ok_and(|meta| !holds(&meta))
    })
}

/// Says whether a condition holds in what is shipped: no test, no feature, all else.
fn holds(condition: &Meta) -> bool {
    let all = |list: &syn::MetaList| {
        let parse = syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated;
        list.parse_args_with(parse).map(|list| list.iter().map(holds).collect::<Vec<_>>()).unwrap_or_default()
    };
    match condition {
        Meta::Path(path) => !path.is_ident("test"),
        Meta::NameValue(pair) => !pair.path.is_ident("feature"),
        Meta::List(list) if list.path.is_ident("not") => all(list).iter().all(|holds| !holds),
        Meta::List(list) if list.path.is_ident("any") => all(list).iter().any(|holds| *holds),
        Meta::List(list) => all(list).iter().all(|holds| *holds),
    }
}

/// Returns the name that an item defines.
#[expect(clippy::wildcard_enum_match_arm, reason = "syn may learn new items")]
fn defined(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.unraw().to_string())
}

/// Returns the attributes of an item.
#[expect(clippy::wildcard_enum_match_arm, reason = "syn may learn new items")]
pub(crate) fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Returns the attributes of what stands in an `impl`.
#[expect(clippy::wildcard_enum_match_arm, reason = "syn may learn new items")]
pub(crate) fn impl_attributes(item: &ImplItem) -> &[Attribute] {
    match item {
        ImplItem::Const(item) => &item.attrs,
        ImplItem::Fn(item) => &item.attrs,
        ImplItem::Type(item) => &item.attrs,
        ImplItem::Macro(item) => &item.attrs,
        _ => &[],
    }
}

fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.path().is_ident("path"))?;
    let syn::Expr::Lit(literal) = &attribute.meta.require_name_value().ok()?.value else {
        return None;
    };
    let syn::Lit::Str(text) = &literal.lit else {
        return None;
    };
    Some(text.value())
}

fn parent(file: &str) -> &str {
    file.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// Takes `a/../` out of a path.
fn normal(path: &str) -> String {
    let mut words = Vec::new();
    for word in path.split('/') {
        match word {
            "." => {}
            ".." => {
                words.pop();
            }
            word => words.push(word),
        }
    }
    words.join("/")
}
