//! Names, numbers and keys: newtypes that parse or refuse, so that mixing them does not compile.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

/// Says why a word is no valid name, key or number, and what one looks like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The word is no DNS label (RFC 1123 section 2.1): 1 to 63 of a-z, 0-9 and inner hyphens.
    #[error("`{0}` is not a name: use 1 to 63 characters of a-z, 0-9 and hyphens, with a letter or digit at both ends")]
    Name(String),
    /// The word is no DNS name of valid labels, at most 253 bytes.
    #[error("`{0}` is not a domain: use labels of a-z, 0-9 and hyphens, separated by dots, at most 253 characters")]
    Domain(String),
    /// The word is not 32 bytes of base64url without padding.
    #[error("`{0}` is not a key: a key is 43 characters of base64url")]
    Key(String),
}

fn is_label(s: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&s.len()) && s.bytes().all(inner) && !s.starts_with('-') && !s.ends_with('-')
}

/// Writes a type as the text that it displays, and reads what it parses.
macro_rules! text_serde {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                s.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use text_serde;

macro_rules! label {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                if is_label(s) { Ok(Self(s.into())) } else { Err(IdError::Name(s.into())) }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
        text_serde!($name);
    };
}

label!(
    /// The name of the mesh.
    MeshName
);
label!(
    /// The name of a site: a cluster, or a group of hosts, with an address space of its own.
    SiteName
);
label!(
    /// The name of a node: a machine that runs meshd. Unique in the mesh.
    NodeName
);
label!(
    /// The bare name of a service, without its namespace.
    ServiceName
);
label!(
    /// A namespace of services; `default` where none is written.
    Namespace
);
label!(
    /// The name of one port of a service.
    PortName
);
label!(
    /// The name of a backend inside its service.
    BackendName
);

impl Default for Namespace {
    fn default() -> Self {
        Self("default".into())
    }
}

/// A service's full name: `cartservice` in namespace `default` prints as `cartservice`, others as `name.namespace`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The namespace, first so that listings group by it.
    pub namespace: Namespace,
    /// The bare name.
    pub name: ServiceName,
}

impl ServiceKey {
    /// Joins a name and a namespace.
    pub fn new(name: ServiceName, namespace: Namespace) -> Self {
        Self { namespace, name }
    }
}

impl FromStr for ServiceKey {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let (name, namespace) = match s.split_once('.') {
            Some((name, namespace)) => (name.parse()?, namespace.parse()?),
            None => (s.parse()?, Namespace::default()),
        };
        Ok(Self { namespace, name })
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace == Namespace::default() {
            f.pad(self.name.as_str())
        } else {
            f.pad(&format!("{}.{}", self.name, self.namespace))
        }
    }
}
text_serde!(ServiceKey);

/// A DNS domain that the mesh answers for, lower case, without the final dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(String);

impl Domain {
    /// Returns the domain as text, without the final dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let name = s.strip_suffix('.').unwrap_or(s);
        if name.len() <= 253 && name.split('.').all(is_label) {
            Ok(Self(name.into()))
        } else {
            Err(IdError::Domain(s.into()))
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
text_serde!(Domain);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// A node's durable number; given out once by the coordinator and never again.
    NodeId(u32)
);
number!(
    /// A service's durable number; given out once by the coordinator and never again.
    ServiceId(u32)
);
number!(
    /// The number of a state of the mesh; durable, growing, never repeated.
    Revision(u64)
);

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// Returns the first eight characters, enough for people to tell keys apart.
            pub fn short(&self) -> String {
                BASE64URL_NOPAD.encode(&self.0[..6])
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                let bytes = BASE64URL_NOPAD.decode(s.as_bytes()).ok();
                let key = bytes.and_then(|b| <[u8; 32]>::try_from(b).ok());
                key.map(Self).ok_or_else(|| IdError::Key(s.into()))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&BASE64URL_NOPAD.encode(&self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({}…)", stringify!($name), self.short())
            }
        }
        text_serde!($name);
    };
}

key!(
    /// The public half of a lane's WireGuard key (Curve25519); lane 0's is the node's.
    TunnelKey
);
key!(
    /// The public half of a node's or coordinator's identity key (Ed25519), which proves it on the control channel.
    IdentityKey
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label() {
        for good in ["a", "c1-n1", "0", "x-y-z", &"a".repeat(63)] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_service_key_reads_what_it_prints() {
        for text in ["cartservice", "cartservice.prod"] {
            assert_eq!(text.parse::<ServiceKey>().map(|k| k.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("cart.default".parse::<ServiceKey>().map(|k| k.to_string()), Ok("cart".to_owned()));
        assert!("a.b.c".parse::<ServiceKey>().is_err());
    }

    #[test]
    fn a_key_reads_what_it_prints_and_debug_shows_only_its_start() {
        let key = TunnelKey([7; 32]);
        assert_eq!(key.to_string().parse::<TunnelKey>(), Ok(key));
        assert!("AAAA".parse::<TunnelKey>().is_err());
        assert!(!format!("{key:?}").contains(&key.to_string()));
    }
}
