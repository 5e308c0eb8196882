//! Reading values of a TOML file: each mistake is noted with its place, and reading goes on.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::Ipv4Net;
use mesh_proto::base::addr::overlaps_forbidden;
use mesh_proto::wire::MAX_BLOCKS;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Every mistake of a file, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    path: String,
    list: Vec<Mistake>,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, m) in self.list.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{}:{}:{}: {}", self.path, m.line, m.column, m.message)?;
        }
        Ok(())
    }
}

/// A value and its place.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// Reads values and collects mistakes.
pub(super) struct Reader<'t> {
    text: &'t str,
    mistakes: Vec<Mistake>,
}

impl<'s> Reader<'s> {
    /// Starts without mistakes; `text` is that of the file.
    pub(super) fn new(text: &'s str) -> Self {
        Self { text, mistakes: Vec::new() }
    }

    /// Returns what was read, or all mistakes in their order; `path` is for the messages.
    pub(super) fn finish<T>(mut self, path: &str, read: T) -> Result<T, Mistakes> {
        self.mistakes.sort_by_key(|m| (m.line, m.column));
        if self.mistakes.is_empty() { Ok(read) } else { Err(Mistakes { path: path.into(), list: self.mistakes }) }
    }

    pub(super) fn known(&mut self, table: &DeTable<'_>, keys: &[&str], place: &str) {
        for key in table.keys() {
            let word = key.get_ref().as_ref();
            if keys.contains(&word) {
                continue;
            }
            let near = |k: &&&str| strsim::damerau_levenshtein(word, k);
            let hint = match keys.iter().min_by_key(near) {
                Some(best) if strsim::damerau_levenshtein(word, best) <= 2 => {
                    format!("did you mean `{best}`?")
                }
                Some(_) | None => format!("the keys are {}", keys.join(", ")),
            };
            self.mistake(key.span(), format!("unknown key `{word}`{place}; {hint}"));
        }
    }

    pub(super) fn text<'v>(&mut self, value: &'v Value<'_>) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.mistake(value.span(), "this must be a string in quotes".into());
        }
        text
    }

    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, value: &Value<'_>) -> Option<T> {
        let text = self.text(value)?;
        match text.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.mistake(value.span(), format!("`{text}`: {error}"));
                None
            }
        }
    }

    pub(super) fn path(&mut self, value: &Value<'_>) -> Option<PathBuf> {
        let text = self.text(value)?;
        if !text.starts_with('/') {
            self.mistake(value.span(), format!("`{text}` must be an absolute path"));
            return None;
        }
        Some(text.into())
    }

    pub(super) fn interface(&mut self, value: &Value<'_>) -> Option<String> {
        let text = self.text(value)?;
        let fits = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%';
        if !(1..=15).contains(&text.len()) || !text.bytes().all(fits) || text == "lo" {
            let hint = "use 1 to 15 letters, digits, `-`, `_` or `.`";
            self.mistake(value.span(), format!("`{text}` is no interface name; {hint}"));
            return None;
        }
        Some(text.into())
    }

    pub(super) fn number(&mut self, value: &Value<'_>, least: u16, most: u16) -> Option<u16> {
        let integer = value.get_ref().as_integer();
        let number = integer.and_then(|i| u16::from_str_radix(i.as_str(), i.radix()).ok());
        let number = number.filter(|n| (least..=most).contains(n));
        if number.is_none() {
            self.mistake(value.span(), format!("this must be a number from {least} to {most}, without quotes"));
        }
        number
    }

    /// A string, or a list of strings.
    pub(super) fn strings<'v, 't>(&mut self, value: &'v Value<'t>, most: usize) -> Vec<&'v Value<'t>> {
        let list: Vec<_> = match value.get_ref() {
            DeValue::Array(list) => list.iter().collect(),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Table(_) => vec![value],
        };
        if list.len() > most {
            self.mistake(value.span(), format!("at most {most} entries"));
        }
        list
    }

    pub(super) fn sockets(&mut self, value: &Value<'_>, port: u16, most: usize) -> Vec<SocketAddr> {
        let mut sockets = Vec::new();
        for item in self.strings(value, most) {
            let Some(text) = self.text(item) else { continue };
            let bare = |text: &str| text.parse::<IpAddr>().ok().map(|ip| (ip, port).into());
            match text.parse().ok().or_else(|| bare(text)) {
                Some(socket) => sockets.push(socket),
                None => self.mistake(
                    item.span(),
                    format!("`{text}` is no address; write IP:PORT or IP, such as \"192.0.2.7:{port}\""),
                ),
            }
        }
        sockets
    }

    pub(super) fn pods(&mut self, value: &Value<'_>) -> Vec<Ipv4Net> {
        let mut pods: Vec<Ipv4Net> = Vec::new();
        for item in self.strings(value, MAX_BLOCKS) {
            let Some(text) = self.text(item) else { continue };
            let Ok(net) = text.parse::<Ipv4Net>() else {
                let hint = "write it as \"10.8.1.0/24\"";
                self.mistake(item.span(), format!("`{text}` is no IPv4 prefix; {hint}"));
                continue;
            };
            if net.addr() != net.network() {
                let hint = format!("write \"{}\"", net.trunc());
                self.mistake(item.span(), format!("`{text}` has host bits set; {hint}"));
            } else if net.prefix_len() < 9 || overlaps_forbidden(net) {
                let why = "it contains addresses that no pod may have, or is larger than /9";
                self.mistake(item.span(), format!("`{text}` cannot be a pod block: {why}"));
            } else if let Some(other) = pods.iter().find(|&&p| mesh_proto::base::addr::overlap(p, net)) {
                self.mistake(item.span(), format!("`{text}` overlaps `{other}`; name each block once"));
            } else {
                pods.push(net);
            }
        }
        pods
    }

    pub(super) fn mistake(&mut self, span: Range<usize>, message: String) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        self.mistakes.push(Mistake {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        });
    }
}
