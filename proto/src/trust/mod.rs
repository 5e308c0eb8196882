//! What is signed, by whom, and how far back it may go: records, the log, lock mode, changed keys, tokens.

pub mod audit_log;
pub mod high_water_mark;
pub mod identity_rotation;
pub mod join_token;
pub mod jwt;
pub mod network_lock;
pub mod offline_lease;
pub mod record_conflict;
pub mod signed_record;
