//! Join tokens: one line that carries the coordinator's addresses, its key pin and a one-time secret.
//!
//! `mesh1_` and base64url of: version, addresses, pins, id, secret, checksum. The checksum only tells a
//! mistyped token from a refused one; the secret's strength is its 256 bits.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::base::id::IdentityKey;

const PREFIX: &str = "mesh1_";
/// Most addresses and most pins of a token.
pub const MAX_LIST: usize = 8;
/// Longest text of a token that is looked at.
const MAX_TEXT: usize = 4096;

/// A token's one-time secret. Prints as `[redacted]`.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSecret(pub [u8; 32]);

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Serialize for TokenSecret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for TokenSecret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok().and_then(|b| b.try_into().ok());
        bytes.map(Self).ok_or_else(|| de::Error::custom("the secret is not 32 bytes of base64url"))
    }
}

/// A token of an identity issuer (`jwt`), as it came from a file. Prints as `[redacted]`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OidcToken(pub String);

impl fmt::Debug for OidcToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What `mesh-coordinator token create` prints and `meshd join` reads. `Debug` hides the secret;
/// `to_line` does not, and is the only way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Addresses of coordinators, as `host:port`; at least one.
    pub coordinators: Vec<String>,
    /// Keys of coordinators; at least one.
    pub pins: Vec<IdentityKey>,
    /// The token's public half.
    pub id: [u8; 8],
    /// Its one-time secret.
    pub secret: TokenSecret,
}

/// Says why a text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin as tokens do.
    #[error(
        "this is not a join token: it begins with `mesh1_`; make one with `mesh-coordinator token create --site SITE`"
    )]
    Prefix,
    /// It was cut, mistyped or wrapped.
    #[error("the join token is damaged (cut short, mistyped or wrapped over lines); copy it again as one line")]
    Damaged,
}

impl JoinToken {
    /// Returns the public half as text, as `token list` shows it.
    pub fn id_text(&self) -> String {
        HEXLOWER.encode(&self.id)
    }

    /// Writes the token as one line, the secret included.
    pub fn to_line(&self) -> String {
        let mut bytes = vec![1u8, self.coordinators.len() as u8];
        for address in &self.coordinators {
            bytes.push(address.len() as u8);
            bytes.extend_from_slice(address.as_bytes());
        }
        bytes.push(self.pins.len() as u8);
        for pin in &self.pins {
            bytes.extend_from_slice(&pin.0);
        }
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(&crc32(&bytes).to_be_bytes());
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(s: &str) -> Result<Self, TokenError> {
        let text = s.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        if text.len() > MAX_TEXT {
            return Err(TokenError::Damaged);
        }
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| TokenError::Damaged)?;
        let (body, sum) = bytes.split_last_chunk::<4>().ok_or(TokenError::Damaged)?;
        if crc32(body) != u32::from_be_bytes(*sum) {
            return Err(TokenError::Damaged);
        }
        decode(body).ok_or(TokenError::Damaged)
    }
}

fn decode(body: &[u8]) -> Option<JoinToken> {
    let mut rest = body;
    let mut take = |n: usize| -> Option<&[u8]> {
        let (head, tail) = rest.split_at_checked(n)?;
        rest = tail;
        Some(head)
    };
    if take(1)? != [1] {
        return None;
    }
    let addresses = usize::from(take(1)?[0]);
    let mut coordinators = Vec::new();
    for _ in 0..addresses {
        let length = usize::from(take(1)?[0]);
        coordinators.push(String::from_utf8(take(length)?.to_vec()).ok()?);
    }
    let mut pins = Vec::new();
    for _ in 0..usize::from(take(1)?[0]) {
        pins.push(IdentityKey(take(32)?.try_into().ok()?));
    }
    let id = take(8)?.try_into().ok()?;
    let secret = TokenSecret(take(32)?.try_into().ok()?);
    let in_bounds = |n: usize| (1..=MAX_LIST).contains(&n);
    (rest.is_empty() && in_bounds(coordinators.len()) && in_bounds(pins.len())).then_some(JoinToken {
        coordinators,
        pins,
        id,
        secret,
    })
}

/// CRC-32 as in IEEE 802.3, bit by bit: tokens are short and rare.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0u32, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            coordinators: vec!["192.0.2.1:7700".into(), "[2001:db8::1]:7700".into()],
            pins: vec![IdentityKey([3; 32])],
            id: [9; 8],
            secret: TokenSecret([5; 32]),
        }
    }

    #[test]
    fn crc32_has_the_standard_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_token_reads_what_it_prints() {
        assert_eq!(token().to_line().parse(), Ok(token()));
        assert_eq!(format!(" {}\n", token().to_line()).parse(), Ok(token()));
    }

    #[test]
    fn every_cut_or_flipped_character_is_noticed() {
        let line = token().to_line();
        for cut in 0..line.len() {
            assert!(line[..cut].parse::<JoinToken>().is_err(), "cut at {cut}");
            let mut flipped = line.clone().into_bytes();
            flipped[cut] = if flipped[cut] == b'B' { b'C' } else { b'B' };
            let flipped = String::from_utf8_lossy(&flipped).into_owned();
            assert!(flipped.parse::<JoinToken>().is_err(), "flipped at {cut}");
        }
    }

    #[test]
    fn debug_hides_the_secret() {
        let shown = format!("{:?}", token());
        assert!(shown.contains("[redacted]") && !shown.contains("5, 5"), "{shown}");
    }
}
