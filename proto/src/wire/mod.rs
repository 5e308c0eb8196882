//! What node and coordinator say to each other, as JSON bodies over HTTP/2 (TLS 1.3, raw public keys).
//!
//! ```text
//! POST /v1/join     JoinRequest            ─▶  JoinResponse
//! GET  /v1/watch?revision=N                ─▶  one `WatchEvent` per line, for as long as the node listens
//! POST /v1/report   Report                 ─▶  ReportResponse
//! POST /v1/identity Renewal                ─▶  ReportResponse
//! POST /v1/copied   Copied                 ─▶  ReportResponse
//! GET  /v1/about?name=NODE                 ─▶  About
//! GET  /v1/log?after=N                     ─▶  LogPage
//! GET  /v1/roll                            ─▶  Roll
//! GET  /v1/lock                            ─▶  LockStanding
//! POST /v1/lock     Countersign            ─▶  LockStanding
//! any failure                              ─▶  ErrorBody with status 4xx or 5xx
//! ```
//! Who speaks is known from the channel's key and never from a body. Unknown fields are ignored, so that
//! both ends may differ by one minor version; enums that may grow have a variant for what is not known yet.

mod error;
mod node_facts;
pub mod query;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::base::addr::{Flat, MeshRange};
use crate::base::block_map::BlockMap;
use crate::base::clock::UnixTime;
use crate::base::id::{IdentityKey, MeshName, NodeId, NodeName, Revision, SiteName};
use crate::model::netmap::{Delta, NetMap};
use crate::trust::audit_log::LogPosition;
use crate::trust::identity_rotation::Succession;
use crate::trust::join_token::{OidcToken, TokenSecret};
use crate::trust::network_lock::{LockedMember, NetworkLock};
use crate::trust::signed_record::{Signature, SignedRecord};
pub use error::{ErrorBody, ErrorCode, MAX_CODE};
pub use node_facts::{NodeFacts, ServeOffer};

/// The version of these messages.
pub const VERSION: u16 = 1;
/// The ALPN word of the control channel: plain HTTP/2.
pub const ALPN: &[u8] = b"h2";
/// The largest body that a coordinator reads, in bytes.
pub const MAX_REQUEST: usize = 256 * 1024;
/// The largest line of a watch that a node reads, in bytes: a snapshot of the largest mesh we promise.
pub const MAX_EVENT: usize = 64 * 1024 * 1024;
/// Most candidates a node may report.
pub const MAX_ENDPOINTS: usize = 16;
/// Most lanes a node may report.
pub const MAX_LANES: usize = 16;
/// Most pod blocks a node may claim.
pub const MAX_BLOCKS: usize = 256;
/// The largest answer to a node's question about the log, in bytes.
pub const MAX_LOG: usize = 4 * 1024 * 1024;
/// Most nodes that are told to wait for a signature.
pub const MAX_WAITING: usize = 256;
/// Most serve offers a node may make.
pub const MAX_OFFERS: usize = 256;

/// Asks to become a member. Idempotent for the same identity key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// `VERSION` of the node.
    pub version: u16,
    /// The token's public half, as `JoinToken::id` prints it.
    pub token: String,
    /// The token's one-time secret.
    pub secret: TokenSecret,
    /// A token of an issuer that the coordinator trusts, instead of the two above: these are empty and zero then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<OidcToken>,
    /// The name the node would like; the token's own name, if it has one, decides.
    pub name: NodeName,
    /// What the node says of itself.
    pub facts: NodeFacts,
    /// Whether it is to vanish from the mesh when it was not heard of for 10 minutes.
    #[serde(default)]
    pub ephemeral: bool,
}

/// Welcomes a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinResponse {
    /// `VERSION` of the coordinator.
    pub version: u16,
    /// The node's name.
    pub node: NodeName,
    /// The node's durable number.
    pub id: NodeId,
    /// The node's site.
    pub site: SiteName,
    /// The mesh it joined.
    pub mesh: MeshName,
    /// The mesh range, which the node closes before it does anything else.
    pub range: MeshRange,
    /// The node's address.
    pub address: Flat,
    /// The node's pod blocks and their images.
    pub blocks: Vec<BlockMap>,
    /// Keys of coordinators to trust from now on.
    pub pins: Vec<IdentityKey>,
    /// Addresses of coordinators, as `host:port`.
    pub coordinators: Vec<String>,
    /// The first map.
    pub netmap: NetMap,
    /// What the coordinator refused of the facts, in sentences.
    #[serde(default)]
    pub refused: Vec<String>,
}

