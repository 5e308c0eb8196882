//! Typed reading of the spanned TOML tree: every accessor returns what it found or notes what is wrong with
//! it, and the caller goes on, so that one run finds all mistakes.

use std::ops::RangeInclusive;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::codes;
use super::diagnostic::{Diagnostic, Severity};
use super::keys::FileTable;
use super::model::Span;
use super::suggest::{as_name, nearest, quoted, suggestion};

/// More mistakes than this are counted, not shown.
const MAX_SHOWN: usize = 100;

/// A value with its place.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// Returns the place of something spanned.
pub(super) fn span_of<T>(spanned: &Spanned<T>) -> Span {
    let range = spanned.span();
    Span { start: range.start, end: range.end }
}

/// A text of the file with its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word<'a> {
    pub(super) text: &'a str,
    pub(super) span: Span,
}

impl Word<'_> {
    /// Returns the place of bytes `start..end` of the text, if the file writes it plainly between quotes.
    pub(super) fn part(&self, start: usize, end: usize) -> Span {
        if self.span.end.saturating_sub(self.span.start) != self.text.len() + 2 {
            return self.span;
        }
        Span { start: self.span.start + 1 + start, end: self.span.start + 1 + end }
    }
}

/// Where mistakes are collected.
#[derive(Debug, Default)]
pub(super) struct Sink {
    list: Vec<Diagnostic>,
    errors: Count,
    warnings: Count,
    /// Whether an earlier version took the text, so that words which do nothing are no mistakes.
    accepted: bool,
}

/// How many mistakes of a severity are in the list, and how many more there are.
#[derive(Debug, Default)]
struct Count {
    shown: usize,
    more: usize,
}

impl Sink {
    /// Begins a reading, of a text that an earlier version took or of one that is new.
    pub(super) fn new(accepted: bool) -> Self {
        Self { accepted, ..Self::default() }
    }

