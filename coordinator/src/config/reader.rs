//! Reading coordinator.toml word by word, with every error told at its line and column.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeValue;

/// Most addresses in `listen` and in `public`; a join token has room for as many.
const MAX_ADDRESSES: usize = 8;

/// Reads one file: what it says, and all that is wrong with it.
pub(super) struct Reader<'a> {
    /// What the file says.
    pub(super) text: &'a str,
    /// Where it lies.
    pub(super) path: &'a Path,
    /// What is wrong with it, a line each.
    pub(super) errors: String,
}

impl Reader<'_> {
    /// Notes an error at a byte of the file.
    pub(super) fn error(&mut self, at: usize, message: &str) {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        let _ = writeln!(self.errors, "{}:{line}:{column}: {message}", self.path.display());
    }

    /// Reads a word.
    pub(super) fn string<'v>(&mut self, value: &'v Spanned<DeValue<'_>>) -> Option<&'v str> {
        let DeValue::String(word) = value.get_ref() else {
            self.error(value.span().start, "expected a string in quotes");
            return None;
        };
        Some(word)
    }

    /// Reads an address or a list of them.
    pub(super) fn list<T>(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let one = std::slice::from_ref(value);
        let values = if let DeValue::Array(values) = value.get_ref() { values.as_ref() } else { one };
        if values.is_empty() || values.len() > MAX_ADDRESSES {
            self.error(value.span().start, &format!("write 1 to {MAX_ADDRESSES} addresses"));
        }
        let mut list = Vec::new();
        for value in values {
            let Some(word) = self.string(value) else { continue };
            match parse(word) {
                Ok(item) => list.push(item),
                Err(message) => self.error(value.span().start, &message),
            }
        }
        list
    }

    /// Reads a path; a relative one starts from the file's directory.
    pub(super) fn path(&mut self, value: &Spanned<DeValue<'_>>, into: &mut PathBuf) {
        match self.string(value) {
            Some("") => self.error(value.span().start, "expected a path"),
            Some(word) => *into = self.beside(word),
            None => {}
        }
    }

    /// Returns a path that starts from the file's directory if it is relative.
    pub(super) fn beside(&self, word: &str) -> PathBuf {
        self.path.parent().unwrap_or_else(|| Path::new("")).join(word)
    }

    /// Notes a key that is not known, and the nearest that is.
    pub(super) fn unknown(&mut self, at: usize, unknown: &str, keys: &[&str]) {
        let near = keys
            .iter()
            .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
            .filter(|(distance, known)| *distance <= known.len().div_ceil(3))
            .min();
        let advice = match near {
            Some((_, known)) => format!("did you mean `{known}`?"),
            None => format!("the keys are {}", keys.join(", ")),
        };
        self.error(at, &format!("unknown key `{unknown}`; {advice}"));
    }
}