/// A line of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WatchEvent {
    /// The whole map: the first line, unless the node's revision could be resumed.
    Snapshot {
        /// The map.
        netmap: Box<NetMap>,
    },
    /// What changed since the line before.
    Delta {
        /// The change.
        delta: Box<Delta>,
    },
    /// Nothing changed for a while; at least one line in 10 s, so that a dead channel is noticed.
    Alive {
        /// The revision in force.
        revision: Revision,
        /// The last entry of the log of operations; none from an older coordinator.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        log: Option<LogPosition>,
        /// The time of day by the coordinator's clock; none from an older coordinator.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time: Option<UnixTime>,
    },
    /// A newer connection of the same node took over; this one ends.
    Fenced,
    /// This coordinator stops; another one, if there is one, is to be asked at once.
    Leaving,
    /// A kind this version does not know; ignored.
    #[serde(other)]
    Unknown,
}

/// Tells the coordinator what a node is and does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What the node says of itself.
    pub facts: NodeFacts,
    /// The revision it has in force.
    pub applied: Revision,
    /// Sentences for the operator of the mesh.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Goes on with another identity key, over a channel of the former one. Idempotent for the same succession.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// What both keys signed.
    pub succession: Succession,
    /// What the node says of itself, signed by the next key under a number above all before.
    pub facts: NodeFacts,
}

/// Tells that another machine has this node's identity; the one that tells stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// The record that the other one signed.
    pub record: SignedRecord,
}

/// What is known of a node that the asking one is not told of: no rule lets either call the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its name.
    pub node: NodeName,
    /// Its site.
    pub site: SiteName,
    /// Its own address.
    pub address: Flat,
}

/// How the mesh is locked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockStanding {
    /// The lock; none if there never was one.
    pub lock: Option<NetworkLock>,
    /// Nodes that wait for its signature; at most `MAX_WAITING`.
    #[serde(default)]
    pub waiting: Vec<LockedMember>,
    /// Admitted nodes that changed their identity so often since that they need another signature before they may do so
    /// again; at most `MAX_WAITING`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aged: Vec<LockedMember>,
}

/// Admits a node that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Countersign {
    /// The node.
    pub node: NodeName,
    /// The lock's signature for it, over `lock::Member`.
    pub signature: Signature,
}

/// Answers a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportResponse {
    /// The address that the coordinator sees the node at.
    pub observed: IpAddr,
    /// What the coordinator refused of the facts, in sentences.
    #[serde(default)]
    pub refused: Vec<String>,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::fixture::{self, RuleAt};

    fn sent<T: Serialize + for<'de> Deserialize<'de>>(value: &T) -> T {
        serde_json::from_slice(&serde_json::to_vec(value).unwrap()).unwrap()
    }

    #[test]
    fn what_is_sent_is_what_is_received() {
        let netmap =
            Box::new(fixture::netmap(&[RuleAt(7, &["front", "host:a", "site:s1", "any"], &["cart:7070", "any"])]));
        let mut later = netmap.clone();
        later.revision.0 += 1;
        later.services.pop_first();
        let delta = Box::new(Delta::between(&netmap, &later));
        for event in [
            WatchEvent::Snapshot { netmap },
            WatchEvent::Delta { delta },
            WatchEvent::Alive { revision: Revision(u64::MAX), log: None, time: None },
            WatchEvent::Alive { revision: Revision(7), log: Some(LogPosition::default()), time: Some(UnixTime(5)) },
            WatchEvent::Fenced,
            WatchEvent::Leaving,
        ] {
            assert_eq!(sent(&event), event);
        }
    }

    #[test]
    fn a_newer_minor_version_is_understood_as_far_as_it_is_known() {
        let event = |text: &str| serde_json::from_str::<WatchEvent>(text);
        assert_eq!(event(r#"{"type":"invented_later","x":1}"#).unwrap(), WatchEvent::Unknown);
        assert_eq!(
            event(r#"{"type":"alive","revision":7,"mood":"fine"}"#).unwrap(),
            WatchEvent::Alive { revision: Revision(7), log: None, time: None }
        );
        assert!(event(r#"{"type":"alive"}"#).is_err());
    }
}