    /// Notes a mistake; beyond `MAX_SHOWN` of its severity it is only counted.
    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        let count = match diagnostic.severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        if count.shown < MAX_SHOWN {
            count.shown += 1;
            self.list.push(diagnostic);
        } else {
            count.more += 1;
        }
    }

    /// Notes a word that means something and that nothing is built for yet: a mistake in a new text, and to be known
    /// of one that an earlier version took. Says whether the word is to be read all the same.
    pub(super) fn idle(&mut self, span: Span, word: &str, instead: &str) -> bool {
        self.push(if self.accepted {
            let message = format!("{word} does nothing: it is reserved and not built yet");
            Diagnostic::warning(codes::RESERVED, span, message).label(instead)
        } else {
            let message = format!("{word} is reserved and not built yet");
            Diagnostic::error(codes::RESERVED, span, message).label(instead)
        });
        self.accepted
    }

    /// Takes an error that is said in one sentence and one label.
    pub(super) fn error(&mut self, code: &'static str, span: Span, what: impl Into<String>, label: impl Into<String>) {
        self.push(Diagnostic::error(code, span, what).label(label));
    }

    /// Notes a mistake unless its place has one already.
    pub(super) fn push_once(&mut self, diagnostic: Diagnostic) {
        if self.places().all(|span| span != diagnostic.span) {
            self.push(diagnostic);
        }
    }

    /// Returns where mistakes were noted.
    pub(super) fn places(&self) -> impl Iterator<Item = Span> {
        self.list.iter().map(|d| d.span)
    }

    /// Says whether further mistakes are only counted, so that nobody looks for suggestions any more.
    pub(super) fn is_full(&self) -> bool {
        self.errors.shown >= MAX_SHOWN
    }

    /// Says whether the file is refused.
    pub(super) fn has_errors(&self) -> bool {
        self.errors.more > 0 || self.list.iter().any(|d| d.severity == Severity::Error)
    }

    /// Returns the mistakes in the order of the file.
    pub(super) fn finish(self) -> Vec<Diagnostic> {
        let mut list = self.list;
        list.sort_by_key(|d| (d.span.start, d.span.end, d.code));
        list.dedup();
        let Some(last) = list.last().map(|last| last.span) else { return list };
        if self.errors.more > 0 {
            let message = format!("{} more mistakes are not shown", self.errors.more);
            list.push(Diagnostic::error(codes::MORE, last, message).help("mend those above first"));
        }
        if self.warnings.more > 0 {
            let message = format!("{} more warnings are not shown", self.warnings.more);
            list.push(Diagnostic::warning(codes::MORE, last, message).help("look at those above first"));
        }
        list
    }

    /// Keeps only the mistakes that `keep` wants.
    pub(super) fn retain(&mut self, keep: impl FnMut(&Diagnostic) -> bool) {
        self.list.retain(keep);
    }

    /// Reads a string.
    pub(super) fn word<'a>(&mut self, key: &str, value: &'a Value<'_>) -> Option<Word<'a>> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, "a string in quotes");
            return None;
        };
        let span = span_of(value);
        Some(Word { text, span })
    }

    /// Reads a string or a list of strings; what is neither is noted and left out.
    pub(super) fn words<'a>(&mut self, key: &str, value: &'a Value<'_>) -> Vec<Word<'a>> {
        if let Some(list) = value.get_ref().as_array() {
            return list.iter().filter_map(|v| self.word(key, v)).collect();
        }
        if value.get_ref().is_str() {
            return self.word(key, value).into_iter().collect();
        }
        self.wrong_type(key, value, "a list of strings");
        Vec::new()
    }

    /// Reads `true` or `false`.
    pub(super) fn boolean(&mut self, key: &str, value: &Value<'_>) -> Option<bool> {
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(key, value, "true or false");
        }
        found
    }

    /// Reads a whole number within limits.
    pub(super) fn integer(&mut self, key: &str, value: &Value<'_>, limits: RangeInclusive<u32>) -> Option<u32> {
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, "a whole number");
            return None;
        };
        let number = u32::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.filter(|n| limits.contains(n));
        if number.is_none() {
            let message = format!("`{key}` is out of range: {integer}");
            let label = format!("use {} to {}", limits.start(), limits.end());
            self.push(Diagnostic::error(codes::LIMITS, span_of(value), message).label(label));
        }
        number
    }

    /// Reads a share between 0 and 1.
    pub(super) fn share(&mut self, key: &str, value: &Value<'_>) -> Option<f64> {
        let text = match value.get_ref() {
            DeValue::Float(float) => float.as_str(),
            DeValue::Integer(integer) => integer.as_str(),
            DeValue::String(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                self.wrong_type(key, value, "a number between 0 and 1");
                return None;
            }
        };
        let share = text.parse::<f64>().ok().filter(|s| (0.0..=1.0).contains(s));
        if share.is_none() {
            let message = format!("`{key}` is out of range: {text}");
            self.error(codes::LIMITS, span_of(value), message, "use 0 to 1, such as 0.5 for one half");
        }
        share
    }

    /// Reads a name of any kind.
    pub(super) fn name<T: FromStr>(&mut self, word: Word<'_>) -> Option<T> {
        let name = word.text.parse().ok();
        if name.is_none() {
            let mended = as_name(word.text).filter(|mended| mended != word.text);
            let message = match word.text {
                "" => "a name is empty".to_owned(),
                text => format!("`{text}` is not a name"),
            };
            let one = Diagnostic::error(codes::NAME, word.span, message);
            let rule = "use 1 to 63 characters of a-z, 0-9 and hyphens, with a letter or digit at both ends";
            self.push(match mended {
                Some(mended) => one.label(format!("did you mean `{mended}`?")).help(rule),
                None => one.label(rule),
            });
        }
        name
    }

    /// Reads a string as one of a few words; returns its number among them.
    pub(super) fn choice(&mut self, key: &str, word: Word<'_>, among: &[&str]) -> Option<usize> {
        let found = among.iter().position(|w| *w == word.text);
        if found.is_none() {
            let list = quoted(among);
            let message = format!("`{key}` cannot be `{}`", word.text);
            let one = Diagnostic::error(codes::CHOICE, word.span, message);
            self.push(match nearest(word.text, among.iter().copied()) {
                Some(near) => one.label(suggestion(near)).help(format!("`{key}` is {list}")),
                None => one.label(format!("use {list}")),
            });
        }
        found
    }

    /// Notes a value of the wrong type.
    pub(super) fn wrong_type(&mut self, key: &str, value: &Value<'_>, wanted: &str) {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        let message = format!("`{key}` is {found}");
        self.error(codes::TYPE, span_of(value), message, format!("expected {wanted}"));
    }
}

