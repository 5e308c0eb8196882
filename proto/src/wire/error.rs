//! How requests fail, on the control channel and on the control sockets of both daemons: a word for programs, and a
//! sentence for people.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::trust::signed_record::SignedRecord;

/// The longest word of another version that is kept, in bytes; the rest of a longer one is cut off.
pub const MAX_CODE: usize = 64;

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $word:literal,)+) => {
        /// What failed, as a word for programs.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum ErrorCode {
            $($(#[$doc])* $code,)+
            /// A word that this version does not know; it is sent on as it came. `ErrorCode::from` makes it.
            Unknown(String),
        }

        impl ErrorCode {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$code),+];

            /// Returns the word, or `unknown` for all that this version does not know: few enough to be counted by.
            pub fn label(&self) -> &'static str {
                match self {
                    $(Self::$code => $word,)+
                    Self::Unknown(_) => "unknown",
                }
            }
        }

        impl From<&str> for ErrorCode {
            fn from(word: &str) -> Self {
                match word {
                    $($word => Self::$code,)+
                    _ => Self::Unknown(word[..word.floor_char_boundary(MAX_CODE)].to_owned()),
                }
            }
        }
    };
}

codes! {
    /// The request is not one, or not one that is answered here.
    Malformed = "malformed",
    /// What is to be stored is larger than the store takes.
    TooLarge = "too_large",
    /// There is no time or no room for it now.
    Busy = "busy",
    /// Who answers failed, not who asks.
    Internal = "internal",
    /// This user may not.
    Forbidden = "forbidden",
    /// There is nothing of this name.
    NotFound = "not_found",
    /// There is something of this name already.
    Exists = "exists",

    /// A token of the coordinator or of an issuer is not taken.
    Token = "token",
    /// A claimed block or key is not the node's.
    Claim = "claim",
    /// A name belongs to somebody else.
    Name = "name",
    /// There is no such site.
    Site = "site",
    /// A services.toml contradicts itself, or what is.
    Services = "services",
    /// There is no such node or coordinator, or who asks is none.
    UnknownNode = "unknown_node",
    /// No node has this name or address.
    UnknownName = "unknown_name",
    /// No issuer of this name takes pushed keys.
    UnknownTrust = "unknown_trust",
    /// The node was expelled.
    Revoked = "revoked",
    /// The node has another identity key since.
    Superseded = "superseded",
    /// An identity key cannot be changed so.
    Identity = "identity",
    /// A node's record is not newer than the one that is known.
    Record = "record",
    /// The lock of the mesh forbids it, or there is none.
    Lock = "lock",
    /// The coordinator's own key is not at this step of its change.
    Key = "key",
    /// The coordinator does not know the addresses that nodes reach it at.
    Public = "public",

    /// The node is in no mesh, or has no map of it.
    NotJoined = "not_joined",
    /// The node has no control channel.
    NotConnected = "not_connected",
    /// The daemon is about to end.
    Stopping = "stopping",
    /// It is under way, and goes on.
    Pending = "pending",
    /// The coordinator did not give what it takes.
    Coordinator = "coordinator",
    /// The other node does not answer.
    NoAnswer = "no_answer",
    /// The other node's version does not know how.
    OldPeer = "old_peer",
    /// The way to the other node takes too small packets.
    Narrow = "narrow",
}

impl ErrorCode {
    /// Returns the word as it is sent.
    pub fn as_str(&self) -> &str {
        if let Self::Unknown(word) = self { word } else { self.label() }
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(String::deserialize(deserializer)?.as_str().into())
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A word for programs.
    pub error: ErrorCode,
    /// A sentence for people that ends with what to do.
    pub message: String,
    /// With `ErrorCode::Record`: the node's record that the coordinator has, as it was signed; none from an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<Box<SignedRecord>>,
}

impl ErrorBody {
    /// Says why a request failed.
    pub fn new(error: ErrorCode, message: impl Into<String>) -> Self {
        Self { error, message: message.into(), record: None }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    /// What is sent; no other version understands another word.
    const WORDS: [&str; 30] = [
        "malformed",
        "too_large",
        "busy",
        "internal",
        "forbidden",
        "not_found",
        "exists",
        "token",
        "claim",
        "name",
        "site",
        "services",
        "unknown_node",
        "unknown_name",
        "unknown_trust",
        "revoked",
        "superseded",
        "identity",
        "record",
        "lock",
        "key",
        "public",
        "not_joined",
        "not_connected",
        "stopping",
        "pending",
        "coordinator",
        "no_answer",
        "old_peer",
        "narrow",
    ];

    fn read(json: &str) -> ErrorBody {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn every_code_is_its_word() {
        assert_eq!(ErrorCode::ALL.iter().map(ErrorCode::as_str).collect::<Vec<_>>(), WORDS);
        for (code, word) in ErrorCode::ALL.iter().zip(WORDS) {
            let body = format!(r#"{{"error":"{word}","message":"m"}}"#);
            assert_eq!(read(&body), ErrorBody::new(code.clone(), "m"));
            assert_eq!(serde_json::to_string(&read(&body)).unwrap(), body);
            assert_eq!(code.label(), word);
        }
    }

    #[test]
    fn a_word_of_a_later_version_is_kept_and_a_very_long_one_is_cut() {
        let body = r#"{"error":"invented_later","message":"m"}"#;
        assert_eq!(read(body).error, ErrorCode::Unknown("invented_later".into()));
        assert_eq!(serde_json::to_string(&read(body)).unwrap(), body);
        assert_eq!(read(body).error.label(), "unknown");
        let long = read(&format!(r#"{{"error":"{}","message":"m"}}"#, "ä".repeat(100_000))).error;
        assert_eq!(long, ErrorCode::Unknown("ä".repeat(MAX_CODE / 2)));
        assert!(serde_json::from_str::<ErrorBody>(r#"{"error":7,"message":"m"}"#).is_err());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused_and_stays_what_it_is(bytes: Vec<u8>, word: String, message: String) {
            let _ = serde_json::from_slice::<ErrorBody>(&bytes);
            let body = ErrorBody::new(ErrorCode::from(word.as_str()), message);
            let text = serde_json::to_string(&body).unwrap();
            prop_assert_eq!(&serde_json::from_str::<ErrorBody>(&text).unwrap(), &body);
            prop_assert!(word.starts_with(body.error.as_str()));
            prop_assert!(word.len() > MAX_CODE || word == body.error.as_str());
        }
    }
}
