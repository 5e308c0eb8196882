//! The coordinator's own key.

pub mod identity;
