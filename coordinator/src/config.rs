//! coordinator.toml: where the coordinator listens and keeps its things. Every key is optional.
//!
//! A mistyped key is an error with a suggestion, and every error of the file is found in one run.

mod trust;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::store::etcd::Options;

pub use trust::{Jwks as JwksSource, Trust};

/// Where coordinator.toml lies unless `--config` says otherwise.
pub const CONFIG: &str = "/etc/mesh-coordinator/coordinator.toml";
/// Where the admin socket lies unless `admin_socket` or `--socket` says otherwise.
pub const ADMIN_SOCKET: &str = "/run/mesh-coordinator/admin.sock";
/// The port of the control channel where none is given.
pub const PORT: u16 = 7700;

const STATE_DIR: &str = "/var/lib/mesh-coordinator";
const BACKUPS: &str = "backups";
const SERVICES: &str = "/etc/mesh-coordinator/services.toml";
const METRICS: &str = "127.0.0.1:9587";
const KEYS: [&str; 10] =
    ["listen", "public", "state_dir", "services", "admin_socket", "metrics", "store", "etcd", "trust", "backups"];
const ETCD_KEYS: [&str; 6] = ["prefix", "ca", "cert", "key", "user", "password_file"];
/// Most addresses in `listen` and in `public`; a join token has room for as many.
const MAX_ADDRESSES: usize = 8;

/// What coordinator.toml says, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `listen`: where the control channel listens; by default all addresses, port 7700.
    pub listen: Vec<SocketAddr>,
    /// `public`: the addresses that join tokens carry, as `host:port`.
    pub public: Vec<String>,
    /// `state_dir`: where the identity key and the store lie.
    pub state_dir: PathBuf,
    /// `services`: the path of services.toml.
    pub services: PathBuf,
    /// `admin_socket`: the path of the Unix socket that the verbs speak to.
    pub admin_socket: PathBuf,
    /// `metrics`: where Prometheus reads; none if the file says `metrics = ""`.
    pub metrics: Option<SocketAddr>,
    /// `store` and `[etcd]`: the etcd that holds the mesh; a file in `state_dir` if `None`.
    pub etcd: Option<Options>,
    /// `[[trust]]`: issuers whose word on a machine's identity is taken.
    pub trust: Vec<Trust>,
    /// `backups`: where hourly copies of the store go; `backups` in `state_dir` by default.
    pub backups: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([0u16; 8], PORT))],
            public: Vec::new(),
            state_dir: STATE_DIR.into(),
            services: SERVICES.into(),
            admin_socket: ADMIN_SOCKET.into(),
            metrics: METRICS.parse().ok(),
            etcd: None,
            trust: Vec::new(),
            backups: Path::new(STATE_DIR).join(BACKUPS),
        }
    }
}

/// Says why coordinator.toml cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}; make one with `mesh-coordinator init --name NAME --public HOST:PORT`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file has errors: one line each, with file, line and column.
    #[error("{0}")]
    Content(String),
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// `ConfigError` if the file cannot be read or says something wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Reads the text of a file; `path` appears in messages, and relative paths start from its directory.
    ///
    /// # Errors
    /// `ConfigError::Content` with all errors of the text.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut reader = Reader { text, path, errors: String::new() };
        let (table, broken) = DeTable::parse_recoverable(text);
        for error in broken {
            let at = error.span().map_or(0, |span| span.start);
            reader.error(at, error.message());
        }
        let mut config = Self { backups: PathBuf::new(), ..Self::default() };
        for (key, value) in table.get_ref() {
            config.set(key, value, &mut reader);
        }
        if let Some(table) = table.get_ref().get("etcd") {
            reader.etcd(table, config.etcd.as_mut());
        }
        if config.backups.as_os_str().is_empty() {
            config.backups = config.state_dir.join(BACKUPS);
        }
        if reader.errors.is_empty() { Ok(config) } else { Err(ConfigError::Content(reader.errors.trim_end().into())) }
    }

    fn set(&mut self, key: &Spanned<std::borrow::Cow<'_, str>>, value: &Spanned<DeValue<'_>>, reader: &mut Reader<'_>) {
        match key.get_ref().as_ref() {
            "listen" => {
                self.listen = reader.list(value, |word| {
                    word.parse().map_err(|_| {
                        format!("`{word}` is not an address to listen on; write IP:PORT, such as \"0.0.0.0:{PORT}\" or \"[::]:{PORT}\"")
                    })
                });
            }
            "public" => self.public = reader.list(value, public),
            "state_dir" => reader.path(value, &mut self.state_dir),
            "services" => reader.path(value, &mut self.services),
            "admin_socket" => reader.path(value, &mut self.admin_socket),
            "metrics" => self.metrics = reader.metrics(value),
            "store" => self.etcd = reader.store(value),
            "backups" => reader.path(value, &mut self.backups),
            // Read when `store` is known.
            "etcd" => {}
            "trust" => self.trust = trust::read(value, reader),
            unknown => reader.unknown(key.span().start, unknown, &KEYS),
        }
    }
}

