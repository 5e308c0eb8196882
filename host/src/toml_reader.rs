//! Reading a daemon's TOML file: each mistake is noted with its place, and reading goes on, so that one run finds all.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use mesh_proto::services::{nearest, position};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Every mistake of a file, in its order: `FILE:LINE:COLUMN: what is wrong and what to do`, a line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Mistakes(String);

/// A value and its place.
pub type Value<'t> = Spanned<DeValue<'t>>;

/// Reads values and collects mistakes.
pub struct Reader<'t> {
    text: &'t str,
    mistakes: Vec<((usize, usize), String)>,
}

impl<'t> Reader<'t> {
    /// Parses the text of a file; what stands where it is no TOML is noted.
    pub fn parse(text: &'t str) -> (Self, DeTable<'t>) {
        let (table, broken) = DeTable::parse_recoverable(text);
        let mut reader = Self { text, mistakes: Vec::new() };
        for error in broken {
            reader.mistake(error.span().unwrap_or(0..0), error.message());
        }
        (reader, table.into_inner())
    }

    /// Returns what was read, or all mistakes; `path` is for the messages.
    ///
    /// # Errors
    /// `Mistakes` if any was noted.
    pub fn finish<T>(mut self, path: impl fmt::Display, read: T) -> Result<T, Mistakes> {
        if self.mistakes.is_empty() {
            return Ok(read);
        }
        self.mistakes.sort_by_key(|&(place, _)| place);
        let lines = self.mistakes.iter().map(|((line, column), message)| format!("{path}:{line}:{column}: {message}"));
        Err(Mistakes(lines.collect::<Vec<_>>().join("\n")))
    }

    /// Notes each key of a table that is none of `keys`, and which may have been meant; `place` tells of the table.
    pub fn known(&mut self, table: &DeTable<'_>, keys: &[&str], place: &str) {
        for key in table.keys() {
            let word = key.get_ref().as_ref();
            if keys.contains(&word) {
                continue;
            }
            let hint = match nearest(word, keys.iter().copied()) {
                Some(best) => format!("did you mean `{best}`?"),
                None => format!("the keys are {}", keys.join(", ")),
            };
            self.mistake(key.span(), format!("unknown key `{word}`{place}; {hint}"));
        }
    }

    /// Reads a table of the file by its name, and notes the keys in it that are none of `keys`.
    pub fn table<'v, 'd>(&mut self, value: &'v Value<'d>, name: &str, keys: &[&str]) -> Option<&'v DeTable<'d>> {
        let DeValue::Table(table) = value.get_ref() else {
            self.mistake(value.span(), format!("`{name}` is a table: write `[{name}]`"));
            return None;
        };
        self.known(table, keys, &format!(" in [{name}]"));
        Some(table)
    }

    /// Reads a string.
    pub fn text<'v>(&mut self, value: &'v Value<'_>) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.mistake(value.span(), "this must be a string in quotes");
        }
        text
    }

    /// Reads a string as `read` takes it; what `read` says is the mistake.
    pub fn read<T, E: fmt::Display>(
        &mut self,
        value: &Value<'_>,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let told = read(self.text(value)?);
        told.map_err(|error| self.mistake(value.span(), error.to_string())).ok()
    }

    /// Reads what a string means.
    pub fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, value: &Value<'_>) -> Option<T> {
        self.read(value, |text| text.parse().map_err(|error| format!("`{text}`: {error}")))
    }

    /// Returns the items of a list, of which one may stand alone; more than `most` are a mistake.
    pub fn items<'v, 'd>(&mut self, value: &'v Value<'d>, most: usize) -> &'v [Value<'d>] {
        let list = if let DeValue::Array(list) = value.get_ref() { list.as_ref() } else { std::slice::from_ref(value) };
        if list.len() > most {
            self.mistake(value.span(), format!("at most {most} entries"));
        }
        list
    }

    /// Notes a mistake at a place of the text, in bytes.
    pub fn mistake(&mut self, span: Range<usize>, message: impl Into<String>) {
        let place = position(self.text, span.start);
        self.mistakes.push((place, message.into()));
    }
}
