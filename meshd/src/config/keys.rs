//! `[keys]`: how long a tunnel key lives, and whether tunnels have preshared keys.

use std::time::Duration;

use mesh_proto::services::duration;

use mesh_host::toml_reader::{Reader, Value};

use super::values::switch;

/// The keys of `[keys]`.
const KEYS: [&str; 3] = ["rotate", "overlap", "preshared"];

/// `[keys]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeysConfig {
    /// `rotate`: the age at which the tunnel key is changed.
    pub rotate: Duration,
    /// `overlap`: how long the former one is answered once, for peers that are out of touch, the coordinator knows the new one.
    pub overlap: Duration,
    /// `preshared`: whether tunnels have preshared keys, made with each peer that does the same.
    pub preshared: bool,
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self { rotate: Duration::from_secs(30 * 86_400), overlap: Duration::from_secs(86_400), preshared: true }
    }
}

/// Reads `[keys]` into `keys`.
pub(super) fn read(reader: &mut Reader<'_>, value: &Value<'_>, keys: &mut KeysConfig) {
    let Some(table) = reader.table(value, "keys", &KEYS) else { return };
    switch(reader, table, "preshared", &mut keys.preshared);
    for (key, least, least_text, into) in
        [("rotate", 3600, "1h", &mut keys.rotate), ("overlap", 4, "4s", &mut keys.overlap)]
    {
        let Some(value) = table.get(key) else { continue };
        match value.get_ref().as_str().and_then(duration) {
            Some(span) if span >= Duration::from_secs(least) => *into = span,
            Some(_) | None => reader.mistake(
                value.span(),
                format!("`{key}` is a time of {least_text} or more, such as \"30d\", \"12h\" or \"180s\""),
            ),
        }
    }
}
