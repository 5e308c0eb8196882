//! `[[allow]]` and `[[test]]`.

use crate::model::rules::{Rule, RuleTarget, Source};

use super::codes;
use super::diagnostic::Lines;
use super::keys::FileTable;
use super::model::{Allow, Span, Test};
use super::names::Names;
use super::walk::{Sink, TomlTable, Value, Word, span_of};

/// Reads all `[[allow]]`.
pub(super) fn allows(sink: &mut Sink, values: &[&Value<'_>], names: &Names, text: &str, file: &str) -> Vec<Allow> {
    let mut allows = Vec::with_capacity(values.len());
    let mut lines = Lines::new(text);
    for value in values {
        let Some(table) = TomlTable::open(sink, FileTable::Allow, value) else { continue };
        let from = several(sink, table, "from", "from = [\"frontend\"]");
        let from = from.into_iter().filter_map(|w| names.source(sink, w));
        let from: Vec<Source> = from.collect();
        let to = several(sink, table, "to", "to = [\"cartservice\"]");
        let to = to.into_iter().filter_map(|w| names.target(sink, w));
        let rule = Rule {
            file: file.into(),
            line: u32::try_from(lines.at(table.span.start)).unwrap_or(u32::MAX),
            from,
            to: to.collect(),
        };
        let span = table.span;
        allows.push(Allow { rule, span });
    }
    allows
}

/// Reads all `[[test]]`.
pub(super) fn tests(sink: &mut Sink, values: &[&Value<'_>], names: &Names) -> Vec<Test> {
    let mut tests = Vec::with_capacity(values.len());
    for value in values {
        let Some(table) = TomlTable::open(sink, FileTable::Test, value) else { continue };
        let from = table.require(sink, "from", "from = \"frontend\"");
        if let Some(list) = from.filter(|v| v.get_ref().is_array()) {
            sink.wrong_type("from", list, "one caller; write a [[test]] for each");
        }
        let from = from.filter(|v| !v.get_ref().is_array());
        let from = from.and_then(|v| sink.word("from", v));
        let from = from.and_then(|w| names.source(sink, w));
        let mut targets = |key: &str| -> Vec<(RuleTarget, Span)> {
            let words = match table.get(key) {
                Some(_) => several(sink, table, key, ""),
                None => Vec::new(),
            };
            let target = |w: Word<'_>| names.target(sink, w).map(|t| (t, w.span));
            words.into_iter().filter_map(target).collect()
        };
        let (accept, deny) = (targets("accept"), targets("deny"));
        if table.get("accept").or_else(|| table.get("deny")).is_none() {
            let message = "[[test]] tests nothing";
            sink.error(codes::MISSING, table.span, message, "add `accept = [\"cartservice:7070\"]` or `deny = […]`");
        }
        let Some(from) = from else { continue };
        tests.push(Test { from, accept, deny, span: table.span });
    }
    tests
}

/// Reads a list that must be there and not be empty.
fn several<'a>(sink: &mut Sink, table: TomlTable<'a>, key: &str, example: &str) -> Vec<Word<'a>> {
    let Some(value) = table.require(sink, key, example) else { return Vec::new() };
    if value.get_ref().as_array().is_some_and(|a| a.is_empty()) {
        let message = format!("`{key}` is empty");
        sink.error(codes::MISSING, span_of(value), message, "name at least one");
    }
    sink.words(key, value)
}
