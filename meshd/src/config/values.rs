//! Values of meshd.toml that have rules of their own.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use mesh_host::http::host_names::{MAX_NAMES, host_name};
use mesh_host::toml_reader::{Reader, Value};
use mesh_proto::base::addr::overlaps_forbidden;
use mesh_proto::wire::MAX_BLOCKS;
use toml::de::DeTable;

pub(super) fn path(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<PathBuf> {
    let text = reader.text(value)?;
    if !text.starts_with('/') {
        reader.mistake(value.span(), format!("`{text}` must be an absolute path"));
        return None;
    }
    Some(text.into())
}

pub(super) fn interface(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<String> {
    let text = reader.text(value)?;
    let fits = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%';
    if !(1..=15).contains(&text.len()) || !text.bytes().all(fits) || text == "lo" {
        let hint = "use 1 to 15 letters, digits, `-`, `_` or `.`";
        reader.mistake(value.span(), format!("`{text}` is no interface name; {hint}"));
        return None;
    }
    Some(text.into())
}

/// Names of interfaces, or their beginnings with a `*`.
pub(super) fn interfaces(reader: &mut Reader<'_>, value: &Value<'_>, most: usize) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for item in reader.items(value, most) {
        let Some(text) = reader.text(item) else { continue };
        let start = text.strip_suffix('*').unwrap_or(text);
        let fits = |b: u8| b.is_ascii_graphic() && !b"/:%*".contains(&b);
        if !(1..=15).contains(&start.len()) || !start.bytes().all(fits) || text == "lo" {
            let hint = "write a name such as \"eni1\", or its beginning such as \"lxc*\"";
            reader.mistake(item.span(), format!("`{text}` is no interface of pods; {hint}"));
        } else if !names.iter().any(|name| name == text) {
            names.push(text.to_owned());
        }
    }
    names
}

pub(super) fn number(reader: &mut Reader<'_>, value: &Value<'_>, least: u16, most: u16) -> Option<u16> {
    let number = whole(value).filter(|n| (least..=most).contains(n));
    if number.is_none() {
        reader.mistake(value.span(), format!("this must be a number from {least} to {most}, without quotes"));
    }
    number
}

/// A whole number that fits; no mistake is noted.
pub(super) fn whole(value: &Value<'_>) -> Option<u16> {
    let integer = value.get_ref().as_integer();
    integer.and_then(|i| u16::from_str_radix(i.as_str(), i.radix()).ok())
}

pub(super) fn sockets(reader: &mut Reader<'_>, value: &Value<'_>, port: u16, most: usize) -> Vec<SocketAddr> {
    let mut sockets = Vec::new();
    for item in reader.items(value, most) {
        let Some(text) = reader.text(item) else { continue };
        let bare = |text: &str| text.parse::<IpAddr>().ok().map(|ip| (ip, port).into());
        match text.parse().ok().or_else(|| bare(text)) {
            Some(socket) => sockets.push(socket),
            None => reader.mistake(
                item.span(),
                format!("`{text}` is no address; write IP:PORT or IP, such as \"192.0.2.7:{port}\""),
            ),
        }
    }
    sockets
}

pub(super) fn host_names(reader: &mut Reader<'_>, value: &Value<'_>) -> Vec<String> {
    reader.items(value, MAX_NAMES).iter().filter_map(|name| reader.read(name, host_name)).collect()
}

pub(super) fn pods(reader: &mut Reader<'_>, value: &Value<'_>) -> Vec<Ipv4Net> {
    let mut pods: Vec<Ipv4Net> = Vec::new();
    for item in reader.items(value, MAX_BLOCKS) {
        let Some(text) = reader.text(item) else { continue };
        let Ok(net) = text.parse::<Ipv4Net>() else {
            let hint = "write it as \"10.8.1.0/24\"";
            reader.mistake(item.span(), format!("`{text}` is no IPv4 prefix; {hint}"));
            continue;
        };
        if net.addr() != net.network() {
            let hint = format!("write \"{}\"", net.trunc());
            reader.mistake(item.span(), format!("`{text}` has host bits set; {hint}"));
        } else if net.prefix_len() < 9 || overlaps_forbidden(net) {
            let why = "it contains addresses that no pod may have, or is larger than /9";
            reader.mistake(item.span(), format!("`{text}` cannot be a pod block: {why}"));
        } else if let Some(other) = pods.iter().find(|&&p| mesh_proto::base::addr::overlap(p, net)) {
            reader.mistake(item.span(), format!("`{text}` overlaps `{other}`; name each block once"));
        } else {
            pods.push(net);
        }
    }
    pods
}

/// Reads a key that is "auto" or "off".
pub(super) fn switch(reader: &mut Reader<'_>, table: &DeTable<'_>, key: &str, on: &mut bool) {
    let Some(value) = table.get(key) else { return };
    match value.get_ref().as_str() {
        Some("auto") => *on = true,
        Some("off") => *on = false,
        Some(_) | None => reader.mistake(value.span(), format!("`{key}` is \"auto\" or \"off\"")),
    }
}
