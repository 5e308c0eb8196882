//! What is wrong with a file, where, and what to do about it: collected, then shown to people or machines.

use std::fmt;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde_json::{Value, json};

use super::model::Span;

/// Whether a diagnostic refuses the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file is not taken.
    Error,
    /// The file is taken; the operator should know.
    Warning,
}

impl Severity {
    /// Returns the word that reports print.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Its number, such as `MESH0104`: stable, so that it can be looked up.
    pub code: &'static str,
    /// Whether it refuses the file.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
    /// The place, inside the text.
    pub span: Span,
    /// What stands under the place; may be empty.
    pub label: String,
    /// What to do, where the label does not say it.
    pub help: Option<String>,
    /// Other places that belong to it, each with a label.
    pub secondary: Vec<(Span, String)>,
}

impl Diagnostic {
    /// Makes an error.
    pub fn error(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: message.into(),
            span,
            label: String::new(),
            help: None,
            secondary: Vec::new(),
        }
    }

    /// Makes a warning.
    pub fn warning(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, span, message) }
    }

    /// Sets what stands under the place.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Sets what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds another place.
    #[must_use]
    pub fn also(mut self, span: Span, label: impl Into<String>) -> Self {
        self.secondary.push((span, label.into()));
        self
    }

    fn render(&self, renderer: &Renderer, file: &str, text: &str) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let places = || std::iter::once(self.span).chain(self.secondary.iter().map(|s| s.0));
        let places = places().map(|span| inside(text, span));
        // Only the lines between the first and the last place: the renderer's cost grows with the source.
        let first = places.clone().map(|s| s.start).min().unwrap_or(0);
        let last = places.map(|s| s.end).max().unwrap_or(0);
        let from = text[..first].rfind('\n').map_or(0, |at| at + 1);
        let to = text[last..].find('\n').map_or(text.len(), |at| last + at);
        let shown = |span: Span| {
            let span = inside(text, span);
            span.start - from..span.end - from
        };
        let label = (!self.label.is_empty()).then_some(self.label.as_str());
        let snippet = Snippet::source(&text[from..to])
            .path(file)
            .line_start(position(text, from).0)
            .annotation(AnnotationKind::Primary.span(shown(self.span)).label(label))
            .annotations(
                self.secondary
                    .iter()
                    .map(|(span, label)| AnnotationKind::Context.span(shown(*span)).label(label.as_str())),
            );
        let title = level.primary_title(self.message.as_str()).id(self.code);
        let mut group = title.element(snippet);
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        renderer.render(&[group])
    }
}

/// All that is wrong with one file, with its text, so that it can be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics {
    /// The path, as the operator wrote it.
    pub file: String,
    /// What the file holds.
    pub text: String,
    /// What is wrong, in the order of the file.
    pub list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Joins a file with what is wrong in it.
    pub fn new(file: &str, text: &str, list: Vec<Diagnostic>) -> Self {
        Self { file: file.into(), text: text.into(), list }
    }

    /// Counts in words: `2 errors, 1 warning`; empty if nothing is wrong.
    pub fn summary(&self) -> String {
        let parts = [Severity::Error, Severity::Warning].map(|severity| {
            let count = self.count(severity);
            let plural = if count == 1 { "" } else { "s" };
            (count > 0).then(|| format!("{count} {}{plural}", severity.as_str()))
        });
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        parts.join(", ")
    }

    /// Draws every diagnostic with its line of the file, and ends with the summary, without a final newline.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for diagnostic in &self.list {
            out.push_str(&diagnostic.render(&renderer, &self.file, &self.text));
            out.push_str("\n\n");
        }
        out.push_str(&self.summary());
        out
    }

    /// One line for each diagnostic, `file:line:col: error[MESH0104]: message; what to do`, for logs and status.
    pub fn lines(&self) -> Vec<String> {
        let line = |d: &Diagnostic| {
            let (line, column) = position(&self.text, d.span.start);
            let severity = d.severity.as_str();
            let (file, code, message) = (&self.file, d.code, &d.message);
            let advice = d.help.as_deref().unwrap_or(&d.label);
            let gap = if advice.is_empty() { "" } else { "; " };
            format!("{file}:{line}:{column}: {severity}[{code}]: {message}{gap}{advice}")
        };
        self.list.iter().map(line).collect()
    }

    /// The same for machines: counts and, for each, place, code, message, label, help and other places.
    pub fn to_json(&self) -> Value {
        let place = |span: Span| {
            let (line, column) = position(&self.text, span.start);
            json!({ "file": self.file, "line": line, "col": column })
        };
        let one = |d: &Diagnostic| {
            let also = d.secondary.iter().map(|(span, label)| {
                let mut value = place(*span);
                value["label"] = json!(label);
                value
            });
            let mut value = place(d.span);
            value["severity"] = json!(d.severity.as_str());
            value["code"] = json!(d.code);
            value["message"] = json!(d.message);
            value["label"] = json!(d.label);
            value["help"] = json!(d.help);
            value["also"] = also.collect();
            value
        };
        json!({
            "schema": "diagnostics/1",
            "file": self.file,
            "errors": self.count(Severity::Error),
            "warnings": self.count(Severity::Warning),
            "diagnostics": self.list.iter().map(one).collect::<Vec<_>>(),
        })
    }

    fn count(&self, severity: Severity) -> usize {
        self.list.iter().filter(|d| d.severity == severity).count()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}

