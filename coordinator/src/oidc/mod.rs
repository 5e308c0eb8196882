//! Issuers of tokens: which are trusted, and their keys.

pub(crate) mod fetch;
pub(crate) mod issuers;
