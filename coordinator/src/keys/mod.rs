//! The coordinator's own key, and the TLS that it signs.

pub mod identity;
pub mod tls;
