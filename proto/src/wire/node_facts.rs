//! What a node says of itself.

use std::net::SocketAddr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::base::id::{ServiceKey, TunnelKey};
use crate::model::netmap::LaneInfo;
use crate::trust::signed_record::SignedRecord;

/// What a node says of itself, at the join and whenever it changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Its lanes; lane 0 first.
    pub lanes: Vec<LaneInfo>,
    /// Its own addresses with lane 0's port, the likeliest first.
    pub endpoints: Vec<SocketAddr>,
    /// The pod blocks it claims.
    pub pods: Vec<Ipv4Net>,
    /// What its own services.toml offers to serve.
    pub serve: Vec<ServeOffer>,
    /// The largest inner packet it takes, in bytes.
    pub mtu: u16,
    /// Whether masquerading cannot erase its pods' addresses.
    pub guarded: bool,
    /// The version of its meshd, for the operator.
    pub software: String,
    /// Grows with every record that the node signs.
    #[serde(default)]
    pub sequence: u64,
    /// Its lanes with the keys that it had before, while it changes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<LaneInfo>,
    /// The keys at which it agrees on preshared keys with its peers, on lane 0's port: the present one first, while
    /// they change the former as well; none if it does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agreement: Vec<TunnelKey>,
    /// All of this as the node signed it, for its peers to check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<SignedRecord>,
}

impl NodeFacts {
    /// Returns the text that a node signs of itself.
    pub fn text(&self) -> String {
        let unsigned = Self { signed: None, ..self.clone() };
        serde_json::to_string(&unsigned).expect("our own types have string keys and no failing parts")
    }

    /// Reads what a node signed; `None` if this version does not understand it.
    pub fn of(record: &SignedRecord) -> Option<Self> {
        let facts: Self = serde_json::from_str(&record.text).ok()?;
        facts.signed.is_none().then(|| Self { signed: Some(record.clone()), ..facts })
    }
}

/// One `[[serve]]` of a node's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeOffer {
    /// The service it serves.
    pub service: ServiceKey,
    /// The port it listens on, if it differs from the service's target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}
