//! coordinator.toml: where the coordinator listens and keeps its things. Every key is optional.
//!
//! A mistyped key is an error with a suggestion, and every error of the file is found in one run.

mod trust;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use mesh_host::http::host_names::{MAX_NAMES, host_name};
use mesh_host::toml_reader::{Mistakes, Reader, Value};
use toml::de::DeTable;

use crate::base::words::{PORT, public};
use crate::store::etcd::EtcdOptions;

pub use trust::{IssuerConfig, JwksSource};

/// Where coordinator.toml lies unless `--config` says otherwise.
pub const CONFIG: &str = "/etc/mesh-coordinator/coordinator.toml";
/// Where the admin socket lies unless `admin_socket` or `--socket` says otherwise.
pub const ADMIN_SOCKET: &str = "/run/mesh-coordinator/admin.sock";
const STATE_DIR: &str = "/var/lib/mesh-coordinator";
const BACKUPS: &str = "backups";
const SERVICES: &str = "/etc/mesh-coordinator/services.toml";
const METRICS: &str = "127.0.0.1:9587";
/// Most addresses in `listen` and in `public`; a join token has room for as many.
const MAX_ADDRESSES: usize = 8;
const KEYS: [&str; 11] = [
    "listen",
    "public",
    "state_dir",
    "services",
    "admin_socket",
    "metrics",
    "metrics_hosts",
    "store",
    "etcd",
    "trust",
    "backups",
];
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
    /// `metrics_hosts`: the names that Prometheus may call it by, apart from addresses and localhost; none if not set.
    pub metrics_hosts: Vec<String>,
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
            metrics_hosts: Vec::new(),
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
    #[error(transparent)]
    Content(#[from] Mistakes),
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
        let (mut reader, table) = Reader::parse(text);
        let from = path.parent().unwrap_or_else(|| Path::new(""));
        let config = read(&mut reader, &table, from);
        Ok(reader.finish(path.display(), config)?)
    }
}

fn read(reader: &mut Reader<'_>, table: &DeTable<'_>, from: &Path) -> Config {
    reader.known(table, &KEYS, "");
    let mut config = Config::default();
    if let Some(value) = table.get("listen") {
        config.listen = addresses(reader, value, |word| {
            word.parse().map_err(|_| {
                format!("`{word}` is not an address to listen on; write IP:PORT, such as \"0.0.0.0:{PORT}\" or \"[::]:{PORT}\"")
            })
        });
    }
    if let Some(value) = table.get("public") {
        config.public = addresses(reader, value, public);
    }
    let mut file = |key| table.get(key).and_then(|value| reader.read(value, |word| beside(from, word)));
    config.state_dir = file("state_dir").unwrap_or(config.state_dir);
    config.services = file("services").unwrap_or(config.services);
    config.admin_socket = file("admin_socket").unwrap_or(config.admin_socket);
    config.backups = file("backups").unwrap_or_else(|| config.state_dir.join(BACKUPS));
    if let Some(value) = table.get("metrics") {
        config.metrics = reader.read(value, metrics).flatten();
    }
    if let Some(value) = table.get("metrics_hosts") {
        let names = reader.items(value, MAX_NAMES).iter();
        config.metrics_hosts = names.filter_map(|name| reader.read(name, host_name)).collect();
    }
    if let Some(value) = table.get("store") {
        config.etcd = reader.read(value, store).flatten();
    }
    if let Some(value) = table.get("etcd") {
        let is_meant = table.get("store").is_none_or(|store| store.get_ref().as_str() == Some("embedded"));
        etcd(reader, value, config.etcd.as_mut(), is_meant, from);
    }
    if let Some(value) = table.get("trust") {
        config.trust = trust::read(value, reader, from);
    }
    config
}

/// Reads an address or a list of them.
fn addresses<T>(reader: &mut Reader<'_>, value: &Value<'_>, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
    let items = reader.items(value, MAX_ADDRESSES);
    if items.is_empty() {
        reader.mistake(value.span(), format!("write 1 to {MAX_ADDRESSES} addresses"));
    }
    items.iter().filter_map(|item| reader.read(item, &parse)).collect()
}

/// Reads a path; a relative one starts from the file's directory.
fn beside(from: &Path, word: &str) -> Result<PathBuf, &'static str> {
    if word.is_empty() { Err("expected a path") } else { Ok(from.join(word)) }
}

fn metrics(word: &str) -> Result<Option<SocketAddr>, String> {
    let address = (!word.is_empty()).then(|| word.parse()).transpose();
    address.map_err(|_| {
        format!("`{word}` is not an address to listen on; write IP:PORT, such as \"{METRICS}\", or \"\" for none")
    })
}

fn store(word: &str) -> Result<Option<EtcdOptions>, String> {
    match word {
        "embedded" => Ok(None),
        word if word.starts_with("etcd://") || word.starts_with("etcds://") => EtcdOptions::parse(word).map(Some),
        word => Err(format!("`{word}` is not a store; use store = \"embedded\" or store = \"etcd://HOST:PORT\"")),
    }
}

/// Reads `[etcd]` into `options`; without them it is a mistake, unless `store` is one already.
fn etcd(reader: &mut Reader<'_>, value: &Value<'_>, options: Option<&mut EtcdOptions>, is_embedded: bool, from: &Path) {
    let Some(table) = reader.table(value, "etcd", &ETCD_KEYS) else { return };
    let Some(options) = options else {
        if is_embedded {
            reader.mistake(value.span(), "[etcd] is for store = \"etcd://HOST:PORT\"; write that, or remove the table");
        }
        return;
    };
    options.prefix = table.get("prefix").and_then(|value| reader.text(value)).map(str::to_owned);
    options.user = table.get("user").and_then(|value| reader.text(value)).map(str::to_owned);
    let mut file = |key| table.get(key).and_then(|value| reader.read(value, |word| beside(from, word)));
    options.ca = file("ca");
    options.cert = file("cert");
    options.key = file("key");
    options.password_file = file("password_file");
    if let Some(contradiction) = options.contradiction() {
        reader.mistake(value.span(), contradiction);
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
             metrics = \"\"\nmetrics_hosts = \"metrics.example.com\"\nstore = \"embedded\"\n",
        )
        .unwrap();
        assert_eq!(config.listen, ["10.0.0.1:7000".parse().unwrap()]);
        assert_eq!(config.public, ["mesh.example.com:7000", "[2001:db8::1]:7000"]);
        assert_eq!(config.state_dir, Path::new("/etc/x/state"));
        assert_eq!(config.services, Path::new("/srv/services.toml"));
        assert_eq!(config.admin_socket, Path::new("/etc/x/run/a.sock"));
        assert_eq!((config.metrics, &*config.metrics_hosts), (None, &["metrics.example.com".to_owned()][..]));
    }

    #[test]
    fn all_errors_are_told_in_one_run_with_line_column_and_advice() {
        let errors = parse("listn = \"0.0.0.0:1\"\npublic = [\"nohost\", 7]\nmetrics = \"x\"\nstore = \"etcd:/a\"\n")
            .unwrap_err();
        let lines: Vec<&str> = errors.lines().collect();
        assert_eq!(lines.len(), 5, "{errors}");
        assert_eq!(lines[0], "/etc/x/coordinator.toml:1:1: unknown key `listn`; did you mean `listen`?");
        assert!(lines.iter().any(|l| l.starts_with("/etc/x/coordinator.toml:2:11: `nohost` is not")), "{errors}");
        assert!(lines.iter().any(|l| l.contains(":2:21: this must be a string")), "{errors}");
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
