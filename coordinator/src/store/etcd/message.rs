//! The messages of etcd's API that we use, with the fields that we use: numbers and types as in etcd's rpc.proto.
//!
//! Fields that are left out keep their defaults when we send, and are skipped when we read.

use prost::{Message, Oneof};

/// What every answer begins with.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ResponseHeader {
    /// The revision of all of etcd when the request was carried out.
    #[prost(int64, tag = "3")]
    pub(super) revision: i64,
}

/// A key and what it holds.
#[derive(Clone, PartialEq, Message)]
pub(super) struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    /// The revision of its last alteration.
    #[prost(int64, tag = "3")]
    pub(super) mod_revision: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) value: Vec<u8>,
}

/// Reads keys; without `serializable`, which we never set, what is read is what the cluster agreed on.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    /// The first key that is not read any more; empty to read `key` alone.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) range_end: Vec<u8>,
    /// Most keys to return; 0 for all.
    #[prost(int64, tag = "3")]
    pub(super) limit: i64,
    /// The revision to read at; 0 for the present one.
    #[prost(int64, tag = "4")]
    pub(super) revision: i64,
    #[prost(bool, tag = "8")]
    pub(super) keys_only: bool,
    /// Leaves out keys that were last altered before this revision.
    #[prost(int64, tag = "10")]
    pub(super) min_mod_revision: i64,
}

/// Answers `RangeRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    pub(super) kvs: Vec<KeyValue>,
    /// Whether there are more than `limit`.
    #[prost(bool, tag = "3")]
    pub(super) more: bool,
    /// How many keys the range has, those left out included.
    #[prost(int64, tag = "4")]
    pub(super) count: i64,
}

/// Writes one key.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

/// Deletes one key.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DeleteRangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
}

/// A condition on the last alteration of a key; a key that does not exist has 0.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Compare {
    /// 0: equal.
    #[prost(int32, tag = "1")]
    pub(super) result: i32,
    /// 2: the revision of the last alteration.
    #[prost(int32, tag = "2")]
    pub(super) target: i32,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) key: Vec<u8>,
    /// A value in a `oneof`, hence sent even if it is 0.
    #[prost(int64, optional, tag = "6")]
    pub(super) mod_revision: Option<i64>,
}

/// One step of a transaction.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RequestOp {
    #[prost(oneof = "Request", tags = "1, 2, 3, 4")]
    pub(super) request: Option<Request>,
}

/// The kinds of steps.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Request {
    #[prost(message, tag = "1")]
    Range(RangeRequest),
    #[prost(message, tag = "2")]
    Put(PutRequest),
    #[prost(message, tag = "3")]
    Delete(DeleteRangeRequest),
    #[prost(message, tag = "4")]
    Txn(TxnRequest),
}

/// Carries out `success` if all conditions hold, else `failure`; whole or not at all.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    pub(super) success: Vec<RequestOp>,
    #[prost(message, repeated, tag = "3")]
    pub(super) failure: Vec<RequestOp>,
}

/// Answers `TxnRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<ResponseHeader>,
    #[prost(bool, tag = "2")]
    pub(super) succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    pub(super) responses: Vec<ResponseOp>,
}

/// What one step gave, if it read something.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ResponseOp {
    #[prost(message, optional, tag = "1")]
    pub(super) range: Option<RangeResponse>,
}

/// Opens a watch.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) create: Option<WatchCreateRequest>,
}

/// Which key is watched, and from which revision on.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub(super) start_revision: i64,
}

/// What happened to a watched key.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchResponse {
    /// The watch is over, for instance because `start_revision` was compacted.
    #[prost(bool, tag = "4")]
    pub(super) canceled: bool,
    #[prost(string, tag = "6")]
    pub(super) cancel_reason: String,
    #[prost(message, repeated, tag = "11")]
    pub(super) events: Vec<Event>,
}

/// One alteration.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Event {
    #[prost(message, optional, tag = "2")]
    pub(super) kv: Option<KeyValue>,
}

/// Trades a password for a token. `Debug` is left out, for it would show the password.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct AuthenticateRequest {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) password: String,
}

impl std::fmt::Debug for AuthenticateRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthenticateRequest").field("name", &self.name).field("password", &"[redacted]").finish()
    }
}

/// Answers `AuthenticateRequest`.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct AuthenticateResponse {
    #[prost(string, tag = "2")]
    pub(super) token: String,
}

impl std::fmt::Debug for AuthenticateResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthenticateResponse").field("token", &"[redacted]").finish()
    }
}

/// Asks one member how it is.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StatusRequest {}

/// Answers `StatusRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StatusResponse {
    #[prost(string, tag = "2")]
    pub(super) version: String,
    /// Alarms.
    #[prost(string, repeated, tag = "8")]
    pub(super) errors: Vec<String>,
}

/// Wraps a step.
pub(super) fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// Makes the step that reads one key.
pub(super) fn read(key: &str) -> RequestOp {
    op(Request::Range(RangeRequest { key: key.into(), ..RangeRequest::default() }))
}

/// Makes the step that writes one key.
pub(super) fn put(key: &str, value: Vec<u8>) -> RequestOp {
    op(Request::Put(PutRequest { key: key.into(), value }))
}

/// Makes the step that deletes one key.
pub(super) fn delete(key: &str) -> RequestOp {
    op(Request::Delete(DeleteRangeRequest { key: key.into() }))
}

/// Makes the condition that nobody altered a key since.
pub(super) fn unaltered(key: &str, mod_revision: i64) -> Compare {
    Compare { result: 0, target: 2, key: key.into(), mod_revision: Some(mod_revision) }
}

impl TxnResponse {
    /// Returns the key that a step read, if it exists.
    pub(super) fn found(&self, step: usize) -> Option<&KeyValue> {
        self.responses.get(step)?.range.as_ref()?.kvs.first()
    }

    /// Returns the revision that the transaction made.
    pub(super) fn revision(&self) -> i64 {
        self.header.as_ref().map_or(0, |header| header.revision)
    }
}
