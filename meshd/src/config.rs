//! meshd.toml: what the operator of one machine may set. Every key is optional, and every error of the
//! file is found in one run, each with its line, its column and, for a mistyped key, a suggestion.

mod keys;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::Ipv4Net;
use mesh_proto::base::addr::overlaps_forbidden;
use mesh_proto::base::id::NodeName;
use mesh_proto::services::duration;
use mesh_proto::wire::{MAX_BLOCKS, MAX_ENDPOINTS, MAX_LANES};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::io::offloads::Offload;

pub use keys::Keys;

/// The keys of the file.
const KEYS: [&str; 15] = [
    "name",
    "state_dir",
    "runtime_dir",
    "interface",
    "port",
    "endpoints",
    "pods",
    "services",
    "socket",
    "metrics",
    "lanes",
    "dns",
    "offload",
    "keys",
    "max_offline",
];
/// The keys of `[dns]`.
const DNS_KEYS: [&str; 2] = ["enabled", "upstreams"];
/// The keys of `[offload]`.
const OFFLOAD_KEYS: [&str; 2] = ["tun", "udp"];
/// The shortest `max_offline`: a coordinator's restart takes no longer.
const LEAST_OFFLINE: Duration = Duration::from_secs(10);
/// Most upstream name servers.
const MAX_UPSTREAMS: usize = 3;

/// What the operator set, and defaults for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `name`: the name the node would like; its host name by default.
    pub name: NodeName,
    /// `state_dir`: keys, enrolment, the cached map.
    pub state_dir: PathBuf,
    /// `runtime_dir`: what a reboot may forget; the socket's directory by default.
    pub runtime_dir: PathBuf,
    /// `interface`.
    pub interface: String,
    /// `port`: lane 0's UDP port; lane i takes `port` + i.
    pub port: u16,
    /// `endpoints`: where others reach lane 0; the machine's own addresses if empty.
    pub endpoints: Vec<SocketAddr>,
    /// `pods`: the pod blocks behind this node.
    pub pods: Vec<Ipv4Net>,
    /// `services`: the node's own services.toml.
    pub services: PathBuf,
    /// `socket`: the control socket.
    pub socket: PathBuf,
    /// `metrics`: the listener for Prometheus; `None` for `metrics = "off"`.
    pub metrics: Option<SocketAddr>,
    /// `lanes`: worker threads, 1 to 16.
    pub lanes: usize,
    /// `[dns]`.
    pub dns: Dns,
    /// `[offload]`.
    pub offload: Offload,
    /// `[keys]`.
    pub keys: Keys,
    /// `max_offline`: how long without a coordinator new peers are spoken to; `None` for "never" an end.
    pub max_offline: Option<Duration>,
}

/// `[dns]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// `enabled`: whether the node answers names on its DNS address.
    pub enabled: bool,
    /// `upstreams`: who is asked for names outside the mesh; at most 3.
    pub upstreams: Vec<SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            name: host_name(),
            state_dir: "/var/lib/meshd".into(),
            runtime_dir: "/run/meshd".into(),
            interface: "mesh0".into(),
            port: 51820,
            endpoints: Vec::new(),
            pods: Vec::new(),
            services: "/etc/meshd/services.toml".into(),
            socket: "/run/meshd/meshd.sock".into(),
            metrics: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9586))),
            lanes: cores.min(MAX_LANES),
            dns: Dns { enabled: true, upstreams: Vec::new() },
            offload: Offload::default(),
            keys: Keys::default(),
            max_offline: Some(Duration::from_secs(7 * 86_400)),
        }
    }
}

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}: {error}; give another with --config PATH", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It says something that cannot be.
    #[error("{0}")]
    Mistakes(Mistakes),
}

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

