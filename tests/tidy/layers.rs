//! The layers of a crate: its `lib.rs` writes `// Layer N: what it is.` above groups of `mod` lines, N = 0 lowest.
//!
//! A folder (or file) beside `lib.rs` imports those of lower layers, and those of its own as long as they form no ring; the
//! same holds for the folders and files inside of a folder. ARCHITECTURE.md has a table with the same layers in the same
//! order: below a head row `| proto/src | … |` one row `` | N what it is | `module` words · `module` words | `` per layer,
//! where each word in backticks is a module.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::house::House;
use crate::modules::Id;
use crate::rings::{Graph, rings};

/// One layer as it is written down.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) number: usize,
    pub(crate) title: String,
    pub(crate) modules: BTreeSet<String>,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let modules: Vec<&str> = self.modules.iter().map(String::as_str).collect();
        write!(f, "layer {} {}: {}", self.number, self.title, modules.join(" "))
    }
}

/// Reads the layers of a `lib.rs`.
pub(crate) fn declared(lib: &str) -> Vec<Layer> {
    let mut layers: Vec<Layer> = Vec::new();
    for line in lib.lines() {
        if let Some((number, title)) = line.strip_prefix("// Layer ").and_then(|rest| rest.split_once(": ")) {
            let number = number.parse().unwrap_or_else(|_| panic!("`{line}`: write `// Layer N: what it is.`"));
            layers.push(Layer { number, title: title.trim_end_matches('.').to_owned(), modules: BTreeSet::new() });
        } else if let Some((before, name)) = line.strip_suffix(';').and_then(|line| line.rsplit_once("mod "))
            && (before.is_empty() || before.starts_with("pub"))
            && let Some(layer) = layers.last_mut()
        {
            layer.modules.insert(name.to_owned());
        }
    }
    layers
}

/// Reads the layers of a folder from the tables of a document.
pub(crate) fn documented(document: &str, folder: &str) -> Vec<Layer> {
    let head = format!("| {folder} |");
    let rows = document.lines().skip_while(|line| !line.starts_with(&head)).skip(2);
    let mut layers = Vec::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').splitn(2, '|').map(str::trim).collect();
        let (number, title) = cells[0].split_once(' ').unwrap_or((cells[0], ""));
        let number = number.parse().unwrap_or_else(|_| panic!("`{row}`: begin the row with the number of the layer"));
        let words = cells.get(1).unwrap_or(&"").split('`').skip(1).step_by(2);
        let modules = words.map(|word| word.trim_end_matches('/').to_owned()).collect();
        layers.push(Layer { number, title: title.to_owned(), modules });
    }
    layers
}

/// Returns what breaks the order of layers in a library, whose root module is `root`.
pub(crate) fn broken(house: &House, root: Id, layers: &[Layer]) -> Vec<String> {
    let modules = &house.modules.all;
    let lib = &modules[root].file;
    let mut wrong = Vec::new();
    for pair in layers.windows(2).filter(|pair| pair[0].number >= pair[1].number) {
        wrong.push(format!("{lib}: layer {} stands above layer {}", pair[0].number, pair[1].number));
    }
    let of = |name: &str| layers.iter().find(|layer| layer.modules.contains(name));
    for (name, child) in &modules[root].children {
        if of(name).is_none() && !modules[*child].gated {
            wrong.push(format!(
                "{lib}:{}: mod {name} stands in no layer: move it below a `// Layer N` line",
                modules[*child].line
            ));
        }
    }

    let tops: BTreeMap<&String, &String> = modules
        .iter()
        .filter(|module| module.root == root && !module.gated)
        .filter_map(|module| Some((&module.file, module.path.first()?)))
        .collect();
    for import in &house.imports {
        let (Some(from), Some(to)) = (tops.get(&import.from), tops.get(&import.to)) else { continue };
        if let (Some(below), Some(above)) = (of(from), of(to))
            && below.number < above.number
        {
            wrong.push(format!(
                "{}:{}: `{}` is {} ({}, layer {} {}), and {from} is layer {} {}: move what both need down, or pass it in",
                import.from, import.line, import.what, import.to, to, above.number, above.title, below.number, below.title
            ));
        }
    }
    wrong.extend(rings_of_siblings(house, root));
    wrong
}

/// Returns the rings between the children of each module of a library, if a folder is among them.
pub(crate) fn rings_of_siblings(house: &House, root: Id) -> Vec<String> {
    let modules = &house.modules.all;
    let mut paths: BTreeMap<&String, &Vec<String>> = BTreeMap::new();
    for module in modules.iter().filter(|module| module.root == root && !module.gated) {
        // The outermost module of a file stands for it.
        let path = paths.entry(&module.file).or_insert(&module.path);
        if module.path.len() < path.len() {
            *path = &module.path;
        }
    }
    let folders: BTreeSet<String> = paths.values().filter_map(|path| Some(path.split_last()?.1.join("/"))).collect();
    let mut graphs: BTreeMap<&[String], Graph> = BTreeMap::new();
    let mut places: BTreeMap<(String, String), String> = BTreeMap::new();
    for import in &house.imports {
        let (Some(from), Some(to)) = (paths.get(&import.from), paths.get(&import.to)) else { continue };
        let common = from.iter().zip(to.iter()).take_while(|(a, b)| a == b).count();
        if common == from.len() || common == to.len() {
            continue;
        }
        let (low, high) = (from[..=common].join("/"), to[..=common].join("/"));
        let place = format!("{}:{} {}", import.from, import.line, import.what);
        places.entry((low.clone(), high.clone())).or_insert(place);
        graphs.entry(&from[..common]).or_default().entry(low).or_default().insert(high);
    }
    let mut wrong = Vec::new();
    // A ring of files alone is a matter of the law of rings.
    for ring in graphs.values().flat_map(rings).filter(|ring| ring.iter().any(|name| folders.contains(name))) {
        let inside = places.iter().filter(|((from, to), _)| ring.contains(from) && ring.contains(to));
        let lines: Vec<String> = inside.map(|((from, to), place)| format!("  {from} → {to}: {place}")).collect();
        let names: Vec<&str> = ring.iter().map(String::as_str).collect();
        wrong.push(format!("{} import each other:\n{}", names.join(", "), lines.join("\n")));
    }
    wrong
}
