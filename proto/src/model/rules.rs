//! Permissions: who may call what, on identities and never on bare addresses.
//!
//! A `Rule` is one `[[allow]]` of the operator's file. Nothing is allowed that no rule allows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::base::id::{IdError, Namespace, NodeName, ServiceKey, ServiceName, SiteName, text_serde};

/// One `[[allow]]` of services.toml.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The file it was read from, as the operator wrote its path.
    pub file: String,
    /// The line of its `[[allow]]`, counted from 1.
    pub line: u32,
    /// Who may call.
    pub from: Vec<Source>,
    /// What may be called.
    pub to: Vec<RuleTarget>,
}

/// Who may call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The pods and hosts that back a service.
    Service(ServiceKey),
    /// Processes of one node, by its own address.
    Host(NodeName),
    /// All nodes and pods of a site.
    Site(SiteName),
    /// Pods of a Kubernetes ServiceAccount.
    Account(Namespace, ServiceName),
    /// Networks behind a node that are no pods of it, such as docker0, by the node's second address.
    Masqueraded(NodeName),
    /// Every member of the mesh. Masqueraded networks are none.
    Any,
}

/// What may be called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleTarget {
    /// All ports of a service.
    Service(ServiceKey),
    /// One port of a service, as callers dial it.
    Port(ServiceKey, u16),
    /// Any port and protocol at a node's own address, ICMP echo included.
    Host(NodeName),
    /// Any port and protocol at all node and pod addresses of a site.
    Site(SiteName),
    /// Everything.
    Any,
}

/// Says why a word names no source or target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// A part of the word is no name.
    #[error(transparent)]
    Name(#[from] IdError),
    /// The port is not between 1 and 65535.
    #[error("`{0}` is not a port: use 1 to 65535")]
    Port(String),
    /// The prefix before the colon is reserved and not built yet.
    #[error("`{0}:` is reserved and not built yet")]
    Reserved(String),
    /// The prefix before the colon cannot stand here.
    #[error("`{0}:` cannot stand here")]
    Misplaced(String),
}

impl FromStr for Source {
    type Err = WordError;
    fn from_str(s: &str) -> Result<Self, WordError> {
        match s.split_once(':') {
            None if s == "any" => Ok(Self::Any),
            None => Ok(Self::Service(s.parse()?)),
            Some(("host", name)) => Ok(Self::Host(name.parse()?)),
            Some(("site", name)) => Ok(Self::Site(name.parse()?)),
            Some(("masqueraded", name)) => Ok(Self::Masqueraded(name.parse()?)),
            Some(("sa", account)) => {
                let (namespace, name) = account.split_once('/').ok_or_else(|| IdError::Name(account.into()))?;
                Ok(Self::Account(namespace.parse()?, name.parse()?))
            }
            Some((word, _)) => Err(WordError::Reserved(word.into())),
        }
    }
}

impl FromStr for RuleTarget {
    type Err = WordError;
    fn from_str(s: &str) -> Result<Self, WordError> {
        match s.split_once(':') {
            None if s == "any" => Ok(Self::Any),
            None => Ok(Self::Service(s.parse()?)),
            Some(("host", name)) => Ok(Self::Host(name.parse()?)),
            Some(("site", name)) => Ok(Self::Site(name.parse()?)),
            Some((word @ ("sa" | "peer" | "publish" | "masqueraded"), _)) => Err(WordError::Misplaced(word.into())),
            Some((service, port)) => {
                let number = port.parse::<u16>().ok().filter(|&n| n > 0);
                let number = number.ok_or_else(|| WordError::Port(port.into()))?;
                Ok(Self::Port(service.parse()?, number))
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => key.fmt(f),
            Self::Host(name) => write!(f, "host:{name}"),
            Self::Site(name) => write!(f, "site:{name}"),
            Self::Masqueraded(name) => write!(f, "masqueraded:{name}"),
            Self::Account(namespace, name) => write!(f, "sa:{namespace}/{name}"),
            Self::Any => f.write_str("any"),
        }
    }
}

impl fmt::Display for RuleTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => key.fmt(f),
            Self::Port(key, port) => write!(f, "{key}:{port}"),
            Self::Host(name) => write!(f, "host:{name}"),
            Self::Site(name) => write!(f, "site:{name}"),
            Self::Any => f.write_str("any"),
        }
    }
}

text_serde!(Source);
text_serde!(RuleTarget);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_and_targets_read_what_they_print() {
        for text in ["cart", "cart.prod", "host:vm-1", "site:c1", "sa:default/loadgen", "masqueraded:vm-1", "any"] {
            assert_eq!(text.parse::<Source>().map(|s| s.to_string()), Ok(text.to_owned()));
        }
        for text in ["cart", "cart.prod:7070", "cart:7070", "host:vm-1", "site:c1", "any"] {
            assert_eq!(text.parse::<RuleTarget>().map(|s| s.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn reserved_words_and_wrong_ports_are_refused() {
        assert_eq!("beta:frontend".parse::<Source>(), Err(WordError::Reserved("beta".into())));
        assert_eq!("cart:0".parse::<RuleTarget>(), Err(WordError::Port("0".into())));
        let misplaced = Err(WordError::Misplaced("masqueraded".into()));
        assert_eq!("masqueraded:a".parse::<RuleTarget>(), misplaced, "nobody calls behind a translation");
        assert_eq!("sa:x/y".parse::<RuleTarget>(), Err(WordError::Misplaced("sa".into())));
    }
}