impl Config {
    /// Reads the file; one that does not exist at the default place means defaults.
    ///
    /// # Errors
    /// `ConfigError` if it cannot be read or says something that cannot be.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&path.display().to_string(), &text).map_err(ConfigError::Mistakes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path == Path::new(crate::cli::CONFIG) => {
                Ok(Self::default())
            }
            Err(error) => Err(ConfigError::Read { path: path.into(), error }),
        }
    }

    /// Returns the file of the flow table, which is written with every new connection. It lies in a folder of its own,
    /// so that this wakes nobody who watches a folder for `services.toml`, not even where all files share one.
    pub fn flow_file(&self) -> PathBuf {
        self.runtime_dir.join("data").join("flows")
    }

    /// Reads the text of a file; `path` is for the messages.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(path: &str, text: &str) -> Result<Self, Mistakes> {
        let (table, syntax) = DeTable::parse_recoverable(text);
        let mut reader = Reader { text, mistakes: Vec::new() };
        for error in syntax {
            reader.mistake(error.span().unwrap_or(0..0), error.message().to_owned());
        }
        let config = reader.config(table.get_ref());
        reader.mistakes.sort_by_key(|m| (m.line, m.column));
        if reader.mistakes.is_empty() { Ok(config) } else { Err(Mistakes { path: path.into(), list: reader.mistakes }) }
    }
}

/// Walks the table and collects mistakes.
struct Reader<'t> {
    text: &'t str,
    mistakes: Vec<Mistake>,
}

type Value<'t> = Spanned<DeValue<'t>>;

