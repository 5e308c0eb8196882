//! What is stored of issuers: the keys that were pushed, and the tokens that were used.

use std::collections::BTreeMap;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::IdentityKey;
use serde::{Deserialize, Serialize};

/// A token that was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spent {
    /// By whom.
    pub(crate) identity: IdentityKey,
    /// Until when it is remembered.
    pub(crate) over: UnixTime,
}

/// Keys that the operator pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// The JWKS.
    pub jwks: String,
    /// When.
    pub at: UnixTime,
}

/// Used tokens by their mark.
pub(crate) type SpentTokens = BTreeMap<String, Spent>;
/// Pushed keys by the name of their `[[trust]]`.
pub(crate) type PushedKeys = BTreeMap<String, Pushed>;
