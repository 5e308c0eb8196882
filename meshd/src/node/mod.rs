//! What a node does.

pub mod error;