impl Reader<'_> {
    fn config(&mut self, table: &DeTable<'_>) -> Config {
        self.known(table, &KEYS, "");
        let mut config = Config::default();
        let get = |key: &str| table.get(key);
        if let Some(name) = get("name").and_then(|v| self.parsed(v)) {
            config.name = name;
        }
        if let Some(path) = get("state_dir").and_then(|v| self.path(v)) {
            config.state_dir = path;
        }
        if let Some(path) = get("services").and_then(|v| self.path(v)) {
            config.services = path;
        }
        if let Some(path) = get("socket").and_then(|v| self.path(v)) {
            config.runtime_dir = path.parent().unwrap_or_else(|| Path::new("/")).into();
            config.socket = path;
        }
        if let Some(path) = get("runtime_dir").and_then(|v| self.path(v)) {
            config.runtime_dir = path;
        }
        if let Some(name) = get("interface").and_then(|v| self.interface(v)) {
            config.interface = name;
        }
        if let Some(lanes) = get("lanes").and_then(|v| self.number(v, 1, MAX_LANES as u16)) {
            config.lanes = usize::from(lanes);
        }
        if let Some(port) = get("port").and_then(|v| self.number(v, 1, u16::MAX)) {
            config.port = port;
            let last = usize::from(port) + config.lanes - 1;
            if let (Some(value), true) = (get("port"), last > usize::from(u16::MAX)) {
                let most = 65536 - config.lanes;
                self.mistake(
                    value.span(),
                    format!("lane i takes port + i, so with {} lanes the port is at most {most}", config.lanes),
                );
            }
        }
        if let Some(value) = get("metrics") {
            match self.text(value) {
                Some("off") => config.metrics = None,
                Some(_) => config.metrics = self.parsed(value),
                None => {}
            }
        }
        if let Some(value) = get("endpoints") {
            config.endpoints = self.sockets(value, config.port, MAX_ENDPOINTS);
        }
        if let Some(value) = get("pods") {
            config.pods = self.pods(value);
        }
        if let Some(value) = get("dns") {
            self.dns(value, &mut config.dns);
        }
        if let Some(value) = get("offload") {
            self.offload(value, &mut config.offload);
        }
        if let Some(value) = get("keys") {
            self.keys(value, &mut config.keys);
        }
        if let Some(value) = get("max_offline") {
            match value.get_ref().as_str().map(|text| (text, duration(text))) {
                Some(("never", _)) => config.max_offline = None,
                Some((_, Some(span))) if span >= LEAST_OFFLINE => config.max_offline = Some(span),
                Some(_) | None => {
                    self.mistake(
                        value.span(),
                        "`max_offline` is a time of 10s or more, such as \"7d\", or \"never\"".into(),
                    );
                }
            }
        }
        config
    }

    fn dns(&mut self, value: &Value<'_>, dns: &mut Dns) {
        let DeValue::Table(table) = value.get_ref() else {
            return self.mistake(value.span(), "`dns` is a table: write `[dns]`".into());
        };
        self.known(table, &DNS_KEYS, " in [dns]");
        if let Some(value) = table.get("enabled") {
            match value.get_ref().as_bool() {
                Some(enabled) => dns.enabled = enabled,
                None => self.mistake(value.span(), "`enabled` is true or false".into()),
            }
        }
        if let Some(value) = table.get("upstreams") {
            dns.upstreams = self.sockets(value, 53, MAX_UPSTREAMS);
        }
    }

    fn offload(&mut self, value: &Value<'_>, offload: &mut Offload) {
        let DeValue::Table(table) = value.get_ref() else {
            return self.mistake(value.span(), "`offload` is a table: write `[offload]`".into());
        };
        self.known(table, &OFFLOAD_KEYS, " in [offload]");
        for (key, switch) in [("tun", &mut offload.tun), ("udp", &mut offload.udp)] {
            let Some(value) = table.get(key) else { continue };
            match value.get_ref().as_str() {
                Some("auto") => *switch = true,
                Some("off") => *switch = false,
                Some(_) | None => self.mistake(value.span(), format!("`{key}` is \"auto\" or \"off\"")),
            }
        }
    }

    fn known(&mut self, table: &DeTable<'_>, keys: &[&str], place: &str) {
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

    fn text<'v>(&mut self, value: &'v Value<'_>) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.mistake(value.span(), "this must be a string in quotes".into());
        }
        text
    }

    fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, value: &Value<'_>) -> Option<T> {
        let text = self.text(value)?;
        match text.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.mistake(value.span(), format!("`{text}`: {error}"));
                None
            }
        }
    }

    fn path(&mut self, value: &Value<'_>) -> Option<PathBuf> {
        let text = self.text(value)?;
        if !text.starts_with('/') {
            self.mistake(value.span(), format!("`{text}` must be an absolute path"));
            return None;
        }
        Some(text.into())
    }

    fn interface(&mut self, value: &Value<'_>) -> Option<String> {
        let text = self.text(value)?;
        let fits = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%';
        if !(1..=15).contains(&text.len()) || !text.bytes().all(fits) || text == "lo" {
            let hint = "use 1 to 15 letters, digits, `-`, `_` or `.`";
            self.mistake(value.span(), format!("`{text}` is no interface name; {hint}"));
            return None;
        }
        Some(text.into())
    }

    fn number(&mut self, value: &Value<'_>, least: u16, most: u16) -> Option<u16> {
        let integer = value.get_ref().as_integer();
        let number = integer.and_then(|i| u16::from_str_radix(i.as_str(), i.radix()).ok());
        let number = number.filter(|n| (least..=most).contains(n));
        if number.is_none() {
            self.mistake(value.span(), format!("this must be a number from {least} to {most}, without quotes"));
        }
        number
    }

    /// A string, or a list of strings.
    fn strings<'v, 't>(&mut self, value: &'v Value<'t>, most: usize) -> Vec<&'v Value<'t>> {
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

    fn sockets(&mut self, value: &Value<'_>, port: u16, most: usize) -> Vec<SocketAddr> {
        let mut sockets = Vec::new();
        for item in self.strings(value, most) {
            let Some(text) = self.text(item) else {
                continue;
            };
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

    fn pods(&mut self, value: &Value<'_>) -> Vec<Ipv4Net> {
        let mut pods: Vec<Ipv4Net> = Vec::new();
        for item in self.strings(value, MAX_BLOCKS) {
            let Some(text) = self.text(item) else {
                continue;
            };
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

    fn mistake(&mut self, span: Range<usize>, message: String) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        self.mistakes.push(Mistake {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        });
    }
}

/// Returns the machine's host name, made a valid name.
fn host_name() -> NodeName {
    let uname = rustix::system::uname();
    label(&uname.nodename().to_string_lossy())
}

fn label(host: &str) -> NodeName {
    let first = host.split('.').next().unwrap_or_default();
    let mapped: String = first
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(63)
        .collect();
    let name = mapped.trim_matches('-');
    let name = if name.is_empty() { "node" } else { name };
    name.parse().expect("letters, digits and inner hyphens, 1 to 63 of them")
}

#[cfg(test)]
mod tests;
