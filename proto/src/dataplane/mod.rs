//! The way of a packet: from a compiled map to one fate for each.

pub mod balancer;
pub mod black_hole;
pub mod engine;
pub mod explain;
pub mod flow;
pub mod liveness;
mod missing_rule;
pub mod policy_index;
pub mod verdict;
pub mod view;
