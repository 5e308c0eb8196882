//! Words that both coordinator.toml and the command line have.

use std::time::Duration;

/// The port of the control channel where none is given.
pub const PORT: u16 = 7700;

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
    let advice = || format!("`{word}` is not a time; write a number and a unit, such as 90s, 15m, 12h or 30d");
    let unit = word.chars().last().ok_or_else(advice)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(advice()),
    };
    let number = word[..word.len() - 1].parse::<u64>().map_err(|_| advice())?;
    let total = number.checked_mul(seconds).filter(|&total| total > 0);
    total.map(Duration::from_secs).ok_or_else(advice)
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
