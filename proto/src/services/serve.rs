//! `[[serve]]` of a node's file.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::base::id::ServiceKey;

use super::diagnostic::Diagnostic;
use super::keys::FileTable;
use super::mesh::twice;
use super::model::{ServeSpec, Span};
use super::suggest::suggestion;
use super::walk::{Sink, TomlTable, Value, Word};
use super::{codes, health, ports};

/// Reads all `[[serve]]`.
pub(super) fn serves(sink: &mut Sink, values: &[&Value<'_>]) -> Vec<ServeSpec> {
    let mut serves = Vec::with_capacity(values.len());
    let mut first: BTreeMap<ServiceKey, Span> = BTreeMap::new();
    for value in values {
        let Some(table) = TomlTable::open(sink, FileTable::Serve, value) else { continue };
        let service = table.require(sink, "service", "service = \"cartservice\"");
        let word = service.and_then(|value| sink.word("service", value));
        let service = word.and_then(|word| service_key(sink, word));
        let port = table.get("port");
        let port = port.and_then(|value| ports::number(sink, "port", value));
        let bind = table.word(sink, "bind");
        let bind = bind.and_then(|word| loopback(sink, word));
        let health = health::of(sink, table);
        let Some((service, word)) = service.zip(word) else { continue };
        if let Some(first) = first.get(&service) {
            twice(sink, "[[serve]] of", word.text, word.span, *first);
            continue;
        }
        first.insert(service.clone(), word.span);
        serves.push(ServeSpec { service, port, bind, health, span: table.span });
    }
    serves
}

fn service_key(sink: &mut Sink, word: Word<'_>) -> Option<ServiceKey> {
    let key = word.text.parse().ok();
    if key.is_none() {
        let message = format!("`{}` is not a service's name", word.text);
        let one = Diagnostic::error(codes::NAME, word.span, message);
        sink.push(one.label("use `name` or `name.namespace`, as the coordinator's file writes it"));
    }
    key
}

fn loopback(sink: &mut Sink, word: Word<'_>) -> Option<SocketAddr> {
    let found = word.text.parse::<SocketAddr>().ok();
    if let Some(bind) = found.filter(|s| s.ip().is_loopback() && s.port() > 0) {
        return Some(bind);
    }
    let message = format!("`bind` cannot be `{}`", word.text);
    let one = Diagnostic::error(codes::ADDRESS, word.span, message);
    let port = found.map(|s| s.port()).filter(|&p| p > 0);
    let label = match port {
        Some(port) => suggestion(format!("127.0.0.1:{port}")),
        None => "use a loopback address and a port, such as \"127.0.0.1:3550\"".into(),
    };
    let help = "a process that listens on all addresses or on the node's mesh address needs no `bind`";
    sink.push(one.label(label).help(help));
    None
}
