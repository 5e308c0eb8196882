//! meshd.toml: what the operator of one machine may set. Every key is optional, and every error of the
//! file is found in one run, each with its line, its column and, for a mistyped key, a suggestion.

pub mod accepted;
mod keys;
mod values;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use mesh_proto::base::id::NodeName;
use mesh_proto::services::duration;
use mesh_proto::wire::{MAX_ENDPOINTS, MAX_LANES};
use toml::de::DeTable;

use crate::io::offloads::Offload;
use crate::linux::MAX_POD_INTERFACES;

pub use keys::KeysConfig;
use mesh_host::toml_reader::{Mistakes, Reader, Value};

/// Where meshd looks for its configuration.
pub const CONFIG: &str = "/etc/meshd/meshd.toml";
/// The keys of the file.
const KEYS: [&str; 18] = [
    "name",
    "state_dir",
    "runtime_dir",
    "interface",
    "port",
    "endpoints",
    "pods",
    "pod_interfaces",
    "services",
    "socket",
    "metrics",
    "metrics_hosts",
    "lanes",
    "mtu",
    "dns",
    "offload",
    "keys",
    "max_offline",
];
/// The keys of `[dns]`.
const DNS_KEYS: [&str; 2] = ["enabled", "upstreams"];
/// The keys of `[offload]`.
const OFFLOAD_KEYS: [&str; 2] = ["tun", "udp"];
/// What the mesh interface's MTU may be, in bytes: from what every IPv4 host must take (RFC 791) to jumbo frames less the
/// outer headers. Loopback's 65536 would only make fragments elsewhere.
pub const MTUS: RangeInclusive<u16> = 576..=8920;
/// The shortest `max_offline`: a coordinator's restart takes no longer.
const LEAST_OFFLINE: Duration = Duration::from_secs(10);
/// Most upstream name servers.
const MAX_UPSTREAMS: usize = 3;

/// What the operator set, and defaults for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `name`: the name the node would like; its host name by default.
    pub name: NodeName,
    /// Whether the file names it.
    pub is_name_set: bool,
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
    /// `pod_interfaces`: interfaces whose pods are routed back over another one; `*` at the end stands for any rest.
    pub pod_interfaces: Vec<String>,
    /// `services`: the node's own services.toml.
    pub services: PathBuf,
    /// `socket`: the control socket.
    pub socket: PathBuf,
    /// `metrics`: the listener for Prometheus; `None` for `metrics = "off"`.
    pub metrics: Option<SocketAddr>,
    /// `metrics_hosts`: the names that Prometheus may call it by, apart from addresses and localhost; none if not set.
    pub metrics_hosts: Vec<String>,
    /// `lanes`: worker threads, 1 to 16.
    pub lanes: usize,
    /// `mtu`: that of the mesh interface, in bytes, within `MTUS`; `None` for what the underlay leaves.
    pub mtu: Option<u16>,
    /// `[dns]`.
    pub dns: Dns,
    /// `[offload]`.
    pub offload: Offload,
    /// `[keys]`.
    pub keys: KeysConfig,
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
            is_name_set: false,
            state_dir: "/var/lib/meshd".into(),
            runtime_dir: "/run/meshd".into(),
            interface: "mesh0".into(),
            port: 51820,
            endpoints: Vec::new(),
            pods: Vec::new(),
            pod_interfaces: Vec::new(),
            services: "/etc/meshd/services.toml".into(),
            socket: "/run/meshd/meshd.sock".into(),
            metrics: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9586))),
            metrics_hosts: Vec::new(),
            lanes: cores.min(MAX_LANES),
            mtu: None,
            dns: Dns { enabled: true, upstreams: Vec::new() },
            offload: Offload::default(),
            keys: KeysConfig::default(),
            max_offline: Some(Duration::from_secs(7 * 86_400)),
        }
    }
}

/// What is wrong with the file.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}: {error}; give another with --config PATH", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: Arc<std::io::Error>,
    },
    /// It says something that cannot be.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
}

impl Config {
    /// Reads the file; one that does not exist at the default place means defaults.
    ///
    /// # Errors
    /// `ConfigError` if it cannot be read or says something that cannot be.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(&path.display().to_string(), &text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path == Path::new(CONFIG) => {
                Ok(Self::default())
            }
            Err(error) => Err(ConfigError::Read { path: path.into(), error: error.into() }),
        }
    }

    /// Reads the lines before the first section of a file that may be broken, each by itself: what is wrong with one says
    /// nothing of the others. For the rest there are defaults.
    pub(crate) fn lenient(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let top = text.lines().take_while(|line| !line.trim_start().starts_with('['));
        let good = top.filter(|line| DeTable::parse_recoverable(line).1.is_empty());
        let good: String = good.flat_map(|line| [line, "\n"]).collect();
        let (mut reader, table) = Reader::parse(&good);
        read(&mut reader, &table)
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
        let (mut reader, table) = Reader::parse(text);
        let config = read(&mut reader, &table);
        reader.finish(path, config)
    }
}

