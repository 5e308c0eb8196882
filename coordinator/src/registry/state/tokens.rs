//! Join tokens as they are stored.

use std::collections::BTreeMap;

use aws_lc_rs::{constant_time, digest};
use data_encoding::HEXLOWER;
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{NodeName, ServiceKey, SiteName};
use mesh_proto::trust::join_token::TokenSecret;
use serde::{Deserialize, Serialize};

/// A token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The SHA-256 of its secret, in hexadecimal digits.
    pub(crate) digest: String,
    /// The site of the nodes that it admits.
    pub site: SiteName,
    /// The name of the node that it admits.
    pub name: Option<NodeName>,
    /// The services that these nodes may offer to serve.
    pub serve: Vec<ServiceKey>,
    /// When it was made.
    pub created: UnixTime,
    /// When it ends.
    pub expires: UnixTime,
    /// How many nodes it still admits.
    pub uses_left: u32,
    /// Whether these nodes vanish 10 minutes after their last contact.
    #[serde(default)]
    pub ephemeral: bool,
}

impl TokenRecord {
    /// Says whether it still admits a node.
    pub fn is_usable(&self, now: UnixTime) -> bool {
        self.uses_left > 0 && now < self.expires
    }

    /// Says whether a secret is the token's.
    pub(crate) fn has_secret(&self, secret: &TokenSecret) -> bool {
        is_digest_of(&self.digest, secret)
    }
}

/// Compares in constant time, so that a guess is not answered by how long the answer takes.
pub(crate) fn is_digest_of(digest: &str, secret: &TokenSecret) -> bool {
    constant_time::verify_slices_are_equal(hash(secret).as_bytes(), digest.as_bytes()).is_ok()
}

/// Returns what is stored of a secret.
pub(crate) fn hash(secret: &TokenSecret) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, &secret.0).as_ref())
}

/// Tokens by their public half.
pub(crate) type TokenRecords = BTreeMap<String, TokenRecord>;
