//! Words that all else is said in: names, keys, addresses, time, and tables over them.

pub mod addr;
pub mod block_map;
pub mod checksummed_text;
pub mod clock;
pub(crate) mod forward_compat;
pub mod handshake_limiter;
pub(crate) mod hash;
pub mod id;
pub mod lpm;
pub mod wall_clock;
