//! `health`: how a caller's node learns whether a backend is well.

use std::time::Duration;

use super::codes;
use super::keys::FileTable;
use super::model::{HealthCheck, HealthSettings};
use super::walk::{Sink, TomlTable, Value};

/// Limits of `every`: often enough to fail over, seldom enough to cost nothing.
const EVERY: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
const DEFAULT_EVERY: Duration = Duration::from_secs(5);
/// Limits of `fall` and `rise`.
const IN_A_ROW: std::ops::RangeInclusive<u32> = 1..=100;
const MAX_PATH: usize = 1024;

/// Reads `health` of a service or of a `[[serve]]`, which nothing asks yet.
pub(super) fn of(sink: &mut Sink, table: TomlTable<'_>) -> Option<HealthSettings> {
    let value = table.idle(sink, "health", "remove it; there is no failover yet, drain a backend with `weight` 0")?;
    read(sink, value)
}

fn read(sink: &mut Sink, value: &Value<'_>) -> Option<HealthSettings> {
    if let Some(text) = value.get_ref().as_str() {
        let wanted = match text {
            "tcp" | "grpc" => format!("a table: did you mean {{ {text} = true }}?"),
            _ => "a table, such as { tcp = true } or { http = \"/healthz\" }".into(),
        };
        sink.wrong_type("health", value, &wanted);
        return None;
    }
    let table = TomlTable::open(sink, FileTable::Health, value)?;
    let check = check(sink, table);
    let every = table.get("every");
    let every = every.map_or(Some(DEFAULT_EVERY), |v| sink.duration("every", v, EVERY));
    let mut times = |key, default| {
        let value = table.get(key);
        value.map_or(Some(default), |v| sink.integer(key, v, IN_A_ROW))
    };
    let (fall, rise) = (times("fall", 3), times("rise", 2));
    Some(HealthSettings { check: check?, every: every?, fall: fall?, rise: rise? })
}

fn check(sink: &mut Sink, table: TomlTable<'_>) -> Option<HealthCheck> {
    let mut found = Vec::new();
    for key in ["tcp", "http", "grpc"] {
        found.extend(table.get(key).map(|value| (key, value)));
    }
    let &[(key, value)] = found.as_slice() else {
        let message = match found.len() {
            0 => "`health` does not say what to ask",
            _ => "`health` says more than one thing to ask",
        };
        sink.error(codes::ONE_OF, table.span, message, "use one of `tcp = true`, `http = \"/path\"` and `grpc = true`");
        return None;
    };
    if key == "http" {
        let word = sink.word(key, value)?;
        let plain = word.text.bytes().all(|b| b.is_ascii_graphic());
        if word.text.starts_with('/') && plain && word.text.len() <= MAX_PATH {
            return Some(HealthCheck::Http(word.text.into()));
        }
        let message = format!("`{}` is not a path", word.text);
        sink.error(codes::TEXT, word.span, message, "use a path that begins with a slash, such as \"/healthz\"");
        return None;
    }
    if !sink.boolean(key, value)? {
        let span = table.key_span(key).unwrap_or(table.span);
        sink.error(codes::CHOICE, span, format!("`{key}` can only be true"), "without health checks, remove `health`");
        return None;
    }
    Some(match key {
        "tcp" => HealthCheck::Tcp,
        _ => HealthCheck::Grpc,
    })
}
