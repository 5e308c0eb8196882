//! Small words of the grammar: durations, prefixes, addresses.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::codes;
use super::diagnostic::Diagnostic;
use super::suggest::suggestion;
use super::walk::{Sink, Value, Word};

/// Words that stand for kinds of sources and targets, and so cannot name a service or a backend.
pub(super) const RESERVED_NAMES: [&str; 6] = ["host", "site", "sa", "peer", "publish", "any"];

impl Sink {
    /// Reads a duration within limits: a whole number and `ms`, `s`, `m`, `h` or `d`.
    pub(super) fn duration(
        &mut self,
        key: &str,
        value: &Value<'_>,
        limits: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        if value.get_ref().is_integer() {
            self.wrong_type(key, value, "a duration with its unit, such as \"5s\"");
            return None;
        }
        let word = self.word(key, value)?;
        let Some(duration) = duration(word.text) else {
            let message = format!("`{}` is not a duration", word.text);
            let one = Diagnostic::error(codes::DURATION, word.span, message);
            self.push(one.label("use a whole number and a unit: ms, s, m, h or d, such as \"5s\""));
            return None;
        };
        if !limits.contains(&duration) {
            let message = format!("`{key}` is out of range: {}", word.text);
            let one = Diagnostic::error(codes::DURATION, word.span, message);
            let (least, most) = (show(*limits.start()), show(*limits.end()));
            self.push(one.label(format!("use \"{least}\" to \"{most}\"")));
            return None;
        }
        Some(duration)
    }

    /// Reads an IPv4 prefix without host bits.
    pub(super) fn prefix(&mut self, word: Word<'_>) -> Option<Ipv4Net> {
        let net: Option<Ipv4Net> = word.text.parse().ok();
        let Some(net) = net else {
            let one = Diagnostic::error(codes::PREFIX, word.span, format!("`{}` is not an IPv4 prefix", word.text));
            self.push(match word.text.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => one.label("add a slash and a length, such as 10.8.0.0/14"),
                Ok(IpAddr::V6(_)) => one.label("the mesh carries IPv4 inside; use an IPv4 prefix"),
                Err(_) if word.text.parse::<ipnet::Ipv6Net>().is_ok() => {
                    one.label("the mesh carries IPv4 inside; use an IPv4 prefix")
                }
                Err(_) => one.label("use an address, a slash and a length, such as 10.8.0.0/14"),
            });
            return None;
        };
        if net.addr() != net.network() {
            let message = format!("`{net}` has host bits");
            self.error(codes::PREFIX, word.span, message, suggestion(net.trunc()));
            return None;
        }
        Some(net)
    }

    /// Reads an IPv4 address.
    pub(super) fn address(&mut self, key: &str, word: Word<'_>) -> Option<Ipv4Addr> {
        let found: Result<IpAddr, _> = word.text.parse();
        if let Ok(IpAddr::V4(address)) = found {
            return Some(address);
        }
        let message = format!("`{}` is not an IPv4 address", word.text);
        let one = Diagnostic::error(codes::ADDRESS, word.span, message);
        self.push(match found {
            Ok(_) => one.label("the mesh carries IPv4 inside; use the pod's IPv4 address"),
            Err(_) => one.label(format!("use an address for `{key}`, such as 10.8.0.10")),
        });
        None
    }
}

/// Reads `250ms`, `5s`, `2m`, `1h`, `7d`.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().ok()?;
    let number = u64::from(number);
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number * 60)),
        "h" => Some(Duration::from_secs(number * 3600)),
        "d" => Some(Duration::from_secs(number * 86_400)),
        _ => None,
    }
}

/// Writes a duration in the largest unit that leaves no rest.
pub(super) fn show(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if ms >= size && ms.is_multiple_of(size) {
            return format!("{}{unit}", ms / size);
        }
    }
    format!("{ms}ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        for (text, ms) in [("250ms", 250), ("5s", 5000), ("2m", 120_000), ("1h", 3_600_000), ("7d", 604_800_000)] {
            let found = duration(text);
            assert_eq!(found, Some(Duration::from_millis(ms)), "{text}");
            assert_eq!(found.map(show).as_deref(), Some(text));
        }
        for bad in ["", "5", "s", "-5s", "5 s", "1.5s", "5S", "99999999999s", "1h30m"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
