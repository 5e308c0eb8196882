//! Ports of a service: `3550`, `"5000->8080"`, `"53/udp"`, `"5000->8080/tcp"`, or several by name.

use crate::base::id::PortName;
use crate::model::netmap::{ServicePort, Transport};

use super::codes;
use super::diagnostic::Diagnostic;
use super::model::Span;
use super::suggest::{nearest, suggestion};
use super::walk::{Sink, TomlTable, Value, Word, span_of};

const FORMS: &str = "a port is 3550, \"5000->8080\", \"53/udp\" or \"5000->8080/tcp\"";

/// Reads `port` or `ports` of a service; `None` if neither tells all ports.
pub(super) fn read(sink: &mut Sink, table: TomlTable<'_>) -> Option<Vec<ServicePort>> {
    match (table.get("port"), table.get("ports")) {
        (Some(_), Some(_)) => {
            let span = table.key_span("ports").unwrap_or(table.span);
            let port = table.key_span("port").unwrap_or(table.span);
            let message = format!("{} has both `port` and `ports`", table.title);
            let one = Diagnostic::error(codes::ONE_OF, span, message).also(port, "and here");
            sink.push(one.label("keep one of them"));
            None
        }
        (Some(value), None) => one(sink, "port", value).map(|port| vec![port]),
        (None, Some(value)) => several(sink, value),
        (None, None) => {
            table.require(sink, "port", "port = 8080");
            None
        }
    }
}

fn several(sink: &mut Sink, value: &Value<'_>) -> Option<Vec<ServicePort>> {
    let Some(entries) = value.get_ref().as_table() else {
        sink.wrong_type("ports", value, "ports by name, such as { grpc = 3550, dns = \"53/udp\" }");
        return None;
    };
    if entries.is_empty() {
        sink.error(codes::MISSING, span_of(value), "`ports` is empty", "name at least one, such as { grpc = 3550 }");
        return None;
    }
    let mut ports: Vec<(Span, Option<ServicePort>)> = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let text = key.get_ref().as_ref();
        let span = span_of(key);
        let name = port_name(sink, text, span);
        let port = one(sink, text, value);
        let named = port.zip(name).map(|(port, name)| ServicePort { name: Some(name), ..port });
        ports.push((span, named));
    }
    ports.sort_by_key(|(span, _)| span.start);
    for (at, (span, port)) in ports.iter().enumerate() {
        let Some(port) = port else { continue };
        let same = |p: &ServicePort| (p.transport, p.port) == (port.transport, port.port);
        let mut before = ports[..at].iter();
        if let Some((first, _)) = before.find(|(_, p)| p.as_ref().is_some_and(same)) {
            let message = format!("port {}/{} stands twice", port.port, port.transport);
            let one = Diagnostic::error(codes::DUPLICATE, *span, message);
            sink.push(one.label("remove it").also(*first, "first here"));
        }
    }
    ports.into_iter().map(|(_, port)| port).collect()
}

fn port_name(sink: &mut Sink, text: &str, span: Span) -> Option<PortName> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let message = format!("`{text}` cannot name a port");
        sink.error(codes::NAME, span, message, "use a name with a letter, such as `http`");
        return None;
    }
    sink.name(Word { text, span })
}

/// Reads one port: a number or a port string.
pub(super) fn one(sink: &mut Sink, key: &str, value: &Value<'_>) -> Option<ServicePort> {
    if value.get_ref().is_integer() {
        let port = number(sink, key, value)?;
        return Some(ServicePort { name: None, transport: Transport::Tcp, port, target: port });
    }
    if !value.get_ref().is_str() {
        sink.wrong_type(key, value, "a port, such as 3550, \"5000->8080\" or \"53/udp\"");
        return None;
    }
    let word = sink.word(key, value)?;
    match parse(word.text) {
        Ok(port) => Some(port),
        Err(Wrong { start, end, label }) => {
            let message = format!("`{}` is not a port", word.text);
            let one = Diagnostic::error(codes::PORT, word.part(start, end), message);
            sink.push(one.label(label).help(FORMS));
            None
        }
    }
}

/// Reads a bare port number.
pub(super) fn number(sink: &mut Sink, key: &str, value: &Value<'_>) -> Option<u16> {
    let Some(integer) = value.get_ref().as_integer() else {
        sink.wrong_type(key, value, "a port number, 1 to 65535");
        return None;
    };
    let number = u16::from_str_radix(integer.as_str(), integer.radix()).ok();
    let number = number.filter(|&n| n > 0);
    if number.is_none() {
        sink.error(codes::PORT, span_of(value), format!("`{integer}` is not a port"), "use 1 to 65535");
    }
    number
}

/// What is wrong with bytes `start..end` of a port string.
struct Wrong {
    start: usize,
    end: usize,
    label: String,
}

fn parse(text: &str) -> Result<ServicePort, Wrong> {
    let plain: String = text.split_whitespace().collect();
    if plain != text {
        let label = match parse(&plain) {
            Ok(_) => suggestion(&plain),
            Err(wrong) => wrong.label,
        };
        return Err(Wrong { start: 0, end: text.len(), label });
    }
    let (ports, transport) = match text.split_once('/') {
        None => (text, Transport::Tcp),
        Some((ports, "tcp")) => (ports, Transport::Tcp),
        Some((ports, "udp")) => (ports, Transport::Udp),
        Some((ports, other)) => {
            let label = nearest(other, ["tcp", "udp"].into_iter());
            return Err(Wrong {
                start: ports.len() + 1,
                end: text.len(),
                label: label.map_or_else(|| "use `tcp` or `udp`".to_owned(), suggestion),
            });
        }
    };
    let (port, target) = match ports.split_once("->") {
        None => {
            let port = digits(ports, 0)?;
            (port, port)
        }
        Some((port, target)) => (digits(port, 0)?, digits(target, port.len() + 2)?),
    };
    Ok(ServicePort { name: None, transport, port, target })
}

fn digits(text: &str, start: usize) -> Result<u16, Wrong> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse::<u16>().ok().filter(|&n| n > 0 && plain);
    number.ok_or_else(|| Wrong { start, end: start + text.len(), label: "use 1 to 65535".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_string_says_port_target_and_protocol() {
        for (text, transport, port, target) in [
            ("3550", Transport::Tcp, 3550, 3550),
            ("5000->8080", Transport::Tcp, 5000, 8080),
            ("53/udp", Transport::Udp, 53, 53),
            ("5000->8080/tcp", Transport::Tcp, 5000, 8080),
            ("53->5353/udp", Transport::Udp, 53, 5353),
        ] {
            let found = parse(text).ok().map(|p| (p.name, p.transport, p.port, p.target));
            assert_eq!(found, Some((None, transport, port, target)), "{text}");
        }
        for bad in ["", "0", "65536", "+1", "-1", "a", "->1", "1->", "1->2->3", "1/sctp", "1/", "1 -> 2", "/udp"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_part_of_a_port_string_is_pointed_at() {
        let place = |text: &str| parse(text).err().map(|w| (w.start, w.end));
        assert_eq!(place("5000->99999"), Some((6, 11)));
        assert_eq!(place("53/upd"), Some((3, 6)));
        assert_eq!(place("x->80"), Some((0, 1)));
    }
}