fn read(reader: &mut Reader<'_>, table: &DeTable<'_>) -> Config {
    reader.known(table, &KEYS, "");
    let mut config = Config::default();
    let get = |key: &str| table.get(key);
    config.name = get("name").and_then(|v| reader.parsed(v)).unwrap_or(config.name);
    config.is_name_set = get("name").is_some();
    config.state_dir = get("state_dir").and_then(|v| values::path(reader, v)).unwrap_or(config.state_dir);
    config.services = get("services").and_then(|v| values::path(reader, v)).unwrap_or(config.services);
    if let Some(path) = get("socket").and_then(|v| values::path(reader, v)) {
        config.runtime_dir = path.parent().unwrap_or_else(|| Path::new("/")).into();
        config.socket = path;
    }
    config.runtime_dir = get("runtime_dir").and_then(|v| values::path(reader, v)).unwrap_or(config.runtime_dir);
    config.interface = get("interface").and_then(|v| values::interface(reader, v)).unwrap_or(config.interface);
    if let Some(lanes) = get("lanes").and_then(|v| values::number(reader, v, 1, MAX_LANES as u16)) {
        config.lanes = usize::from(lanes);
    }
    if let Some(port) = get("port").and_then(|v| values::number(reader, v, 1, u16::MAX)) {
        config.port = port;
        let last = usize::from(port) + config.lanes - 1;
        if let (Some(value), true) = (get("port"), last > usize::from(u16::MAX)) {
            let most = 65536 - config.lanes;
            reader.mistake(
                value.span(),
                format!("lane i takes port + i, so with {} lanes the port is at most {most}", config.lanes),
            );
        }
    }
    if let Some(value) = get("mtu") {
        config.mtu = values::whole(value).filter(|mtu| MTUS.contains(mtu));
        if config.mtu.is_none() {
            let (least, most) = (MTUS.start(), MTUS.end());
            reader.mistake(
                value.span(),
                format!(
                    "`mtu` is the largest packet on the mesh interface, a number of bytes from {least} to {most} without quotes; leave it out to have it follow the network"
                ),
            );
        }
    }
    if let Some(value) = get("metrics") {
        match reader.text(value) {
            Some("off") => config.metrics = None,
            Some(_) => config.metrics = reader.parsed(value),
            None => {}
        }
    }
    if let Some(value) = get("metrics_hosts") {
        config.metrics_hosts = values::host_names(reader, value);
    }
    if let Some(value) = get("endpoints") {
        config.endpoints = values::sockets(reader, value, config.port, MAX_ENDPOINTS);
    }
    if let Some(value) = get("pods") {
        config.pods = values::pods(reader, value);
    }
    if let Some(value) = get("pod_interfaces") {
        config.pod_interfaces = values::interfaces(reader, value, MAX_POD_INTERFACES);
    }
    if let Some(value) = get("dns") {
        read_dns(reader, value, &mut config.dns);
    }
    if let Some(value) = get("offload") {
        read_offload(reader, value, &mut config.offload);
    }
    if let Some(value) = get("keys") {
        keys::read(reader, value, &mut config.keys);
    }
    if let Some(value) = get("max_offline") {
        match value.get_ref().as_str().map(|text| (text, duration(text))) {
            Some(("never", _)) => config.max_offline = None,
            Some((_, Some(span))) if span >= LEAST_OFFLINE => config.max_offline = Some(span),
            Some(_) | None => {
                reader.mistake(value.span(), "`max_offline` is a time of 10s or more, such as \"7d\", or \"never\"");
            }
        }
    }
    config
}

fn read_dns(reader: &mut Reader<'_>, value: &Value<'_>, dns: &mut Dns) {
    let Some(table) = reader.table(value, "dns", &DNS_KEYS) else { return };
    if let Some(value) = table.get("enabled") {
        match value.get_ref().as_bool() {
            Some(enabled) => dns.enabled = enabled,
            None => reader.mistake(value.span(), "`enabled` is true or false"),
        }
    }
    if let Some(value) = table.get("upstreams") {
        dns.upstreams = values::sockets(reader, value, 53, MAX_UPSTREAMS);
    }
}

fn read_offload(reader: &mut Reader<'_>, value: &Value<'_>, offload: &mut Offload) {
    let Some(table) = reader.table(value, "offload", &OFFLOAD_KEYS) else { return };
    values::switch(reader, table, "tun", &mut offload.tun);
    values::switch(reader, table, "udp", &mut offload.udp);
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
