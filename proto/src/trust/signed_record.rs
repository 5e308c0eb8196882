//! What is signed: a text and a signature over its very bytes.
//!
//! A text is signed behind a label that says what kind of thing it is, so that a signature for one purpose is
//! worth nothing for another. It is stored and passed on as it was signed; whoever wants to know what it says
//! parses it, and nobody writes it anew.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::base::id::{IdentityKey, text_serde};

/// The longest signed text, in bytes: the largest facts that a node may report.
pub const MAX_TEXT: usize = 64 * 1024;
/// Stands before a node's record.
const RECORD: &str = "mesh node record 1\n";
/// Stands before a coordinator's next key.
const NEXT: &str = "mesh next coordinator key 1\n";
/// Stands before the number of an epoch.
const EPOCH: &str = "mesh epoch 1\n";

/// Says whether a signature over a message was made with the private half of a key.
pub type Verify = fn(&IdentityKey, &[u8], &Signature) -> bool;

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl FromStr for Signature {
    type Err = &'static str;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bytes = BASE64URL_NOPAD.decode(s.as_bytes()).ok().and_then(|b| b.try_into().ok());
        bytes.map(Self).ok_or("a signature is 86 characters of base64url")
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}…)", BASE64URL_NOPAD.encode(&self.0[..6]))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&BASE64URL_NOPAD.encode(&self.0))
    }
}
text_serde!(Signature);

/// What a node says of itself (`wire::NodeFacts` as JSON), as it signed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRecord {
    /// The text, byte for byte.
    pub text: Arc<str>,
    /// Over the label and the text.
    pub signature: Signature,
}

impl SignedRecord {
    /// Returns the bytes that are signed for a text.
    pub fn message(text: &str) -> Vec<u8> {
        [RECORD.as_bytes(), text.as_bytes()].concat()
    }

    /// Says whether a node with this identity signed it.
    pub fn is_by(&self, identity: &IdentityKey, verify: Verify) -> bool {
        self.text.len() <= MAX_TEXT && verify(identity, &Self::message(&self.text), &self.signature)
    }
}

/// The key that a coordinator will go on with, as its present one signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextKey {
    /// The next key.
    pub key: IdentityKey,
    /// Over the label and both keys.
    pub signature: Signature,
}

impl NextKey {
    /// Returns the bytes that are signed for a next key.
    pub fn message(present: &IdentityKey, next: &IdentityKey) -> Vec<u8> {
        format!("{NEXT}{present}\n{next}").into_bytes()
    }

    /// Says whether the present key signed it.
    pub fn is_by(&self, present: &IdentityKey, verify: Verify) -> bool {
        verify(present, &Self::message(present, &self.key), &self.signature)
    }
}

/// The number of a coordinator's history: a restore from a backup begins another, which its key has to sign.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// 0 until the first restore.
    pub number: u64,
    /// The coordinator's, over the name of the mesh and the number; none for 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

impl Epoch {
    /// Returns the bytes that are signed for an epoch. They do not name the mesh: a coordinator's key serves one mesh,
    /// whose name may change until the first node joins.
    pub fn message(number: u64) -> Vec<u8> {
        format!("{EPOCH}{number}").into_bytes()
    }

    /// Says whether one of these keys signed it.
    pub fn is_by(&self, keys: &[IdentityKey], verify: Verify) -> bool {
        let message = Self::message(self.number);
        self.signature.is_some_and(|signature| keys.iter().any(|key| verify(key, &message, &signature)))
    }
}
