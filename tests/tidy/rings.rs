//! Rings: things that import each other, directly or over others.

use std::collections::{BTreeMap, BTreeSet};

use crate::imports::Import;

/// Who imports whom.
pub(crate) type Graph = BTreeMap<String, BTreeSet<String>>;

/// Returns the graph of files.
pub(crate) fn by_file<'a>(imports: impl IntoIterator<Item = &'a Import>) -> Graph {
    let mut graph = Graph::new();
    for import in imports {
        graph.entry(import.from.clone()).or_default().insert(import.to.clone());
    }
    graph
}

/// Returns the strongly connected components of more than one member, each sorted.
pub(crate) fn rings(graph: &Graph) -> Vec<BTreeSet<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = graph.keys().map(|from| (from, reach(graph, from))).collect();
    let mut rings: Vec<BTreeSet<String>> = Vec::new();
    for (from, to) in &reached {
        if rings.iter().any(|ring| ring.contains(*from)) {
            continue;
        }
        let back = |other: &&String| reached.get(other).is_some_and(|reached| reached.contains(from));
        let ring: BTreeSet<String> = to.iter().filter(|other| back(other)).map(|other| (*other).clone()).collect();
        if ring.len() > 1 {
            rings.push(ring);
        }
    }
    rings
}

fn reach<'g>(graph: &'g Graph, from: &'g String) -> BTreeSet<&'g String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(at) = open.pop() {
        open.extend(graph.get(at).into_iter().flatten().filter(|next| reached.insert(*next)));
    }
    reached
}

/// Writes a ring of files with the lines that make it.
pub(crate) fn describe<'a>(ring: &BTreeSet<String>, imports: impl IntoIterator<Item = &'a Import>) -> String {
    let mut lines = vec![format!("{} files import each other; cut it where the arrow points up:", ring.len())];
    let mut edges: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for import in imports {
        if ring.contains(&import.from) && ring.contains(&import.to) {
            let at = format!("{} {}", import.line, import.what);
            edges.entry((&import.from, &import.to)).or_default().push(at);
        }
    }
    for ((from, to), mut places) in edges {
        let more = places.len().saturating_sub(4);
        places.truncate(4);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        lines.push(format!("  {from} → {to}: line {}{more}", places.join(", ")));
    }
    lines.join("\n")
}
