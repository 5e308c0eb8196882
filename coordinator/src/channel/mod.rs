//! What nodes ask, and what they are answered.

pub(crate) mod context;
mod copied;
mod half_open;
pub(crate) mod identity;
pub(crate) mod join;
pub(crate) mod listener;
pub(crate) mod log;
pub(crate) mod lookup;
mod member_addresses;
pub(crate) mod network_lock;
pub(crate) mod own_addresses;
pub(crate) mod peer;
pub(crate) mod report;
pub(crate) mod routes;
pub(crate) mod signed_facts;
pub(crate) mod watch;
