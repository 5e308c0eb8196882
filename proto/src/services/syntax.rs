//! What is no TOML, and how to read the rest of the file all the same.
//!
//! The parser recovers from most mistakes by itself, but two of them hide what follows: a bracket that is not
//! closed swallows the tables after it, and a key without `=` ends the file. Such a statement is noted, blanked
//! out with spaces, so that every other place keeps its offset, and the text is read again.

use std::borrow::Cow;
use std::collections::BTreeSet;

use toml::de::{DeTable, Error};

use super::codes;
use super::diagnostic::{Diagnostic, Lines, position};
use super::model::Span;
use super::suggest::suggestion;
use super::walk::Sink;

/// The text is read again at most this often, and at most so many bytes are read again.
const MAX_MENDS: usize = 64;
const MAX_WORK: usize = 2 << 20;
/// Broken lines beyond these are neither mended nor shown.
const MAX_LINES: usize = 128;

/// Notes the statements that hide others, and returns the text without them.
pub(super) fn mend<'t>(sink: &mut Sink, text: &'t str) -> Cow<'t, str> {
    let mut mended = Cow::Borrowed(text);
    for _ in 0..(MAX_WORK / text.len().max(1)).clamp(1, MAX_MENDS) {
        let (_, errors) = DeTable::parse_recoverable(&mended);
        let errors = first_of_each_line(&mended, &errors);
        let hiding = |(_, span, message): &(usize, Span, &str)| hides(&mended, *span, message);
        // What follows an unclosed bracket is misread, so that only the first of these is known.
        let Some((hidden, diagnostic)) = errors.iter().find_map(hiding) else { break };
        sink.push_once(diagnostic);
        blank(mended.to_mut(), hidden);
    }
    mended
}

/// Notes what else is no TOML, one mistake a line; returns all broken lines.
pub(super) fn note(sink: &mut Sink, text: &str, errors: &[Error]) -> BTreeSet<usize> {
    let mut lines: BTreeSet<usize> = sink.places().map(|span| position(text, span.start).0).collect();
    for (line, span, message) in first_of_each_line(text, errors) {
        if !sink.is_full() && lines.insert(line) {
            sink.push(explain(text, span, message));
        }
    }
    lines
}

/// Sorts the parser's errors and keeps the first of each line, with its number, of at most `MAX_LINES` lines.
fn first_of_each_line<'e>(text: &str, errors: &'e [Error]) -> Vec<(usize, Span, &'e str)> {
    let mut errors: Vec<(Span, &str)> = errors.iter().map(|e| (place(text, e), e.message())).collect();
    errors.sort_by_key(|(span, _)| span.start);
    let mut lines = Lines::new(text);
    let numbered = errors.into_iter().map(|(span, message)| (lines.at(span.start), span, message));
    let mut kept: Vec<(usize, Span, &str)> = Vec::new();
    for error in numbered {
        if kept.len() < MAX_LINES && kept.last().is_none_or(|(line, ..)| *line != error.0) {
            kept.push(error);
        }
    }
    kept
}

fn explain(text: &str, span: Span, message: &str) -> Diagnostic {
    let (what, wanted) = message.split_once(", expected ").unwrap_or((message, ""));
    let found = text.get(span.start..span.end).unwrap_or_default();
    let word = found.trim_matches(|c: char| !c.is_ascii_graphic() || c == '"' || c == '\'');
    let error = |what: &str| Diagnostic::error(codes::SYNTAX, span, format!("not TOML: {what}"));
    match what {
        "duplicate key" if text[..span.start].ends_with('[') => {
            error("a table stands twice").label("move its keys to the first")
        }
        "duplicate key" => error(what).label("stands twice; keep one of them"),
        "string values must be quoted" if found.is_empty() => error("a value is missing").label("write one after `=`"),
        "string values must be quoted" | "invalid boolean" if !word.is_empty() => {
            error("a string needs quotes").label(suggestion(format!("\"{word}\"")))
        }
        "invalid float" | "invalid integer" | "invalid date-time" if wanted == "nothing" => {
            error(what).label("a string needs quotes")
        }
        _ if wanted.is_empty() => error(what).label("correct it"),
        _ => error(what).label(format!("expected {wanted}")),
    }
}

/// Returns the bytes of a statement that hides what follows it, and what is wrong with it.
fn hides(text: &str, span: Span, message: &str) -> Option<(Span, Diagnostic)> {
    let line = line_start(text, span.start);
    if message.starts_with("key with no value") {
        let end = text[line..].find('\n').map_or(text.len(), |at| line + at);
        let hidden = Span { start: line, end };
        return Some((hidden, explain(text, span, message)));
    }
    let unclosed = ["missing comma between", "missing key for inline", "invalid inline table element", "unclosed"];
    let unclosed = unclosed.iter().any(|start| message.starts_with(start));
    if !unclosed || line == 0 || !(is_header(&text[line..]) || key_length(&text[line..]).is_some()) {
        return None;
    }
    let mut start = line;
    let key = loop {
        start = line_start(text, start.checked_sub(1)?);
        if let Some(key) = key_length(&text[start..]) {
            break start + key;
        }
    };
    let open = text[key..line].find(['[', '{']).map(|at| key + at)?;
    let (what, close) = if text[open..].starts_with('[') { ("list", ']') } else { ("table", '}') };
    let bracket = Span { start: open, end: open + 1 };
    let one = Diagnostic::error(codes::SYNTAX, bracket, format!("not TOML: a {what} is not closed"));
    let next = Span { start: line, end: line + text[line..].find('\n').unwrap_or(text.len() - line) };
    let one = one.label(format!("expected `{close}`")).also(next, "before this line");
    Some((Span { start, end: line }, one))
}

/// Returns the length of `key =` at the beginning of a line.
fn key_length(line: &str) -> Option<usize> {
    let line = line.split('\n').next()?;
    let equals = line.find('=')?;
    let key = line[..equals].trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.\"' ".contains(c);
    (!key.is_empty() && key.chars().all(plain)).then_some(equals + 1)
}

fn is_header(line: &str) -> bool {
    let line = line.split('\n').next().unwrap_or_default();
    let inner = line.trim_start().trim_start_matches('[');
    line.trim_start().starts_with('[') && inner.contains(']') && inner.starts_with(|c: char| c.is_ascii_alphabetic())
}

fn line_start(text: &str, offset: usize) -> usize {
    text[..offset].rfind('\n').map_or(0, |at| at + 1)
}

fn place(text: &str, error: &Error) -> Span {
    let range = error.span().unwrap_or(text.len()..text.len());
    let start = text.floor_char_boundary(range.start);
    Span { start, end: text.floor_char_boundary(range.end).max(start) }
}

/// Replaces bytes by spaces, line ends excepted.
fn blank(text: &mut String, hidden: Span) {
    let spaces: String = text[hidden.start..hidden.end].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect();
    text.replace_range(hidden.start..hidden.end, &spaces);
}