/// A table whose keys were looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct TomlTable<'a> {
    /// How messages call it: `[[service]]`.
    pub(super) title: &'static str,
    /// Where its header stands, or the whole of an inline table.
    pub(super) span: Span,
    entries: &'a DeTable<'a>,
}

impl<'a> TomlTable<'a> {
    /// Opens a table and notes the keys it does not have.
    pub(super) fn open(sink: &mut Sink, table: FileTable, value: &'a Value<'a>) -> Option<Self> {
        let (title, keys) = (table.title(), table.keys());
        let Some(entries) = value.get_ref().as_table() else {
            sink.wrong_type(title, value, "a table, such as { key = value }");
            return None;
        };
        for key in entries.keys() {
            let name = key.get_ref().as_ref();
            if keys.contains(&name) || sink.is_full() {
                continue;
            }
            let message = format!("unknown key `{name}` in {title}");
            let one = Diagnostic::error(codes::UNKNOWN_KEY, span_of(key), message);
            sink.push(match nearest(name, keys.iter().copied()) {
                _ if name == "version" => one.label("belongs above the first table"),
                Some(near) => one.label(suggestion(near)),
                None => {
                    let list = keys.join(", ");
                    one.label("not known here").help(format!("the keys of {title} are {list}"))
                }
            });
        }
        let span = span_of(value);
        Some(Self { title, span, entries })
    }

    /// Returns the value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value<'a>> {
        self.entries.get(key)
    }

    /// Returns the place of a key itself.
    pub(super) fn key_span(&self, key: &str) -> Option<Span> {
        self.entries.get_key_value(key).map(|(k, _)| span_of(k))
    }

    /// Returns the value of a key that must be there.
    pub(super) fn require(&self, sink: &mut Sink, key: &str, example: &str) -> Option<&'a Value<'a>> {
        let found = self.get(key);
        if found.is_none() {
            let message = format!("{} has no `{key}`", self.title);
            sink.error(codes::MISSING, self.span, message, format!("add `{example}`"));
        }
        found
    }

    /// Reads a string.
    pub(super) fn word(&self, sink: &mut Sink, key: &str) -> Option<Word<'a>> {
        self.get(key).and_then(|value| sink.word(key, value))
    }

    /// Reads a string or a list of strings.
    pub(super) fn words(&self, sink: &mut Sink, key: &str) -> Vec<Word<'a>> {
        let value = self.get(key);
        value.map_or_else(Vec::new, |value| sink.words(key, value))
    }

    /// Reads the `name` that a table must have, with its place. What is nearly a name is noted and taken
    /// mended, so that words which mean it are not called unknown.
    pub(super) fn named<T: FromStr>(&self, sink: &mut Sink, example: &str) -> Option<(T, Span)> {
        let value = self.require(sink, "name", example)?;
        let word = sink.word("name", value)?;
        let name = sink.name(word);
        let name = name.or_else(|| as_name(word.text)?.parse().ok());
        name.map(|name| (name, word.span))
    }

    /// Reads an optional name.
    pub(super) fn name<T: FromStr>(&self, sink: &mut Sink, key: &str) -> Option<T> {
        self.word(sink, key).and_then(|word| sink.name(word))
    }

    /// Returns the value of a key that nothing is built for yet, of a text that an earlier version took; it is noted.
    pub(super) fn idle(&self, sink: &mut Sink, key: &str, instead: &str) -> Option<&'a Value<'a>> {
        let (key, value) = self.entries.get_key_value(key)?;
        let word = format!("`{}` in {}", key.get_ref(), self.title);
        sink.idle(span_of(key), &word, instead).then_some(value)
    }

    /// Notes that a key is reserved, wherever it stands.
    pub(super) fn reserve(&self, sink: &mut Sink, key: &str, instead: &str) -> bool {
        let span = self.key_span(key);
        if let Some(span) = span {
            let message = format!("`{key}` in {} is reserved and not built yet", self.title);
            sink.push(Diagnostic::error(codes::RESERVED, span, message).label(instead));
        }
        span.is_some()
    }
}
