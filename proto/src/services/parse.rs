//! From the text of a file to its model, or to everything that is wrong with it.

use std::collections::BTreeSet;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::base::id::NodeName;

use super::check::evaluate;
use super::diagnostic::{Diagnostic, Diagnostics, position};
use super::keys::FileTable;
use super::model::{ServeSpec, Services, Span};
use super::names::Names;
use super::suggest::{nearest, suggestion};
use super::walk::{Sink, Value, span_of};
use super::{codes, mesh, policy, serve, service, syntax};

/// A services.toml larger than this, in bytes, is refused unread.
pub const MAX_TEXT: usize = 1 << 20;

/// The version of the grammar.
const VERSION: u32 = 1;
/// Tables of the coordinator's file, and whether they repeat.
const TABLES: [(&str, bool); 6] =
    [("mesh", false), ("site", true), ("service", true), ("allow", true), ("test", true), ("node", true)];
/// Tables that are reserved, how their header is written, and what to do without them.
const RESERVED: [(&str, &str, &str); 6] = [
    ("discover", "[discover]", "remove it, and write each service with `host` or `addr` backends"),
    ("publish", "[[publish]]", "remove it; services are reached from inside the mesh only"),
    ("peer", "[[peer]]", "remove it; one coordinator can serve all sites"),
    ("export", "[[export]]", "remove it; one coordinator can serve all sites"),
    ("import", "[[import]]", "remove it; one coordinator can serve all sites"),
    ("jwt", "[[jwt]]", "remove it; nodes join by token"),
];

/// A coordinator's file that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// What it says.
    pub services: Services,
    /// What the operator should know all the same.
    pub warnings: Vec<Diagnostic>,
}

/// Reads the coordinator's services.toml.
///
/// # Errors
/// Everything that is wrong with the file, if anything is, its failing `[[test]]`s included.
pub fn parse(text: &str, file: &str) -> Result<Parsed, Diagnostics> {
    parse_as(text, file, BTreeSet::new(), false)
}

/// Reads the coordinator's services.toml where it is known which nodes belong to the mesh: whoever names one of them
/// where a service is meant is told how nodes are written.
///
/// # Errors
/// As `parse`.
pub fn parse_among(text: &str, file: &str, members: BTreeSet<NodeName>) -> Result<Parsed, Diagnostics> {
    parse_as(text, file, members, false)
}

/// Reads a coordinator's services.toml that was taken before, maybe by a version that took words which do nothing.
/// They are warnings here, and `Services::idle` names them, so that what is in force stays in force.
///
/// # Errors
/// As `parse`, but for such words.
pub fn parse_accepted(text: &str, file: &str) -> Result<Parsed, Diagnostics> {
    parse_as(text, file, BTreeSet::new(), true)
}

fn parse_as(text: &str, file: &str, members: BTreeSet<NodeName>, accepted: bool) -> Result<Parsed, Diagnostics> {
    let (parsed, list) = read(text, accepted, |sink, root| {
        let services = coordinator(sink, root, text, file, members);
        if !sink.has_errors() {
            evaluate(&services).into_iter().for_each(|d| sink.push(d));
        }
        services
    });
    match parsed {
        Some(mut services) => {
            let (idle, warnings): (Vec<_>, _) = list.into_iter().partition(|d| d.code == codes::RESERVED);
            if !idle.is_empty() {
                services.idle = Diagnostics::new(file, text, idle).lines();
            }
            Ok(Parsed { services, warnings })
        }
        None => Err(Diagnostics::new(file, text, list)),
    }
}

/// Reads a node's services.toml: only `[[serve]]`. Returns its offers and its warnings.
///
/// # Errors
/// Everything that is wrong with the file, if anything is.
pub fn parse_node(text: &str, file: &str) -> Result<(Vec<ServeSpec>, Vec<Diagnostic>), Diagnostics> {
    parse_node_as(text, file, false)
}

/// Reads a node's services.toml that was taken before, maybe by a version that took words which do nothing: they are
/// warnings here.
///
/// # Errors
/// As `parse_node`, but for such words.
pub fn parse_node_accepted(text: &str, file: &str) -> Result<(Vec<ServeSpec>, Vec<Diagnostic>), Diagnostics> {
    parse_node_as(text, file, true)
}

