//! Words that several parts have: coordinator.toml, the command line, the admin socket.

use std::time::Duration;

use mesh_host::client::SocketWords;
use mesh_proto::services;

/// The port of the control channel where none is given.
pub const PORT: u16 = 7700;

/// What the coordinator says of its admin socket.
pub const SOCKET: SocketWords = SocketWords {
    taken: "{path} answers already: a mesh-coordinator is running; stop it first, or set another `admin_socket`",
    occupied: "{path} exists and is not a socket; move it away, or set another `admin_socket`",
    unbound: "cannot listen on {path}: {why}; check `admin_socket` in coordinator.toml",
    absent: "no coordinator answers on {path}; start it with `systemctl start mesh-coordinator`, or name its socket with --socket PATH",
    closed: "{path} may not be opened by this user; run as root, or as the user of mesh-coordinator",
    ended: "the coordinator on {path} ended before it answered; see its log",
    broken: "the coordinator on {path} gave no proper answer: {why}; see its log",
    patience: Duration::from_secs(30),
};

/// Checks an address that nodes are told, `host:port`, and returns it as written.
///
/// # Errors
/// A sentence that says what such an address looks like.
pub fn public(word: &str) -> Result<String, String> {
    let good = word.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host_fits = match bare {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'),
        };
        host_fits && host.len() <= 249 && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if good {
        Ok(word.into())
    } else {
        Err(format!(
            "`{word}` is not an address that nodes can dial; write HOST:PORT, such as \"mesh.example.com:{PORT}\" or \"[2001:db8::1]:{PORT}\""
        ))
    }
}

/// Reads a time such as `90s`, `15m`, `12h` or `30d`.
///
/// # Errors
/// A sentence that says how to write one.
pub fn duration(word: &str) -> Result<Duration, String> {
    let time = services::duration(word).filter(|time| time.as_secs() > 0 && time.subsec_nanos() == 0);
    time.ok_or_else(|| format!("`{word}` is not a time; write a number and a unit, such as 90s, 15m, 12h or 30d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_nonsense_is_refused() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(2_592_000)));
        for bad in ["", "15", "m", "-1m", "0s", "1w", "1é", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
