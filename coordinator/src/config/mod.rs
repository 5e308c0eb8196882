//! coordinator.toml: where the coordinator listens and keeps its things. Every key is optional.
//!
//! A mistyped key is an error with a suggestion, and every error of the file is found in one run.

mod reader;
mod trust;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::base::words::{PORT, public};
use crate::store::etcd::EtcdOptions;
use reader::Reader;

pub use trust::{IssuerConfig, JwksSource};

/// Where coordinator.toml lies unless `--config` says otherwise.
pub const CONFIG: &str = "/etc/mesh-coordinator/coordinator.toml";
/// Where the admin socket lies unless `admin_socket` or `--socket` says otherwise.
pub const ADMIN_SOCKET: &str = "/run/mesh-coordinator/admin.sock";
const STATE_DIR: &str = "/var/lib/mesh-coordinator";
const BACKUPS: &str = "backups";
const SERVICES: &str = "/etc/mesh-coordinator/services.toml";
const METRICS: &str = "127.0.0.1:9587";
const KEYS: [&str; 10] =
    ["listen", "public", "state_dir", "services", "admin_socket", "metrics", "store", "etcd", "trust", "backups"];
const ETCD_KEYS: [&str; 6] = ["prefix", "ca", "cert", "key", "user", "password_file"];
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
    pub etcd: Option<EtcdOptions>,
    /// `[[trust]]`: issuers whose word on a machine's identity is taken.
    pub trust: Vec<IssuerConfig>,
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
            etcd(&mut reader, table, config.etcd.as_mut());
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
            "metrics" => self.metrics = metrics(reader, value),
            "store" => self.etcd = store(reader, value),
            "backups" => reader.path(value, &mut self.backups),
            // Read when `store` is known.
            "etcd" => {}
            "trust" => self.trust = trust::read(value, reader),
            unknown => reader.unknown(key.span().start, unknown, &KEYS),
        }
    }
}

fn metrics(reader: &mut Reader<'_>, value: &Spanned<DeValue<'_>>) -> Option<SocketAddr> {
    let word = reader.string(value)?;
    if word.is_empty() {
        return None;
    }
    let address = word.parse().ok();
    if address.is_none() {
        reader.error(
            value.span().start,
            &format!("`{word}` is not an address to listen on; write IP:PORT, such as \"{METRICS}\", or \"\" for none"),
        );
    }
    address
}

fn store(reader: &mut Reader<'_>, value: &Spanned<DeValue<'_>>) -> Option<EtcdOptions> {
    match reader.string(value)? {
        "embedded" => None,
        word if word.starts_with("etcd://") || word.starts_with("etcds://") => {
            let options = EtcdOptions::parse(word);
            options.map_err(|message| reader.error(value.span().start, &message)).ok()
        }
        word => {
            let message = format!("`{word}` is not a store; use store = \"embedded\" or store = \"etcd://HOST:PORT\"");
            reader.error(value.span().start, &message);
            None
        }
    }
}

fn etcd(reader: &mut Reader<'_>, value: &Spanned<DeValue<'_>>, options: Option<&mut EtcdOptions>) {
    let at = value.span().start;
    let DeValue::Table(table) = value.get_ref() else {
        reader.error(at, "expected a table: [etcd]");
        return;
    };
    let Some(options) = options else {
        if reader.errors.is_empty() {
            reader.error(at, "[etcd] is for store = \"etcd://HOST:PORT\"; write that, or remove the table");
        }
        return;
    };
    for (key, value) in table {
        let mut path = PathBuf::new();
        match key.get_ref().as_ref() {
            "prefix" => options.prefix = reader.string(value).map(str::to_owned),
            "user" => options.user = reader.string(value).map(str::to_owned),
            word @ ("ca" | "cert" | "key" | "password_file") => {
                reader.path(value, &mut path);
                let place = match word {
                    "ca" => &mut options.ca,
                    "cert" => &mut options.cert,
                    "key" => &mut options.key,
                    _ => &mut options.password_file,
                };
                *place = Some(path);
            }
            unknown => reader.unknown(key.span().start, unknown, &ETCD_KEYS),
        }
    }
    if let Some(contradiction) = options.contradiction() {
        reader.error(at, contradiction);
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