fn parse_node_as(text: &str, file: &str, accepted: bool) -> Result<(Vec<ServeSpec>, Vec<Diagnostic>), Diagnostics> {
    let (parsed, list) = read(text, accepted, |sink, root| {
        known_tables(sink, root, &[("serve", true)], &TABLES, "the coordinator's");
        let values = repeated(sink, root, "serve");
        serve::serves(sink, &values)
    });
    match parsed {
        Some(serves) => Ok((serves, list)),
        None => Err(Diagnostics::new(file, text, list)),
    }
}

/// Reads a text by `walk`; `None` if anything in the list is an error.
fn read<T>(
    text: &str,
    accepted: bool,
    walk: impl FnOnce(&mut Sink, &DeTable<'_>) -> T,
) -> (Option<T>, Vec<Diagnostic>) {
    let mut sink = Sink::new(accepted);
    if text.len() > MAX_TEXT {
        let message = format!("the file has {} bytes, more than {MAX_TEXT}", text.len());
        sink.error(codes::TOO_LARGE, Span::default(), message, "is this the right file?");
        return (None, sink.finish());
    }
    let mended = syntax::mend(&mut sink, text);
    let (root, errors) = DeTable::parse_recoverable(&mended);
    let root = root.into_inner();
    let broken = syntax::note(&mut sink, text, &errors);
    version(&mut sink, &root, text);
    let parsed = walk(&mut sink, &root);
    if !broken.is_empty() {
        // What stands on a broken line is not what was meant, and what is missing may stand there.
        sink.retain(|d| {
            let on_broken_line = || broken.contains(&position(text, d.span.start).0);
            d.code == codes::SYNTAX || !codes::needs_whole_file(d.code) && !on_broken_line()
        });
    }
    let refused = sink.has_errors();
    (Some(parsed).filter(|_| !refused), sink.finish())
}

fn version(sink: &mut Sink, root: &DeTable<'_>, text: &str) {
    let Some(value) = root.get("version") else {
        let start = Span { start: 0, end: text.find('\n').unwrap_or(text.len()) };
        let one = Diagnostic::error(codes::VERSION, start, "the file does not say its `version`");
        sink.push(one.label("add `version = 1` above the first table"));
        return;
    };
    let Some(integer) = value.get_ref().as_integer() else {
        sink.wrong_type("version", value, "the number 1, without quotes");
        return;
    };
    if u32::from_str_radix(integer.as_str(), integer.radix()) != Ok(VERSION) {
        let message = format!("version {integer} of the grammar is not known");
        sink.error(codes::VERSION, span_of(value), message, format!("this program reads version {VERSION}"));
    }
}

fn coordinator(sink: &mut Sink, root: &DeTable<'_>, text: &str, file: &str, members: BTreeSet<NodeName>) -> Services {
    known_tables(sink, root, &TABLES, &[("serve", true)], "a node's");
    let open = ["discover", "import"].iter().any(|key| root.contains_key(*key));
    let mut names = Names { open, members, ..Names::default() };
    let mesh = single(sink, root, "mesh").map(|value| mesh::mesh(sink, value));
    let mesh = mesh.unwrap_or_default();
    let values = repeated(sink, root, "site");
    let sites = mesh::sites(sink, &values, mesh.range, &mut names);
    let values = repeated(sink, root, "node");
    let nodes = mesh::nodes(sink, &values, &mut names);
    let values = repeated(sink, root, "service");
    let services = service::services(sink, &values, &mut names);
    let values = repeated(sink, root, "allow");
    let allows = policy::allows(sink, &values, &names, text, file);
    let values = repeated(sink, root, "test");
    let tests = policy::tests(sink, &values, &names);
    Services { mesh, sites, services, allows, tests, nodes, idle: Vec::new() }
}

/// Notes tables that the file does not have, that are reserved, or that belong in the other file.
fn known_tables(
    sink: &mut Sink,
    root: &DeTable<'_>,
    own: &[(&'static str, bool)],
    other: &[(&'static str, bool)],
    owner: &str,
) {
    for (key, value) in root {
        let name = key.get_ref().as_ref();
        if name == "version" || own.iter().any(|(table, _)| *table == name) {
            continue;
        }
        let header = header(key, value);
        if let Some((_, title, instead)) = RESERVED.iter().find(|(table, ..)| *table == name) {
            let message = format!("{title} is reserved and not built yet");
            for span in places(key, value) {
                sink.error(codes::RESERVED, span, message.clone(), *instead);
            }
        } else if other.iter().any(|(table, _)| *table == name) {
            let message = format!("{header} belongs in {owner} services.toml, not here");
            let one = Diagnostic::error(codes::OTHER_FILE, span_of(key), message);
            sink.push(one.label(match owner {
                "a node's" => "move it to /etc/meshd/services.toml of the node",
                _ => "move it to /etc/mesh-coordinator/services.toml of the coordinator",
            }));
        } else if !sink.is_full() {
            unknown_table(sink, key, value, own, &header);
        }
    }
}

fn unknown_table(
    sink: &mut Sink,
    key: &Spanned<std::borrow::Cow<'_, str>>,
    value: &Value<'_>,
    own: &[(&'static str, bool)],
    header: &str,
) {
    let is_table = value.get_ref().is_table() || value.get_ref().is_array();
    let (code, message) = if is_table {
        (codes::UNKNOWN_TABLE, format!("unknown table {header}"))
    } else {
        (codes::UNKNOWN_KEY, format!("unknown key {header} above the first table"))
    };
    let titles = |(name, repeats): &(&str, bool)| title(name, *repeats);
    let one = Diagnostic::error(code, span_of(key), message);
    let candidates = own.iter().map(|(table, _)| *table).chain(["version"]);
    let near = nearest(key.get_ref(), candidates);
    if !is_table
        && own.iter().any(|(table, _)| *table == "mesh")
        && FileTable::Mesh.keys().contains(&key.get_ref().as_ref())
    {
        sink.push(one.label("belongs in [mesh]"));
        return;
    }
    let table = near.and_then(|near| own.iter().find(|(table, _)| *table == near));
    sink.push(match (table, near) {
        (Some(table), _) => one.label(suggestion(titles(table))),
        (None, Some(near)) => one.label(suggestion(near)),
        (None, None) => {
            let all: Vec<String> = own.iter().map(titles).collect();
            let help = format!("the file has `version`, {}", all.join(", "));
            one.label("not known here").help(help)
        }
    });
}

fn title(name: &str, repeats: bool) -> String {
    if repeats { format!("[[{name}]]") } else { format!("[{name}]") }
}

/// Writes a key as the file does.
fn header(key: &Spanned<std::borrow::Cow<'_, str>>, value: &Value<'_>) -> String {
    match value.get_ref() {
        DeValue::Table(_) => format!("[{}]", key.get_ref()),
        DeValue::Array(_) => format!("[[{}]]", key.get_ref()),
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {
            format!("`{}`", key.get_ref())
        }
    }
}

/// Finds every place where a table is written.
fn places(key: &Spanned<std::borrow::Cow<'_, str>>, value: &Value<'_>) -> Vec<Span> {
    match value.get_ref() {
        DeValue::Array(list) if !list.is_empty() => list.iter().map(span_of).collect(),
        DeValue::Table(_) => vec![span_of(value)],
        DeValue::Array(_)
        | DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => vec![span_of(key)],
    }
}

/// Finds the one table of a name.
fn single<'a>(sink: &mut Sink, root: &'a DeTable<'a>, name: &str) -> Option<&'a Value<'a>> {
    let value = root.get(name)?;
    let Some(list) = value.get_ref().as_array() else { return Some(value) };
    for (at, one) in list.iter().enumerate() {
        let message = match at {
            0 => format!("[[{name}]] takes single brackets"),
            _ => format!("[{name}] is written twice"),
        };
        let one = Diagnostic::error(codes::TABLE_FORM, span_of(one), message);
        sink.push(match at {
            0 => one.label(suggestion(format!("[{name}]"))),
            _ => one.label("move its keys to the first"),
        });
    }
    list.first()
}

/// Finds all tables of a name.
fn repeated<'a>(sink: &mut Sink, root: &'a DeTable<'a>, name: &str) -> Vec<&'a Value<'a>> {
    let Some(value) = root.get(name) else { return Vec::new() };
    if let Some(list) = value.get_ref().as_array() {
        return list.iter().collect();
    }
    if !value.get_ref().is_table() {
        sink.wrong_type(name, value, &format!("tables, each under [[{name}]]"));
        return Vec::new();
    }
    let message = format!("[{name}] takes double brackets");
    sink.error(codes::TABLE_FORM, span_of(value), message, suggestion(format!("[[{name}]]")));
    vec![value]
}
