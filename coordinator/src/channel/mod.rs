//! What nodes ask, and what they are answered.

pub(crate) mod context;
pub(crate) mod identity;
pub(crate) mod join;
pub(crate) mod listener;
pub(crate) mod log;
pub(crate) mod lookup;
pub(crate) mod peer;
pub(crate) mod routes;
pub(crate) mod signed_facts;
pub(crate) mod watch;
