//! The names that a listener for figures answers to. A page in a browser on this machine could otherwise read them by a
//! name of its own that leads here (DNS rebinding).
//!
//! ```text
//!   Host: 127.0.0.1:9587, [::1], localhost   always: no page can pass for these
//!   Host: a name that `metrics_hosts` has    always
//!   Host: any other name                     where others than this machine reach us, and `metrics_hosts` is not set
//! ```

use std::net::{IpAddr, SocketAddr};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};

/// Most names that one listener answers to.
pub const MAX_NAMES: usize = 8;

/// The names that one listener answers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNames {
    names: Vec<String>,
    is_any_good: bool,
}

impl HostNames {
    /// Takes the names of `metrics_hosts`, and where the listener is.
    pub fn new(names: &[String], listen: SocketAddr) -> Self {
        let is_any_good = names.is_empty() && !listen.ip().to_canonical().is_loopback();
        Self { names: names.to_vec(), is_any_good }
    }

    fn take(&self, host: &str) -> bool {
        let name = name(host);
        self.is_any_good
            || name.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// Reads a name of `metrics_hosts`.
///
/// # Errors
/// If it is no host name.
pub fn host_name(word: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if (1..=253).contains(&word.len()) && word.bytes().all(fits) {
        return Ok(word.to_owned());
    }
    Err(format!("`{word}` is no host name; write it without a port, such as \"metrics.example.com\""))
}

/// Answers only those who call the listener by a name that it has.
pub fn called(routes: Router, names: HostNames) -> Router {
    routes.layer(from_fn_with_state(names, check))
}

async fn check(State(names): State<HostNames>, request: Request, next: Next) -> Response {
    // Who sends none is no browser.
    let host = request.headers().get(HOST);
    if host.is_none_or(|host| host.to_str().is_ok_and(|host| names.take(host))) {
        return next.run(request).await;
    }
    let advice = "ask by IP address or as localhost, or add this name to `metrics_hosts` and restart\n";
    (StatusCode::MISDIRECTED_REQUEST, advice).into_response()
}

/// Returns the name or address of a `Host`, without its port and brackets.
fn name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(host, |(address, _)| address);
    }
    host.split_once(':').map_or(host, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const NAMES: [&str; 8] = [
        "127.0.0.1:9587",
        "192.0.2.7",
        "[::1]:9587",
        "LOCALHOST:9587",
        "localhost",
        "metrics.example.com:9587",
        "evil.example.net",
        "127.0.0.1.evil.example.net",
    ];

    fn taken(names: &[&str], listen: &str) -> Vec<bool> {
        let names: Vec<_> = names.iter().map(|name| host_name(name).unwrap()).collect();
        let names = HostNames::new(&names, listen.parse().unwrap());
        NAMES.iter().map(|host| names.take(host)).collect()
    }

    #[test]
    fn on_loopback_addresses_and_localhost_are_good_elsewhere_any_name_and_names_that_are_set_everywhere() {
        let (plain, named) =
            ([true, true, true, true, true, false, false, false], [true, true, true, true, true, true]);
        for loopback in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(taken(&[], loopback), plain);
        }
        for elsewhere in ["0.0.0.0:1", "192.0.2.7:1", "[::]:1"] {
            assert_eq!(taken(&[], elsewhere), [true; 8]);
        }
        for listen in ["127.0.0.1:1", "0.0.0.0:1"] {
            assert_eq!(taken(&["metrics.example.com"], listen), [&named[..], &[false, false]].concat());
        }
    }

    #[test]
    fn a_name_has_no_port_and_no_blanks() {
        for bad in ["", "a:1", "a b", "a/b", "[::1]"] {
            assert!(host_name(bad).unwrap_err().contains("without a port"), "{bad}");
        }
    }
}