/// Finds the line and column of a byte, both counted from 1, columns in characters.
pub fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..floor(text, offset)];
    let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    (line, before[start..].chars().count() + 1)
}

/// Counts lines for growing offsets, so that a long text is scanned once.
pub(super) struct Lines<'t> {
    text: &'t str,
    offset: usize,
    line: usize,
}

impl<'t> Lines<'t> {
    /// Starts at the first line.
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, offset: 0, line: 1 }
    }

    /// Returns the line of an offset, which is not before the one asked for last.
    pub(super) fn at(&mut self, offset: usize) -> usize {
        let between = self.text.get(self.offset..offset).unwrap_or_default();
        self.line += between.bytes().filter(|&b| b == b'\n').count();
        self.offset = offset.max(self.offset);
        self.line
    }
}

/// Cuts a span to the text and to whole characters.
fn inside(text: &str, span: Span) -> Span {
    let start = floor(text, span.start);
    let end = floor(text, span.end.max(start));
    Span { start, end }
}

fn floor(text: &str, offset: usize) -> usize {
    text.floor_char_boundary(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# ä\nname = \"x\"\r\nport = 1\n";

    fn span(start: usize, end: usize) -> Span {
        Span { start, end }
    }

    #[test]
    fn a_position_counts_characters_from_one() {
        assert_eq!(position(TEXT, 0), (1, 1));
        assert_eq!(position(TEXT, TEXT.find('\n').unwrap_or(0)), (1, 4));
        assert_eq!(position(TEXT, 5), (2, 1));
        assert_eq!(position(TEXT, 9999), (4, 1));
    }

    #[test]
    fn a_report_shows_place_label_help_and_count() {
        let list = vec![
            Diagnostic::error("MESH0104", span(5, 9), "unknown key `name`")
                .label("did you mean `named`?")
                .help("mend it")
                .also(span(17, 21), "another"),
            Diagnostic::warning("MESH0153", span(17, 21), "no"),
        ];
        let all = Diagnostics::new("a/services.toml", TEXT, list);

        let report = all.render(false);

        for part in [
            "error[MESH0104]: unknown key `name`",
            "--> a/services.toml:2:1",
            "^^^^ did you mean `named`?",
            "---- another",
            "= help: mend it",
        ] {
            assert!(report.contains(part), "{part} is missing in\n{report}");
        }
        assert!(report.ends_with("1 error, 1 warning"), "{report}");
        assert_eq!(all.lines()[0], "a/services.toml:2:1: error[MESH0104]: unknown key `name`; mend it");
        assert_eq!(all.lines()[1], "a/services.toml:3:1: warning[MESH0153]: no");
        assert_eq!(all.to_json()["diagnostics"][0]["line"], 2);
        assert!(all.render(true).contains('\u{1b}'));
    }

    #[test]
    fn a_span_outside_the_text_or_inside_a_character_is_cut() {
        for (start, end) in [(3, 3), (3, 900), (900, 901), (9, 2), (0, TEXT.len())] {
            let one = Diagnostic::error("MESH0100", span(start, end), "x");
            let all = Diagnostics::new("f", TEXT, vec![one]);
            assert!(all.render(false).contains("--> f:"), "{start}..{end}");
        }
        let all = Diagnostics::new("f", "", vec![Diagnostic::error("M", span(0, 0), "x")]);
        assert!(all.render(false).ends_with("1 error"));
    }
}