/// Checks an address that nodes are told, `host:port`, and returns it as written.
///
/// # Errors
/// A sentence that says what such an address looks like.
pub fn public(word: &str) -> Result<String, String> {
    let good = word.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host_fits = match bare {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'),
        };
        host_fits && host.len() <= 249 && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if good {
        Ok(word.into())
    } else {
        Err(format!(
            "`{word}` is not an address that nodes can dial; write HOST:PORT, such as \"mesh.example.com:{PORT}\" or \"[2001:db8::1]:{PORT}\""
        ))
    }
}

struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
    errors: String,
}

impl Reader<'_> {
    fn error(&mut self, at: usize, message: &str) {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        let _ = writeln!(self.errors, "{}:{line}:{column}: {message}", self.path.display());
    }

    fn string<'v>(&mut self, value: &'v Spanned<DeValue<'_>>) -> Option<&'v str> {
        let DeValue::String(word) = value.get_ref() else {
            self.error(value.span().start, "expected a string in quotes");
            return None;
        };
        Some(word)
    }

    fn list<T>(&mut self, value: &Spanned<DeValue<'_>>, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let one = std::slice::from_ref(value);
        let values = if let DeValue::Array(values) = value.get_ref() { values.as_ref() } else { one };
        if values.is_empty() || values.len() > MAX_ADDRESSES {
            self.error(value.span().start, &format!("write 1 to {MAX_ADDRESSES} addresses"));
        }
        let mut list = Vec::new();
        for value in values {
            let Some(word) = self.string(value) else {
                continue;
            };
            match parse(word) {
                Ok(item) => list.push(item),
                Err(message) => self.error(value.span().start, &message),
            }
        }
        list
    }

    fn path(&mut self, value: &Spanned<DeValue<'_>>, into: &mut PathBuf) {
        match self.string(value) {
            Some("") => self.error(value.span().start, "expected a path"),
            Some(word) => *into = self.beside(word),
            None => {}
        }
    }

    /// Returns a path that starts from the file's directory if it is relative.
    fn beside(&self, word: &str) -> PathBuf {
        self.path.parent().unwrap_or_else(|| Path::new("")).join(word)
    }

    fn metrics(&mut self, value: &Spanned<DeValue<'_>>) -> Option<SocketAddr> {
        let word = self.string(value)?;
        if word.is_empty() {
            return None;
        }
        let address = word.parse().ok();
        if address.is_none() {
            self.error(
                value.span().start,
                &format!(
                    "`{word}` is not an address to listen on; write IP:PORT, such as \"{METRICS}\", or \"\" for none"
                ),
            );
        }
        address
    }

    fn store(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Options> {
        match self.string(value)? {
            "embedded" => None,
            word if word.starts_with("etcd://") || word.starts_with("etcds://") => {
                let options = Options::parse(word);
                options.map_err(|message| self.error(value.span().start, &message)).ok()
            }
            word => {
                let message =
                    format!("`{word}` is not a store; use store = \"embedded\" or store = \"etcd://HOST:PORT\"");
                self.error(value.span().start, &message);
                None
            }
        }
    }

    fn etcd(&mut self, value: &Spanned<DeValue<'_>>, options: Option<&mut Options>) {
        let at = value.span().start;
        let DeValue::Table(table) = value.get_ref() else {
            self.error(at, "expected a table: [etcd]");
            return;
        };
        let Some(options) = options else {
            if self.errors.is_empty() {
                self.error(at, "[etcd] is for store = \"etcd://HOST:PORT\"; write that, or remove the table");
            }
            return;
        };
        for (key, value) in table {
            let mut path = PathBuf::new();
            match key.get_ref().as_ref() {
                "prefix" => options.prefix = self.string(value).map(str::to_owned),
                "user" => options.user = self.string(value).map(str::to_owned),
                word @ ("ca" | "cert" | "key" | "password_file") => {
                    self.path(value, &mut path);
                    let place = match word {
                        "ca" => &mut options.ca,
                        "cert" => &mut options.cert,
                        "key" => &mut options.key,
                        _ => &mut options.password_file,
                    };
                    *place = Some(path);
                }
                unknown => self.unknown(key.span().start, unknown, &ETCD_KEYS),
            }
        }
        if let Some(contradiction) = options.contradiction() {
            self.error(at, contradiction);
        }
    }

    fn unknown(&mut self, at: usize, unknown: &str, keys: &[&str]) {
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/x/coordinator.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn every_key_is_read_and_relative_paths_start_from_the_file() {
        let config = parse(
            "listen = \"10.0.0.1:7000\"\npublic = [\"mesh.example.com:7000\", \"[2001:db8::1]:7000\"]\n\
             state_dir = \"state\"\nservices = \"/srv/services.toml\"\nadmin_socket = \"run/a.sock\"\n\
             metrics = \"\"\nstore = \"embedded\"\n",
        )
        .unwrap();
        assert_eq!(config.listen, ["10.0.0.1:7000".parse().unwrap()]);
        assert_eq!(config.public, ["mesh.example.com:7000", "[2001:db8::1]:7000"]);
        assert_eq!(config.state_dir, Path::new("/etc/x/state"));
        assert_eq!(config.services, Path::new("/srv/services.toml"));
        assert_eq!(config.admin_socket, Path::new("/etc/x/run/a.sock"));
        assert_eq!(config.metrics, None);
    }

    #[test]
    fn all_errors_are_told_in_one_run_with_line_column_and_advice() {
        let errors = parse("listn = \"0.0.0.0:1\"\npublic = [\"nohost\", 7]\nmetrics = \"x\"\nstore = \"etcd:/a\"\n")
            .unwrap_err();
        let lines: Vec<&str> = errors.lines().collect();
        assert_eq!(lines.len(), 5, "{errors}");
        assert_eq!(lines[0], "/etc/x/coordinator.toml:1:1: unknown key `listn`; did you mean `listen`?");
        assert!(lines.iter().any(|l| l.starts_with("/etc/x/coordinator.toml:2:11: `nohost` is not")), "{errors}");
        assert!(lines.iter().any(|l| l.contains(":2:21: expected a string")), "{errors}");
        assert!(lines.iter().any(|l| l.contains("is not a store")), "{errors}");
    }

    #[test]
    fn the_store_in_etcd_is_read_with_its_table_wherever_it_stands() {
        let config =
            parse("store = \"etcds://a,b:1\"\n[etcd]\nca = \"ca.pem\"\nuser = \"mesh\"\npassword_file = \"/p\"\n");
        let etcd = config.unwrap().etcd.unwrap();
        assert_eq!(etcd.endpoints, ["a:2379", "b:1"]);
        assert_eq!(etcd.ca.as_deref(), Some(Path::new("/etc/x/ca.pem")));
        assert_eq!((etcd.user.as_deref(), etcd.password_file.as_deref()), (Some("mesh"), Some(Path::new("/p"))));
        for (text, says) in [
            ("store = \"etcd://a\"\n[etcd]\nca = \"x\"\n", ":2:1: `ca`, `cert` and `key` are for TLS"),
            ("store = \"etcds://a\"\n[etcd]\ncert = \"x\"\n", "`cert` and `key` belong together"),
            ("store = \"etcd://a\"\n[etcd]\nuser = \"x\"\n", "`user` and `password_file` belong together"),
            ("store = \"etcd://a\"\n[etcd]\npasswordfile = \"x\"\n", "did you mean `password_file`?"),
            ("[etcd]\nuser = \"x\"\n", "is for store = "),
        ] {
            let errors = parse(text).unwrap_err();
            assert!(errors.contains(says), "{errors}");
        }
    }

    #[test]
    fn broken_toml_is_told_with_its_place() {
        let errors = parse("listen = \n").unwrap_err();
        assert!(errors.starts_with("/etc/x/coordinator.toml:1:"), "{errors}");
    }
}
